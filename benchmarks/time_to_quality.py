"""CPU seconds of training until a validation score is reached that every run reaches, from finished runs.

    python benchmarks/time_to_quality.py "AutoCDSR=runs/a1,runs/a2" "SASRec of RecBole=runs/s1,runs/s2"

The score is the lowest of the best validation scores of all runs: no run is asked for more than it gave. Reads the
folders of `recbole-cdsr run` and of stock_recbole.py; time spent on ranking is not counted on either side.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pandas as pd


def main(groups: list[str]) -> None:
    curves = {}
    for group in groups:
        name, _, folders = group.partition("=")
        curves[name] = [curve(Path(folder)) for folder in folders.split(",")]
    score = min(run["score"].max() for runs in curves.values() for run in runs)
    print(f"CPU seconds of training until validation NDCG@10 (macro) first reaches {score:.4f}\n")
    print("| model | each run | mean | to the first row |\n|---|---|---|---|")
    first = None
    for name, runs in curves.items():
        seconds = [float(run.loc[run["score"].ge(score).idxmax(), "seconds"]) for run in runs]
        mean = statistics.mean(seconds)
        first = first or mean
        print(f"| {name} | {', '.join(f'{value:.0f}' for value in seconds)} | {mean:.0f} | {mean / first:.1f} |")


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
