"""Reports of a rank table: they fit the page, line up, and hold the table's own numbers."""

from __future__ import annotations

import json
import re
import unicodedata

import numpy as np
import pytest

from recbole_cdsr import report
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.ranks import RankTable

NAMES = ["[PAD]", "Books", "Empty", "A domain with a name far longer than any page of a hundred columns has room for"]


def make(rows=60, names=NAMES, domains=(1, 3)) -> RankTable:
    draw = np.random.default_rng(0)
    text, whole, truth = np.array(["x"] * rows, dtype=str), np.ones(rows, dtype=int), np.arange(rows) % 3 == 0
    return RankTable(
        user=text,
        item=text,
        domain=draw.choice(domains, rows) if rows else whole,
        domain_names=names,
        history_length=whole,
        domain_history_length=whole,
        switch=truth,
        rank_all=draw.integers(1, 60, rows),
        rank_domain=draw.integers(1, 20, rows),
        candidates_all=whole * 60,
        candidates_domain=whole * 20,
        ties=truth,
    )


def columns(line: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in line)


@pytest.mark.parametrize("rows", [0, 60, 12345])
@pytest.mark.parametrize("names", [NAMES, ["[PAD]", "a", "b", "c"], ["[PAD]", "音楽" * 40, "映画", "c"]])
def test_table_fits_a_hundred_columns_and_lines_up(rows, names):
    lines = report.table(make(rows, names)).split("\n")
    assert max(map(columns, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    assert len(lines) == 3 + 3 + 1 + 2
    bars = {tuple(columns(line[: m.start()]) for m in re.finditer(r" \| |-\+-", line)) for line in lines}
    assert len(bars) == 1 and len(bars.pop()) == 2
    assert len({columns(line) for line in lines[1:]}) == 1


def test_table_holds_the_metrics():
    ranks = make()
    lines = report.table(ranks).split("\n")
    assert re.sub(r"[|\s]+", " ", lines[1]) == "domain rows NDCG@10 Recall@10 MRR@10 NDCG@10 Recall@10 MRR@10"
    parts = [ranks.by_domain(candidates=candidates) for candidates in ("domain", "all")]
    for name, line in (("Books", lines[3]), ("macro", lines[-2]), ("micro", lines[-1])):
        numbers = [f"{part[name][key]:.4f}" for part in parts for key in ("ndcg@10", "recall@10", "mrr@10")]
        assert re.split(r"[|\s]+", line) == [name, str(parts[0][name]["rows"]), *numbers]
    assert re.split(r"[|\s]+", lines[4]) == ["Empty", "0", *["-"] * 6]
    assert "…" in lines[5] and lines[5].startswith("A domain with")


def test_names_are_whole_where_there_is_room():
    names = ["[PAD]", "Movies_and_TV_and_more", "b", "c"]
    assert names[1] in report.table(make(names=names))


def test_other_metrics_and_cuts():
    head = report.table(make(), ["hit", "ndcg"], [5, 20]).split("\n")[1]
    assert re.split(r"[|\s]+", head)[2:] == ["Hit@5", "Hit@20", "NDCG@5", "NDCG@20"] * 2
    narrow = report.table(make(), "mrr", 5).split("\n")
    assert len({len(line) for line in narrow[1:]}) == 1
    with pytest.raises(CDSRError):
        report.table(make(), "auc")


def test_markdown_is_a_table():
    lines = report.markdown(make(names=["[PAD]", "a|b", "c\nd", "e"])).split("\n")
    assert lines[0].startswith("| domain | rows | NDCG@10 (domain) |") and lines[0].endswith("| MRR@10 (all) |")
    assert lines[1] == "| --- |" + " ---: |" * 7
    assert lines[2].startswith(r"| a\|b | ") and lines[3].startswith("| c d | 0 | - |")
    assert len(lines) == 2 + 3 + 2
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {9}


def test_result_is_plain_json():
    ranks = make()
    result = report.result_dict(ranks, ("NDCG", "Hit"), (5, 10))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["candidates"]) == ["domain", "all"]
    for candidates, part in result["candidates"].items():
        expected = ranks.by_domain(("NDCG", "Hit"), (5, 10), candidates)
        assert list(part["per_domain"]) == NAMES[1:]
        assert part["per_domain"]["Empty"] == dict.fromkeys(["ndcg@5", "ndcg@10", "hit@5", "hit@10"])
        for name, values in (
            ("Books", part["per_domain"]["Books"]),
            ("macro", part["macro"]),
            ("micro", part["micro"]),
        ):
            assert {**values, "rows": expected[name]["rows"]} == expected[name]
    assert result["rows"]["total"] == 60 and sum(result["rows"]["per_domain"].values()) == 60
    assert result["rows"]["ties"] == 20


def test_result_of_no_rows_is_json_too():
    result = report.result_dict(make(0))
    assert result["candidates"]["all"]["macro"]["ndcg@10"] is None and result["rows"]["total"] == 0
    json.dumps(result, allow_nan=False)


def test_a_domain_called_macro_keeps_its_place():
    result = report.result_dict(make(names=["[PAD]", "macro", "b", "c"]))
    part = result["candidates"]["domain"]
    assert part["per_domain"]["macro"] != part["macro"]
