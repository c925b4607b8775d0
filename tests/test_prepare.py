"""`recbole-cdsr prepare` as a user types it: csv and parquet, mistakes, and what is written."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from recbole_cdsr import cli
from tests.helpers import make_dataset

ROWS = [
    ("ann", "book1", 1_600_000_000, "books", 5),
    ("ann", "film1", 1_600_000_000, "films", 4),
    ("bob", 'a "b", c', 1_600_000_060, "books", 3),
    ("ann", "book1", 1_600_000_030, "books", 2),
    ("bob", "book1", 1_600_000_010, "books", 4),
    ("cy", "film1", 1_600_000_020, "films", 4),
]
COLUMNS = ["user", "item", "ts", "category", "rating"]
OPTIONS = ["--user", "user", "--item", "item", "--time", "ts"]
WHOLE = [*OPTIONS, "--domain", "category"]
OUT = ["--out", "dataset/mine"]


def frame() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=COLUMNS)


def prepare(*arguments: object) -> int:
    return cli.main(["prepare", *map(str, arguments)])


def written(name: str = "mine") -> tuple[list[tuple], dict]:
    inter = Path(f"dataset/{name}/{name}.inter").read_text(encoding="utf-8").splitlines()
    item = Path(f"dataset/{name}/{name}.item").read_text(encoding="utf-8").splitlines()
    assert inter[0] == "user_id:token\titem_id:token\ttimestamp:float" and item[0] == "item_id:token\tdomain_id:token"
    return [tuple(line.split("\t")) for line in inter[1:]], dict(line.split("\t") for line in item[1:])


EXPECTED = [
    ("ann", "book1", "0"),
    ("ann", "film1", "0"),
    ("ann", "book1", "30"),
    ("bob", "book1", "10"),
    ("bob", 'a "b", c', "60"),
    ("cy", "film1", "20"),
]


def save(kind: str) -> Path:
    table, path = frame(), Path(f"log.{kind}")
    if kind == "parquet":
        table.astype({"category": "category"}).to_parquet(path)
    elif kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if "tsv" in kind else ",")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "tsv.gz", "parquet", "jsonl"])
def test_every_kind_of_file_gives_the_same_data_set(kind, capsys):
    assert prepare("csv", "--files", save(kind), *WHOLE, *OUT) == 0
    assert written() == (EXPECTED, {"book1": "books", "film1": "films", 'a "b", c': "books"})
    told = capsys.readouterr()
    assert "recbole-cdsr run --dataset mine" in told.out and told.err == ""
    assert sorted(path.name for path in Path("dataset/mine").iterdir()) == ["mine.inter", "mine.item", "prepared.json"]


def test_the_data_set_can_be_used_at_once():
    rows = [
        (f"u{u}", f"{kind}{(u + t) % 7}", 60 * t, kind) for u in range(4) for t in range(5) for kind in ("book", "film")
    ]
    pd.DataFrame(rows, columns=COLUMNS[:4]).to_csv("log.csv", index=False)
    prepare("csv", "--files", "log.csv", *WHOLE, *OUT)
    _, dataset = make_dataset("mine")
    dataset.build()
    assert dataset.domain_names == ["[PAD]", "book", "film"]
    done = subprocess.run(
        [sys.executable, "-m", "recbole_cdsr", "run", "--dataset", "mine", "--model", "Pop", "--quiet"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_summary_counts_what_was_written(capsys):
    assert prepare("csv", "--files", save("csv"), *WHOLE, *OUT, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["domains"] == {
        "books": {"users": 2, "items": 2, "events": 4},
        "films": {"users": 2, "items": 1, "events": 2},
    }
    assert summary["total"] == {"users": 3, "items": 3, "events": 6} and summary["read"] == 6
    assert summary["users_of_several_domains"] == 1
    assert (summary["pairs"], summary["ties"], summary["ties_across_domains"]) == (3, 1, 1)
    assert (summary["repeats"], summary["exact_repeats"]) == (1, 0)
    assert (summary["first"], summary["last"]) == ("2020-09-13T12:26:40Z", "2020-09-13T12:27:40Z")
    stored = json.loads(Path("dataset/mine/prepared.json").read_text())
    assert stored.items() >= summary.items() and stored["command"][:3] == ["recbole-cdsr", "prepare", "csv"]


def test_options_reach_the_events(capsys):
    table = frame()
    table.to_csv("log.csv", index=False)
    for options, expected in {
        ("--at_least", "rating=4"): [row for row, raw in zip(EXPECTED, (5, 4, 2, 4, 3, 4), strict=True) if raw >= 4],
        ("--repeats", "first"): [*EXPECTED[:2], *EXPECTED[3:]],
        ("--min_domains", "2"): EXPECTED[:3],
        ("--core", "2"): [EXPECTED[0], EXPECTED[2]],
        ("--min_user", "3"): EXPECTED[:3],
    }.items():
        assert prepare("csv", "--files", "log.csv", *WHOLE, *OUT, "--overwrite", *options) == 0
        assert [row[:2] for row in written()[0]] == [row[:2] for row in expected], options
    assert prepare("csv", "--files", "log.csv", *WHOLE, *OUT, "--overwrite", "--keep_time") == 0
    assert written()[0][0][2] == "1600000000"
    assert "left out, rating below 4: 2" in capsys.readouterr().out


def test_domains_from_files_or_a_table_of_items():
    table = frame()
    domains = {"book1": "books", "film1": "films", 'a "b", c': "books"}
    for domain, part in table.groupby("category"):
        part.drop(columns="category").to_csv(f"{domain}.csv", index=False)
    assert prepare("csv", "--files", "books=books.csv", "films=films.csv", *OPTIONS, *OUT) == 0
    by_file = written()
    assert by_file[1] == domains and sorted(by_file[0]) == sorted(EXPECTED)
    table.drop(columns="category").to_csv("log.csv", index=False)
    table[["item", "category"]].drop_duplicates().to_csv("items.csv", index=False)
    options = [*WHOLE, "--items", "items.csv", "--out", "dataset/other"]
    assert prepare("csv", "--files", "log.csv", *options) == 0
    assert written("other") == (EXPECTED, domains)


def test_quotes_may_be_characters_like_any_other():
    text('user\titem\tts\tcategory\nann\t5" pipe\t1\ta\nann\t"x\t2\ta\n')
    assert prepare("csv", "--files", "log.csv", *WHOLE, *OUT, "--separator", "\\t", "--no_quotes") == 0
    assert [row[1] for row in written()[0]] == ['5" pipe', '"x']


def test_json_may_hold_numbers_for_names_and_text_for_times():
    Path("log.jsonl").write_text(
        '{"user": 7, "item": 12, "ts": "2020-01-01", "category": "a", "more": {"x": [1]}}\n'
        '{"more": 1.5, "user": 7, "item": 13, "ts": "2020-01-01T00:00:05", "category": "b"}\n'
    )
    assert prepare("csv", "--files", "log.jsonl", *WHOLE, *OUT) == 0
    assert written()[0] == [("7", "12", "0"), ("7", "13", "5")]


def test_files_without_a_header_and_broken_lines(capsys):
    frame().to_csv("log.csv", index=False, header=False)
    with open("log.csv", "a") as file:
        file.write("only,two\n")
    options = ["csv", "--files", "log.csv", *WHOLE, *OUT, "--columns", *COLUMNS]
    assert prepare(*options) == 2
    assert "log.csv, line 7: 2 columns instead of 5" in capsys.readouterr().err
    assert prepare(*options, "--skip_bad_lines") == 0
    assert written()[0] == EXPECTED and "left out, unreadable line: 1" in capsys.readouterr().out
    with open("log.csv", "a") as file:
        file.write("ann,,1600000000,books,5\n")
    assert prepare(*options, "--skip_bad_lines", "--overwrite") == 2
    assert "log.csv, line 8: the column 'item' has no value" in capsys.readouterr().err


def text(content: str | bytes) -> None:
    Path("log.csv").write_bytes(content.encode() if isinstance(content, str) else content)


HEAD = "user,item,ts,category\n"
LINE = "ann,i,1,a\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (HEAD, "the files have headers but no rows"),
        ("user,item,when,category\n" + LINE, "has no column 'ts'; it has user, item, when, category"),
        ("user,item,ts,ts,category\n" + LINE, "has the column 'ts' twice"),
        (HEAD + LINE + "ann,i,1\n", "log.csv, line 3: 3 columns instead of 4"),
        (HEAD + '"a\nb",i,1,a\n' + "ann,i,1\n", "log.csv, line 4: 3 columns"),
        (HEAD + LINE + "\nann,,1,a\n", "log.csv, line 4: the column 'item' has no value"),
        (HEAD + LINE + "ann,i,now,a\n", "log.csv, line 3: 'now' is not a time"),
        (HEAD + LINE + "ann,i,-1,a\n", "log.csv, line 3: '-1' is not a time"),
        (HEAD + LINE + "bob,i,1,b\n", "the item 'i' is in the domains 'a' and 'b'"),
        (HEAD + "ann,é,1,a\n", None),
        ((HEAD + "ann,é,1,a\n").encode("latin-1"), "is not utf-8 text"),
        (HEAD + 'ann,"a\tb",1,a\n', "holds a tab or a line break"),
        (gzip.compress((HEAD + LINE).encode())[:-12], "was cut off; fetch it again"),
        (b"\x1f\x8b" + b"nonsense" * 9, "damaged gzip data"),
        (b"PK\x03\x04" + b"nonsense", "is a zip archive; unpack it"),
    ],
)
def test_bad_files_end_in_one_sentence(content, message, capsys):
    text(content)
    assert prepare("csv", "--files", "log.csv", *WHOLE, *OUT) == (0 if message is None else 2)
    error = capsys.readouterr().err
    if message:
        assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1
        assert not Path("dataset").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["amazn"], "did you mean 'amazon'?"),
        (["csv", "--files", "none.csv", *WHOLE, *OUT], "there is no file none.csv"),
        (["csv", "--files", "log.csv", "dir/../log.csv", *WHOLE, *OUT], "given twice"),
        (["csv", "--files", "log.csv", *OPTIONS, *OUT], "nothing names the domains"),
        (["csv", "--files", "log.csv", *WHOLE, "--out", "dataset/toy"], "free name"),
        (["csv", "--files", "log.csv", *WHOLE, "--out", "log.csv"], "is a file"),
        (["csv", "--files", "log.csv", *WHOLE, "--out", "log.csv/x"], "cannot write to log.csv/x"),
        (["csv", "--files", "log.csv", *WHOLE, *OUT, "--core", "9"], "the filters leave no event of 6"),
        (["csv", "--files", "log.csv", *WHOLE, *OUT, "--at_least", "rating=9"], "left out, rating below 9: 6"),
        (["csv", "--files", "log.csv", *WHOLE, *OUT, "--at_least", "user=9"], "'ann' in column 'user' is not a number"),
        (["csv", "--files", "log.csv", *WHOLE, *OUT, "--separator", "::"], "takes one character"),
        (["csv", "--files", "log.csv", *WHOLE, *OUT, "--columns", "a", "b"], "has 5 columns, but 2 were named"),
        (["csv", "--files", "log.csv", *WHOLE, *OUT, "--items", "none.csv"], "there is no file none.csv"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, capsys):
    save("csv")
    Path("dir").mkdir()
    assert prepare(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1
    assert not Path("dataset").exists()


def test_help_names_the_sources(capsys):
    assert prepare("--help") == 0
    told = capsys.readouterr().out
    assert all(source in told for source in ("csv", "amazon", "kuairand", "douban"))


def test_a_table_of_items_must_name_one_domain_each(capsys):
    save("csv")
    Path("items.csv").write_text("item,category\nbook1,books\nbook1,films\n")
    options = ["csv", "--files", "log.csv", *WHOLE, "--items", "items.csv", *OUT]
    assert prepare(*options) == 2
    assert "items.csv, line 3: the item 'book1' has a second domain, 'films'" in capsys.readouterr().err
    Path("items.csv").write_text("item,category\nbook1,books\nfilm1,\n")
    assert prepare(*options) == 2
    assert "items.csv names no domain for the item 'film1' (2 items with 3 events have none)" in capsys.readouterr().err
    assert prepare(*options, "--drop_incomplete") == 0
    assert [row[1] for row in written()[0]] == ["book1"] * 3


def test_large_files_are_read_in_blocks(monkeypatch, capsys):
    from recbole_cdsr.prepare import logs

    monkeypatch.setattr(logs, "BLOCK", 200)
    monkeypatch.setattr(logs, "ROWS", 7)
    lines = [(f"u{n % 7}", f"i{n % 11}", 1_600_000_000 + n, f"d{n % 11 % 2}") for n in range(300)]
    table = pd.DataFrame(lines, columns=COLUMNS[:4])
    table.to_csv("log.csv", index=False)
    table.to_json("log.jsonl", orient="records", lines=True)
    table.to_parquet("log.parquet")
    results = []
    for name in ("log.csv", "log.jsonl", "log.parquet"):
        assert prepare("csv", "--files", name, *WHOLE, *OUT, "--overwrite") == 0
        results.append(written())
    assert results[0] == results[1] == results[2] and len(results[0][0]) == 300
    with open("log.csv", "a") as file:
        file.write("u,i,x,d0\n")
    with open("log.jsonl", "a") as file:
        file.write('{"user": "u", "item": 5}\n')
    assert prepare("csv", "--files", "log.csv", *WHOLE, *OUT, "--overwrite") == 2
    assert "log.csv, line 302: 'x' is not a time" in capsys.readouterr().err
    assert prepare("csv", "--files", "log.jsonl", *WHOLE, *OUT, "--overwrite") == 2
    assert "log.jsonl, line 301 is not a json object as expected" in capsys.readouterr().err
