"""How much memory a process took, and running out of it, told with the key that helps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from recbole_cdsr.errors import CDSRError


def peak_bytes() -> int | None:
    """Most memory that this process held at once, on the CPU's side, in bytes; None where the system does not tell.

    Linux tells it in /proc for this program alone; `getrusage` includes what the program that started it held.
    """
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy, or torch on a GPU or CPU ran out of memory; torch has no class for the last."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@contextmanager
def told_when_short(where: str, advice: str) -> Iterator[None]:
    """Turns running out of memory into one sentence.

    A smaller batch is not tried on its own: dropout and masks would draw other numbers, and a run would depend on what
    else the machine was doing.

    Raises:
        CDSRError: in place of the library's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CDSRError(f"there was not enough memory for {where}; {advice}") from None
