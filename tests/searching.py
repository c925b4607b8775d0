"""What the tests of searches share: a search that takes seconds, and the table that it leaves."""

from __future__ import annotations

import csv
from pathlib import Path

SMALL = ["--dataset", "toy", "--hidden_size", "16", "--inner_size", "16", "--n_layers", "1"]


def trials(out: str = "out") -> list[dict[str, str]]:
    """The rows of trials.csv."""
    with open(Path(out) / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))
