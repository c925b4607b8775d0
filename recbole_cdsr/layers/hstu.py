"""The HSTU block: attention by SiLU instead of softmax, gated, with a bias by distance and by time.

"Actions Speak Louder than Words", Zhai et al., ICML 2024, https://arxiv.org/abs/2402.17152, equations 1 to 3, in the
form of its research code: for each layer

    [u | v | q | k] = SiLU(LayerNorm(x) W)
    o_i = sum over j <= i of SiLU(<q_i, k_j> + b_ij) v_j / N
    x   = x + W_o dropout(u * LayerNorm(o)) + b_o

with b_ij = w_position[p_i - p_j] + w_time[bucket(s_i - t_j)], N the longest history, LayerNorm without weights.

N is a constant and not the width to which a batch happens to be padded: a user's states must not depend on the others
in the batch. Rows are padded on the right, so a padded key never comes before a valid query.

A layer is handed its attention: any function of (query, key, value, bias), see ``HSTULayer``. ``CausalAttention`` is
that of the paper. It works in tiles of rows and makes the scores again in the backward pass, which SiLU allows without
a stored normaliser, so that [B, H, L, L] never exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_cdsr.layers.attention import dropout

# Rows of scores made at once; each tile stops at its own diagonal. Measured on CPU with one thread, 2,000 events per
# batch, H 2, d 32, forward and backward; time against autograd on one [B, H, L, L] piece (64 rows / 256 rows):
#   L       50           100          200          1,000        4,000
#           1.1 / 1.2    0.7 / 1.1    0.6 / 1.1    0.4 / 0.5    0.2 / 0.3
TILE_ROWS = 64
TILE_ROWS_ON_ACCELERATOR = 256  # fewer, larger kernels
TIME_BUCKETS = 129
BUCKET_WIDTH = 0.301  # of the natural logarithm of seconds; the paper's code means log10(2) by it

Attention = Callable[[Tensor, Tensor, Tensor, "RelativeBias"], Tensor]


def time_bucket(query_time: Tensor, key_time: Tensor) -> Tensor:
    """Bucket of the time between each query and each key, uint8 [..., Q, K], of seconds [..., Q] and [..., K].

    floor(ln(max(|gap|, 1)) / 0.301), at most 128. Give float64: float32 loses minutes after some years of seconds.
    """
    gap = (query_time.unsqueeze(-1) - key_time.unsqueeze(-2)).abs_().clamp_(min=1)
    return gap.log_().div_(BUCKET_WIDTH).clamp_(max=TIME_BUCKETS - 1).to(torch.uint8)


def distance(query_position: Tensor, key_position: Tensor, max_length: int) -> Tensor:
    """How many events each key lies before each query, [..., Q, K]; 0 for later keys, at most max_length - 1."""
    return (query_position.unsqueeze(-1) - key_position.unsqueeze(-2)).clamp_(0, max_length - 1)


class RelativeBias(nn.Module):
    """The addend to a score, by distance in events and by the time between query and key; all heads share it.

    Args:
        max_length: longest history; distances from 0 to max_length - 1 have a weight each.
        with_time: whether time counts.
        std: standard deviation of the initial weights.
    """

    def __init__(self, max_length: int, with_time: bool = True, std: float = 0.02):
        super().__init__()
        self.position = nn.Parameter(torch.empty(max_length).normal_(std=std))
        self.time = nn.Parameter(torch.empty(TIME_BUCKETS).normal_(std=std)) if with_time else None

    def forward(
        self,
        query_position: Tensor,
        key_position: Tensor,
        query_time: Tensor | None = None,
        key_time: Tensor | None = None,
    ) -> Tensor:
        """Bias [..., Q, K] of any queries and keys: positions and seconds [..., Q] and [..., K]."""
        bias = look_up(self.position, distance(query_position, key_position, len(self.position)))
        if self.time is None:
            return bias
        return bias + look_up(self.time, time_bucket(query_time, key_time))


def look_up(weights: Tensor, index: Tensor) -> Tensor:
    """``weights[index]`` for weights [W] and an index of any integer type and shape."""
    return weights.index_select(0, index.flatten().int()).view(index.shape)


class Tile(NamedTuple):
    """Queries ``rows`` against all keys up to the last of them."""

    rows: slice
    keys: slice
    bucket: Tensor | None  # uint8 [B, Q, K]; None where time does not count


class CausalAttention:
    """Attention of each event to itself and all earlier ones; made once per batch, shared by all layers.

    Keeps one byte per pair of events (the bucket of their time), B * L * L / 2 in all.

    Args:
        position: [B, L] or [1, L], in rising order; only distances count.
        query_time, key_time: seconds [B, L] in float64, or both None where time does not count.
        divisor: N of the paper.
    """

    def __init__(self, position: Tensor, query_time: Tensor | None, key_time: Tensor | None, divisor: float):
        self.position, self.divisor = position, divisor
        self.tiles = []
        length, rows_of_tile = position.size(-1), TILE_ROWS if position.is_cpu else TILE_ROWS_ON_ACCELERATOR
        for start in range(0, length, rows_of_tile):
            stop = min(start + rows_of_tile, length)
            rows, keys = slice(start, stop), slice(0, stop)
            bucket = None if query_time is None else time_bucket(query_time[:, rows], key_time[:, keys])
            self.tiles.append(Tile(rows, keys, bucket))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, bias: RelativeBias) -> Tensor:
        """Context [B, H, L, d_v] of query and key [B, H, L, d_qk] and value [B, H, L, d_v]."""
        return _TiledAttention.apply(query, key, value, bias.position, bias.time, self)

    def distance(self, tile: Tile, max_length: int) -> Tensor:
        """Distances [B or 1, Q, K] of a tile."""
        return distance(self.position[:, tile.rows], self.position[:, tile.keys], max_length)

    def scores(self, query: Tensor, key: Tensor, of_position: Tensor, of_time: Tensor | None, tile: Tile) -> Tensor:
        """Scores [B, H, Q, K] of a tile, in the wider type of products and bias."""
        bias = look_up(of_position, self.distance(tile, len(of_position)))
        if tile.bucket is not None:
            bias = bias + look_up(of_time, tile.bucket)
        return query[:, :, tile.rows] @ key[:, :, tile.keys].transpose(-1, -2) + bias.unsqueeze(1)

    def hide(self, values: Tensor, tile: Tile) -> Tensor:
        """Sets pairs of a tile [B, H, Q, K] whose key comes after the query to 0, in place; earlier tiles have none."""
        values[..., tile.rows].tril_()
        return values


class _TiledAttention(torch.autograd.Function):
    """Scores of one tile are freed before the next: B * H * L of them for each of its rows, in both passes."""

    @staticmethod
    def forward(ctx, query, key, value, of_position, of_time, plan: CausalAttention) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        context = torch.empty_like(value)
        for tile in plan.tiles:
            scores = plan.scores(query, key, of_position, of_time, tile)
            weights = plan.hide(F.silu(scores, inplace=True), tile).to(value.dtype)
            torch.matmul(weights, value[:, :, tile.keys], out=context[:, :, tile.rows])
        ctx.plan = plan
        ctx.save_for_backward(query, key, value, of_position, of_time)
        return context.div_(plan.divisor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        query, key, value, of_position, of_time = ctx.saved_tensors
        plan, upstream = ctx.plan, upstream / ctx.plan.divisor
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        to_position, to_time = torch.zeros_like(of_position), None if of_time is None else torch.zeros_like(of_time)
        for tile in plan.tiles:
            rows, keys = tile.rows, tile.keys
            scores = plan.scores(query, key, of_position, of_time, tile)
            weights = plan.hide(F.silu(scores), tile).to(value.dtype)
            to_value[:, :, keys] += weights.transpose(-1, -2) @ upstream[:, :, rows]
            to_weights = (upstream[:, :, rows] @ value[:, :, keys].transpose(-1, -2)).to(scores.dtype)
            to_scores = plan.hide(torch.ops.aten.silu_backward(to_weights, scores), tile)
            to_products = to_scores.to(query.dtype)
            to_query[:, :, rows] = to_products @ key[:, :, keys]
            to_key[:, :, keys] += to_products.transpose(-1, -2) @ query[:, :, rows]
            to_bias = to_scores.sum(1)
            if to_time is not None:
                to_time += _sum_by(tile.bucket, to_bias, len(to_time))
            far = plan.distance(tile, len(to_position))
            to_position += _sum_by(far, to_bias.sum_to_size(far.shape), len(to_position))
        return to_query, to_key, to_value, to_position, to_time, None


def _sum_by(index: Tensor, values: Tensor, count: int) -> Tensor:
    """Sum of the values at each index 0 .. count - 1, [count]; faster on CPU than what indexing does backwards."""
    return torch.bincount(index.flatten(), values.flatten().double(), minlength=count).to(values.dtype)


class HSTULayer(nn.Module):
    """One block; ``forward`` is ``project``, the attention that it is handed, and ``output``.

    Args:
        hidden_size: width D of the states.
        n_heads: heads H.
        query_key_size, value_size: width of a head's queries and keys, and of its values and gate.
        dropout_prob: on the gated context.
        max_length: longest history.
        with_time: whether the bias counts time.
        layer_norm_eps: added to the variance in both LayerNorms.
        std: standard deviation of the initial projection and bias.
    """

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        query_key_size: int,
        value_size: int,
        dropout_prob: float,
        max_length: int,
        with_time: bool = True,
        layer_norm_eps: float = 1e-6,
        std: float = 0.02,
    ):
        super().__init__()
        self.n_heads, self.dropout_prob, self.layer_norm_eps = n_heads, dropout_prob, layer_norm_eps
        self.widths = [n_heads * size for size in (value_size, value_size, query_key_size, query_key_size)]
        self.projection = nn.Linear(hidden_size, sum(self.widths), bias=False)
        self.bias = RelativeBias(max_length, with_time, std)
        self.output_projection = nn.Linear(n_heads * value_size, hidden_size)
        nn.init.normal_(self.projection.weight, std=std)
        nn.init.xavier_uniform_(self.output_projection.weight)
        nn.init.zeros_(self.output_projection.bias)

    def forward(self, states: Tensor, attention: Attention) -> Tensor:
        """[B, L, D] to [B, L, D]; ``attention`` takes query, key, value [B, H, L, d] and the layer's bias."""
        gate, value, query, key = self.project(states)
        return self.output(states, gate, attention(query, key, value, self.bias))

    def project(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gate [B, L, H * d_v], then value [B, H, L, d_v], query and key [B, H, L, d_qk] of states [B, L, D]."""
        projected = F.silu(self.projection(self._normalised(states)))
        gate, *parts = projected.split(self.widths, dim=-1)
        value, query, key = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        return gate, value, query, key

    def output(self, states: Tensor, gate: Tensor, context: Tensor) -> Tensor:
        """The states plus what the gate lets through of the context [B, H, L, d_v], [B, L, D]."""
        gated = gate * self._normalised(context.transpose(1, 2).flatten(2))
        return states + self.output_projection(dropout(gated, self.dropout_prob, self.training))

    def _normalised(self, values: Tensor) -> Tensor:
        return F.layer_norm(values, values.shape[-1:], eps=self.layer_norm_eps)


class HSTUEncoder(nn.Module):
    """A stack of ``HSTULayer``, all with the same attention; arguments as there."""

    def __init__(self, n_layers: int, **layer):
        super().__init__()
        self.layers = nn.ModuleList(HSTULayer(**layer) for _ in range(n_layers))

    def forward(self, states: Tensor, attention: Attention) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        for layer in self.layers:
            states = layer(states, attention)
        return states
