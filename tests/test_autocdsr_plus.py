"""AutoCDSR+: what it may see, what its two losses reach, what its keys take."""

from __future__ import annotations

import pytest
import torch

from recbole_cdsr.config import CDSRConfig, read_yaml
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.layers.bottleneck import MERGES
from recbole_cdsr.layers.by_domain import DomainLinear, DomainNorm
from recbole_cdsr.model.autocdsr_plus import AutoCDSRPlus, read_layers
from recbole_cdsr.model.backbone import BACKBONES
from recbole_cdsr.names import model_name
from recbole_cdsr.paths import properties_dir
from tests import test_autocdsr
from tests.test_autocdsr import MAX_LENGTH, C, FakeDataset, V, check_shared_parameters, make_batch

merges = pytest.mark.parametrize("merge", MERGES)
backbones = pytest.mark.parametrize("backbone", BACKBONES)


def make_model(spread: float | None = None, **keys) -> AutoCDSRPlus:
    torch.manual_seed(0)
    own = read_yaml(properties_dir() / "model" / "AutoCDSRPlus.yaml")
    small = {"hidden_size": 16, "inner_size": 32, "n_negatives": 16}
    model = AutoCDSRPlus(test_autocdsr.make_config(**{**own, **small, **keys}), FakeDataset())
    if spread is not None:  # weights far from their start, so that attention is far from uniform
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=spread)
    return model


def full_batch() -> dict[str, torch.Tensor]:
    batch = make_batch()
    generator = torch.Generator().manual_seed(3)
    batch["item_length"][:] = MAX_LENGTH
    for key, high in (("item_id_list", V), ("domain_id_list", C)):
        batch[key] = torch.randint(1, high, batch[key].shape, generator=generator)
    return batch


@pytest.mark.parametrize("name", ["AutoCDSR+", "autocdsr_plus", "AutoCDSRPlus"])
def test_people_call_it_so(name):
    assert model_name(name) == "AutoCDSRPlus"


# What a state may see


@merges
@pytest.mark.parametrize("n_shared_layers", [0, 1])
def test_it_is_causal(merge, n_shared_layers):
    keys = {"bottleneck_merge": merge, "n_shared_layers": n_shared_layers, "n_domain_layers": 2}
    model, batch = make_model(spread=0.3, **keys).eval(), full_batch()
    before = model.encode(batch)
    for t in range(MAX_LENGTH):
        changed = {**batch, **{key: batch[key].clone() for key in ("item_id_list", "domain_id_list")}}
        changed["item_id_list"][:, t] = changed["item_id_list"][:, t] % (V - 1) + 1
        changed["domain_id_list"][:, t] = changed["domain_id_list"][:, t] % (C - 1) + 1
        after = model.encode(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-6, rtol=1e-6)
        assert not torch.isclose(after[:, t], before[:, t]).all()


@pytest.mark.parametrize("exchange_layers", [[], "all"])
def test_bidirectional_domains_meet_at_the_tokens_only(exchange_layers):
    keys = {"backbone": "bert4rec", "n_shared_layers": 0, "exchange_layers": exchange_layers}
    model, batch = make_model(spread=0.3, **keys).eval(), full_batch()
    domains, before = batch["domain_id_list"], model.encode(batch)
    for t in range(MAX_LENGTH):
        changed = {**batch, "item_id_list": batch["item_id_list"].clone()}
        changed["item_id_list"][:, t] = changed["item_id_list"][:, t] % (V - 1) + 1
        moved = ~torch.isclose(model.encode(changed), before, atol=1e-6, rtol=0).all(-1)
        foreign = torch.nn.functional.pad(domains != domains[:, t : t + 1], (0, 1))  # the [MASK] is of every domain
        assert moved[~foreign].all()
        assert moved[foreign].all() if exchange_layers == "all" else not moved[foreign].any()


@backbones
def test_the_target_is_not_seen(backbone):
    model, batch = make_model(spread=0.3, backbone=backbone).eval(), make_batch()
    other = {**batch, "item_id": batch["item_id"] % (V - 1) + 1, "domain_id": batch["domain_id"] % (C - 1) + 1}
    assert torch.equal(model.full_sort_predict(other), model.full_sort_predict(batch))


@pytest.mark.parametrize("exchange_layers", [[], "all"])
def test_without_tokens_and_shared_layers_domains_stay_apart(exchange_layers):
    model = make_model(spread=0.3, n_shared_layers=0, exchange_layers=exchange_layers).eval()
    batch = full_batch()
    domains, before = batch["domain_id_list"], model.encode(batch)
    for t in range(MAX_LENGTH):
        changed = {**batch, "item_id_list": batch["item_id_list"].clone()}
        changed["item_id_list"][:, t] = changed["item_id_list"][:, t] % (V - 1) + 1
        moved = ~torch.isclose(model.encode(changed), before, atol=1e-6, rtol=0).all(-1)
        foreign = domains != domains[:, t : t + 1]
        assert moved[~foreign & (torch.arange(MAX_LENGTH) >= t)].all()
        assert bool(moved[foreign].any()) == (exchange_layers == "all" and t < MAX_LENGTH - 1)
        assert not moved[:, :t].any()


@backbones
@merges
def test_more_padding_changes_nothing(backbone, merge):
    model = make_model(
        spread=0.3, backbone=backbone, bottleneck_merge=merge, MAX_ITEM_LIST_LENGTH=MAX_LENGTH + 3
    ).eval()
    batch = make_batch()
    lists = {key: torch.nn.functional.pad(value, (0, 3)) for key, value in batch.items() if key.endswith("_list")}
    padded = {**batch, **lists}
    torch.testing.assert_close(model.user_state(padded), model.user_state(batch), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model.transfer_record(padded), model.transfer_record(batch), atol=1e-6, rtol=1e-6)
    if backbone == "sasrec":  # bert4rec draws other masks for other shapes
        torch.testing.assert_close(model.calculate_losses(padded), model.calculate_losses(batch), atol=1e-6, rtol=1e-6)


def seeded_losses(model: AutoCDSRPlus, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)  # bert4rec draws masks
    return model.calculate_losses(batch)


@backbones
@merges
def test_names_of_domains_do_not_matter(backbone, merge):
    model, batch = make_model(spread=0.3, backbone=backbone, bottleneck_merge=merge).eval(), make_batch()
    before, matrix = seeded_losses(model, batch), model.transfer_record(batch)
    names = torch.tensor([0, 3, 1, 2])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (DomainLinear, DomainNorm)):
                for parameter in module.parameters():
                    parameter[names] = parameter.clone()
    renamed = {**batch, "domain_id_list": names[batch["domain_id_list"]], "domain_id": names[batch["domain_id"]]}
    torch.testing.assert_close(seeded_losses(model, renamed), before, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model.transfer_record(renamed)[names][:, names], matrix, atol=1e-6, rtol=1e-6)


# What the losses reach


@merges
@pytest.mark.parametrize(
    ("n_domain_layers", "exchange_layers"), [(1, "all"), (2, "all"), (3, [1]), (3, [2]), (3, [2, 0])]
)
@backbones
def test_shared_parameters_are_those_that_both_losses_reach(backbone, merge, n_domain_layers, exchange_layers):
    keys = {
        "backbone": backbone,
        "n_domain_layers": n_domain_layers,
        "exchange_layers": exchange_layers,
        "bottleneck_merge": merge,
    }
    model = make_model(spread=0.3, hidden_dropout_prob=0.0, attn_dropout_prob=0.0, **keys)
    check_shared_parameters(model)


def test_the_penalty_grows_neither_with_layers_nor_with_tokens():
    batch = make_batch()
    for keys in ({"n_domain_layers": 4}, {"n_bottleneck_tokens": 64}, {"bottleneck_merge": "sum"}):
        assert 0.0 < make_model(spread=0.3, **keys).calculate_losses(batch)["cross_domain"] < 1.0


@pytest.mark.parametrize("keys", [{"objective_weighting": "none"}, {"exchange_layers": []}, {"objectives": ["rec"]}])
def test_no_record_is_made_where_nothing_is_penalised(monkeypatch, keys):
    model = make_model(**keys)
    monkeypatch.setattr("recbole_cdsr.model.autocdsr_plus.BottleneckRecord", None)
    assert set(model.calculate_losses(make_batch())) == {"rec"}


def test_the_penalty_leaves_states_and_random_numbers_alone():
    model, batch = make_model(), make_batch()
    losses = []
    for penalises in (True, False):
        model.penalises = penalises
        torch.manual_seed(5)
        losses.append(model.calculate_losses(batch)["rec"])
    assert torch.equal(*losses)


@backbones
@merges
def test_rows_of_the_transfer_sum_to_one(backbone, merge):
    model, batch = make_model(spread=0.3, backbone=backbone, bottleneck_merge=merge).eval(), make_batch()
    matrix = model.transfer_record(batch)
    assert matrix.shape == (C, C) and not matrix[0].any() and not matrix[:, 0].any()
    torch.testing.assert_close(matrix[1:].sum(1), torch.ones(C - 1))
    assert (matrix[1:, 1:] > 0).all()
    apart = make_model(spread=0.3, backbone=backbone, exchange_layers=[]).eval().transfer_record(batch)
    torch.testing.assert_close(apart[1:, 1:], torch.eye(C - 1))


def test_no_state_stays_on_the_model():
    model = make_model()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    model.calculate_losses(make_batch())
    model.transfer_record(make_batch())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


# Learning and keys


def accuracy_after_training(model: AutoCDSRPlus, batch: dict[str, torch.Tensor], steps: int) -> float:
    """Share of targets ranked first, those of each row's first event left out: nothing tells users apart there."""
    targets, wanted = model.targets(batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
    wanted[:, 0] = False
    hits = model.score_items(model.encode(batch)[wanted]).argmax(1) == targets[wanted]
    return hits.float().mean().item()


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}


@pytest.mark.parametrize("n_shared_layers", [0, 1])
def test_it_learns_few_users_by_heart(n_shared_layers):
    model = make_model(hidden_size=32, n_shared_layers=n_shared_layers, **NO_DROPOUT)
    assert accuracy_after_training(model, make_batch(rows=64), 150) > 0.9


@pytest.mark.parametrize(("exchange_layers", "expected"), [("all", 1.0), ([], 1 / 8)])
@merges
def test_tokens_carry_what_another_domain_told(merge, exchange_layers, expected):
    """The item that follows a constant event of domain 2 is told by the event of domain 1 before it."""
    told = torch.arange(1, 9)
    constant = torch.full_like(told, 20)
    batch = make_batch(rows=8, length=2) | {
        "item_id_list": torch.stack([told, constant], 1),
        "domain_id_list": torch.tensor([[1, 2]]).expand(8, 2),
        "item_length": torch.full_like(told, 2),
        "item_id": told + 20,
    }
    keys = {"exchange_layers": exchange_layers, "bottleneck_merge": merge, "objective_weighting": "none"}
    model = make_model(n_shared_layers=0, initializer_range=0.1, **keys, **NO_DROPOUT)
    assert accuracy_after_training(model, batch, 80) == expected


@pytest.mark.parametrize(("value", "layers"), [("all", [0, 1]), ([], []), ([1], [1])])
def test_layers_that_exchange_are_all_or_a_list(value, layers):
    config = CDSRConfig("AutoCDSR+", "toy", config_dict={"exchange_layers": value})
    assert read_layers(config, "exchange_layers", 2) == layers


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"exchange_layers": [1]}, "'exchange_layers' takes all, or a list of numbers from 0 to 0, but got [1]"),
        ({"exchange_layers": "none"}, "'exchange_layers' takes all, or a list"),
        ({"exchange_layers": [True]}, "'exchange_layers' takes all, or a list"),
        ({"n_shared_layers": -1}, "'n_shared_layers' takes a whole number of at least 0, but got -1"),
        ({"n_domain_layers": 0}, "'n_domain_layers' takes a whole number of at least 1"),
        ({"n_bottleneck_tokens": 0}, "'n_bottleneck_tokens' takes a whole number of at least 1"),
        ({"bottleneck_merge": "max"}, "'bottleneck_merge' takes one of sum, mean, attention, gate"),
        ({"n_heads": 3}, "'hidden_size' must be a multiple of n_heads (3)"),
    ],
)
def test_a_key_out_of_range_is_told(keys, message):
    with pytest.raises(CDSRError) as error:
        make_model(**keys)
    assert message in str(error.value)
