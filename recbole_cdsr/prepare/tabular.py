"""Any csv, tsv or parquet log with named columns; also the parts that the other readers share."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.prepare.events import Collector, Fields, ItemDomains, Reading, tokens
from recbole_cdsr.prepare.logs import CsvLog, JsonLog, Log, ParquetLog
from recbole_cdsr.prepare.opening import Progress
from recbole_cdsr.prepare.times import UNITS, TimeReader, missing

JSON_ENDINGS = (".json", ".jsonl", ".ndjson")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", required=True, metavar="COLUMN", help="column of users")
    parser.add_argument("--item", required=True, metavar="COLUMN", help="column of items")
    parser.add_argument("--time", required=True, metavar="COLUMN", help="column of times: numbers or dates")
    parser.add_argument("--domain", metavar="COLUMN", help="column of domains, of the files or of --items")
    parser.add_argument(
        "--items", metavar="FILE", help="file with one line per item, whose columns --item and --domain tell its domain"
    )
    parser.add_argument("--separator", metavar="CHARACTER", help="between columns (default: tab for .tsv, else comma)")
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="names of the columns of files without a header")
    parser.add_argument("--time_unit", choices=("auto", *UNITS), default="auto", help="unit of times that are numbers")
    parser.add_argument(
        "--time_format", metavar="PATTERN", help="how dates are written, like %%d/%%m/%%Y (else ISO 8601)"
    )
    text_options(parser)


def text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip_bad_lines", action="store_true", help="leave out (and count) csv lines with a wrong number of columns"
    )
    parser.add_argument("--no_quotes", action="store_true", help="quotes are characters like any other")


def read(options: argparse.Namespace) -> Reading:
    separator = options.separator and options.separator.replace("\\t", "\t")
    text = {"separator": separator, "skip_bad_lines": options.skip_bad_lines, "quotes": not options.no_quotes}
    logs = [open_log(path, name, names=options.columns, **text) for path, name in named_files(options.files)]
    table, in_log = None, options.domain
    if options.items:
        if not options.domain:
            raise CDSRError(f"say which column of {options.items} holds the domains by --domain")
        table, in_log = read_item_domains(Path(options.items), options.item, options.domain, separator), None
    elif options.domain is None and any(log.domain is None for log in logs):
        raise CDSRError(
            "nothing names the domains: give a column by --domain, a table of items by --items, or one file per domain "
            "as --files NAME=FILE NAME=FILE"
        )
    fields = Fields(options.user, options.item, options.time, in_log, tuple(options.at_least or ()))
    times = TimeReader(options.time_unit, options.time_format)
    return collect([(log, fields) for log in logs], times, options, table)


def collect(
    sources: list[tuple[Log, Fields]],
    times: TimeReader,
    options: argparse.Namespace,
    table: ItemDomains | None = None,
) -> Reading:
    """Reads all logs. Of the options `drop_incomplete` and `show_progress` matter."""
    for log, fields in sources:  # before the first of them is read for minutes
        log.require(list(fields.types()))
    collector = Collector(times, options.drop_incomplete)
    progress = Progress([log.path for log, _ in sources], options.show_progress)
    with progress.bar:
        for log, fields in sources:
            collector.read(log, fields, progress)
    return collector.finish(table)


def named_files(texts: list[str]) -> list[tuple[Path, str | None]]:
    """Files and the domains they are given for: `FILE` or `DOMAIN=FILE`.

    Raises:
        CDSRError: if a file does not exist or is given twice.
    """
    found: list[tuple[Path, str | None]] = []
    for text in texts:
        name, equals, rest = text.partition("=")
        path, domain = (Path(rest), name) if equals and not Path(text).exists() else (Path(text), None)
        if not path.is_file():
            raise CDSRError(f"there is no file {path}; check the path given by --files")
        if any(path.samefile(other) for other, _ in found):
            raise CDSRError(f"the file {path} is given twice; give it once")
        found.append((path, domain))
    return found


def open_log(path: Path, domain: str | None = None, **csv_options) -> Log:
    """The log of the kind that the file's ending tells; anything unknown is csv."""
    endings = [ending.lower() for ending in path.suffixes[-2:] if ending.lower() != ".gz"]
    ending = endings[-1] if endings else ""
    if ending in (".parquet", ".pq"):
        return ParquetLog(path, domain)
    if ending in JSON_ENDINGS:
        return JsonLog(path, domain)
    return CsvLog(path, domain, **csv_options)


def read_item_domains(path: Path, item: str, domain: str, separator: str | None = None) -> ItemDomains:
    """Items and their domains; rows without a domain are passed over.

    Raises:
        CDSRError: if the file does not exist or an item has two domains.
    """
    if not path.is_file():
        raise CDSRError(f"there is no file {path}")
    log = open_log(path, separator=separator)
    parts = [
        pa.table({name: tokens(path, name, batch.columns) for name in (item, domain)})
        for batch in log.batches({item: pa.string(), domain: pa.string()}, Progress([path], False))
    ]
    table = pa.concat_tables(parts).combine_chunks()
    rows = np.flatnonzero(~(missing(table[item].combine_chunks()) | missing(table[domain].combine_chunks())))
    if not len(rows):
        raise CDSRError(f"{path} names no domain in column '{domain}'; choose another column by --domain")
    # What pandas wrote as 9.0 since some values are missing is 9.
    names = pc.replace_substring_regex(table[domain].take(rows), r"^(\d+)\.0$", r"\1")
    pairs = pa.table({"item": table[item].take(rows), "domain": names, "row": rows})
    pairs = pairs.group_by(["item", "domain"], use_threads=False).aggregate([("row", "min")])
    number = np.asarray(pairs["item"].combine_chunks().dictionary_encode().indices)
    seen, first = np.unique(number, return_index=True)
    if len(seen) < len(number):
        again = int(np.setdiff1d(np.arange(len(number)), first)[0])
        raise CDSRError(
            f"{log.place(pairs['row_min'][again].as_py())}: the item '{pairs['item'][again]}' has a second domain, "
            f"'{pairs['domain'][again]}'; an item has one"
        )
    return ItemDomains(pairs["item"].combine_chunks(), pairs["domain"].combine_chunks(), str(path))
