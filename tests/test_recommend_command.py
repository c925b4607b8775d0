"""`recbole-cdsr recommend` and `export` as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_cdsr import Recommender, cli, quick_start

KEYS = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "epochs": 1, "show_progress": False}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    quick_start.run("AutoCDSR", "toy", config_dict={**KEYS, "data_path": str(folder / "data")}, run_dir=folder / "run")
    shutil.rmtree(folder / "data")
    return str(folder / "run")


def command(*arguments, **keys):
    words = [sys.executable, "-m", "recbole_cdsr", *arguments]
    return subprocess.run(words, capture_output=True, text=True, encoding="utf-8", **keys)


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_users_histories_and_files_give_what_python_gives(finished, capsys):
    recommender = Recommender.load(finished)
    assert cli.main(["recommend", "--run", finished, "--user", "u3", "u39", "u3", "--domain", "d1", "--k", "3"]) == 0
    answers = lines(capsys.readouterr().out)
    assert [answer.pop("user") for answer in answers] == ["u3", "u39", "u3"]
    assert answers == [one._asdict() for one in recommender.recommend_users(["u3", "u39", "u3"], "d1", 3)]

    history = ["i1", "new", "i5"]
    assert cli.main(["recommend", "--run", finished, "--include_seen", "--history", *history]) == 0
    out, error = capsys.readouterr()
    assert lines(out) == [recommender.recommend([history], exclude_seen=False)[0]._asdict()]
    assert error == "1 events with unknown items were skipped\n"

    questions = [
        {"history": [["i5", 9], ["i1", 3]], "id": {"any": "thing"}},
        {"user": "u3", "domain": "d0"},
        {"history": []},
        {"history": ["i1"], "domain": None},
    ]
    Path("questions").write_text("\n\n".join(map(json.dumps, questions)))
    assert cli.main(["recommend", "--run", finished, "--input", "questions", "--domain", "d1", "--out", "answers"]) == 0
    assert capsys.readouterr().out == ""
    first, second, third, fourth = lines(Path("answers").read_text())
    assert first.pop("id") == {"any": "thing"} and second.pop("user") == "u3"
    expected = recommender.recommend([["i1", "i5"], [], ["i1"]], "d1")
    for found, one in zip([first, third, fourth], expected, strict=True):
        assert found == {**one._asdict(), "scores": pytest.approx(one.scores, rel=1e-4, abs=1e-6)}
    assert second["items"] == recommender.recommend_users(["u3"], "d0")[0].items


def test_it_reads_stdin_and_writes_only_answers_to_stdout(finished):
    done = command("recommend", "--run", finished, "--input", "-", input='{"history": ["книга", 1]}\n')
    assert done.returncode == 0 and done.stderr == "2 events with unknown items were skipped\n"
    assert lines(done.stdout)[0]["by"] == "popularity"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: not json"),
        ("[1]", "line 3: expected an object"),
        ('{"history": ["i1"], "domian": "d0"}', "line 3: unknown key 'domian'; did you mean 'domain'?"),
        ('{"domain": "d0"}', "line 3: give either 'user' or 'history'"),
        ('{"user": "u3", "history": []}', "line 3: give either"),
        ('{"user": "nobody"}', "line 3: there is no user 'nobody'"),
        ('{"user": null}', "line 3: expected a text"),
        ('{"history": "i1"}', "line 3: expected a list"),
        ('{"history": ["i1", null]}', "line 3, event 1: expected a text"),
        ('{"history": [["i1"]]}', "line 3, event 0: expected (item, timestamp)"),
        ('{"history": [["i1", Infinity]]}', "line 3, event 0: a timestamp is a finite number"),
        ('{"history": ["i1"], "domain": "d9"}', "line 3: there is no domain 'd9'"),
        ('{"history": ["i1"], "domain": 1}', "line 3: 'domain' is the name"),
        (b'{"history": ["\xff"]}', "line 3: not json"),
    ],
)
def test_bad_lines_are_named(finished, capsys, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    Path("questions").write_bytes(b'{"history": ["i1"]}\n\n' + line + b'\n{"user": "u3"}\n')
    assert cli.main(["recommend", "--run", finished, "--input", "questions"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: questions, ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nothing", "--user", "u3"], "nothing holds no bundle"),
        (["--input", "nothing"], "cannot read nothing"),
        (["--user", "nobody"], "there is no user 'nobody'"),
        (["--user", "u3", "--k", "0"], "k must be a whole number of 1 or more"),
        (["--user", "u3", "--domain", "d9"], "there is no domain 'd9'"),
        (["--user", "u3", "--out", "no/such/folder"], "cannot write no/such/folder"),
        (["--user", "u3", "--device", "gpu"], "device takes cpu"),
    ],
)
def test_mistakes_end_in_one_sentence(finished, capsys, arguments, message):
    assert cli.main(["recommend", "--run", finished, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_an_interrupted_run_is_exported():
    keys = {**KEYS, "epochs": 2}
    quick_start.run("AutoCDSR", "toy", config_dict=keys, run_dir="run")
    for name in ("bundle", "result.json", "ranks.npz"):  # as if it had been killed in its last epoch
        shutil.rmtree(Path("run", name)) if name == "bundle" else Path("run", name).unlink()
    told = command("recommend", "--run", "run", "--user", "u3")
    assert told.returncode == 2 and "write it: recbole-cdsr export --run run" in told.stderr
    Path("dataset").rename("moved")
    done = command("export", "--run", "run", "--out", "public", "--without_histories", "--data_path", "moved")
    assert (done.returncode, done.stdout) == (0, "public\n"), done.stderr
    assert "The run did not finish" in Path("public/README.md").read_text()
    assert command("recommend", "--run", "public", "--history", "i1").returncode == 0
    known = command("recommend", "--run", "public", "--user", "u3")
    assert known.returncode == 2 and "came without known users" in known.stderr
