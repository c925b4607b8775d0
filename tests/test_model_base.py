"""Scores, losses and keys that AutoCDSR shares with every model of this package."""

from __future__ import annotations

import pytest
import torch

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.model.base import LOSS_TYPES, CDSRRecommender
from tests.test_attention import FORMS, set_form
from tests.test_autocdsr import FakeDataset, V, backbones, make_batch, make_config, make_model


@backbones
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_all_ways_to_score_agree(backbone, loss_type):
    model = make_model(spread=0.3, backbone=backbone, loss_type=loss_type).eval()
    batch = make_batch()
    scores = model.full_sort_predict(batch)
    assert scores.shape == (6, V)
    torch.testing.assert_close(model.predict(batch), scores.gather(1, batch["item_id"][:, None])[:, 0])
    some = torch.tensor([3, 1, 40])
    torch.testing.assert_close(model.score_items(model.user_state(batch), some), scores[:, some])
    if loss_type == "cosine":
        assert scores.abs().max() <= 1.0 / 0.1 + 1e-4


@backbones
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_autocast_runs(monkeypatch, backbone, loss_type, form):
    set_form(monkeypatch, form)
    for dropout in (0.0, 0.5):
        keys = {"backbone": backbone, "loss_type": loss_type, "attn_dropout_prob": dropout}
        model, batch = make_model(**keys), make_batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model.calculate_losses(batch)
            scores = model.eval().full_sort_predict(batch)
        sum(losses.values()).backward()
        assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
        assert scores.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@backbones
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_it_learns_64_users_by_heart(backbone, loss_type):
    keys = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "hidden_size": 32, "mask_last_ratio": 0.7}
    keys |= {"backbone": backbone, "loss_type": loss_type, "n_layers": 1, "n_negatives": 200}
    model, batch = make_model(**keys), make_batch(rows=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        losses = model.calculate_losses(batch)
        optimizer.zero_grad()
        (losses["rec"] + 0.1 * losses["cross_domain"]).backward()
        optimizer.step()
    best = model.eval().full_sort_predict(batch)[:, 1:].argmax(1) + 1
    known = batch["item_length"] > 3  # after one or two events several users look alike
    assert (best == batch["item_id"])[known].float().mean() > 0.9


def test_the_penalty_can_be_learned():
    """Descending a_cd alone lowers it far below where it starts."""
    model, batch = make_model(hidden_dropout_prob=0.0, attn_dropout_prob=0.0), make_batch(rows=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    values = []
    for _ in range(40):
        penalty = model.calculate_losses(batch)["cross_domain"]
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        values.append(penalty.item())
    assert values[-1] < 0.2 * values[0]


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("backbone", "gru", "sasrec, bert4rec"),
        ("objective_weighting", "mean", "none, fixed, mgda, preference, pareto"),
        ("loss_type", "BPR", "CE, cosine, sampled"),
        ("layout", "interaction", "sequence, prefix"),
        ("hidden_act", "gelu_new", "gelu, relu, swish, tanh, sigmoid"),
        ("n_layers", 0, "at least 1"),
        ("n_layers", 1.5, "at least 1"),
        ("hidden_size", 15, "multiple of n_heads"),
        ("hidden_dropout_prob", 1.0, r"\[0, 1\)"),
        ("attn_dropout_prob", -0.1, r"\[0, 1\)"),
        ("layer_norm_eps", 0, "number"),
        ("mask_ratio", 1.2, r"\[0, 1\]"),
        ("mask_last_ratio", "half", r"\[0, 1\]"),
        ("temperature", 0.0, "number"),
        ("n_negatives", None, "at least 1"),
        ("initializer_range", -1, "number"),
    ],
)
def test_a_wrong_value_names_key_value_and_choices(key, value, hint):
    needed = {"mask_ratio": {"backbone": "bert4rec"}, "mask_last_ratio": {"backbone": "bert4rec"}}
    needed |= {"temperature": {"loss_type": "cosine"}, "n_negatives": {"loss_type": "sampled"}}
    with pytest.raises(CDSRError, match=f"'{key}'.*{hint}") as error:
        make_model(**{**needed.get(key, {}), key: value})
    assert repr(value) in str(error.value)


def test_a_model_needs_only_a_table_and_an_encoder():
    class Mean(CDSRRecommender):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.item_embedding = torch.nn.Embedding(self.n_items, 8)

        def encode(self, interaction):
            states = self.item_embedding(interaction[self.ITEM_SEQ])
            return states.cumsum(1) / torch.arange(1, states.size(1) + 1)[:, None]

    model, batch = Mean(make_config(objectives=["rec"]), FakeDataset()), make_batch()
    assert set(model.calculate_losses(batch)) == {"rec"}
    assert model.calculate_loss(batch).requires_grad
    assert model.full_sort_predict(batch).shape == (6, V)
    assert model.shared_parameters() == []
    assert model.transfer_record(batch) is None
    assert not model.needs_target_domain
