"""Users per second and memory of `Recommender.recommend`, and the time to load a bundle, on synthetic weights.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/bench_recommend.py [--users 100000] [--items 28000] [--rounds 3]

The model is AutoCDSR with its shipped sizes and untrained weights: scores cost the same, whatever they say. Histories
have 21 events in the mean (1 + a geometric number, at most 200), items uniform over the catalogue. Asked are k = 10
items without those seen, in one domain and among all. Loading is timed in a process of its own: with the imports of
torch and RecBole, and without. CPU seconds hold on a busy machine, wall seconds do not; the waiting policy keeps
threads that wait for each other from counting.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import high_water

from recbole_cdsr import Recommender, quick_start
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.recommend import bundle

LOAD = """
import sys, time
wall, cpu = time.perf_counter(), time.process_time()
from recbole_cdsr.recommend.recommender import Recommender
imported = time.perf_counter() - wall, time.process_time() - cpu
Recommender.load(sys.argv[1])
print(*imported, time.perf_counter() - wall, time.process_time() - cpu)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=28_000)
    parser.add_argument("--domains", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        path = write_bundle(Path(folder), options)
        size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
        print(f"{options.items} items, {options.domains} domains, bundle of {size:.1f} MB, 2 threads")
        report_loading(path, options.rounds)
        report_answers(Recommender.load(path), options)


def write_bundle(folder: Path, options: argparse.Namespace) -> Path:
    """A bundle of AutoCDSR for a data set in which each item was met once."""
    data = folder / "synthetic"
    data.mkdir()
    rows = [f"u{n // 10}\ti{n}\t{n}" for n in range(options.items)]
    (data / "synthetic.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(rows) + "\n")
    rows = [f"i{n}\td{n % options.domains}" for n in range(options.items)]
    (data / "synthetic.item").write_text("item_id:token\tdomain_id:token\n" + "\n".join(rows) + "\n")
    config = CDSRConfig("AutoCDSR", "synthetic", config_dict={"data_path": str(folder), "use_gpu": False})
    built = quick_start.build(config, quick_start.prepare(config), folder)
    bundle.write(folder / "bundle", config, built.model, built.train.dataset, "", histories=True)
    return folder / "bundle"


def report_loading(path: Path, rounds: int) -> None:
    runs = []
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-c", LOAD, path], check=True, capture_output=True, text=True)
        runs.append([float(value) for value in done.stdout.split()])
    import_wall, import_cpu, wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
    print(
        f"loading: {wall - import_wall:.2f} s (CPU {cpu - import_cpu:.2f} s); "
        f"with the imports {wall:.2f} s (CPU {cpu:.2f} s)"
    )


def report_answers(recommender: Recommender, options: argparse.Namespace) -> None:
    rng = np.random.default_rng(1)
    lengths = np.minimum(1 + rng.geometric(1 / 20, options.users), 200)
    drawn = [f"i{n}" for n in rng.integers(0, options.items, lengths.sum()).tolist()]
    stops = np.cumsum(lengths).tolist()
    histories = [drawn[stop - length : stop] for stop, length in zip(stops, lengths.tolist(), strict=True)]
    recommender.recommend(histories[:1000])
    before = high_water()
    print(f"{options.users} users, {len(drawn)} events; peak memory before the questions {before:.0f} MB")
    for domain in ("d0", None):
        walls, cpus = [], []
        for _ in range(options.rounds):
            wall, cpu = time.perf_counter(), time.process_time()
            answers = recommender.recommend(histories, domain)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
            assert len(answers) == options.users and len(answers[0].items) == 10
            del answers
        wall, cpu = statistics.median(walls), statistics.median(cpus)
        print(
            f"{'all items' if domain is None else 'one domain':<10} {options.users / wall:7.0f} users/s "
            f"({wall:.1f} s, CPU {cpu:.1f} s)"
        )
    peak = high_water()
    print(f"peak memory {peak:.0f} MB, {peak - before:.0f} MB more than before, answers included")


if __name__ == "__main__":
    main()
