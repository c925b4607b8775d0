"""What RecBole does to names of users and items one by one, done on categories: numbers of distinct names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from recbole_cdsr.data.dataset import CDSRDataset

BLOCK = 1 << 22  # rows that are counted at once


class NumbersOf(dict):
    """RecBole's `field2token_id`: field -> {name: number}; made of `names` ([numbers] of each field) when asked for.

    For ten million names such a table takes seconds and a gigabyte, and training asks for none.
    """

    def __init__(self, names: dict[str, np.ndarray]) -> None:
        super().__init__()
        self._names = names

    def __missing__(self, field: str) -> dict[str, int]:
        return self.setdefault(field, {name: number for number, name in enumerate(self._names[field])})


def filter_by_inter_num(dataset: CDSRDataset) -> None:
    """RecBole's `_filter_by_inter_num`: takes away users and items whose number of events is out of the intervals.

    Again and again, until all that are left are inside. Their rows in the files of users and items go along, and so do
    rows of names with fewer events than the first interval begins with. `dataset.dropped` gets the numbers of users and
    events that went.
    """
    events = dataset.inter_feat
    keys = {dataset.uid_field: "user_inter_num_interval", dataset.iid_field: "item_inter_num_interval"}
    intervals = {field: dataset._parse_intervals_str(dataset.config[key]) for field, key in keys.items()}
    coded = {field: events[field].astype("category").cat for field in keys}
    codes = {field: column.codes.to_numpy() for field, column in coded.items()}
    banned = {field: np.zeros(len(column.categories), dtype=bool) for field, column in coded.items()}
    left, before = np.ones(len(events), dtype=bool), -1
    before_all = {field: numbers_of_codes(code, len(banned[field]), left) for field, code in codes.items()}
    while before != (before := int(left.sum())):
        counts = {field: numbers_of_codes(code, len(banned[field]), left) for field, code in codes.items()}
        for field in filter(intervals.get, codes):
            count = counts[field]
            banned[field] |= (count > 0) & ~dataset._within_intervals(count, intervals[field])
            left &= ~banned[field][codes[field]]
    for field in filter(intervals.get, codes):
        least, names = intervals[field][0][1], coded[field].categories
        enough = ~banned[field] & (counts[field] >= least)
        _keep(dataset, field, names[enough], names[before_all[field] > 0] if least <= 0 else None)
    gone = int(np.count_nonzero(before_all[dataset.uid_field]) - np.count_nonzero(counts[dataset.uid_field]))
    dataset.dropped = {"users": gone, "events": len(events) - before}
    if before < len(events):
        dataset.inter_feat = events[left]


def numbers_of_codes(codes: np.ndarray, n_codes: int, left: np.ndarray) -> np.ndarray:
    """[n_codes] how often each code from 0 stands where `left` is true.

    Block by block, since numpy makes 64 bits of every code first.
    """
    counts = np.zeros(n_codes, dtype=np.int64)
    for start in range(0, len(codes), BLOCK):
        block = slice(start, start + BLOCK)
        counts += np.bincount(codes[block][left[block]], minlength=n_codes)
    return counts


def _keep(dataset: CDSRDataset, field: str, names: pd.Index, with_events: pd.Index | None) -> None:
    """Keeps those rows of the file of users or items that have one of `names`, or, if given, none of `with_events`."""
    feat = "user_feat" if field == dataset.uid_field else "item_feat"
    table = getattr(dataset, feat)
    if table is None:
        return
    kept = table[field].isin(names)
    if with_events is not None:
        kept |= ~table[field].isin(with_events)
    setattr(dataset, feat, table[kept])


def all_among(names: pd.Series, table: pd.Series) -> bool:
    """Whether every one of the names (categories) is in the table; a look at each distinct name, not at each row."""
    return names.dtype == "category" and bool(names.cat.categories.isin(table).all())


def numbered(columns: list[pd.Series]) -> tuple[list[np.ndarray], list[str]]:
    """Numbers from 1 for the names in several columns, in order of their appearance; 0 where the name is missing.

    Returns:
        numbers of each column, int32, and the names.
    """
    coded = [column.astype("category").cat for column in columns]
    ends = np.cumsum([len(column.categories) for column in coded])
    code, names = pd.factorize(np.concatenate([column.categories.to_numpy(dtype=object) for column in coded]))
    places = np.split(code, ends[:-1])
    rows = sum(map(len, columns))
    first, start = np.full(len(names), rows), 0
    for place, column in zip(places, coded, strict=True):
        first[place] = np.minimum(first[place], start + _first_rows(column.codes.to_numpy(), len(place), rows - start))
        start += len(column.codes)
    seen = np.argsort(first, kind="stable")[: np.count_nonzero(first < rows)]
    number = np.zeros(len(names), dtype=np.int32)
    number[seen] = np.arange(1, len(seen) + 1)
    missing = np.zeros(1, dtype=np.int32)  # of code -1
    tables = [np.concatenate([number[place], missing]) for place in places]
    return [table[column.codes] for table, column in zip(tables, coded, strict=True)], list(names[seen])


def _first_rows(codes: np.ndarray, n_codes: int, none: int) -> np.ndarray:
    """[n_codes] the first row of each code, `none` where it has no row."""
    first = np.full(n_codes + 1, none)  # the last one is that of -1
    for start in reversed(range(0, len(codes), BLOCK)):
        block = codes[start : start + BLOCK]
        first[block[::-1]] = np.arange(start + len(block), start, -1) - 1  # of several rows the last one written stays
    return first[:-1]
