"""CPU seconds and peak memory of `recbole-cdsr prepare`, by reader, on generated files of the real formats.

    python benchmarks/bench_prepare.py [--lines 1000000] [--keep DIR]

Users act by a power law in two or more domains; each reader runs in a process of its own, so that its peak is its own.
`idle` is the process with all libraries loaded and nothing read. Reviews carry a text of about 200 characters.
Linux only: the peak is VmHWM, since ru_maxrss of a fresh process begins at its parent's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import high_water

BLOCK = 100_000
TEXT = "Works as described and came on time. " * 6
USERS, ITEMS = 150_000, 60_000


def draw(lines: int, seed: int) -> pd.DataFrame:
    """Events of one domain: user and item numbers by a power law, seconds since 1970."""
    rng = np.random.default_rng(seed)
    user = (USERS * rng.random(lines) ** 2).astype(np.int64)
    item = (ITEMS * rng.random(lines) ** 3).astype(np.int64)
    seconds = rng.integers(1_300_000_000, 1_600_000_000, lines)
    return pd.DataFrame({"user": user, "item": item, "seconds": seconds, "rating": rng.integers(1, 6, lines)})


def write_amazon(folder: Path, lines: int, year: str) -> list[str]:
    """Json lines of two categories, gzip, with the fields of a review."""
    files = []
    names = {"2014": "reviews_{}_5.json.gz", "2023": "{}.jsonl.gz"}[year]
    for number, category in enumerate(("Books", "Movies_and_TV")):
        path = folder / names.format(category)
        events = draw(lines // 2, number)
        with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
            for row in events.itertuples():
                file.write(json.dumps(review(row, number, year)) + "\n")
        files.append(str(path))
    return files


def review(row, domain: int, year: str) -> dict:
    if year == "2023":
        return {
            "rating": float(row.rating), "title": "Good", "text": TEXT, "images": [],
            "asin": f"B{domain}{row.item:08d}", "parent_asin": f"B{domain}{row.item:08d}",
            "user_id": f"AE{row.user:026d}", "timestamp": row.seconds * 1000 + row.item % 1000, "helpful_vote": 0,
            "verified_purchase": True,
        }  # fmt: skip
    return {
        "reviewerID": f"A{row.user:013d}", "asin": f"B{domain}{row.item:08d}", "reviewerName": "J. Doe",
        "helpful": [0, 2], "reviewText": TEXT, "overall": float(row.rating), "summary": "Good",
        "unixReviewTime": row.seconds // 86_400 * 86_400, "reviewTime": "07 9, 2012",
    }  # fmt: skip


def write_ratings(folder: Path, lines: int) -> list[str]:
    files = []
    for number, category in enumerate(("Books", "Movies_and_TV")):
        events = draw(lines // 2, number)
        users, items = events["user"].map("A{:013d}".format), events["item"].map(f"B{number}{{:08d}}".format)
        table = pd.DataFrame({"i": items, "u": users, "r": events["rating"], "t": events["seconds"]})
        files.append(str(folder / f"{category}.csv"))
        table.to_csv(files[-1], header=False, index=False)
    return files


def write_csv(folder: Path, lines: int) -> list[str]:
    events = draw(lines, 0)
    table = pd.DataFrame(
        {
            "user": events["user"].map("u{}".format),
            "item": events["item"].map("i{}".format),
            "ts": pd.to_datetime(events["seconds"], unit="s").dt.strftime("%Y-%m-%dT%H:%M:%S"),
            "domain": (events["item"] % 4).map("d{}".format),
        }
    )
    table.to_csv(folder / "log.csv", index=False)
    table.to_parquet(folder / "log.parquet")
    return [str(folder / "log.csv"), str(folder / "log.parquet")]


def write_kuairand(folder: Path, lines: int) -> list[str]:
    events = draw(lines, 0)
    log = pd.DataFrame({"user_id": events["user"], "video_id": events["item"], "date": 20220408, "hourmin": 1200})
    log["time_ms"] = events["seconds"] * 1000 + events["item"] % 1000
    flags = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
    for number, name in enumerate(flags):
        log[name] = (events["rating"] > number).astype(int)
    log = log.assign(play_time_ms=9000, duration_ms=12000, profile_stay_time=0, comment_stay_time=0)
    log = log.assign(is_profile_enter=0, is_rand=0, tab=events["rating"])
    log.to_csv(folder / "log_standard_4_08_to_4_21_pure.csv", index=False)
    item = np.arange(ITEMS)
    videos = pd.DataFrame({"video_id": item, "author_id": item // 3, "video_type": "NORMAL", "upload_dt": "2022-04-01"})
    videos = videos.assign(upload_type="LongImport", visible_status="public", video_duration=12000.0, server_width=720)
    videos = videos.assign(server_height=1280, music_id=item // 2, music_type=(item % 4).astype(float), tag="12,65")
    videos.to_csv(folder / "video_features_basic_pure.csv", index=False)
    return [str(folder / "log_standard_4_08_to_4_21_pure.csv"), str(folder / "video_features_basic_pure.csv")]


def write_douban(folder: Path, lines: int) -> list[str]:
    files = []
    for number, name in enumerate(("movie", "book", "music")):
        events = draw(lines // 3, number)
        table = pd.DataFrame({"user_id": events["user"], f"{name}_id": events["item"], "rating": events["rating"]})
        day = pd.to_datetime(events["seconds"], unit="s").dt.strftime("%Y-%m-%d")
        table = table.assign(labels="", comment="好看" * 10, time=day, ID=np.arange(len(table))).astype(str)
        files.append(str(folder / f"{name}reviews_cleaned.txt"))
        table.to_csv(files[-1], sep="\t", index=False, quoting=1)
    return files


def commands(folder: Path, lines: int) -> dict[str, list[str]]:
    """Writes the files; name -> arguments of `recbole-cdsr prepare`."""
    parts = {name: folder / name for name in ("2014", "2018", "2023", "csv", "kuairand", "douban")}
    for part in parts.values():
        part.mkdir(parents=True, exist_ok=True)
    log, parquet = write_csv(parts["csv"], lines)
    columns = ["--user", "user", "--item", "item", "--time", "ts", "--domain", "domain"]
    kuairand, videos = write_kuairand(parts["kuairand"], lines)
    return {
        "csv": ["csv", "--files", log, *columns],
        "parquet": ["csv", "--files", parquet, *columns],
        "amazon 2014 json": ["amazon", "--year", "2014", "--files", *write_amazon(parts["2014"], lines, "2014")],
        "amazon 2018 csv": ["amazon", "--year", "2018", "--files", *write_ratings(parts["2018"], lines)],
        "amazon 2023 json": ["amazon", "--year", "2023", "--files", *write_amazon(parts["2023"], lines, "2023")],
        "kuairand": ["kuairand", "--files", kuairand, "--videos", videos, "--at_least", "is_click=0"],
        "douban": ["douban", "--files", *write_douban(parts["douban"], lines)],
    }


def measure(arguments: list[str]) -> None:
    """In a process of its own: prints CPU seconds, seconds, and peak MB, of this process only."""
    from recbole_cdsr.prepare import amazon, command, douban, kuairand, tabular  # noqa: F401

    begin = time.perf_counter(), time.process_time()
    if arguments:
        command.main([*arguments, "--quiet", "--core", "2"])
    seconds, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    print(json.dumps([cpu, seconds, high_water()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--keep", metavar="DIR", help="folder for the generated files (default: removed afterwards)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        runs = {"idle": [], **commands(folder, options.lines)}
        print(f"{options.lines:,} lines     CPU s  seconds  peak MB  MB on disk")
        for name, arguments in runs.items():
            size = sum(Path(word).stat().st_size for word in arguments if Path(word).is_file()) / 1e6
            target = ["--out", str(folder / "out" / name.replace(" ", "_")), "--overwrite"] if arguments else []
            words = [sys.executable, __file__, "measure", *arguments, *target]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            cpu, seconds, peak = json.loads(done.stdout.splitlines()[-1])
            print(f"{name:<18}  {cpu:5.1f}    {seconds:5.1f}    {peak:5.0f}       {size:5.0f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2:])
    else:
        main()
