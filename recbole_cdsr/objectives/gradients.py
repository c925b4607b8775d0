"""The Gramian: all that a strategy sees of the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError


def gramian(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Inner products [M, M] of M gradients, each a list with one tensor (or None: zero) per parameter.

    Sums parameter by parameter in at least float32, without concatenating the gradients into one vector. Gradients by
    rows (sparse in their first dimension) cost what their rows do, unless a dense one stands beside them.
    """
    if len({len(row) for row in gradients}) != 1:
        raise CDSRError("gramian() needs at least one gradient, and the same parameters in the same order in each")
    n = len(gradients)
    given = [g for row in gradients for g in row if g is not None]
    if not given:
        return torch.zeros(n, n)
    dtype = torch.float32
    for g in given:
        dtype = torch.promote_types(dtype, g.dtype)
    zero = torch.zeros((), dtype=dtype, device=given[0].device)
    products = [[zero] for _ in range(n * n)]  # terms of each entry, row by row
    for column in zip(*gradients, strict=True):
        views = _flat_views(_rows_alike(column), dtype)
        for i in range(n):
            for j in range(i, n):
                if views[i] is not None and views[j] is not None:
                    products[i * n + j].append(torch.dot(views[i], views[j]))
    upper = torch.stack([torch.stack(terms).sum() for terms in products]).view(n, n)
    return upper + upper.triu(1).T


def _rows_alike(column: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """One parameter's gradients as dense tensors; where all are by rows, of the rows that any of them has."""
    given = [g for g in column if g is not None]
    if not any(g.is_sparse for g in given):
        return column
    if not all(g.is_sparse for g in given):
        return [g.to_dense() if g is not None and g.is_sparse else g for g in column]
    column = [None if g is None else g.coalesce() for g in column]
    rows = torch.cat([g.indices()[0] for g in column if g is not None]).unique()
    return [None if g is None else _only(rows, g) for g in column]


def _only(rows: Tensor, gradient: Tensor) -> Tensor:
    """The rows (sorted, all that it has and maybe others) of a gradient by rows."""
    values = gradient.values()
    place = torch.searchsorted(rows, gradient.indices()[0])
    return values.new_zeros(len(rows), *values.shape[1:]).index_copy_(0, place, values)


def _flat_views(column: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """One parameter's gradients as vectors in one common order of elements; no copy if they are laid out alike."""
    strides = {g.stride() for g in column if g is not None}
    if len(strides) != 1:
        return [None if g is None else g.detach().reshape(-1).to(dtype) for g in column]
    stride = strides.pop()
    # In the memory's own order reshape gives a view of a transposed tensor, which linear layers' gradients often are.
    order = sorted(range(len(stride)), key=stride.__getitem__, reverse=True)
    return [None if g is None else g.detach().permute(order).reshape(-1).to(dtype) for g in column]


def as_float64(x: Tensor) -> np.ndarray:
    return x.detach().cpu().to(torch.float64).numpy()  # the CPU first: not every device has float64
