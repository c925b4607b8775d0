"""CPU seconds of an epoch: AutoCDSR+ with 2, 5 and 20 domains against AutoCDSR, in one process, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/bench_domains.py [--dataset ml-100k] [--domains 2 5 20] [--rounds 3]

The events are those of the data set; its items are dealt out evenly to so many domains, so that nothing else changes.
The models take each step in turn, on the same rows, so that a slow second of the machine meets all of them. Ratios hold
for the machine they were taken on; compare no absolute times.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.data.sources import ensure_built_in


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--domains", type=int, nargs="+", default=[2, 5, 20])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = CDSRConfig("AutoCDSR", options.dataset, config_dict={"data_path": options.data_path})
    ensure_built_in(options.dataset, Path(config["data_path"]), config["domain_groups"])
    with tempfile.TemporaryDirectory() as folder:
        for weighting in ("preference", "none"):
            compare(options, Path(config["data_path"]), Path(folder), weighting)


def compare(options: argparse.Namespace, source: Path, folder: Path, weighting: str) -> None:
    sides = [("AutoCDSR", options.domains[0]), *(("AutoCDSR+", n) for n in options.domains)]
    runs = [build(deal_out(source, folder, n), model, folder, weighting) for model, n in sides]
    torch.autograd.set_detect_anomaly(False)
    rounds = [train_in_turn(runs, epoch) for epoch in range(options.rounds + 1)][1:]  # the first round warms up
    print(f"{options.dataset}, {weighting}, {options.rounds} rounds, 1 thread")
    heads = ["model", "domains", "CPU s per epoch, median", "to AutoCDSR", f"to {sides[1][1]} domains"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for column, (model, n) in enumerate(sides):
        seconds = statistics.median(row[column] for row in rounds)
        ratios = (statistics.median(row[column] / row[base] for row in rounds) for base in (0, 1))
        print(f"| {model} | {n} | {seconds:.2f} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


def train_in_turn(runs: list[quick_start.Run], epoch: int) -> list[float]:
    """CPU seconds of an epoch of each run."""
    seconds, steps = [0.0] * len(runs), []
    for run in runs:
        run.trainer.model.train()
        run.train.set_epoch(epoch)
        steps.append(run.trainer.steps.run(run.train, len(run.train), epoch))
    while True:
        for place, step in enumerate(steps):
            start = time.process_time()
            done = next(step, None) is None
            seconds[place] += time.process_time() - start
        if done:
            return seconds


def deal_out(source: Path, folder: Path, n_domains: int) -> str:
    """The data set in `source` with its items in `n_domains` domains of equal size; its name below `folder`."""
    name = f"dealt{n_domains}"
    target = folder / name
    target.mkdir(exist_ok=True)
    (target / f"{name}.inter").write_bytes((source / f"{source.name}.inter").read_bytes())
    header, *lines = (source / f"{source.name}.item").read_text(encoding="utf-8").splitlines()
    place = [column.split(":")[0] for column in header.split("\t")].index("item_id")
    items = "".join(f"{line.split(chr(9))[place]}\td{i % n_domains}\n" for i, line in enumerate(lines))
    (target / f"{name}.item").write_text("item_id:token\tdomain_id:token\n" + items, encoding="utf-8")
    return name


def build(dataset: str, model: str, folder: Path, weighting: str) -> quick_start.Run:
    keys = {"data_path": str(folder), "objective_weighting": weighting, "show_progress": False}
    config = CDSRConfig(model, dataset, config_dict=keys)
    return quick_start.build(config, quick_start.prepare(config), folder / f"{model}-{dataset}-{weighting}")


if __name__ == "__main__":
    main()
