"""Events of a batch sorted by domain, and maps with weights of their own for each domain.

Valid events are sorted by domain once per batch; these "rows" [N, ...] take one product per domain and map, however
many users there are. Weights are stacked [C, ...]; row 0 belongs to padding and stays idle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EventsByDomain:
    """Where the events of a batch stand, by domain; made once per forward pass.

    domains: [B, L] integers in [0, C), 0 for padding. n_domains: C, counting domain 0.
    """

    def __init__(self, domains: Tensor, n_domains: int):
        self.domains, self.n_domains = domains, n_domains
        flat = domains.flatten()
        counts = torch.bincount(flat, minlength=n_domains).tolist()
        self.order = flat.argsort(stable=True)[counts[0] :]  # rows: where each stands in the flattened batch
        self.sizes = [0, *counts[1:]]  # number of rows of each domain
        position = torch.arange(domains.size(1), device=domains.device)
        same = domains.unsqueeze(2) == domains.unsqueeze(1)
        later = position[:, None] > position
        following = torch.where(same & later, position[:, None], len(position)).amin(1)  # next event of the domain
        self.own = same & ~later.T  # [B, L, L]: event j is of t's domain, and not later
        self.latest = ~later.T & (following.unsqueeze(1) > position[:, None])  # [B, L, L]: j is latest of its domain

    def rows(self, values: Tensor) -> Tensor:
        """The valid events of ``values`` [B, L, ...], sorted by domain, [N, ...]."""
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
    return torch.cat([function(*part) for part in parts])
