"""Running out of memory, told with the key that helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recbole_cdsr.errors import CDSRError


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
