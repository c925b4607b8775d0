"""CPU seconds of a training epoch: AutoCDSR here against SASRec in RecBole, in turn, in one process, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/bench_epoch.py [--dataset ml-100k] [--rounds 3]

Same width, depth, loss and batch size (targets per step). RecBole's side is its own data set, loader, model and trainer
step, unchanged but for compat.py; a few of its steps are timed and scaled to the epoch, ours are whole epochs. It is
timed twice: as installed, where the import of its SINE has switched autograd's anomaly detection on, and without that.
Ratios hold for the machine they were taken on; compare no absolute times.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from stock_recbole import our_config, stock, write_ordered

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig

STOCK = {"RecBole": False, "RecBole as installed (anomaly detection on)": True}
OURS = {"none": {"objective_weighting": "none"}, "preference": {"objective_weighting": "preference"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--train_batch_size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="RecBole steps timed in each round")
    options = parser.parse_args()
    options.seed = 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        options.out = Path(folder)
        compare(options)


def compare(options: argparse.Namespace) -> None:
    write_ordered(our_config(options), options.out / "data" / "ordered")
    _, train_data, trainer = stock(options, options.out / "data", "ordered")
    runs = {}
    for name, keys in OURS.items():
        given = {"data_path": options.data_path, "train_batch_size": options.train_batch_size, "show_progress": False}
        config = CDSRConfig("AutoCDSR", options.dataset, config_dict={**given, **keys})
        runs[name] = quick_start.build(config, quick_start.prepare(config), options.out / name)
    torch.autograd.set_detect_anomaly(False)
    seconds: dict[str, list[float]] = {name: [] for name in [*STOCK, *runs]}
    for turn in range(options.rounds + 1):
        taken = {}
        for name, detects in STOCK.items():
            with torch.autograd.set_detect_anomaly(detects):
                taken[name] = stock_epoch(trainer, train_data, options.steps)
        for name, run in runs.items():
            taken[name] = run.trainer._train_epoch(run.train, turn)["train_cpu_seconds"]
        if turn:  # the first round warms up
            for name, value in taken.items():
                seconds[name].append(value)
    print(f"{options.dataset}, batch of {options.train_batch_size} targets, {options.rounds} rounds, 1 thread")
    print("| side | CPU s per epoch, median (min-max) | RecBole / this, median of rounds |\n|---|---|---|")
    for name, values in seconds.items():
        ratio = statistics.median(ref / value for ref, value in zip(seconds["RecBole"], values, strict=True))
        print(f"| {name} | {statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f}) | {ratio:.1f} |")


def stock_epoch(trainer, train_data, steps: int) -> float:
    """CPU seconds of `steps` full batches, loading included, scaled to all targets."""
    trainer.model.train()
    start, targets = time.process_time(), 0
    for interaction in itertools.islice(train_data, steps):
        trainer.optimizer.zero_grad()
        trainer.model.calculate_loss(interaction).backward()
        trainer.optimizer.step()
        targets += len(interaction)
    return (time.process_time() - start) * train_data.sample_size / targets


if __name__ == "__main__":
    main()
