"""AutoCDSR: what it may see, what it equals, what its two losses reach."""

from __future__ import annotations

import pytest
import torch

from recbole_cdsr.config import read_yaml
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.layers.attention import CrossDomainRecord
from recbole_cdsr.model.autocdsr import BACKBONES, AutoCDSR
from recbole_cdsr.model.base import LAYOUTS, LOSS_TYPES, CDSRRecommender
from recbole_cdsr.paths import properties_dir
from tests.test_attention import FORMS, copy_layer, set_form

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


# What it equals


def recbole_pair(layout: str = "prefix"):
    """Our backbone and RecBole's SASRec with the same weights."""
    from recbole.model.sequential_recommender.sasrec import SASRec

    stock = SASRec(make_config(), FakeDataset()).eval()
    ours = make_model(layout=layout, objective_weighting="none").eval()
    copy_backbone(stock, ours)
    return stock, ours


@torch.no_grad()
def copy_backbone(stock, ours):
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.item_embedding.load_state_dict(stock.item_embedding.state_dict())
    rows = len(stock.position_embedding.weight)
    ours.position_embedding.weight[:rows].copy_(stock.position_embedding.weight)
    ours.input_norm.load_state_dict(stock.LayerNorm.state_dict())
    for old, new in zip(stock.trm_encoder.layer, ours.encoder.layers, strict=True):
        copy_layer(old, new)


@pytest.mark.parametrize("form", FORMS)
def test_sasrec_is_recboles_sasrec(monkeypatch, form):
    set_form(monkeypatch, form)
    stock, ours = recbole_pair()
    batch = make_batch()
    torch.testing.assert_close(ours.full_sort_predict(batch), stock.full_sort_predict(batch), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.predict(batch), stock.predict(batch), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.calculate_loss(batch), stock.calculate_loss(batch), atol=1e-5, rtol=0)


def test_sasrec_starts_like_recboles_sasrec():
    from recbole.model.sequential_recommender.sasrec import SASRec

    sizes = {"hidden_size": 64, "inner_size": 256}
    stock, ours = SASRec(make_config(**sizes), FakeDataset()), make_model(**sizes)
    count = [sum(p.numel() for p in model.parameters()) for model in (stock, ours)]
    assert count[0] == count[1]
    pairs = [
        (stock.item_embedding.weight, ours.item_embedding.weight),
        (stock.trm_encoder.layer[0].feed_forward.dense_1.weight, ours.encoder.layers[0].inner.weight),
        (stock.trm_encoder.layer[0].multi_head_attention.key.weight, ours.encoder.layers[0].attention.query_key.weight),
    ]
    for theirs, own in pairs:
        assert abs(own.std() / theirs.std() - 1) < 0.06
    assert ours.item_embedding.weight[0].any()  # RecBole's initialisation fills the padding row too
    assert all(not p.any() for name, p in ours.named_parameters() if name.endswith("bias"))


def test_bert4rec_is_recboles_bert4rec():
    from recbole.model.sequential_recommender.bert4rec import BERT4Rec

    fields = {"MASK_ITEM_SEQ": "Mask_item_id_list", "POS_ITEMS": "p", "NEG_ITEMS": "n", "MASK_INDEX": "m"}
    stock = BERT4Rec(make_config(**fields), FakeDataset()).eval()
    ours = make_model(backbone="bert4rec", objective_weighting="none").eval()
    copy_backbone(stock, ours)
    ours.output.load_state_dict(stock.output_ffn.state_dict())
    ours.output_norm.load_state_dict(stock.output_ln.state_dict())
    ours.output_bias.data.copy_(stock.output_bias)
    batch = make_batch()
    items = batch["item_id_list"].clone()
    items[:, 0] = V  # [MASK]
    valid = items > 0
    expected = stock(items)
    torch.testing.assert_close(ours.head(ours.contextualise(items))[valid], expected[valid], atol=1e-5, rtol=0)

    # RecBole reads index 0 as "nothing hidden", so hide the second event and pad the index as it does.
    rows = batch["item_length"] > 1
    items = batch["item_id_list"][rows].clone()
    hidden = items[:, 1].clone()
    items[:, 1] = V
    index = torch.tensor([0, 1]).repeat(len(items), 1)
    masked = {"Mask_item_id_list": items, "p": torch.stack([hidden * 0, hidden], 1), "n": index, "m": index}
    loss = ours.item_loss(ours.head(ours.contextualise(items)[:, 1]), hidden)
    torch.testing.assert_close(loss, stock.calculate_loss(masked), atol=1e-5, rtol=0)

    short = {**batch, "item_length": batch["item_length"].clamp(max=MAX_LENGTH - 1)}  # RecBole cuts a full history
    short["item_id_list"] = short["item_id_list"] * (torch.arange(MAX_LENGTH) < short["item_length"][:, None])
    at_mask = stock(torch.scatter(short["item_id_list"], 1, short["item_length"][:, None], V))
    scores = at_mask[torch.arange(6), short["item_length"]] @ stock.item_embedding.weight[:V].T + stock.output_bias
    torch.testing.assert_close(ours.full_sort_predict(short), scores, atol=1e-5, rtol=0)


@backbones
@pytest.mark.parametrize(("attn_dropout", "form"), [(0.5, "explicit"), (0.0, "explicit"), (0.0, "fused")])
def test_weight_zero_is_the_backbone_bit_for_bit(monkeypatch, backbone, attn_dropout, form):
    """In the explicit form with and without dropout and in the fused form; summed losses and a pass per loss alike."""
    set_form(monkeypatch, form)
    ends = []
    for way in ("none", "summed", "two passes"):
        weighting = "none" if way == "none" else "fixed"
        model = make_model(backbone=backbone, objective_weighting=weighting, attn_dropout_prob=attn_dropout)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        torch.manual_seed(4)
        for step in range(4):
            losses = model.calculate_losses(make_batch(seed=step))
            if way == "summed":
                losses["rec"] = losses["rec"] + 0.0 * losses["cross_domain"]
            optimizer.zero_grad()
            losses["rec"].backward(retain_graph=way == "two passes")
            if way == "two passes":
                shared = model.shared_parameters()
                penalty = torch.autograd.grad(losses["cross_domain"], shared)
                for parameter, gradient in zip(shared, penalty, strict=True):
                    parameter.grad.add_(gradient, alpha=0.0)
            optimizer.step()
        ends.append([*model.state_dict().values(), torch.random.get_rng_state()])
    for other in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], other, strict=True))


# What the losses reach


@backbones
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_shared_parameters_are_those_that_both_losses_reach(monkeypatch, backbone, n_layers, form):
    set_form(monkeypatch, form)
    model = make_model(spread=0.3, backbone=backbone, n_layers=n_layers, hidden_dropout_prob=0.0, attn_dropout_prob=0.0)
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


# Scores, losses and keys


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
        ("objective_weighting", "mean", "none, fixed, preference"),
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

    model, batch = Mean(make_config(), FakeDataset()), make_batch()
    assert set(model.calculate_losses(batch)) == {"rec"}
    assert model.calculate_loss(batch).requires_grad
    assert model.full_sort_predict(batch).shape == (6, V)
    assert model.shared_parameters() == []
    assert model.transfer_record(batch) is None
    assert not model.needs_target_domain


def test_the_matrix_must_be_asked_for():
    with pytest.raises(ValueError, match="keep_matrix"):
        CrossDomainRecord(torch.ones(1, 2, dtype=torch.long), 2).matrix()
