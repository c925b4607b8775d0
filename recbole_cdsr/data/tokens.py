"""What RecBole does to names of users and items one by one, done on categories: numbers of distinct names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

if TYPE_CHECKING:
    from recbole_cdsr.data.dataset import CDSRDataset


def filter_by_inter_num(dataset: CDSRDataset) -> None:
    """RecBole's `_filter_by_inter_num`: takes away users and items whose number of events is out of the intervals.

    Again and again, until all that are left are inside. Their rows in the files of users and items go along, and so do
    rows of names with fewer events than the first interval begins with. `dataset.dropped` gets the numbers of users and
    events that went.
    """
    events = dataset.inter_feat
    keys = {dataset.uid_field: "user_inter_num_interval", dataset.iid_field: "item_inter_num_interval"}
    intervals = {field: dataset._parse_intervals_str(dataset.config[key]) for field, key in keys.items()}
    numbers = {field: pd.factorize(events[field]) for field in keys if intervals[field]}
    banned = {field: np.zeros(len(names), dtype=bool) for field, (_, names) in numbers.items()}
    left, before = np.ones(len(events), dtype=bool), -1
    while before != (before := int(left.sum())):
        counts = {field: np.bincount(code[left], minlength=len(names)) for field, (code, names) in numbers.items()}
        for field, (code, _) in numbers.items():
            count = counts[field]
            banned[field] |= (count > 0) & ~dataset._within_intervals(count, intervals[field])
            left &= ~banned[field][code]
    for field, (_, names) in numbers.items():
        enough = ~banned[field] & (counts[field] >= intervals[field][0][1])
        _keep(dataset, field, names[enough], with_none=intervals[field][0][1] <= 0)
    user = events[dataset.uid_field]
    dataset.dropped = {"users": user.nunique() - user[left].nunique(), "events": len(events) - before}
    dataset.inter_feat = events[left]


def _keep(dataset: CDSRDataset, field: str, names: pd.Index, with_none: bool) -> None:
    """Keeps those rows of the file of users or items that have one of the names, or are of no event at all."""
    feat = "user_feat" if field == dataset.uid_field else "item_feat"
    table = getattr(dataset, feat)
    if table is None:
        return
    kept = table[field].isin(names)
    if with_none:
        kept |= ~table[field].isin(dataset.inter_feat[field])
    setattr(dataset, feat, table[kept])


def numbered(columns: list[pd.Series]) -> tuple[list[np.ndarray], list[str]]:
    """Numbers from 1 for the names in several columns, in order of their appearance; 0 where the name is missing.

    Returns:
        numbers of each column, and the names.
    """
    names = union_categoricals([column.astype("category").array for column in columns])
    code, seen = pd.factorize(names)
    return np.split(code + 1, np.cumsum([len(column) for column in columns])[:-1]), list(seen)
