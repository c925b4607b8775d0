"""Training on some domains only (the key `train_domains`), so that transfer between domains can be measured.

The split is made on whole histories first, so that a domain is tested on the same events, among the same candidates,
as in a run on all domains. Then every event of another domain goes: as a target, and from the histories before targets.
The items of the other domains stay in the catalogue, unused. A target without an event of the chosen domains before it
cannot be predicted from a history and is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import nearest

if TYPE_CHECKING:
    from recbole_cdsr.data.dataset import CDSRDataset


def domain_numbers(wanted: list, domain_names: list[str]) -> list[int]:
    """Numbers of the domains that the key `train_domains` names.

    Args:
        domain_names: C names, that of padding first.

    Raises:
        CDSRError: for a name that no domain has.
    """
    known = domain_names[1:]
    for name in map(str, wanted):
        if name not in known:
            advice = nearest(name, known, f"the domains are {', '.join(known)}")
            raise CDSRError(f"the key 'train_domains' names '{name}', which no domain is called; {advice}")
    return [domain_names.index(str(name)) for name in wanted]


def restrict_to_domains(
    dataset: CDSRDataset, rows: list[np.ndarray], stop: Tensor, wanted: list
) -> tuple[list[np.ndarray], Tensor]:
    """Takes events of other domains than the `wanted` out of a data set that is split already.

    Args:
        dataset: one row per event, in the order of its events; `events` and `inter_feat` are replaced.
        rows: indices of the rows of training, validation and test.
        stop: [users] where each user's training events end.

    Returns:
        `rows` and `stop` for the data set as it is now.
    """
    numbers = torch.tensor(domain_numbers(wanted, dataset.true_domain_names))
    kept = torch.isin(dataset.true_domain[dataset.events.columns[dataset.iid_field]], numbers)
    before = _count_kept(kept)
    columns = {name: values[kept] for name, values in dataset.events.columns.items()}
    dataset.hold(before[dataset.events.offsets], columns)
    dataset.tie_share, dataset.repeated = dataset.events.ties(dataset.time_field, dataset.iid_field)
    has_history = (dataset.inter_feat[dataset.item_list_length_field] > 0).numpy()
    moved = [before[torch.from_numpy(index[kept.numpy()[index]])].numpy() for index in rows]
    needs = [dataset.config["layout"] != "interaction", True, True]  # general recommenders learn from first events too
    return [m[has_history[m]] if need else m for m, need in zip(moved, needs, strict=True)], before[stop]


def _count_kept(kept: Tensor) -> Tensor:
    """[events + 1] how many kept events stand before each place."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
