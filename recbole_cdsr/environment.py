"""Under which conditions a result came about: command, commit, versions, seed, machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import recbole_cdsr
from recbole_cdsr import distributed

PACKAGES = ("recbole", "torch", "numpy", "pandas", "pyarrow")


def environment(config, command: str | None) -> dict[str, Any]:
    """Plain values for a result file.

    Args:
        config: its seed and device are named.
        command: how the program was started.
    """
    return {
        "command": command,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": config["seed"],
        "device": str(config["device"]),
        "processes": distributed.world(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Versions of this package and of those that results depend on."""
    return {"recbole_cdsr": recbole_cdsr.__version__, **{name: _version(name) for name in PACKAGES}}


def commit() -> str | None:
    """Commit of the checkout this package runs from, with '+changes' if files differ; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
