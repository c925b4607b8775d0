"""All comparisons with RecBole and all costs of this package, written to results/benchmarks.md; about 15 minutes.

    OMP_NUM_THREADS=1 python benchmarks/run_all.py [--out results/benchmarks.md]

The other scripts of this folder go further; each can be run alone.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

from recbole_cdsr.environment import commit, versions

HERE = Path(__file__).resolve().parent
PARTS = (
    ("Training: an epoch", "bench_epoch.py --rounds 2 --steps 2"),
    ("Evaluation: full sort", "bench_rank.py --rows 1024 --rounds 3"),
    ("Large catalogues: a training step", "bench_catalogue.py"),
    ("Where a training step goes", "profile_step.py"),
    ("Control of transfer: an epoch against the bare backbone", "bench_transfer.py"),
    (
        "Attention inside domains",
        "bench_intra_domain.py --lengths 200 1000 --domains 2 10 --rounds 5 --parts attention blocks",
    ),
    ("Start-up", "bench_start.py"),
    ("Data: from files to the first training batch", "bench_data.py --events 1000000 5000000"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "benchmarks.md")
    options = parser.parse_args()
    start, found = time.monotonic(), []
    for title, words in PARTS:  # written after each part: a run that is stopped leaves what it has measured
        found += ["", f"## {title}", "", f"`python benchmarks/{words}`", "", run(words).strip()]
        options.out.write_text("\n".join([*head(start), *found]) + "\n", encoding="utf-8")
    print(f"written: {options.out}")


def head(start: float) -> list[str]:
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        "# Benchmarks",
        "",
        f"{datetime.date.today()}; commit {commit()}; {named}; {os.cpu_count()} cores, one thread, no GPU used. "
        f"Written by `make bench` in {(time.monotonic() - start) / 60:.0f} minutes. Both sides ran in turn on the same "
        "machine: read the ratios, the absolute numbers hold for one machine.",
    ]


def run(words: str) -> str:
    script, *arguments = words.split()
    print(f"== {words}", file=sys.stderr, flush=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, HERE / script, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout if done.returncode == 0 else f"{done.stdout}\nfailed with status {done.returncode}"


if __name__ == "__main__":
    main()
