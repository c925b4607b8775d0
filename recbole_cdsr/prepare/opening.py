"""Files opened for reading, plain or gzip, and how far the reading has come."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from recbole_cdsr.errors import CDSRError


class Progress:
    """One bar over the bytes of all files."""

    def __init__(self, paths: list[Path], shown: bool) -> None:
        self._begin, total = {}, 0
        for path in paths:
            self._begin[path] = total
            total += path.stat().st_size
        self.bar = tqdm(
            total=total, desc="read", unit="B", unit_scale=True, leave=False, disable=None if shown else True
        )

    def reached(self, path: Path, position: int) -> None:
        self.bar.update(self._begin[path] + position - self.bar.n)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The content of a file, unpacked if it is gzip, and the file on the disk, which tells how far reading has come.

    Raises:
        CDSRError: if it cannot be read, is cut off, damaged, or an archive of another kind.
    """
    try:
        with open(path, "rb") as raw:
            magic = raw.peek(4)[:4]
            if magic[:2] == b"PK":
                raise CDSRError(f"{path} is a zip archive; unpack it and give the files inside")
            stream = gzip.GzipFile(fileobj=raw) if magic[:2] == b"\x1f\x8b" else raw
            yield stream, raw
    except EOFError:
        raise CDSRError(f"{path} ends in the middle of its gzip data: it was cut off; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CDSRError(f"{path} is damaged gzip data ({error}); fetch it again") from None
    except csv.Error as error:
        raise CDSRError(f"{path} cannot be read as csv ({error}); if it quotes nothing, add --no_quotes") from None
    except UnicodeDecodeError:
        raise CDSRError(f"{path} is not utf-8 text; convert it, for example by iconv -t utf-8") from None
    except OSError as error:
        raise CDSRError(f"cannot read {path}: {error.strerror or error}") from None
