"""Studies that train: what they say follows from numbers, and never more than these allow."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recbole_cdsr import cli
from recbole_cdsr.compare import significance
from recbole_cdsr.compare.cells import finished
from recbole_cdsr.compare.records import find_runs, read_finished
from recbole_cdsr.compare.significance import Interval
from recbole_cdsr.study import STUDIES, domains, noise, overlap, plugin, proxy, switch, tokens, trajectory, weights
from recbole_cdsr.study.on_data import DataStudy
from recbole_cdsr.study.planned import run_name, told
from tests.helpers import make_dataset, plain_histories, random_events, write_dataset
from tests.test_compare_tables import table, write_run

PLANNED = {
    name: module.STUDY
    for name, module in {
        "proxy": proxy,
        "weights": weights,
        "plugin": plugin,
        "trajectory": trajectory,
        "tokens": tokens,
        "noise": noise,
        "domains": domains,
        "overlap": overlap,
        "switch": switch,
    }.items()
}
METRIC = "ndcg@10"


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 499)


def groups(strengths: dict[str, float], seeds=(1, 2), **result) -> dict[str, list]:
    """Runs whose ranks are the better the higher the strength of their variant, as a study gets them."""
    for number, strength in enumerate(strengths.values()):
        for seed in seeds:
            folder = write_run(f"runs/{number}-{seed}", table(strength, seed), "AutoCDSR", seed, number=number)
            path = folder / "result.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "valid_score": strength, **result}))
    runs = read_finished(find_runs(["runs"]))
    named = list(strengths)
    found: dict[str, list] = {}
    for run in runs:
        run.variant = named[run.settings["number"]]
        found.setdefault(run.variant, []).append(run)
    return found


def test_a_planted_best_weight_is_found():
    strengths = dict.fromkeys(weights.FIXED, 1.0) | {"fixed 0.05": 8.0, "preference": 1.0, "mgda": 8.0}
    answer = weights.analyse(groups(strengths), METRIC)
    told_all = " ".join(answer.sentences)
    assert (
        "Validation chooses the fixed weight 0.05" in told_all
        and "one weight is best in every domain: 0.05" in told_all
    )
    assert re.search(r"preference minus the chosen fixed weight, macro: -\S+ \[-\S+ -\S+\]\.", told_all)
    assert re.search(r"mgda minus the chosen fixed weight, macro: .* within noise\.", told_all)
    assert set(answer.draw()) == {"png", "svg"}


def test_gains_and_times_of_plugins():
    strengths = {name: (8.0 if name == "AutoCDSR on sasrec" else 2.0) for name in plugin.STUDY.variants}
    found = groups(strengths)
    for run in found["AutoCDSR on sasrec"]:
        run.result |= {"train_cpu_seconds": 24.0, "best_epoch": 5}
    first, second, *_ = plugin.analyse(found, METRIC).sentences
    assert re.match(r"AutoCDSR on sasrec, gain over bare sasrec, macro: \+\S+ \[\+\S+ \+\S+\]\.", first)
    assert "takes 2.00 times as long" in first and "epoch 2.40 times" in first  # 24 / 6 * 6 to 12 / 6 * 5 CPU seconds
    assert "within noise" in second and "takes 1.00 times" in second


def test_noise_and_tokens_speak_of_their_extremes():
    strengths = {name: (2.0 if "50 % hidden" in name and "TAPE" in name else 8.0) for name in noise.STUDY.variants}
    sentences = noise.analyse(groups(strengths), METRIC).sentences
    assert ["within noise" in one for one in sentences] == [True] * 5 + [False]


def test_tokens_name_the_choice_of_validation():
    strengths = dict.fromkeys(tokens.STUDY.variants, 2.0) | {"4 tokens, gate": 6.0}
    sentences = tokens.analyse(groups(strengths), METRIC).sentences
    assert sentences[0] == "Validation chooses 4 tokens, gate." and "gate minus 4 tokens, mean" in sentences[1]
    assert "Over 2 seeds" in sentences[2]


@pytest.mark.parametrize(
    ("low", "high", "noise_told"), [(0.1, 0.2, False), (-0.2, -0.1, False), (-0.1, 0.1, True), (0.0, 0.1, True)]
)
def test_words_never_claim_a_difference_whose_interval_holds_zero(low, high, noise_told):
    assert ("within noise" in told("x", Interval((low + high) / 2, low, high, 0.5))) == noise_told


def test_equal_settings_have_equal_names():
    name = run_name({"model": "AutoCDSR", "epochs": 3}, "toy")
    assert name == "AutoCDSR,epochs=3" == run_name({"epochs": 3, "model": "AutoCDSR", "backbone": "sasrec"}, "toy")
    assert run_name({"model": "AutoCDSR", "epochs": 4}, "toy") != name
    long = [run_name({"model": "AutoCDSR", "train_domains": ["d" * 200 + last]}, "toy") for last in "ab"]
    assert long[0] != long[1] and max(map(len, long)) <= 100


def count_of(name: str, dataset: str) -> int:
    """Runs of a study with one seed; toy has two domains."""
    study = PLANNED[name]
    forms = len(study.forms(dataset)) if isinstance(study, DataStudy) else 1
    return forms * (len(study.variants) + 2 * len(study.alone))


@pytest.mark.parametrize("name", PLANNED)
def test_every_study_plans_runs_that_are_possible(name, capsys):
    dataset = "planted" if name == "domains" else "toy"
    assert cli.main(["study", name, "--dataset", dataset, "--seeds", "1,2", "--dry_run"]) == 0
    count = 2 * count_of(name, dataset)
    assert f"{count} of {count} runs to do" in capsys.readouterr().out and not Path("runs").exists()
    assert set(PLANNED) == set(STUDIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANNED)
def test_every_study_is_answered_by_one_command(name, capsys, monkeypatch):
    dataset = "planted" if name == "domains" else "toy"
    monkeypatch.setitem(domains.COUNTS, "planted", (2, 20))
    monkeypatch.setattr(overlap, "SHARES", (0, 60))
    small = ["--epochs", "1", "--hidden_size", "16", "--runs", "cells", "--out", "out", "--jobs", "2"]
    assert cli.main(["study", name, "--dataset", dataset, *small]) == 0
    text = Path("out/study.md").read_text()
    assert f"![{STUDIES[name]}]({name}.svg)" in text and Path(f"out/{name}.png").is_file()
    assert Path("out/report.html").is_file() and text in capsys.readouterr().out
    runs = [path.parent for path in Path("cells").rglob("result.json")]
    assert len(runs) == count_of(name, dataset) and all(map(finished, runs))


@pytest.mark.parametrize("count", domains.COUNTS["ml-100k"])
def test_films_fall_into_as_many_domains_as_asked_for(count):
    domains.build_form("ml-100k", {}, f"ml-100k-domains-{count}", Path("forms"))
    _, dataset = make_dataset(f"ml-100k-domains-{count}", data_path="forms")
    dataset.build()
    assert len(dataset.true_domain_names) - 1 == count and len(dataset.events) == 100_000
    assert dataset.true_domain.bincount()[1:].min() >= 10


def test_domains_takes_no_other_data(capsys):
    assert cli.main(["study", "domains", "--dataset", "toy", "--dry_run"]) == 2
    assert "takes --dataset ml-100k or planted, not toy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nothing"], "there is no data set 'nothing'"),
        (["--dataset", "toy", "--out", "taken/out"], "cannot make the folder taken/out"),
        (["--dataset", "toy", "--model", "HSTU"], "the key 'model' is the study's to set"),
        (["--dataset", "toy", "--seed", "3"], "the key 'seed' is the study's to set"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(arguments, message, capsys):
    Path("taken").write_text("a file")
    assert cli.main(["study", "weights", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not Path("runs", "studies").exists()


def test_forms_of_overlap_hold_the_same_events_of_other_users():
    inter, item = random_events(n_users=40)
    write_dataset("drawn", inter, item)
    domain_of, found = dict(item), {}
    for share in overlap.SHARES:
        form = f"drawn-overlap-{share}"
        overlap.build_form("drawn", {}, form, Path("forms"))
        lines = [line.split("\t") for line in Path("forms", form, f"{form}.inter").read_text().splitlines()[1:]]
        events = [(user[1:].removesuffix("@" + domain_of[i]), i, time) for user, i, time in lines]
        assert sorted(events) == sorted(found.setdefault("events", events))
        split = [(user, domain_of[i]) for user, i, _ in lines if user[0] == overlap.SPLIT]
        assert all(user.endswith("@" + domain) for user, domain in split)
        whole = {user for user, *_ in lines if user[0] == overlap.WHOLE}
        assert whole >= found.get("whole", set())
        found["whole"] = whole
        visits = {(user, domain_of[i]) for user, i, _ in lines}
        assert all(sum(one == user for one, _ in visits) > 1 for user in whole)
        assert share or not whole
    counts = Counter((user, domain_of[i]) for user, i, _ in found["events"])
    assert min(counts.values()) >= overlap.FEWEST and len(found["whole"]) > 20


def test_gaps_count_events_since_the_last_visit():
    inter, item = random_events()
    write_dataset("drawn", inter, item)
    cli.main(["run", "--model", "HSTU", "--dataset", "drawn", "--epochs", "1", "--run_dir", "run", "--quiet"])
    (run,) = read_finished([Path("run")])
    gap, domain_of = switch.gaps(run), dict(item)
    for number, user in enumerate(run.ranks.user):
        visits = [domain_of[one] for one, _ in plain_histories(inter)[user]]
        wanted = next((n for n, domain in enumerate(reversed(visits[:-1]), 1) if domain == visits[-1]), 0)
        assert gap[number] == wanted, user
    assert len(set(gap)) > 2


def test_events_fall_into_the_four_groups_of_outcomes():
    whole = read_finished([write_run("runs/whole", table(1, 1), "AutoCDSR", 1)])
    single = [
        write_run(f"runs/{n}", table(1, 2 + n, only), "AutoCDSR", 1, only=(only,))
        for n, only in enumerate(("a|b_1", "c"))
    ]
    group, rows = proxy.outcomes(whole[0], read_finished(single))
    assert len(group) == len(set(rows.tolist())) == 80  # of 90 events, every ninth has no earlier event of its domain
    right = whole[0].ranks.rank_domain[rows] <= 10
    assert (np.isin(group, (0, 2)) == right).all() and set(group) == {0, 1, 2, 3}


def test_attention_is_compared_between_hurt_and_helped_events():
    group = np.repeat([0, 1, 2, 3], 30)
    bare = np.where(group == 1, 0.4, 0.2) + np.random.default_rng(0).normal(0, 0.01, 120)
    words = " ".join(proxy.in_words("bare", "balanced", {"bare": bare, "balanced": 0.5 * bare}, group))
    assert (
        "0.40" in words and "it differs (Mann-Whitney p = 0.000" in words and "-50 % where only single right" in words
    )
    same = {"bare": np.tile([0.2, 0.3], 60), "balanced": np.tile([0.2, 0.3], 60)}
    assert "does not differ beyond noise" in " ".join(proxy.in_words("bare", "balanced", same, group))
