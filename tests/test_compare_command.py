"""`recbole-cdsr compare` as a user types it, with real trainings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from recbole_cdsr import cli

PLAN = {
    "models": {"bare": {"model": "AutoCDSR", "objective_weighting": "none"}},
    "datasets": ["toy"],
    "seeds": [1],
    "keys": {"epochs": 1, "hidden_size": 16, "inner_size": 16, "n_layers": 1},
    "single_domain": True,
}


def write_plan(**changes) -> list[str]:
    Path("plan.yaml").write_text(yaml.safe_dump({**PLAN, **changes}))
    return ["compare", "--plan", "plan.yaml", "--out", "out"]


def test_a_plan_is_trained_once_and_guarded(capsys):
    command = write_plan()
    assert cli.main([*command, "--dry_run"]) == 0 and not Path("out").exists()
    assert "3 of 3 runs to do" in capsys.readouterr().out
    assert cli.main([*command, "--jobs", "3"]) == 0
    page = Path("out/tables.md").read_text(encoding="utf-8")
    assert "toy: NDCG@10" in page and "gain of NDCG@10" in page and "| bare, d0 only |" in page
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("result.json")}
    assert len(before) == 3
    assert cli.main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").rglob("result.json")}
    assert cli.main([*command, "--dry_run"]) == 0
    assert "0 of 3 runs to do" in capsys.readouterr().out
    assert cli.main([*command, "--learning_rate", "0.5"]) == 2
    assert "the run in out/toy/bare/1 has learning_rate = 0.001, but the plan says 0.5" in capsys.readouterr().err
    assert cli.main(["compare", "--from", "out"]) == 0
    assert Path("out/tables.md").read_text(encoding="utf-8") == page


def test_a_key_that_made_a_run_fail_can_be_mended(capsys):
    broken = {"bare": PLAN["models"]["bare"], "wide": {"model": "AutoCDSR", "hidden_size": 17}}
    assert cli.main([*write_plan(models=broken, single_domain=[]), "--jobs", "2"]) == 1
    assert "out/toy/wide" not in Path("out/tables.md").read_text() and "hidden_size" in capsys.readouterr().err
    mended = {**broken, "wide": {"model": "AutoCDSR", "hidden_size": 18}}
    assert cli.main(write_plan(models=mended, single_domain=[])) == 0
    assert "| wide |" in Path("out/tables.md").read_text()
    broken["wide"]["hidden_size"] = 20
    assert cli.main(write_plan(models=broken, single_domain=[])) == 2
    assert "has hidden_size = 18" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "SASRek", "--datasets", "toy"], "did you mean 'SASRec'"),
        (["--models", "SASRec"], "a plan needs 'datasets'"),
        (["--models", "SASRec", "--datasets", "toy", "--epoch", "3"], "SASRec on toy: SASRec has no key 'epoch'"),
        (["--models", "SASRec", "--datasets", "toy", "--layout", "sequence"], "predicts one target per row"),
        (["--models", "SASRec", "--datasets", "toy", "--seeds", "1,x"], "different whole numbers"),
        (["--models", "SASRec", "--datasets", "toy", "--jobs", "0"], "--jobs must be at least 1"),
        (["--plan", "plan.yaml", "--seeds", "2"], "plan.yaml and --seeds both say 'seeds'"),
        (["--models", "SASRec", "--datasets", "nothing", "--out", "out"], "there is no data set 'nothing'"),
        (["--from", "nothing"], "there is no finished run in nothing"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, capsys):
    write_plan()
    assert cli.main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not Path("runs").exists() and not Path("out").exists()


@pytest.mark.slow
def test_the_commands_of_the_page_run(repo):
    page = (repo / "docs" / "compare.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in block.strip().splitlines():
        assert cli.main([*shlex.split(line)[1:], *([] if "--from" in line else ["--jobs", "2"])]) == 0, line
    assert len(list(Path("runs/first").rglob("result.json"))) == 8
    (plan,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("plan.yaml").write_text(plan)
    assert cli.main(["compare", "--plan", "plan.yaml", "--dry_run"]) == 0
