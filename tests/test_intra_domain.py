"""Attention inside domains: the two forms against the formula, padding, order, memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recbole_cdsr.layers import intra_domain
from recbole_cdsr.layers.hstu import RelativeBias, time_bucket
from recbole_cdsr.layers.intra_domain import (
    KINDS,
    DomainSegments,
    MaskedAttention,
    SegmentedAttention,
    intra_domain_attention,
)

B, L, H, W, N = 5, 70, 2, 8, 80


def make(n_domains: int = 4, dtype=torch.float32, skewed: bool = False):
    """Domains [B, L] padded on the right, times [B, L], query, key and value [B, H, L, W], bias."""
    torch.manual_seed(n_domains)
    lengths = torch.tensor([L, 1, 40, 69, 2])
    domains = torch.randint(1, n_domains + 1, (B, L))
    if skewed:
        domains = torch.where(torch.rand(B, L) < 0.8, 1, domains)
    domains = domains * (torch.arange(L) < lengths[:, None])
    times = torch.rand(B, L, dtype=torch.float64).mul(1e6).cumsum(1)
    parts = [torch.randn(B, H, L, W, dtype=dtype, requires_grad=True) for _ in range(3)]
    return domains, times, parts, RelativeBias(N, std=1.0).to(dtype)


def formula(domains, times, query, key, value, bias, kind):
    """The masked dense form, as it stands in the documentation."""
    position = torch.arange(domains.size(1))
    distance = (position[:, None] - position).clamp(min=0)
    scores = query @ key.transpose(2, 3) + bias.position[distance]
    if times is not None:
        scores = scores + bias.time[time_bucket(times, times).long()][:, None]
    own = (domains[:, :, None] == domains[:, None]) & (domains > 0)[:, :, None] & (position[:, None] >= position)
    own = own[:, None]
    if kind == "silu":
        return torch.where(own, F.silu(scores), 0) @ value / N
    return torch.where(own, torch.softmax(scores.masked_fill(~own, -1e9), -1), 0) @ value


def forms(domains, times, kind):
    segmented = SegmentedAttention(DomainSegments(domains, times, times, H), N, kind)
    return [segmented, MaskedAttention(domains, times, times, N)] if kind == "silu" else [segmented]


@pytest.fixture(params=[(64, 2**17), (16, 1000)], ids=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    rows, size = request.param
    monkeypatch.setattr(intra_domain, "TILE_ROWS", rows)
    monkeypatch.setattr(intra_domain, "TILE", size)
    monkeypatch.setattr(intra_domain, "MAX_STORED_BUCKETS", 0 if size == 1000 else 2**26)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_time", [True, False])
@pytest.mark.parametrize(("n_domains", "skewed"), [(1, False), (4, False), (4, True), (60, False)])
def test_sorted_segments_are_the_mask_forwards_and_backwards(tiles, kind, with_time, n_domains, skewed):
    domains, times, parts, bias = make(n_domains, skewed=skewed)
    bias.time = bias.time if with_time else None
    times = times if with_time else None
    expected = formula(domains, times, *parts, bias, kind)
    upstream = torch.randn_like(expected)
    leaves = [*parts, *bias.parameters()]
    wanted = torch.autograd.grad(expected, leaves, upstream)
    for attention in forms(domains, times, kind):
        result = attention(*parts, bias)
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)
        for ours, theirs in zip(torch.autograd.grad(result, leaves, upstream), wanted, strict=True):
            scale = theirs.abs().max().item()
            torch.testing.assert_close(ours, theirs, atol=1e-6 * max(scale, 1.0), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_in_double_precision_they_agree_to_its_last_digits(tiles, kind):
    domains, times, parts, bias = make(dtype=torch.float64)
    expected = formula(domains, times, *parts, bias, kind)
    for attention in forms(domains, times, kind):
        torch.testing.assert_close(attention(*parts, bias), expected, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize(
    (
        "length",
        "first",
        "form",
    ),  # first: share of events in one of two domains; equal ones keep half of the pairs
    [
        (intra_domain.MASKED_MAX_LENGTH, 0.5, MaskedAttention),
        (intra_domain.MASKED_MAX_LENGTH + 1, 0.5, SegmentedAttention),
        (intra_domain.MASKED_MAX_LENGTH + 1, 0.8, MaskedAttention),
        (intra_domain.SKEWED_MAX_LENGTH, 0.8, MaskedAttention),
        (intra_domain.SKEWED_MAX_LENGTH + 1, 0.8, SegmentedAttention),
    ],
)
def test_the_form_follows_the_length_and_the_pairs_inside_domains(length, first, form):
    domains = torch.where(torch.arange(length) < first * length, 1, 2)[None]
    assert isinstance(intra_domain_attention(domains, None, None, H, N), form)
    assert isinstance(intra_domain_attention(domains, None, None, H, N, "softmax"), SegmentedAttention)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_gets_zero_and_changes_nothing(kind):
    domains, times, parts, bias = make()
    wider = [F.pad(x, (0, 0, 0, 9)) for x in parts]
    for narrow, wide in zip(
        forms(domains, times, kind), forms(F.pad(domains, (0, 9)), F.pad(times, (0, 9)), kind), strict=True
    ):
        context = wide(*wider, bias)
        assert (context.transpose(1, 2)[F.pad(domains, (0, 9)) == 0] == 0).all()
        torch.testing.assert_close(context[:, :, :L], narrow(*parts, bias), atol=1e-6, rtol=1e-6)


def test_segments_of_a_group_have_similar_lengths_and_hold_each_event_once():
    domains, times, _, _ = make(7, skewed=True)
    segments = DomainSegments(domains, times, times, 1)
    assert segments.source[segments.real.squeeze(1)].sort().values.equal(domains.flatten().nonzero().squeeze(1))
    total = sum(group.positions.numel() for group in segments.groups)
    short = len(domains) * 7 * intra_domain.SHORTEST
    assert total <= intra_domain.MAX_RATIO * int((domains > 0).sum()) + short
    assert all((group.positions.diff(dim=1) >= 0).all() for group in segments.groups)


def test_half_precision_under_autocast_stays_finite():
    domains, times, parts, bias = make()
    for kind in KINDS:
        for attention in forms(domains, times, kind):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                context = attention(*(x.bfloat16() for x in parts), bias)
            context.float().sum().backward()
            assert context.isfinite().all() and all(p.grad.isfinite().all() for p in bias.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_of_all_pairs_is_made(kind):
    """The largest allocation in both passes stays far below that of the scores of a history."""
    length = 3000
    domains = torch.randint(1, 3, (1, length))
    parts = [torch.randn(1, H, length, W, requires_grad=True) for _ in range(3)]
    attention = SegmentedAttention(DomainSegments(domains, None, None, H), length, kind)
    with torch.profiler.profile(profile_memory=True) as profile:
        attention(*parts, RelativeBias(length, with_time=False)).sum().backward()
    assert max(event.cpu_memory_usage for event in profile.events()) < 0.1 * H * length**2 * 4
