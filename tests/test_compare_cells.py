"""Cells: which are trained, what is kept, how failures and kills end. A small script stands in for a training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from recbole_cdsr.compare import cells as module
from recbole_cdsr.compare.cells import Runner, Usage, finished, refuse_other_settings, seconds_left, usage_of
from recbole_cdsr.compare.plan import Cell, make_plan
from recbole_cdsr.errors import CDSRError

STAND_IN = """
import os, pathlib, sys, time, yaml
keys = yaml.safe_load(open(sys.argv[sys.argv.index("--config_files") + 1]))
folder = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
with open("log", "a") as log:
    print(folder, os.environ["OMP_NUM_THREADS"], "resumed" if "--resume" in sys.argv else "new", file=log)
(folder / "checkpoint.pth").write_text("x")
time.sleep(keys.get("sleep", 0))
if keys["model"] == "HSTU":
    sys.exit("error: no such luck")
if keys["model"] == "Pop":
    os.kill(os.getpid(), 9)
for name in ("ranks.npz", "result.json"):
    (folder / name).write_text("{}")
"""


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    Path("train.py").write_text(STAND_IN)
    monkeypatch.setattr(module, "RUN", (sys.executable, "train.py"))
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.02)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def cells_of(models: list[str], seeds=(1,), **keys) -> list[Cell]:
    return make_plan({"models": models, "datasets": ["toy"], "seeds": list(seeds), "keys": keys}).cells(lambda _: [])


def train(cells: list[Cell], jobs: int = 1) -> tuple[list[Usage], list[str]]:
    told: list[str] = []
    return Runner(Path("out"), jobs, told.append).train(cells), told


def test_a_failed_cell_is_told_and_stops_no_other():
    cells = cells_of(["HSTU", "SASRec", "Pop"])
    failed, told = train(cells)
    assert [(usage.variant, usage.failure) for usage in failed] == [
        ("HSTU", "no such luck (exit status 1)"),
        ("Pop", "killed by signal 9; see out/toy/Pop/1/output.log"),
    ]
    assert [line.split()[0] for line in told] == ["[1/3]", "[2/3]", "[3/3]"]
    assert "failed: no such luck" in told[0] and "done in" in told[1] and "about" in told[1]
    assert [finished(Path("out") / cell.name) for cell in cells] == [False, True, False]
    usage = usage_of(Path("out") / cells[1].name)
    assert usage.wall_seconds > 0 and usage.cpu_seconds > 0 and usage.starts == 1


def test_finished_cells_are_kept_and_others_go_on():
    cells = cells_of(["HSTU", "SASRec"])
    train(cells)
    more = cells_of(["HSTU", "SASRec"], seeds=(1, 2))
    failed, _ = train(more)
    assert [(usage.seed, usage.starts) for usage in failed] == [(1, 2), (2, 1)]
    lines = Path("log").read_text().split("\n")[2:-1]
    assert sorted((line.split()[0], line.split()[2]) for line in lines) == [
        ("out/toy/HSTU/1", "resumed"), ("out/toy/HSTU/2", "new"), ("out/toy/SASRec/2", "new"),
    ]  # fmt: skip


def test_jobs_run_together_and_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    start = time.monotonic()
    failed, _ = train(cells_of(["SASRec"], seeds=(1, 2, 3), sleep=2), jobs=3)
    assert not failed and time.monotonic() - start < 5.5
    assert {line.split()[1] for line in Path("log").read_text().splitlines()} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    train(cells_of(["GRU4Rec"]), jobs=8)
    assert Path("log").read_text().split()[-2] == "5", "what the user has set wins"


def test_a_process_left_behind_is_waited_for():
    """Two comparisons, or the processes of a killed one, never train in one folder."""
    (cell,) = cells_of(["SASRec"])
    folder = Path("out") / cell.name
    folder.mkdir(parents=True)
    hold = "import fcntl, pathlib, sys, time\nlock = open(sys.argv[1], 'w')\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
    finish = "print(1, flush=True)\ntime.sleep(.5)\nfor n in ('ranks.npz', 'result.json'):\n"
    finish += "    pathlib.Path(sys.argv[1]).with_name(n).write_text('{}')"
    other = subprocess.Popen([sys.executable, "-c", hold + finish, str(folder / ".lock")], stdout=subprocess.PIPE)
    other.stdout.readline()
    failed, told = train([cell])
    other.communicate()
    assert not failed and not Path("log").exists() and "waiting for it" in told[0]


def test_a_killed_comparison_leaves_no_two_processes_in_a_folder():
    """Its process trains on, keeps the lock, and is waited for."""
    (cell,) = cells_of(["SASRec"], sleep=1.5)
    code = f"""
import pathlib
from recbole_cdsr.compare import cells, plan
cells.RUN = {module.RUN!r}
cells.Runner(pathlib.Path("out"), 1, print).train([plan.Cell("toy", "SASRec", 1, None, {cell.settings!r})])
"""
    first = subprocess.Popen([sys.executable, "-c", code])
    while not Path("log").exists() and first.poll() is None:
        time.sleep(0.01)
    first.kill()
    first.wait()
    failed, told = train([cell])
    assert not failed and "waiting for it" in told[0] and len(Path("log").read_text().splitlines()) == 1


def test_ctrl_c_ends_every_process_and_starts_no_other():
    cells = cells_of(["SASRec"], seeds=(1, 2, 3), sleep=60)
    process = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    process.start()
    with pytest.raises(KeyboardInterrupt):
        train(cells)
    assert len(Path("log").read_text().splitlines()) <= 1


def test_other_settings_are_refused():
    (cell,) = cells_of(["SASRec"])
    folder = Path("out") / cell.name
    refuse_other_settings(folder, cell, {"epochs": 3})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"epochs": 3, "data_path": "a", "n_layers": 1}))
    refuse_other_settings(folder, cell, {"epochs": 3, "data_path": "b", "n_layers": 1})
    refuse_other_settings(folder, cell, {"epochs": 4, "n_layers": 1})  # nothing is trained yet
    (folder / "checkpoint.pth").touch()
    with pytest.raises(CDSRError, match="has epochs = 3, but the plan says 4; move the folder away"):
        refuse_other_settings(folder, cell, {"epochs": 4, "n_layers": 1})


def test_time_left_is_that_of_cells_most_alike():
    waiting = cells_of(["SASRec", "HSTU"], seeds=(2,))
    assert seconds_left(waiting, [], 1) is None and seconds_left([], [], 1) == 0
    slow = Usage("toy", "SASRec", 1, None, wall_seconds=100)
    assert seconds_left(waiting, [slow], 1) == 200
    assert seconds_left(waiting, [slow, Usage("toy", "HSTU", 1, None, wall_seconds=10)], 2) == 55
    assert seconds_left(waiting[:1], [slow], 8) == 100, "one run cannot be shared out"
