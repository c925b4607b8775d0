"""Killed at any moment, out of room, without permission, out of memory: a run goes on, or says what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from recbole_cdsr import cli, quick_start
from recbole_cdsr.data import sources
from recbole_cdsr.model.autocdsr import AutoCDSR
from recbole_cdsr.run_folder import CONFIG, LAST
from tests.killing import SETTINGS, end_state, half_written, same


def run(folder: Path, *more: str) -> int:
    """The command, in this process, working in `folder`; resumes what can be resumed."""
    folder.mkdir(exist_ok=True)
    here = Path.cwd()
    os.chdir(folder)
    try:
        how = ["--resume", "run"] if Path("run", CONFIG).exists() else ["--run_dir", "run"]
        return cli.main(["run", *SETTINGS, *how, *more])
    finally:
        os.chdir(here)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_nothing(kills):
    done = subprocess.run([sys.executable, "-m", "tests.killing", str(kills)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing was lost" in done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


@contextmanager
def room_for(size: int):
    """The system refuses to make a file longer than `size` bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "what"),
    [(500, "cannot write the data set toy"), (20_000, "cannot write run/checkpoint.pth")],
)
def test_a_file_that_cannot_be_written_ends_in_one_sentence(tmp_path, capsys, whole, size, what):
    with room_for(size):
        assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {what}") and error.count("\n") == 1
    assert not half_written(tmp_path)
    assert run(tmp_path) == 0
    assert same(end_state(whole), end_state(tmp_path))


FAILURES = [(call, errno.ENOSPC) for call in (0, 1, 2, 4, 7)] + [(3, errno.EROFS), (3, errno.EACCES), (3, errno.EIO)]


@pytest.mark.parametrize(("call", "number"), FAILURES)
def test_a_write_that_fails_at_any_moment_loses_nothing(tmp_path, capsys, monkeypatch, whole, call, number):
    """The environment, the settings, the first checkpoint, and files of an epoch."""
    sources.ensure_built_in("toy", tmp_path / "dataset" / "toy")
    calls, exact = [], os.fsync

    def failing(file):
        calls.append(file)
        if len(calls) == call + 1:
            raise OSError(number, os.strerror(number))
        exact(file)

    monkeypatch.setattr(os, "fsync", failing)
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write run/") and error.count("\n") == 1
    assert os.strerror(number) in error and "make room or choose another --run_dir" in error
    assert not half_written(tmp_path)
    assert run(tmp_path) == 0
    assert same(end_state(whole), end_state(tmp_path))


def as_nobody(function):
    """Permissions do not bind root: root calls it as nobody."""

    def called(*args, **keys):
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            return function(*args, **keys)
        finally:
            if root:
                os.seteuid(0)

    return called


@pytest.mark.parametrize(
    ("owner", "name", "what"),
    [
        (quick_start, "open_folder", "make the run folder run"),
        (sources, "build", "write the data set toy to dataset/toy"),
    ],
)
def test_a_folder_without_permission_ends_in_one_sentence(tmp_path, capsys, monkeypatch, owner, name, what):
    if name == "open_folder":
        sources.ensure_built_in("toy", tmp_path / "dataset" / "toy")
    monkeypatch.setattr(owner, name, as_nobody(getattr(owner, name)))
    tmp_path.chmod(0o555)
    try:
        assert cli.main(["run", *SETTINGS, "--run_dir", "run"]) == 2
    finally:
        tmp_path.chmod(0o755)
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot {what}: Permission denied; set --") and error.count("\n") == 1


def test_a_log_that_cannot_be_written_ends_in_one_sentence(tmp_path, capsys):
    (tmp_path / "run" / "run.log").mkdir(parents=True)
    assert run(tmp_path) == 2
    assert "error: cannot write run/run.log: Is a directory; set --run_dir" in capsys.readouterr().err


def too_large(*arguments):
    return torch.empty(2**50)


def refused_by_python(*arguments):
    raise MemoryError


def refused_by_a_gpu(*arguments):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("refusal", [too_large, refused_by_python, refused_by_a_gpu])
def test_too_little_memory_for_a_batch_names_the_key(tmp_path, capsys, monkeypatch, whole, refusal):
    exact, calls = AutoCDSR.calculate_losses, []

    def losses(model, batch):
        calls.append(batch)
        return refusal() if len(calls) == 5 else exact(model, batch)

    monkeypatch.setattr(AutoCDSR, "calculate_losses", losses)
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there was not enough memory for epoch ") and error.count("\n") == 1
    assert "start a new run with --train_batch_size 128 --accumulate_batches 2" in error
    assert (tmp_path / "run" / LAST).exists() and not half_written(tmp_path)
    assert run(tmp_path) == 0, "it was something else that took the memory"
    assert same(end_state(whole), end_state(tmp_path))


def test_too_little_memory_in_a_model_of_recbole_names_the_key(tmp_path, capsys, monkeypatch):
    from recbole.model.sequential_recommender.sasrec import SASRec

    monkeypatch.setattr(SASRec, "calculate_loss", too_large)
    assert run(tmp_path, "--model", "SASRec") == 2
    assert "error: there was not enough memory for epoch 0, batch 0; start a new run" in capsys.readouterr().err


def test_too_little_memory_for_ranking_names_the_key(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(AutoCDSR, "user_state", too_large)
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert "not enough memory for ranking 16 events at once; set a smaller eval_batch_size" in error
