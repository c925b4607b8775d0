"""Searches in processes of their own: killed, interrupted, spread over two nodes; and where Ray listens."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed", allow_module_level=True)

SMALL = ["--dataset", "toy", "--hidden_size", "16", "--inner_size", "16", "--n_layers", "1"]


@pytest.fixture(autouse=True)
def _nothing_left_running():
    yield
    for process in Started.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    Started.processes.clear()


def trials() -> list[dict[str, str]]:
    with open("out/trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def listening() -> dict[str, set[str]]:
    """Addresses of listening sockets -> commands of the processes of Ray that hold them."""
    addresses = {}
    for kind in ("tcp", "tcp6"):
        for fields in map(str.split, Path(f"/proc/net/{kind}").read_text().splitlines()[1:]):
            if fields[3] == "0A":
                addresses[f"socket:[{fields[9]}]"] = fields[1].rpartition(":")[0]
    found: dict[str, set[str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            links = [os.readlink(link) for link in (process / "fd").iterdir()] if "/ray/" in command else []
        except OSError:  # it has ended
            continue
        for link in links:
            if link in addresses:
                found.setdefault(addresses[link], set()).add(command[:80])
    return found


class Started:
    """A search in a process of its own."""

    processes: list[subprocess.Popen] = []

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "recbole_cdsr", "tune", *arguments]
        with open("search.log", "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(self.process)

    def wait_for(self, condition, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, said()
            time.sleep(0.2)


def said() -> str:
    return Path("search.log").read_text()[-3000:]


def long_search(concurrent: int = 1) -> list[str]:
    Path("space.yaml").write_text("learning_rate: [0.001, 0.003, 0.01, 0.03]")
    plan = ["--space", "space.yaml", "--search", "grid", "--scheduler", "fifo", "--max_concurrent", str(concurrent)]
    return [*SMALL, *plan, "--out", "out", "--epochs", "30", "--stopping_step", "30"]


def epochs_of(folder: Path) -> int:
    return len((folder / "history.csv").read_text().splitlines()) - 1 if (folder / "history.csv").is_file() else 0


def folders() -> list[Path]:
    return sorted(Path("out/trials").iterdir()) if Path("out/trials").is_dir() else []


def workers() -> list[int]:
    """Processes that train trials."""
    found = subprocess.run(["pgrep", "-f", "ray::.*(run_trial|ImplicitFunc)"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.slow
def test_a_killed_search_goes_on_and_repeats_no_finished_trial():
    search = Started(*long_search())
    search.wait_for(lambda: len(folders()) >= 3 and epochs_of(folders()[2]) >= 3)
    os.killpg(search.process.pid, signal.SIGKILL)  # the driver, and Ray with it
    search.process.wait()
    first = folders()[0]
    before = (first / "checkpoint.pth").stat().st_mtime_ns
    assert epochs_of(first) == 30
    again = Started("--resume", "--out", "out")
    assert again.process.wait(timeout=240) == 0, said()
    assert (first / "checkpoint.pth").stat().st_mtime_ns == before
    rows = trials()
    assert len(rows) == 4 and all(row["epochs"] == "30" and not row["error"] for row in rows)
    assert [epochs_of(folder) for folder in folders()] == [30] * 4


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on_from_its_last_epoch():
    search = Started(*long_search())
    search.wait_for(lambda: folders() and epochs_of(folders()[0]) >= 5 and workers())
    for worker in workers():
        os.kill(worker, signal.SIGKILL)
    assert search.process.wait(timeout=240) == 0, said()
    rows = trials()
    assert len(rows) == 4 and all(row["epochs"] == "30" and not row["error"] for row in rows)
    assert [epochs_of(folder) for folder in folders()] == [30] * 4  # no epoch twice


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="reads Linux' /proc")
def test_ray_listens_on_this_machine_only_and_ctrl_c_tells_how_to_go_on():
    search = Started(*long_search())
    search.wait_for(lambda: folders() and epochs_of(folders()[0]) >= 1)
    sockets = listening()
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert sockets and set(sockets) <= loopback, sockets
    search.process.send_signal(signal.SIGINT)
    assert search.process.wait(timeout=60) == 130, said()
    assert re.search("go on with: recbole-cdsr tune --resume --out out", said())


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads Linux' /proc")
def test_a_cluster_of_two_nodes_shares_the_trials_and_loses_none_when_one_dies(monkeypatch):
    port = 20000 + os.getpid() % 10000
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")  # else a test of this process may have set it to 0
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [*ray, "start", "--num-cpus=1", "--disable-usage-stats"]
    try:
        head = ["--head", f"--port={port}", "--include-dashboard=false", "--node-ip-address=127.0.0.2"]
        subprocess.run([*start, *head], capture_output=True, check=True)
        second = [f"--address=127.0.0.2:{port}", "--node-ip-address=127.0.0.3"]
        subprocess.run([*start, *second], capture_output=True, check=True)
        search = Started(*long_search(concurrent=2), "--ray_address", f"127.0.0.2:{port}")
        search.wait_for(lambda: len(workers()) == 2 and len(folders()) >= 2 and min(map(epochs_of, folders())) >= 3)
        nodes = {parent(worker) for worker in workers()}
        assert len(nodes) == 2  # a raylet is a node; each trains a trial
        os.kill(max(nodes), signal.SIGKILL)  # the second one: the head holds the cluster together
        assert search.process.wait(timeout=240) == 0, said()
        rows = trials()
        assert len(rows) == 4 and all(row["epochs"] == "30" and not row["error"] for row in rows)
        assert [epochs_of(folder) for folder in folders()] == [30] * 4
    finally:
        subprocess.run(["pkill", "-9", "-f", r"127\.0\.0\.[23]"], check=False)  # not `ray stop`: it would end every Ray
