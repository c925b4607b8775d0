"""One domain per item, wherever the files name it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recbole_cdsr import compat
from recbole_cdsr.data.atomic import read_header
from recbole_cdsr.data.tokens import all_among
from recbole_cdsr.data.validate import PADDING, fault, line_of_row, line_with, short

compat.apply()

from recbole.utils import FeatureSource  # noqa: E402

if TYPE_CHECKING:
    from recbole_cdsr.data.dataset import CDSRDataset


def attach_domains(dataset: CDSRDataset) -> None:
    """Puts every item's domain into `item_feat`, from `.inter` or `.item`; `.inter` wins.

    Raises:
        CDSRError: if an item has no domain or two, naming file and line.
    """
    item, domain = dataset.iid_field, dataset.domain_field
    in_inter = domain in dataset.inter_feat
    in_item = dataset.item_feat is not None and domain in dataset.item_feat
    if not in_inter and not in_item:
        what = f"neither this file nor {dataset.item_path.name} has a column '{domain}'"
        advice = f"add {domain}:token to one of them, or name the column that is there by the key 'DOMAIN_FIELD'"
        raise fault(dataset.inter_path, what, advice, 1)
    if in_inter:
        seen = _domains_of_events(dataset).set_index(item)[domain]
        dataset.inter_feat = dataset.inter_feat.drop(columns=domain)
    items = dataset.item_feat
    named = items.set_index(item)[domain] if in_item else None
    if in_inter:
        named = pd.concat([seen, named[~named.index.isin(seen.index)]]) if in_item else seen
    if items is not None:
        if not all_among(dataset.inter_feat[item], items[item]):
            _require_lines(dataset, dataset.inter_feat[item].isin(items[item]).to_numpy())
    else:
        items = pd.DataFrame({item: named.index})
    items = items.assign(**{domain: items[item].map(named)})
    dataset.item_feat = items[items[domain].notna()].reset_index(drop=True)
    dataset.field2source[domain], dataset.field2source[item] = FeatureSource.ITEM, FeatureSource.ITEM_ID


def _domains_of_events(dataset: CDSRDataset) -> pd.DataFrame:
    """Each item of `.inter` with its domain.

    An item in two domains is refused; with `split_items_by_domain` it becomes one item per domain, in `item_feat` too.
    """
    item, domain, events = dataset.iid_field, dataset.domain_field, dataset.inter_feat
    pairs = events[[item, domain]].drop_duplicates().astype(object)
    twice = pairs[item].duplicated()
    if not twice.any():
        return pairs
    if not dataset.config["split_items_by_domain"]:
        token, other = pairs[twice].iloc[0]
        first = pairs[pairs[item] == token].iloc[0, 1]
        what = f"the item '{short(token)}' is in domain '{short(other)}' here and in '{short(first)}' before"
        advice = "give it one domain, or set split_items_by_domain to True to make an item of each"
        raise fault(dataset.inter_path, what, advice, line_of_row(dataset.inter_path, pairs.index[twice][0]), domain)
    whole = pairs[item]
    split = whole.isin(whole[twice])
    pairs = pairs.assign(whole=whole, **{item: whole.mask(split, whole + "@" + pairs[domain])})
    taken = events[item].isin(pairs[item][split]).to_numpy()
    if taken.any():
        row = int(np.argmax(taken))
        what = f"split_items_by_domain needs the name '{short(events[item][row])}', which an item has already"
        raise fault(dataset.inter_path, what, "rename that item", line_of_row(dataset.inter_path, row), item)
    token, of = events[item].astype(object), events[domain].astype(object)
    renamed = token.mask(token.isin(whole[twice]), token + "@" + of).astype("category")
    dataset.inter_feat = events.assign(**{item: renamed})
    if (items := dataset.item_feat) is not None:
        parts = items.rename(columns={item: "whole"}).merge(pairs[split][[item, "whole"]], on="whole")
        rest = items[~items[item].isin(whole[twice])]
        dataset.item_feat = pd.concat([rest, parts.drop(columns="whole")], ignore_index=True)
    return pairs[[item, domain]]


def _require_lines(dataset: CDSRDataset, has_line: np.ndarray) -> None:
    """Every event is of an item of `.item`; RecBole would drop the others without a word."""
    if not has_line.all():
        row = int(np.argmin(has_line))
        token, line = dataset.inter_feat[dataset.iid_field].iloc[row], line_of_row(dataset.inter_path, row)
        what = f"the item '{short(token)}' has no line in {dataset.item_path.name}"
        raise fault(dataset.inter_path, what, "add one there, with its domain", line, dataset.iid_field)


def check_domains(dataset: CDSRDataset) -> None:
    """Every domain has two items at least, after all filters, and a name of its own.

    Raises:
        CDSRError: names the line of an item of a domain that is not so.
    """
    domain, items = dataset.domain_field, dataset.item_feat
    named = items[items[domain] == PADDING]
    if len(named):
        _tell(dataset, named.iloc[0], f"'{PADDING}' is the name of padding", "choose another name for the domain")
    alone = items[~items[domain].duplicated(keep=False)]
    if len(alone):
        token, name = short(alone[dataset.iid_field].iloc[0]), short(alone[domain].iloc[0])
        what = f"the domain '{name}' has no item but '{token}', whose rank there would always be 1"
        _tell(dataset, alone.iloc[0], what, "put it into another domain, or leave the domain out")


def _tell(dataset: CDSRDataset, item: pd.Series, what: str, advice: str) -> None:
    """Raises the error with the line that names the item's domain."""
    separator, domain = dataset.config["field_separator"], dataset.domain_field
    for path in filter(Path.is_file, (dataset.inter_path, dataset.item_path)):
        names = list(read_header(path, separator, dataset.encoding))
        if domain in names:
            position = names.index(dataset.iid_field)
            line = line_with(path, position, item[dataset.iid_field], separator, dataset.encoding)
            if line:
                raise fault(path, what, advice, line, domain)
    raise fault(dataset.inter_path, what, advice, column=domain)
