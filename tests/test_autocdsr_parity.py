"""AutoCDSR without its penalty is RecBole's SASRec or BERT4Rec; with weight zero it is itself, bit for bit."""

from __future__ import annotations

import pytest
import torch

from tests.test_attention import FORMS, copy_layer, set_form
from tests.test_autocdsr import MAX_LENGTH, FakeDataset, V, backbones, make_batch, make_config, make_model


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
    torch.testing.assert_close(
        ours.head(ours.contextualise(items, torch.zeros_like(items)))[valid], expected[valid], atol=1e-5, rtol=0
    )

    # RecBole reads index 0 as "nothing hidden", so hide the second event and pad the index as it does.
    rows = batch["item_length"] > 1
    items = batch["item_id_list"][rows].clone()
    hidden = items[:, 1].clone()
    items[:, 1] = V
    index = torch.tensor([0, 1]).repeat(len(items), 1)
    masked = {"Mask_item_id_list": items, "p": torch.stack([hidden * 0, hidden], 1), "n": index, "m": index}
    loss = ours.item_loss(ours.head(ours.contextualise(items, torch.zeros_like(items))[:, 1]), hidden)
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
