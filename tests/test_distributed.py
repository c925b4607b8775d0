"""Several processes, started by torchrun as a user does: the step, the ranks and the resumed run of one process."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_cdsr import distributed
from recbole_cdsr.ranks import RankTable
from recbole_cdsr.steps import own_rows

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
SMALL = ["--dataset", "toy", "--hidden_size", "16", "--inner_size", "16", "--n_layers", "1", "--stopping_step", "1000"]
SMALL += ["--train_batch_size", "256"]
STILL = ["--hidden_dropout_prob", "0", "--attn_dropout_prob", "0"]  # random numbers differ between processes


def run(repo, *arguments, processes=1):
    start = TORCHRUN + ["--nproc_per_node", str(processes)] if processes > 1 else [sys.executable]
    command = [*start, str(repo / "run_recbole_cdsr.py"), *SMALL, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    "arguments",
    [
        ["--objective_weighting", "preference", "--accumulate_batches", "2"],
        ["--objective_weighting", "mgda", "--objectives", "[rec_per_domain, cross_domain]"],
        ["--model", "SASRec"],
    ],
)
def test_parts_of_a_batch_take_the_step_of_the_whole(repo, arguments):
    arguments = [*arguments, *STILL, "--epochs", "3"]
    run(repo, *arguments, "--run_dir", "one")
    done = run(repo, *arguments, "--run_dir", "two", processes=2)
    assert done.stdout.count("macro") == 1, "one process speaks for all"
    one, two = (torch.load(Path(folder) / "checkpoint.pth", weights_only=True) for folder in ("one", "two"))
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, atol=2e-5, rtol=1e-4)
    for first, second in zip(one["history"], two["history"], strict=True):
        for key in set(first) - {key for key in first if key.endswith("seconds")}:
            assert second[key] == pytest.approx(first[key], rel=1e-3, abs=1e-4), key
    first, second = (RankTable.load(Path(folder) / "ranks.npz") for folder in ("one", "two"))
    assert (first.user == second.user).all() and len(first) == len(second)
    assert np.mean(first.rank_all == second.rank_all) > 0.9  # the weights agree to rounding


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank -> process number of torchrun's children."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        number = next((word[5:] for word in words if word.startswith(b"RANK=")), None)
        if parent == launcher and number is not None:
            found[int(number)] = int(folder.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_run_which_can_be_resumed(repo, victim):
    command = [*TORCHRUN, "--nproc_per_node", "2", str(repo / "run_recbole_cdsr.py"), *SMALL, "--epochs", "1000"]
    launcher = subprocess.Popen([*command, "--run_dir", "a"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    history, deadline = Path("a/history.csv"), time.monotonic() + 200
    while time.monotonic() < deadline and not (history.exists() and len(history.read_text().splitlines()) > 3):
        time.sleep(0.05)
    os.kill(ranks_of(launcher.pid)[victim], signal.SIGKILL)
    error = launcher.communicate(timeout=100)[1]
    assert launcher.returncode != 0
    told = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and told[0].endswith("; go on with the same command and --resume a")
    done = len(list(csv.DictReader(history.read_text().splitlines())))
    run(repo, "--resume", "a", "--epochs", str(done + 2))
    assert len(history.read_text().splitlines()) == 1 + done + 2


def test_gradients_by_rows_take_the_step_of_the_whole():
    """Negatives are drawn by each process for itself; here all items are negatives, so that nothing is random."""
    Path("same.py").write_text(
        "import sys, torch\n"
        "from recbole_cdsr import cli\n"
        "from recbole_cdsr.model import base\n"
        "base.draw_negatives = lambda count, n, *_: (torch.arange(1, n), torch.zeros(n - 1))\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    words = [*SMALL, *STILL, "--learner", "sparse_adam", "--loss_type", "sampled", "--epochs", "3"]
    words += ["--objectives", "[rec_per_domain, cross_domain]", "--objective_weighting", "mgda"]
    words += ["--balance_over", "all"]
    for start, folder in (([sys.executable], "one"), ([*TORCHRUN, "--nproc_per_node", "2"], "two")):
        command = [*start, "same.py", "run", *words, "--run_dir", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(Path(folder) / "checkpoint.pth", weights_only=True) for folder in ("one", "two"))
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("faulty", [[0], [1], [0, 1]])
def test_an_error_of_any_process_is_told_once(faulty):
    Path("one.py").write_text(
        "import sys, torch\n"
        "from recbole_cdsr import cli, distributed, quick_start\n"
        "from recbole_cdsr.errors import CDSRError\n"
        "def run(*_):\n"
        "    with distributed.processes(torch.device('cpu')):\n"
        f"        if distributed.rank() in {faulty}:\n"
        "            raise CDSRError('the disk is full')\n"
        "        distributed.from_first(None)\n"
        "        distributed.concatenate(torch.ones(1).numpy())\n"
        "quick_start.run = run\n"
        "sys.exit(cli.main(['run']))\n"
    )
    command = [*TORCHRUN, "--nproc_per_node", "2", "one.py"]
    error = subprocess.run(command, capture_output=True, text=True, timeout=100).stderr
    assert [line for line in error.splitlines() if line.startswith("error: ")] == ["error: the disk is full"]


def test_several_processes_rank_a_finished_run_again(repo):
    run(repo, "--epochs", "1", "--run_dir", "a")
    command = [*TORCHRUN, "--nproc_per_node", "2", "--", str(repo / "run_recbole_cdsr.py"), "evaluate", "--run", "a"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("macro") == 1, done.stderr
    assert done.stderr.count("every rank is the one that the run wrote") == 1


def test_one_process_is_left_alone():
    assert distributed.share(5) == 1.0
    tensor = torch.ones(3)
    assert distributed.averaged(tensor) is tensor
    assert distributed.concatenate(np.arange(3)).tolist() == [0, 1, 2]
    assert distributed.from_first("x") == "x"
    with distributed.processes(torch.device("cpu")), distributed.first_alone():
        assert not torch.distributed.is_initialized()


def test_rows_are_shared_out_and_none_is_lost(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        parts.append(own_rows(torch.arange(8)))
        assert parts[-1].is_contiguous(), "models of RecBole view their rows in other shapes"
        assert own_rows(torch.arange(2)).tolist() == [0, 1], "too few rows to share: all take all of them"
    assert sorted(torch.cat(parts).tolist()) == list(range(8))


def test_the_reason_of_one_process_ends_all(repo):
    """Scores that are NaN in the part of one process: all end, and the first tells why."""
    code = """
import recbole_cdsr.counting as counting, recbole_cdsr.evaluation as evaluation
from recbole_cdsr import cli, distributed
whole = evaluation._rank_rows
def broken(*arguments):
    if distributed.rank() == 1:
        raise evaluation.CDSRError("the score of an item is NaN.")
    return whole(*arguments)
evaluation._rank_rows = broken
raise SystemExit(cli.main(["run", "--dataset", "toy", "--run_dir", "a"]))
"""
    Path("broken.py").write_text(code)
    done = subprocess.run([*TORCHRUN, "--nproc_per_node", "2", "broken.py"], capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert told == ["error: validation after epoch 0 failed: the score of an item is NaN."]
