"""Several processes that train one model, as torchrun starts them: each takes a part of every batch.

Everything here does nothing, and costs nothing, where there is one process. All processes make the same calls in the
same order. Losses are means; a process multiplies its mean by ``share(its number of terms)``, and the mean of these
products over the processes is the mean over all terms, whatever part each process got.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from recbole_cdsr.errors import CDSRError


class Lost(CDSRError):
    """Another process of the run ended, or this one was told to stop."""


def started() -> int:
    """Number of processes that torchrun started (its WORLD_SIZE), 1 without it; they are connected by `processes`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Number of this process on its machine, from 0: the GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_started() -> int:
    """Number of processes that torchrun started on this machine, 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def world() -> int:
    """Number of processes that work together now."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0; process 0 alone writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Connects the processes while the block runs (nccl on GPUs, gloo else); nothing with one process.

    A CDSRError that leaves the block is told by the process that failed first, whichever it is; the others followed.

    Raises:
        Lost: inside the block, when this process is told to stop because another one ended.
    """
    if started() == 1:
        yield
        return
    before, store = signal.signal(signal.SIGTERM, _told_to_stop), None
    try:
        if device.type == "cuda":  # nccl sends objects through the current GPU
            torch.cuda.set_device(device)
        store = _connect("nccl" if device.type == "cuda" else "gloo")
        yield
    except CDSRError as error:
        error.told_here = _failed_first(store)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if dist.is_initialized():
            dist.destroy_process_group()


def _connect(backend: str) -> dist.Store:
    def connect() -> dist.Store:
        store, number, count = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
        return store

    return _call(connect)


def _failed_first(store: dist.Store | None) -> bool:
    try:
        return store is None or store.add("failed", 1) == 1
    except RuntimeError:  # the store ended with the process that held it
        return True


def _told_to_stop(*_: object) -> None:
    raise Lost("this process was told to stop, most likely because another process of the run ended")


def share(count: int | Tensor) -> float | Tensor:
    """Factor(s) that make a mean over this process's `count` terms its part of the mean over all processes' terms.

    Args:
        count: number of terms here; or several numbers, [n], one for each of n means.

    Returns:
        count * processes / total count, of the same shape; 0 where nobody has a term. 1.0 with one process.
    """
    if not dist.is_initialized():
        return 1.0
    here = torch.as_tensor(count).to(_device(), torch.float64)
    total = here.clone()
    _call(lambda: dist.all_reduce(total))
    return here * world() / total.clamp(min=1)


def averaged(tensor: Tensor) -> Tensor:
    """Mean of the tensor over the processes, a new one; with one process the tensor itself."""
    return averaged_together([tensor])[0]


def averaged_together(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """`averaged` of tensors of one type, the dense ones in one call, since calls cost more than small tensors.

    None stays. Of a tensor that is sparse in its first dimension only the rows that are there travel.
    """
    if not dist.is_initialized():
        return tensors
    dense = [tensor for tensor in tensors if tensor is not None and not tensor.is_sparse]
    parts = iter(())
    if dense:
        total = torch.cat([tensor.flatten() for tensor in dense])
        _call(lambda: dist.all_reduce(total))
        parts = iter(total.div_(world()).split([tensor.numel() for tensor in dense]))
    return [
        None if tensor is None else _averaged_rows(tensor) if tensor.is_sparse else next(parts).view(tensor.shape)
        for tensor in tensors
    ]


def _averaged_rows(tensor: Tensor) -> Tensor:
    tensor = tensor.coalesce()
    rows, values = tensor.indices()[0], tensor.values() / world()
    counts = [int(count) for count in _gathered(torch.tensor([len(rows)], device=rows.device))]
    short = max(counts) - len(rows)  # all send as many rows, as the collectives want it
    rows, values = F.pad(rows, (0, short)), F.pad(values, (0, 0, 0, short))
    rows, values = (
        torch.cat([part[:count] for part, count in zip(_gathered(one), counts, strict=True)]) for one in (rows, values)
    )
    return torch.sparse_coo_tensor(rows.unsqueeze(0), values, tensor.shape, check_invariants=False).coalesce()


def _gathered(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, which have one shape."""
    parts = [torch.empty_like(tensor) for _ in range(world())]
    _call(lambda: dist.all_gather(parts, tensor.contiguous()))
    return parts


def from_first(value: Any) -> Any:
    """The value that process 0 has, for all."""
    if not dist.is_initialized():
        return value
    box = [value]
    _call(lambda: dist.broadcast_object_list(box, src=0, device=_device()))
    return box[0]


def concatenate(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, one after the other."""
    if not dist.is_initialized():
        return array
    parts: list[Any] = [None] * world()
    _call(lambda: dist.all_gather_object(parts, array))
    return np.concatenate(parts)


def fail_together(error: CDSRError | None) -> None:
    """Raises, in every process, the error of the first process that has one; the others would wait for it in vain."""
    if not dist.is_initialized():
        told = [None if error is None else str(error)]
    else:
        told = [None] * world()
        _call(lambda: dist.all_gather_object(told, None if error is None else str(error)))
    for message in told:
        if message is not None:
            raise CDSRError(message) from error


@contextmanager
def first_alone() -> Iterator[None]:
    """Process 0 runs the block before the others do: what it writes, they find."""
    if rank() > 0:
        from_first(None)
    yield
    if rank() == 0:
        from_first(None)


def _device() -> torch.device:
    return torch.device("cuda", local_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _call(collective: Callable[[], Any]) -> Any:
    try:
        return collective()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0].rpartition("] ")[2][:100]  # without gloo's file and line
        raise Lost(f"another process of the run ended or cannot be reached ({reason})") from None
