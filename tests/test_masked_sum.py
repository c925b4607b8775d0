"""Sums over lists of events against products with the mask."""

from __future__ import annotations

import pytest
import torch

from recbole_cdsr.layers.masked_sum import MaskedSum

B, L = 3, 7


def draw(rows: int, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A mask [B, rows, L] that is True for about ``share``, values [B, L, 2, 5] and an upstream gradient."""
    generator = torch.Generator().manual_seed(rows)
    mask = torch.rand(B, rows, L, generator=generator) < share
    values = torch.randn(B, L, 2, 5, generator=generator, dtype=torch.double)
    return mask, values, torch.randn(B, rows, 2, 5, generator=generator, dtype=torch.double)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("rows", [1, L])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_it_is_the_product_with_the_mask(rows, share, mean):
    mask, values, upstream = draw(rows, share)
    weight = mask / mask.sum(-1, keepdim=True).clamp(min=1).double() if mean else mask.double()
    results = []
    for compute in (MaskedSum(mask, mean), lambda x: torch.einsum("btl,bl...->bt...", weight, x)):
        leaf = values.clone().requires_grad_()
        result = compute(leaf)
        results.append((result, *torch.autograd.grad(result, leaf, upstream)))
    torch.testing.assert_close(*results)


def test_values_and_gradients_may_lie_anyhow_in_memory():
    mask, values, upstream = draw(L, 0.5)
    values.requires_grad_()
    plain = MaskedSum(mask)(values)
    turned = MaskedSum(mask)(values.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(turned, plain)
    (expected,), (gradient,) = (torch.autograd.grad(result, values, upstream) for result in (plain, turned))
    torch.testing.assert_close(gradient, expected)
