"""A markdown table of strategies over seeds from finished runs: quality, attention across domains, weights, cost.

    python benchmarks/objectives_table.py "none=runs/none-1,runs/none-2" "mgda=runs/mgda-1,runs/mgda-2"

Reads result.json, history.csv and transfer.csv of each folder. Attention across domains is that of validation rows at
the best epoch: the share that is not on the query's own domain, mean over the domains of queries.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path

from quality_table import spread

HEADS = [
    "strategy", "seeds", "macro NDCG@10", "worst domain", "valid macro", "attention across domains",
    "weight a_cd / rec", "cosine", "conflicts", "clipped", "epochs (best)", "CPU s per epoch",
]  # fmt: skip


def main(groups: list[str]) -> None:
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
    for group in groups:
        name, _, folders = group.partition("=")
        runs = [read(Path(folder)) for folder in folders.split(",")]
        cells = [name, ", ".join(str(run["seed"]) for run in runs)]
        for key in ("macro", "worst", "valid", "across", "ratio", "cosine", "conflict", "clipped"):
            values = [run[key] for run in runs if run[key] is not None]
            cells.append(spread(values) if values else "")
        cells.append(", ".join(run["epochs"] for run in runs))
        cells.append(f"{statistics.mean(run['seconds'] for run in runs):.1f}")
        print("| " + " | ".join(cells) + " |")


def read(folder: Path) -> dict:
    """What one run contributes; None where its strategy has no such number."""
    result = json.loads((folder / "result.json").read_text())
    history, transfer = (list(csv.DictReader((folder / name).open())) for name in ("history.csv", "transfer.csv"))
    best, domains = result["best_epoch"], result["candidates"]["domain"]["per_domain"]
    of_best = [row for row in transfer if int(row["epoch"]) == best]
    own = [float(row["share"]) for row in of_best if row["query_domain"] == row["key_domain"]]
    unknown = 1 - sum(float(row["share"]) for row in of_best) / len(own)  # on tokens without a domain
    weights = [[mean(history, f"weight_{name}") for name in ("cross_domain", "rec")]]
    return {
        "seed": result["seed"],
        "macro": result["candidates"]["domain"]["macro"]["ndcg@10"],
        "worst": min(values["ndcg@10"] for values in domains.values()),
        "valid": result["valid_score"],
        "across": 1 - unknown - statistics.mean(own),
        "ratio": next((a / r for a, r in weights if a is not None and r), None),
        **{name: mean(history, name) for name in ("cosine", "conflict", "clipped")},
        "epochs": f"{result['epochs']} ({best})",
        "seconds": result["train_cpu_seconds"] / result["epochs"],
    }


def mean(history: list[dict[str, str]], column: str) -> float | None:
    """Mean of a column over the epochs that have it."""
    values = [float(row[column]) for row in history if row.get(column)]
    return statistics.mean(values) if values else None


if __name__ == "__main__":
    main(sys.argv[1:])
