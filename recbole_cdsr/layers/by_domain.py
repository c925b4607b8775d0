"""Events of a batch sorted by domain, and maps with weights of their own for each domain.

Valid events are sorted by domain once per batch; these "rows" [N, ...] take one product per domain and map, however
many users there are. Weights are stacked [C, ...]; those of domain 0 serve tokens without a domain, if there are any.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_cdsr.layers.masked_sum import MaskedSum


class EventsByDomain:
    """Where the events of a batch stand, by domain; made once per forward pass.

    domains: [B, L] integers in [0, C), 0 for padding and for tokens without a domain ([MASK]).
    valid: [B, L], where there is an event or such a token. n_domains: C, counting domain 0.
    causal: position t may read of events up to t only; else of all.
    """

    def __init__(self, domains: Tensor, valid: Tensor, n_domains: int, causal: bool):
        self.domains, self.n_domains, self.causal = domains, n_domains, causal
        key = domains.masked_fill(~valid, n_domains).flatten()
        *self.sizes, padding = torch.bincount(key, minlength=n_domains + 1).tolist()  # number of rows of each domain
        self.order = key.argsort(stable=True)[: len(key) - padding]  # rows: where each stands in the flattened batch
        self.has_domain = domains > 0
        self.own = self._own(valid)
        barrier = torch.zeros(self.own.shape, device=self.own.device).masked_fill_(~self.own, -torch.inf)
        self.barrier = barrier.unsqueeze(1)  # added to logits

    @cached_property
    def sum_of_own(self) -> MaskedSum:
        return MaskedSum(self.own)

    @cached_property
    def sum_of_latest(self) -> MaskedSum:
        return MaskedSum(self.latest)

    @cached_property
    def mean_of_latest(self) -> MaskedSum:
        return MaskedSum(self.latest, mean=True)

    def _own(self, valid: Tensor) -> Tensor:
        """[B, L, L]: event j is of t's domain (and not later), or t has none; every position sees itself."""
        without = (valid & ~self.has_domain).unsqueeze(2)
        same = (self.domains.unsqueeze(2) == self.domains.unsqueeze(1)) | without
        same &= self.has_domain.unsqueeze(1)
        if self.causal:
            same = same.tril()
        return same | torch.eye(same.size(1), dtype=torch.bool, device=same.device)

    @cached_property
    def latest(self) -> Tensor:
        """j is the latest event of its domain that t may read: [B, L, L], or [B, 1, L] where t makes no difference."""
        rows, length = self.domains.shape
        position = torch.arange(length, device=self.domains.device)
        key = (self.domains + self.n_domains * torch.arange(rows, device=position.device).unsqueeze(1)).flatten()
        order = key.argsort(stable=True)
        neighbours = key[order[1:]] == key[order[:-1]]
        following = torch.full_like(key, length)  # where the next event of the same domain stands
        following[order[:-1][neighbours]] = order[1:][neighbours] % length
        following = following.view(rows, 1, length)
        has_domain = self.has_domain.unsqueeze(1)
        if not self.causal:
            return has_domain & (following == length)
        return has_domain & (position <= position[:, None]) & (following > position[:, None])

    def rows(self, values: Tensor) -> Tensor:
        """What ``values`` [B, L, ...] hold at valid positions, sorted by domain, [N, ...]."""
        return values.flatten(0, 1).index_select(0, self.order)

    def spread(self, rows: Tensor) -> Tensor:
        """[N, ...] back to [B, L, ...], zero at padding."""
        flat = rows.new_zeros(self.domains.numel(), *rows.shape[1:])
        return flat.index_copy(0, self.order, rows).unflatten(0, self.domains.shape)


class DomainLinear(nn.Module):
    """One linear map for each domain."""

    def __init__(self, n_domains: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_domains, outputs, inputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_domains, outputs))

    def forward(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """Rows [N, ..., inputs], ``sizes[d]`` of domain d, to [N, ..., outputs]."""
        return map_by_domain(F.linear, rows, sizes, self.weight, self.bias)


class DomainNorm(nn.Module):
    """One LayerNorm for each domain."""

    def __init__(self, n_domains: int, width: int, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(n_domains, width))
        self.bias = nn.Parameter(torch.zeros(n_domains, width))

    def forward(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """Rows [N, width], ``sizes[d]`` of domain d, to the same shape."""

        def norm(part: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.layer_norm(part, weight.shape, weight, bias, self.epsilon)

        return map_by_domain(norm, rows, sizes, self.weight, self.bias)


def map_by_domain(function: Callable[..., Tensor], rows: Tensor, sizes: list[int], *stacks: Tensor) -> Tensor:
    """``function`` of each domain's rows and of its part of the stacks [C, ...]."""
    parts = zip(rows.split(sizes), *(stack.unbind(0) for stack in stacks), strict=True)
    return torch.cat([function(*part) for part in parts if len(part[0])])
