"""Douban's reviews as published with DTCDR and GA-DTCDR (Zhu et al., CIKM 2019, IJCAI 2020): one file per domain.

moviereviews_cleaned.txt, bookreviews_cleaned.txt and musicreviews_cleaned.txt: tab-separated, quoted, with a header;
among the columns are user_id, movie_id | book_id | music_id, rating and time (a date). Items are numbered within a
domain, so their names always get the domain in front. Files with other names of columns are read by --user, --item,
--time, and without a header by --columns.
"""

from __future__ import annotations

import argparse

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.prepare.events import Fields, Reading
from recbole_cdsr.prepare.logs import CsvLog
from recbole_cdsr.prepare.tabular import collect, named_files, text_options
from recbole_cdsr.prepare.times import TimeReader

ITEMS = ("movie_id", "book_id", "music_id")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", default="user_id", metavar="COLUMN", help="column of users (default: user_id)")
    parser.add_argument("--item", metavar="COLUMN", help=f"column of items (default: the one of {', '.join(ITEMS)})")
    parser.add_argument("--time", default="time", metavar="COLUMN", help="column of times (default: time)")
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="names of the columns of files without a header")
    text_options(parser)
    parser.set_defaults(prefix_items=True)


def read(options: argparse.Namespace) -> Reading:
    sources = []
    for path, name in named_files(options.files):
        log = CsvLog(path, name, "\t", options.columns, options.skip_bad_lines, not options.no_quotes)
        item = options.item or next((column for column in log.header() if column in ITEMS), None)
        if item is None:
            raise CDSRError(f"{path} has none of the columns {', '.join(ITEMS)}; name its column of items by --item")
        log.domain = name or (item.removesuffix("_id") if item in ITEMS else path.stem)
        fields = Fields(options.user, item, options.time, None, tuple(options.at_least or ()))
        sources.append((log, fields))
    return collect(sources, TimeReader(), options)
