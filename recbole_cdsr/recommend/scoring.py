"""From histories of numbers to the best items among candidates: by the model, or by popularity."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr import compat
from recbole_cdsr.data.events import EventStore
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.evaluation import all_scores
from recbole_cdsr.model.base import CDSRRecommender
from recbole_cdsr.recommend.bundle import Bundle
from recbole_cdsr.recommend.histories import Histories
from recbole_cdsr.recommend.top_items import top_items

compat.apply()

from recbole.data.interaction import Interaction  # noqa: E402

USERS = 256  # users scored at once
MAX_SCORES = 2**26  # (user, item) pairs that a model of RecBole scores at once: 256 MB in float32
IGNORE_WHICH_USER = ("Pop", "Random")  # they read user ids for their number only


class Best(NamedTuple):
    """Scores [B, k] and item numbers [B, k], best first; the score -inf marks a place that no item is left for."""

    scores: Tensor
    items: Tensor


class Scorer:
    """Ranks candidates for batches of histories.

    Attributes:
        users_at_once: most histories of a batch.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.config, self.model, self.catalogue = bundle.config, bundle.model, bundle.catalogue
        self.time_origin = bundle.time_origin
        self.ours = isinstance(self.model, CDSRRecommender)
        self.users_at_once = USERS if self.ours else max(1, min(USERS, MAX_SCORES // self.catalogue.item_num))

    def candidates(self, domain: int) -> Tensor:
        """The items of a domain, all items for domain 0; [n] numbers."""
        if domain == 0:
            return torch.arange(1, self.catalogue.item_num)
        return (self.catalogue.item_domain == domain).nonzero().squeeze(1)

    def by_popularity(self, histories: Histories, items: Tensor, k: int, exclude_seen: bool) -> Best:
        """Candidates by their number of training events; equal ones by their number."""
        popularity = self.catalogue.popularity[items]
        order = popularity.argsort(descending=True, stable=True)
        items, popularity = items[order], popularity[order].float()

        def score(start: int, stop: int) -> Tensor:
            return -torch.arange(start, stop, dtype=torch.float64).repeat(len(histories.unknown), 1)

        hidden = self._seen(histories, items) if exclude_seen else None
        place, column = top_items(score, len(items), k, hidden)
        return Best(torch.where(place == -torch.inf, -torch.inf, popularity[column]), items[column])

    def by_model(
        self,
        histories: Histories,
        users: np.ndarray | None,
        domain: int,
        items: Tensor,
        k: int,
        exclude_seen: bool,
        state_of: Callable[[int], Tensor] | None = None,
    ) -> Best:
        """Candidates by the model's scores.

        Args:
            histories: at least one event each.
            users: [B] numbers of known users; None for new ones.
            domain: of the question, 0 for none.
            items: [n] candidates.
            state_of: domain of the question -> states [B, D], if they are known already.

        Raises:
            CDSRError: if the model reads what the question does not hold, or a score is NaN.
        """
        if state_of is not None:
            score = self._tiles_of_states(state_of(domain), items)
        else:
            rows = self._rows(histories, users, domain).to(self.config["device"])
            try:
                if self.ours:
                    score = self._tiles_of_states(self.model.user_state(rows), items)
                else:
                    score = self._tiles_of_scores(rows, items)
            except KeyError as error:
                raise self._lacks(error) from error
        hidden = self._seen(histories, items) if exclude_seen else None
        scores, column = top_items(score, len(items), k, hidden)
        return Best(scores.float().cpu(), items[column.cpu()])

    def _tiles_of_states(self, states: Tensor, items: Tensor):
        table, bias = self.model.item_table(), self.model.item_bias()
        items = items.to(table.device)
        states, table = self.model.comparable(states, table[items])
        if bias is None:
            return lambda start, stop: states @ table[start:stop].T
        bias = bias[items]
        return lambda start, stop: torch.addmm(bias[start:stop], states, table[start:stop].T)

    def _tiles_of_scores(self, rows: Interaction, items: Tensor):
        scores = all_scores(self.model, rows, self.config["ITEM_ID_FIELD"], self.catalogue.item_num)
        items = items.to(scores.device)
        return lambda start, stop: scores[:, items[start:stop]]

    def _rows(self, histories: Histories, users: np.ndarray | None, domain: int) -> Interaction:
        """What a model sees of an evaluation row, with 0 for the target; unknown users and domains are left out."""
        config, count = self.config, len(histories.unknown)
        item, lists = torch.from_numpy(histories.items), config["LIST_SUFFIX"]
        columns = {config["ITEM_ID_FIELD"]: item, config["DOMAIN_FIELD"]: self.catalogue.item_domain[item]}
        rows = {config["ITEM_ID_FIELD"]: torch.zeros(count, dtype=torch.int64)}
        offsets = torch.from_numpy(histories.offsets)
        if histories.times is not None:
            seconds = torch.from_numpy(histories.times - self.time_origin)
            columns[config["TIME_FIELD"]] = seconds
            rows[config["TIME_FIELD"]] = seconds[offsets[1:] - 1]
        if users is not None:
            rows[config["USER_ID_FIELD"]] = torch.from_numpy(users)
        elif config.model in IGNORE_WHICH_USER:
            rows[config["USER_ID_FIELD"]] = torch.zeros(count, dtype=torch.int64)
        if domain:
            rows[config["DOMAIN_FIELD"]] = torch.full((count,), domain)
        length = offsets.diff().clamp(max=config["MAX_ITEM_LIST_LENGTH"])
        rows[config["ITEM_LIST_LENGTH_FIELD"]] = length
        if config["layout"] != "interaction":
            width = int(length.max()) if self.ours else config["MAX_ITEM_LIST_LENGTH"]
            events = EventStore(offsets, columns)
            rows |= {name + lists: events.gather(name, offsets[1:], length, width) for name in columns}
        return Interaction(rows)

    def _seen(self, histories: Histories, items: Tensor) -> tuple[Tensor, Tensor]:
        """Row and place among the candidates of everything that stands in the histories."""
        place = torch.full((self.catalogue.item_num,), -1)
        place[items] = torch.arange(len(items))
        column = place[torch.from_numpy(histories.items)]
        inside, device = column >= 0, self.config["device"]
        return torch.from_numpy(histories.rows)[inside].to(device), column[inside].to(device)

    def _lacks(self, error: KeyError) -> Exception:
        """The sentence for a field that the model reads and the question does not hold."""
        config, model = self.config, self.config.model
        field = str(error.args[0]) if error.args else ""
        if field == config["USER_ID_FIELD"]:
            return CDSRError(
                f"{model} knows users by their ids, so it cannot serve a new history; ask for a user of its data set, "
                f"or train a model that reads histories only (SASRec, AutoCDSR)"
            )
        if field in (config["TIME_FIELD"], config["TIME_FIELD"] + config["LIST_SUFFIX"]):
            return CDSRError(f"{model} reads the times of events; give every history as (item, timestamp) pairs")
        if field == config["DOMAIN_FIELD"]:
            return CDSRError(f"{model} needs the domain to recommend from; give one")
        return CDSRError(f"{model} reads '{field}', which a history does not hold; it can be evaluated only")
