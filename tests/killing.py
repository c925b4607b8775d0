"""Kills training processes with SIGKILL at random moments, resumes them, and compares the end with a run left alone.

    python -m tests.killing KILLS [SEED]        in an empty folder; ends with 0 if nothing was lost

Starting Python takes longer than a whole run here, so one process imports everything once, and every run is a fork of
it that calls the command's `main`. A run tells through a pipe when it enters a phase (its first letter) and leaves it
(in capitals); the kill comes at a random call of a phase, after a random part of its usual length, and counts only if
the run was still inside.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from recbole_cdsr import checkpoint, cli, quick_start
from recbole_cdsr.ranks import RankTable
from recbole_cdsr.run_folder import BEST, CONFIG, HISTORY, LAST, RANKS, RESULT, TRANSFER
from recbole_cdsr.trainer import MGDATrainer

PHASES = {
    "preparing": [(quick_start, "prepare")],
    "training": [(MGDATrainer, "_train_epoch")],
    "evaluation": [(MGDATrainer, "rank_table")],
    "saving": [(checkpoint, "write_bytes"), (RankTable, "save")],
}
SETTINGS = ["--dataset", "toy", "--data_path", "dataset", "--seed", "5", "--json", "--epochs", "4", "--n_layers", "1"]
SETTINGS += ["--hidden_size", "16", "--inner_size", "16", "--train_batch_size", "256", "--eval_batch_size", "16"]
KILLS_PER_RUN = 5


class Forked:
    """The command in a forked process that works in `folder`, and resumes what can be resumed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        resume = ["--resume", "run"] if (folder / "run" / CONFIG).exists() else ["--run_dir", "run"]
        self.pipe, child_end = os.pipe()
        self.number = os.fork()
        if self.number == 0:
            status = 1
            try:
                os.chdir(folder)
                log = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                for phase, places in PHASES.items():
                    for owner, name in places:
                        _tell(owner, name, phase[0].encode(), child_end)
                status = cli.main(["run", *SETTINGS, *resume])
                Path("modules").write_text("\n".join(sys.modules))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(child_end)

    def read(self) -> str:
        """The next sign; empty when the process is gone."""
        return os.read(self.pipe, 1).decode()

    def rest(self) -> str:
        return "".join(iter(self.read, ""))

    def wait(self) -> int:
        """Exit status, negative for a signal."""
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])


def _tell(owner, name: str, letter: bytes, pipe: int) -> None:
    inner = getattr(owner, name)

    def told(*args, **keys):
        os.write(pipe, letter)
        try:
            return inner(*args, **keys)
        finally:
            os.write(pipe, letter.upper())

    setattr(owner, name, told)


def usual(folder: Path) -> dict[str, list[float]]:
    """Seconds of every call of each phase in a run that nobody kills."""
    run, starts, lengths = Forked(folder), {}, {phase: [] for phase in PHASES}
    while sign := run.read():
        if sign.islower():
            starts[sign] = time.perf_counter()
        else:
            phase = next(phase for phase in PHASES if phase[0] == sign.lower())
            lengths[phase].append(time.perf_counter() - starts[sign.lower()])
    assert run.wait() == 0, (folder / "output").read_text()
    return lengths


def kill_once(folder: Path, phase: str, lengths: list[float], rng: random.Random) -> bool | None:
    """Starts or resumes a run and kills it in a phase; whether it was inside, None if it had ended before."""
    call = rng.randrange(len(lengths))
    if phase == "preparing" and (meta := folder / "dataset" / "toy" / "meta.json").exists():
        meta.write_text(
            "{}"
        )  # as if an older version had built the set: it is built anew and takes the old one's place
    run, seen = Forked(folder), 0
    while sign := run.read():
        seen += sign == phase[0]
        if seen > call:
            time.sleep(rng.random() * lengths[call])
            os.kill(run.number, signal.SIGKILL)
            break
    inside = bool(sign) and phase[0].upper() not in run.rest()
    status = run.wait()
    assert status in (0, -signal.SIGKILL), (folder / "output").read_text()
    return None if status == 0 else inside


def end_state(folder: Path) -> dict:
    """Everything that a finished run leaves, without times of the clock and without places."""
    run = folder / "run"
    rows = list(csv.DictReader((run / HISTORY).read_text().splitlines()))
    result = json.loads((run / RESULT).read_text())
    last = checkpoint.load(run / LAST)
    last["history"] = [_timeless(row) for row in last["history"]]
    return {
        "names": sorted(path.name for path in run.iterdir())
        + sorted(path.name for path in (folder / "dataset").iterdir()),
        "last": last,
        "best": checkpoint.load(run / BEST),
        "history": [_timeless(row) for row in rows],
        "transfer": (run / TRANSFER).read_text(),
        "ranks": vars(RankTable.load(run / RANKS)),
        "result": {key: value for key, value in _timeless(result).items() if key not in ("environment", "run_dir")},
        "half": half_written(folder),
    }


def half_written(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".")]


def _timeless(row: dict) -> dict:
    """Without what the machine had to do with it: seconds and memory."""
    return {key: value for key, value in row.items() if not key.endswith(("_seconds", "memory_bytes"))}


def same(first, second) -> bool:
    """Equal bit for bit, through dicts, lists, tensors and arrays."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    return first == second


def main(kills: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    whole = Path("whole").resolve()
    Forked(whole).wait()
    for name in (whole / "modules").read_text().split():  # what a run imports late is there for all from now on
        with suppress(ImportError, AttributeError):
            importlib.import_module(name)
    lengths = usual(Path("timed").resolve())
    wanted = end_state(whole)
    assert not wanted["half"], wanted["half"]
    landed, runs, halves = Counter(), 0, 0
    while any(landed[phase] < kills // len(PHASES) for phase in PHASES):
        folder, runs = Path(f"killed-{runs}").resolve(), runs + 1
        for _ in range(KILLS_PER_RUN):
            phase = min(PHASES, key=lambda name: (landed[name], rng.random()))
            inside = kill_once(folder, phase, lengths[phase], rng)
            landed[phase] += inside is True
            halves += bool(half_written(folder))
            if inside is None or sum(landed.values()) == kills:
                break
        assert Forked(folder).wait() == 0, (folder / "output").read_text()
        found = end_state(folder)
        different = [name for name in wanted if not same(wanted[name], found[name])]
        assert not different, f"{folder}: {different}, {found['names']}, {found['half']}"
    seconds = time.process_time() + os.times().children_user + os.times().children_system
    print(
        f"kills {dict(landed)} in {runs} runs, {halves} left half a file behind; nothing was lost; {seconds:.0f} s CPU"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
