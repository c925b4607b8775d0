"""Reading RecBole's atomic files: a typed header line, then one tab-separated row per line.

RecBole reads them with pandas' Python engine and passes bad values on; here Arrow's parser reads them,
several times faster, and every bad value is told with its line and column.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv

from recbole_cdsr.errors import CDSRError

FIELD_TYPES = ("token", "float", "token_seq", "float_seq")


def read_header(path: Path, separator: str, encoding: str = "utf-8") -> dict[str, str]:
    """Field name -> type of the columns of an atomic file.

    Raises:
        CDSRError: if the file is missing, empty, not text, or its first line is no typed header.
    """
    try:
        with open(path, encoding="utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding) as file:
            line = file.readline().rstrip("\r\n")
    except LookupError:
        raise CDSRError(f"the key 'encoding' takes the name of an encoding, like utf-8, but got '{encoding}'") from None
    except OSError as error:
        raise CDSRError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise CDSRError(f"{path} is not {encoding} text; convert it, or set the key 'encoding'") from None
    if not line:
        raise CDSRError(f"{path} is empty; its first line must name the columns, like user_id:token<tab>item_id:token")
    fields: dict[str, str] = {}
    for column in line.split(separator):
        name, colon, kind = column.partition(":")
        if not colon or kind not in FIELD_TYPES:
            raise CDSRError(
                f"{path}, line 1: the column '{column[:60]}' is not name:type with a type of {', '.join(FIELD_TYPES)}; "
                f"write the header like user_id:token<tab>item_id:token<tab>timestamp:float, or set 'field_separator'"
            )
        if name in fields:
            raise CDSRError(f"{path}, line 1: the column '{name}' stands there twice; remove one")
        fields[name] = kind
    return fields


def read_columns(path: Path, fields: dict[str, str], wanted: list[str], separator: str, encoding: str) -> pd.DataFrame:
    """The `wanted` columns: tokens as str, floats as int64 where all are whole numbers, else float64, sequences as str.

    Raises:
        CDSRError: names file, line and column of the first value or row that cannot be read.
    """
    names = list(fields)
    numeric = [name for name in wanted if fields[name] == "float"]
    types = {name: pa.string() for name in names}
    try:
        table = pacsv.read_csv(
            path,
            read_options=pacsv.ReadOptions(column_names=names, skip_rows=1, encoding=encoding),
            parse_options=pacsv.ParseOptions(delimiter=separator, quote_char=False),
            convert_options=pacsv.ConvertOptions(
                include_columns=wanted, column_types=types, strings_can_be_null=False, check_utf8=True
            ),
        )
    except pa.ArrowInvalid as error:
        raise CDSRError(_explain(path, error, len(names), separator)) from None
    frame = pd.DataFrame({name: table[name].to_pandas() for name in wanted})
    if frame.empty:
        raise CDSRError(f"{path} has a header but no rows; it may have been cut off")
    for name in numeric:
        frame[name] = _to_numbers(path, name, table[name])
    return frame


def _to_numbers(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Exact int64 where every value is a whole number, else float64; an empty value is NaN."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return column.cast(kind).to_numpy()
        except pa.ArrowInvalid:
            continue
    text = column.to_pandas()
    numbers = pd.to_numeric(text.where(text != "", "nan"), errors="coerce")
    bad = numbers.isna() & (text != "") & (text.str.lower() != "nan")
    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        raise CDSRError(
            f"{path}, line {line_of_row(path, row)}: '{text[row]}' in column '{name}' is not a number; correct the line"
        )
    return numbers.to_numpy(dtype=np.float64)


def _explain(path: Path, error: pa.ArrowInvalid, n_columns: int, separator: str) -> str:
    """The first line with a wrong number of columns, or what Arrow said if there is none."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            found = line.rstrip(b"\r\n").count(separator.encode()) + 1
            if line.strip() and found != n_columns:
                return f"{path}, line {number}: {found} columns instead of the header's {n_columns}; correct the line"
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"{path}, line {number} is not utf-8 text; convert the file, or set the key 'encoding'"
    return f"{path} cannot be read: {' '.join(str(error).split())}"


def line_of_row(path: Path, row: int) -> int:
    """Number of the line that holds a row (0 is the first after the header); blank lines are no rows."""
    with open(path, "rb") as file:
        filled = (number for number, line in enumerate(file, start=1) if line.strip())
        return next(itertools.islice(filled, row + 1, None), row + 2)


def require_values(path: Path, frame: pd.DataFrame, column: str) -> None:
    """Every row has a value in `column`.

    Raises:
        CDSRError: names the first line without one.
    """
    values = frame[column]
    missing = (values == "") if values.dtype == object or pd.api.types.is_string_dtype(values) else ~np.isfinite(values)
    missing = np.asarray(missing)
    if missing.any():
        line = line_of_row(path, int(np.argmax(missing)))
        raise CDSRError(f"{path}, line {line}: the column '{column}' has no value; fill it in or remove the line")


def require_valid_times(path: Path, times: np.ndarray, column: str) -> None:
    """Every time is a finite number that is not negative.

    Raises:
        CDSRError: names the first line where it is not.
    """
    bad = ~(np.isfinite(times) & (times >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise CDSRError(
            f"{path}, line {line_of_row(path, row)}: {times[row]} in column '{column}' is no time; "
            f"give seconds since 1970 (or any increasing number that is not negative)"
        )
