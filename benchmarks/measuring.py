"""CPU seconds and peak memory of a call, alone in a process where memory counts (Linux)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def measured(call: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of all threads, and MB at the peak above what the process held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far becomes what is held now
    before, seconds = high_water(), cpu_seconds(call)
    return seconds, high_water() - before


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of all threads."""
    start = time.process_time()
    call()
    return time.process_time() - start


def high_water() -> float:
    """MB at the peak. Not getrusage, whose peak survives exec: the parent's may be the higher one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def in_a_process(script: str, *arguments: object, env: dict[str, str] | None = None) -> list[float]:
    """The numbers that a script prints last in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | (env or {}), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return [float(number) for number in done.stdout.splitlines()[-1].split()]
