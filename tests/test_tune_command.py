"""`recbole-cdsr tune` as a user types it: real trials on the toy data, on a local Ray that tests share."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from recbole_cdsr import cli, evaluation, quick_start
from recbole_cdsr.tune import search as searching
from recbole_cdsr.tune.cluster import ray_started
from recbole_cdsr.tune.space import space_of
from tests.searching import SMALL, trials

# Not importorskip: the search sets what Ray reads when it is imported, so that it listens on this machine only.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")

SPACE = "learning_rate: {loguniform: [1e-3, 1e-1]}\nhidden_dropout_prob: [0.1, 0.3]\n"


@pytest.fixture(scope="module")
def local_ray():
    with ray_started(None, dashboard=False, gpus=False) as ray:
        yield ray


def tune(*arguments: str, space: str = SPACE, epochs: int = 3) -> int:
    Path("space.yaml").write_text(space)
    return cli.main(["tune", *SMALL, "--space", "space.yaml", "--out", "out", "--epochs", str(epochs), *arguments])


def test_a_search_ends_with_a_table_a_report_and_settings_that_give_the_score_again(local_ray, capsys):
    assert tune("--samples", "4", "--grace_epochs", "1") == 0
    shown = capsys.readouterr()
    assert "4 trials" in shown.out and "macro" in shown.out and shown.err.count("after") == 4
    assert "[4] " in shown.err and "asha stopped" in shown.out
    rows = trials()
    assert {row["ended"] for row in rows} <= {"last epoch", "asha"} and all(row["trial"] in shown.out for row in rows)
    assert len(rows) == 4 and not any(row["error"] for row in rows)
    scores = [float(row["valid_score"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0
    page = Path("out/report.html").read_text()
    assert page.count("<img") == 2 and rows[0]["trial"] in page
    best = yaml.safe_load(Path("out/best.yaml").read_text())
    assert best["learning_rate"] == float(rows[0]["learning_rate"]) and best["epochs"] == int(rows[0]["epochs"])
    assert best["data_path"] == str(Path("dataset").resolve())  # trials work elsewhere
    again = quick_start.run(config_file_list=["out/best.yaml"], config_dict={"show_progress": False}, run_dir="again")
    assert again["valid_score"] == scores[0]
    tested = json.loads((Path("out/trials") / rows[0]["trial"] / "result.json").read_text())
    assert tested["candidates"] == again["candidates"] and tested["part"] == "test"
    # Only the best trial has ranked test events.
    assert [path.parent.name for path in Path("out/trials").rglob("ranks.npz")] == [rows[0]["trial"]]


def test_trials_get_no_test_event_and_the_search_ranks_them_once(local_ray, monkeypatch):
    run, whole, handed, ranked = searching.run, evaluation.rank_events, [], []
    monkeypatch.setattr(searching, "run", lambda *a: handed.append(a[2]) or run(*a))
    monkeypatch.setattr("recbole_cdsr.trainer.rank_events", lambda *a: ranked.append(a[1].dataset) or whole(*a))
    assert tune("--samples", "2", "--scheduler", "fifo") == 0
    (tested,) = ranked  # in this process, after the search
    (data,) = handed
    assert [len(part) for part in data.parts[1:]] == [60, 0] and len(tested) == 60
    for part in data.parts:
        assert not part.events.columns["item_id"][tested.inter_feat["event_index"]].any()
    (best,) = Path("out/trials").rglob("ranks.npz")
    assert quick_start.evaluate(best.parent)["reproduced"]  # the trial's checkpoint is one of the whole data


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
    assert {row["hidden_dropout_prob"] for row in trials()} <= {"0.1", "0.3"}  # pbt multiplies


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
        (["--ray_address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["--cpus_per_trial", "1000"], "a trial asks for 1000 CPUs and 0 GPUs, but the largest node has"),
        (["--gpus_per_trial", "1000"], "a trial asks for 1 CPUs and 1000 GPUs, but the largest node has"),
        (["--dataset", "nothing"], "there is no data set 'nothing'"),
        (["--eval_args", "{split: {LS: test_only}}"], "no event to validate on"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, local_ray, capsys):
    dataset = [] if {"--resume", "--dataset"} & set(arguments) else ["--dataset", "toy"]
    assert cli.main(["tune", *dataset, "--out", "out", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not Path("out").exists()


def test_without_ray_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["tune", "--dataset", "toy", "--out", "out"]) == 2
    assert "recbole-cdsr[tune]" in capsys.readouterr().err and not Path("out").exists()


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
