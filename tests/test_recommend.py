"""What a Recommender answers: the ranking of the evaluation, for anyone, without the data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_cdsr import Recommender, quick_start
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.data.sources import ensure_built_in
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.evaluation import all_scores
from recbole_cdsr.model.autocdsr import AutoCDSR
from recbole_cdsr.model.base import CDSRRecommender
from recbole_cdsr.recommend import bundle
from tests.helpers import write_dataset

SMALL = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "epochs": 2, "show_progress": False}
MODELS = {
    "AutoCDSR": SMALL,
    "AutoCDSR, bert4rec, cosine": {**SMALL, "backbone": "bert4rec", "loss_type": "cosine"},
    "AutoCDSR, bert4rec": {**SMALL, "backbone": "bert4rec"},
    "AutoCDSR+": {"hidden_size": 16, "inner_size": 16, "epochs": 2, "show_progress": False},
    "SASRec": SMALL,
    "GRU4Rec": {"epochs": 2, "show_progress": False},
    "BERT4Rec": SMALL,
    "Pop": {"show_progress": False},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on the toy data, each made when it is first asked for; returns (run folder, folder of the data)."""
    root, made = tmp_path_factory.mktemp("runs"), {}

    def get(name: str = "AutoCDSR") -> tuple[Path, Path]:
        if name not in made:
            folder, keys = root / str(len(made)), {**MODELS[name], "data_path": str(root / "data")}
            quick_start.run(name.partition(",")[0], "toy", config_dict=keys, run_dir=folder)
            made[name] = folder, root / "data"
        return made[name]

    return get


@pytest.fixture
def alone(runs, tmp_path):
    """A recommender whose bundle lies alone in a folder: no run, no data set."""
    return Recommender.load(shutil.copytree(runs()[0] / "bundle", tmp_path / "copied"))


def raw_histories(folder: Path) -> dict[str, list[tuple[str, float]]]:
    lines = (folder / "toy" / "toy.inter").read_text().splitlines()[1:]
    histories: dict[str, list] = {}
    for user, item, time in sorted((line.split("\t") for line in lines), key=lambda row: float(row[2])):
        histories.setdefault(user, []).append((item, float(time)))
    return histories


@pytest.mark.parametrize("name", MODELS)
def test_the_ranking_is_that_of_the_evaluation(runs, name):
    folder, data = runs(name)
    built, recommender = quick_start.load(folder), Recommender.load(folder)
    dataset, scores = built.test.dataset, []
    built.model.eval()
    with torch.no_grad():
        for batch in built.test:
            if isinstance(built.model, CDSRRecommender):
                scores.append(built.model.full_sort_predict(batch))
            else:
                scores.append(all_scores(built.model, batch, "item_id", dataset.item_num))
    scores = torch.cat(scores).double().numpy()
    users = dataset.field2id_token["user_id"][dataset.inter_feat["user_id"].numpy()]
    raw = raw_histories(data)
    histories = [[item for item, _ in raw[user][:-1]] for user in users]
    number = {item: n for n, item in enumerate(dataset.field2id_token["item_id"])}
    for domain in (None, *recommender.domains):
        for row, answer in enumerate(recommender.recommend(histories, domain, k=1000, exclude_seen=False)):
            candidates = range(1, dataset.item_num)
            if domain is not None:
                candidates = [n for n in candidates if dataset.domain_names[dataset.item_domain[n]] == domain]
            found = [number[item] for item in answer.items]
            assert sorted(found) == list(candidates) and answer.by == "model" and answer.skipped == 0
            np.testing.assert_allclose(answer.scores, scores[row, found], rtol=1e-4, atol=1e-5)
            assert (np.diff(answer.scores) <= 0).all()


def test_a_known_user_is_answered_after_all_events(runs, alone):
    raw = raw_histories(runs()[1])
    users = ["u3", "u39", "u3"]
    assert alone.history("u3") == raw["u3"]
    answers = alone.recommend_users(users, k=5)
    assert answers == alone.recommend([raw[user] for user in users], k=5)
    assert answers[0] == answers[2] != answers[1]
    with pytest.raises(CDSRError, match="user 1: there is no user 'nobody'"):
        alone.recommend_users(["u3", "nobody"])


def test_unknown_items_are_skipped_and_counted(alone):
    known, mixed = alone.recommend([["i1", "i5"], ["new", "i1", "newer", "i5", "newest"]])
    assert (known.skipped, mixed.skipped) == (0, 3)
    assert mixed.items == known.items


@pytest.mark.parametrize("history", [[], ["new", "newer"]])
@pytest.mark.parametrize("domain", [None, "d1"])
def test_without_a_known_item_the_most_popular_come(runs, alone, history, domain):
    raw = raw_histories(runs()[1])
    counts = dict.fromkeys(alone.items, 0)
    for events in raw.values():
        for item, _ in events[:-2]:  # the last two are validation and test
            counts[item] += 1
    (answer,) = alone.recommend([history], domain, k=1000)
    assert answer.by == "popularity" and answer.skipped == len(history)
    inside = [item for item in alone.items if domain is None or item in domain_of(alone)[domain]]
    assert answer.items == sorted(inside, key=lambda item: -counts[item])
    assert answer.scores == [counts[item] for item in answer.items]


def domain_of(recommender) -> dict[str, set[str]]:
    """The items of each domain, as the recommender answers them."""
    return {domain: set(recommender.recommend([[]], domain, k=1000)[0].items) for domain in recommender.domains}


def test_a_domain_new_to_the_user_is_answered_by_the_model(alone):
    history = sorted(domain_of(alone)["d0"])[:3]
    (answer,) = alone.recommend([history], "d1", k=1000)
    assert answer.by == "model" and set(answer.items) == domain_of(alone)["d1"]


def test_a_domain_without_training_events_is_answered_by_popularity():
    inter = [(f"u{u}", f"i{(u + t) % 6}", t) for u in range(8) for t in range(5)]
    inter += [("u0", "late", 9), ("u1", "later", 9)]  # held out as test events
    items = [(f"i{n}", "seen") for n in range(6)] + [("late", "fresh"), ("later", "fresh")]
    write_dataset("cold", inter, items)
    quick_start.run("AutoCDSR", "cold", config_dict=SMALL, run_dir="cold")
    (answer,) = Recommender.load("cold").recommend([["i1", "i2"]], "fresh")
    assert (sorted(answer.items), *answer[1:]) == (["late", "later"], [0.0, 0.0], "popularity", 0)


@pytest.mark.parametrize("domain", [None, "d0"])
def test_seen_items_are_left_out_unless_asked_for(alone, domain):
    history = ["i1", "i7", "i1"]
    (without,) = alone.recommend([history], domain, k=1000)
    (everything,) = alone.recommend([history], domain, k=1000, exclude_seen=False)
    assert without.items == [item for item in everything.items if item not in history]
    assert {"i1", "i7"} <= set(everything.items)
    (popular,) = alone.recommend([["new"]], domain, k=1000)
    assert set(popular.items) == set(everything.items)


def test_an_old_item_is_seen_too(alone):
    """It is left out even where it lies further back than the model looks."""
    (answer,) = alone.recommend([["i1"] + ["i2"] * 300], k=1000)
    assert "i1" not in answer.items and len(answer.items) == 38


def test_nothing_is_left_for_who_has_seen_everything(alone):
    (answer,) = alone.recommend([alone.items])
    assert answer.items == [] and answer.scores == []


def test_answers_do_not_depend_on_company_order_or_tiles(alone, monkeypatch):
    from recbole_cdsr.recommend import scoring, top_items

    rng = np.random.default_rng(0)
    histories = [rng.choice(alone.items, n).tolist() for n in rng.integers(0, 70, 50)]
    domains = rng.choice(["d0", "d1", ""], 50).tolist()
    domains = [domain or None for domain in domains]
    together = alone.recommend(histories, domains)
    monkeypatch.setattr(top_items, "TILE", 7)
    alone._scorer.users_at_once = 3
    assert scoring.USERS > 3
    for position, (history, domain) in enumerate(zip(histories, domains, strict=True)):
        (single,) = alone.recommend([history], domain)
        assert single.items == together[position].items
        np.testing.assert_allclose(single.scores, together[position].scores, rtol=1e-4, atol=1e-6)
    assert [answer.items for answer in alone.recommend(histories, domains)] == [one.items for one in together]


def test_histories_come_in_many_forms(alone):
    expected = alone.recommend([["i1", "i5"]])
    assert alone.recommend(np.array([["i1", "i5"]])) == expected
    assert alone.recommend(iter([("i1", "i5")])) == expected
    assert alone.recommend([[("i1", 1), ("i5", 2.5)]]) == expected
    assert alone.recommend([[["i5", 2], ["i1", 1]]]) == expected, "times decide the order"
    assert alone.recommend([[("i1", 1), ("i5", 1)]]) == expected, "equal times keep the order given"
    mixed = alone.recommend([[("i5", 2), ("i1", 1)], ["i7", "i8", "i2"], []])
    assert mixed[0].items == expected[0].items, "times decide beside histories without times too"
    assert mixed[1].items == alone.recommend([["i7", "i8", "i2"]])[0].items
    assert alone.recommend([]) == []


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ("i1", "histories are a list"),
        (["i1", "i2"], "history 0: expected a list of items"),
        ([["i1"], {"i1": 1}], "history 1: expected a list"),
        ([["i1"], ["i1", None]], "history 1, event 1: expected a text or a whole number, but got None"),
        ([[True]], "history 0, event 0"),
        ([[1.5]], "history 0, event 0"),
        ([[("i1", 1), "i2"]], "history 0, event 1: expected (item, timestamp)"),
        ([["i1", ("i2", 1)]], "history 0, event 1: expected a text"),
        ([[("i1", "yesterday")]], "a timestamp is a finite number, but got 'yesterday'"),
        ([[("i1", float("nan"))]], "a timestamp is a finite number"),
    ],
)
def test_bad_histories_are_named(alone, histories, message):
    with pytest.raises(CDSRError) as error:
        alone.recommend(histories)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"k": 0}, "k must be"),
        ({"k": True}, "k must be"),
        ({"k": 2.0}, "k must be"),
        ({"domain": "d7"}, "history 0: there is no domain 'd7'; there are d0, d1"),
        ({"domain": ["d0"]}, "2 histories, but 1 domains"),
        ({"domain": ["d0", "[PAD]"]}, "history 1: there is no domain '[PAD]'"),
    ],
)
def test_bad_questions_are_told(alone, keys, message):
    with pytest.raises(CDSRError) as error:
        alone.recommend([["i1"], ["i2"]], **keys)
    assert message in str(error.value)


def test_tokens_are_texts_of_any_script_and_numbers_their_digits():
    tokens = ["42", "книга", "本 1", "a\"b'c", "[PAD]", "é"]
    inter = [(f"user {u}", tokens[(u + t) % 6], t) for u in range(8) for t in range(6)]
    write_dataset("words", inter, [(token, ["学", "b c"][n % 2]) for n, token in enumerate(tokens)])
    quick_start.run("AutoCDSR", "words", config_dict=SMALL, run_dir="words")
    recommender = Recommender.load("words")
    assert sorted(recommender.items) == sorted(tokens) and sorted(recommender.domains) == ["b c", "学"]
    assert recommender.recommend([[42, "книга"]]) == recommender.recommend([["42", "книга"]])
    (answer,) = recommender.recommend([[]], "学", k=9)
    assert sorted(answer.items) == sorted(["42", "本 1", "[PAD]"])
    assert len(recommender.recommend_users(["user 3"])) == 1


def build(name: str, model, keys) -> Recommender:
    """A recommender from an untrained model."""
    ensure_built_in("toy", Path("dataset"), None)
    config = CDSRConfig(model, "toy", config_dict=keys)
    built = quick_start.build(config, quick_start.prepare(config), Path("work"))
    bundle.write(Path(name), config, built.model, built.train.dataset, "", histories=True)
    return Recommender.load(name, model=None if isinstance(model, str) else model)


@pytest.mark.parametrize("model", ["BPR", "FPMC"])
def test_models_of_user_ids_serve_known_users_only(model):
    recommender = build("ids", model, {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}})
    assert len(recommender.recommend_users(["u3"])[0].items) == 10
    with pytest.raises(CDSRError, match=f"{model} knows users by their ids"):
        recommender.recommend([["i1"]])


def test_models_that_need_the_whole_data_set_get_no_bundle():
    with pytest.raises(CDSRError, match="LightGCN cannot be built without its data set"):
        build("graph", "LightGCN", {})
    assert not Path("graph").exists()


class ReadsTime(AutoCDSR):
    """Scores by what it is told beside the items; stands for models that read times or the domain."""

    field = "timestamp_list"

    def user_state(self, interaction):
        told = interaction[self.field].float().reshape(len(interaction), -1).sum(1, keepdim=True)
        return self.item_embedding.weight[1] + told * self.item_embedding.weight[2]


class ReadsDomain(ReadsTime):
    field = "domain_id"
    needs_target_domain = True


def test_models_that_read_times_need_them():
    recommender = build("time", ReadsTime, {})
    with pytest.raises(CDSRError, match="ReadsTime reads the times of events"):
        recommender.recommend([["i1"], [("i1", 5)]])
    start = min(time for events in raw_histories(Path("dataset")).values() for _, time in events)
    early, late = recommender.recommend([[("i1", start)], [("i1", start + 5)]], k=3, exclude_seen=False)
    weight = recommender._bundle.model.item_embedding.weight.detach()
    for seconds, answer in ((0, early), (5, late)):
        scores = (weight[1] + seconds * weight[2]) @ weight.T
        np.testing.assert_allclose(answer.scores, scores[1:].topk(3)[0], rtol=1e-4)
    assert recommender.recommend([[], ["new"]])[0].by == "popularity"


def test_models_that_are_told_the_domain_need_it():
    recommender = build("domain", ReadsDomain, {})
    with pytest.raises(CDSRError, match="history 0: ReadsDomain needs the domain to recommend from"):
        recommender.recommend([["i1"]])
    assert len(recommender.recommend([["i1"]], "d0")[0].items) == 10
