"""What happened in each epoch: csv files, and one line for the log."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from torch import Tensor

from recbole_cdsr.checkpoint import write_bytes

# Shown in the log where an epoch has them, with these short names.
SHOWN = {"loss_cross_domain": "a_cd", "factor": "factor", "cosine": "cosine"}


def write(path: Path, rows: list[dict[str, float]]) -> None:
    """Writes the rows as csv, atomically; a value that a row lacks stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def write_transfer(path: Path, epochs: list[tuple[int, Tensor]], domain_names: list[str]) -> None:
    """Writes the attention between domains as csv: epoch, query_domain, key_domain, share.

    Args:
        epochs: number of an epoch, and the mean attention [C, C] of queries of a domain (row) on keys of a domain.
        domain_names: C names, that of padding first, which is left out.
    """
    write(
        path,
        [
            {"epoch": epoch, "query_domain": query, "key_domain": key, "share": share}
            for epoch, matrix in epochs
            for query, row in zip(domain_names[1:], matrix[1:, 1:].tolist(), strict=True)
            for key, share in zip(domain_names[1:], row, strict=True)
        ],
    )


def sentence(row: dict[str, float], valid_metric: str, best_epoch: int) -> str:
    """One epoch in one line."""
    parts = [f"epoch {row['epoch']}", f"loss {row['loss']:.4f}"]
    parts += [f"{short} {row[name]:.3f}" for name, short in SHOWN.items() if name in row]
    if "valid_score" in row:
        best = " (best)" if best_epoch == row["epoch"] else ""
        parts.append(f"valid {valid_metric} {row['valid_score']:.4f}{best}")
    return ", ".join([*parts, f"{row['train_seconds']:.1f} s"])
