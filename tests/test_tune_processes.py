"""Searches in processes of their own: killed, interrupted, spread over two nodes; and where Ray listens."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.searching import SMALL, trials

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed", allow_module_level=True)


@pytest.fixture(autouse=True)
def _nothing_left_running():
    yield
    while Started.processes:
        kill(Started.processes.pop().pid)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def family(pid: int) -> dict[int, str]:
    """The process and all that descend from it, with their commands: other searches on this machine are not ours."""
    commands, parents = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        number = int(process.name)
        try:
            commands[number] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parents[number] = parent(number)
        except OSError:  # it has ended
            continue
    found = [pid]
    for one in found:
        found += [child for child, its_parent in parents.items() if its_parent == one]
    return {number: commands[number] for number in found if number in commands}


def kill(pid: int) -> None:
    """Kills a process and its descendants."""
    for number in family(pid):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def listening(pid: int) -> dict[str, set[str]]:
    """Addresses of listening sockets -> programs in the family of a process that hold them."""
    addresses = {}
    for kind in ("tcp", "tcp6"):
        for fields in map(str.split, Path(f"/proc/net/{kind}").read_text().splitlines()[1:]):
            if fields[3] == "0A":
                addresses[f"socket:[{fields[9]}]"] = fields[1].rpartition(":")[0]
    found: dict[str, set[str]] = {}
    for number, command in family(pid).items():
        with suppress(OSError):  # it has ended
            for link in map(os.readlink, Path(f"/proc/{number}/fd").iterdir()):
                if link in addresses:
                    found.setdefault(addresses[link], set()).add(Path(command.split()[0]).name)
    return found


class Started:
    """A program in a process of its own, by default a search."""

    processes: list[subprocess.Popen] = []

    def __init__(self, *arguments: str, program: tuple[str, ...] = ("recbole_cdsr", "tune")) -> None:
        with open("search.log", "a") as log:
            command = [sys.executable, "-m", *program, *arguments]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(self.process)

    def wait_for(self, condition, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, said()
            time.sleep(0.2)

    def ends(self) -> int:
        return self.process.wait(timeout=300)

    def workers(self) -> list[int]:
        """Processes below this one that train trials."""
        return [number for number, command in family(self.process.pid).items() if "ray::ImplicitFunc" in command]


def said() -> str:
    return Path("search.log").read_text()[-3000:]


def long_search(concurrent: int = 1, search: str = "grid") -> list[str]:
    rates = {"grid": "[0.001, 0.003, 0.01, 0.03]"}.get(search, "{loguniform: [1e-3, 1e-1]}")
    Path("space.yaml").write_text(f"learning_rate: {rates}")
    plan = ["--space", "space.yaml", "--search", search, "--scheduler", "fifo", "--max_concurrent", str(concurrent)]
    return [*SMALL, *plan, "--samples", "4", "--out", "out", "--epochs", "30", "--stopping_step", "30"]


def epochs_of(folder: Path) -> int:
    return len((folder / "history.csv").read_text().splitlines()) - 1 if (folder / "history.csv").is_file() else 0


def folders() -> list[Path]:
    """Of the trials that have begun, in the order in which they did."""
    return [path.parent for path in sorted(Path("out/trials").glob("*/environment.json"), key=os.path.getmtime)]


def check_that_nothing_is_lost() -> None:
    """Four trials with all their epochs, none of them twice."""
    rows = trials()
    assert len(rows) == 4 and all(row["epochs"] == "30" and not row["error"] for row in rows)
    assert [epochs_of(Path("out/trials") / row["trial"]) for row in rows] == [30] * 4
    assert len({row["learning_rate"] for row in rows}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "random", "optuna"])
def test_a_killed_search_goes_on_and_repeats_no_finished_trial(kind):
    search = Started(*long_search(search=kind))
    search.wait_for(lambda: len(folders()) >= 3 and epochs_of(folders()[2]) >= 3)
    search.process.kill()  # Ray ends with it
    search.process.wait()
    finished = folders()[:2]
    before = [(folder / "checkpoint.pth").stat().st_mtime_ns for folder in finished]
    again = Started("--resume", "--out", "out")
    assert again.ends() == 0, said()
    assert before == [(folder / "checkpoint.pth").stat().st_mtime_ns for folder in finished]
    check_that_nothing_is_lost()
    assert {folder.name for folder in finished} <= {row["trial"] for row in trials()}


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on_from_its_last_epoch():
    search = Started(*long_search())
    search.wait_for(lambda: folders() and epochs_of(folders()[0]) >= 5 and search.workers())
    for worker in search.workers():
        os.kill(worker, signal.SIGKILL)
    assert search.ends() == 0, said()
    check_that_nothing_is_lost()
    assert len(folders()) == 4


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="reads Linux' /proc")
def test_ray_listens_on_this_machine_only_and_ctrl_c_tells_how_to_go_on():
    search = Started(*long_search())
    search.wait_for(lambda: folders() and epochs_of(folders()[0]) >= 1)
    sockets = listening(search.process.pid)
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert set(sockets) <= loopback, sockets
    assert {"gcs_server", "raylet"} <= {name for names in sockets.values() for name in names}
    os.killpg(search.process.pid, signal.SIGINT)  # a terminal tells every process of the group
    assert search.process.wait(timeout=60) == 130, said()
    assert re.search("go on with: recbole-cdsr tune --resume --out out", said())


def node(*arguments: str) -> Started:
    """A node of a cluster, with one core."""
    fixed = ["start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    return Started(*fixed, *arguments, program=("ray.scripts.scripts",))


def raylet(of: Started) -> int | None:
    found = [number for number, command in family(of.process.pid).items() if "raylet/raylet" in command.split()[0]]
    return found[0] if found else None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads Linux' /proc")
def test_a_cluster_of_two_nodes_shares_the_trials_and_loses_none_when_one_dies(monkeypatch):
    address = f"127.0.0.2:{20000 + os.getpid() % 10000}"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")  # else a test of this process may have set it to 0
    port = address.partition(":")[2]
    head = node("--head", f"--port={port}", "--include-dashboard=false", "--node-ip-address=127.0.0.2")
    head.wait_for(lambda: raylet(head))
    second = node(f"--address={address}", "--node-ip-address=127.0.0.3")
    second.wait_for(lambda: raylet(second))
    search = Started(*long_search(concurrent=2), "--ray_address", address)
    search.wait_for(lambda: len(folders()) >= 2 and min(map(epochs_of, folders())) >= 3)
    assert len(head.workers()) == len(second.workers()) == 1  # each node trains a trial
    os.kill(raylet(second), signal.SIGKILL)
    assert search.ends() == 0, said()
    check_that_nothing_is_lost()
