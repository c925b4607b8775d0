"""From a model and evaluation rows to a RankTable: the same for models of this package and of RecBole."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr import distributed
from recbole_cdsr.counting import Catalogue, Ranks, count_ranks, count_ranks_tiled
from recbole_cdsr.data.loaders import RowDataLoader
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.memory import told_when_short
from recbole_cdsr.model.base import CDSRRecommender
from recbole_cdsr.progress import progress
from recbole_cdsr.ranks import RankTable


@torch.no_grad()
def rank_events(model, loader: RowDataLoader, device: torch.device, show_progress: bool = False) -> RankTable:
    """Ranks the target of every row among all items and among the items of its domain.

    Our models give a state per row, which is compared with the item table in tiles; RecBole's give all scores. Each of
    several processes ranks a part of the rows; all get the whole table.

    Args:
        model: has `user_state` (ours) or `full_sort_predict` / `predict` (RecBole's).
        loader: not empty.

    Raises:
        CDSRError: if a score is NaN, or a batch does not fit into memory.
    """
    model.eval()
    whole, loader = loader.dataset, loader.part(distributed.rank(), distributed.world())
    ranks, error = None, None
    try:
        with told_when_short(f"ranking {loader.batch_size} events at once", "set a smaller eval_batch_size"):
            ranks = _rank_rows(model, loader, device, show_progress)
    except distributed.Lost:  # no call to the others can succeed
        raise
    except CDSRError as found:
        error = found
    distributed.fail_together(error)
    if loader.dataset is not whole:
        ranks = Ranks(*map(distributed.concatenate, ranks))
    return _table(whole, ranks)


def _rank_rows(model, loader: RowDataLoader, device: torch.device, show_progress: bool) -> Ranks:
    dataset = loader.dataset
    catalogue = Catalogue(dataset.true_domain)
    rows = progress(loader, "evaluate", show_progress)
    item = dataset.inter_feat[dataset.iid_field]
    domain = dataset.true_domain[item]
    if isinstance(model, CDSRRecommender):
        states = torch.cat([model.user_state(batch.to(device)) for batch in rows])
        states, table = model.comparable(states, model.item_table())
        return count_ranks_tiled(states, table, catalogue, item, domain, model.item_bias())
    parts, start = [], 0
    for batch in rows:
        part = slice(start, start + len(batch))
        scores = all_scores(model, batch.to(device), dataset.iid_field, dataset.item_num)
        parts.append(count_ranks(scores, catalogue, item[part], domain[part]))
        start += len(batch)
    return Ranks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def attention_between_domains(model, loader: RowDataLoader, device: torch.device) -> Tensor | None:
    """Mean attention [C, C] of queries of a domain on keys of a domain; None if the model records none.

    Of the first `eval_batch_size` rows only: enough for a mean, and cheap enough for every epoch.
    """
    if not isinstance(model, CDSRRecommender):
        return None
    model.eval()
    matrix = model.transfer_record(next(iter(loader)).to(device))
    return None if matrix is None else matrix.float().cpu()


def all_scores(model, rows, item_field: str, n_items: int) -> Tensor:
    """Scores [B, V] of a RecBole model; row by row through `predict` where it has no `full_sort_predict`."""
    try:
        return model.full_sort_predict(rows).view(-1, n_items)
    except NotImplementedError:
        pass
    scores = []
    for number in range(len(rows)):
        repeated = rows[number : number + 1].repeat(n_items)
        repeated[item_field] = torch.arange(n_items, device=rows[item_field].device)
        scores.append(model.predict(repeated).view(-1))
    return torch.stack(scores)


def _table(dataset, ranks: Ranks) -> RankTable:
    rows, tokens = dataset.inter_feat, dataset.field2id_token
    described = {name: values.numpy() for name, values in dataset.describe_rows().items()}
    return RankTable(
        user=tokens[dataset.uid_field][rows[dataset.uid_field].numpy()].astype(str),
        item=tokens[dataset.iid_field][rows[dataset.iid_field].numpy()].astype(str),
        domain=dataset.true_domain[rows[dataset.iid_field]].numpy(),
        domain_names=np.array(dataset.true_domain_names),
        **described,
        **ranks._asdict(),
    )
