"""Amazon Reviews of 2014, 2018 and 2023 (McAuley lab): one file per category, one category one domain.

Json lines (reviews) or csv (ratings only), plain or gzip. The csv files of 2014 and 2018 have no header, and differ in
the order of their first two columns.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pyarrow.compute as pc

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.prepare.events import Events, Fields, Reading
from recbole_cdsr.prepare.logs import CsvLog
from recbole_cdsr.prepare.tabular import collect, named_files, open_log
from recbole_cdsr.prepare.times import TimeReader

# Year -> user, item, time and its unit, in json lines and (2023) in csv.
REVIEWS = {
    "2014": ("reviewerID", "asin", "unixReviewTime", "s"),
    "2018": ("reviewerID", "asin", "unixReviewTime", "s"),
    "2023": ("user_id", "parent_asin", "timestamp", "ms"),
}
RATINGS = {"2014": ["user", "item", "rating", "timestamp"], "2018": ["item", "user", "rating", "timestamp"]}
ASIN_LENGTH = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--year", required=True, choices=REVIEWS, help="edition of the data set")
    parser.add_argument(
        "--item", metavar="COLUMN", help="of 2023: asin for variants of products (default: parent_asin)"
    )


def read(options: argparse.Namespace) -> Reading:
    """One pass over all files; those of one run have the same format."""
    files = [(path, name or category(path)) for path, name in named_files(options.files)]
    names = RATINGS.get(options.year)
    logs = [open_log(path, name, names=names) for path, name in files]
    if len({type(log) for log in logs}) > 1:
        raise CDSRError("some files are json lines and others are csv; give files of one kind")
    user, item, time, unit = REVIEWS[options.year]
    without_header = isinstance(logs[0], CsvLog) and names is not None
    if without_header:
        user, item, time = "user", "item", "timestamp"
    fields = Fields(user, options.item or item, time, None, tuple(options.at_least or ()))
    reading = collect([(log, fields) for log in logs], TimeReader(unit), options)
    if without_header:
        _refuse_swapped_columns(reading.events, options.year)
    return reading


def category(path: Path) -> str:
    """reviews_Books_5.json.gz, ratings_Books.csv, Books.jsonl.gz -> Books."""
    return re.sub(r"^(reviews|ratings)_|(_\d+)?(\.[a-z]+)+$", "", path.name)


def _refuse_swapped_columns(events: Events, year: str) -> None:
    """Product numbers have ten characters; people's names have more."""
    users, items = (pc.mean(pc.equal(pc.utf8_length(n), ASIN_LENGTH)).as_py() for n in (events.users, events.items))
    if users > items:
        other = next(name for name in RATINGS if name != year)
        raise CDSRError(
            f"the column of users holds product numbers like '{events.users[0]}': the ratings of {year} are "
            f"{', '.join(RATINGS[year])}, those of {other} {', '.join(RATINGS[other])}; try --year {other}"
        )
