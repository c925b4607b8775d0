"""EventRows: RecBole's table of interactions, of which only the numbers of the events are held.

A column that is asked for is made then. For 100 million events that is one column of 800 MB instead of six, and the
training part of the `sequence` layout, whose windows are cut from the events themselves, needs no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr import compat
from recbole_cdsr.data.events import EventStore

compat.apply()

from recbole.data.interaction import Interaction  # noqa: E402

EVENT_FIELD = "event_index"


class _Columns(MutableMapping):
    """Field name -> values; made by `make`, or as somebody has set them."""

    def __init__(self, names: list[str], make: Callable[[str], Tensor]) -> None:
        self.names, self.make, self.set = dict.fromkeys(names), make, {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.set[name] if name in self.set else self.make(name)

    def __setitem__(self, name: str, values: Tensor) -> None:
        self.names[name], self.set[name] = None, values

    def __delitem__(self, name: str) -> None:
        del self.names[name]
        self.set.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class EventRows(Interaction):
    """A row for each of some events: user, the event's columns, number of events before it, number of the event.

    Args:
        events: where the columns come from.
        event: [rows] numbers of the events; None: all of them in order.
        user_field, length_field: names of the columns of users and of lengths.
        most: lengths are this at most.
    """

    def __init__(self, events: EventStore, event: Tensor | None, user_field: str, length_field: str, most: int) -> None:
        super().__init__({})
        self.events, self._event = events, event
        self._fields = user_field, length_field, most
        self.length = len(events) if event is None else len(event)
        self.interaction = _Columns([user_field, *events.columns, length_field, EVENT_FIELD], self._make)

    @property
    def event(self) -> Tensor:
        """Number of the event of each row."""
        return torch.arange(self.length) if self._event is None else self._event

    def rows(self, index: Tensor) -> EventRows:
        """The rows at the positions `index`, without what somebody has set."""
        return EventRows(self.events, self.event[index], *self._fields)

    def _make(self, name: str) -> Tensor:
        if self._event is None and name in self.events.columns:
            return self.events.columns[name]
        return self._of(name, self.event)

    def _of(self, name: str, event: Tensor) -> Tensor:
        user_field, length_field, most = self._fields
        if name == EVENT_FIELD:
            return event
        if name in self.events.columns:
            return self.events.columns[name][event]
        user = self.events.user_of(event)
        return user if name == user_field else (event - self.events.offsets[user]).clamp(max=most)

    def __getitem__(self, index):
        if isinstance(index, str):
            return self.interaction[index]
        index = torch.as_tensor(index) if isinstance(index, np.ndarray) else index
        event, made = self.event[index], self.interaction.set
        return Interaction(
            {name: made[name][index] if name in made else self._of(name, event) for name in self.interaction}
        )

    def _reindex(self, index) -> None:
        self.interaction.set = {name: values[index] for name, values in self.interaction.set.items()}
        self._event = self.event[index]

    def __deepcopy__(self, memo: dict) -> Interaction:
        return Interaction({name: values.clone() for name, values in self.interaction.items()})
