"""Stream: one user whose events come one by one, asked for recommendations at any time between them."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.recommend.bundle import Bundle
from recbole_cdsr.recommend.histories import Histories, time_of, token_of

if TYPE_CHECKING:
    from recbole_cdsr.recommend.recommender import Recommendation

# (history, domain, k, exclude_seen, state of the user before a domain or None to compute it) -> answer
Answer = Callable[..., "Recommendation"]


class Stream:
    """The answers of `Recommender.recommend` for a history that grows; made by `Recommender.stream`.

    A model with `start`, `append` and `state` of its own (TAPE-DDSR-HSTU) keeps what it computed, so that an event and
    a question cost no pass over the history, up to MAX_ITEM_LIST_LENGTH events. After that, and with any other model,
    each question is a pass over the latest events.
    """

    def __init__(self, bundle: Bundle, number_of: dict[str, int], answer: Answer) -> None:
        self._bundle, self._number_of, self._answer = bundle, number_of, answer
        self._items, self._times, self._skipped = array("q"), array("d"), 0
        self._timed: bool | None = None  # decided by the first event
        self._user: Any = None  # what the model keeps; None: it reads the history anew at each question

    def __len__(self) -> int:
        """Events that count: those of unknown items do not."""
        return len(self._items)

    def append(self, item: Any, timestamp: float | None = None) -> None:
        """Adds an event.

        Args:
            item: as the data set names it; an unknown one is skipped, and counted in the answers.
            timestamp: as in the training data; for all events of a stream or for none.

        Raises:
            CDSRError: for what is no item or no time, a time before the last event's, or times for some events only.
        """
        where = f"event {len(self._items) + self._skipped}"
        token = token_of(item, where)
        timed = timestamp is not None
        if self._timed not in (None, timed):
            raise CDSRError(f"{where}: give all events of a stream a timestamp or none")
        time = 0.0 if timestamp is None else time_of(timestamp, where)
        if self._times and time < self._times[-1]:
            raise CDSRError(f"{where}: its time {time} lies before {self._times[-1]}, that of the event before it")
        self._timed = timed
        number = self._number_of.get(token, 0)
        if not number:
            self._skipped += 1
            return
        if not self._items:
            self._user = self._start()
        self._items.append(number)
        self._times.append(time)
        self._keep(number, time)

    def recommend(self, domain: str | None = None, k: int = 10, exclude_seen: bool = True) -> Recommendation:
        """The best k items after the events so far; all else is as in `Recommender.recommend`."""
        items, times = np.array(self._items, dtype=np.int64), np.array(self._times) if self._timed else None
        history = Histories(np.array([0, len(items)]), items, times, np.array([self._skipped]))
        return self._answer(history, domain, k, exclude_seen, self._state if self._user is not None else None)

    def _start(self) -> Any:
        """What the model keeps of a new user, if it can."""
        model = self._bundle.model
        reads_times = getattr(model, "query_time", "none")
        served = hasattr(model, "start") and reads_times != "next" and (self._timed or reads_times == "none")
        return model.start() if served else None

    def _keep(self, number: int, time: float) -> None:
        if len(self._items) > self._bundle.config["MAX_ITEM_LIST_LENGTH"]:
            self._user = None  # positions count from the latest events, so all that was kept is void
        if self._user is not None:
            domain = int(self._bundle.catalogue.item_domain[number])
            self._user.append(number, domain, time - self._bundle.time_origin if self._timed else 0.0)

    def _state(self, domain: int) -> Tensor:
        """State of the user before an event of the domain, [1, D]."""
        return self._user.state(domain).unsqueeze(0)
