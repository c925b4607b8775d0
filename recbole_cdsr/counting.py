"""Counting the ranks of targets among all items and inside their domain, in one pass and in small tiles.

A rank is ``1 + #{candidates that score higher} + #{candidates that score the same} / 2``. The target itself and the
padding item 0 are never counted. Two candidate sets come out of one pass: ``all`` (every item) and ``domain`` (the
items of the target's domain). Counting needs no sort and no [B, V] matrix, and a model that gives every item one score
gets the middle rank. Infinities are ordinary scores: +inf beats every finite score, -inf loses to it, equal infinities
tie. NaN is an error, because it would compare as "not better" and give rank 1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError

CPU_TILE = (256, 2048)  # users x items: the buffers stay in the cache; larger tiles are slower
ACCELERATOR_TILE = (1024, 16384)  # fewer, larger kernels; chosen by arithmetic, not yet measured
_STEP = 48  # tile sides are multiples of it, else BLAS kernels round the left-over rows and columns in another way


class Ranks(NamedTuple):
    """What counting gives for B targets, as numpy arrays [B]; the field names are those of RankTable."""

    rank_all: np.ndarray
    rank_domain: np.ndarray
    candidates_all: np.ndarray
    candidates_domain: np.ndarray
    ties: np.ndarray


class Catalogue:
    """Items sorted by domain; build it once per data set, so that a tile of items needs no mask per item.

    ``item_domain`` [V] holds the domain of each item. Item 0 is padding. Other items of domain 0 (unknown) are
    candidates in ``all`` only.
    """

    def __init__(self, item_domain: Tensor | np.ndarray) -> None:
        domain = torch.as_tensor(item_domain).detach().cpu().long()
        if domain.dim() != 1 or len(domain) < 2 or domain.min() < 0:
            raise CDSRError("item_domain must be a list of one domain number, 0 or more, per item (item 0 is padding).")
        self.item_domain = domain
        self.order = domain[1:].argsort(stable=True) + 1  # [V - 1] item numbers, domain by domain
        self.position = torch.empty_like(domain).index_copy_(0, self.order, torch.arange(len(domain) - 1))  # inverse
        self.size = torch.bincount(domain[1:])
        self.sorted_already = bool((self.order[1:] > self.order[:-1]).all())

    def check(self, target_item: Tensor, target_domain: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
        """Targets on the CPU, with their domains; CDSRError if one of them cannot be a target."""
        item = torch.as_tensor(target_item).detach().cpu().long()
        if item.shape != (rows,) or (rows and (item.min() < 1 or item.max() >= len(self.item_domain))):
            raise CDSRError(f"Each of the {rows} rows needs one target item from 1 to {len(self.item_domain) - 1}.")
        domain = self.item_domain[item] if target_domain is None else torch.as_tensor(target_domain).cpu().long()
        if domain.shape != (rows,) or (rows and domain.min() < 1):
            raise CDSRError(f"Each of the {rows} rows needs one target domain of 1 or more (0 is padding).")
        return item, domain


class _Counter:
    """The counting core: fed with tiles of scores, it adds up who beats or equals each target in both sets.

    Rows are sorted by target domain and columns by item domain. The cells that count for ``domain`` are then a few
    rectangles, however many domains there are.
    """

    def __init__(self, catalogue: Catalogue, item: Tensor, domain: Tensor, tile: tuple[int, int], device) -> None:
        self.catalogue, self.item, self.domain = catalogue, item, domain
        self.width = _side(len(catalogue.order), min(tile[1], 2**20))  # float32 counts exactly up to 2**24
        self.height = min(_side(len(item), tile[0]), self.width)
        self.order = domain.argsort(stable=True)  # [B] row numbers, domain by domain
        sizes = torch.bincount(domain, minlength=len(catalogue.size))
        self.row_start = [0, *sizes.cumsum(0).tolist()]
        self.column_start = [0, *catalogue.size.cumsum(0).tolist()]
        self.column_start += self.column_start[-1:] * (len(self.row_start) - len(self.column_start))
        self.threshold: Tensor | None = None  # [B, 1] scores of the targets, in row order
        self.peak: Tensor | None = None  # the highest score seen, NaN if one was NaN
        self.marks: Tensor | None = None
        self.counts = torch.zeros(4, len(item), dtype=torch.long, device=device)  # better, ties; the same in `domain`
        self._find_own_cells(device)

    def _find_own_cells(self, device) -> None:
        """Lists, tile by tile, the cells in which a target meets itself."""
        row, column = torch.arange(len(self.item)), self.catalogue.position[self.item[self.order]]
        tile = (column // self.width) * len(self.row_tiles()) + row // self.height
        by_tile = tile.argsort(stable=True)
        self.own_row = (row % self.height)[by_tile].to(device)
        self.own_column = (column % self.width)[by_tile].to(device)
        count = torch.bincount(tile, minlength=len(self.row_tiles()) * len(self.column_tiles()))
        self.own_start = [0, *count.cumsum(0).tolist()]

    def row_tiles(self) -> range:
        return range(0, len(self.item), self.height)

    def column_tiles(self) -> range:
        return range(0, len(self.catalogue.order), self.width)

    def columns(self, start: int) -> Tensor:
        return self.catalogue.order[start : start + self.width]

    def _rectangles(self, row: int, column: int, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
        """Row and column bounds, inside one tile, of the cells whose item is of the row's target domain."""
        first = max(bisect_right(self.row_start, row), bisect_right(self.column_start, column)) - 1
        for d in range(first, len(self.row_start) - 1):
            top, left = max(self.row_start[d] - row, 0), max(self.column_start[d] - column, 0)
            if top >= height or left >= width:
                return
            bottom, right = min(self.row_start[d + 1] - row, height), min(self.column_start[d + 1] - column, width)
            if top < bottom and left < right:
                yield top, bottom, left, right

    def add(self, scores: Tensor, row: int, column: int) -> None:
        """Counts one tile of scores [height, width] that starts at sorted row `row` and sorted column `column`."""
        height, width = scores.shape
        threshold = self.threshold[row : row + height]
        peak = scores.amax()  # NaN wins a maximum: one cheap reduction finds it
        self.peak = peak if self.peak is None else torch.maximum(self.peak, peak)
        tile = column // self.width * len(self.row_tiles()) + row // self.height
        own = slice(self.own_start[tile], self.own_start[tile + 1])
        rectangles = list(self._rectangles(row, column, height, width))
        if self.marks is None:  # of the scores' own type: comparing into bool is seven times slower on a CPU
            self.marks = scores.new_empty(self.height * self.width)
        marks = self.marks[: height * width].view(height, width)
        for n, compare in enumerate((torch.gt, torch.eq)):
            compare(scores, threshold, out=marks)
            if own.start < own.stop:
                marks[self.own_row[own], self.own_column[own]] = 0
            total = marks.sum(1).long()
            self.counts[n, row : row + height] += total
            for top, bottom, left, right in rectangles:
                whole = left == 0 and right == width
                part = total[top:bottom] if whole else marks[top:bottom, left:right].sum(1).long()
                self.counts[2 + n, row + top : row + bottom] += part

    def result(self, padding: Tensor) -> Ranks:
        """The ranks in the order of the batch; `padding` is what the padding item has for scores."""
        # The padding item is no candidate, yet its NaN is the sign of a broken model.
        if len(self.item) and bool(self.peak.isnan() | padding.isnan().any()):
            raise CDSRError(
                "A score is NaN, so no rank can be given: lower the learning_rate, or find a division by 0."
            )
        counts = torch.empty(4, len(self.item), dtype=torch.long)
        counts[:, self.order] = self.counts.cpu()
        better, ties, better_domain, ties_domain = counts.double().numpy()
        size = torch.tensor(self.column_start).diff()[self.domain]
        foreign = self.catalogue.item_domain[self.item] != self.domain  # an event may name another domain than its item
        return Ranks(
            rank_all=1 + better + ties / 2,
            rank_domain=1 + better_domain + ties_domain / 2,
            candidates_all=np.full(len(better), len(self.catalogue.order)),
            candidates_domain=(size + foreign).numpy(),
            ties=ties > 0,
        )


class _Product:
    """states @ table.T + bias, one tile at a time, always in the same full shape.

    The score of the target must be rounded as those of its rivals are: a kernel chosen for another shape may differ in
    the last bit, and a model whose items are all alike would then look perfect. So the targets' own scores are taken
    from products of the same shape.
    """

    def __init__(self, states: Tensor, table: Tensor, bias: Tensor | None, counter: _Counter) -> None:
        dtype = torch.promote_types(states.dtype, table.dtype)
        dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        self.table, self.bias, self.counter = table, bias, counter
        height, width, rows = counter.height, counter.width, counter.order.to(states.device)
        self.states = states.new_zeros(len(counter.row_tiles()) * height, states.shape[1], dtype=dtype)
        self.states[: len(rows)] = states[rows]
        self.items = self.states.new_zeros(width, states.shape[1])
        self.item_bias = self.states.new_zeros(width)
        self.out = self.states.new_empty(height, width)
        self.loaded = 0

    def load(self, items: Tensor) -> None:
        items = items.to(self.table.device)
        self.loaded = len(items)
        self.items[: len(items)] = self.table[items]
        if self.bias is not None:
            self.item_bias[: len(items)] = self.bias[items]

    def scores(self, row: int) -> Tensor:
        """Scores [height, width] of the loaded items, a buffer that the next call overwrites."""
        states = self.states[row : row + self.counter.height]
        if self.bias is None:
            torch.mm(states, self.items.T, out=self.out)
        else:
            torch.addmm(self.item_bias, states, self.items.T, out=self.out)
        return self.out[: len(self.counter.order) - row, : self.loaded]

    def targets(self, items: Tensor) -> Tensor:
        """Scores [B, 1] of the rows' own targets `items` [B]."""
        scores = self.states.new_empty(len(items), 1)
        for row in self.counter.row_tiles():
            own = items[row : row + self.counter.height]
            self.load(own)
            scores[row : row + len(own), 0] = self.scores(row).diagonal()
        return scores


def _side(total: int, limit: int) -> int:
    """Side that cuts `total` into equal parts of about `limit`: equal shapes are rounded equally by the product."""
    parts = max(-(-total // max(limit, 1)), 1)
    return max(-(-total // (parts * _STEP)), 1) * _STEP


def _default_tile(device: torch.device) -> tuple[int, int]:
    return CPU_TILE if device.type == "cpu" else ACCELERATOR_TILE


@torch.no_grad()
def count_ranks(
    scores: Tensor,
    catalogue: Catalogue | Tensor,
    target_item: Tensor,
    target_domain: Tensor | None = None,
    tile: tuple[int, int] | None = None,
) -> Ranks:
    """Ranks from a full score matrix [B, V], for models that can give nothing else.

    ``catalogue`` may be the item_domain tensor [V]; ``target_item`` [B]; ``target_domain`` [B] defaults to the domains
    of the items. ``tile`` (users, items) bounds the memory. CDSRError on NaN, or on targets out of range.
    """
    catalogue = catalogue if isinstance(catalogue, Catalogue) else Catalogue(catalogue)
    if scores.dim() != 2 or scores.shape[1] != len(catalogue.item_domain):
        raise CDSRError(f"scores must be [B, {len(catalogue.item_domain)}], but are {list(scores.shape)}.")
    item, domain = catalogue.check(target_item, target_domain, len(scores))
    counter = _Counter(catalogue, item, domain, tile or _default_tile(scores.device), scores.device)
    exact = torch.float32 if scores.dtype in (torch.float16, torch.bfloat16) else scores.dtype  # for counts over 2048
    rows = counter.order.to(scores.device)
    counter.threshold = scores[rows, item.to(scores.device)[rows]].to(exact)[:, None]
    for column in counter.column_tiles():
        items = counter.columns(column).to(scores.device)
        ordered = catalogue.sorted_already
        block = scores[:, 1 + column : 1 + column + len(items)] if ordered else scores.index_select(1, items)
        for row in counter.row_tiles():
            counter.add(block.index_select(0, rows[row : row + counter.height]).to(exact), row, column)
    return counter.result(scores[:, 0])


@torch.no_grad()
def count_ranks_tiled(
    states: Tensor,
    table: Tensor,
    catalogue: Catalogue | Tensor,
    target_item: Tensor,
    target_domain: Tensor | None = None,
    bias: Tensor | None = None,
    tile: tuple[int, int] | None = None,
) -> Ranks:
    """Ranks from user states [B, D] and an item table [V, D], scores = states @ table.T + bias [V], tile by tile.

    Memory beyond the inputs is one copy of the states and three tiles. Hand over all users at once where you can.
    float16 and bfloat16 are multiplied in float32. The other arguments and the errors are those of `count_ranks`.
    """
    catalogue = catalogue if isinstance(catalogue, Catalogue) else Catalogue(catalogue)
    if states.dim() != 2 or table.shape != (len(catalogue.item_domain), states.shape[1]):
        raise CDSRError(
            f"states must be [B, D] and table [{len(catalogue.item_domain)}, D], "
            f"but are {list(states.shape)} and {list(table.shape)}."
        )
    item, domain = catalogue.check(target_item, target_domain, len(states))
    counter = _Counter(catalogue, item, domain, tile or _default_tile(states.device), states.device)
    product = _Product(states, table, bias, counter)
    counter.threshold = product.targets(item[counter.order])
    for column in counter.column_tiles():
        product.load(counter.columns(column))
        for row in counter.row_tiles():
            counter.add(product.scores(row), row, column)
    return counter.result(table[0] if bias is None else table[0] + bias[0])
