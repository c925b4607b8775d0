"""Encoders of single domains and the tokens between them, against plain loops over events and domains."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_cdsr.layers.bottleneck import (
    MAX_LOGIT,
    MERGES,
    Bottleneck,
    BottleneckRecord,
    DomainEncoder,
)
from recbole_cdsr.layers.by_domain import DomainLinear, DomainNorm, EventsByDomain

B, L, H, W, C, TOKENS = 4, 9, 2, 4, 5, 3
D = H * W
merges = pytest.mark.parametrize("merge", MERGES)
LAYER = {
    "n_domains": C, "hidden_size": D, "inner_size": 16, "n_heads": H, "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip


def draw_domains(n_domains: int = C, rows: int = B, length: int = L, seed: int = 0) -> torch.Tensor:
    """Domains [B, L], padded on the right; the first row is full."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    lengths[0] = length
    domains = torch.randint(1, n_domains, (rows, length), generator=generator)
    return domains * (torch.arange(length) < lengths)


def events_of(domains: torch.Tensor, n_domains: int = C, causal: bool = True) -> EventsByDomain:
    return EventsByDomain(domains, domains > 0, n_domains, causal)


def spread_out(module: torch.nn.Module, seed: int = 0, std: float = 0.5) -> torch.nn.Module:
    """Weights far from their start, so that attention is far from uniform."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module


def make_bottleneck(merge: str) -> Bottleneck:
    return spread_out(Bottleneck(TOKENS, D, merge, 1e-12))


def make_encoder(
    merge: str = "mean", n_layers: int = 2, exchange_layers=(0, 1), tokens=TOKENS, **keys
) -> DomainEncoder:
    return spread_out(DomainEncoder(n_layers, list(exchange_layers), tokens, merge, **{**LAYER, **keys})).eval()


def draw_states(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Summaries and merges


def plain_summaries(module: Bottleneck, key: torch.Tensor, value: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
    """[B, L, C, n, D] with zeros for domains not seen yet, event by event."""
    result = key.new_zeros(B, L, C, TOKENS, H, W)
    scale = MAX_LOGIT / (1 + math.exp(-module.scale.item()))
    query = module.query.weight.view(TOKENS, H, W)
    for row in range(B):
        for b in range(TOKENS):
            for h in range(H):
                weight, total = key.new_zeros(C), key.new_zeros(C, W)
                for t in range(L):
                    d, k = domains[row, t], key[row, t, h]
                    cosine = k @ query[b, h] / (k.norm() * query[b, h].norm())
                    weight[d] += torch.exp(scale * cosine)
                    total[d] += torch.exp(scale * cosine) * value[row, t, h]
                    seen = weight > 0
                    result[row, t, seen, b, h] = total[seen] / weight[seen, None]
    return result.flatten(4)


def plain_merge(module: Bottleneck, summaries: torch.Tensor, seen: list[int]) -> torch.Tensor:
    """[n, D] from the summaries [C, n, D] of one position."""
    if module.merge == "gate":
        return sum(torch.sigmoid(module.gate(summaries[d])) * summaries[d] for d in seen)
    if module.merge == "attention":
        scores = torch.stack([(summaries[d] * module.score.weight).sum(1) for d in seen])
        parts = torch.softmax(MAX_LOGIT * torch.tanh(scores / MAX_LOGIT), 0)
        return sum(part.unsqueeze(1) * summaries[d] for part, d in zip(parts, seen, strict=True))
    total = sum(summaries[d] for d in seen)
    return total / len(seen) if module.merge == "mean" else total


@torch.no_grad()
@merges
def test_summaries_and_merges_are_what_loops_find(merge):
    module, domains = make_bottleneck(merge).double(), draw_domains()
    key, value = draw_states(2, B, L, H, W).double().unbind(0)
    events = events_of(domains, C)
    everything = plain_summaries(module, key, value, domains)
    summaries = module.summaries(key, value, events)
    of_own = everything.gather(2, domains[:, :, None, None, None].expand(B, L, 1, TOKENS, D)).squeeze(2)
    valid = domains > 0
    torch.testing.assert_close(summaries[valid], of_own[valid], atol=1e-12, rtol=1e-12)
    merged, _ = module.merged(summaries, events)
    for row, t in (domains > 0).nonzero().tolist():
        seen = domains[row, : t + 1].unique().tolist()
        torch.testing.assert_close(
            merged[row, t], plain_merge(module, everything[row, t], seen), atol=1e-12, rtol=1e-12
        )


@merges
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e3, 1e15])
def test_extreme_keys_values_and_scales_stay_finite(merge, size):
    module = make_bottleneck(merge)
    events = events_of(draw_domains(), C)
    for scale in (-1e30, 0.0, 1e30):
        torch.nn.init.constant_(module.scale, scale)
        key, value = (x.mul(size).requires_grad_() for x in draw_states(2, B, L, H, W).unbind(0))
        tokens, weights = module(key, value, events)
        tokens.square().sum().backward()
        for result in (
            tokens,
            weights,
            key.grad,
            value.grad,
            *(p.grad for p in module.parameters() if p.grad is not None),
        ):
            assert result.isfinite().all()


def test_weights_within_a_summary_are_exact_in_single_precision():
    """A light event of one domain after heavy ones of others, which a running sum over all would swallow."""
    module = spread_out(Bottleneck(1, D, "mean", 1e-12))
    torch.nn.init.constant_(module.scale, 1e9)
    query = module.query.weight.detach().view(1, H, W)
    domains = torch.tensor([[1] * 8 + [2] * 2])
    key = torch.where(domains[..., None, None] == 1, query, -query)
    value = draw_states(1, 10, H, W)
    summaries = module.summaries(key, value, events_of(domains, C))
    torch.testing.assert_close(summaries[0, 9, 0], value[0, 8:].mean(0).flatten())


# The encoder


@torch.no_grad()
@merges
def test_no_event_sees_a_later_one(merge):
    encoder, domains = make_encoder(merge), draw_domains()
    states, events = draw_states(B, L, D), events_of(domains, C)
    before = encoder(states, events)
    for t in range(L):
        changed, others = states.clone(), domains.clone()
        changed[:, t] += 100.0
        others[:, t] = torch.where(domains[:, t] > 0, domains[:, t] % (C - 1) + 1, 0)
        for after in (encoder(changed, events), encoder(changed, events_of(others, C))):
            torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-6, rtol=1e-6)
            assert not torch.isclose(after[0, t], before[0, t]).all()


@torch.no_grad()
@merges
def test_bidirectional_is_what_the_last_event_of_the_causal_form_sees(merge):
    """Any event may be moved to the end of its row: nothing in these layers knows positions."""
    layer, domains, states = make_encoder(merge).layers[0], draw_domains(), draw_states(B, L, D)

    def attend(causal: bool) -> torch.Tensor:
        events = events_of(domains, causal=causal)
        return events.spread(layer.attend(events.rows(states), events, None))

    bidirectional = attend(causal=False)
    last = (domains > 0).sum(1, keepdim=True) - 1
    for t in range(L):
        order = torch.arange(L).expand(B, L).clone()
        order[:, t : t + 1] = torch.where(last >= t, last, t)
        order.scatter_(1, torch.where(last >= t, last, t), t)
        moved_domains, moved_states = domains.gather(1, order), states.gather(1, order.unsqueeze(-1).expand(B, L, D))
        events = events_of(moved_domains)
        moved = events.spread(layer.attend(events.rows(moved_states), events, None))
        there = (last >= t).squeeze(1)
        at_end = moved[torch.arange(B), last.squeeze(1)]
        torch.testing.assert_close(at_end[there], bidirectional[there, t], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@merges
@pytest.mark.parametrize("exchange_layers", [[], [0, 1]])
def test_a_mask_reads_everything_and_nobody_reads_a_mask(merge, exchange_layers):
    encoder, domains = make_encoder(merge, exchange_layers=exchange_layers), draw_domains()
    states = draw_states(B, L, D)
    valid = domains > 0
    masked = valid & (torch.arange(L) % 3 == 1)
    masked[1] = valid[1]  # nothing but masks
    events = EventsByDomain(domains.masked_fill(masked, 0), valid, C, causal=False)
    before = encoder(states, events)
    assert before.isfinite().all() and not before[~valid].any()
    for t in range(L):
        changed = states.clone()
        changed[:, t] = draw_states(B, D, seed=2)
        moved = ~torch.isclose(encoder(changed, events), before, atol=1e-6, rtol=0).all(-1)
        for row in range(B):
            expected = valid[row] & (torch.arange(L) == t)
            if valid[row, t] and not masked[row, t]:
                meets = masked[row] | (domains[row] == domains[row, t]) | bool(exchange_layers)
                expected = valid[row] & meets
            assert torch.equal(moved[row], expected)


@torch.no_grad()
@pytest.mark.parametrize("exchange_layers", [[], [0], [1], [0, 1]])
def test_domains_meet_only_where_tokens_are(exchange_layers):
    encoder, domains = make_encoder(exchange_layers=exchange_layers), draw_domains()
    events, states = events_of(domains, C), draw_states(B, L, D)
    before = encoder(states, events)
    for t in range(L - 1):
        changed = states.clone()
        changed[:, t] = draw_states(B, D, seed=2)
        moved = ~torch.isclose(encoder(changed, events), before, atol=1e-5, rtol=0).all(-1)
        valid = (domains > 0) & (domains[:, t : t + 1] > 0)
        within = domains == domains[:, t : t + 1]
        later = torch.arange(L) >= t
        assert torch.equal(moved, valid & later & (within | bool(exchange_layers)))


@torch.no_grad()
@merges
def test_names_of_domains_do_not_matter(merge):
    encoder, domains, states = make_encoder(merge), draw_domains(), draw_states(B, L, D)
    before = encoder(states, events_of(domains, C))
    names = torch.tensor([0, 3, 1, 4, 2])
    for module in encoder.modules():
        if isinstance(module, (DomainLinear, DomainNorm)):
            for parameter in module.parameters():
                parameter[names] = parameter.clone()
    torch.testing.assert_close(encoder(states, events_of(names[domains], C)), before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_more_padding_and_other_rows_change_nothing():
    encoder, domains, states = make_encoder(), draw_domains(), draw_states(B, L, D)
    before = encoder(states, events_of(domains, C))
    padded = torch.nn.functional.pad(domains, (0, 3)), torch.nn.functional.pad(states, (0, 0, 0, 3), value=7.0)
    after = encoder(padded[1], events_of(padded[0], C))
    torch.testing.assert_close(after[:, :L], before, atol=1e-5, rtol=1e-5)
    assert not after[:, L:].any()
    for row in range(B):
        part = slice(row, row + 1)
        torch.testing.assert_close(encoder(states[part], events_of(domains[part], C)), before[part])


@merges
@pytest.mark.parametrize("n_domains", [2, 5, 20, 50])
@pytest.mark.parametrize("tokens", [1, 64])
def test_any_number_of_domains_and_tokens_trains(merge, n_domains, tokens):
    encoder = make_encoder(merge, tokens=tokens, n_domains=n_domains + 1)
    domains = draw_domains(n_domains + 1)
    events = events_of(domains, n_domains + 1)
    record = BottleneckRecord(events, keep_matrix=True)
    encoder(draw_states(B, L, D), events, record).square().sum().add(record.share()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert 0.0 < record.share() < 1.0
    seen = torch.zeros(n_domains + 1).index_fill(0, domains.unique(), 1.0).index_fill(0, torch.tensor([0]), 0.0)
    torch.testing.assert_close(record.matrix().sum(1), seen)


# The record


def project(layer, states: torch.Tensor, domains: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value [B, L, H, W] of each event by the weights of its domain."""
    weight, bias = layer.query_key_value.weight[domains], layer.query_key_value.bias[domains]
    return (torch.einsum("bli,blji->blj", states, weight) + bias).view(B, L, 3, H, W).unbind(2)


def plain_attention(layer, states: torch.Tensor, domains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each event reads [B, L, D], and its mass on the tokens [B, L, H, n]: one softmax per event and head."""
    query, key, value = project(layer, states, domains)
    tokens, _ = layer.bottleneck(key, value, events_of(domains, C))
    context, masses = torch.zeros(B, L, H, W), torch.zeros(B, L, H, TOKENS)
    for row, t in (domains > 0).nonzero().tolist():
        weight = layer.query_key_value.weight[domains[row, t]]
        _, token_key, token_value = (tokens[row, t] @ weight.T).view(TOKENS, 3, H, W).unbind(1)
        earlier = [j for j in range(t + 1) if domains[row, j] == domains[row, t]]
        for h in range(H):
            keys = torch.cat([token_key[:, h], key[row, earlier, h]])
            probabilities = torch.softmax(keys @ query[row, t, h] / math.sqrt(W), 0)
            context[row, t, h] = probabilities @ torch.cat([token_value[:, h], value[row, earlier, h]])
            masses[row, t, h] = probabilities[:TOKENS]
    return context.flatten(2), masses


@merges
def test_an_event_reads_its_domain_and_the_tokens_in_one_softmax(merge):
    """What it reads, the mass on the tokens, and the gradients of both."""
    layer, domains, states = make_encoder(merge).layers[0], draw_domains(), draw_states(B, L, D).requires_grad_()
    events, upstream = events_of(domains, C), draw_states(B, L, D, seed=2)
    record = BottleneckRecord(events)
    context = events.spread(layer.attend(events.rows(states), events, record))
    expected, masses = plain_attention(layer, states, domains)
    torch.testing.assert_close(context, expected, atol=1e-5, rtol=1e-5)
    parameters = [states, *layer.bottleneck.parameters(), *layer.query_key_value.parameters()]
    for ours, plain in (
        (context * upstream, expected * upstream),
        (record.share(), masses.sum(-1)[domains > 0].mean()),
    ):
        ours = torch.autograd.grad(ours.sum(), parameters, retain_graph=True)
        plain = torch.autograd.grad(plain.sum(), parameters, retain_graph=True)
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@merges
def test_the_record_is_what_loops_find(merge):
    encoder, domains, states = make_encoder(merge, 1, [0]), draw_domains(), draw_states(B, L, D)
    events = events_of(domains, C)
    record = BottleneckRecord(events, keep_matrix=True)
    encoder(states, events, record)
    layer, valid = encoder.layers[0], domains > 0
    _, masses = plain_attention(layer, states, domains)
    torch.testing.assert_close(record.share(), masses.sum(-1)[valid].mean())
    _, key, value = project(layer, states, domains)
    everything = plain_summaries(layer.bottleneck, key, value, domains)
    matrix = torch.zeros(C, C)
    for row, t in valid.nonzero().tolist():
        reader, seen = domains[row, t], domains[row, : t + 1].unique()
        parts = torch.full((len(seen), TOKENS), 1.0 / len(seen))
        if merge == "attention":
            scores = (everything[row, t, seen] * layer.bottleneck.score.weight).sum(-1)
            parts = torch.softmax(MAX_LOGIT * torch.tanh(scores / MAX_LOGIT), 0)
        mass = masses[row, t].mean(0)
        matrix[reader, seen] += parts @ mass
        matrix[reader, reader] += 1.0 - mass.sum()
    matrix /= torch.bincount(domains[valid], minlength=C).clamp(min=1)[:, None]
    torch.testing.assert_close(record.matrix(), matrix, atol=1e-6, rtol=1e-6)


def test_layers_are_told_apart():
    domains, states = draw_domains(), draw_states(B, L, D)
    encoder, events = make_encoder(), events_of(domains)
    record = BottleneckRecord(events, keep_matrix=True)
    encoder(states, events, record)
    matrices = record.matrices()
    assert matrices.shape == (2, C, C) and not torch.isclose(matrices[0], matrices[1]).all()
    torch.testing.assert_close(record.matrix(), matrices.mean(0))
    alone = BottleneckRecord(events, keep_matrix=True)
    encoder.layers[0](events.rows(states), events, alone)
    torch.testing.assert_close(alone.matrix(), matrices[0])


def test_a_record_without_matrix_says_so():
    with pytest.raises(ValueError, match="keep_matrix=True"):
        BottleneckRecord(events_of(draw_domains(), C)).matrix()
