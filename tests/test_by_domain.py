"""Events sorted by domain, and weights of each domain, against plain loops."""

from __future__ import annotations

import torch

from recbole_cdsr.layers.by_domain import DomainLinear, DomainNorm
from tests.test_bottleneck import B, C, D, L, draw_domains, draw_states, events_of, spread_out


def test_events_by_domain_are_what_loops_find():
    domains = draw_domains()
    events = events_of(domains, C)
    for row, t, j in torch.cartesian_prod(torch.arange(B), torch.arange(L), torch.arange(L)).tolist():
        has_domain = bool(domains[row, j])
        own = j == t or (has_domain and j < t and domains[row, j] == domains[row, t])
        latest = has_domain and j <= t and domains[row, j] not in domains[row, j + 1 : t + 1]
        assert events.own[row, t, j] == own
        assert events.latest[row, t, j] == latest
    valid = domains > 0
    assert events.sizes == [0] + [int((domains == d).sum()) for d in range(1, C)]
    assert events.rows(domains).tolist() == sorted(domains[valid].tolist())
    values = draw_states(B, L, 2)
    assert torch.equal(events.spread(events.rows(values)), values * valid.unsqueeze(-1))


def test_each_domain_has_its_own_weights():
    events = events_of(draw_domains(), C)
    linear, norm = spread_out(DomainLinear(C, D, 3)), spread_out(DomainNorm(C, D, 1e-5))
    rows = events.rows(draw_states(B, L, D))
    mapped, normed = linear(rows, events.sizes), norm(rows, events.sizes)
    for number, d in enumerate(events.rows(events.domains).tolist()):
        expected = linear.weight[d] @ rows[number] + linear.bias[d]
        torch.testing.assert_close(mapped[number], expected)
        expected = torch.nn.functional.layer_norm(rows[number], (D,), norm.weight[d], norm.bias[d], 1e-5)
        torch.testing.assert_close(normed[number], expected)
