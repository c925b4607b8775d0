"""The files of a bundle: json and safetensors, with a manifest of checksums that is written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor

from recbole_cdsr.errors import CDSRError

FORMAT = 1
MANIFEST = "bundle.json"


def write_manifest(folder: Path, names: list[str]) -> None:
    """Format and checksums of the files `names`."""
    files = {name: _sha256(folder / name) for name in names}
    write_json(folder / MANIFEST, {"library": "recbole-cdsr", "format": FORMAT, "sha256": files})


def read_manifest(folder: Path) -> dict[str, str]:
    """The sha256 of each file; CDSRError if there is none, it is damaged, of another program or of a newer format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CDSRError(
            f"{folder} holds no bundle (there is no {MANIFEST} in it); give a bundle or the folder of a run"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        library, version, files = manifest["library"], manifest["format"], dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError):
        raise CDSRError(
            f"{path} is damaged or of another program; copy the bundle again or export the run again"
        ) from None
    if library != "recbole-cdsr" or not isinstance(version, int) or version < 1:
        raise CDSRError(f"{path} is not of a bundle that recbole-cdsr wrote; give one that `recbole-cdsr export` made")
    if version > FORMAT:
        raise CDSRError(f"{folder} has format {version}, and this version reads up to {FORMAT}; update recbole-cdsr")
    return files


def require_intact(folder: Path, name: str, files: dict[str, str]) -> None:
    """CDSRError unless the file `name` is there as it was written."""
    path = folder / name
    if not path.is_file() or files.get(name) != _sha256(path):
        what = "is damaged or was changed" if path.is_file() else "is missing"
        raise CDSRError(f"the bundle {folder} cannot be used: {name} {what}; copy it again or export the run again")


@contextmanager
def refusing_what_does_not_fit(folder: Path) -> Iterator[None]:
    """Whatever goes wrong with content that has the right checksum means the same to the user."""
    try:
        yield
    except CDSRError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, safetensors.SafetensorError) as error:
        raise CDSRError(f"the bundle {folder} does not fit together ({error}); export the run again") from error


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """safetensors refuses tensors that share memory, as tied weights do: each is copied."""
    path.write_bytes(save({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}))


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
