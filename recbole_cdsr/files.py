"""Writing files so that nobody ever meets half of one."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def remove_halves(folder: Path) -> None:
    """Removes the files and folders `.*.tmp` that killed processes left in `folder` and below it."""
    for half in list(folder.rglob(".*.tmp")):
        if half.is_dir():
            shutil.rmtree(half)
        else:
            half.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new file for writing, which takes the place of `path` when the block ends well; else `path` stays as it was.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # same folder: os.replace cannot cross disks
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
