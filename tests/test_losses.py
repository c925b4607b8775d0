"""Losses over the catalogue against the plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recbole_cdsr.layers import losses
from recbole_cdsr.layers.losses import (
    NegativeSampler,
    cosine_softmax_loss,
    draw_negatives,
    full_softmax_loss,
    sampled_cosine_loss,
    sampled_softmax_loss,
)


def make(n: int = 37, n_items: int = 50, width: int = 8, dtype=torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(5)
    states, table, bias = torch.randn(n, width), torch.randn(n_items, width), torch.randn(n_items)
    floats = [x.to(dtype).requires_grad_() for x in (states, table, bias)]
    return [*floats, torch.randint(1, n_items, (n,))]


@pytest.mark.parametrize("rows", [4, 37, 1000])
@pytest.mark.parametrize("with_bias", [True, False])
def test_full_softmax_is_cross_entropy_whatever_the_chunk(monkeypatch, rows, with_bias):
    monkeypatch.setattr(losses, "MIN_CHUNK_ROWS", rows)
    monkeypatch.setattr(losses, "LOGITS_PER_CHUNK", 1)
    states, table, bias, targets = make()
    inputs = [states, table, bias] if with_bias else [states, table]
    addend = bias if with_bias else None

    loss = full_softmax_loss(states, table, targets, addend)
    plain = F.cross_entropy(states @ table.T + (bias if with_bias else 0.0), targets)
    torch.testing.assert_close(loss, plain)
    for _ in range(2):  # a kept graph gives the same gradients again
        gradients = torch.autograd.grad(3 * loss, inputs, retain_graph=True)
        expected = torch.autograd.grad(3 * plain, inputs, retain_graph=True)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_full_softmax_survives_extreme_logits():
    states, table, _, targets = make()
    loss = full_softmax_loss(states * 1e4, table, targets)
    torch.testing.assert_close(loss, F.cross_entropy(states * 1e4 @ table.T, targets))
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, [states, table]))


def test_full_softmax_without_gradients_or_targets():
    states, table, bias, targets = make()
    with torch.no_grad():
        without = full_softmax_loss(states, table, targets, bias)
    torch.testing.assert_close(without, full_softmax_loss(states, table, targets, bias).detach())
    empty = full_softmax_loss(states[:0], table, targets[:0], bias)
    assert empty == 0.0
    assert not torch.autograd.grad(empty, table)[0].any()


def test_cosine_softmax_is_the_formula():
    states, table, _, targets = make()
    cosines = F.cosine_similarity(states[:, None], table[None], dim=-1)
    torch.testing.assert_close(
        cosine_softmax_loss(states, table, targets, 0.1), F.cross_entropy(cosines / 0.1, targets)
    )


@pytest.mark.parametrize("sampler", losses.SAMPLERS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_sampled_softmax_tends_to_the_full_softmax_over_real_items(sampler, with_bias):
    states, table, bias, targets = make()
    states = states * 0.5
    addend = bias if with_bias else None
    logits = states @ table.T + (bias if with_bias else 0.0)
    full = F.cross_entropy(logits[:, 1:], targets - 1)
    drawn = draw_negatives(100_000, len(table), sampler, table.device)
    sampled = sampled_softmax_loss(states, table, targets, *drawn, addend)
    torch.testing.assert_close(sampled, full, atol=0.02, rtol=0)
    ours, theirs = (torch.autograd.grad(x, table, retain_graph=True)[0] for x in (sampled, full))
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)


def test_a_negative_that_is_the_positive_is_left_out():
    states, table, _, _ = make(n_items=2)
    targets = torch.ones(len(states), dtype=torch.long)  # item 1 is the only item: every negative collides
    drawn = draw_negatives(8, len(table), "uniform", table.device)
    assert sampled_softmax_loss(states, table, targets, *drawn) == 0.0


@pytest.mark.parametrize("sampler", losses.SAMPLERS)
def test_negatives_follow_their_stated_distribution(sampler):
    torch.manual_seed(1)
    items, log_probability = draw_negatives(200_000, 20, sampler, torch.device("cpu"))
    frequency = torch.bincount(items, minlength=20) / len(items)
    stated = torch.zeros(20).index_copy(0, items, log_probability.exp())
    assert frequency[0] == 0.0
    torch.testing.assert_close(stated.sum(), torch.tensor(1.0))
    torch.testing.assert_close(frequency, stated, atol=0.005, rtol=0)


def test_an_unknown_sampler_is_named():
    with pytest.raises(ValueError, match="'zipf'.*uniform, log_uniform"):
        draw_negatives(3, 20, "zipf", torch.device("cpu"))


@pytest.mark.parametrize("rows", [1, 5, 37])
@pytest.mark.parametrize("with_log_q", [True, False])
def test_sampled_cosine_loss_is_the_formula_whatever_the_chunk(monkeypatch, rows, with_log_q):
    monkeypatch.setattr(losses, "GATHERED_PER_CHUNK", rows * 6 * 8)
    states, table, _, targets = make(dtype=torch.float64)
    negatives = torch.randint(1, 50, (37, 6))
    negatives[:9, 0] = targets[:9]
    log_expected = torch.randn(37) if with_log_q else None
    loss = sampled_cosine_loss(states, table, targets, negatives, 0.1, log_expected)

    expected = torch.zeros(())
    for n in range(37):
        cosines = F.cosine_similarity(states[n], table, dim=-1) / 0.1
        kept = negatives[n][negatives[n] != targets[n]]
        addend = log_expected[n] if with_log_q else 0.0
        logits = torch.cat([cosines[targets[n]][None], cosines[kept] - addend])
        expected = expected + (torch.logsumexp(logits, 0) - logits[0]) / 37
    torch.testing.assert_close(loss.double(), expected.double(), atol=1e-6, rtol=0)
    for ours, theirs in zip(*(torch.autograd.grad(x, [states, table]) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_with_log_q_the_sampled_cosine_loss_tends_to_the_full_softmax_over_real_items():
    states, table, _, targets = make()
    sampler = NegativeSampler(torch.tensor([0] + [1] * 49), within_domain=False)
    negatives, log_expected = sampler(targets, 20_000)
    sampled = sampled_cosine_loss(states, table, targets, negatives, 0.5, log_expected)
    full = cosine_softmax_loss(states, table[1:], targets - 1, 0.5)
    torch.testing.assert_close(sampled, full, atol=0.01, rtol=0)
    ours, theirs = (torch.autograd.grad(x, table, retain_graph=True)[0] for x in (sampled, full))
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)


def test_without_targets_or_other_items_the_sampled_cosine_loss_is_zero():
    states, table, _, targets = make(n_items=2)
    negatives = torch.ones(37, 4, dtype=torch.long)  # item 1 is the only item: every negative collides
    assert sampled_cosine_loss(states, table, targets, negatives, 0.1) == 0.0
    assert sampled_cosine_loss(states[:0], table, targets[:0], negatives[:0], 0.1) == 0.0


@pytest.mark.parametrize("within_domain", [True, False])
def test_every_target_has_negatives_of_its_own_uniform_over_its_pool(within_domain):
    torch.manual_seed(2)
    item_domain = torch.tensor([0, 2, 1, 1, 2, 3, 1, 2])  # domain 3 has one item only
    targets = torch.tensor([2, 1, 5])
    negatives, log_expected = NegativeSampler(item_domain, within_domain)(targets, 30_000)
    assert not torch.equal(negatives[0], negatives[1])
    for target, drawn, expected in zip(targets, negatives, log_expected, strict=True):
        pool = item_domain == item_domain[target] if within_domain else item_domain > 0
        frequency = torch.bincount(drawn, minlength=8) / 30_000
        torch.testing.assert_close(frequency, pool / pool.sum(), atol=0.02, rtol=0)
        torch.testing.assert_close(expected.exp(), 30_000 / pool.sum())
