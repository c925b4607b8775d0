"""Attention inside each domain of a history: an event sees the events of its own domain up to itself.

Pairs fall from n (n + 1) / 2 to the sum of n_d (n_d + 1) / 2 over domains, but a mask on the interleaved sequence saves
nothing: no tile of it is empty. So the events are sorted by domain inside each user (stable: time order stays), what a
user has in a domain becomes a segment of its own, attention is causal inside a segment, and the result is sorted back.
Original positions and times go along for the bias. TAPE-DDSR-HSTU (https://arxiv.org/abs/2508.20945) masks
attention so; the sort and the tiles are ours. With score_ij = <q_i, k_j> + bias_ij as in ``layers.hstu``:

    silu:    o_i = sum_j SiLU(score_ij) v_j / n, HSTU's
    softmax: o_i = sum_j softmax_j(score_ij) v_j

Scores are made in tiles, and made again in the backward pass: no tensor of the size of the pairs is kept but the time
buckets, one byte per pair for all heads and layers, and these only up to ``MAX_STORED_BUCKETS`` for each group.

Short histories take the masked form of HSTU's attention, where kernels for each group cost more than they save.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_cdsr.layers import hstu
from recbole_cdsr.layers.hstu import Attention, RelativeBias, distance, look_up, time_bucket

KINDS = ("silu", "softmax")

# Padded histories up to MASKED_MAX_LENGTH take the masked form of SiLU attention; up to SKEWED_MAX_LENGTH those do that
# keep more than MOST_PAIRS of all pairs inside domains. Time of both forms, against HSTU's attention over all events
# (CPU, one thread, 2,000 events, forward and backward, two heads of 32):
#   L                                 30         64         96         128        160        176       192-200    256
#   masked                            1.0-1.1    1.0-1.1    1.0        1.0        1.0-1.1    1.0       1.0-1.1    1.0
#   segments, 2 equal domains         1.9        1.2        1.2-1.4    1.0        1.0        1.0       0.8-0.9    0.9
#   segments, 10 equal domains        2.1        0.9        0.7        0.6        0.7        0.7       0.5-0.6    0.5
#   segments, 80 % in one of 5        2.2        1.3        1.3        1.2        1.0-1.2    1.3       1.0-1.1    1.0
MASKED_MAX_LENGTH = 160
SKEWED_MAX_LENGTH = 256
MOST_PAIRS = 0.58  # two equal domains keep 0.5, four fifths of the events in one of many 0.64
# Segments of a group differ in length by at most this factor, so that little of a group is padding; those up to
# SHORTEST share a group, where padding is cheaper than kernels of their own.
MAX_RATIO = 1.5
SHORTEST = 8
# Rows of a tile, and scores of all heads that are made at once: what a core's cache holds, or fewer and larger kernels.
TILE_ROWS = 64
TILE = 2**17
TILE_ON_ACCELERATOR = 2**25
MAX_STORED_BUCKETS = 2**26
_HIDDEN = -30000.0  # added to a score, vanishes in the softmax


class Tile:
    """Queries ``rows`` of some segments of a group, with all keys up to the last of them."""

    def __init__(self, group: Group, segments: slice, rows: slice):
        self.group, self.segments, self.rows, self.keys = group, segments, rows, slice(0, rows.stop)
        self.stored: Tensor | None = None

    def store(self) -> None:
        """Keeps the buckets for the layers and passes to come."""
        self.stored = self.bucket()

    def distance(self, max_length: int) -> Tensor:
        """Index into the weights of positions, int32 [s, T, K]."""
        positions = self.group.positions[self.segments]
        return distance(positions[:, self.rows], positions[:, self.keys], max_length)

    def bucket(self) -> Tensor:
        """Index into the weights of times, uint8 [s, T, K]."""
        if self.stored is not None:
            return self.stored
        query_times, key_times = self.group.query_times[self.segments], self.group.key_times[self.segments]
        return time_bucket(query_times[:, self.rows], key_times[:, self.keys])

    def clear(self, weights: Tensor) -> Tensor:
        """Zero for the weights [s, H, T, K] of later keys, in place."""
        return weights.tril_(self.rows.start)

    def hide(self, scores: Tensor) -> Tensor:
        """The scores [s, H, T, K] of later keys lowered out of a softmax, in place."""
        return scores.add_(torch.full_like(scores[0, 0], _HIDDEN).triu_(self.rows.start + 1))


class Group:
    """Segments of similar length, padded on the right to L events, and their tiles.

    positions [S, L] int32; query_times and key_times [S, L] seconds, or None where time does not count.
    """

    def __init__(self, positions: Tensor, query_times: Tensor | None, key_times: Tensor | None, n_heads: int):
        self.positions, self.query_times, self.key_times = positions, query_times, key_times
        segments, length = positions.shape
        budget = TILE if positions.device.type == "cpu" else TILE_ON_ACCELERATOR
        self.tiles: list[Tile] = []
        for top in range(0, length, TILE_ROWS):
            rows = slice(top, min(top + TILE_ROWS, length))
            step = max(1, budget // (n_heads * (rows.stop - top) * rows.stop))
            for first in range(0, segments, step):
                self.tiles.append(Tile(self, slice(first, min(first + step, segments)), rows))
        if query_times is not None and positions.numel() * length <= MAX_STORED_BUCKETS:
            for tile in self.tiles:
                tile.store()


class DomainSegments:
    """Where the events of a batch go for attention inside domains.

    domains: [B, L] integers, 0 for padding on the right. query_time, key_time: [B, L] seconds, float64, or None where
    time does not count. n_heads: H.

    An event of a head goes to a slot; the slots of each group are [S, H, L], one group after the other.
    """

    def __init__(self, domains: Tensor, query_time: Tensor | None, key_time: Tensor | None, n_heads: int):
        self.shape, self.n_heads = domains.shape, n_heads
        self.groups: list[Group] = []
        sources: list[Tensor] = []  # [S, L] of each group: event in the flattened batch
        real: list[Tensor] = []  # [S, L]: not padding
        for source, valid in _groups(domains):
            times = (None if t is None else t.flatten()[source] for t in (query_time, key_time))
            self.groups.append(Group((source % self.shape[1]).int(), *times, n_heads))
            sources.append(source)
            real.append(valid)
        self._index(sources, real)

    def _index(self, sources: list[Tensor], real: list[Tensor]) -> None:
        """Slots from events and back, for rows [B * L * H] of heads."""
        device = sources[0].device
        heads = torch.arange(self.n_heads, device=device).view(1, -1, 1)
        self.source = torch.cat([(part.unsqueeze(1) * self.n_heads + heads).flatten() for part in sources])
        kept = torch.cat([part.unsqueeze(1).expand(-1, self.n_heads, -1).flatten() for part in real])
        # Padding finds its zero in one more slot.
        self.slot = torch.full((self.shape.numel() * self.n_heads,), len(self.source), device=device)
        self.slot[self.source[kept]] = kept.nonzero().squeeze(1)
        self.real = kept.unsqueeze(1)

    def slots(self, values: Tensor) -> Tensor:
        """[B, H, L, W] to slots [P, W]; a padded slot repeats an event."""
        return values.transpose(1, 2).reshape(-1, values.size(-1)).index_select(0, self.source)

    def split(self, slots: Tensor) -> list[Tensor]:
        """Views [S, H, L, W] of the slots [P, W] of each group."""
        shapes = [(len(g.positions), self.n_heads, g.positions.size(1)) for g in self.groups]
        parts = slots[: len(self.source)].split([s * h * length for s, h, length in shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]

    def zeros(self, like: Tensor) -> Tensor:
        """Slots [P + 1, W] for results."""
        return like.new_zeros(len(self.source) + 1, like.size(-1))

    def gather(self, slots: Tensor) -> Tensor:
        """Slots [P + 1, W] back to [B, H, L, W], zero at padding."""
        return slots.index_select(0, self.slot).view(*self.shape, self.n_heads, -1).transpose(1, 2)


def _groups(domains: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A segment for each user and domain, longest first: the events [S, L] of each group, and which are real."""
    n_domains = int(domains.max()) + 1
    user = torch.arange(len(domains), device=domains.device).unsqueeze(1)
    segment = (user * n_domains + domains).flatten()
    order = segment.argsort(stable=True)
    counts = torch.bincount(segment, minlength=len(domains) * n_domains)
    starts = counts.cumsum(0) - counts
    counts.view(-1, n_domains)[:, 0] = 0  # padding
    by_length = counts.argsort(descending=True)
    lengths = [length for length in counts[by_length].tolist() if length]
    first = 0
    while first < len(lengths):
        least = lengths[first] / MAX_RATIO if lengths[first] > SHORTEST else 1
        last = first + sum(length >= least for length in lengths[first:])
        chosen = by_length[first:last]
        column = torch.arange(lengths[first], device=domains.device)
        count = counts[chosen].unsqueeze(1)
        # A padded slot repeats the segment's last event, behind every query that counts.
        yield order[starts[chosen].unsqueeze(1) + torch.minimum(column, count - 1)], column < count
        first = last


def intra_domain_attention(
    domains: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    n_heads: int,
    divisor: float,
    kind: str = "silu",
) -> Attention:
    """Attention inside domains for the layers of one batch, in the form that is faster; arguments as below."""
    if kind == "silu" and _masked_is_faster(domains):
        return MaskedAttention(domains, query_time, key_time, divisor)
    return SegmentedAttention(DomainSegments(domains, query_time, key_time, n_heads), divisor, kind)


def _masked_is_faster(domains: Tensor) -> bool:
    length = domains.size(1)
    if not MASKED_MAX_LENGTH < length <= SKEWED_MAX_LENGTH:
        return length <= MASKED_MAX_LENGTH
    counts = F.one_hot(domains.long()).sum(1)[:, 1:]
    return bool(counts.square().sum() > MOST_PAIRS * length**2 * len(domains))


class MaskedAttention(hstu.CausalAttention):
    """SiLU attention of all pairs, of which those inside a domain are kept; domains [B, L], 0 for padding."""

    def __init__(self, domains: Tensor, query_time: Tensor | None, key_time: Tensor | None, divisor: float):
        super().__init__(torch.arange(domains.size(1), device=domains.device)[None], query_time, key_time, divisor)
        key = domains.float().unsqueeze(1)
        query = key.masked_fill(key == 0, -1).transpose(1, 2)
        # Ones and zeros, compared right into floats: several times faster on CPU than a mask of truth values.
        same = torch.eq(query, key, out=key.new_empty(*domains.shape, domains.size(1)))
        same = same.tril_().unsqueeze(1)
        # By first row of a tile, [B, 1, Q, K], without gaps: half the time of a slice.
        self.may_attend = {tile.rows.start: same[:, :, tile.rows, tile.keys].contiguous() for tile in self.tiles}

    def hide(self, values: Tensor, tile: hstu.Tile) -> Tensor:
        return values.mul_(self.may_attend[tile.rows.start])


class SegmentedAttention:
    """Attention of each event to those of its domain up to itself; made once per batch, shared by all layers.

    segments: the plan. divisor: n of SiLU attention. kind: one of ``KINDS``. Differentiable once.
    """

    def __init__(self, segments: DomainSegments, divisor: float, kind: str = "silu"):
        self.segments, self.divisor, self.kind = segments, divisor if kind == "silu" else 1.0, kind

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, bias: RelativeBias) -> Tensor:
        """Context [B, H, L, d_v], zero at padding, of query and key [B, H, L, d_qk] and value [B, H, L, d_v]."""
        with torch.autocast(query.device.type, enabled=False):
            dtype = torch.promote_types(query.dtype, torch.float32)
            return _Attention.apply(query.to(dtype), key.to(dtype), value.to(dtype), bias.position, bias.time, self)

    def scores(self, query: Tensor, key: Tensor, of_position: Tensor, of_time: Tensor | None, tile: Tile) -> Tensor:
        """[s, H, T, K] of the queries and keys [s, H, L, W] of the tile's segments."""
        bias = look_up(of_position, tile.distance(len(of_position)))
        if of_time is not None:
            bias += look_up(of_time, tile.bucket())
        return torch.matmul(query[:, :, tile.rows], key[:, :, tile.keys].transpose(2, 3)).add_(bias.unsqueeze(1))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, of_position, of_time, plan: SegmentedAttention) -> Tensor:
        segments = plan.segments
        result = segments.zeros(value)
        inputs = [segments.slots(x) for x in (query, key, value)]
        parts = [segments.split(x) for x in (*inputs, result)]
        for group, *slots in zip(segments.groups, *parts, strict=True):
            for tile in group.tiles:
                q, k, v, out = (part[tile.segments] for part in slots)
                scores = plan.scores(q, k, of_position, of_time, tile)
                if plan.kind == "silu":
                    weights = tile.clear(F.silu(scores, inplace=True))
                else:
                    weights = torch.softmax(tile.hide(scores), dim=-1)
                out[:, :, tile.rows] = torch.matmul(weights, v[:, :, tile.keys])
        ctx.plan = plan
        ctx.save_for_backward(*inputs, of_position, of_time)
        return segments.gather(result.div_(plan.divisor))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        *inputs, of_position, of_time = ctx.saved_tensors
        plan, segments = ctx.plan, ctx.plan.segments
        # Masked, since padded slots repeat events.
        upstream = segments.slots(upstream).mul_(segments.real).div_(plan.divisor)
        results = [segments.zeros(x) for x in inputs]
        to_position, to_time = torch.zeros_like(of_position), None if of_time is None else torch.zeros_like(of_time)
        parts = [segments.split(x) for x in (*inputs, upstream, *results)]
        for group, *slots in zip(segments.groups, *parts, strict=True):
            for tile in group.tiles:
                q, k, *others = (part[tile.segments] for part in slots)
                scores = plan.scores(q, k, of_position, of_time, tile)
                to_bias = _add_gradients(plan.kind, tile, scores, q, k, *others).sum(1).flatten()
                far = tile.distance(len(of_position))
                to_position += torch.zeros_like(of_position).scatter_add_(0, far.flatten().long(), to_bias)
                if to_time is not None:
                    bucket = tile.bucket().flatten().long()
                    to_time += torch.zeros_like(of_time).scatter_add_(0, bucket, to_bias)
        return *(segments.gather(x) for x in results), to_position, to_time, None


def _add_gradients(kind: str, tile: Tile, scores, query, key, value, upstream, to_query, to_key, to_value) -> Tensor:
    """Adds a tile's gradients to those of its segments; the gradient of its scores [s, H, T, K]."""
    rows, keys = tile.rows, tile.keys
    to_weights = torch.matmul(upstream[:, :, rows], value[:, :, keys].transpose(2, 3))
    if kind == "silu":
        weights = tile.clear(F.silu(scores))
        to_scores = tile.clear(torch.ops.aten.silu_backward(to_weights, scores))
    else:
        weights = torch.softmax(tile.hide(scores), dim=-1)
        to_scores = to_weights.sub_(torch.linalg.vecdot(to_weights, weights).unsqueeze(-1)).mul_(weights)
    to_query[:, :, rows] = torch.matmul(to_scores, key[:, :, keys])
    to_key[:, :, keys] += torch.matmul(to_scores.transpose(2, 3), query[:, :, rows])
    to_value[:, :, keys] += torch.matmul(weights.transpose(2, 3), upstream[:, :, rows])
    return to_scores
