"""The encoder and its record of cross-domain attention, against plain references and RecBole's own encoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recbole_cdsr import compat
from recbole_cdsr.layers import attention
from recbole_cdsr.layers.attention import CrossDomainRecord, TransformerEncoder, dropout

SIZES = {"hidden_size": 16, "inner_size": 32, "n_heads": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
FORMS = {"explicit": 10_000, "fused": 0}  # longest sequence that takes the explicit form
causal_or_not = pytest.mark.parametrize("causal", [True, False])


def set_form(monkeypatch, name: str) -> None:
    for limit in ("EXPLICIT_MAX_LENGTH", "EXPLICIT_MAX_LENGTH_WITHOUT_GRADIENT"):
        monkeypatch.setattr(attention, limit, FORMS[name])


@pytest.fixture(params=FORMS)
def form(request, monkeypatch) -> str:
    """Each test runs with both forms of attention."""
    set_form(monkeypatch, request.param)
    return request.param


def make_encoder(
    causal: bool, n_layers: int = 2, dropouts: tuple[float, float] = (0.0, 0.0), **sizes
) -> TransformerEncoder:
    torch.manual_seed(3)
    hidden, attn = dropouts
    encoder = TransformerEncoder(
        n_layers, causal, hidden_dropout_prob=hidden, attn_dropout_prob=attn, **{**SIZES, **sizes}
    )
    for parameter in encoder.parameters():  # far from uniform attention
        nn.init.normal_(parameter, std=0.5)
    return encoder


def make_batch(n_domains: int = 4, batch: int = 5, length: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, domains and valid; right-padded, some valid events without a domain, the first row full."""
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[0] = length
    valid = torch.arange(length) < lengths[:, None]
    domains = torch.randint(0, n_domains, (batch, length), generator=generator) * valid
    return torch.randn(batch, length, SIZES["hidden_size"], generator=generator), domains, valid


def reference_masses(encoder: TransformerEncoder, states, domains, valid, n_domains: int) -> list:
    """For each layer, every query with a domain: (its domain, its mass by key domain), straight from the definition."""
    layers = []
    may_attend = None if encoder.causal else valid
    for layer in encoder.layers:
        block = layer.attention
        heads, width = block.n_heads, states.size(-1) // block.n_heads
        query, key = block.query_key(states).chunk(2, dim=-1)
        rows = []
        for b in range(len(states)):
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                for i in range(states.size(1)):
                    keys = [j for j in range(states.size(1)) if valid[b, j] and (j <= i or not encoder.causal)]
                    if domains[b, i] == 0:
                        continue
                    weights = torch.softmax(key[b, keys, part] @ query[b, i, part] / width**0.5, 0)
                    mass = torch.zeros(n_domains).index_add(0, domains[b, keys], weights)
                    rows.append((int(domains[b, i]), mass))
        layers.append(rows)
        states = layer(states, may_attend)
    return layers


@causal_or_not
@pytest.mark.parametrize("n_domains", [2, 4, 12])  # 12 columns are wider than a head
def test_the_record_follows_the_definition(form, causal, n_domains):
    encoder = make_encoder(causal)
    states, domains, valid = make_batch(n_domains)
    record = CrossDomainRecord(domains, n_domains, keep_matrix=True)
    encoder(states, valid, record)

    layers = reference_masses(encoder, states, domains, valid, n_domains)
    shares = [sum(mass[1:].sum() - mass[d] for d, mass in rows) / len(rows) for rows in layers]
    torch.testing.assert_close(record.share(), torch.stack(shares).mean(), atol=1e-5, rtol=0)

    matrix = torch.zeros(n_domains, n_domains)
    for d in range(1, n_domains):
        of_domain = [mass for rows in layers for own, mass in rows if own == d]
        matrix[d] = torch.stack(of_domain).mean(0) if of_domain else 0.0
    torch.testing.assert_close(record.matrix(), matrix, atol=1e-5, rtol=0)
    occurring = matrix.sum(1) > 0
    torch.testing.assert_close(record.matrix().sum(1)[occurring], torch.ones(int(occurring.sum())), atol=1e-5, rtol=0)


@causal_or_not
@pytest.mark.parametrize("n_domains", [3, 12])
def test_fused_equals_explicit_in_values_and_gradients(monkeypatch, causal, n_domains):
    results = []
    for name in FORMS:
        set_form(monkeypatch, name)
        encoder = make_encoder(causal)
        states, domains, valid = make_batch(n_domains)
        states.requires_grad_()
        record = CrossDomainRecord(domains, n_domains)
        out = encoder(states, valid, record)[valid]
        inputs = [states, *encoder.parameters()]
        of_out = torch.autograd.grad(out.square().mean(), inputs, retain_graph=True, allow_unused=True)
        of_share = torch.autograd.grad(record.share(), inputs, allow_unused=True)
        results.append([out, record.share(), *of_out, *of_share])
    for explicit, fused in zip(*results, strict=True):
        assert (explicit is None) == (fused is None)
        if explicit is not None:
            torch.testing.assert_close(fused, explicit, atol=1e-5, rtol=1e-4)


@causal_or_not
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attn_dropout", [0.0, 0.5])
def test_a_record_changes_neither_output_bits_nor_random_numbers(form, causal, training, attn_dropout):
    encoder = make_encoder(causal, dropouts=(0.3, attn_dropout)).train(training)
    states, domains, valid = make_batch()
    outcomes = []
    for record in (None, CrossDomainRecord(domains, 4), CrossDomainRecord(domains, 4, keep_matrix=True)):
        torch.manual_seed(7)
        out = encoder(states, valid, record)
        gradients = torch.autograd.grad(out[valid].sin().sum(), list(encoder.parameters()))
        outcomes.append([out[valid], torch.random.get_rng_state(), *gradients])
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@causal_or_not
def test_the_share_is_a_share_and_blind_to_names(form, causal):
    encoder = make_encoder(causal)
    states, domains, valid = make_batch()

    def share(labels, n_domains):
        record = CrossDomainRecord(labels, n_domains)
        encoder(states, valid, record)
        return record.share()

    value = share(domains, 4)
    assert 0.0 < value < 1.0
    renamed = torch.tensor([0, 5, 2, 1])[domains]
    torch.testing.assert_close(share(renamed, 6), value, atol=1e-6, rtol=0)
    assert share((domains > 0).long(), 4) == 0.0  # one domain
    assert share(torch.zeros_like(domains), 4) == 0.0  # none


@causal_or_not
def test_padding_counts_neither_as_query_nor_as_key(form, causal):
    encoder = make_encoder(causal)
    states, domains, valid = make_batch()
    outcomes = []
    for junk in (0, 3):
        wide = torch.cat([states, torch.randn(len(states), junk, states.size(-1))], 1)
        more = torch.zeros(len(states), junk, dtype=torch.long)
        record = CrossDomainRecord(torch.cat([domains, more], 1), 4)
        out = encoder(wide, torch.cat([valid, more.bool()], 1), record)
        outcomes.append((out[:, : states.size(1)][valid], record.share()))
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_row_that_may_attend_to_nothing_gives_no_nan(form):
    encoder = make_encoder(causal=False)
    states, domains, valid = make_batch()
    valid[2], domains[2] = False, 0
    record = CrossDomainRecord(domains, 4)
    out = encoder(states, valid, record)
    gradients = torch.autograd.grad(out.sum() + record.share(), list(encoder.parameters()))
    assert out.isfinite().all()
    assert record.share().isfinite()
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_the_share_reaches_exactly_the_parameters_of_attention(form, n_layers):
    encoder = make_encoder(causal=True, n_layers=n_layers)
    states, domains, valid = make_batch()
    record = CrossDomainRecord(domains, 4)
    encoder(states, valid, record)
    parameters = list(encoder.parameters())
    gradients = torch.autograd.grad(record.share(), parameters, allow_unused=True)
    reached = {id(p) for p, g in zip(parameters, gradients, strict=True) if g is not None}
    assert reached == {id(p) for p in encoder.parameters_of_attention()}


def test_the_matrix_must_be_asked_for():
    with pytest.raises(ValueError, match="keep_matrix"):
        CrossDomainRecord(torch.ones(1, 2, dtype=torch.long), 2).matrix()


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.73])
def test_dropout_keeps_the_expectation_and_zeroes_the_asked_share(probability):
    torch.manual_seed(0)
    values = torch.ones(401, 499)
    dropped = dropout(values, probability, training=True)
    assert abs((dropped == 0).float().mean() - probability) < 0.006
    assert abs(dropped.mean() - 1.0) < 0.02
    assert dropped.unique().numel() == 2
    neighbours = (dropped[:, 1:] == 0) & (dropped[:, :-1] == 0)
    assert abs(neighbours.float().mean() - probability**2) < 0.01  # slices of one random word are independent
    assert dropout(values, probability, training=False) is values
    assert dropout(values, 0.0, training=True) is values


@causal_or_not
@pytest.mark.parametrize("hidden_act", attention.ACTIVATIONS)
def test_the_encoder_is_recboles(form, causal, hidden_act):
    compat.apply()
    from recbole.model.layers import TransformerEncoder as Stock

    ours = make_encoder(causal, hidden_act=hidden_act).eval()
    stock = Stock(2, 2, 16, 32, 0.0, 0.0, hidden_act, 1e-12).eval()
    for layer, old in zip(ours.layers, stock.layer, strict=True):
        copy_layer(old, layer)
    states, _, valid = make_batch()
    allowed = valid[:, None, None, :].expand(-1, -1, 9, -1)
    if causal:
        allowed = allowed.tril()
    expected = stock(states, torch.where(allowed, 0.0, -10000.0))[-1]
    torch.testing.assert_close(ours(states, valid)[valid], expected[valid], atol=1e-5, rtol=0)


@torch.no_grad()
def copy_layer(stock: nn.Module, layer: nn.Module) -> None:
    """RecBole's weights of one layer into ours."""
    old = stock.multi_head_attention
    layer.attention.query_key.weight.copy_(torch.cat([old.query.weight, old.key.weight]))
    layer.attention.query_key.bias.copy_(torch.cat([old.query.bias, old.key.bias]))
    pairs = [
        (layer.attention.value, old.value),
        (layer.attention_output, old.dense),
        (layer.attention_norm, old.LayerNorm),
        (layer.inner, stock.feed_forward.dense_1),
        (layer.inner_output, stock.feed_forward.dense_2),
        (layer.inner_norm, stock.feed_forward.LayerNorm),
    ]
    for new, source in pairs:
        new.load_state_dict(source.state_dict())
