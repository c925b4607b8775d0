"""The rank table: metrics equal to RecBole's, means by domain and group, and files that are whole or refused."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_cdsr import compat, ranks
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.ranks import RankTable, count_ranks

NAMES = ["[PAD]", "books", "empty", "música", "音楽"]
EVERY_METRIC = ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP"]


def make(rows=40, seed=0, **columns) -> RankTable:
    """A table with random ranks; no row is of the domain "empty"."""
    draw = np.random.default_rng(seed)
    default = {
        "user": np.array([f"u{n}" for n in range(rows)], dtype=str),
        "item": np.array([f"音{n}" for n in range(rows)], dtype=str),
        "domain": draw.choice([1, 3, 4], rows, p=[0.6, 0.3, 0.1]),
        "domain_names": NAMES,
        "history_length": draw.integers(2, 9, rows),
        "domain_history_length": draw.integers(0, 2, rows),
        "switch": draw.random(rows) < 0.5,
        "rank_all": draw.integers(2, 80, rows) / 2,
        "rank_domain": draw.integers(2, 30, rows) / 2,
        "candidates_all": np.full(rows, 100),
        "candidates_domain": np.full(rows, 20),
        "ties": draw.random(rows) < 0.1,
    }
    return RankTable(**{**default, **columns})


def of_ranks(rank) -> RankTable:
    rank = np.asarray(rank, dtype=np.float64)
    return make(len(rank), rank_all=rank, rank_domain=rank, candidates_all=rank + 1, candidates_domain=rank + 1)


def assert_same(left: RankTable, right: RankTable):
    for name, value in dataclasses.asdict(left).items():
        np.testing.assert_array_equal(value, getattr(right, name), err_msg=name)
        assert np.asarray(value).dtype == np.asarray(getattr(right, name)).dtype, name


def evaluate_with_recbole(batches, topk, metrics) -> dict[str, float]:
    """What RecBole's trainer does with the scores of a full sort, batch by batch."""
    compat.apply()
    from recbole.evaluator import Collector, Evaluator

    config = defaultdict(lambda: None, topk=topk, metrics=metrics, device="cpu", metric_decimal_place=15)
    config["eval_args"] = {"mode": "full"}
    collector = Collector(config)
    for scores, target in batches:
        scores = scores.clone()
        scores[:, 0] = -np.inf
        collector.eval_batch_collect(scores, None, torch.arange(len(target)), target)
    return dict(Evaluator(config).evaluate(collector.get_data_struct()))


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_recboles(seed):
    draw = torch.Generator().manual_seed(seed)
    item_domain = torch.randint(1, 4, (150,), generator=draw)
    scores = torch.randn(200, 150, generator=draw)
    target = torch.randint(1, 150, (200,), generator=draw)
    scores[torch.arange(200), target] += 1.5
    found = count_ranks(scores, item_domain, target)
    table = make(200, domain=item_domain[target], domain_names=["[PAD]", *"abc"], **found._asdict())
    foreign = item_domain[None] != item_domain[target][:, None]
    for candidates, seen in (("all", scores), ("domain", scores.masked_fill(foreign, -np.inf))):
        expected = evaluate_with_recbole(zip(seen.split(64), target.split(64), strict=True), [5, 10, 20], EVERY_METRIC)
        assert 0.1 < expected["ndcg@10"] < 0.9
        assert table.metrics(EVERY_METRIC, [5, 10, 20], candidates) == pytest.approx(expected, abs=1e-12)


def test_known_values():
    values = of_ranks([1, 3, 10, 11]).metrics(EVERY_METRIC, 10)
    assert values["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 4)
    assert values["mrr@10"] == values["map@10"] == pytest.approx((1 + 1 / 3 + 1 / 10) / 4)
    assert values["recall@10"] == values["hit@10"] == 0.75
    assert values["precision@10"] == pytest.approx(0.075)
    assert list(values) == ["recall@10", "mrr@10", "ndcg@10", "hit@10", "precision@10", "map@10"]


def test_a_tie_across_the_cut_is_a_miss():
    assert of_ranks([9.5, 10, 10.5]).metrics("hit", 10)["hit@10"] == pytest.approx(2 / 3)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=30), st.integers(1, 40))
def test_metrics_grow_with_k_and_with_better_ranks(doubled, k):
    names = ["recall", "ndcg", "mrr"]
    worse, better = of_ranks(np.array(doubled) / 2 + 1), of_ranks(np.array(doubled) / 2)
    for name in names:
        value = better.metrics(names, k)[f"{name}@{k}"]
        assert (
            0 <= worse.metrics(names, k)[f"{name}@{k}"] <= value <= better.metrics(name, k + 1)[f"{name}@{k + 1}"] <= 1
        )


def test_names_in_any_case_and_several_cuts():
    assert list(make().metrics(["ndcg", "NDCG", "mRR"], (1, 5))) == ["ndcg@1", "ndcg@5", "mrr@1", "mrr@5"]
    assert make().metrics("NDCG", np.int64(5)) == make().metrics(["ndcg"], [5])


@pytest.mark.parametrize(
    ("metrics", "topk", "reason"),
    [
        ("GiniIndex", 10, "recommended lists"),
        ("ItemCoverage", 10, "recommended lists"),
        ("AUC", 10, "ranks only"),
        ("LogLoss", 10, "ranks only"),
        ("NDGC", 10, "Did you mean ndcg"),
        ("ndcg@10", 10, "unknown"),
        ("ndcg", 0, "topk"),
        ("ndcg", [5, 2.5], "topk"),
        ("ndcg", True, "topk"),
        ([], 10, "at least one"),
        ("ndcg", [], "at least one"),
    ],
)
def test_impossible_metrics_say_why(metrics, topk, reason):
    with pytest.raises(CDSRError, match=reason):
        make().metrics(metrics, topk)


def test_candidates_must_be_known():
    with pytest.raises(CDSRError, match="candidates"):
        make().metrics(candidates="sampled")


def test_macro_is_over_domains_and_micro_over_rows():
    table = make(300)
    result = table.by_domain(("ndcg", "hit"), (5, 10), "all")
    assert list(result) == [*NAMES[1:], "macro", "micro"]
    assert [result[name]["rows"] for name in NAMES[1:]] == [(table.domain == d).sum() for d in range(1, 5)]
    present = [result[NAMES[d]]["ndcg@10"] for d in (1, 3, 4)]
    assert result["macro"]["ndcg@10"] == pytest.approx(np.mean(present))
    assert result["micro"] == {**table.metrics(("ndcg", "hit"), (5, 10), "all"), "rows": 300}
    assert result["macro"] != result["micro"] and result["macro"]["rows"] == 300


def test_a_domain_without_rows_breaks_nothing():
    values = make().by_domain()["empty"]
    assert values.pop("rows") == 0 and all(math.isnan(value) for value in values.values())
    empty = make(0).by_domain()
    assert empty["macro"]["rows"] == 0 and math.isnan(empty["macro"]["ndcg@10"])


def test_domains_may_be_called_macro():
    result = make(domain_names=["[PAD]", "macro", "b", "micro", "d"]).by_domain()
    assert list(result) == ["domain:macro", "b", "domain:micro", "d", "macro", "micro"]


def test_groups():
    table = make(100)
    halves = table.by_group(table.switch, "ndcg")
    assert list(halves) == [False, True] and halves[True]["rows"] == table.switch.sum()
    assert halves[True]["ndcg@10"] == table.metrics("ndcg", rows=table.switch)["ndcg@10"]
    mean = sum(part["rows"] * part["ndcg@10"] for part in table.by_group(table.history_length).values()) / 100
    assert mean == pytest.approx(table.metrics()["ndcg@10"])
    for wrong in (table.switch[:5], table.rank_all):
        with pytest.raises(CDSRError, match="groups"):
            table.by_group(wrong)


@pytest.mark.parametrize(
    "columns",
    [
        {"rank_all": np.full(40, np.nan)},
        {"rank_domain": np.full(40, 0.5)},
        {"rank_domain": np.full(40, 21.0)},
        {"domain": np.zeros(40)},
        {"domain": np.full(40, 5)},
        {"switch": np.zeros(39, dtype=bool)},
        {"domain_names": ["[PAD]", "a", "a", "b", "c"]},
    ],
)
def test_impossible_columns_are_refused(columns):
    with pytest.raises(CDSRError):
        make(**columns)


def test_concat_joins_rows_in_order():
    left, right = make(5, 1), make(7, 2)
    both = RankTable.concat([left, make(0), right])
    assert len(both) == 12 and both.user.tolist() == [*left.user, *right.user]
    np.testing.assert_array_equal(both.rank_all, np.r_[left.rank_all, right.rank_all])
    with pytest.raises(CDSRError, match="domain names"):
        RankTable.concat([left, make(domain_names=["[PAD]", *"abcd"])])
    with pytest.raises(CDSRError, match="no rank table"):
        RankTable.concat([])


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_saved_is_loaded(rows, tmp_path):
    path = tmp_path / "run" / "ranks.npz"
    make(rows).save(path)
    assert_same(RankTable.load(path), make(rows))
    assert os.listdir(path.parent) == ["ranks.npz"]


def test_a_save_replaces_the_file_as_a_whole(tmp_path):
    """A reader that has the old file open, here by a second name, never sees a mixture."""
    path = tmp_path / "ranks.npz"
    make(5).save(path)
    os.link(path, tmp_path / "old.npz")
    make(9).save(path)
    assert len(RankTable.load(tmp_path / "old.npz")) == 5 and len(RankTable.load(path)) == 9


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "ranks.npz"
    make(5).save(path)

    def break_off(file, **columns):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(ranks.np, "savez_compressed", break_off)
    with pytest.raises(CDSRError, match="disk full"):
        make(9).save(path)
    assert len(RankTable.load(path)) == 5 and os.listdir(tmp_path) == ["ranks.npz"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("stored") / "ranks.npz"
    make(6).save(path)
    return path.read_bytes()


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(share, stored, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "truncated.npz"
    path.write_bytes(stored[: int(share * len(stored))])
    with pytest.raises(CDSRError, match=r"truncated\.npz.*damaged"):
        RankTable.load(path)


@settings(max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_harmless(place, bit, stored, tmp_path_factory):
    path, damaged = tmp_path_factory.getbasetemp() / "flipped.npz", bytearray(stored)
    damaged[int(place * len(stored))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        table = RankTable.load(path)
    except CDSRError:
        return
    assert_same(table, make(6))


def test_a_header_that_hides_values_is_refused(tmp_path):
    """Tokens cut by one character would load without complaint, were the checksums not looked at first."""
    path = tmp_path / "ranks.npz"
    np.savez(path, format=1, **dataclasses.asdict(make(2000)))
    content = path.read_bytes()
    assert len(RankTable.load(path)) == 2000 and content.count(b"'descr': '<U5'") == 2  # user and item
    path.write_bytes(content.replace(b"'descr': '<U5'", b"'descr': '<U4'"))
    with pytest.raises(CDSRError, match="damaged"):
        RankTable.load(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CDSRError, match="no rank table"):
        RankTable.load(tmp_path / "missing.npz")
    objects = {**dataclasses.asdict(make(1)), "format": 1, "user": np.array([{}], dtype=object)}
    np.savez(tmp_path / "objects.npz", **objects)
    with pytest.raises(CDSRError, match="damaged"):
        RankTable.load(tmp_path / "objects.npz")
    np.savez(tmp_path / "newer.npz", format=2, domain_names=np.array(["[PAD]"]))
    with pytest.raises(CDSRError, match="version 2"):
        RankTable.load(tmp_path / "newer.npz")
