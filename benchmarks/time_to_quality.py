"""CPU seconds of training until validation scores are reached that every run reaches, from finished runs.

    python benchmarks/time_to_quality.py "AutoCDSR=runs/a1,runs/a2" "SASRec of RecBole=runs/s1,runs/s2"

The highest score is the lowest of the best validation scores of all runs: no run is asked for more than it gave. Single
epochs are noisy, so lower scores stand beside it. Mean over runs, and how many times as long as the first row takes.
Reads the folders of `recbole-cdsr run` and of stock_recbole.py; time spent on ranking is not counted on either side.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pandas as pd

SHARES = (0.9, 0.95, 1.0)  # of the highest score


def main(groups: list[str]) -> None:
    curves = {}
    for group in groups:
        name, _, folders = group.partition("=")
        curves[name] = [curve(Path(folder)) for folder in folders.split(",")]
    highest = min(run["score"].max() for runs in curves.values() for run in runs)
    scores = [share * highest for share in SHARES]
    print("CPU seconds of training until validation NDCG@10 (macro) first reaches\n")
    print("| model | " + " | ".join(f"{score:.4f}" for score in scores) + " |\n|---" + "|---" * len(scores) + "|")
    first: list[float] = []
    for name, runs in curves.items():
        means = [statistics.mean(seconds_to(score, run) for run in runs) for score in scores]
        first = first or means
        cells = (f"{mean:.0f} ({mean / base:.1f} x)" for mean, base in zip(means, first, strict=True))
        print(f"| {name} | " + " | ".join(cells) + " |")


def seconds_to(score: float, run: pd.DataFrame) -> float:
    return float(run.loc[run["score"].ge(score).idxmax(), "seconds"])


def curve(folder: Path) -> pd.DataFrame:
    """Validation score and CPU seconds of training so far, after each epoch."""
    if (folder / "progress.csv").exists():  # stock_recbole.py
        progress = pd.read_csv(folder / "progress.csv", names=["epoch", "loss", "seconds"])
        scores = json.loads((folder / "result.json").read_text())["valid_scores"]
        return progress.assign(score=[scores[str(epoch)] for epoch in progress["epoch"]])
    history = pd.read_csv(folder / "history.csv")
    return pd.DataFrame({"score": history["valid_score"], "seconds": history["train_cpu_seconds"].cumsum()})


if __name__ == "__main__":
    main(sys.argv[1:])
