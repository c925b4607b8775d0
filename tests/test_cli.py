"""The command line as a user types it, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from recbole_cdsr import cli
from recbole_cdsr.ranks import RankTable

TINY = ["--dataset", "toy", "--hidden_size=16", "--inner_size", "16", "--n_layers", "1"]
SMALL = [*TINY, "--epochs", "3"]


def command(*arguments, **keys):
    return subprocess.run([sys.executable, "-m", "recbole_cdsr", *arguments], capture_output=True, text=True, **keys)


def test_help_names_commands_models_and_data():
    done = command("--help")
    assert done.returncode == 0
    for word in ("run", "evaluate", "AutoCDSR", "SASRec", "ml-100k", "toy", "properties/overall.yaml"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "did you mean 'run'?"),
        (["run", "--model", "SASRek"], "did you mean 'SASRec'?"),
        (["run", "--dataset", "toi"], "there is no data set 'toi'"),
        (["run", "--learnin_rate", "1"], "did you mean 'learning_rate'?"),
        (["run", "learning_rate=1"], "'learning_rate=1' is neither an option"),
        (["run", "--epochs", "3", "--epochs=4"], "given twice"),
        (["run", "--model", "S3Rec"], "S3Rec is not offered: it needs features"),
        (["run", "--model", "NCL"], "NCL is not offered: it trains in a way of its own"),
        (["run", "--dataset", ""], "there is no data set ''"),
        (["run", "--resume", "a", "--run_dir", "b"], "give one of them"),
        (["run", "--dataset", "toy", "--eval_args", "{split: {RS: [1, 0, 0]}}"], "no event of toy to validate or test"),
        (["run", "--dataset", "toy", "--USER_ID_FIELD", "uid"], "no column 'uid'"),
        (["run", "--model", "SASRec", "--layout", "sequence"], "predicts one target per row"),
        (["run", "--resume"], "say which run"),
        (["run", "--resume", "nothing"], "holds no run"),
        (["evaluate", "--run", "nothing"], "holds no run"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1
    assert not Path("runs").exists(), "a command that cannot run leaves nothing behind"


def test_a_run_leaves_one_folder_with_everything_and_can_be_evaluated():
    done = command("run", *SMALL, "--run_dir", "out/run")
    assert done.returncode == 0, done.stderr
    assert "macro" in done.stdout and "d0" in done.stdout
    assert sorted(path.name for path in Path().iterdir()) == ["dataset", "out"]
    folder = Path("out/run")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "run.log", "tensorboard", "history.csv", "checkpoint.pth", "best.pth",
        "ranks.npz", "result.json", "transfer.csv", "bundle",
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    assert "run --dataset toy" in result["environment"]["command"]
    assert result["environment"]["versions"]["recbole"] and result["seed"] == result["environment"]["seed"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["hidden_size"] == 16
    ranks = RankTable.load(folder / "ranks.npz")
    assert len(ranks.user) == result["rows"]["total"] == 60
    again = command("evaluate", "--run", "out/run", "--json", cwd="out")
    assert again.returncode == 2, "a folder is found from where it is"
    again = command("evaluate", "--run", str(folder.resolve()), "--json", cwd="out")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["candidates"] == result["candidates"]
    assert "every rank is the one that the run wrote" in again.stderr


def test_both_spellings_of_keys_and_machine_readable_output():
    one = command("run", "--model", "sasrec", *SMALL, "--learning_rate", "0.002", "--json")
    two = command("run", "--model=SASRec", *SMALL, "--learning_rate=0.002", "--json")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert json.loads(one.stdout)["candidates"] == json.loads(two.stdout)["candidates"]
    assert one.stderr == ""
    quiet = command("run", "--model", "Pop", "--dataset", "toy", "--quiet")
    assert quiet.stderr == "" and quiet.stdout.count("\n") < 15


def test_a_saved_config_starts_the_same_run():
    first = command("run", *SMALL, "--seed", "7", "--run_dir", "a", "--json")
    second = command("run", "--config_files", "a/config.yaml", "--run_dir", "b", "--json")
    assert json.loads(first.stdout)["candidates"] == json.loads(second.stdout)["candidates"]


def test_a_folder_with_a_run_is_not_overwritten():
    assert command("run", *SMALL, "--run_dir", "a", "--quiet").returncode == 0
    before = Path("a/result.json").read_bytes()
    again = command("run", *SMALL, "--run_dir", "a")
    assert again.returncode == 2 and "already holds a run" in again.stderr
    changed = command("run", *SMALL, "--run_dir", "a", "--resume", "--learning_rate", "0.5")
    assert changed.returncode == 2 and "it cannot change to 0.5" in changed.stderr
    changed = command("run", *SMALL, "--model", "SASRec", "--run_dir", "a", "--resume")
    assert changed.returncode == 2 and "model = AutoCDSR; it cannot change to SASRec" in changed.stderr
    assert Path("a/result.json").read_bytes() == before


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "recbole_cdsr", "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epochs(folder: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        log = folder / "history.csv"
        if log.exists() and len(log.read_text().splitlines()) > count:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


LONG = [*TINY, "--stopping_step", "1000", "--epochs", "25", "--seed", "3"]


@pytest.mark.parametrize("model", ["AutoCDSR", "SASRec"])
def test_killed_runs_resume_to_the_same_weights(model):
    assert command("run", "--model", model, *LONG, "--run_dir", "whole").returncode == 0
    process = start("--model", model, *LONG, "--run_dir", "killed")
    for epochs in (2, 9):
        wait_for_epochs(Path("killed"), epochs, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process = start("--model", model, *LONG, "--run_dir", "killed", "--resume")
    assert process.wait() == 0
    for name in ("best.pth", "checkpoint.pth"):
        whole, killed = (torch.load(Path(folder) / name, weights_only=True) for folder in ("whole", "killed"))
        assert whole["epoch"] == killed["epoch"]
        assert all(torch.equal(value, killed["state_dict"][key]) for key, value in whole["state_dict"].items())
    assert RankTable.load(Path("whole/ranks.npz")).equals(RankTable.load(Path("killed/ranks.npz")))


def test_ctrl_c_says_how_to_go_on():
    process = start(*LONG, "--run_dir", "stopped")
    wait_for_epochs(Path("stopped"), 1, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.rstrip().endswith("go on with: recbole-cdsr run --resume stopped")
    done = command("run", "--resume", "stopped", "--epochs", "26", "--quiet")
    assert done.returncode == 0, done.stderr


def test_a_folder_that_cannot_be_made_is_told():
    Path("file").write_text("x")
    done = command("run", *SMALL, "--run_dir", "file/run")
    assert done.returncode == 2 and "cannot make the run folder file/run" in done.stderr


def test_other_data_are_noticed():
    assert command("run", *SMALL, "--run_dir", "a", "--quiet").returncode == 0
    file = Path("dataset/toy/toy.item")
    file.write_text(file.read_text().replace("i0\td0", "i0\td1"))
    Path("dataset/toy/meta.json").unlink()  # or the built-in set would be built anew
    for again in (["evaluate", "--run", "a"], ["run", "--resume", "a", "--epochs", "9"]):
        done = command(*again)
        assert done.returncode == 2 and "the data are not those that" in done.stderr


def test_a_run_can_move():
    assert command("run", *SMALL, "--run_dir", "a", "--quiet").returncode == 0
    Path("dataset").rename("moved")
    Path("a").rename("b")
    done = command("evaluate", "--run", "b", "--data_path", "moved", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 3


def test_a_start_that_failed_leaves_the_folder_usable():
    assert command("run", *SMALL, "--run_dir", "a", "--n_heads", "3").returncode == 2
    assert command("run", *SMALL, "--run_dir", "a", "--n_heads", "2", "--quiet").returncode == 0


def test_recboles_errors_are_one_sentence():
    done = command("run", "--model", "SASRec", *SMALL, "--loss_type", "BPR", "--train_neg_sample_args", "None")
    assert done.returncode == 2 and "RecBole's SASRec cannot train" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
