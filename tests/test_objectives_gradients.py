"""The Gramian equals the product of flattened gradients, whatever is missing, transposed or not finite."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives import gramian


def test_gramian_equals_the_flattened_product_and_takes_missing_gradients_as_zero():
    torch.manual_seed(0)
    first = [torch.randn(3, 4), torch.randn(5), None, torch.randn(4, 6).t(), torch.tensor(2.0)]
    second = [torch.randn(4, 3).t(), torch.randn(5), torch.randn(2), torch.randn(4, 6).t(), torch.tensor(3.0)]
    third = [None] * 5
    shapes = [first[0], first[1], second[2], first[3], first[4]]
    filled = [
        [torch.zeros_like(shape) if gradient is None else gradient for gradient, shape in zip(row, shapes, strict=True)]
        for row in (first, second, third)
    ]
    flat = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in filled])
    torch.testing.assert_close(gramian([first, second, third]), flat @ flat.T)


def test_gramian_dtype_and_empty_gradients():
    half = [[torch.full((1000,), 16.0, dtype=torch.float16)]]
    assert gramian(half).dtype == torch.float32
    assert gramian(half).item() == 256_000.0
    assert gramian([[torch.ones(2, dtype=torch.float64)]]).dtype == torch.float64
    assert torch.equal(gramian([[None], [None]]), torch.zeros(2, 2))
    with pytest.raises(CDSRError, match="same parameters"):
        gramian([[torch.ones(1)], []])
    with pytest.raises(CDSRError):
        gramian([])


def test_a_nan_gradient_leaves_the_other_entries_of_the_gramian_alone():
    result = gramian([[torch.ones(3), torch.ones(2)], [torch.full((3,), math.nan), None]])
    assert result[0, 0] == 5.0
    assert result[0, 1].isnan()
    assert result[1, 1].isnan()


def test_gramian_does_not_need_or_extend_the_graph():
    parameter = torch.ones(3, requires_grad=True)
    gradient = torch.autograd.grad((parameter**3).sum(), parameter, create_graph=True)
    assert not gramian([gradient, gradient]).requires_grad
