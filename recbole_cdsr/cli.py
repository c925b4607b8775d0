"""The command line, `recbole-cdsr COMMAND`. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
from typing import Any

from recbole_cdsr import __version__
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import BUILT_IN_DATASETS, NOT_OFFERED, nearest, own_models, recbole_models
from recbole_cdsr.study import STUDIES

CONSOLE = "recbole-cdsr console"
# Of several processes started by torchrun the first speaks for all.
IS_FIRST = os.environ.get("RANK", "0") == "0"
COMMANDS = {
    "run": "train a model, choose its best epoch on validation data, and report test ranks per domain",
    "evaluate": "rank the test events of a finished run again, from its checkpoint",
    "compare": "train many models on many data sets with many seeds, and write the tables of a paper",
    "tune": "search for hyper-parameters with Ray Tune, on validation events only",
    "prepare": "turn raw logs into the files of a data set",
    "recommend": "recommend items to users of the data set or to anyone with a history",
    "export": "write the bundle of a run, from which it recommends without the data set",
    "study": "write tables and figures about finished or interrupted runs",
    "doctor": "tell what of the installed packages is in the way, and how to mend it",
}
# Commands with a module of their own: where, and its function.
ELSEWHERE = {
    "compare": ("recbole_cdsr.compare.command", "main"),
    "tune": ("recbole_cdsr.tune.command", "main"),
    "prepare": ("recbole_cdsr.prepare.command", "main"),
    "recommend": ("recbole_cdsr.recommend.command", "recommend"),
    "export": ("recbole_cdsr.recommend.command", "export"),
    "doctor": ("recbole_cdsr.doctor", "main"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 on success, 2 for something the user can mend, 1 if `evaluate` does not find the run's numbers again, a run of
        `compare` failed, or `doctor` finds that no run can work, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(overview())
            return 0
        if argv[0] == "--version":
            print(__version__)
            return 0
        if argv[0] not in COMMANDS:
            advice = nearest(argv[0], list(COMMANDS), "run `recbole-cdsr --help` to see all commands")
            raise CDSRError(f"there is no command '{argv[0]}'; {advice}")
        if argv[0] in ELSEWHERE:
            module, function = ELSEWHERE[argv[0]]
            return getattr(importlib.import_module(module), function)(argv[1:])
        return {"run": _run, "evaluate": _evaluate, "study": _study}[argv[0]](argv[1:])
    except CDSRError as error:
        if IS_FIRST if error.told_here is None else error.told_here:
            print(f"error: {error}", file=sys.stderr)
        return 2


def overview() -> str:
    """What `--help` prints: commands, models, data sets and where keys are documented."""
    commands = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    datasets = "\n".join(f"  {name:<10} {text}" for name, text in BUILT_IN_DATASETS.items())
    sequential = ", ".join(sorted(set(recbole_models(("sequential_recommender",)).values()) - set(NOT_OFFERED)))
    return f"""recbole-cdsr {__version__}: cross-domain sequential recommendation on RecBole

usage: recbole-cdsr COMMAND [options]      recbole-cdsr COMMAND --help

commands:
{commands}

models (--model):
  of this package: {", ".join(sorted(own_models().values()))}
  of RecBole: {sequential}, Pop, BPR and other general recommenders

data sets (--dataset):
{datasets}
  any other name NAME is read from dataset/NAME/NAME.inter and NAME.item (--data_path changes dataset/);
  `recbole-cdsr prepare` makes these files from raw logs

keys: any key of RecBole or of this package as --key value or --key=value. They are documented in
  properties/overall.yaml, properties/model/<Model>.yaml and https://recbole.io/docs/user_guide/config_settings.html"""


def _run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="recbole-cdsr run",
        description=COMMANDS["run"],
        epilog="Any other --key value (or --key=value) sets that key; values are read as yaml. "
        "See properties/overall.yaml and properties/model/<Model>.yaml for the keys.",
        allow_abbrev=False,
    )
    parser.add_argument("-m", "--model", help="name of a model, ours or RecBole's (default: AutoCDSR)")
    parser.add_argument("-d", "--dataset", help="name of a data set (default: ml-100k)")
    parser.add_argument(
        "--config_files", nargs="+", action="extend", default=[], metavar="FILE", help="yaml files, later ones win"
    )
    parser.add_argument("--run_dir", help="folder of this run (default: runs/<model>-<dataset>-<time>-<hash>)")
    parser.add_argument(
        "--resume", nargs="?", const=True, metavar="DIR", help="go on with the run in DIR (or in --run_dir)"
    )
    _output_options(parser)
    options, rest = parser.parse_known_args(argv)
    from recbole_cdsr.yaml_values import parse_keys

    keys = parse_keys(rest)
    if options.quiet or options.json or not IS_FIRST:
        keys.setdefault("show_progress", False)
    files = [name for given in options.config_files for name in given.split()]
    _set_up_logging(options.quiet or options.json or not IS_FIRST)
    from recbole_cdsr import quick_start

    if isinstance(options.resume, str):
        if options.run_dir not in (None, options.resume):
            raise CDSRError(f"--resume names {options.resume} and --run_dir {options.run_dir}; give one of them")
        options.run_dir, options.resume = options.resume, True
    command = shlex.join(["python", "-m", "recbole_cdsr", "run", *argv])
    try:
        result = quick_start.run(
            options.model,
            options.dataset,
            files,
            keys,
            options.run_dir,
            bool(options.resume),
            command,
        )
    except quick_start.Interrupted as interrupted:
        if IS_FIRST:
            print(f"\nstopped; go on with: recbole-cdsr run --resume {interrupted}", file=sys.stderr)
        return 130
    _print_result(result, options)
    return 0


def _evaluate(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="recbole-cdsr evaluate", description=COMMANDS["evaluate"], allow_abbrev=False)
    parser.epilog = "--data_path, --gpu_id and --use_gpu may differ from those of the run."
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a run")
    _output_options(parser)
    options, rest = parser.parse_known_args(argv)
    _set_up_logging(True)
    from recbole_cdsr import quick_start
    from recbole_cdsr.yaml_values import parse_keys

    result = quick_start.evaluate(options.run, parse_keys(rest))
    _print_result(result, options)
    if IS_FIRST:
        told = {
            None: f"{options.run} holds no ranks to compare with: the run did not finish",
            True: "every rank is the one that the run wrote",
            False: f"the ranks differ from those in {options.run}/ranks.npz",
        }
        print(told[result["reproduced"]], file=sys.stderr)
    return int(result["reproduced"] is False)


def _study(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: recbole-cdsr study STUDY [options]      recbole-cdsr study STUDY --help\n\nstudies:")
        print("\n".join(f"  {name:<10} {text}" for name, text in STUDIES.items()))
        return 0
    if argv[0] not in STUDIES:
        advice = nearest(argv[0], list(STUDIES), "run `recbole-cdsr study --help` to see all studies")
        raise CDSRError(f"there is no study '{argv[0]}'; {advice}")
    return importlib.import_module(f"recbole_cdsr.study.{argv[0]}").main(argv[1:])


def _output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print only the final table")
    parser.add_argument("--json", action="store_true", help="print only result.json, for other programs")


def _print_result(result: dict[str, Any], options: argparse.Namespace) -> None:
    text = result.pop("table")
    if not IS_FIRST:
        return
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"\n{result['model']} on {result['dataset']}, {result['part']} events, best epoch {result['best_epoch']}:")
    print(text)
    if not options.quiet:
        print(f"\nrun folder: {result['run_dir']}")


def _set_up_logging(quiet: bool) -> None:
    """The log goes to stderr, so that stdout holds the result only."""
    import logging

    root = logging.getLogger()
    for handler in [one for one in root.handlers if one.get_name() == CONSOLE]:
        root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(CONSOLE)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    root.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
