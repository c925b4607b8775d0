"""`recbole-cdsr tune`: a search from a space to the best settings."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from recbole_cdsr.config import CDSRConfig, plain
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import model_name
from recbole_cdsr.tune.plan import PLAN, SCHEDULERS, SEARCHES, Search
from recbole_cdsr.tune.space import grid, space_of
from recbole_cdsr.yaml_values import merged, parse_keys

DEFAULTS = {"samples": 20, "scheduler": "asha", "search": "random", "seed": 1, "grace_epochs": 3}
DEFAULTS |= {"cpus_per_trial": 1.0, "gpus_per_trial": 0.0, "max_failures": 3}
EPILOG = """Any other --key value is the same in all trials. Spaces are yaml files, see docs/tune.md and
properties/search/<Model>.yaml. The test events are ranked once, by the best trial."""


def main(argv: list[str]) -> int:
    """Searches, and writes trials.csv, best.yaml and report.html.

    Returns:
        0; 130 after Ctrl-C.
    """
    options, keys = _options(argv)
    out = Path(options.out)
    search = _kept(options, keys, out) if options.resume else _planned(options, keys, argv)
    logging.getLogger("ray").setLevel(logging.ERROR)
    from recbole_cdsr.tune.cluster import ray_started, refuse_too_much
    from recbole_cdsr.tune.search import run
    from recbole_cdsr.tune.trial import data_of

    try:
        with ray_started(options.ray_address, options.dashboard, search.gpus_per_trial > 0):
            refuse_too_much(search.cpus_per_trial, search.gpus_per_trial)
            data = data_of(search.config({}))  # before the folder is made: bad data leave nothing behind
            if not options.resume:
                search.keep(out)
            print(
                f"{_count(search)} trials of {search.model} on {search.dataset} in {out}", file=sys.stderr, flush=True
            )
            found = run(search, out, data, options.resume, options.max_concurrent)
        _conclude(found, search, out)
    except KeyboardInterrupt:
        told = f"; go on with: recbole-cdsr tune --resume --out {out}" if (out / PLAN).is_file() else ""
        print(f"\nstopped{told}", file=sys.stderr)
        return 130
    return 0


def _conclude(found: Any, search: Search, out: Path) -> None:
    """Tests the best trial, and writes and prints what came of the search."""
    from recbole_cdsr.tune import outcome

    trials = outcome.trials_of(found, search)
    best = outcome.best_of(trials)
    best_file = outcome.write_best(best, search, out)
    result = outcome.test_best(best, out)
    written = outcome.write(trials, search, out, result, best_file)
    print(f"\n{outcome.spent(trials, search)}\n\n{outcome.listed(trials, search)}\n\nthe best one:\n{result['table']}")
    print("written: " + ", ".join(map(str, [best_file, *written])))


def _options(argv: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        prog="recbole-cdsr tune",
        description="search for hyper-parameters with Ray Tune, on validation events only",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("-m", "--model", help="name of a model, ours or RecBole's (default: AutoCDSR)")
    parser.add_argument("-d", "--dataset", help="name of a data set (default: ml-100k)")
    parser.add_argument("--space", metavar="FILE", help="yaml or .hyper file (default: properties/search/<Model>.yaml)")
    parser.add_argument("--samples", type=int, help="number of trials (default: 20; a grid has its own)")
    parser.add_argument("--scheduler", help=f"{' | '.join(SCHEDULERS)} (default: asha)")
    parser.add_argument("--search", help=f"{' | '.join(SEARCHES)} (default: random)")
    parser.add_argument("--seed", type=int, help="of the search and of every trial (default: 1)")
    parser.add_argument("--grace_epochs", type=int, help="no trial is stopped earlier (default: 3)")
    parser.add_argument("--cpus_per_trial", type=float, help="threads of a trial (default: 1)")
    parser.add_argument("--gpus_per_trial", type=float, help="may be a part, such as 0.25 (default: 0)")
    parser.add_argument("--max_failures", type=int, help="how often a trial whose process died goes on (default: 3)")
    parser.add_argument("--max_concurrent", type=int, help="trials at a time (default: as many as fit)")
    parser.add_argument(
        "--config_files", nargs="+", action="extend", default=[], metavar="FILE", help="yaml files of keys"
    )
    parser.add_argument("--out", default="runs/tune", metavar="DIR", help="folder of the search (default: runs/tune)")
    parser.add_argument("--resume", action="store_true", help="go on with the search in --out")
    parser.add_argument(
        "--ray_address", help="of a running cluster, such as 10.0.0.1:6379 (default: this machine alone)"
    )
    parser.add_argument("--dashboard", action="store_true", help="start Ray's dashboard, on 127.0.0.1")
    options, rest = parser.parse_known_args(argv)
    for name in ("samples", "cpus_per_trial", "grace_epochs", "max_concurrent"):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise CDSRError(f"--{name} must be above 0, but is {value:g}")
    for name in ("gpus_per_trial", "max_failures"):
        if (value := getattr(options, name)) is not None and value < 0:
            raise CDSRError(f"--{name} must be 0 or more, but is {value:g}")
    return options, parse_keys(rest)


def _planned(options: argparse.Namespace, keys: dict[str, Any], argv: list[str]) -> Search:
    in_files = merged(options.config_files)
    model = model_name(str(options.model or in_files.get("model", "AutoCDSR")))
    dataset = str(options.dataset or in_files.get("dataset", "ml-100k"))
    asked = {name: getattr(options, name) for name in DEFAULTS}
    asked = {name: DEFAULTS[name] if value is None else value for name, value in asked.items()}
    in_files = {key: value for key, value in in_files.items() if key not in ("model", "dataset")}
    settings = {**in_files, **keys, "seed": asked["seed"]}
    # Workers stand in other folders.
    settings["data_path"] = plain(CDSRConfig(model, dataset, config_dict=settings))["data_path"]
    command = shlex.join(["recbole-cdsr", "tune", *argv])
    search = Search(model, dataset, settings, space_of(model, options.space), **asked, command=command)
    search.check()
    return search


def _kept(options: argparse.Namespace, keys: dict[str, Any], out: Path) -> Search:
    given = [name for name in ("model", "dataset", "space", *DEFAULTS) if getattr(options, name) is not None]
    given += [*options.config_files, *keys]
    if given:
        raise CDSRError(
            f"--resume goes on with what was asked for before, so '{given[0]}' cannot be given; leave it out"
        )
    return Search.kept(out)


def _count(search: Search) -> int:
    return len(grid(search.space)) if search.search == "grid" else search.samples
