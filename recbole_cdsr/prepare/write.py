"""Atomic files from events, complete or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.files import remove_halves, replacing
from recbole_cdsr.names import BUILT_IN_DATASETS
from recbole_cdsr.prepare.events import Events

ROWS = 1 << 17  # lines put together at once
META = "prepared.json"


def check_target(folder: Path, overwrite: bool) -> None:
    """Says before the reading what would fail after it.

    Raises:
        CDSRError: if the folder cannot take the data set.
    """
    name = folder.name
    if not name or name in BUILT_IN_DATASETS:
        raise CDSRError(f"--out {folder} does not end in a free name of a data set; write it like dataset/my_set")
    if folder.exists() and not folder.is_dir():
        raise CDSRError(f"{folder} is a file; choose another --out")
    if (folder / f"{name}.inter").exists() and not overwrite:
        raise CDSRError(f"{folder} already holds a data set; choose another --out, or replace it by --overwrite")


def write(folder: Path, events: Events, seconds: np.ndarray, meta: dict) -> None:
    """Writes <name>.item, prepared.json and <name>.inter, where <name> is the folder's.

    At every moment there is the old data set, none (no .inter), or the new one.

    Raises:
        CDSRError: if a name cannot stand in an atomic file, or the folder cannot be written.
    """
    for names in (events.users, events.items, events.domains):
        _require_plain(names)
    domain_of_item = np.zeros(len(events.items), dtype=np.int32)
    domain_of_item[events.item] = events.domain
    inter = folder / f"{folder.name}.inter"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_halves(folder)
        with replacing(inter) as file:
            _write_inter(file, events, seconds)
            with replacing(folder / f"{folder.name}.item") as items, replacing(folder / META) as about:
                items.write(b"item_id:token\tdomain_id:token\n")
                _write_rows(items, events.items, events.domains.take(pa.array(domain_of_item)))
                about.write((json.dumps(meta, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
                inter.unlink(missing_ok=True)
    except OSError as error:
        raise CDSRError(
            f"cannot write to {folder}: {error.strerror or error}; make room or choose another --out"
        ) from None


def _write_inter(file: BinaryIO, events: Events, seconds: np.ndarray) -> None:
    file.write(b"user_id:token\titem_id:token\ttimestamp:float\n")
    for start in range(0, len(events), ROWS):
        rows = slice(start, start + ROWS)
        users = events.users.take(pa.array(events.user[rows]))
        items = events.items.take(pa.array(events.item[rows]))
        _write_rows(file, users, items, pa.array(seconds[rows]).cast(pa.string()))


def _write_rows(file: BinaryIO, *columns: pa.Array) -> None:
    """Tab-separated lines. Arrow's csv writer refuses quotes within names, which need no escape in an atomic file."""
    *first, last = (column.cast(pa.large_string()) for column in columns)
    nothing, tab, end = (pa.scalar(text, pa.large_string()) for text in ("", "\t", "\n"))
    lines = pc.binary_join_element_wise(*first, pc.binary_join_element_wise(last, nothing, end), tab)
    # The values of a fresh text column lie one behind the other in its last buffer.
    file.write(memoryview(lines.buffers()[-1])[: pc.sum(pc.binary_length(lines)).as_py()])


def _require_plain(names: pa.Array) -> None:
    bad = np.flatnonzero(pc.match_substring_regex(names, "[\t\r\n]"))
    if len(bad):
        raise CDSRError(
            f"the name {names[int(bad[0])].as_py()!r} holds a tab or a line break, which an atomic file cannot hold; "
            f"rename it"
        )
