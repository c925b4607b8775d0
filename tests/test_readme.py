"""Every command of the README and every line of Python in it and in docs/ runs, as it stands, on the small data set."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_first_screen_has_both_commands(repo):
    first = (repo / "README.md").read_text(encoding="utf-8").splitlines()[:30]
    assert any("pip install -e" in line and "run_recbole_cdsr.py" in line for line in first)
    assert "python -m pytest" in first


@pytest.mark.slow
def test_commands_run(repo):
    lines = [
        line.split("  #")[0].strip() for block in blocks(repo / "README.md", "bash") for line in block.splitlines()
    ]
    starts = {
        "python": [sys.executable],
        "recbole-cdsr": [sys.executable, "-m", "recbole_cdsr"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run"],
    }
    ours = [words for line in lines if (words := shlex.split(line)) and words[0] in starts and "pytest" not in words]
    assert len(ours) >= 6
    for line in ours:
        script = [repo / word if word == "run_recbole_cdsr.py" else word for word in line[1:]]
        words = [*starts[line[0]], *script]
        if not {"--help", "doctor", "evaluate", "recommend", "study"} & set(words):
            names_data = {"--resume", "compare"} & set(words)
            words += ["--epochs", "2"] if names_data else ["--dataset", "toy", "--epochs", "2"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.slow
def test_python_runs(repo):
    for page in [repo / "README.md", *(repo / "docs").glob("*.md")]:
        for block in blocks(page, "python"):
            code = block.replace('"ml-100k"', '"toy"')
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
            assert done.returncode == 0, f"{page.name}: {done.stderr}"
