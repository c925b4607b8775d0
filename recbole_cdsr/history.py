"""What happened in each epoch: a csv file, and one line for the log."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from recbole_cdsr.checkpoint import write_bytes

# Shown in the log where an epoch has them, with these short names.
SHOWN = {"loss_cross_domain": "a_cd", "factor": "factor", "cosine": "cosine"}


def write(path: Path, rows: list[dict[str, float]]) -> None:
    """Writes one line per epoch, atomically; a value that an epoch lacks stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def sentence(row: dict[str, float], valid_metric: str, best_epoch: int) -> str:
    """One epoch in one line."""
    parts = [f"epoch {row['epoch']}", f"loss {row['loss']:.4f}"]
    parts += [f"{short} {row[name]:.3f}" for name, short in SHOWN.items() if name in row]
    if "valid_score" in row:
        best = " (best)" if best_epoch == row["epoch"] else ""
        parts.append(f"valid {valid_metric} {row['valid_score']:.4f}{best}")
    return ", ".join([*parts, f"{row['train_seconds']:.1f} s"])
