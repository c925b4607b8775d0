"""`recbole-cdsr study trajectory`: what is drawn is what the run folders hold, whatever they lack."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from recbole_cdsr import cli, plots
from recbole_cdsr.run_records import read_runs
from recbole_cdsr.study import STUDIES
from recbole_cdsr.study.trajectory import panels_of

ODD = ["$5 | $6", "_hidden", 'a\nb, "c" <d>', "家电"]
HISTORY = [
    {"epoch": 0, "loss_rec": 7.0, "loss_cross_domain": 0.62, "weight_cross_domain": 0.5, "cosine": 0.1,
     "conflict": 0.2, "clipped": 0.0, "gradient_norm_rec": 0.3, "valid_score": 0.1, "valid_ndcg@10_a": 0.1},
    {"epoch": 1, "loss_rec": 6.0, "loss_cross_domain": 0.53, "weight_cross_domain": 0.25, "cosine": "",
     "conflict": 0.42, "clipped": 0.08, "gradient_norm_rec": 0.2, "valid_score": 0.3, "valid_ndcg@10_a": 0.3},
    {"epoch": 2, "loss_rec": 5.5, "loss_cross_domain": 0.5, "weight_cross_domain": 0.25, "cosine": -0.3,
     "conflict": "", "clipped": 0.04, "gradient_norm_rec": 0.0, "valid_score": 0.2, "valid_ndcg@10_a": 0.2},
]  # fmt: skip


def write_csv(path: Path, rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")


def make_run(name: str, history=HISTORY, domains=(), epochs=(0, 1, 2)) -> Path:
    folder = Path(name)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: AutoCDSR\ndataset: toy\nvalid_metric: NDCG@10\n")
    write_csv(folder / "history.csv", list(history))
    if domains:
        pairs = [(one, two) for one in domains for two in domains]
        share = {True: 0.5, False: 0.5 / len(domains)}
        write_csv(
            folder / "transfer.csv",
            [
                {"epoch": epoch, "query_domain": one, "key_domain": two, "share": share[one == two] / (1 + epoch)}
                for epoch in epochs
                for one, two in pairs
            ],
        )
    return folder


def study(*arguments) -> int:
    return cli.main(["study", "trajectory", "--run", *map(str, arguments)])


def drawn(folder: Path) -> list[dict[str, str]]:
    with open(folder / "trajectory.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check_pictures(folder: Path) -> str:
    """Both pictures can be read; returns the text in the svg."""
    from PIL import Image

    with Image.open(folder / "trajectory.png") as image:
        image.load()
        assert image.width == 1800 and len(image.convert("RGB").getcolors(1 << 24)) > 10
    root = ElementTree.fromstring((folder / "trajectory.svg").read_bytes())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return "\n".join(root.itertext())


@pytest.fixture(scope="module")
def real_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    tiny = ["--hidden_size", "16", "--inner_size", "16", "--n_layers", "1", "--epochs", "3", "--quiet"]
    data = ["--dataset", "toy", "--data_path", str(folder / "dataset")]
    assert cli.main(["run", *data, *tiny, "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_is_drawn_as_it_was_logged(real_run, finished, capsys):
    run = Path(shutil.copytree(real_run, "run"))
    if not finished:
        (run / "result.json").unlink()
        (run / "ranks.npz").unlink()
    assert study(run) == 0
    said = capsys.readouterr().out
    assert {path.name for path in (run / "trajectory").iterdir()} == {
        f"trajectory.{x}" for x in ("png", "svg", "csv", "md")
    }
    assert "AutoCDSR on toy" in check_pictures(run / "trajectory")
    with open(run / "history.csv", encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    logged = {(row["epoch"], name): float(value) for row in history for name, value in row.items() if value}
    shown = {
        (row["epoch"], row["quantity"]): float(row["value"])
        for row in drawn(run / "trajectory")
        if row["quantity"] != "share"
    }
    assert shown == {key: logged[key] for key in shown}
    assert {name for _, name in shown} >= {"loss_rec", "loss_cross_domain", "cosine", "factor", "valid_score"}
    best = max(history, key=lambda row: float(row["valid_score"]))["epoch"]
    assert f"by the best epoch ({best})" in said or f"in the best epoch ({best})" in said
    assert f"best epoch ({best})" in (run / "trajectory/trajectory.md").read_text()


def test_sentences_and_table_hold_the_numbers(capsys):
    make_run("run", domains=["a", "b"])
    assert study("run", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    (run,) = report["runs"]
    assert run["sentences"] == [
        "a_cd fell from 0.62 (epoch 0) to 0.53 by the best epoch (1); "
        "the validation score (NDCG@10, mean over domains) rose from 0.1 (epoch 0) to 0.3 by the best epoch (1).",
        "Gradients were in conflict in 31 % of steps; weights were clipped in 4.0 % of steps.",
    ]
    assert run["quantities"]["loss_rec"] == {"first": 7.0, "best": 6.0, "last": 5.5, "mean": pytest.approx(18.5 / 3)}
    assert run["quantities"]["cosine"]["best"] is None
    text = Path("run/trajectory/trajectory.md").read_text(encoding="utf-8")
    assert "| loss_cross_domain | 0.62 | 0.53 | 0.5 | 0.55 |" in text
    assert "| cosine | 0.1 | - | -0.3 | -0.1 |" in text
    assert "| conflict | 20.0 % | 42.0 % | 42.0 % | 31.0 % |" in text
    assert "| share a → b | 25.0 % | 12.5 % | 8.3 % | 15.3 % |" in text


def test_shares_are_those_of_the_file():
    run = make_run("run", domains=["a", "b"])
    assert study(run) == 0
    with open(run / "transfer.csv", encoding="utf-8") as file:
        expected = {(r["epoch"], r["query_domain"], r["key_domain"]): float(r["share"]) for r in csv.DictReader(file)}
    shown = [row for row in drawn(run / "trajectory") if row["quantity"] == "share"]
    assert {(r["epoch"], r["query_domain"], r["key_domain"]): float(r["value"]) for r in shown} == expected
    text = check_pictures(run / "trajectory")
    assert all(title in text for title in ("epoch 0 (first)", "epoch 1 (best)", "epoch 2 (last)"))


def test_many_objectives_and_pairs_of_gradients():
    rows = [
        {"epoch": e, **{f"loss_rec_{n}": 5 - e for n in range(8)}, "cosine_min": -0.2, "conflict": 0.0004}
        for e in (0, 1)
    ]
    assert study(make_run("run", rows)) == 0
    text = check_pictures(Path("run/trajectory"))
    assert "rec_0" in text and "3 others" in text
    found = Path("run/trajectory/trajectory.md").read_text()
    assert "Below 0.1 % of pairs of gradients were in conflict." in found


def test_missing_columns_and_files_leave_panels_out():
    run = make_run("run", [{"epoch": 0, "loss": 3.0, "loss_rec": 3.0, "train_seconds": 1.0}])
    (run / "config.yaml").unlink()
    assert study(run, "--out", "elsewhere/deep") == 0
    (record,) = read_runs([str(run)])
    assert [panel.title for panel in panels_of([record])] == ["Losses"]
    text = check_pictures(Path("elsewhere/deep"))
    assert "no validation" in text and "Attention" not in text
    assert [row["quantity"] for row in drawn(Path("elsewhere/deep"))] == ["loss_rec"]
    assert "Gradients were not compared" in Path("elsewhere/deep/trajectory.md").read_text()


def test_odd_names_of_domains():
    rows = [
        {"epoch": e, "loss_rec": 1.0, "valid_score": 0.1, **{f"valid_ndcg@10_{name}": 0.1 for name in ODD}}
        for e in (0, 1)
    ]
    run = make_run("run", rows, domains=ODD)
    assert study(run) == 0
    text = check_pictures(run / "trajectory")
    for name in ("$5 | $6", "_hidden", 'a b, "c" <d>', "家电"):
        assert name in text
    assert {row["query_domain"] for row in drawn(run / "trajectory")} == {"", *ODD}
    table = [line for line in (run / "trajectory/trajectory.md").read_text().splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {6}


def test_several_runs_share_one_figure(capsys):
    make_run("one", domains=["a", "b"])
    make_run("other/one", HISTORY[:2])
    assert study("one", "other/one") == 0
    text = check_pictures(Path("runs/trajectory"))
    assert "other/one" in text and "Attention between domains, run one" in text
    assert {row["run"] for row in drawn(Path("runs/trajectory"))} == {"one", "other/one"}
    assert Path("runs/trajectory/trajectory.md").read_text().count("\n## ") == 2
    for name in "bcdefghi":  # more runs than colours
        make_run(name, [{"epoch": 0, "loss_rec": 1.0}], domains=["a", "b"], epochs=[0])
    assert study(*"bcdefghi", "--out", "many") == 0
    assert "Attention between domains" not in check_pictures(Path("many")), "maps are for few runs"


def test_twenty_domains():
    names = [f"domain number {n}" for n in range(20)]
    assert study(make_run("run", HISTORY[:2], domains=names, epochs=(0, 1))) == 0
    text = check_pictures(Path("run/trajectory"))
    assert "epoch 1 (best, last)" in text


def test_the_same_data_give_the_same_bytes():
    run = make_run("run", [{"epoch": 0, "loss_rec": 1.0, "gradient_norm_rec": 0.2}], domains=["a", "b"], epochs=[0])
    pictures = []
    for out in ("first", "second"):
        assert study(run, "--out", out) == 0
        pictures.append([path.read_bytes() for path in sorted(Path(out).iterdir())])
    assert pictures[0] == pictures[1]


def test_the_last_of_equal_scores_is_the_best():
    """As in training, which keeps the later of two equally good epochs."""
    run = make_run("run", [{"epoch": e, "valid_score": score} for e, score in enumerate((0.1, 0.3, 0.3, 0.2))])
    assert read_runs([str(run)])[0].best_epoch == 2


def spoil(content: bytes, name: str = "history.csv"):
    return lambda run: (run / name).write_bytes(content)


TRANSFER = b"epoch,query_domain,key_domain,share\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "history.csv").unlink(), "run holds no history.csv"),
        (lambda run: shutil.rmtree(run), "there is no run folder run"),
        (spoil(b""), "has no column 'epoch'"),
        (spoil(b"epoch,loss_rec\n"), "has no epoch yet"),
        (spoil(b"epoch,steps\n0,3\n"), "run holds nothing to draw"),
        (spoil(b"epoch,loss_rec\n0,nan\n"), "run holds nothing to draw"),
        (spoil(b"epoch,loss_rec\n0,1.0\n1\n"), "history.csv, line 3: 1 values for 2 columns"),
        (spoil(b"epoch,loss_rec\n0,1.o\n"), "line 2: loss_rec is '1.o', not a number"),
        (spoil(b"epoch,loss_rec\n-1,1.0\n"), "the epoch is '-1'"),
        (spoil(b"epoch,loss_rec\n0,1.0\n0,1.0\n"), "epoch 0 stands there a second time"),
        (spoil(b"epoch,loss_rec,loss_rec\n0,1,1\n"), "names a column twice"),
        (spoil(b"epoch,loss_rec\n0,\"1"), "cannot be read as csv"),
        (spoil(b"\xff\xfe\x00epoch"), "cannot be read as csv"),
        (spoil(b"epoch,share\n", "transfer.csv"), "has no column 'query_domain'"),
        (spoil(TRANSFER + b"0,a,b,1.5\n", "transfer.csv"), "the share 1.5 does not lie between 0 and 1"),
        (spoil(TRANSFER + b"0,a,b,.5\n0,a,b,.5\n", "transfer.csv"), "the pair and epoch 0 stand there a second time"),
        (spoil(b"a: [", "config.yaml"), "is not valid yaml"),
        (spoil(b"", "trajectory"), "cannot make the folder run/trajectory"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_told_in_one_sentence(change, message, capsys):
    change(make_run("run"))
    assert study("run") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1


def test_a_run_given_twice_and_a_missing_library(monkeypatch, capsys):
    make_run("run")
    assert study("run", "./run") == 2 and "is given 2 times" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert study("run") == 2 and "pip install 'recbole-cdsr[plots]'" in capsys.readouterr().err
    assert not Path("run/trajectory").exists()


def test_studies_are_listed_and_the_nearest_is_named(capsys):
    for arguments in (["study"], ["study", "--help"]):
        assert cli.main(arguments) == 0
        said = capsys.readouterr().out
        assert all(f"  {name} " in said for name in STUDIES)
    assert cli.main(["study", "trajektory"]) == 2
    assert "there is no study 'trajektory'; did you mean 'trajectory'?" in capsys.readouterr().err
    assert cli.main(["study", "xyz"]) == 2 and "study --help" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0 and "study" in capsys.readouterr().out


def test_long_names_keep_both_ends():
    assert plots.printable("a" * 30 + "b" * 30, 11) == "aaaaa…bbbbb"
    assert plots.printable("short\n", 11) == "short "
