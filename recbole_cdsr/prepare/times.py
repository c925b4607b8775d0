"""Times of raw logs: seconds, milli-, micro- or nanoseconds, or dates; kept as exact counts until they are written."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.prepare.logs import Log

UNITS = ("s", "ms", "us", "ns")  # of numbers
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9, "dates": 10**6}  # per second
DAY = 86_400
# Numbers below these are taken for this unit: 1e11 s lies in the year 5138, 1e11 ms in 1973.
_BELOW = {"s": 1e11, "ms": 1e14, "us": 1e17, "ns": float("inf")}


class TimeReader:
    """Turns the time columns of all batches into one array.

    Args:
        unit: of numbers: one of UNITS, or "auto", which goes by their size.
        pattern: how dates are written, in the terms of strftime; None: ISO 8601. Times without a zone are UTC.
    """

    def __init__(self, unit: str = "auto", pattern: str | None = None) -> None:
        self.unit, self.pattern, self.are_dates = unit, pattern, None

    def read(self, column: pa.Array, log: Log, rows: np.ndarray) -> np.ndarray:
        """[n] int64, or float64 where numbers have fractions; microseconds for dates.

        Args:
            rows: [n] where the values stand in the file.

        Raises:
            CDSRError: names the first value that is no time.
        """
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            stamps = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False)  # rounds nanoseconds
            times, dates = stamps.cast(pa.int64()).to_numpy(zero_copy_only=False), True
        else:
            numbers = None if self.pattern else _as_numbers(column)
            # The first value of all tells which form the others must have.
            dates = self.are_dates
            if dates is None:
                dates = numbers is None and (bool(self.pattern) or _as_numbers(column[:1]) is None)
            times = self._as_dates(column) if dates else _forced(column) if numbers is None else numbers
        if self.are_dates is None:
            self.are_dates = dates
        if dates != self.are_dates:
            raise CDSRError(f"{log.place(int(rows[0]))}: the files mix numbers and dates; prepare them in one form")
        invalid = (times == np.iinfo(np.int64).min) if times.dtype == np.int64 else ~np.isfinite(times)
        if not dates:
            invalid |= times < 0
        if invalid.any():
            row = int(np.argmax(invalid))
            wanted = f"a date like {self.pattern}" if self.pattern else "a date (ISO 8601)" if dates else "a time"
            raise CDSRError(
                f"{log.place(int(rows[row]))}: '{column[row].as_py()}' is not {wanted}; correct the line, "
                f"or say how times are written by --time_unit or --time_format"
            )
        return times

    def unit_of(self, times: np.ndarray) -> str:
        """The unit of all times read.

        Raises:
            CDSRError: if small and large numbers point to different units.
        """
        if self.are_dates:
            return "dates"
        if self.unit != "auto":
            return self.unit
        positive = times[times > 0]
        if not len(positive):
            return "s"
        least, most = (next(u for u, below in _BELOW.items() if v < below) for v in (positive.min(), positive.max()))
        if least != most:
            raise CDSRError(
                f"the times reach from {positive.min()} to {positive.max()}, which look like different units; "
                f"say which one holds by --time_unit {'|'.join(UNITS)}"
            )
        return most

    def _as_dates(self, column: pa.Array) -> np.ndarray:
        if pa.types.is_floating(column.type):  # numbers of json, like 20220408
            column = column.cast(pa.int64(), safe=False)
        text = pd.Series(column.cast(pa.string()).to_pandas())
        dates = pd.to_datetime(text, format=self.pattern or "ISO8601", utc=True, errors="coerce")
        return dates.astype("datetime64[us, UTC]").to_numpy(dtype="datetime64[us]").view(np.int64)


def _as_numbers(column: pa.Array) -> np.ndarray | None:
    """int64 if all are whole numbers, else float64; None if some are no numbers."""
    try:
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        pass
    try:
        return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None


def _forced(column: pa.Array) -> np.ndarray:
    return pd.to_numeric(pd.Series(column.to_pandas()), errors="coerce").to_numpy(np.float64)


def to_seconds(times: np.ndarray, unit: str, origin: int | float) -> np.ndarray:
    """Seconds since `origin`, a time in the same unit; int64 where all are whole."""
    since, ticks = times - origin, TICKS[unit]
    if since.dtype == np.int64:
        return since // ticks if not (since % ticks).any() else since / ticks
    seconds = np.round(since / ticks, 6)  # float64 holds microseconds at unix times, and no more
    return seconds.astype(np.int64) if np.array_equal(seconds, np.floor(seconds)) else seconds


def as_date(time: int | float, unit: str) -> str:
    """ISO 8601 in UTC, to the second; the plain number of seconds where no calendar reaches."""
    seconds = time / TICKS[unit]
    try:
        return pd.Timestamp(int(seconds), unit="s", tz="UTC").strftime("%Y-%m-%dT%H:%M:%SZ")
    except (pd.errors.OutOfBoundsDatetime, OverflowError):
        return f"{seconds:.0f} s"


def are_whole_days(times: np.ndarray, unit: str) -> bool:
    return not (times % (DAY * TICKS[unit])).any()


def missing(column: pa.Array) -> np.ndarray:
    """[n] bool: True where there is no value (null, nan or empty text)."""
    nothing = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        nothing = pc.or_(nothing, pc.equal(column, "").fill_null(True))
    return np.asarray(nothing)
