"""`recbole-cdsr compare`: from a plan to tables, or from finished runs to tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from recbole_cdsr.compare import formats, report
from recbole_cdsr.compare.cells import (
    Runner,
    Usage,
    begun,
    finished,
    refuse_other_settings,
    seconds_left,
    span,
    usage_of,
)
from recbole_cdsr.compare.plan import Cell, Plan, keep_plan, make_plan
from recbole_cdsr.compare.records import find_runs, read_finished
from recbole_cdsr.compare.tables import make_tables
from recbole_cdsr.config import CDSRConfig, plain, refuse_special_models
from recbole_cdsr.data.sources import ensure_built_in, require
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.quick_start import prepare
from recbole_cdsr.run_folder import LAST
from recbole_cdsr.yaml_values import parse_keys, parse_value, read_yaml

DEFAULT_OUT = "runs/compare"
EPILOG = """Any other --key value holds for all models; keys of one model stand in a plan file:
models: {AutoCDSR: {}, "AutoCDSR none": {model: AutoCDSR, objective_weighting: none}}, datasets: [ml-100k],
seeds: [1, 2, 3], keys: {epochs: 50}, single_domain: [AutoCDSR]. The same command goes on where it was stopped."""


def main(argv: list[str]) -> int:
    """Trains what the plan asks for and is not finished, and writes the tables of what is.

    Returns:
        0; 1 if a cell failed; 130 after Ctrl-C.
    """
    options, keys = _options(argv)
    if options.from_folders:
        given = [name for name in ("models", "datasets", "seeds", "plan", "single_domain") if getattr(options, name)]
        if given or keys:
            raise CDSRError(f"--from trains nothing, so '{[*given, *keys][0]}' has no meaning there; leave it out")
        only_one = len(options.from_folders) == 1
        out = Path(options.out or (options.from_folders[0] if only_one else DEFAULT_OUT))
        return _report(find_runs(options.from_folders), out)
    out, plan = Path(options.out or DEFAULT_OUT), make_plan(_content(options, keys))
    configs = {(d, v): checked_config(plan, d, v) for d in plan.datasets for v in plan.models}
    cells = plan.cells(lambda dataset: prepare(configs[dataset, next(iter(plan.models))])[0].true_domain_names[1:])
    for cell in cells:
        wanted = plain(configs[cell.dataset, cell.variant])
        wanted |= {key: cell.settings[key] for key in ("seed", "train_domains")}
        refuse_other_settings(out / cell.name, cell, wanted)
    trained = {(cell.dataset, cell.variant) for cell in cells if begun(out / cell.name)}
    if not options.dry_run:
        for config in configs.values():  # here, since several cells would build a data set at the same time
            make_data(config)
    keep_plan(plan, out, lambda *pair: pair in trained, write=not options.dry_run)
    if options.dry_run:
        return show(cells, out, options.jobs)
    failed = train(cells, out, options.jobs)
    if failed is None:
        return 130
    done = [folder for cell in cells if finished(folder := out / cell.name)]
    if done:
        _report(done, out)
    return status_of(failed, cells)


def make_data(config: CDSRConfig) -> None:
    """Builds a data set that is built in; CDSRError for another that is not there, before many runs fail one by one."""
    name, folder = config["dataset"], Path(config["data_path"])
    ensure_built_in(name, folder, config["domain_groups"])
    require(name, folder)


def train(cells: list[Cell], out: Path, jobs: int) -> list[Usage] | None:
    """Trains what is not finished; the cells that failed, None after Ctrl-C, which is told."""
    try:
        return Runner(out, jobs, lambda line: print(line, file=sys.stderr, flush=True)).train(cells)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return None


def status_of(failed: list[Usage], cells: list[Cell]) -> int:
    """Exit status: 1 if cells failed, which is told."""
    if failed:
        print(f"{len(failed)} of {len(cells)} runs failed; the same command tries them again", file=sys.stderr)
    return int(bool(failed))


def _options(argv: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        prog="recbole-cdsr compare",
        description="train many models on many data sets with many seeds, and write the tables of a paper",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--models", type=_list, help="names, separated by commas")
    parser.add_argument("--datasets", type=_list, help="names, separated by commas")
    parser.add_argument("--seeds", type=seeds_of, help="whole numbers, separated by commas")
    parser.add_argument("--single_domain", type=_list, help="models to train on each domain alone too, or all")
    parser.add_argument("--plan", metavar="FILE", help="yaml file with models, datasets, seeds, keys, single_domain")
    parser.add_argument("--out", metavar="DIR", help=f"folder of the comparison (default: {DEFAULT_OUT})")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, which share the cores (default: 1)")
    parser.add_argument("--dry_run", action="store_true", help="list the runs and what is left, and train nothing")
    parser.add_argument(
        "--from",
        dest="from_folders",
        nargs="+",
        metavar="DIR",
        help="make the tables of the finished runs in these folders, and train nothing",
    )
    options, rest = parser.parse_known_args(argv)
    if options.jobs < 1:
        raise CDSRError(f"--jobs must be at least 1, but is {options.jobs}")
    return options, parse_keys(rest)


def _list(text: str) -> list:
    return [part.strip() for part in text.split(",") if part.strip()]


def seeds_of(text: str) -> list:
    """Seeds separated by commas, as values; a plan refuses what is no whole number."""
    return [parse_value(seed) for seed in _list(text)]


def _content(options: argparse.Namespace, keys: dict[str, Any]) -> dict[str, Any]:
    """The parts of the plan, from the plan file and from the command line."""
    content = read_yaml(options.plan) if options.plan else {}
    given = {part: getattr(options, part) for part in ("models", "datasets", "seeds", "single_domain")}
    given = {part: value for part, value in given.items() if value is not None}
    if given.get("single_domain") == ["all"]:
        given["single_domain"] = True
    if twice := [part for part in given if part in content]:
        raise CDSRError(f"{options.plan} and --{twice[0]} both say '{twice[0]}'; keep one of them")
    own = content.get("keys") or {}
    return {**content, **given, "keys": {**own, **keys} if isinstance(own, dict) else own}


def checked_config(plan: Plan, dataset: str, variant: str) -> CDSRConfig:
    """The settings of a variant, checked before anything is trained."""
    settings = plan.settings(dataset, variant)
    keys = {key: value for key, value in settings.items() if key not in ("model", "dataset")}
    try:
        config = CDSRConfig(settings["model"], dataset, config_dict={**keys, "show_progress": False})
        refuse_special_models(config)
    except CDSRError as error:
        raise CDSRError(f"{variant} on {dataset}: {error}") from None
    return config


def show(cells: list[Cell], out: Path, jobs: int) -> int:
    """Prints every cell with its state, and an estimate of the time left."""
    usages = {cell: usage_of(out / cell.name) for cell in cells}
    waiting = [cell for cell in cells if not finished(out / cell.name)]
    for cell in cells:
        folder, usage = out / cell.name, usages[cell]
        state = "finished" if cell not in waiting else "to go on" if (folder / LAST).is_file() else "to do"
        why = f" (failed before: {usage.failure})" if usage and usage.failure and cell in waiting else ""
        print(f"{state:<9} {folder}{why}")
    left = seconds_left(waiting, [usage for cell, usage in usages.items() if usage and cell not in waiting], jobs)
    rest = f", about {span(left)} with --jobs {jobs}" if waiting and left is not None else ""
    print(f"{len(waiting)} of {len(cells)} runs to do{rest}")
    return 0


def _report(folders: list[Path], out: Path) -> int:
    """Writes the tables and the report of finished runs, and prints the first table of each data set."""
    runs = read_finished(folders)
    tables = make_tables(runs)
    written = formats.write(tables, out)
    shown = {table.dataset: table for table in reversed(tables.tables)}
    print("\n".join(formats.markdown(table) for table in reversed(shown.values())))
    written += report.write(runs, tables, out)
    print("written: " + ", ".join(str(path) for path in written if path.parent == out))
    return 0
