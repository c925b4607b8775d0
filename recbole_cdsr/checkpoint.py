"""Checkpoints of plain tensors and plain values: written atomically, read without running code.

RecBole pickles its Config into every checkpoint, so loading one runs whatever the file says. Here a file
holds only what `torch.load(weights_only=True)` accepts.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_cdsr.errors import CDSRError

FORMAT = 2


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that at every moment either the old or the new content is there.

    Raises:
        CDSRError: if the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CDSRError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another --run_dir, "
            f"then go on with --resume"
        ) from None


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, texts, and lists, tuples and dicts of them) atomically."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_bytes(path, buffer.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads what `save` wrote; never unpickles anything else.

    Raises:
        CDSRError: if there is no such file, it is damaged, or it is not one of ours.
    """
    if not Path(path).is_file():
        raise CDSRError(f"there is no checkpoint {path}; the run has not started, or the folder is another one")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0][:120]
        raise CDSRError(f"{path} is damaged or not a checkpoint of recbole-cdsr ({reason}); train again") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CDSRError(f"{path} was not written by this version of recbole-cdsr; train again")
    return state


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from: Python, numpy, torch and each GPU."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts every generator back to where `random_state` saw it."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
