"""The best k of many items for a batch of users, tile by tile: no [users, items] matrix where items are many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError

TILE = 2**15  # items scored at once; with 256 users 33 MB in float32


def top_items(
    score: Callable[[int, int], Tensor], n_items: int, k: int, hidden: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The k items of highest score, best first.

    Args:
        score: (start, stop) -> scores [B, stop - start] of these items, a tensor that may be written to.
        n_items: candidates in all.
        k: 1 or more; cut to `n_items`.
        hidden: rows [N] and items [N] of the pairs that must not be recommended.

    Returns:
        scores [B, k] and items [B, k]; a score of -inf marks a place that no item is left for.

    Raises:
        CDSRError: if a score is NaN.
    """
    best = score(0, 0)
    items = torch.zeros_like(best, dtype=torch.int64)
    for start in range(0, n_items, TILE):
        stop = min(start + TILE, n_items)
        scores = score(start, stop)
        if hidden is not None:
            row, item = hidden
            inside = (item >= start) & (item < stop)
            scores[row[inside], item[inside] - start] = -torch.inf
        found, place = scores.topk(min(k, stop - start), dim=1)
        best, items = torch.cat([best, found], 1), torch.cat([items, place + start], 1)
        best, order = best.topk(min(k, best.size(1)), dim=1)
        items = items.gather(1, order)
    if bool(best[:, :1].isnan().any()):  # NaN counts as the largest, so the first place shows it
        raise CDSRError("a score is NaN, so nothing can be recommended; the model diverged: train it again")
    return best, items
