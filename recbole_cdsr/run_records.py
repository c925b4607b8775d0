"""What a run folder tells of its training, finished or not: settings, one row per epoch, attention between domains."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.run_folder import CONFIG, HISTORY, TRANSFER
from recbole_cdsr.yaml_values import read_yaml

TRANSFER_COLUMNS = ["epoch", "query_domain", "key_domain", "share"]

Points = dict[int, float]  # epoch -> value, in the order of epochs; epochs without a value are left out


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder holds it.

    Attributes:
        name: what tables and figures call it.
        settings: of config.yaml; empty if the file is missing.
        epochs: all epochs of history.csv, in order.
        history: column -> points, for every column that has one.
        transfer: (query domain, key domain) -> points: mean attention of queries of one domain on keys of another.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    epochs: list[int]
    history: dict[str, Points]
    transfer: dict[tuple[str, str], Points]

    @property
    def best_epoch(self) -> int | None:
        """The epoch that the run keeps: the last one with the highest validation score; None without validation."""
        scores = self.history.get("valid_score", {})
        return max(scores, key=lambda epoch: (scores[epoch], epoch), default=None)

    @property
    def domains(self) -> list[str]:
        """Names of domains in the order of transfer.csv."""
        return list(dict.fromkeys(name for pair in self.transfer for name in pair))


def read_runs(folders: list[str]) -> list[RunRecord]:
    """The records of run folders; called by their folders' names, or by their paths where names are equal.

    Raises:
        CDSRError: if a folder is given twice, holds no history, or a file in it is damaged.
    """
    resolved = [Path(folder).resolve() for folder in folders]
    for folder, count in Counter(resolved).items():
        if count > 1:
            raise CDSRError(f"the run {folder} is given {count} times; name each run once")
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [record_of(Path(folder), name) for folder, name in zip(folders, names, strict=True)]


def valid_metric(records: list[RunRecord]) -> str:
    """The metric that epochs are chosen by, as the settings spell it; all of them if runs differ."""
    found = dict.fromkeys(str(record.settings.get("valid_metric", "valid_metric")) for record in records)
    return " or ".join(found)


def largest_pairs(records: list[RunRecord], most: int = 5) -> list[tuple[str, str]]:
    """The pairs of two domains with the largest mean share over epochs in any of the runs, largest first."""
    means: dict[tuple[str, str], float] = {}
    for record in records:
        for (query, key), points in record.transfer.items():
            if query != key:
                means[query, key] = max(means.get((query, key), 0.0), mean(points))
    return sorted(means, key=means.__getitem__, reverse=True)[:most]


def arrow(pair: tuple[str, str]) -> str:
    """The pair in text: queries of the first domain attend to keys of the second."""
    return " → ".join(pair)


def mean(points: Points) -> float:
    """The mean over the epochs that have a value."""
    return math.fsum(points.values()) / len(points)


def record_of(folder: Path, name: str = "") -> RunRecord:
    """The record of one run folder; CDSRError as in `read_runs`."""
    if not folder.is_dir():
        raise CDSRError(f"there is no run folder {folder}; give the folder that a run has written")
    if not (folder / HISTORY).is_file():
        raise CDSRError(f"{folder} holds no {HISTORY}; give the folder of a run that has finished an epoch")
    epochs, history = _read_history(folder / HISTORY)
    if not epochs:
        raise CDSRError(f"{folder / HISTORY} has no epoch yet; wait for the first one")
    settings = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    transfer = _read_transfer(folder / TRANSFER) if (folder / TRANSFER).is_file() else {}
    return RunRecord(name, folder, settings, epochs, history, transfer)


def _read_history(path: Path) -> tuple[list[int], dict[str, Points]]:
    rows: dict[int, dict[str, float]] = {}
    for place, row in _rows(path, ["epoch"]):
        epoch = _epoch(place, row.pop("epoch"))
        if epoch in rows:
            raise CDSRError(f"{place}: epoch {epoch} stands there a second time; mend the file or run again")
        rows[epoch] = {column: _number(place, column, text) for column, text in row.items()}
    epochs = sorted(rows)
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    points = {column: {e: rows[e][column] for e in epochs if math.isfinite(rows[e][column])} for column in columns}
    return epochs, {column: values for column, values in points.items() if values}


def _read_transfer(path: Path) -> dict[tuple[str, str], Points]:
    transfer: dict[tuple[str, str], Points] = {}
    for place, row in _rows(path, TRANSFER_COLUMNS):
        epoch, share = _epoch(place, row["epoch"]), _number(place, "share", row["share"])
        points = transfer.setdefault((row["query_domain"], row["key_domain"]), {})
        if epoch in points:
            raise CDSRError(
                f"{place}: the pair and epoch {epoch} stand there a second time; mend the file or run again"
            )
        if share < 0 or share > 1 + 1e-4:  # rounding of a mean in float32
            raise CDSRError(f"{place}: the share {share:g} does not lie between 0 and 1; mend the file or run again")
        points[epoch] = share
    finite = {
        pair: {e: points[e] for e in sorted(points) if math.isfinite(points[e])} for pair, points in transfer.items()
    }
    return {pair: points for pair, points in finite.items() if points}


def _rows(path: Path, needed: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of a csv file with a header that holds the `needed` columns, and its place in words."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if missing := [name for name in needed if name not in header]:
                raise CDSRError(f"{path} has no column '{missing[0]}'; it is not the file that the run wrote")
            if len(set(header)) < len(header):
                raise CDSRError(f"{path} names a column twice; it is not the file that the run wrote")
            for cells in reader:
                place = f"{path}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise CDSRError(
                        f"{place}: {len(cells)} values for {len(header)} columns; mend the file or run again"
                    )
                yield place, dict(zip(header, cells, strict=True))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise CDSRError(f"{path} cannot be read as csv ({error}); mend the file or run again") from None


def _epoch(place: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise CDSRError(f"{place}: the epoch is '{text}', not a whole number; mend the file or run again")
    return int(text)


def _number(place: str, column: str, text: str) -> float:
    """The number; NaN for a value that is not there."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise CDSRError(f"{place}: {column} is '{text}', not a number; mend the file or run again") from None
