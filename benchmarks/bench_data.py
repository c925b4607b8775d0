"""From files to training rows: time and peak memory here and in RecBole, each case in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/bench_data.py [--events 1000000 5000000] [--recbole_up_to 5000000]

Events are drawn: five domains, 50 events a user on average, items by a power law, times in seconds. Ready means that
the first training batch is there: `ours` reads the files, `keeping` reads them and keeps what it prepared, `kept` takes
that; the files are in the system's memory in all cases. RecBole's side is its own data set and loader, unchanged but
for compat.py; it has no domains to read. Seconds of CPU, all threads; memory is the peak above that of the imports, and
counts pages of mapped files. 100 million events take 5 GB of disk in --folder (by default that for temporary files).
Ratios hold for the machine they were taken on; compare no absolute numbers.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from measuring import in_a_process, measured

from recbole_cdsr.data import cache

N_DOMAINS, EVENTS_PER_USER = 5, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument(
        "--recbole_up_to", type=int, default=5_000_000, help="larger sets are read by this package only"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", help="where the files are written, and removed afterwards")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)  # the one measurement of a child process
    options = parser.parse_args()
    if options.side:
        print(*SIDES[options.side[0]](Path(options.side[1])))
        return
    print("| events | users | items | side | CPU s | RecBole / this | peak, MB | RecBole / this |\n" + "|---" * 8 + "|")
    for events in options.events:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            users, items = write(Path(folder) / "drawn", events)
            found: dict[str, list[float]] = {}
            for side in ["RecBole"] * (events <= options.recbole_up_to) + ["ours", "keeping", "kept"]:
                runs = []
                for _ in range(options.rounds):
                    if side == "keeping":
                        shutil.rmtree(Path(folder) / "drawn" / cache.FOLDER, ignore_errors=True)
                    runs.append(in_a_process(__file__, "--side", side, folder))
                found[side] = sorted(runs)[len(runs) // 2]
            for side, numbers in found.items():
                cells = [f"{events:,}", f"{users:,}", f"{items:,}", side]
                for number, theirs in zip(numbers, found.get("RecBole", (None, None)), strict=True):
                    cells += [f"{number:.1f}", f"{theirs / number:.1f}" if theirs else ""]
                print("| " + " | ".join(cells) + " |", flush=True)


def write(folder: Path, events: int) -> tuple[int, int]:
    """An .inter and an .item file; numbers of users and items."""
    folder.mkdir()
    rng = np.random.default_rng(events)
    users, items = events // EVENTS_PER_USER, max(20_000, events // 50)
    item = (items * rng.random(events) ** 2).astype(np.int64)
    columns = {
        "user_id:token": rng.integers(0, users, events),
        "item_id:token": item,
        "timestamp:float": 1_600_000_000 + rng.integers(0, 2 * 365 * 86_400, events),
    }
    table = pa.table({"item_id:token": np.arange(items), "domain_id:token": np.arange(items) % N_DOMAINS})
    for path, content in (("inter", pa.table(columns)), ("item", table)):
        with open(folder / f"{folder.name}.{path}", "wb") as file:
            file.write("\t".join(content.column_names).encode() + b"\n")
            pacsv.write_csv(content, file, pacsv.WriteOptions(include_header=False, delimiter="\t"))
    return users, items


def ours(data_path: Path, data_cache: bool = False) -> tuple[float, float]:
    from recbole_cdsr import quick_start
    from recbole_cdsr.config import CDSRConfig

    keys = {"data_path": str(data_path), "show_progress": False, "data_cache": data_cache}
    config = CDSRConfig("AutoCDSR", "drawn", config_dict=keys)
    return measured(lambda: next(iter(quick_start.prepare(config)[1])))


def recbole(data_path: Path) -> tuple[float, float]:
    from recbole_cdsr import compat

    compat.apply()
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    sys.argv = sys.argv[:1]
    keys = {
        "data_path": str(data_path),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "train_neg_sample_args": None,
        "user_inter_num_interval": "[3,inf)",
    }
    config = Config("SASRec", "drawn", config_dict=keys)
    return measured(lambda: next(iter(data_preparation(config, create_dataset(config))[0])))


with_cache = functools.partial(ours, data_cache=True)
SIDES = {"RecBole": recbole, "ours": ours, "keeping": with_cache, "kept": with_cache}


if __name__ == "__main__":
    main()
