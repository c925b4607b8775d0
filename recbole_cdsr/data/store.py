"""From tables of pandas to tensors: users and items as RecBole makes them, events in the order of an EventStore."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.data.events import stable_order

if TYPE_CHECKING:
    from recbole_cdsr.data.dataset import CDSRDataset

BLOCK = 1 << 22  # events copied at once


def store_events(dataset: CDSRDataset) -> None:
    """Gives the data set its events; a column of the table is given up when its tensor is there."""
    dataset._drop_unused_col()
    for name in dataset.feat_name_list:
        if name != "inter_feat":
            setattr(dataset, name, dataset._dataframe_to_interaction(getattr(dataset, name)))
    frame, time_field = dataset.inter_feat, dataset.time_field
    order, offsets = by_user(torch.from_numpy(frame.pop(dataset.uid_field).to_numpy()), dataset.user_num)
    dataset.time_origin = frame[time_field].to_numpy().min().item()
    kinds = {time_field: (torch.float64, dataset.time_origin), dataset.iid_field: (torch.int64, 0)}
    columns = {}
    for field in list(frame):
        column = frame.pop(field)
        if field in kinds:
            columns[field] = _taken(torch.from_numpy(column.to_numpy()), order, *kinds[field])
        else:
            columns[field] = dataset._dataframe_to_interaction(column.to_frame())[field][order]
    dataset.hold(offsets, columns)
    dataset.tie_share, dataset.repeated = dataset.events.ties(time_field, dataset.iid_field)


def by_user(user: Tensor, n_users: int) -> tuple[Tensor, Tensor]:
    """[events] indices that group events by user, in whose group they keep their order, and offsets [users + 1]."""
    offsets = torch.zeros(n_users + 1, dtype=torch.int64)
    offsets[1:] = torch.cumsum(torch.bincount(user, minlength=n_users), 0)
    return stable_order(user), offsets


def _taken(values: Tensor, order: Tensor, dtype: torch.dtype, origin: float) -> Tensor:
    """values[order] - origin in another type, without a whole copy in between."""
    result = torch.empty(len(order), dtype=dtype)
    for start in range(0, len(order), BLOCK):
        block = slice(start, start + BLOCK)
        result[block] = values[order[block]] - origin
    return result


def digest_of(dataset: CDSRDataset) -> str:
    """See `CDSRDataset.digest`."""
    digest = hashlib.sha256(json.dumps(dataset.domain_names).encode())
    for values in (dataset.events.offsets, *dataset.events.columns.values(), dataset.true_domain):
        digest.update(np.ascontiguousarray(values.numpy()).data)
    for field in (dataset.uid_field, dataset.iid_field):
        digest.update("\n".join(map(str, dataset.field2id_token[field])).encode())
    return digest.hexdigest()
