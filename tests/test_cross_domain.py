"""The record of attention between domains: its closed-form gradient, its tiles, and what it keeps in memory."""

from __future__ import annotations

import pytest
import torch

from recbole_cdsr.layers import cross_domain
from recbole_cdsr.layers.cross_domain import CrossDomainRecord, attention_logits

B, H, L, W, C = 3, 2, 21, 4, 5
causal_or_not = pytest.mark.parametrize("causal", [True, False])


def make_case(causal: bool):
    torch.manual_seed(5)
    domains = torch.randint(0, C, (B, L))
    may_attend = None if causal else domains > 0
    query, key = (torch.randn(B, H, L, W, requires_grad=True) for _ in range(2))
    return query, key, domains, may_attend


def logits_of(query, key, may_attend, causal):
    return attention_logits(query.flatten(0, 1), key.flatten(0, 1), may_attend, causal).unflatten(0, (B, H))


def plain_share(query, key, domains, may_attend, causal):
    """a_cd by autograd, straight from the definition."""
    probabilities = torch.softmax(logits_of(query, key, may_attend, causal), dim=-1)
    has_domain = domains > 0
    pair = (domains[:, :, None] != domains[:, None, :]) & has_domain[:, :, None] & has_domain[:, None, :]
    return (probabilities * pair[:, None]).sum() / (H * has_domain.sum())


def noted(record, form, query, key, may_attend, causal):
    if form == "tiled":
        record.add_tiled(query, key, may_attend, causal)
    else:
        logits = logits_of(query, key, may_attend, causal)
        record.add_explicit(logits, torch.softmax(logits, dim=-1))
    return record.share()


@causal_or_not
@pytest.mark.parametrize("form", ["explicit", "tiled"])
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_value_and_gradient_are_those_of_the_definition(monkeypatch, causal, form, rows):
    monkeypatch.setattr(cross_domain, "TILE", 1)
    monkeypatch.setattr(cross_domain, "MIN_TILE_ROWS", rows)
    query, key, domains, may_attend = make_case(causal)
    expected = plain_share(query, key, domains, may_attend, causal)
    share = noted(CrossDomainRecord(domains, C), form, query, key, may_attend, causal)
    torch.testing.assert_close(share, expected)
    wanted = torch.autograd.grad(3 * expected, (query, key))
    torch.testing.assert_close(torch.autograd.grad(3 * share, (query, key)), wanted)


@causal_or_not
def test_tiles_note_the_matrix_of_the_whole(monkeypatch, causal):
    query, key, domains, may_attend = make_case(causal)
    records = [CrossDomainRecord(domains, C, keep_matrix=True) for _ in range(2)]
    noted(records[0], "explicit", query, key, may_attend, causal)
    monkeypatch.setattr(cross_domain, "TILE", 1)
    monkeypatch.setattr(cross_domain, "MIN_TILE_ROWS", 4)
    noted(records[1], "tiled", query, key, may_attend, causal)
    torch.testing.assert_close(records[0].matrix(), records[1].matrix())


@causal_or_not
def test_no_matrix_of_attention_is_kept_for_the_backward_pass(causal):
    """Beside what the output keeps itself; a [B, L, L] tensor would be L / C times the largest of these."""
    query, key, domains, may_attend = make_case(causal)
    logits = logits_of(query, key, may_attend, causal)
    probabilities = torch.softmax(logits, dim=-1)
    kept = []

    def keep(tensor):
        if tensor.data_ptr() != probabilities.data_ptr():
            kept.append(tensor.numel())
        return tensor

    for form in ("explicit", "tiled"):
        record = CrossDomainRecord(domains, C)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if form == "tiled":
                record.add_tiled(query, key, may_attend, causal)
            else:
                record.add_explicit(logits, probabilities)
    assert max(kept) <= B * L * max(H * W, C) < B * L * L


def test_without_a_domain_there_is_no_share():
    query, key, domains, _ = make_case(True)
    record = CrossDomainRecord(torch.zeros_like(domains), C)
    share = noted(record, "explicit", query, key, None, True)
    assert share.item() == 0 and all((g == 0).all() for g in torch.autograd.grad(share, (query, key)))
