"""KuaiRand (Gao et al., CIKM 2022), of any size: log_*.csv with video_features_basic_*.csv.

The domain is a column of the log (tab, the page a video was shown on) or of the videos (music_type, video_type, ...).
Only clicked videos count as events unless --at_least says otherwise: the logs hold every video shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.prepare.events import Fields, Reading
from recbole_cdsr.prepare.logs import CsvLog
from recbole_cdsr.prepare.tabular import collect, named_files, read_item_domains
from recbole_cdsr.prepare.times import TimeReader

USER, ITEM, TIME = "user_id", "video_id", "time_ms"
CLICKED = (("is_click", 1.0),)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", metavar="FILE", help="video_features_basic_*.csv; not needed for --domain tab")
    parser.add_argument("--domain", metavar="COLUMN", default="music_type", help="of the log or the videos")


def read(options: argparse.Namespace) -> Reading:
    logs = [CsvLog(path) for path, _ in named_files(options.files)]
    least = tuple(options.at_least or CLICKED)
    in_log = options.domain in logs[0].header()
    if not in_log and not options.videos:
        raise CDSRError(
            f"{logs[0].path} has no column '{options.domain}'; give video_features_basic_*.csv by --videos, "
            f"or choose --domain tab"
        )
    table = None if in_log else read_item_domains(Path(options.videos), ITEM, options.domain)
    fields = Fields(USER, ITEM, TIME, options.domain if in_log else None, least)
    return collect([(log, fields) for log in logs], TimeReader("ms"), options, table)
