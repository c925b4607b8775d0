"""Sums over some events of a row, by lists of which, not by a product with the mask."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

_List = tuple[Tensor, Tensor, Tensor | None]  # positions in the flattened batch, where each sum begins, divisors


class MaskedSum:
    """Sums [B, T, ...] of values [B, L, ...]: at t over the events j where ``mask`` [B, T, L] holds.

    mean: their mean instead; 0 where the mask holds nowhere.

    Make it once for all sums with one mask: it lists the events of each t, and for the gradient the t of each event.
    With 40 rows of 50 events, n D = 256, 2 domains and one CPU thread a sum takes .27 ms over the events of the own
    domain and .10 ms over the latest event of each, a product with the mask .94 ms, and their gradients the same again;
    the lists of a mask take .4 to .8 ms.
    """

    def __init__(self, mask: Tensor, mean: bool = False):
        self.mask = mask
        self.divisor = mask.sum(-1, keepdim=True).expand(mask.shape) if mean else None

    def __call__(self, values: Tensor) -> Tensor:
        flat = _Sum.apply(values.flatten(2).flatten(0, 1), self)
        return flat.view(*self.mask.shape[:2], *values.shape[2:])

    @cached_property
    def listed(self) -> _List:
        return _list(self.mask, self.divisor)

    @cached_property
    def transposed(self) -> _List:
        """What the gradient runs over; not made where nobody asks for one."""
        return _list(self.mask.transpose(1, 2), None if self.divisor is None else self.divisor.transpose(1, 2))


def _list(mask: Tensor, divisor: Tensor | None) -> _List:
    rows, length = mask.size(1), mask.size(2)
    place = mask.flatten().nonzero().squeeze(1)
    position = place.div(rows * length, rounding_mode="floor") * length + place % length
    counts = mask.sum(-1).flatten()
    return position, counts.cumsum(0) - counts, None if divisor is None else divisor.flatten()[place]


def _add(values: Tensor, listed: _List) -> Tensor:
    position, begins, divisor = listed
    weight = None if divisor is None else divisor.to(values.dtype).reciprocal()
    return F.embedding_bag(position, values.detach().contiguous(), begins, mode="sum", per_sample_weights=weight)


class _Sum(torch.autograd.Function):
    """`_add`, whose gradient is the same over the transposed list; ``embedding_bag`` would sort for it each time."""

    @staticmethod
    def forward(ctx, values: Tensor, sums: MaskedSum) -> Tensor:
        ctx.sums = sums
        return _add(values, sums.listed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        return _add(upstream, ctx.sums.transposed), None
