"""`recbole-cdsr prepare SOURCE`: options, and the way from a reader to the written files."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from pathlib import Path

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import nearest
from recbole_cdsr.prepare import SOURCES
from recbole_cdsr.prepare.arrange import REPEATS, Rules, arrange
from recbole_cdsr.prepare.filters import Limits
from recbole_cdsr.prepare.summary import summarise, table
from recbole_cdsr.prepare.times import to_seconds
from recbole_cdsr.prepare.write import META, check_target, write


def main(arguments: list[str]) -> int:
    """Returns 0, or 130 after Ctrl-C; raises CDSRError for what a user can mend."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: recbole-cdsr prepare SOURCE [options]      recbole-cdsr prepare SOURCE --help\n\nsources:")
        print("\n".join(f"  {name:<10} {text}" for name, text in SOURCES.items()))
        return 0
    name = arguments[0]
    if name not in SOURCES:
        advice = nearest(name, list(SOURCES), "run `recbole-cdsr prepare --help` to see all sources")
        raise CDSRError(f"there is no source '{name}'; {advice}")
    source = importlib.import_module(f"recbole_cdsr.prepare.{'tabular' if name == 'csv' else name}")
    parser = _parser(name)
    source.add_options(parser)
    _add_rules(parser)
    options = parser.parse_args(arguments[1:])
    options.show_progress = not (options.quiet or options.json)
    try:
        summary = prepare(source, options, ["recbole-cdsr", "prepare", *arguments])
    except KeyboardInterrupt:
        print("\nstopped; the data set is not written", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(summary, indent=1, ensure_ascii=False))
        return 0
    print(table(summary, options.tie_seed))
    if not options.quiet:
        folder = Path(options.out)
        path = "" if folder.parent == Path("dataset") else f" --data_path {folder.parent}"
        print(f"\nwritten: {folder}; go on with: recbole-cdsr run --dataset {folder.name}{path}")
    return 0


def prepare(source, options: argparse.Namespace, command: list[str]) -> dict:
    """Reads, arranges and writes.

    Returns:
        the summary, which prepared.json holds too.
    """
    folder = Path(options.out)
    check_target(folder, options.overwrite)
    limits = Limits(options.core, options.min_user, options.min_domains)
    rules = Rules(limits, options.repeats, options.tie_seed, options.prefix_items)
    reading = source.read(options)
    events, removed = arrange(reading.events, rules)
    summary = summarise(reading, events, removed)
    origin = 0 if options.keep_time else events.time.min().item()
    seconds = to_seconds(events.time, events.unit, origin)
    write(folder, events, seconds, {"command": command, "rebased_to_0": not options.keep_time, **summary})
    return summary


def _parser(source: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"recbole-cdsr prepare {source}",
        description=f"Reads {SOURCES[source]}. docs/data.md shows the files and commands.",
        epilog=f"Writes <name>.inter, <name>.item and {META} into --out, whose last part is the name.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--files",
        required=True,
        nargs="+",
        action="extend",
        metavar="[DOMAIN=]FILE",
        help="files to read, plain or gzip",
    )
    add("--out", required=True, metavar="DIR", help="folder of the data set, like dataset/my_set")
    return parser


def _add_rules(parser: argparse.ArgumentParser) -> None:
    """What every source takes."""
    add = parser.add_argument
    add("--overwrite", action="store_true", help="replace the data set in --out")
    add("--core", type=_count, default=0, metavar="N", help="least events of an item, and of a user in a domain")
    add("--min_user", type=_count, default=0, metavar="N", help="least events of a user, over all domains")
    add("--min_domains", type=_count, default=0, metavar="N", help="least domains of a user; 2: only users who cross")
    add(
        "--at_least",
        type=_least,
        nargs="+",
        action="extend",
        metavar="COLUMN=NUMBER",
        help="leave out events with a smaller number in the column, like rating=4",
    )
    repeats = "; ".join(f"{name}: {text}" for name, text in REPEATS.items())
    add("--repeats", choices=REPEATS, default="keep", help=f"{repeats} (default: keep)")
    add(
        "--tie_seed", type=_count, metavar="N", help="shuffle events of a user with equal times (default: files' order)"
    )
    add("--prefix_items", action="store_true", help="name items DOMAIN:ITEM, so that one of two domains becomes two")
    add("--keep_time", action="store_true", help="write times as they are, not as seconds since the first event")
    add("--drop_incomplete", action="store_true", help="leave out events without user, item, time or domain")
    add("--quiet", action="store_true", help="print only the table")
    add("--json", action="store_true", help="print only the numbers, for other programs")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 on")
    return int(text)


def _least(text: str) -> tuple[str, float]:
    found = re.fullmatch(r"(.+)=(-?\d+(?:\.\d+)?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not COLUMN=NUMBER, like rating=4")
    return found[1], float(found[2])
