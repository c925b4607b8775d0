"""What controlling transfer costs: CPU seconds of a training epoch of each model against its bare backbone.

    OMP_NUM_THREADS=1 python benchmarks/bench_transfer.py [--dataset ml-100k] [--rounds 3]

Whole epochs in turn in one process, process CPU time on one thread, medians; the first round warms up. Defaults of
every model. Ratios hold for the machine they were taken on; compare no absolute times.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig

# Name -> (model, keys, name of its bare backbone).
VARIANTS = {
    "sasrec, bare": ("AutoCDSR", {"objective_weighting": "none"}, "sasrec, bare"),
    "AutoCDSR": ("AutoCDSR", {}, "sasrec, bare"),
    "AutoCDSR, weights every 10 steps": ("AutoCDSR", {"weight_refresh_every": 10}, "sasrec, bare"),
    "AutoCDSR+": ("AutoCDSR+", {}, "sasrec, bare"),
    "HSTU, bare": ("HSTU", {}, "HSTU, bare"),
    "TAPE-DDSR-HSTU, attention inside domains": ("TAPE-DDSR-HSTU", {"tape": "off", "ddsr": "off"}, "HSTU, bare"),
    "TAPE-DDSR-HSTU": ("TAPE-DDSR-HSTU", {}, "HSTU, bare"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    runs, seconds = {}, {name: [] for name in VARIANTS}
    for name, (model, keys, _) in VARIANTS.items():
        keys = {"data_path": options.data_path, "show_progress": False, **keys}
        config = CDSRConfig(model, options.dataset, config_dict=keys)
        runs[name] = quick_start.build(config, quick_start.prepare(config), folder / str(len(runs)))
    for turn in range(options.rounds + 1):
        for name, run in runs.items():
            taken = run.trainer._train_epoch(run.train, turn)["train_cpu_seconds"]
            if turn:
                seconds[name].append(taken)
    print("| model | CPU s per epoch, median (min-max) | this / bare backbone, median of rounds |\n|---|---|---|")
    for name, values in seconds.items():
        bare = seconds[VARIANTS[name][2]]
        ratio = statistics.median(own / other for own, other in zip(values, bare, strict=True))
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f}) | {ratio:.2f} |")


if __name__ == "__main__":
    main()
