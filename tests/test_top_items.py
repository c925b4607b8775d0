"""The best items of tiles are those of one sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.recommend import top_items as module
from recbole_cdsr.recommend.top_items import top_items


@given(st.integers(0, 30), st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**16))
def test_tiles_change_nothing(n_items, k, tile, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(4, n_items, generator=generator)
    hidden = torch.rand(4, n_items, generator=generator) < 0.4
    row, item = hidden.nonzero(as_tuple=True)
    before, module.TILE = module.TILE, tile
    try:
        found, index = top_items(lambda a, b: scores[:, a:b].clone(), n_items, k, (row, item))
    finally:
        module.TILE = before
    expected, order = scores.masked_fill(hidden, -torch.inf).sort(dim=1, descending=True)
    assert torch.equal(found, expected[:, :k])
    left = found > -torch.inf
    assert torch.equal(index[left], order[:, :k][left])


@pytest.mark.parametrize("place", [0, 5, 9])
def test_nan_is_an_error(monkeypatch, place):
    monkeypatch.setattr(module, "TILE", 4)
    scores = torch.rand(3, 10)
    scores[1, place] = torch.nan
    with pytest.raises(CDSRError, match="NaN"):
        top_items(lambda a, b: scores[:, a:b], 10, 2)
