"""Reading RecBole's atomic files: a typed header line, then one tab-separated row per line.

RecBole reads them with pandas' Python engine and passes bad values on; here Arrow's parser reads them,
several times faster, and every bad value is told with its line and column (see validate.py).
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from recbole_cdsr.data import validate
from recbole_cdsr.data.validate import SEPARATORS, fault, short
from recbole_cdsr.errors import CDSRError

FIELD_TYPES = ("token", "float", "token_seq", "float_seq")
LIKE = "user_id:token, item_id:token, timestamp:float"
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
BLOCKS_TOGETHER = 256  # of a megabyte each, Arrow's default
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PAR1": "Parquet"}


def read_header(path: Path, separator: str, encoding: str = "utf-8") -> dict[str, str]:
    """Field name -> type of the columns of an atomic file.

    Raises:
        CDSRError: if the file is missing, empty, not text, or its first line is no typed header.
    """
    _check_encoding(encoding)
    line = _first_line(path, encoding)
    fields: dict[str, str] = {}
    for column in line.split(separator):
        name, colon, kind = column.partition(":")
        if not colon or kind not in FIELD_TYPES:
            raise _no_header(path, line, column, separator)
        if not name or name != name.strip():
            raise fault(path, f"'{short(column)}' has no name or spaces around it", f"write it like {LIKE}", 1, column)
        if name in fields:
            raise fault(path, "the column stands there twice", "remove one or rename it", 1, name)
        fields[name] = kind
    return fields


def _check_encoding(encoding: str) -> None:
    try:
        fits = "\t\n".encode(encoding) == b"\t\n"
    except LookupError:
        fits = False
    if not fits:
        raise CDSRError(
            f"the key 'encoding' takes the name of an encoding like utf-8 or latin-1, but got '{encoding}'; "
            f"save the file as UTF-8 and leave the key out"
        )


def _first_line(path: Path, encoding: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(2**16)
    except OSError as error:
        raise fault(path, f"the file cannot be read ({error.strerror or error})", "check its path and rights") from None
    for start, kind in PACKED.items():
        if content.startswith(start):
            raise fault(path, f"this is a {kind} file", "unpack or convert it to plain text")
    line, *rest = re.split(b"[\r\n]", content.removeprefix(codecs.BOM_UTF8), maxsplit=1)
    if not line.strip():
        what = "the first line is empty" if any(rest) else "the file is empty"
        raise fault(path, what, f"write a header of tab-separated columns like {LIKE}", 1)
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        advice = "save the file as UTF-8, or set the key 'encoding'"
        raise fault(path, f"the header is not {encoding} text", advice, 1) from None


def _no_header(path: Path, line: str, column: str, separator: str) -> CDSRError:
    """Why a column of the first line is no name:type."""
    for other, name in SEPARATORS.items():
        parts = [part.partition(":")[2] for part in line.split(other)]
        if separator not in line and len(parts) > 1 and all(kind in FIELD_TYPES for kind in parts):
            wanted = SEPARATORS.get(separator, f"'{separator}'")
            advice = f"put a {wanted} between all columns, or set the key field_separator to a {name}"
            return fault(path, f"a {name} separates the columns, not a {wanted}", advice, 1)
    what = f"'{short(column)}' is not name:type with a type of {', '.join(FIELD_TYPES)}"
    return fault(path, what, f"begin the file with a header of tab-separated columns like {LIKE}", 1, column)


def read_columns(
    path: Path,
    fields: dict[str, str],
    wanted: list[str],
    separator: str,
    encoding: str,
    required: Collection[str] = (),
) -> pd.DataFrame:
    """The `wanted` columns: tokens as categories, floats as int64 if all are whole, else float64, sequences as str.

    Args:
        required: those in which every row must have a value, and a token must be fit for a name.

    Raises:
        CDSRError: names file, line and column of the first value or row that cannot be read.
    """
    validate.check_bytes(path, list(fields), separator)
    try:
        parts = _read_parts(path, fields, wanted, separator, encoding)
        columns = {name: _values(path, name, fields[name], parts.pop(name), name in required) for name in wanted}
        for name in [name for name, values in columns.items() if values is None]:
            text = pa.chunked_array([batch.column(0) for batch in _batches(path, fields, [name], separator, encoding)])
            columns[name] = _to_numbers(path, name, text, name in required)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise validate.unreadable(path, error, list(fields), separator, encoding) from None
    return pd.DataFrame(columns, copy=False)


def _batches(path: Path, fields: dict[str, str], wanted: list[str], separator: str, encoding: str):
    """A reader of the `wanted` columns as texts, block by block."""
    return pacsv.open_csv(
        path,
        read_options=pacsv.ReadOptions(column_names=list(fields), skip_rows=1, encoding=encoding),
        parse_options=pacsv.ParseOptions(delimiter=separator, quote_char=False),
        convert_options=pacsv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(fields, pa.string()),
            strings_can_be_null=False,
            check_utf8=True,
        ),
    )


def _read_parts(
    path: Path, fields: dict[str, str], wanted: list[str], separator: str, encoding: str
) -> dict[str, list]:
    """For each column its values in parts, so that the texts of a large file are never there all at once.

    Numbers are parsed, with None for a part in which a value is none. Names are numbered part by part.
    """
    parts: dict[str, list] = {name: [] for name in wanted}
    batches = _batches(path, fields, wanted, separator, encoding)
    while texts := list(itertools.islice(batches, BLOCKS_TOGETHER)):
        table = pa.Table.from_batches(texts)
        for name in wanted:
            kind, column = fields[name], table[name]
            parts[name].append(_cast(column) if kind == "float" else _coded(column) if kind == "token" else column)
    if not parts[wanted[0]]:
        raise fault(path, "there is a header but no rows", "write the file anew, since it may have been cut off", 1)
    return parts


def _coded(text: pa.ChunkedArray) -> pa.DictionaryArray:
    """Each name once, and its number in every row."""
    chunks = text.dictionary_encode().chunks
    return pa.DictionaryArray.from_arrays(pa.concat_arrays([chunk.indices for chunk in chunks]), chunks[-1].dictionary)


def _together(parts: list[pa.DictionaryArray]) -> pa.DictionaryArray:
    """The parts, one after the other, with numbers of the distinct names of all.

    Not `ChunkedArray.unify_dictionaries`, whose time grows with the square of the number of parts.
    """
    names = pa.chunked_array([part.dictionary for part in parts]).dictionary_encode().chunks
    codes, start = np.empty(sum(map(len, parts)), dtype=np.int32), 0
    for part, number in zip(parts, names, strict=True):
        codes[start : start + len(part)] = number.indices.to_numpy()[part.indices.to_numpy()]
        start += len(part)
    return pa.DictionaryArray.from_arrays(codes, names[-1].dictionary)


def split_sequences(
    path: Path, name: str, texts: pd.Series, kind: type, separator: str, limit: int | None
) -> list[np.ndarray]:
    """The values of a sequence column, of which each text holds several; at most `limit` of each.

    Raises:
        CDSRError: names the line of a value that is not of the `kind`.
    """
    values = []
    for row, text in enumerate(texts):
        try:
            values.append(np.array([kind(part) for part in text.split(separator) if part][:limit]))
        except ValueError:
            what, advice = f"'{short(text)}' is no list of numbers", "write numbers with seq_separator between them"
            raise fault(path, what, advice, validate.line_of_row(path, row), name) from None
    return values


def _values(path: Path, name: str, kind: str, parts: list, required: bool) -> pd.Series | np.ndarray | None:
    """A column of its parts, or None where its texts have to be looked at."""
    if kind == "float":
        return _joined(parts, required)
    if kind == "token":
        names = _together(parts)
        if required:
            validate.check_names(path, name, pa.chunked_array([names]), names.dictionary)
        return names.to_pandas()
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks]).to_pandas()


def _joined(parts: list[pa.ChunkedArray | None], finite: bool) -> np.ndarray | None:
    """The parts, given up one by one, as one array: int64 if all are. None if a value is not as it must be."""
    if any(part is None for part in parts):
        return None
    whole = all(pa.types.is_integer(part.type) for part in parts)
    numbers, start = np.empty(sum(map(len, parts)), dtype=np.int64 if whole else np.float64), 0
    parts.reverse()
    while parts:
        part = parts.pop().to_numpy()
        numbers[start : start + len(part)] = part
        start += len(part)
    good = whole or (np.isfinite(numbers).all() if finite else not np.isinf(numbers).any())
    return numbers if good else None


def _to_numbers(path: Path, name: str, text: pa.ChunkedArray, required: bool) -> np.ndarray:
    """Exact int64 where every value is a whole number, else float64; a missing value is NaN."""
    numbers = _cast(text)
    if numbers is None:
        if required:
            validate.check_filled(path, name, text)
        trimmed = pc.utf8_trim_whitespace(text)
        missing = pc.is_in(pc.utf8_lower(trimmed), value_set=pa.array(["", "nan"]))
        bad = pc.invert(pc.or_(missing, pc.match_substring_regex(trimmed, NUMBER)))
        advice = "write a number like 1700000000 or 4.5, a date as seconds since 1970"
        validate.refuse_values(path, name, text, bad, "'{}' is not a number", advice)
        numbers = _cast(pc.if_else(missing, "nan", trimmed))
    if pa.types.is_floating(numbers.type):
        bad = pc.invert(pc.is_finite(numbers)) if required else pc.is_inf(numbers)
        advice = "write a finite number or remove the line"
        validate.refuse_values(path, name, text, bad, "'{}' is not a finite number", advice)
    return numbers.to_numpy()


def _cast(text: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The numbers, or None if a value is none."""
    for kind in (pa.int64(), pa.float64()):
        try:
            numbers = text.cast(kind)
        except pa.ArrowInvalid:
            continue
        # Arrow takes 0x10 for 16.
        return None if pc.any(pc.match_substring(text, "x", ignore_case=True)).as_py() else numbers
    return None
