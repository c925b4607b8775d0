"""What balancing two objectives costs: every strategy of AutoCDSR against the same model with `none`.

    OMP_NUM_THREADS=1 python benchmarks/bench_objectives.py [--dataset ml-100k] [--rounds 5] [--parts time ...]

time: epochs of all variants in turn in one process, process CPU time on one thread; one round warms up.
catalogues: the same, a few steps per epoch, on generated events over 20,000 and 100,000 items in five domains.
memory: for each variant a process of its own, with histories of 50, 200 and 1,000 events, with attention dropout
(explicit softmax) and without; what the first steps add at their peak to what the process held before them (Linux).

Ratios hold for the machine they were taken on; compare no absolute times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path

import torch
from measuring import in_a_process, measured

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.data.synthetic import planted_rule, write_atomic

VARIANTS = {
    "none": {"objective_weighting": "none"},
    "fixed": {"objective_weighting": "fixed"},
    "preference": {"objective_weighting": "preference"},
    "mgda": {"objective_weighting": "mgda"},
    "preference every 10": {"objective_weighting": "preference", "weight_refresh_every": 10},
}
PARTS = ("time", "catalogues", "memory")
CATALOGUES = (20_000, 100_000)
LENGTHS = (50, 200, 1000)
N_DOMAINS = 5
N_TARGETS = 2048


class FirstSteps:
    """The first `steps` batches of each epoch of a training loader."""

    def __init__(self, loader, steps: int):
        self.loader, self.steps = loader, steps
        self.set_epoch = loader.set_epoch

    def __len__(self) -> int:
        return min(self.steps, len(self.loader))

    def __iter__(self):
        return itertools.islice(self.loader, self.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of an epoch in large catalogues, and for memory")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--peak", metavar="JSON", help=argparse.SUPPRESS)  # the one measurement of a child process
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.peak:
            print(peak_of_steps(options, json.loads(options.peak), Path(folder)))
            return
        if "time" in options.parts:
            compare_time(options.dataset, options, Path(folder))
        if "catalogues" in options.parts:
            for n_items in CATALOGUES:
                name = generate(Path(folder), n_items)
                large = argparse.Namespace(**{**vars(options), "data_path": folder})
                compare_time(name, large, Path(folder), options.steps)
        if "memory" in options.parts:
            compare_memory(options, Path(folder))


def configure(dataset: str, data_path: str, keys: dict) -> CDSRConfig:
    given = {"data_path": data_path, "train_batch_size": N_TARGETS, "show_progress": False}
    return CDSRConfig("AutoCDSR", dataset, config_dict={**given, **keys})


def compare_time(dataset: str, options: argparse.Namespace, folder: Path, steps: int | None = None) -> None:
    """Prints the table of one data set; `steps` limits an epoch."""
    data = quick_start.prepare(configure(dataset, options.data_path, VARIANTS["none"]))
    train = FirstSteps(data[1][0], steps) if steps else data[1][0]
    runs = {
        name: quick_start.build(configure(dataset, options.data_path, keys), data, folder / "runs")
        for name, keys in VARIANTS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        # Every second round in reverse, so that no variant always follows the same one.
        for name, run in list(runs.items())[:: -1 if turn % 2 else 1]:
            taken = run.trainer._train_epoch(train, turn)["train_cpu_seconds"]
            if turn:  # the first round warms up
                seconds[name].append(taken)
    length = f"{steps} steps" if steps else "an epoch"
    print(f"\n{dataset}, {runs['none'].model.n_items - 1} items, {options.rounds} rounds of {length}, 1 thread")
    print("| variant | CPU s, median (min-max) | this / none, median of rounds |\n|---|---|---|")
    for name, values in seconds.items():
        ratio = statistics.median(value / base for value, base in zip(values, seconds["none"], strict=True))
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f}) | {ratio:.2f} |")


def generate(folder: Path, n_items: int, n_users: int = 3000, n_visits: tuple[int, int] = (12, 18)) -> str:
    """Writes generated events, about 3 per visit, as atomic files below `folder`; returns the data set's name."""
    name = f"generated-{n_items}"
    write_atomic(folder / name, name, planted_rule(n_users, n_items // N_DOMAINS, N_DOMAINS, n_visits=n_visits))
    return name


def compare_memory(options: argparse.Namespace, folder: Path) -> None:
    """Prints MB at the peak for every variant, and the ratio to `none`."""
    dataset = generate(folder, 1_500, n_users=60, n_visits=(400, 450))
    cases = [(length, probability) for length in LENGTHS for probability in (0.5, 0.0)]
    print(f"\nMB that a step adds at its peak (and this / none), batches of {N_TARGETS} targets")
    print("| variant | " + " | ".join(f"L {length}, dropout {p}" for length, p in cases) + " |")
    print("|---|" + "---|" * len(cases))
    peaks: dict[str, list[float]] = {}
    for name, keys in VARIANTS.items():
        settings = [{"MAX_ITEM_LIST_LENGTH": length, "attn_dropout_prob": p, **keys} for length, p in cases]
        peaks[name] = [measure_peak(dataset, folder, options.steps, setting) for setting in settings]
        cells = [f"{peak:.1f} ({peak / none:.2f})" for peak, none in zip(peaks[name], peaks["none"], strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def measure_peak(dataset: str, folder: Path, steps: int, keys: dict) -> float:
    """`peak_of_steps` in a fresh process."""
    options = ["--dataset", dataset, "--data_path", folder, "--steps", steps, "--peak", json.dumps(keys)]
    # Tensors get pages of their own, which go back when they are freed: the peak is that of what is alive.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
    return in_a_process(__file__, *options, env=allocator)[0]


def peak_of_steps(options: argparse.Namespace, keys: dict, folder: Path) -> float:
    """MB that the first steps of this process add, at their peak, to what it held before."""
    config = configure(options.dataset, options.data_path, keys)
    run = quick_start.build(config, quick_start.prepare(config), folder)
    return measured(lambda: run.trainer._train_epoch(FirstSteps(run.train, options.steps), 0))[1]


if __name__ == "__main__":
    main()
