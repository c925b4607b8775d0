"""Training the cells of a comparison: each in a process and a folder of its own, several at a time.

A cell is finished when its folder holds result.json and ranks.npz, which a run writes last. Its process holds a lock on
the folder, so that two comparisons, or one that is started again while processes of a killed one still train, never
train in the same folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from recbole_cdsr.checkpoint import write_bytes
from recbole_cdsr.compare.plan import Cell
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.run_folder import CONFIG, LAST, MAY_CHANGE, RANKS, RESULT, as_json
from recbole_cdsr.yaml_values import read_yaml

SETTINGS, USAGE, OUTPUT, LOCK = "settings.yaml", "cell.json", "output.log", ".lock"
RUN = (sys.executable, "-m", "recbole_cdsr", "run")
LOCK_SECONDS = 1.0
# These change neither the data nor the training of a cell; unlike in a resumed run, its length may not change.
FREE_KEYS = MAY_CHANGE - {"epochs", "stopping_step"}


@dataclass
class Usage:
    """What the processes of a cell took: seconds, and CPU seconds of all threads; and how the last ended."""

    dataset: str
    variant: str
    seed: int
    only: str | None
    starts: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    failure: str | None = None


def finished(folder: Path) -> bool:
    """Whether the run in `folder` went to its end."""
    return (folder / RESULT).is_file() and (folder / RANKS).is_file()


def usage_of(folder: Path, cell: Cell | None = None) -> Usage | None:
    """What the cell's processes took so far; a new count for `cell` (None without one) where nothing was written."""
    try:
        return Usage(**json.loads((folder / USAGE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Usage(cell.dataset, cell.variant, cell.seed, cell.only) if cell else None


def begun(folder: Path) -> bool:
    """Whether the run in `folder` has trained an epoch; until then its settings may change."""
    return (folder / LAST).is_file() or finished(folder)


def refuse_other_settings(folder: Path, cell: Cell, wanted: dict[str, Any]) -> None:
    """CDSRError if the folder holds a run with other settings than `wanted` (as `config.plain` gives them)."""
    if not (folder / CONFIG).is_file() or not begun(folder):
        return
    there = read_yaml(folder / CONFIG)
    for key in {**there, **wanted}:
        if key not in FREE_KEYS and there.get(key) != wanted.get(key):
            has = f"has {key} = {there.get(key)}, but the plan says {wanted.get(key)}"
            raise CDSRError(f"the run in {folder} {has}; move the folder away, or choose another --out")


def threads_per_job(jobs: int) -> int:
    """The cores this process may use, shared out among the jobs; at least one each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def seconds_left(waiting: Iterable[Cell], done: Iterable[Usage], jobs: int) -> float | None:
    """An estimate from cells that finished: of the same data set, variant and domain if there are any, else of the
    same data set and variant, else of the same data set, else of all; None where none finished."""
    waiting, known = list(waiting), list(done)
    total = 0.0
    for cell in waiting:
        alike = [u for u in known if (u.dataset, u.variant, u.only) == (cell.dataset, cell.variant, cell.only)]
        alike = alike or [u for u in known if (u.dataset, u.variant) == (cell.dataset, cell.variant)]
        alike = alike or [u for u in known if u.dataset == cell.dataset] or known
        if not alike:
            return None
        total += sum(usage.wall_seconds for usage in alike) / len(alike)
    return total / max(1, min(jobs, len(waiting)))


class Runner:
    """Trains cells below the folder `out`, `jobs` at a time.

    Args:
        tell: called with one line for everything that happens.
    """

    def __init__(self, out: Path, jobs: int, tell: Callable[[str], None]) -> None:
        self.out, self.jobs, self.tell = out, jobs, tell
        self.stopped = threading.Event()
        self._running: set[subprocess.Popen] = set()
        self._guard = threading.Lock()

    def train(self, cells: list[Cell]) -> list[Usage]:
        """Trains what is not finished; a cell that fails does not stop the others.

        Returns:
            the cells that failed.

        Raises:
            KeyboardInterrupt: after every process ended; what they trained stays, to go on from.
        """
        done = [usage for cell in cells if finished(self.out / cell.name) if (usage := usage_of(self.out / cell.name))]
        waiting = [cell for cell in cells if not finished(self.out / cell.name)]
        total, failed = len(cells), []
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._train, cell): cell for cell in waiting}
            try:
                for future in as_completed(futures):
                    usage, cell = future.result(), futures[future]
                    waiting.remove(cell)
                    (failed if usage.failure else done).append(usage)
                    what = f"failed: {usage.failure}" if usage.failure else f"done in {span(usage.wall_seconds)}"
                    left = seconds_left(waiting, done, self.jobs)
                    rest = f"; about {span(left)} left" if waiting and left is not None else ""
                    self.tell(f"[{total - len(waiting)}/{total}] {cell.name} {what}{rest}")
            except BaseException:
                self._stop()
                raise
        return failed

    def _stop(self) -> None:
        """No new process; those that train keep their last epoch and end."""
        with self._guard:
            self.stopped.set()
            for process in self._running:
                process.terminate()

    def _train(self, cell: Cell) -> Usage:
        folder = self.out / cell.name
        usage = usage_of(folder, cell)
        usage.failure = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / LOCK, "w") as lock:
                if self._lock(lock, cell) and not finished(folder):
                    self._run(cell, folder, lock.fileno(), usage)
        except (OSError, CDSRError) as error:
            usage.failure = str(error)
        return usage

    def _lock(self, lock: IO, cell: Cell) -> bool:
        """Waits for a process that another comparison, perhaps a killed one, left in the folder; False if stopped."""
        told = False
        while not self.stopped.wait(LOCK_SECONDS if told else 0):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if not told:
                    self.tell(f"{cell.name} is being trained by another process; waiting for it")
                told = True
        return False

    def _run(self, cell: Cell, folder: Path, lock: int, usage: Usage) -> None:
        usage.starts += 1
        write_bytes(folder / USAGE, as_json(asdict(usage)))
        write_bytes(folder / SETTINGS, yaml.safe_dump(cell.settings, sort_keys=False, allow_unicode=True).encode())
        words = [*RUN, "--config_files", str(folder / SETTINGS), "--quiet"]
        words += ["--run_dir", str(folder), *(["--resume"] if (folder / LAST).is_file() else [])]
        threads = str(threads_per_job(self.jobs))
        start = time.monotonic()
        with open(folder / OUTPUT, "ab") as output:
            with self._guard:
                if self.stopped.is_set():
                    usage.failure = "stopped before it began"
                    return
                environment = {"OMP_NUM_THREADS": threads, **os.environ}
                process = subprocess.Popen(words, stdout=output, stderr=output, env=environment, pass_fds=[lock])
                self._running.add(process)
            _, status, resources = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            with self._guard:
                self._running.discard(process)
        usage.wall_seconds += time.monotonic() - start
        usage.cpu_seconds += resources.ru_utime + resources.ru_stime
        usage.failure = None if finished(folder) else _reason(process.returncode, folder / OUTPUT)
        write_bytes(folder / USAGE, as_json(asdict(usage)))


def _reason(status: int, output: Path) -> str:
    """Why a process failed: the last line that it wrote, which is its error."""
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"{lines[-1].removeprefix('error: ')} ({how})" if lines else f"{how}; see {output}"


def span(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
