"""Signs of life during a long loop."""

from __future__ import annotations

import logging
import sys
import time

import pytest

from recbole_cdsr import progress as module
from recbole_cdsr.progress import progress


def walk(seconds: float, shown: bool = True) -> list[int]:
    visited = []
    for step in progress(range(20), "epoch 3", shown):
        time.sleep(seconds / 20)
        visited.append(step)
    return visited


@pytest.fixture(autouse=True)
def hurried(monkeypatch, caplog):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.1)
    caplog.set_level(logging.INFO)


def test_without_a_terminal_a_long_loop_says_how_far_it_is(caplog, capsys):
    assert walk(seconds=0.6) == list(range(20))
    lines = caplog.messages
    assert 2 <= len(lines) <= 6
    assert all(line.startswith("epoch 3: ") and " % after 00:" in line and line.endswith(" left") for line in lines)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, True), (0.6, False)])
def test_a_short_loop_and_a_quiet_one_say_nothing(caplog, capsys, seconds, shown):
    assert walk(seconds, shown) == list(range(20))
    assert caplog.messages == []
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar_is_drawn_and_the_log_left_alone(caplog, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert walk(seconds=0.6) == list(range(20))
    assert "epoch 3" in capsys.readouterr().err
    assert caplog.messages == []
