"""Attention inside each domain of a history: an event sees the events of its own domain up to itself.

Pairs fall from n (n + 1) / 2 to the sum of n_d (n_d + 1) / 2 over domains, but a mask on the interleaved sequence saves
nothing: no tile of it is empty. So the events are sorted by domain inside each user (stable: time order stays), each run
of a user and a domain becomes a segment of its own, attention is causal inside a segment, and the result is sorted
back. Original positions and times go along for the relative bias. TAPE-DDSR-HSTU (https://arxiv.org/abs/2508.20945)
masks attention so; the sort and the tiles are ours.

    score_ij = <q_i, k_j> + position_weight[n - 1 + p_j - p_i] + time_weight[bucket(t_i - t_j)]
    silu:    o_i = sum_j SiLU(score_ij) v_j / n        (HSTU, https://arxiv.org/abs/2402.17152), n: longest history
    softmax: o_i = sum_j softmax_j(score_ij) v_j       (the caller scales q)

Scores are made in tiles, and made again in the backward pass: no tensor of the size of the pairs is kept but the time
buckets, one byte per pair for all heads and layers, and these only up to ``MAX_STORED_BUCKETS`` for each group.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("silu", "softmax")
N_TIME_BUCKETS = 129

# Longest padded history that takes the masked form.
MASKED_MAX_LENGTH = 64
# Segments of a group differ in length by at most this factor, so that little of a group is padding; those up to
# SHORTEST share a group, where padding is cheaper than kernels of their own.
MAX_RATIO = 1.5
SHORTEST = 8
TILE_ROWS = 256
TILE = 2**17  # scores of all heads that are made at once
MAX_STORED_BUCKETS = 2**26
_HIDDEN = -30000.0  # added to a score, vanishes in the softmax


def time_bucket(seconds: Tensor) -> Tensor:
    """HSTU's bucket of a time difference: floor(ln(max(|seconds|, 1)) / 0.301), at most 128; uint8."""
    magnitude = seconds.abs().clamp_(min=1).float()
    return magnitude.log_().div_(0.301).clamp_(max=N_TIME_BUCKETS - 1).to(torch.uint8)


class Group:
    """Segments of similar length, padded on the right to L events.

    positions [S, L] int32; times [S, L] or None; mask [S, L, L] of ones and zeros, or None for causal attention.
    """

    def __init__(self, positions: Tensor, times: Tensor | None, mask: Tensor | None = None):
        self.positions, self.times, self.mask = positions, times, mask
        self.buckets = None
        if times is not None and times.numel() * times.size(1) <= MAX_STORED_BUCKETS:
            self.buckets = time_bucket(times.unsqueeze(2) - times.unsqueeze(1))

    def tiles(self, n_heads: int) -> Iterator[Tile]:
        segments, length = self.positions.shape
        for top in range(0, length, TILE_ROWS):
            rows = slice(top, min(top + TILE_ROWS, length))
            step = max(1, TILE // (n_heads * (rows.stop - top) * rows.stop))
            for first in range(0, segments, step):
                yield Tile(self, slice(first, min(first + step, segments)), rows)


class Tile:
    """Rows of some segments of a group, with the keys that they may see."""

    def __init__(self, group: Group, segments: slice, rows: slice):
        self.group, self.segments, self.rows, self.keys = group, segments, rows, slice(0, rows.stop)

    def distances(self, n: int) -> Tensor:
        """Index into the position weights, int32 [s, T, K]."""
        positions = self.group.positions[self.segments]
        return (positions[:, None, self.keys] + (n - 1)) - positions[:, self.rows, None]

    def buckets(self) -> Tensor:
        """Index into the time weights, uint8 [s, T, K]."""
        group = self.group
        if group.buckets is not None:
            return group.buckets[self.segments, self.rows, self.keys]
        times = group.times[self.segments]
        return time_bucket(times[:, self.rows, None] - times[:, None, self.keys])

    def clear(self, weights: Tensor) -> Tensor:
        """Zero in place of the weights [s, H, T, K] of keys that a query may not see, in place."""
        if self.group.mask is None:
            return weights.tril_(self.rows.start)
        return weights.mul_(self.group.mask[self.segments, None, self.rows, self.keys])

    def hide(self, scores: Tensor) -> Tensor:
        """The scores [s, H, T, K] of those keys lowered out of a softmax, in place."""
        if self.group.mask is None:
            return scores.add_(torch.full_like(scores[0, 0], _HIDDEN).triu_(self.rows.start + 1))
        return scores.add_((1.0 - self.group.mask[self.segments, None, self.rows, self.keys]) * _HIDDEN)


class DomainSegments:
    """Where the events of a batch go for attention inside domains: a plan made once per batch, for all layers.

    domains: [B, L] integers, 0 for padding on the right. times: [B, L] seconds, float64, or None for no time bias.
    n_heads: H. masked: the masked form instead of segments; by default for short histories.

    An event of a head goes to a slot; the slots of each group are [S, H, L], one group after the other.
    """

    def __init__(self, domains: Tensor, times: Tensor | None, n_heads: int, masked: bool | None = None):
        self.shape, self.n_heads = domains.shape, n_heads
        self.valid = domains > 0
        self.groups: list[Group] = []
        sources: list[Tensor] = []  # [S, L] of each group: event in the flattened batch
        real: list[Tensor] = []  # [S, L]: not padding
        masked = domains.size(1) <= MASKED_MAX_LENGTH if masked is None else masked
        build = self._one_group if masked else self._sorted_groups
        for source, valid, mask in build(domains):
            position = (source % self.shape[1]).int()
            self.groups.append(Group(position, None if times is None else times.flatten()[source], mask))
            sources.append(source)
            real.append(valid)
        self._index(sources, real)

    def _one_group(self, domains: Tensor):
        """The masked form: a segment for each user, in which a query sees the keys of its domain."""
        mask = (domains.unsqueeze(2) == domains.unsqueeze(1)).float().tril_()
        yield torch.arange(domains.numel(), device=domains.device).view(domains.shape), self.valid, mask

    def _sorted_groups(self, domains: Tensor):
        """Events [S, L] of each group, which of them are real, and no mask."""
        n_domains = int(domains.max()) + 1
        user = torch.arange(len(domains), device=domains.device).unsqueeze(1)
        segment = (user * n_domains + domains).flatten()
        order = segment.argsort(stable=True)
        counts = torch.bincount(segment, minlength=len(domains) * n_domains)
        starts = counts.cumsum(0) - counts
        counts.view(-1, n_domains)[:, 0] = 0  # padding
        by_length = counts.argsort(descending=True)
        lengths = counts[by_length].tolist()
        first, end = 0, len(lengths) - lengths.count(0)
        while first < end:
            least = lengths[first] / MAX_RATIO if lengths[first] > SHORTEST else 1
            last = first
            while last < end and lengths[last] >= least:
                last += 1
            chosen = by_length[first:last]
            column = torch.arange(lengths[first], device=domains.device)
            valid = column < counts[chosen].unsqueeze(1)
            # A padded slot repeats the segment's last event: it comes after every query that counts.
            column = torch.minimum(column, counts[chosen].unsqueeze(1) - 1)
            yield order[starts[chosen].unsqueeze(1) + column], valid, None
            first = last

    def _index(self, sources: list[Tensor], real: list[Tensor]) -> None:
        """Slots from events and back, for rows [B * L * H] of heads."""
        heads = torch.arange(self.n_heads, device=self.valid.device).view(1, -1, 1)

        def slots(parts: list[Tensor], make) -> Tensor:
            return torch.cat([make(part.unsqueeze(1)).flatten() for part in parts])

        self.source = slots(sources, lambda source: source * self.n_heads + heads)
        self.real = slots(real, lambda valid: valid.expand(-1, self.n_heads, -1)).unsqueeze(1)
        # Padding finds its zero in one more slot.
        self.slot = torch.full((self.valid.numel() * self.n_heads,), len(self.source), device=self.valid.device)
        place = torch.arange(len(self.source), device=self.valid.device)
        kept = self.real.squeeze(1)
        self.slot[self.source[kept]] = place[kept]
        self.slot.view(-1, self.n_heads)[~self.valid.flatten()] = len(self.source)

    def scatter(self, values: Tensor) -> list[Tensor]:
        """[B, L, H, W] to the slots of each group, [S, H, L, W]."""
        return self.split(values.reshape(-1, values.size(-1)).index_select(0, self.source))

    def split(self, slots: Tensor) -> list[Tensor]:
        """Views [S, H, L, W] of the slots [P, W] of each group."""
        shapes = [(len(g.positions), self.n_heads, g.positions.size(1)) for g in self.groups]
        parts = slots[: len(self.source)].split([s * h * length for s, h, length in shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]

    def empty(self, like: Tensor) -> Tensor:
        """Slots [P + 1, W] of zeros for results."""
        return like.new_zeros(len(self.source) + 1, like.size(-1))

    def gather(self, slots: Tensor) -> Tensor:
        """Slots [P + 1, W] back to [B, L, H, W], zero at padding."""
        return slots.index_select(0, self.slot).view(*self.shape, self.n_heads, -1)


def intra_domain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: DomainSegments,
    position_weight: Tensor,
    time_weight: Tensor | None,
    kind: str = "silu",
) -> Tensor:
    """[B, L, H, d_v] from query and key [B, L, H, d_qk] and value [B, L, H, d_v], zero at padding.

    position_weight: [2 n - 1]. time_weight: [129], None if the segments know no times. kind: one of ``KINDS``.
    Differentiable once. Half precision is computed in float32.
    """
    with torch.autocast(query.device.type, enabled=False):
        dtype = torch.promote_types(query.dtype, torch.float32)
        query, key, value = (x.to(dtype) for x in (query, key, value))
        return _Attention.apply(query, key, value, position_weight, time_weight, segments, kind)


def _scores(tile: Tile, query: Tensor, key: Tensor, position_weight: Tensor, time_weight: Tensor | None) -> Tensor:
    """[s, H, T, K] of query [s, H, T, W] and key [s, H, K, W]."""
    scores = torch.matmul(query, key.transpose(2, 3))
    distances = tile.distances((len(position_weight) + 1) // 2)
    bias = position_weight.index_select(0, distances.flatten())
    if time_weight is not None:
        bias += time_weight.index_select(0, tile.buckets().flatten().int())
    return scores.add_(bias.view(distances.shape).unsqueeze(1))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, position_weight, time_weight, segments, kind) -> Tensor:
        result = segments.empty(value)
        inputs = (segments.scatter(x) for x in (query, key, value))
        for group, q, k, v, out in zip(segments.groups, *inputs, segments.split(result), strict=True):
            for tile in group.tiles(segments.n_heads):
                s, rows, keys = tile.segments, tile.rows, tile.keys
                scores = _scores(tile, q[s, :, rows], k[s, :, keys], position_weight, time_weight)
                if kind == "silu":
                    weights = tile.clear(F.silu(scores, inplace=True))
                else:
                    weights = torch.softmax(tile.hide(scores), dim=-1)
                out[s, :, rows] = torch.matmul(weights, v[s, :, keys])
        if kind == "silu":
            result /= (len(position_weight) + 1) // 2
        ctx.segments, ctx.kind = segments, kind
        ctx.save_for_backward(query, key, value, position_weight, time_weight)
        return segments.gather(result)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        query, key, value, position_weight, time_weight = ctx.saved_tensors
        segments, kind = ctx.segments, ctx.kind
        n = (len(position_weight) + 1) // 2
        of_output = upstream.reshape(-1, upstream.size(-1)).index_select(0, segments.source).mul_(segments.real)
        if kind == "silu":
            of_output /= n
        totals = [segments.empty(x) for x in (query, key, value)]
        of_position = torch.zeros_like(position_weight)
        of_time = None if time_weight is None else torch.zeros_like(time_weight)
        parts = [segments.scatter(x) for x in (query, key, value)] + [segments.split(of_output)]
        parts += [segments.split(x) for x in totals]
        for group, q, k, v, o, of_q, of_k, of_v in zip(segments.groups, *parts, strict=True):
            for tile in group.tiles(segments.n_heads):
                s, rows, keys = tile.segments, tile.rows, tile.keys
                scores = _scores(tile, q[s, :, rows], k[s, :, keys], position_weight, time_weight)
                of_weights = torch.matmul(o[s, :, rows], v[s, :, keys].transpose(2, 3))
                if kind == "silu":
                    weights = tile.clear(F.silu(scores))
                    of_scores = tile.clear(torch.ops.aten.silu_backward(of_weights, scores))
                else:
                    weights = torch.softmax(tile.hide(scores), dim=-1)
                    mean = torch.linalg.vecdot(of_weights, weights).unsqueeze(-1)
                    of_scores = of_weights.sub_(mean).mul_(weights)
                of_q[s, :, rows] = torch.matmul(of_scores, k[s, :, keys])
                of_k[s, :, keys] += torch.matmul(of_scores.transpose(2, 3), q[s, :, rows])
                of_v[s, :, keys] += torch.matmul(weights.transpose(2, 3), o[s, :, rows])
                of_bias = of_scores.sum(1).flatten()
                of_position.scatter_add_(0, tile.distances(n).flatten().long(), of_bias)
                if of_time is not None:
                    of_time.scatter_add_(0, tile.buckets().flatten().long(), of_bias)
        of_query, of_key, of_value = (segments.gather(x) for x in totals)
        return of_query, of_key, of_value, of_position, of_time, None, None
