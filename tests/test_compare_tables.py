"""Tables of finished runs, made from rank tables without any training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from recbole_cdsr.compare import formats, significance
from recbole_cdsr.compare.command import main
from recbole_cdsr.compare.records import find_runs, read_finished
from recbole_cdsr.compare.tables import make_tables
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.ranks import RankTable
from recbole_cdsr.report import result_dict

N_ITEMS, USERS, DOMAINS = 100, 90, ["[PAD]", "a|b_1", "c"]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 499)


def table(best: float, seed: int, only: str | None = None, shuffled: bool = False) -> RankTable:
    """Ranks of one test event per user, lower where `best` is higher; every ninth user has no earlier own event."""
    number, rng = np.arange(USERS), np.random.default_rng(seed)
    if only:
        kept = (number % 2 + 1 == DOMAINS.index(only)) & (number % 9 > 0)
    else:
        kept = np.ones(USERS, dtype=bool)
    rank = 1 + np.minimum(rng.integers(0, 30, USERS) / best, N_ITEMS // 2 - 1).round()
    order = rng.permutation(USERS) if shuffled else number
    order = order[kept[order]]
    own = number % 9
    columns = {
        "user": [f"u{n}" for n in order], "item": [f"i{n}" for n in order], "domain": order % 2 + 1,
        "history_length": (own if only else own + 3)[order], "domain_history_length": own[order],
        "switch": order % 2 > 0, "rank_all": rank[order] + 20, "rank_domain": rank[order],
        "candidates_all": np.full(len(order), N_ITEMS), "candidates_domain": np.full(len(order), N_ITEMS // 2),
        "ties": np.zeros(len(order), dtype=bool),
    }  # fmt: skip
    return RankTable(domain_names=DOMAINS, **columns)


def write_run(folder, ranks: RankTable, model="SASRec", seed=1, told=False, only=(), **keys) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True)
    result = {"model": model, "dataset": "toy_set", "seed": seed, "train_cpu_seconds": 12.0, "epochs": 6}
    result |= {
        "best_epoch": 4,
        "parameters": 1234,
        "peak_memory_bytes": 2**29,
        "target_domain_was_input": told,
        **result_dict(ranks),
    }
    settings = {"model": model, "dataset": "toy_set", "seed": seed, "metrics": ["NDCG", "MRR"], "topk": [10]}
    settings |= {"train_domains": list(only), **keys}
    ranks.save(folder / "ranks.npz")
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def runs_of_two_models() -> None:
    for seed in (1, 2):
        write_run(f"runs/good{seed}", table(6, seed), "HSTU", seed, told=True)
        write_run(f"runs/bad{seed}", table(1, seed + 7), "SASRec", seed)


def tables_of(*folders):
    return make_tables(read_finished(find_runs(folders)))


def test_numbers_are_those_of_the_runs():
    runs_of_two_models()
    made = tables_of("runs")
    result = json.loads(Path("runs/bad1/result.json").read_text())["candidates"]
    found = {(s["candidates"], s["domain"], s["metric"]): s["value"] for s in made.scores
             if (s["variant"], s["seed"]) == ("SASRec", 1)}  # fmt: skip
    assert found["domain", "c", "ndcg@10"] == pytest.approx(result["domain"]["per_domain"]["c"]["ndcg@10"])
    assert found["all", "macro", "mrr@10"] == pytest.approx(result["all"]["macro"]["mrr@10"])
    first = made.tables[0]
    assert first.head == ["model", "seeds", "a|b_1 (45)", "c (45)", "macro (90)", "micro (90)"]
    good, bad = first.rows if first.rows[0][0].text.startswith("HSTU") else first.rows[::-1]
    assert good[0].text == "HSTU (given the target's domain)" and all(value.bold for value in good[2:])
    cost = next(one for one in made.tables if one.name.endswith("cost"))
    assert [value.text for value in cost.rows[0][2:]] == ["1,234", "2.00 ± 0.00", "6 (4), 6 (4)", "512 ± 0"]
    assert [value.mark for value in bad[2:]] == ["‡", "‡", "", ""] and not any(value.bold for value in bad)


def test_two_copies_of_a_run_are_never_marked():
    for seed in (1, 2):
        for name in ("SASRec", "GRU4Rec"):
            write_run(f"runs/{name}{seed}", table(2, seed), name, seed)
    made = tables_of("runs")
    assert made.tests and not any(test.mark for *_, test in made.tests)


def test_one_run_alone_makes_tables_too():
    write_run("run", table(1, 1))
    first = tables_of("run").tables[0]
    assert "±" not in first.rows[0][2].text and not first.rows[0][2].bold


def test_variants_are_named_by_the_keys_in_which_they_differ():
    write_run("runs/a", table(1, 1), n_layers=1, epochs=9)
    write_run("runs/b", table(1, 2), n_layers=2, epochs=9)
    assert {run.variant for run in read_finished(find_runs(["runs"]))} == {
        "SASRec (n_layers = 1)", "SASRec (n_layers = 2)",
    }  # fmt: skip
    write_run("runs/c", table(1, 2), n_layers=2, epochs=9)
    with pytest.raises(CDSRError, match="are both SASRec .* with seed 1; leave one out"):
        tables_of("runs")


def test_runs_on_other_events_are_refused():
    write_run("runs/a", table(1, 1))
    write_run("runs/b", table(1, 2, shuffled=True), seed=2)
    with pytest.raises(CDSRError, match="ranked other events or candidates than"):
        tables_of("runs")


def test_the_gain_is_paired_on_the_same_events():
    """The order of rows is no matter, and events that the single-domain run could not rank count on neither side."""
    for seed in (1, 2):
        write_run(f"runs/whole{seed}", table(6, seed), seed=seed)
        for only in DOMAINS[1:]:
            ranks = table(1, seed, only)
            write_run(f"runs/{DOMAINS.index(only)}only{seed}", ranks, seed=seed, only=[only])
    made = tables_of("runs")
    gains = {gain.domain: gain for _, gain in made.gains if (gain.metric, gain.candidates) == ("ndcg@10", "domain")}
    assert set(gains) == {*DOMAINS[1:], None} and gains["c"].seeds == [1, 2]
    number = np.arange(USERS)
    kept = (number % 2 == 1) & (number % 9 > 0)
    sides = [np.mean([table(b, s).by_row("NDCG")["ndcg@10"][kept] for s in (1, 2)]) for b in (6, 1)]
    assert (gains["c"].events, gains["c"].of_events) == (int(kept.sum()), 45)
    assert gains["c"].gain.mean == pytest.approx(sides[0] - sides[1])
    assert gains[None].gain.mean == pytest.approx((gains["c"].gain.mean + gains["a|b_1"].gain.mean) / 2)
    assert all(gain.gain.low < gain.gain.mean < gain.gain.high for gain in gains.values())
    assert any("gain of NDCG@10" in one.title for one in made.tables)


def test_no_gain_of_a_run_over_its_own_events():
    write_run("runs/whole", table(1, 3))
    write_run("runs/only", table(1, 3, "c"), only=["c"])
    gains = [gain.gain for _, gain in tables_of("runs").gains]
    assert gains and all(tuple(gain) == (0, 0, 0, 1) for gain in gains)


def test_files_of_tables(capsys):
    runs_of_two_models()
    assert main(["--from", "runs", "--out", "tables"]) == 0
    assert "## toy_set: NDCG@10" in capsys.readouterr().out
    page, tex = (Path("tables") / f"tables.{kind}" for kind in ("md", "tex"))
    text = page.read_text(encoding="utf-8")
    assert r"a\|b_1 (45)" in text and "**0." in text and text.count("after Holm") == 1, "shared, so once"
    text = tex.read_text(encoding="utf-8")
    assert r"\textsuperscript{$\ddagger$}" in text and r"a|b\_1" in text and r"toy\_set" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 6
    rows = list(csv.DictReader((Path("tables") / "scores.csv").open()))
    assert len(rows) == 2 * 2 * 2 * 4 * 2, "models x seeds x candidate sets x columns x metrics"
    assert not (Path("tables") / "gains.csv").exists(), "no single-domain run"


def test_special_characters_of_latex():
    assert formats.escaped("a_b & 5 % ± †") == r"a\_b \& 5 \% $\pm$ $\dagger$"


def test_nothing_to_report_is_told():
    Path("empty").mkdir()
    for arguments, message in [
        (["--from", "empty"], "no finished run in empty"),
        (["--from", "empty", "--epochs", "3"], "'epochs' has no meaning there"),
    ]:
        with pytest.raises(CDSRError, match=message):
            main(arguments)
