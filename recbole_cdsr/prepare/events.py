"""Events as numbers behind vocabularies, collected from batches of columns."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.prepare.logs import Batch, Log
from recbole_cdsr.prepare.opening import Progress
from recbole_cdsr.prepare.times import TimeReader, missing


@dataclass(frozen=True)
class Fields:
    """Which columns hold what.

    domain: None where files or a table of items name the domains.
    at_least: column -> least number; events below it (or without a number) are left out.
    """

    user: str
    item: str
    time: str
    domain: str | None = None
    at_least: tuple[tuple[str, float], ...] = ()

    def types(self) -> dict[str, pa.DataType]:
        """Column -> type to ask of a file, each column once."""
        tokens = [name for name in (self.user, self.item, self.domain) if name is not None]
        numbers = [self.time, *(name for name, _ in self.at_least)]
        return dict.fromkeys(tokens, pa.string()) | dict.fromkeys(numbers, pa.float64())


@dataclass(frozen=True)
class Events:
    """E events in the order of the files.

    user, item, domain [E] int32: indices into the names. time [E] int64 or float64, counted in `unit`.
    """

    user: np.ndarray
    item: np.ndarray
    domain: np.ndarray
    time: np.ndarray
    users: pa.Array
    items: pa.Array
    domains: pa.Array
    unit: str

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> Events:
        """The events at `index`, with names as they are."""
        return replace(
            self, user=self.user[index], item=self.item[index], domain=self.domain[index], time=self.time[index]
        )


@dataclass(frozen=True)
class ItemDomains:
    """A table of items and the domain of each."""

    items: pa.Array
    domains: pa.Array
    source: str  # for messages


@dataclass(frozen=True)
class Reading:
    """What a reader hands on: events, how many the files hold, and why some were left out (reason -> events)."""

    events: Events
    n_read: int
    left_out: Counter[str]


class Collector:
    """Adds up what the batches hold.

    Args:
        drop_incomplete: leave events without user, item, time or domain out; otherwise they are an error.

    Attributes:
        left_out: reason -> events.
    """

    def __init__(self, times: TimeReader, drop_incomplete: bool = False) -> None:
        self.times, self.drop_incomplete = times, drop_incomplete
        self.left_out: Counter[str] = Counter()
        self.n_read = 0
        self._users, self._items, self._domains, self._times = [], [], [], []

    def read(self, log: Log, fields: Fields, progress: Progress) -> None:
        """Adds all events of a log."""
        for batch in log.batches(fields.types(), progress):
            self.add(log, fields, batch)
        self.left_out["unreadable line"] += log.skipped

    def add(self, log: Log, fields: Fields, batch: Batch) -> None:
        columns, n = batch.columns, len(batch.columns[fields.user])
        self.n_read += n
        rows = np.arange(batch.first_row, batch.first_row + n)
        keep = np.ones(n, dtype=bool)
        for name, least in fields.at_least:
            low = keep & ~(self._numbers(log, name, columns[name], rows) >= least)  # nan is low
            self.left_out[f"{name} below {least:g}"] += int(low.sum())
            keep &= ~low
        for name in filter(None, (fields.user, fields.item, fields.time, fields.domain)):
            empty = missing(columns[name]) & keep
            if empty.any() and not self.drop_incomplete:
                raise CDSRError(
                    f"{log.place(int(rows[np.argmax(empty)]))}: the column '{name}' has no value; fill it in, "
                    f"or leave such events out by --drop_incomplete"
                )
            self.left_out[f"no {name}"] += int(empty.sum())
            keep &= ~empty
        if not keep.any():
            return
        kept, rows = {name: column.filter(pa.array(keep)) for name, column in columns.items()}, rows[keep]
        self._times.append(self.times.read(kept[fields.time], log, rows))
        self._users.append(tokens(log.path, fields.user, kept).dictionary_encode())
        self._items.append(tokens(log.path, fields.item, kept).dictionary_encode())
        domain = tokens(log.path, fields.domain, kept) if fields.domain else pa.repeat(log.domain or "", len(rows))
        self._domains.append(domain.dictionary_encode())

    def _numbers(self, log: Log, name: str, column: pa.Array, rows: np.ndarray) -> np.ndarray:
        try:
            return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            text = column.cast(pa.string())
            bad = np.asarray(pc.invert(pc.match_substring_regex(text.fill_null("0"), r"^\s*[-+.\d]")))
            row = int(np.argmax(bad))
            raise CDSRError(
                f"{log.place(int(rows[row]))}: '{text[row].as_py()}' in column '{name}' is not a number; "
                f"choose another column for --at_least"
            ) from None

    def finish(self, table: ItemDomains | None = None) -> Reading:
        """All events, with the domains of `table` if there is one.

        Raises:
            CDSRError: if there are none, or the table lacks an item.
        """
        if not self._times:
            raise self._nothing()
        time = np.concatenate(self._times)
        unit = self.times.unit_of(time)
        (user, users), (item, items), (domain, domains) = map(_joined, (self._users, self._items, self._domains))
        events = Events(user, item, domain, time, users, items, domains, unit)
        if table is not None:
            events = self._with(table, events)
        if not len(events):
            raise self._nothing()
        return Reading(events, self.n_read, self.left_out)

    def _nothing(self) -> CDSRError:
        if not self.n_read:
            return CDSRError("the files have headers but no rows; they may have been cut off")
        reasons = "".join(f"; left out, {reason}: {count:,}" for reason, count in self.left_out.items() if count)
        return CDSRError(f"the files hold no event to keep: {self.n_read:,} read{reasons}; check the options")

    def _with(self, table: ItemDomains, events: Events) -> Events:
        place = pc.index_in(events.items, value_set=table.items)
        coded = table.domains.dictionary_encode()
        of_item = np.asarray(pc.take(coded.indices, place).fill_null(-1)).astype(np.int32)
        domain = of_item[events.item]
        unknown = domain < 0
        if unknown.any() and not self.drop_incomplete:
            item = events.items[int(events.item[np.argmax(unknown)])].as_py()
            raise CDSRError(
                f"{table.source} names no domain for the item '{item}' ({(of_item < 0).sum():,} items with "
                f"{unknown.sum():,} events have none); add them, or leave such events out by --drop_incomplete"
            )
        self.left_out["item without a domain"] += int(unknown.sum())
        return replace(events, domain=domain, domains=coded.dictionary).take(np.flatnonzero(~unknown))


def tokens(path: Path, name: str, columns: dict[str, pa.Array]) -> pa.Array:
    """A column as text; whole numbers stored as floats (pandas does so when some are missing) without their '.0'."""
    column = columns[name]
    if pa.types.is_floating(column.type):
        with contextlib.suppress(pa.ArrowInvalid):
            column = column.cast(pa.int64())
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise CDSRError(f"{path}: the column '{name}' holds {column.type}, not names; choose another") from None


def _joined(parts: list[pa.DictionaryArray]) -> tuple[np.ndarray, pa.Array]:
    """Numbers [E] and their names, in the order of first appearance."""
    unified = pa.chunked_array(parts).unify_dictionaries()
    numbers = [np.asarray(chunk.indices) for chunk in unified.chunks]
    return np.concatenate(numbers).astype(np.int32, copy=False), unified.chunk(0).dictionary
