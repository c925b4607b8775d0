"""`recbole-cdsr tune` as a user types it: real trials on the toy data, on a local Ray that tests share."""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from recbole_cdsr import cli, evaluation, quick_start
from recbole_cdsr.tune import search as searching
from recbole_cdsr.tune.space import space_of

pytest.importorskip("ray", reason="ray is not installed")

SMALL = ["--dataset", "toy", "--hidden_size", "16", "--inner_size", "16", "--n_layers", "1"]
SPACE = "learning_rate: {loguniform: [1e-3, 1e-1]}\nhidden_dropout_prob: [0.1, 0.3]\n"


@pytest.fixture(scope="module")
def local_ray():
    with searching.ray_started(None, dashboard=False, gpus=False) as ray:
        yield ray


def tune(*arguments: str, space: str = SPACE, epochs: int = 3) -> int:
    Path("space.yaml").write_text(space)
    return cli.main(["tune", *SMALL, "--space", "space.yaml", "--out", "out", "--epochs", str(epochs), *arguments])


def trials(out: str = "out") -> list[dict[str, str]]:
    with open(Path(out) / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_search_ends_with_a_table_a_report_and_settings_that_give_the_score_again(local_ray, capsys):
    assert tune("--samples", "4", "--grace_epochs", "1") == 0
    shown = capsys.readouterr()
    assert "4 trials" in shown.out and "macro" in shown.out and shown.err.count("after") == 4
    rows = trials()
    assert len(rows) == 4 and not any(row["error"] for row in rows)
    scores = [float(row["valid_score"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0
    page = Path("out/report.html").read_text()
    assert page.count("<img") == 2 and rows[0]["trial"] in page
    best = yaml.safe_load(Path("out/best.yaml").read_text())
    assert best["learning_rate"] == float(rows[0]["learning_rate"]) and best["epochs"] == int(rows[0]["epochs"])
    again = quick_start.run(config_file_list=["out/best.yaml"], config_dict={"show_progress": False}, run_dir="again")
    assert again["valid_score"] == scores[0]
    tested = json.loads((Path("out/trials") / rows[0]["trial"] / "result.json").read_text())
    assert tested["candidates"] == again["candidates"] and tested["part"] == "test"
    # Only the best trial has ranked test events.
    assert [path.parent.name for path in Path("out/trials").rglob("ranks.npz")] == [rows[0]["trial"]]


def test_trials_need_no_test_events_and_the_search_ranks_them_once(local_ray, monkeypatch):
    parts, whole, ranked = searching._parts, evaluation.rank_events, []

    def without_test(search):
        train, valid, test = parts(search)
        return [train, valid, test.copy(test.inter_feat[:0])]

    monkeypatch.setattr(searching, "_parts", without_test)
    monkeypatch.setattr("recbole_cdsr.trainer.rank_events", lambda *a: ranked.append(len(a[1].dataset)) or whole(*a))
    assert tune("--samples", "2", "--scheduler", "fifo") == 0
    assert ranked == [60]  # in this process, after the search


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--scheduler", "median", "--search", "optuna"],
        ["--scheduler", "fifo", "--search", "hyperopt"],
        ["--scheduler", "pbt", "--grace_epochs", "1"],
    ],
    ids=lambda words: words[1],
)
def test_every_scheduler_and_searcher_comes_to_an_end(local_ray, arguments):
    for library in {"optuna", "hyperopt"} & set(arguments):
        pytest.importorskip(library)
    assert tune("--samples", "3", *arguments) == 0
    assert len(trials()) == 3 and all(0 < int(row["epochs"]) <= 3 and not row["error"] for row in trials())


def test_a_grid_trains_every_point_and_a_failing_one_is_told(local_ray):
    space = "n_heads: [1, 2, 3]\nhidden_dropout_prob: {choice: [0.1, 0.2], when: {n_heads: 1}}\n"
    assert tune("--search", "grid", "--scheduler", "fifo", space=space, epochs=1) == 0
    rows = trials()
    points = sorted((row["n_heads"], row["hidden_dropout_prob"]) for row in rows)
    assert points == [("1", "0.1"), ("1", "0.2"), ("2", ""), ("3", "")]
    (failed,) = [row for row in rows if row["error"]]
    assert failed["n_heads"] == "3" and "hidden_size" in failed["error"] and rows[-1] == failed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheduler", "ashha"], "did you mean 'asha'"),
        (["--samples", "0"], "--samples must be above 0"),
        (["--resume"], "there is no search in out"),
        (["--resume", "--samples", "3"], "'samples' cannot be given"),
        (["--model", "Pop"], "there is no search space for Pop"),
        (["--model", "AutoCDSR", "--epoch", "3"], "no key 'epoch'"),
        (["--space", "nothing.yaml"], "cannot read the config file nothing.yaml"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, capsys):
    dataset = [] if "--resume" in arguments else ["--dataset", "toy"]
    assert cli.main(["tune", *dataset, "--out", "out", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not Path("out").exists()


def test_without_ray_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["tune", "--dataset", "toy", "--out", "out"]) == 2
    assert "recbole-cdsr[tune]" in capsys.readouterr().err and not Path("out").exists()


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

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "recbole_cdsr", "tune", *arguments]
        with open("search.log", "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

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


@pytest.mark.slow
def test_the_commands_of_the_page_run(repo, local_ray):
    page = (repo / "docs" / "tune.md").read_text(encoding="utf-8")
    search, again = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[0].strip().splitlines()
    assert cli.main(shlex.split(search)[1:]) == 0
    assert cli.main([*shlex.split(again)[1:], "--quiet"]) == 0
    scores = [float(row["valid_score"]) for row in trials("runs/search")]
    assert json.loads(Path("runs/best/result.json").read_text())["valid_score"] == scores[0]
    (space,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("space.yaml").write_text(space)
    assert "mask_ratio" in space_of("AutoCDSR", "space.yaml")


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
        subprocess.run([*ray, "stop", "--force"], capture_output=True, check=False)
