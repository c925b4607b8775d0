"""Log files, read batch by batch: csv, json lines and parquet, plain or gzip, with the place of every mistake."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.prepare.opening import Progress, opened

BLOCK = 8 << 20  # bytes of text parsed at once
ROWS = 1 << 17  # rows of parquet read at once
TAB_ENDINGS = (".tsv", ".tab", ".txt")


class Batch(NamedTuple):
    """Some rows of the wanted columns; `first_row` counts from 0 in the file."""

    columns: dict[str, pa.Array]
    first_row: int


class Log:
    """One file. `domain`, if set, is that of all its events."""

    def __init__(self, path: Path, domain: str | None = None) -> None:
        self.path, self.domain, self.skipped = path, domain, 0

    def header(self) -> list[str]:
        """The names of the columns."""
        raise NotImplementedError

    def batches(self, wanted: dict[str, pa.DataType], progress: Progress) -> Iterator[Batch]:
        """The `wanted` columns; text formats may give strings where another type is wanted."""
        raise NotImplementedError

    def place(self, row: int) -> str:
        """Where a row stands, for messages."""
        raise NotImplementedError

    def require(self, columns: list[str]) -> None:
        """Raises CDSRError if one of the columns is not there; names those that are."""
        header = self.header()
        for name in columns:
            if name not in header:
                raise CDSRError(
                    f"{self.path} has no column '{name}'; it has {', '.join(header)}: name the right one by its option"
                )
            if header.count(name) > 1:
                raise CDSRError(f"{self.path} has the column '{name}' twice; rename one of them")


class CsvLog(Log):
    """Text with a separator; `names` are the columns of a file without a header."""

    def __init__(
        self,
        path: Path,
        domain: str | None = None,
        separator: str | None = None,
        names: list[str] | None = None,
        skip_bad_lines: bool = False,
        quotes: bool = True,
    ) -> None:
        super().__init__(path, domain)
        if separator is not None and len(separator) != 1:
            raise CDSRError(f"--separator takes one character, not '{separator}'; convert the file, for example by sed")
        plain = path.with_suffix("") if path.suffix == ".gz" else path
        self.separator = separator or ("\t" if plain.suffix.lower() in TAB_ENDINGS else ",")
        self.names, self.skip_bad_lines, self.quotes = names, skip_bad_lines, quotes
        self._bad = None

    def header(self) -> list[str]:
        with opened(self.path) as (stream, _):
            first = next(self._rows(stream), None)
        if first is None:
            raise CDSRError(f"{self.path} is empty; it may have been cut off")
        if self.names is None:
            return first
        if len(first) != len(self.names):
            raise CDSRError(
                f"{self.path} has {len(first)} columns, but {len(self.names)} were named ({', '.join(self.names)}); "
                f"its first line is '{self.separator.join(first)[:80]}'"
            )
        return self.names

    def batches(self, wanted: dict[str, pa.DataType], progress: Progress) -> Iterator[Batch]:
        self.require(list(wanted))
        names = self.header()
        row = 0
        with opened(self.path) as (stream, raw):
            try:
                reader = pacsv.open_csv(
                    stream,
                    # One thread: only then does Arrow count the rows in its messages.
                    pacsv.ReadOptions(
                        use_threads=False, block_size=BLOCK, column_names=names, skip_rows=int(self.names is None)
                    ),
                    pacsv.ParseOptions(
                        delimiter=self.separator,
                        quote_char='"' if self.quotes else False,
                        newlines_in_values=self.quotes,
                        invalid_row_handler=self._judge,
                    ),
                    pacsv.ConvertOptions(
                        include_columns=list(wanted),
                        column_types=dict.fromkeys(names, pa.string()),
                        strings_can_be_null=True,
                        null_values=[""],
                    ),
                )
                for batch in reader:
                    yield Batch({name: batch.column(name) for name in wanted}, row)
                    row += len(batch)
                    progress.reached(self.path, raw.tell())
            except pa.ArrowInvalid as error:
                raise CDSRError(self._explain(error)) from None

    def _rows(self, stream: BinaryIO):
        """Rows as Python reads them: slowly, but with the numbers of lines."""
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        quoting = csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE
        return csv.reader(text, delimiter=self.separator, quoting=quoting)

    def _judge(self, bad) -> str:
        if self.skip_bad_lines:
            self.skipped += 1
            return "skip"
        self._bad = bad
        return "error"

    def _explain(self, error: pa.ArrowInvalid) -> str:
        if self._bad is not None:
            place = self.place(self._bad.number - 1 - (self.names is None))
            return (
                f"{place}: {self._bad.actual_columns} columns instead of {self._bad.expected_columns}; "
                f"correct the line, or add --skip_bad_lines"
            )
        if "UTF8" in str(error):
            return f"{self.path} is not utf-8 text; convert it, for example by iconv -t utf-8"
        reason = " ".join(str(error).split())[:150]
        return f"{self.path} cannot be read as csv ({reason}); if it quotes nothing, add --no_quotes"

    def place(self, row: int) -> str:
        n_columns = len(self.header())
        with opened(self.path) as (stream, _):
            reader = self._rows(stream)
            left = row + (self.names is None)
            try:
                for fields in reader:
                    left -= len(fields) == n_columns if self.skip_bad_lines else bool(fields)
                    if left < 0:
                        break
            except csv.Error:  # Python takes no fields of more than 131,072 characters
                return f"{self.path}, row {row + 1}"
            return f"{self.path}, line {reader.line_num}"


class JsonLog(Log):
    """One json object per line."""

    def header(self) -> list[str]:
        return list(self._first())

    def _first(self) -> dict:
        with opened(self.path) as (stream, _):
            line = stream.readline()
        if not line.strip():
            raise CDSRError(f"{self.path} is empty or begins with an empty line; it may have been cut off")
        try:
            first = json.loads(line)
        except ValueError:
            first = None
        if not isinstance(first, dict):
            quotes = " (it seems to hold Python's text of a dict)" if line[:2] == b"{'" else ""
            raise CDSRError(
                f"{self.path}, line 1 is not a json object{quotes}; the reader takes one object per line, "
                f'like {{"name": value, ...}}'
            )
        return first

    def batches(self, wanted: dict[str, pa.DataType], progress: Progress) -> Iterator[Batch]:
        self.require(list(wanted))
        first, types = self._first(), dict(wanted)
        for name in wanted:  # Arrow takes no number for a text and no text for a number: the first line decides
            if isinstance(first[name], str):
                types[name] = pa.string()
            elif isinstance(first[name], int) and wanted[name] == pa.string():
                types[name] = pa.int64()
        options = pajson.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore")
        row = 0
        with opened(self.path) as (stream, raw):
            for block in _whole_lines(stream):
                reading = pajson.ReadOptions(use_threads=False, block_size=len(block) + 1)
                try:
                    table = pajson.read_json(pa.BufferReader(block), reading, options).combine_chunks()
                except pa.ArrowInvalid as error:
                    raise CDSRError(self._explain(error, row)) from None
                yield Batch({name: table[name].combine_chunks() for name in wanted}, row)
                row += len(table)
                progress.reached(self.path, raw.tell())

    def _explain(self, error: pa.ArrowInvalid, first_row: int) -> str:
        reason = " ".join(str(error).removeprefix("JSON parse error:").split())
        if found := re.search(r" in row (\d+)", reason):
            place = self.place(first_row + int(found[1]))
            return f"{place} is not a json object as expected ({reason[: found.start()]}); correct the line"
        return f"{self.path} cannot be read as json lines: {reason[:150]}"

    def place(self, row: int) -> str:
        with opened(self.path) as (stream, _):
            for number, line in enumerate(stream, start=1):
                row -= bool(line.strip())
                if row < 0:
                    return f"{self.path}, line {number}"
        return str(self.path)


class ParquetLog(Log):
    def header(self) -> list[str]:
        return self._open().schema_arrow.names

    def batches(self, wanted: dict[str, pa.DataType], progress: Progress) -> Iterator[Batch]:
        self.require(list(wanted))
        file, row = self._open(), 0
        size = self.path.stat().st_size / max(file.metadata.num_rows, 1)  # of a row
        try:
            for batch in file.iter_batches(ROWS, columns=list(wanted)):
                yield Batch({name: batch.column(name) for name in wanted}, row)
                row += len(batch)
                progress.reached(self.path, int(row * size))
        except (pa.ArrowInvalid, OSError) as error:
            raise CDSRError(f"{self.path} cannot be read: {' '.join(str(error).split())[:150]}") from None

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowInvalid, OSError) as error:
            reason = " ".join(str(error).split())[:150]
            raise CDSRError(f"{self.path} cannot be read as parquet ({reason}); fetch or write it again") from None

    def place(self, row: int) -> str:
        return f"{self.path}, row {row + 1}"


def _whole_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Blocks of about BLOCK bytes that end where a line ends."""
    parts: list[bytes] = []
    while block := stream.read(BLOCK):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join([*parts, block[:cut]])
            parts = []
        parts.append(block[cut:])
    if (rest := b"".join(parts)).strip():
        yield rest
