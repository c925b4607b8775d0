"""AutoCDSR: what it may see, what its rows ask for, what its two losses reach."""

from __future__ import annotations

import pytest
import torch

from recbole_cdsr.config import read_yaml
from recbole_cdsr.model.autocdsr import AutoCDSR
from recbole_cdsr.model.backbone import BACKBONES
from recbole_cdsr.model.base import LAYOUTS
from recbole_cdsr.paths import properties_dir
from tests.test_attention import FORMS, set_form

V, C, MAX_LENGTH = 41, 4, 8
backbones = pytest.mark.parametrize("backbone", BACKBONES)


class FakeConfig(dict):
    """RecBole's Config answers None for a key that it does not know."""

    def __missing__(self, key):
        return None


class FakeDataset:
    def num(self, field: str) -> int:
        return {"item_id": V, "domain_id": C}[field]


def make_config(**keys) -> FakeConfig:
    small = {"hidden_size": 16, "inner_size": 32, "n_negatives": 16}
    recbole = {
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "LIST_SUFFIX": "_list",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": MAX_LENGTH,
        "device": torch.device("cpu"),
    }
    return FakeConfig({**read_yaml(properties_dir() / "model" / "AutoCDSR.yaml"), **recbole, **small, **keys})


def make_model(seed: int = 0, spread: float | None = None, **keys) -> AutoCDSR:
    torch.manual_seed(seed)
    model = AutoCDSR(make_config(**keys), FakeDataset())
    if spread is not None:  # weights far from their start, so that attention is far from uniform
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=spread)
    return model


def make_batch(rows: int = 6, length: int = MAX_LENGTH, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(high, *shape):
        return torch.randint(1, high, shape, generator=generator)

    item_length = draw(length + 1, rows)
    item_length[0] = length
    valid = torch.arange(length) < item_length[:, None]
    item_domain = torch.randint(1, C, (V,), generator=generator)
    items, target = draw(V, rows, length), draw(V, rows)
    return {
        "item_id_list": items * valid,
        "domain_id_list": item_domain[items] * valid,
        "timestamp_list": torch.zeros(rows, length, dtype=torch.float64),
        "item_length": item_length,
        "item_id": target,
        "domain_id": item_domain[target],
        "timestamp": torch.zeros(rows, dtype=torch.float64),
        "user_id": torch.arange(1, rows + 1),
    }


# What a state may see


def test_sasrec_is_causal():
    model = make_model(spread=0.3).eval()
    batch = make_batch()
    batch["item_length"][:] = MAX_LENGTH
    batch["item_id_list"][batch["item_id_list"] == 0] = 7
    before = model.encode(batch)
    for t in range(MAX_LENGTH):
        changed = {**batch, "item_id_list": batch["item_id_list"].clone()}
        changed["item_id_list"][:, t] = changed["item_id_list"][:, t] % (V - 1) + 1
        after = model.encode(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.isclose(after[:, t], before[:, t]).all()


@backbones
def test_more_padding_changes_nothing(backbone):
    model = make_model(spread=0.3, backbone=backbone, MAX_ITEM_LIST_LENGTH=MAX_LENGTH + 3).eval()
    batch = make_batch()
    lists = {key: torch.nn.functional.pad(value, (0, 3)) for key, value in batch.items() if key.endswith("_list")}
    padded = {**batch, **lists}
    torch.testing.assert_close(model.user_state(padded), model.user_state(batch), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model.transfer_record(padded), model.transfer_record(batch), atol=1e-6, rtol=1e-6)
    if backbone == "sasrec":  # bert4rec draws other masks for other shapes
        ours, theirs = model.calculate_losses(padded), model.calculate_losses(batch)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-6)


@backbones
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_target_is_not_seen_before_it_is_scored(backbone, layout):
    model = make_model(spread=0.3, backbone=backbone, layout=layout).eval()
    batch = make_batch()
    other = {**batch, "item_id": batch["item_id"] % (V - 1) + 1, "domain_id": batch["domain_id"] % (C - 1) + 1}
    assert torch.equal(model.user_state(other), model.user_state(batch))
    assert torch.equal(model.full_sort_predict(other), model.full_sort_predict(batch))
    assert torch.equal(model.encode(other), model.encode(batch))


def test_bert4rec_reads_a_full_history_and_its_mask():
    model = make_model(spread=0.3, backbone="bert4rec").eval()
    batch = make_batch()
    before = model.user_state(batch)
    changed = {**batch, "item_id_list": batch["item_id_list"].clone()}
    changed["item_id_list"][0, 0] = changed["item_id_list"][0, 0] % (V - 1) + 1  # row 0 is full: nothing is cut off
    after = model.user_state(changed)
    assert not torch.isclose(after[0], before[0]).all()
    assert torch.equal(after[1:], before[1:])


# What the rows ask for


def test_targets_follow_the_layout():
    batch = {
        "item_id_list": torch.tensor([[3, 4, 5], [6, 0, 0]]),
        "item_length": torch.tensor([3, 1]),
        "item_id": torch.tensor([9, 8]),
    }
    targets, wanted = make_model(layout="sequence").targets(batch)
    assert wanted.tolist() == [[True, True, True], [True, False, False]]
    assert targets[wanted].tolist() == [4, 5, 9, 8]
    targets, wanted = make_model(layout="prefix").targets(batch)
    assert wanted.tolist() == [[False, False, True], [True, False, False]]
    assert targets[wanted].tolist() == [9, 8]


def test_bert4rec_hides_events_in_sequence_rows():
    model = make_model(backbone="bert4rec", mask_ratio=0.3, mask_last_ratio=0.25)
    batch = make_batch(rows=2000)
    items, domains, targets, wanted = model.training_rows(batch)
    position, last = torch.arange(MAX_LENGTH + 1), batch["item_length"][:, None]
    valid = position <= last
    events = torch.cat([batch["item_id_list"], torch.zeros(2000, 1, dtype=torch.long)], 1)
    events = events.scatter(1, last, batch["item_id"][:, None])
    assert torch.equal(targets, events)
    assert wanted.any(1).all()
    assert not wanted[~valid].any()
    assert (items[wanted] == model.mask_token).all()
    assert (domains[wanted] == 0).all()
    assert torch.equal(items[~wanted], events[~wanted])
    assert (domains[valid & ~wanted] > 0).all()
    only_last = (wanted == (position == last)).all(1)
    long = last[:, 0] == MAX_LENGTH
    chance = 0.25 + 0.75 * (0.3 * 0.7**MAX_LENGTH + 0.7 ** (MAX_LENGTH + 1) / (MAX_LENGTH + 1))
    assert abs(only_last[long].float().mean() - chance) < 0.09
    assert abs(wanted[long & ~only_last].float().mean() - 0.3) < 0.04


def test_bert4rec_predicts_after_the_history_in_prefix_rows():
    model = make_model(backbone="bert4rec", layout="prefix")
    batch = make_batch()
    items, domains, targets, wanted = model.training_rows(batch)
    assert torch.equal(targets[wanted], batch["item_id"])
    assert torch.equal(wanted.int().argmax(1), batch["item_length"])
    assert torch.equal(items[:, :MAX_LENGTH][~wanted[:, :MAX_LENGTH]], batch["item_id_list"][~wanted[:, :MAX_LENGTH]])
    assert (domains[wanted] == 0).all()


@backbones
def test_masks_and_padding_are_no_domain(backbone):
    """With one domain nothing crosses, however many [MASK]s and padding there are."""
    model = make_model(spread=0.3, backbone=backbone)
    batch = make_batch()
    batch["domain_id_list"] = (batch["item_id_list"] > 0).long()
    batch["domain_id"] = torch.ones_like(batch["domain_id"])
    assert model.calculate_losses(batch)["cross_domain"] == 0.0


@backbones
def test_names_of_domains_do_not_matter(backbone):
    model = make_model(spread=0.3, backbone=backbone)
    batch = make_batch()
    names = torch.tensor([0, 3, 1, 2])
    renamed = {**batch, "domain_id_list": names[batch["domain_id_list"]], "domain_id": names[batch["domain_id"]]}
    values = []
    for rows in (batch, renamed):
        torch.manual_seed(0)
        values.append(model.calculate_losses(rows)["cross_domain"])
    assert 0.0 < values[0] < 1.0
    torch.testing.assert_close(values[1], values[0], atol=1e-6, rtol=0)
    model.eval()
    matrix = model.transfer_record(batch)
    assert matrix.shape == (C, C)
    torch.testing.assert_close(model.transfer_record(renamed)[names][:, names], matrix, atol=1e-6, rtol=0)


# What the losses reach


def check_shared_parameters(model) -> None:
    """They are those that both losses reach, the item table left out, and no parameter is idle."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    losses = model.calculate_losses(make_batch())
    reached = []
    for loss in losses.values():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        reached.append({name for name, g in zip(names, gradients, strict=True) if g is not None and g.any()})
    shared = {id(p) for p in model.shared_parameters()}
    assert len(shared) == len(model.shared_parameters())
    assert {name for name, p in model.named_parameters() if id(p) in shared} == (
        (reached[0] & reached[1]) - {"item_embedding.weight"}
    )
    assert set(losses) == {"rec", "cross_domain"}
    assert reached[0] == set(names)  # no parameter is idle


@backbones
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_shared_parameters_are_those_that_both_losses_reach(monkeypatch, backbone, n_layers, form):
    set_form(monkeypatch, form)
    model = make_model(spread=0.3, backbone=backbone, n_layers=n_layers, hidden_dropout_prob=0.0, attn_dropout_prob=0.0)
    check_shared_parameters(model)


@backbones
def test_no_record_is_made_for_the_plain_backbone(monkeypatch, backbone):
    model = make_model(backbone=backbone, objective_weighting="none")
    monkeypatch.setattr("recbole_cdsr.model.autocdsr.CrossDomainRecord", None)
    assert set(model.calculate_losses(make_batch())) == {"rec"}


@backbones
def test_no_state_stays_on_the_model(backbone):
    model = make_model(backbone=backbone)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    model.calculate_losses(make_batch())
    model.transfer_record(make_batch())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
