"""Raw histories as flat arrays of numbers: checked, in time order, without unknown items."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_cdsr.errors import CDSRError


@dataclass
class Histories:
    """The known events of B users, one user after the other, each in time order.

    Attributes:
        offsets: [B + 1] events of user b stand at offsets[b] .. offsets[b + 1].
        items: [events] item numbers, 1 or more.
        times: [events] raw times; None if a history came without.
        unknown: [B] how many events were left out since the model does not know their item.
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    unknown: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """User of every event [events]."""
        return np.repeat(np.arange(len(self.unknown)), self.lengths)


def read_histories(
    histories: Iterable[Sequence[Any]], number_of: dict[str, int], names: Sequence[str] | None = None
) -> Histories:
    """Numbers the items of raw histories.

    Args:
        histories: one list per user, of items or of (item, timestamp) pairs. Items are texts; whole numbers are read
            as their digits. Events without times stand in time order; with times they are put in it, and events of
            equal time keep their order.
        number_of: item -> number from 1.
        names: what errors call each history; "history 0", "history 1", ... by default.

    Raises:
        CDSRError: for anything else, naming history and event (counted from 0).
    """
    items: list[int] = []
    times: list[float] = []
    lengths: list[int] = []
    timed = True
    for position, history in enumerate(_sequence(histories, "histories are a list with one list of items per user")):
        where = names[position] if names else f"history {position}"
        events = _sequence(history, f"{where}: expected a list of items or of (item, timestamp) pairs")
        if len(events) and isinstance(events[0], list | tuple):
            pairs = [_pair(event, f"{where}, event {n}") for n, event in enumerate(events)]
            tokens = [token for token, _ in pairs]
            times += [time for _, time in pairs]
        else:
            tokens, timed = events, timed and not len(events)
            times += range(len(events))  # to keep their order below
        if set(map(type, tokens)) - {str}:
            tokens = [token_of(token, f"{where}, event {n}") for n, token in enumerate(tokens)]
        items += [number_of.get(token, 0) for token in tokens]
        lengths.append(len(tokens))
    row = np.repeat(np.arange(len(lengths)), lengths)
    item, time = np.array(items, dtype=np.int64), np.array(times, dtype=np.float64)
    order = np.lexsort((time, row))
    item, time = item[order], time[order]
    known = item > 0
    counts = np.bincount(row[known], minlength=len(lengths))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    unknown = np.array(lengths, dtype=np.int64) - counts
    return Histories(offsets, item[known], time[known] if timed else None, unknown)


def token_of(value: Any, where: str) -> str:
    """A raw item or user as the text that data files have for it; CDSRError if it is neither text nor whole number."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(int(value))
    raise CDSRError(f"{where}: expected a text or a whole number, but got {value!r}")


def time_of(value: Any, where: str) -> float:
    """A timestamp as a float; CDSRError if it is no finite number."""
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits:
        raise CDSRError(f"{where}: a timestamp is a finite number, but got {value!r}")
    return float(value)


def _pair(event: Any, where: str) -> tuple[Any, float]:
    if not isinstance(event, list | tuple) or len(event) != 2:
        raise CDSRError(f"{where}: expected (item, timestamp) as in the events before it, but got {event!r}")
    token, time = event
    return token, time_of(time, where)


def _sequence(value: Any, message: str) -> Any:
    if isinstance(value, str | bytes | dict | set | frozenset) or not isinstance(value, Iterable):
        raise CDSRError(f"{message}, but got {str(value)[:60]!r}")
    return value if isinstance(value, Sequence) else list(value)


def select(histories: Histories, users: np.ndarray) -> Histories:
    """The histories of some users [n], in that order; a user may stand there twice."""
    lengths = histories.lengths[users]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    index = np.repeat(histories.offsets[users] - offsets[:-1], lengths) + np.arange(offsets[-1])
    times = None if histories.times is None else histories.times[index]
    return Histories(offsets, histories.items[index], times, histories.unknown[users])
