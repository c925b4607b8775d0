"""Writing files so that nobody ever meets half of one."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from recbole_cdsr.errors import CDSRError


def remove_halves(folder: Path) -> None:
    """Removes the files and folders `.*.tmp` that killed processes left in `folder` and below it."""
    for half in list(folder.rglob(".*.tmp")):
        if half.is_dir():
            shutil.rmtree(half)
        else:
            half.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes the folder of an output, and those above it; CDSRError, which names --out, if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CDSRError(f"cannot make the folder {folder}: {error.strerror or error}; set --out") from None


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


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well; else `folder` stays as it was.

    Two renames, so that a kill leaves the old folder, none, or the new one, and never a part of one.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    new, old = (folder.with_name(f".{folder.name}.{kind}.{os.getpid()}.tmp") for kind in ("new", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for half in (new, old):
            shutil.rmtree(half, ignore_errors=True)


def remove_left_over(folder: Path) -> None:
    """Removes what killed processes left of `replacing_folder(folder)`; the folders of living ones stay."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        number = int(path.name.split(".")[-2])
        try:
            alive = number != os.getpid() and os.kill(number, 0) is None
        except ProcessLookupError:
            alive = False
        except PermissionError:  # somebody else's
            alive = True
        if not alive:
            shutil.rmtree(path, ignore_errors=True)
