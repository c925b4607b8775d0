"""The readers of public data sets, on small files of exactly their format."""

from __future__ import annotations

import glob
import gzip
import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from recbole_cdsr.prepare.amazon import category
from tests.test_prepare import prepare, written

DAY = 86_400
BOOKS = [("A2SUAM1J3GNN3B", "0000013714", 5.0, 100 * DAY), ("AF0J17Z6Q9Q3K", "0000013714", 2.0, 101 * DAY)]
FILMS = [("A2SUAM1J3GNN3B", "B00005JNBQ", 4.0, 100 * DAY)]
EVENTS = [
    ("A2SUAM1J3GNN3B", "0000013714", "0"),
    ("A2SUAM1J3GNN3B", "B00005JNBQ", "0"),
    ("AF0J17Z6Q9Q3K", "0000013714", str(DAY)),
]
DOMAINS = {"0000013714": "Books", "B00005JNBQ": "Movies_and_TV"}
OUT = ["--out", "dataset/mine"]


def json_lines(path: str, rows: list[dict]) -> str:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def review(user, item, rating, time) -> dict:
    return {
        "reviewerID": user, "asin": item, "reviewerName": "J. \"Jo\" Doe", "helpful": [0, 0],
        "reviewText": "Fine\nfilm", "overall": rating, "summary": "é", "unixReviewTime": time,
        "reviewTime": "04 11, 1970",
    }  # fmt: skip


def review_2018(user, item, rating, time) -> dict:
    row = review(user, item, rating, time)
    del row["helpful"]
    return {**row, "vote": "3", "verified": True, "style": {"Format:": " Kindle"}, "image": ["https://x/y.jpg"]}


def review_2023(user, item, rating, time) -> dict:
    return {
        "rating": rating, "title": "t", "text": "x", "images": [{"small_image_url": "u"}],
        "asin": item + "v", "parent_asin": item, "user_id": user, "timestamp": time * 1000 + 1, "helpful_vote": 0,
        "verified_purchase": True,
    }  # fmt: skip


def test_amazon_2014_and_2018_reviews():
    for year, make in (("2014", review), ("2018", review_2018)):
        Path(year).mkdir()
        pattern = f"{year}/reviews_{{}}_5.json.gz" if year == "2014" else f"{year}/{{}}_5.json.gz"
        names = [pattern.format(name) for name in ("Books", "Movies_and_TV")]
        for name, rows in zip(names, (BOOKS, FILMS), strict=True):
            json_lines(name, [make(*row) for row in rows])
        assert prepare("amazon", "--year", year, "--files", *names, *OUT, "--overwrite") == 0
        assert written() == (EVENTS, DOMAINS)
        options = ["--at_least", "overall=4", "--overwrite"]
        assert prepare("amazon", "--year", year, "--files", *names, *OUT, *options) == 0
        assert written()[0] == EVENTS[:2]


def test_amazon_2023_reviews_have_milliseconds_and_two_item_numbers():
    names = [json_lines("Books.jsonl.gz", [review_2023(*row) for row in BOOKS])]
    names.append(json_lines("Movies_and_TV.jsonl.gz", [review_2023(*row) for row in FILMS]))
    assert prepare("amazon", "--year", "2023", "--files", *names, *OUT) == 0
    assert written() == (EVENTS, DOMAINS)
    assert prepare("amazon", "--year", "2023", "--files", *names, *OUT, "--item", "asin", "--overwrite") == 0
    assert set(written()[1]) == {item + "v" for item in DOMAINS}


def ratings(path: str, rows: list[tuple], order: str, head: str = "") -> str:
    lines = [",".join(str(dict(zip("uirt", row, strict=True))[key]) for key in order) for row in rows]
    Path(path).write_text(head + "\n".join(lines) + "\n")
    return path


def test_amazon_ratings_of_every_year():
    for year, order, pattern in (("2014", "uirt", "ratings_{}.csv"), ("2018", "iurt", "{}.csv")):
        names = [
            ratings(pattern.format(name), rows, order) for name, rows in (("Books", BOOKS), ("Movies_and_TV", FILMS))
        ]
        assert prepare("amazon", "--year", year, "--files", *names, *OUT, "--overwrite") == 0
        assert written() == (EVENTS, DOMAINS), year
    head = "user_id,parent_asin,rating,timestamp\n"
    names = [
        ratings(f"{name}.csv", [(*row[:3], row[3] * 1000) for row in rows], "uirt", head)
        for name, rows in (("Books", BOOKS), ("Movies_and_TV", FILMS))
    ]
    assert prepare("amazon", "--year", "2023", "--files", *names, *OUT, "--overwrite") == 0
    assert written() == (EVENTS, DOMAINS)


def test_amazon_ratings_of_the_wrong_year_are_noticed(capsys):
    old, new = ratings("ratings_Books.csv", BOOKS, "uirt"), ratings("Books.csv", BOOKS, "iurt")
    for year, file in (("2018", old), ("2014", new)):
        assert prepare("amazon", "--year", year, "--files", file, *OUT) == 2
        assert f"try --year {'2014' if year == '2018' else '2018'}" in capsys.readouterr().err


def test_amazon_mistakes_end_in_one_sentence(capsys):
    good = json_lines("Books_5.json.gz", [review(*row) for row in BOOKS])
    Path("python.json").write_text(str(review(*BOOKS[0])) + "\n")
    Path("array.json").write_text(json.dumps([review(*BOOKS[0])]))
    json_lines("null.json.gz", [review(*BOOKS[0]), {**review(*BOOKS[1]), "asin": None}])
    json_lines("new.json.gz", [review_2023(*BOOKS[0])])
    Path("cut.json.gz").write_bytes(Path(good).read_bytes()[:-20])
    Path("ratings_Books.csv").write_text("A2SUAM1J3GNN3B,0000013714,5.0,1\n")
    for file, message in {
        "python.json": "line 1 is not a json object (it seems to hold Python's text of a dict)",
        "array.json": "line 1 is not a json object",
        "null.json.gz": "null.json.gz, line 2: the column 'asin' has no value",
        "new.json.gz": "has no column 'reviewerID'; it has rating, title",
        "cut.json.gz": "was cut off",
        "ratings_Books.csv": "give files of one kind",
    }.items():
        assert prepare("amazon", "--year", "2014", "--files", good, file, *OUT) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1
    assert not Path("dataset").exists()
    other = json_lines("Kindle_Store_5.json.gz", [review(*row) for row in BOOKS])
    assert prepare("amazon", "--year", "2014", "--files", good, other, *OUT) == 2
    assert "is in the domains 'Books' and 'Kindle_Store'" in capsys.readouterr().err
    assert prepare("amazon", "--year", "2014", "--files", good, other, *OUT, "--prefix_items") == 0
    assert set(written()[1]) == {"Books:0000013714", "Kindle_Store:0000013714"}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("reviews_Books_5.json.gz", "Books"),
        ("reviews_CDs_and_Vinyl.json.gz", "CDs_and_Vinyl"),
        ("ratings_Movies_and_TV.csv", "Movies_and_TV"),
        ("Movies_and_TV_5.json", "Movies_and_TV"),
        ("Home_and_Kitchen.jsonl.gz", "Home_and_Kitchen"),
        ("All_Beauty.csv.gz", "All_Beauty"),
    ],
)
def test_the_category_stands_in_the_name(file, name):
    assert category(Path(file)) == name


LOG_HEAD = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
VIDEO_HEAD = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)


def kuairand(shown: list[tuple], videos: list[tuple]) -> list[str]:
    rows = [f"{u},{v},20220408,{h},{t},{click},0,0,0,0,0,0,7,9,0,0,0,0,{tab}" for u, v, h, t, click, tab in shown]
    for number, part in enumerate((rows[:2], rows[2:])):
        Path(f"log_standard_{number}_pure.csv").write_text("\n".join([LOG_HEAD, *part]) + "\n")
    lines = [f'{v},7,NORMAL,2022-04-01,Web,public,9000.0,720.0,1280.0,55.0,{m},"12,65"' for v, m in videos]
    Path("video_features_basic_pure.csv").write_text("\n".join([VIDEO_HEAD, *lines]) + "\n")
    return ["kuairand", "--files", "log_standard_0_pure.csv", "log_standard_1_pure.csv"]


def test_kuairand(capsys):
    time = 1_649_345_040_000
    shown = [
        (0, 10, 2324, time + 1500, 1, 1),
        (0, 11, 2324, time, 1, 1),
        (3, 10, 2325, time + 60_000, 1, 4),
        (3, 11, 2325, time + 61_000, 0, 4),
        (3, 12, 2325, time + 62_000, 1, 1),
    ]
    command = kuairand(shown, [(10, "9.0"), (11, "4.0"), (12, "")])
    videos = ["--videos", "video_features_basic_pure.csv"]
    assert prepare(*command, *OUT) == 2
    assert "by --videos, or choose --domain tab" in capsys.readouterr().err
    assert prepare(*command, *videos, *OUT) == 2
    assert "names no domain for the item '12'" in capsys.readouterr().err
    assert prepare(*command, *videos, "--drop_incomplete", *OUT) == 0
    assert written() == ([("0", "11", "0"), ("0", "10", "1.5"), ("3", "10", "60")], {"10": "9", "11": "4"})
    told = capsys.readouterr().out
    assert "left out, is_click below 1: 1" in told and "left out, item without a domain: 1" in told
    assert prepare(*command, "--domain", "tab", *OUT, "--overwrite") == 2
    assert "the item '10' is in the domains '1' and '4'" in capsys.readouterr().err
    options = ["--domain", "tab", "--prefix_items", "--at_least", "is_click=0", "--overwrite"]
    assert prepare(*command, *options, *OUT) == 0
    assert {row[1] for row in written()[0]} == {"1:10", "1:11", "4:10", "4:11", "1:12"}


def douban(name: str, columns: list[str], rows: list[list]) -> str:
    lines = ["\t".join(f'"{value}"' for value in row) for row in [columns, *rows]]
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def test_douban():
    files = [
        douban(
            "moviereviews_cleaned.txt",
            ["user_id", "movie_id", "rating", "comment", "time", "labels", "useful_num", "CategoryID", "ID"],
            [[1, 7, 5, "好看", "2012-05-04", "", 0, 1, 0], [2, 7, 2, "a, b", "2012-05-05", "", 0, 1, 1]],
        ),
        douban(
            "bookreviews_cleaned.txt",
            ["user_id", "book_id", "rating", "labels", "comment", "time", "ID"],
            [[1, 7, 4, "小说", "", "2012-05-04", 0]],
        ),
        douban(
            "musicreviews_cleaned.txt",
            ["user_id", "music_id", "rating", "labels", "comment", "useful_num", "time", "ID"],
            [[1, 9, 4, "", "", 3, "2012-05-03", 0]],
        ),
    ]
    assert prepare("douban", "--files", *files, *OUT) == 0
    events = [
        ("1", "music:9", "0"),
        ("1", "movie:7", str(DAY)),
        ("1", "book:7", str(DAY)),
        ("2", "movie:7", str(2 * DAY)),
    ]
    assert written() == (events, {"movie:7": "movie", "book:7": "book", "music:9": "music"})
    assert prepare("douban", "--files", *files, *OUT, "--at_least", "rating=4", "--overwrite") == 0
    assert written()[0] == events[:3]


def test_douban_files_with_other_columns(capsys):
    Path("film.tsv").write_text("1\t7\t5\t1300000000\n2\t7\t4\t1300000050\n")
    Path("book.tsv").write_text("1\t7\t5\t1300000010\n")
    command = [
        "douban",
        "--files",
        "film.tsv",
        "buch=book.tsv",
        "--columns",
        "user_id",
        "thing",
        "rating",
        "time",
        *OUT,
    ]
    assert prepare(*command) == 2
    assert "name its column of items by --item" in capsys.readouterr().err
    assert prepare(*command, "--item", "thing") == 0
    assert written() == (
        [("1", "film:7", "0"), ("1", "buch:7", "10"), ("2", "film:7", "50")],
        {"film:7": "film", "buch:7": "buch"},
    )


def test_every_command_of_the_guide_runs(repo):
    page = (repo / "docs" / "data.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("recbole-cdsr prepare")]
    assert len(commands) >= 9
    files_of_the_guide()
    for command in commands:
        words = [path for word in command for path in (sorted(glob.glob(word)) if "*" in word else [word])]
        if "--core" in words:
            words[words.index("--core") + 1] = "1"  # these files are small
        assert prepare(*words) == 0, command
        assert all(written(Path(words[words.index("--out") + 1]).name))


def files_of_the_guide() -> None:
    """Every file that docs/data.md names, a few lines each."""
    both = [*BOOKS, *BOOKS[:1]]
    films = [(user, "B00005JNBQ", rating, time) for user, _, rating, time in both]
    for name, rows in (("Books", both), ("Movies_and_TV", films)):
        json_lines(f"reviews_{name}_5.json.gz", [review(*row) for row in rows])
        json_lines(f"{name}.jsonl.gz", [review_2023(*row) for row in rows])
        ratings(f"{name}.csv", rows, "iurt")
    shown = [
        (user, video, 1200, 1_649_345_040_000 + 1000 * user + video, 1, 1) for user in range(3) for video in (10, 11)
    ]
    kuairand(shown, [(10, "9.0"), (11, "4.0")])
    for name in ("movie", "book", "music"):
        columns = ["user_id", f"{name}_id", "rating", "labels", "comment", "time", "ID"]
        douban(f"{name}reviews_cleaned.txt", columns, [[1, 7, 5, "", "", "2012-05-04", 0]])
    log = pd.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "time": ["2020-01-01", "2020-01-02"]})
    log.assign(category=["books", "films"]).to_csv("log.csv", index=False)
    log.to_parquet("log.parquet")
    pd.DataFrame({"item": ["x", "y"], "category": ["books", "films"]}).to_csv("items.csv", index=False)
    log[:1].to_csv("books.csv", index=False)
    log[1:].to_csv("films.csv", index=False)
