"""HSTU: what it may see, what its losses are, what its keys take."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig, read_yaml
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.layers import hstu as layers
from recbole_cdsr.model.base import LAYOUTS
from recbole_cdsr.model.hstu import HSTU, QUERY_TIMES
from recbole_cdsr.paths import properties_dir
from tests import test_autocdsr
from tests.test_autocdsr import MAX_LENGTH, C, V

LISTS = ("item_id_list", "domain_id_list", "timestamp_list")


class FakeDataset(test_autocdsr.FakeDataset):
    item_domain = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(V - 1) % (C - 1) + 1])


def make_model(spread: float | None = None, **keys) -> HSTU:
    torch.manual_seed(0)
    own = read_yaml(properties_dir() / "model" / "HSTU.yaml")
    small = {"hidden_size": 16, "query_key_size": 6, "value_size": 5, "n_negatives": 16, "objectives": None}
    model = HSTU(test_autocdsr.make_config(**{**own, **small, **keys}), FakeDataset())
    if spread is not None:  # weights far from their start, so that every part has its say
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=spread)
    return model


def make_batch(rows: int = 6, full: bool = False) -> dict[str, torch.Tensor]:
    batch = test_autocdsr.make_batch(rows)
    generator = torch.Generator().manual_seed(2)
    if full:
        batch["item_length"][:] = MAX_LENGTH
        batch["item_id_list"] = torch.randint(1, V, batch["item_id_list"].shape, generator=generator)
    times = (torch.rand(rows, MAX_LENGTH + 1, generator=generator, dtype=torch.float64) * 1e6).cumsum(1)
    valid = torch.arange(MAX_LENGTH) < batch["item_length"][:, None]
    batch["timestamp"] = times[:, -1]
    batch["timestamp_list"] = times[:, :-1] * valid
    for name in ("item_id", "item_id_list"):
        batch[name.replace("item", "domain")] = FakeDataset.item_domain[batch[name]]
    return batch


def other(values: torch.Tensor, name: str) -> torch.Tensor:
    """Values that differ from the given ones everywhere."""
    if name.startswith("timestamp"):
        return values + 1e8
    return values % ((V if name.startswith("item") else C) - 1) + 1


# What a state may see


@pytest.mark.parametrize("query_time", QUERY_TIMES)
@pytest.mark.parametrize("target_domain_input", [False, True])
@pytest.mark.parametrize("tile_rows", [3, 256])
def test_a_state_sees_events_up_to_its_own_and_what_was_asked_of_the_next(
    monkeypatch, query_time, target_domain_input, tile_rows
):
    monkeypatch.setattr(layers, "TILE_ROWS", tile_rows)
    keys = {"query_time": query_time, "target_domain_input": target_domain_input}
    model, batch = make_model(spread=0.5, **keys).eval(), make_batch(full=True)
    before = model.encode(batch)
    seen_ahead = {"timestamp_list": query_time == "next", "domain_id_list": target_domain_input, "item_id_list": False}
    for name in LISTS:
        for t in range(1, MAX_LENGTH):
            changed = {**batch, name: batch[name].clone()}
            changed[name][:, t] = other(changed[name][:, t], name)
            same = torch.isclose(model.encode(changed), before, atol=1e-6, rtol=1e-5).all(-1)
            assert same[:, : t - 1].all()
            assert same[:, t - 1].all() != seen_ahead[name]
            if name == "item_id_list":
                assert not same[:, t].any()


@pytest.mark.parametrize("query_time", QUERY_TIMES)
@pytest.mark.parametrize("target_domain_input", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_the_target_only_what_was_asked_for_is_seen(query_time, target_domain_input, layout):
    keys = {"query_time": query_time, "target_domain_input": target_domain_input, "layout": layout}
    model, batch = make_model(spread=0.5, **keys).eval(), make_batch()
    assert model.needs_target_domain == target_domain_input
    assert model.needs_target_time == (query_time == "next")
    before = model.user_state(batch)
    seen = {"item_id": False, "domain_id": target_domain_input, "timestamp": query_time == "next"}
    for name, is_seen in seen.items():
        after = model.user_state({**batch, name: other(batch[name], name)})
        assert torch.equal(after, before) != is_seen


@pytest.mark.parametrize("query_time", QUERY_TIMES)
@pytest.mark.parametrize("target_domain_input", [False, True])
def test_more_padding_changes_nothing(query_time, target_domain_input):
    keys = {"query_time": query_time, "target_domain_input": target_domain_input}
    model, batch = make_model(spread=0.5, MAX_ITEM_LIST_LENGTH=MAX_LENGTH + 3, **keys).eval(), make_batch()
    padded = {**batch, **{name: F.pad(batch[name], (0, 3)) for name in LISTS}}
    torch.testing.assert_close(model.user_state(padded), model.user_state(batch))
    torch.testing.assert_close(model.calculate_loss(padded), model.calculate_loss(batch))


def test_training_and_evaluation_agree_on_the_next_time_and_domain():
    """The state at t of a long row is that of the row cut after t, whose target is the event at t + 1."""
    model, batch = make_model(spread=0.5, query_time="next", target_domain_input=True).eval(), make_batch(full=True)
    states = model.encode(batch)
    for t in range(MAX_LENGTH - 1):
        cut = {**batch, **{name: batch[name][:, : t + 1] for name in LISTS}, "item_length": batch["item_length"] * 0}
        cut["item_length"] = cut["item_length"] + t + 1
        for name in LISTS:
            cut[name.removesuffix("_list")] = batch[name][:, t + 1]
        torch.testing.assert_close(model.user_state(cut), states[:, t])


# Losses


@pytest.mark.parametrize("loss_type", HSTU.loss_types)
def test_all_ways_to_score_agree(loss_type):
    model, batch = make_model(spread=0.3, loss_type=loss_type).eval(), make_batch()
    scores = model.full_sort_predict(batch)
    assert scores.shape == (6, V)
    torch.testing.assert_close(model.predict(batch), scores.gather(1, batch["item_id"][:, None])[:, 0])
    if "cosine" in loss_type:
        assert scores.abs().max() <= 1.0 / 0.05 + 1e-4


@pytest.mark.parametrize("loss_type", HSTU.loss_types)
def test_it_learns_64_users_by_heart(loss_type):
    keys = {"hidden_dropout_prob": 0.0, "hidden_size": 32, "query_key_size": 16, "value_size": 16, "n_negatives": 40}
    model, batch = make_model(loss_type=loss_type, **keys), make_batch(rows=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        loss = model.calculate_losses(batch)["rec"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = model.eval().full_sort_predict(batch)[:, 1:].argmax(1) + 1
    known = batch["item_length"] > 3  # after one or two events several users look alike
    assert (best == batch["item_id"])[known].float().mean() > 0.9


def test_many_negatives_of_the_target_domain_rank_within_it():
    """With log-Q the sampled loss tends to the softmax over the domain's items."""
    keys = {"loss_type": "sampled_cosine", "negatives": "domain", "log_q": True, "n_negatives": 20_000}
    model, batch = make_model(spread=0.3, **keys).eval(), make_batch()
    states, targets = model.user_state(batch), batch["item_id"]
    domain = FakeDataset.item_domain
    scores = model.score_items(states).masked_fill(domain[None] != domain[targets][:, None], -torch.inf)
    torch.testing.assert_close(model.item_loss(states, targets), F.cross_entropy(scores, targets), atol=0.05, rtol=0)


@pytest.mark.parametrize("tile_rows", [3, 256])
@pytest.mark.parametrize("loss_type", HSTU.loss_types)
def test_bfloat16_autocast_runs(monkeypatch, loss_type, tile_rows):
    monkeypatch.setattr(layers, "TILE_ROWS", tile_rows)
    model, batch = make_model(loss_type=loss_type), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.calculate_loss(batch)
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.eval().full_sort_predict(batch).isfinite().all()


@pytest.mark.parametrize("query_time", QUERY_TIMES)
def test_the_loss_reaches_every_parameter(query_time):
    model = make_model(query_time=query_time, target_domain_input=True)
    model.calculate_loss(make_batch()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


# Keys, and runs that know something of their targets


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("query_time", "first", "last, next, none"),
        ("loss_type", "BPR", "CE, cosine, sampled, sampled_cosine"),
        ("negatives", "popular", "all, domain"),
        ("n_negatives", 0, "at least 1"),
        ("temperature", 0.0, "number"),
        ("value_size", 0, "at least 1"),
        ("hidden_dropout_prob", 1.0, r"\[0, 1\)"),
        ("layer_norm_eps", 0, "number"),
    ],
)
def test_a_wrong_value_names_key_value_and_choices(key, value, hint):
    with pytest.raises(CDSRError, match=f"'{key}'.*{hint}") as error:
        make_model(**{"loss_type": "sampled_cosine", key: value})
    assert repr(value) in str(error.value)


SMALL = {"epochs": 1, "show_progress": False, "hidden_size": 8, "query_key_size": 4, "value_size": 4}


def test_results_say_what_was_known_of_the_target():
    told = {"target_domain_input": True, "query_time": "next"}
    quick_start.run("HSTU", "toy", config_dict={**SMALL, **told}, run_dir="told")
    quick_start.run("HSTU", "toy", config_dict=SMALL, run_dir="blind")
    for folder, known in (("told", True), ("blind", False)):
        with open(f"{folder}/result.json", encoding="utf-8") as file:
            result = json.load(file)
        assert result["target_domain_was_input"] == result["target_time_was_input"] == known
        assert ("The target's domain was input" in result["table"]) == known
        assert ("The target's time was input" in result["table"]) == known


def test_a_model_that_knows_the_domain_is_not_chosen_by_ranks_among_all_items(tmp_path):
    keys = {**SMALL, "valid_candidates": "all", "target_domain_input": True}
    config = CDSRConfig("HSTU", "toy", config_dict=keys)
    with pytest.raises(CDSRError, match="'valid_candidates' at domain"):
        quick_start.build(config, quick_start.prepare(config), tmp_path)
