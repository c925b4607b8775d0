"""A data set is written whole or not at all, and replaced only on demand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recbole_cdsr import files
from tests.test_prepare import OUT, WHOLE, prepare, save, written


def test_an_existing_data_set_is_replaced_only_on_demand_and_whole(capsys, monkeypatch):
    save("csv")
    command = ["csv", "--files", "log.csv", *WHOLE, *OUT]
    assert prepare(*command) == 0
    Path("dataset/mine/notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in Path("dataset/mine").iterdir()}
    assert prepare(*command) == 2 and "replace it by --overwrite" in capsys.readouterr().err

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        assert prepare(*command, "--overwrite", "--core", "2") == 2
    assert "No space left on device; make room" in capsys.readouterr().err
    left = {path.name: path.read_bytes() for path in Path("dataset/mine").iterdir()}
    assert left == before or "mine.inter" not in left, "never a mixture of two data sets"
    assert prepare(*command, "--overwrite", "--core", "2") == 0
    assert len(written()[0]) == 2 and Path("dataset/mine/notes.txt").read_text() == "mine"


KILLED = """
import os, signal, sys
from recbole_cdsr import cli, files
whole, left = os.replace, int(sys.argv[1])
def replace(*names):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(*names)
files.os.replace = replace
cli.main(["prepare", *sys.argv[2:]])
"""


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_crash_while_writing_leaves_no_mixture(moment):
    save("csv")
    command = ["csv", "--files", "log.csv", *WHOLE, *OUT]
    assert prepare(*command) == 0
    before = {path.name: path.read_bytes() for path in Path("dataset/mine").iterdir()}
    again = [*command, "--overwrite", "--core", "2"]
    done = subprocess.run([sys.executable, "-c", KILLED, str(moment), *again], capture_output=True)
    assert done.returncode == -9
    left = {path.name: path.read_bytes() for path in Path("dataset/mine").iterdir() if path.suffix != ".tmp"}
    assert left == before or "mine.inter" not in left
    assert prepare(*again) == 0 and len(written()[0]) == 2
    assert not list(Path("dataset/mine").glob(".*"))
