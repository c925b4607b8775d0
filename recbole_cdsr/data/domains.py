"""One domain per item, wherever the files name it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recbole_cdsr import compat
from recbole_cdsr.data.atomic import line_of_row, require_values
from recbole_cdsr.errors import CDSRError

compat.apply()

from recbole.utils import FeatureSource, FeatureType  # noqa: E402

if TYPE_CHECKING:
    from recbole_cdsr.data.dataset import CDSRDataset


def attach_domains(dataset: CDSRDataset) -> None:
    """Puts every item's domain into `item_feat`, from `.inter` or `.item`; `.inter` wins.

    Raises:
        CDSRError: if an item has no domain or two, naming file and line.
    """
    item, domain = dataset.iid_field, dataset.domain_field
    inter, items = dataset.inter_feat, dataset.item_feat
    in_inter, in_item = domain in inter, items is not None and domain in items
    if not in_inter and not in_item:
        raise CDSRError(
            f"the data set {dataset.dataset_name} names no domains: add a column {domain}:token to "
            f"{dataset.item_path}, or to {dataset.inter_path.name}, or set the key 'DOMAIN_FIELD'"
        )
    if dataset.field2type[domain] != FeatureType.TOKEN:
        raise CDSRError(f"the column '{domain}' of {dataset.dataset_name} must be {domain}:token in the header")
    if in_item:
        require_values(dataset.item_path, items, domain)
        named = items.set_index(item)[domain]
    if in_inter:
        require_values(dataset.inter_path, inter, domain)
        seen = _of_interactions(dataset)
        named = pd.concat([seen, named[~named.index.isin(seen.index)]]) if in_item else seen
        dataset.inter_feat = inter.drop(columns=domain)
    if items is None:
        items = pd.DataFrame({item: named.index})
    _require_domains(dataset, inter[item].isin(named.index).to_numpy())
    items = items.assign(**{domain: items[item].map(named)})
    dataset.item_feat = items[items[domain].notna()].reset_index(drop=True)
    dataset.field2source[domain], dataset.field2source[item] = FeatureSource.ITEM, FeatureSource.ITEM_ID


def _of_interactions(dataset: CDSRDataset) -> pd.Series:
    """Item -> domain as `.inter` says."""
    item, domain = dataset.iid_field, dataset.domain_field
    pairs = dataset.inter_feat[[item, domain]].drop_duplicates()
    twice = pairs[item].duplicated()
    if twice.any():
        token, other = pairs[twice].iloc[0]
        first = pairs[pairs[item] == token].iloc[0, 1]
        line = line_of_row(dataset.inter_path, int(pairs.index[twice][0]))
        raise CDSRError(
            f"{dataset.inter_path}, line {line}: the item '{token}' is in domain '{other}' here and in '{first}' "
            f"before; an item has one domain: give it two ids, like '{token}@{other}'"
        )
    return pairs.set_index(item)[domain]


def _require_domains(dataset: CDSRDataset, has_domain: np.ndarray) -> None:
    if not has_domain.all():
        row = int(np.argmin(has_domain))
        token, line = dataset.inter_feat[dataset.iid_field].iloc[row], line_of_row(dataset.inter_path, row)
        raise CDSRError(
            f"{dataset.inter_path}, line {line}: the item '{token}' has no domain; "
            f"add a line for it to {dataset.item_path}"
        )
