"""What can be wrong with an atomic file: each sentence names file, line and column, and ends with what to do.

The checks run on Arrow's columns, a few milliseconds for a million rows; only a check that fails looks at lines again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recbole_cdsr.errors import CDSRError

SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar", " ": "space"}
BLOCK = 1 << 24  # bytes looked at at once
LONGEST_TOKEN = 1000  # bytes; what is longer comes from a lost separator, and would be repeated in every rank table
PADDING = "[PAD]"  # RecBole's name for what is no domain; tables list it beside the domains


def fault(path: Path, what: str, advice: str, line: int | None = None, column: str | None = None) -> CDSRError:
    """The error to raise: the place, what is wrong there, and what to do."""
    place = f"{path}" + (f", line {line}" if line else "") + (f", column '{short(column)}'" if column else "")
    return CDSRError(f"{place}: {what}; {advice}")


def short(text: str) -> str:
    """A value as a message shows it: in one line, and not longer than 40 characters."""
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in str(text)[:41])
    return text if len(text) <= 40 else f"{text[:37]}..."


def filled_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not empty; each byte is one character, whatever the encoding."""
    with open(path, encoding="latin-1") as file:
        for number, line in enumerate(file, start=1):
            if line := line.rstrip("\n"):
                yield number, line


def line_of_row(path: Path, row: int) -> int:
    """Number of the line that holds a row (0 is the first after the header); empty lines are no rows."""
    return next(itertools.islice(filled_lines(path), row + 1, None), (row + 2, ""))[0]


def line_with(path: Path, position: int, token: str, separator: str, encoding: str) -> int | None:
    """Number of the first line that has `token` in the column at `position`, if there is one."""
    wanted = token.encode(encoding).decode("latin-1")
    found = (number for number, line in filled_lines(path) if line.split(separator)[position] == wanted)
    return next(found, None)


def check_fields(path: Path, fields: dict[str, str], loaded: list[str], keys: dict[str, str], domain: str) -> set[str]:
    """The columns that a file must have are there, are loaded and have the right type; that of the domain may lack.

    Args:
        fields: column -> type, of the header.
        keys: setting that names a column -> that column.

    Returns:
        those loaded columns that every row must fill.
    """
    for key, name in keys.items():
        if name not in fields:
            what = f"the header has no column '{short(name)}', only {short(', '.join(fields))}"
            raise fault(path, what, f"add it, or name the column that is there by the key '{key}'", 1)
        if name not in loaded:
            raise fault(path, "the column is not loaded", "add it to the key load_col", 1, name)
    types = {name: "float" if key == "TIME_FIELD" else "token" for key, name in keys.items()} | {domain: "token"}
    needed = [name for name in loaded if name in types]
    for name in needed:
        if fields[name] != types[name]:
            raise fault(path, f"its type is {fields[name]}", f"write {name}:{types[name]} in the header", 1, name)
    return set(needed)


def check_bytes(path: Path, names: list[str], separator: str) -> None:
    """The file is not cut in the middle of a line, and holds no zero bytes, which a crashed disk leaves.

    Raises:
        CDSRError: names the line.
    """
    last, before = b"", 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):  # not a map of the file, which would count as memory of the process
            zero = block.find(b"\0")
            if zero >= 0:
                file.seek(0)
                raise _zero_byte(path, file.read(before + zero), names, separator)
            last, before = block, before + len(block)
    if last[-1:] not in (b"\n", b"\r"):
        line = len(re.findall(rb"\r\n|\r|\n", path.read_bytes())) + 1
        what = "the file ends within this line and may have been cut off"
        raise fault(path, what, "write it anew, or end its last line with a line break if it is complete", line)


def _zero_byte(path: Path, content: bytes, names: list[str], separator: str) -> CDSRError:
    *before, line = re.split(rb"\r\n|\r|\n", content)
    column = names[min(line.count(separator.encode()), len(names) - 1)]
    return fault(
        path, "there is a zero byte", "write the file anew, since it is damaged or no text", len(before) + 1, column
    )


def unreadable(path: Path, error: Exception, names: list[str], separator: str, encoding: str) -> CDSRError:
    """Why Arrow cannot read the file: the first line that is no text, has too few or too many values, or is endless."""
    for number, line in filled_lines(path):
        values = line.split(separator)
        for position, value in enumerate(values):
            try:
                value.encode("latin-1").decode(encoding)
            except UnicodeDecodeError:
                column = names[min(position, len(names) - 1)]
                advice = "save the file as UTF-8, or set the key 'encoding'"
                return fault(path, f"the value is not {encoding} text", advice, number, column)
        if len(values) != len(names):
            column = names[min(len(values), len(names) - 1)]
            what = f"the line has {len(values)} of the header's {len(names)} values"
            if len(values) > len(names):
                what = f"the line has {len(values)} values, but the header has {len(names)}"
            return fault(path, what, _about_separators(line, len(names), separator), number, column)
        if len(line) >= 2**20:
            advice = "put one row in each line, and shorten its values"
            return fault(path, "the line is longer than a million bytes", advice, number)
    return fault(path, f"the file cannot be read ({short(' '.join(str(error).split()))})", "write it anew")


def _about_separators(line: str, count: int, separator: str) -> str:
    name = SEPARATORS.get(separator, f"'{separator}'")
    for other, its_name in SEPARATORS.items():
        if other != separator and line.count(other) + 1 == count:
            return f"put a {name} between values, not a {its_name}, in all lines"
    return f"correct the line: one {name} between values and none inside a value, in quotes or not"


def refuse_values(path: Path, column: str, values: pa.ChunkedArray, bad, what: str, advice: str) -> None:
    """No value is bad.

    Args:
        values, bad: of every row; `bad` is boolean.
        what: what is wrong, with {} where the value belongs.

    Raises:
        CDSRError: tells the first bad value.
    """
    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise fault(path, what.format(short(values[row].as_py())), advice, line_of_row(path, row), column)


def check_filled(path: Path, column: str, values: pa.ChunkedArray) -> None:
    """Every row has a value.

    Raises:
        CDSRError: names the first line without one.
    """
    empty = pc.equal(pc.utf8_trim_whitespace(values), "")
    refuse_values(path, column, values, empty, "the value is missing", "fill it in or remove the line")


def check_names(path: Path, column: str, values: pa.ChunkedArray, names: pa.Array) -> None:
    """The values can be names of users, items or domains.

    Args:
        names: the different ones among `values`.

    Raises:
        CDSRError: names the first line where one is missing, stands between spaces, or is very long.
    """
    trimmed = pc.utf8_trim_whitespace(names)
    good = pc.and_(pc.equal(trimmed, names), pc.less_equal(pc.binary_length(names), LONGEST_TOKEN))
    if pc.all(pc.and_(good, pc.not_equal(names, ""))).as_py():
        return
    values = values.cast(pa.string())
    check_filled(path, column, values)
    spaced = pc.not_equal(pc.utf8_trim_whitespace(values), values)
    advice = "remove them, since with and without them these are two names"
    refuse_values(path, column, values, spaced, "'{}' begins or ends with a space", advice)
    long = pc.greater(pc.binary_length(values), LONGEST_TOKEN)
    what, advice = f"the name '{{}}' is longer than {LONGEST_TOKEN} bytes", "shorten it, or look for a lost separator"
    refuse_values(path, column, values, long, what, advice)


def check_items(path: Path, column: str, items: pd.Series) -> None:
    """No item has two lines; RecBole would keep the first and drop the others without a word.

    Raises:
        CDSRError: names the first line of an item that had one before.
    """
    repeated = items.duplicated().to_numpy()
    if repeated.any():
        row = int(np.argmax(repeated))
        what = f"the item '{short(items[row])}' stands there a second time"
        advice = "keep one line, or put domain_id into .inter if it is in two domains"
        raise fault(path, what, advice, line_of_row(path, row), column)


def check_times(path: Path, column: str, times: np.ndarray) -> None:
    """Every time (finite already) is not negative, and exact enough to be put in order.

    Raises:
        CDSRError: names the first line where it is not.
    """
    values = pa.chunked_array([times])
    advice = "give seconds since 1970, or any increasing number from 0"
    refuse_values(path, column, values, pa.array(times < 0), "the time {} is negative", advice)
    if times.dtype == np.float64:  # between neighbours there is more than 1
        what = "the time {} is too large to be put in exact order"
        advice = "write whole numbers below 2^63 in all lines, or smaller numbers"
        refuse_values(path, column, values, pa.array(times >= 2**53), what, advice)
