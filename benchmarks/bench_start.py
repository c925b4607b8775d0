"""How long a command takes to begin: the help, and the first training batch of ml-100k; each in fresh processes.

    python benchmarks/bench_start.py [--rounds 3]

Seconds of wall clock, medians with the smallest and the largest: a busy machine makes them longer. RecBole's side makes
its own data set and first batch of the same files.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

OURS = """
from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig
config = CDSRConfig("AutoCDSR", "ml-100k", config_dict={"show_progress": False})
next(iter(quick_start.prepare(config)[1][0]))
"""
RECBOLE = """
import sys
from recbole_cdsr import compat
compat.apply()
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
load = {"inter": ["user_id", "item_id", "timestamp"]}
keys = {"data_path": "dataset/", "load_col": load, "train_neg_sample_args": None}
config = Config("SASRec", "ml-100k", config_dict=keys)
next(iter(data_preparation(config, create_dataset(config))[0]))
"""
CASES = {
    "recbole-cdsr --help": ["-m", "recbole_cdsr", "--help"],
    "first batch of AutoCDSR on ml-100k": ["-c", OURS],
    "first batch of RecBole's SASRec on ml-100k": ["-c", RECBOLE],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(options.rounds + 1):
        for name, arguments in CASES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            if turn:  # the first round fills caches of files, and prepares ml-100k where it is new
                seconds[name].append(time.perf_counter() - start)
    print("| from the command to | seconds, median (min-max) |\n|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f}) |")


if __name__ == "__main__":
    main()
