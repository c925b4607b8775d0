"""The HSTU block against numbers of the reference implementation and a loop over pairs, in one tile and in many."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from recbole_cdsr.layers import hstu
from recbole_cdsr.layers.hstu import CausalAttention, HSTUEncoder, HSTULayer, RelativeBias, time_bucket

CASES = json.loads((Path(__file__).parent / "data" / "hstu_block.json").read_text())


@torch.no_grad()
def layer_of(case) -> HSTULayer:
    sizes = (case[name] for name in ("embedding_dim", "num_heads", "attention_dim", "linear_dim"))
    layer = HSTULayer(*sizes, dropout_prob=0.0, max_length=case["max_len"]).double()
    tensors = {name: torch.tensor(case[name], dtype=torch.float64) for name in ("uvqk", "o_weight", "o_bias")}
    layer.projection.weight.copy_(tensors["uvqk"].T)
    layer.output_projection.weight.copy_(tensors["o_weight"])
    layer.output_projection.bias.copy_(tensors["o_bias"])
    # The reference has a weight for every j - i from -(N - 1) to N - 1; we have one for every i - j from 0.
    layer.bias.position.copy_(torch.tensor(case["pos_w"][: case["max_len"]], dtype=torch.float64).flip(0))
    layer.bias.time.copy_(torch.tensor(case["ts_w"], dtype=torch.float64))
    return layer


@pytest.mark.parametrize("case", CASES, ids=["one head", "two heads"])
@pytest.mark.parametrize("tile_rows", [2, 256])
@pytest.mark.parametrize("more_padding", [0, 3])
def test_the_block_gives_the_numbers_of_the_reference(monkeypatch, case, tile_rows, more_padding):
    monkeypatch.setattr(hstu, "TILE_ROWS", tile_rows)
    layer, lengths = layer_of(case), torch.tensor(case["lengths"])
    width = case["max_len"] + more_padding
    valid = torch.arange(width) < lengths[:, None]
    states = torch.zeros(len(lengths), width, case["embedding_dim"], dtype=torch.float64)
    states[valid] = torch.tensor(case["x_jagged"], dtype=torch.float64)
    times = F.pad(torch.tensor(case["timestamps"], dtype=torch.float64), (0, more_padding))
    # At the padded end of a shorter row the reference goes on with the times that stand there.
    following = torch.cat([times[:, 1 : case["max_len"]], times[:, case["max_len"] - 1 :]], 1)
    attention = CausalAttention(torch.arange(width)[None], following, times, divisor=case["max_len"])
    expected = torch.tensor(case["y_jagged"], dtype=torch.float64)
    torch.testing.assert_close(layer(states, attention)[valid], expected, atol=1e-8, rtol=0)


def inputs(length=9, batch=3, heads=2, query_key=3, value=5, with_time=True, max_length=16):
    torch.manual_seed(3)
    sizes = (query_key, query_key, value)
    tensors = [torch.randn(batch, heads, length, size, dtype=torch.float64).requires_grad_() for size in sizes]
    bias = RelativeBias(max_length, with_time, std=0.5).double()
    times = torch.randint(0, 10**8, (batch, length)).double().sort(1).values
    return *tensors, bias, times


def by_loops(query, key, value, bias, position, query_time, key_time, divisor):
    """The formula, pair by pair."""
    context = torch.zeros_like(value)
    batch, heads, length, _ = value.shape
    for b in range(batch):
        for i in range(length):
            for j in range(i + 1):
                addend = bias.position[position[b, i] - position[b, j]]
                if bias.time is not None:
                    gap = max(abs(float(query_time[b, i] - key_time[b, j])), 1.0)
                    addend = addend + bias.time[min(int(math.log(gap) / 0.301), 128)]
                for h in range(heads):
                    score = query[b, h, i] @ key[b, h, j] + addend
                    weight = score / (1 + torch.exp(-score)) / divisor
                    context[b, h, i] = context[b, h, i] + weight * value[b, h, j]
    return context


@pytest.mark.parametrize("tile_rows", [1, 4, 256])
@pytest.mark.parametrize("with_time", [True, False])
@pytest.mark.parametrize("own_positions", [True, False])
def test_attention_and_its_gradients_are_those_of_the_loop(monkeypatch, tile_rows, with_time, own_positions):
    monkeypatch.setattr(hstu, "TILE_ROWS", tile_rows)
    query, key, value, bias, times = inputs(with_time=with_time)
    position = torch.arange(9).expand(3, 9)
    if own_positions:  # as where only some events of a history attend to each other
        position = torch.stack([torch.randperm(16)[:9].sort().values for _ in range(3)])
    query_time = times + 1000
    given = (query_time, times) if with_time else (None, None)
    attention = CausalAttention(position if own_positions else position[:1], *given, divisor=16)
    ours = attention(query, key, value, bias)
    expected = by_loops(query, key, value, bias, position, query_time, times, 16)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    leaves = [query, key, value, *bias.parameters()]
    upstream = torch.randn_like(ours)
    gradients = (torch.autograd.grad(context, leaves, upstream) for context in (ours, expected))
    for own, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-12, rtol=0)


def test_the_bias_answers_for_any_pairs():
    _, _, _, bias, _ = inputs()
    positions, times = torch.tensor([[2, 7, 9]]), torch.tensor([[0.0, 50.0, 7200.0]], dtype=torch.float64)
    pairs = bias(positions, positions[:, :2], times, times[:, :2])
    assert pairs.shape == (1, 3, 2)
    expected = bias.position[9 - 7] + bias.time[int(math.log(7200 - 50) / 0.301)]
    assert pairs[0, 2, 1] == expected


def test_buckets_of_time():
    """Under one second, seconds, minutes, and more years than there are buckets for; gaps survive at unix times."""
    start = 1_700_000_000.0
    times = start + torch.tensor([0.0, 0.5, 1.0, 2.0, 60.0, 90.0, 1e9], dtype=torch.float64)
    gaps = time_bucket(times, torch.tensor([start], dtype=torch.float64))[:, 0].tolist()
    assert gaps == [0, 0, 0, 2, 13, 14, 68]
    assert time_bucket(torch.tensor([1e300], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)).item() == 128


def test_nothing_of_the_size_of_all_pairs_is_kept(monkeypatch):
    """What the backward pass needs is the inputs; a byte for each pair of events is in the plan."""
    monkeypatch.setattr(hstu, "TILE_ROWS", 4)
    query, key, value, bias, times = inputs(length=40, max_length=40)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attention = CausalAttention(torch.arange(40)[None], times, times, divisor=40)
        attention(query, key, value, bias)
    assert sum(kept) == sum(x.numel() for x in (query, key, value, *bias.parameters()))
    assert all(tile.bucket.dtype == torch.uint8 and tile.bucket.size(1) == 4 for tile in attention.tiles)


def make_encoder(**changes) -> HSTUEncoder:
    torch.manual_seed(0)
    layer = {"hidden_size": 8, "n_heads": 2, "query_key_size": 4, "value_size": 4, "dropout_prob": 0.5}
    encoder = HSTUEncoder(2, **{**layer, "max_length": 12, **changes}).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


@pytest.mark.parametrize("tile_rows", [3, 256])
def test_a_stack_is_causal_in_states_and_times(monkeypatch, tile_rows):
    monkeypatch.setattr(hstu, "TILE_ROWS", tile_rows)
    encoder, states = make_encoder(), torch.randn(2, 10, 8)
    times = torch.rand(2, 10, dtype=torch.float64).cumsum(1) * 1e5

    def run(states, times):
        return encoder(states, CausalAttention(torch.arange(10)[None], times, times, divisor=12))

    before = run(states, times)
    for place in range(10):
        other_states, other_times = states.clone(), times.clone()
        other_states[:, place] += torch.randn(8)  # a constant would not outlive LayerNorm
        other_times[:, place:] += 1e7
        for after in (run(other_states, times), run(states, other_times)):
            assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.isclose(run(other_states, times)[:, place:], before[:, place:]).all(-1).any()


def test_dropout_is_active_in_training_only():
    encoder, states = make_encoder(with_time=False), torch.randn(2, 10, 8)
    attention = CausalAttention(torch.arange(10)[None], None, None, divisor=12)
    assert torch.equal(encoder(states, attention), encoder(states, attention))
    assert not torch.equal(encoder.train()(states, attention), encoder(states, attention))
