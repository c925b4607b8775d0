"""TAPE and the read of states against their formulas."""

from __future__ import annotations

import pytest
import torch

from recbole_cdsr.layers import domain_states
from recbole_cdsr.layers.domain_states import latest_events, read_states
from recbole_cdsr.layers.tape import DomainTransition
from tests.test_tape_ddsr_hstu import C, L, make_batch


@pytest.mark.parametrize("gathered", [2**18, 100])
@pytest.mark.parametrize("seed", range(3))
def test_gathering_the_latest_events_is_the_mask_of_keys_still_in_force(monkeypatch, gathered, seed):
    """Event j is read at i where j <= i < next event of j's domain; an unseen domain by its own row."""
    monkeypatch.setattr(domain_states, "GATHERED", gathered)
    batch, heads, width = make_batch(seed=seed), 2, 3
    domains = batch["domain_id_list"]
    n, known = domains.numel(), torch.arange(1, C)
    query = torch.randn(n, heads, width, requires_grad=True)
    key, value = (torch.randn(n + C - 1, heads, width, requires_grad=True) for _ in range(2))

    position = torch.arange(L)
    same, later = domains[:, :, None] == domains[:, None], position > position[:, None]
    following = torch.where(same & later, position, L).amin(2)
    may_read = (position[:, None] >= position) & (position[:, None] < following[:, None]) & (domains[:, None] > 0)
    unseen = ~torch.stack([(domains == c).cumsum(1) > 0 for c in known], 2)
    whole = torch.cat([torch.block_diag(*may_read.float()) > 0, unseen.flatten(0, 1)], 1)
    assert (whole.sum(1) == C - 1).all()
    logits = torch.einsum("ihw,jhw->hij", query, key) * width**-0.5
    expected = torch.einsum("hij,jhw->ihw", torch.softmax(logits.masked_fill(~whole, -torch.inf), -1), value)

    result = read_states(query, key, value, latest_events(domains, C))
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)
    leaves, upstream = (query, key, value), torch.randn_like(result)
    for ours, theirs in zip(*(torch.autograd.grad(x, leaves, upstream) for x in (result, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_tape_is_the_formula():
    torch.manual_seed(0)
    tape, domains = DomainTransition(C, 6), torch.tensor([2, 2, 1, 4, 4, 0, 0])
    following = torch.tensor([2, 1, 4, 4, 3, 0, 0])
    table, weight, bias = tape.embedding.weight, tape.map.weight, tape.map.bias
    for i, (d, nxt) in enumerate(zip(domains.tolist(), following.tolist(), strict=True)):
        expected = torch.zeros(6) if d == nxt or d == 0 else table[nxt] * (weight @ table[d] + bias)
        torch.testing.assert_close(tape(domains, following)[i], expected)
