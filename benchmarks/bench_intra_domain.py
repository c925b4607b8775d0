"""What attention inside domains costs, against the attention of HSTU over all events, which is causal and tiled too.

    OMP_NUM_THREADS=1 python benchmarks/bench_intra_domain.py [--lengths 200 1000 4000] [--domains 2 5 10 20]

attention: the plan of a batch and the attention of two layers, forward and backward.
blocks: the same with projections, gate and output: two whole blocks of HSTU. Below it, for scale: two layers of the
    sasrec backbone, fused attention by softmax and a feed-forward block four times as wide.
memory: what the attention of one layer adds at its peak, each case in a process of its own (Linux).
All variants of a length in turn in one process, process CPU time on one thread, medians; one round warms up. Batches of
2,000 events, or one history where that is longer. Skewed: 80 % of the events in one domain, the others share the rest.
Ideal: the sum of n_d squared over n squared, of the events drawn.

Ratios hold for the machine they were taken on; compare no absolute times.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from measuring import cpu_seconds, in_a_process, measured
from torch import Tensor

from recbole_cdsr.layers.attention import TransformerEncoder
from recbole_cdsr.layers.hstu import CausalAttention, HSTUEncoder, RelativeBias
from recbole_cdsr.layers.intra_domain import intra_domain_attention

EVENTS, WIDTH, HEADS, LAYERS = 2000, 64, 2, 2
PARTS = ("attention", "blocks", "memory")


class Case:
    """Histories of one length with some way to spread their events over domains; n_domains 0: attend to all events."""

    def __init__(self, length: int, n_domains: int, skewed: bool):
        torch.manual_seed(length)
        self.n_domains, shape = n_domains, (max(1, EVENTS // length), length)
        if skewed:
            self.domains = torch.where(torch.rand(shape) < 0.8, 1, torch.randint(2, n_domains + 1, shape))
        else:
            self.domains = torch.randint(1, max(n_domains, 1) + 1, shape)
        self.times = (torch.rand(shape, dtype=torch.float64) * 1e5).cumsum(1)
        self.heads = [torch.randn(shape[0], HEADS, length, WIDTH // HEADS, requires_grad=True) for _ in range(3)]
        self.states = torch.randn(*shape, WIDTH, requires_grad=True)
        sizes = {"hidden_size": WIDTH, "query_key_size": WIDTH // HEADS, "value_size": WIDTH // HEADS}
        self.encoder = HSTUEncoder(LAYERS, n_heads=HEADS, dropout_prob=0.0, max_length=length, **sizes)
        self.bias = RelativeBias(length)
        self.transformer = TransformerEncoder(
            LAYERS, True, hidden_size=WIDTH, inner_size=4 * WIDTH, n_heads=HEADS, hidden_dropout_prob=0.0,
            attn_dropout_prob=0.0, hidden_act="gelu", layer_norm_eps=1e-12,
        )  # fmt: skip

    def ideal(self) -> float:
        counts = torch.stack([(self.domains == d).sum(1) for d in range(1, self.n_domains + 1)]).double()
        return float((counts.square().sum(0) / self.domains.size(1) ** 2).mean())

    def plan(self):
        length = self.domains.size(1)
        if self.n_domains:
            return intra_domain_attention(self.domains, self.times, self.times, HEADS, length)
        return CausalAttention(torch.arange(length)[None], self.times, self.times, length)

    def attention(self, layers: int = LAYERS) -> None:
        plan = self.plan()
        for _ in range(layers):
            backward(plan(*self.heads, self.bias), [*self.heads, *self.bias.parameters()])

    def blocks(self) -> None:
        backward(self.encoder(self.states, self.plan()), [self.states, *self.encoder.parameters()])

    def softmax(self) -> None:
        backward(self.transformer(self.states), [self.states, *self.transformer.parameters()])


def backward(result: Tensor, leaves: list[Tensor]) -> None:
    torch.autograd.grad(result, leaves, torch.ones_like(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 1000, 4000])
    parser.add_argument("--domains", type=int, nargs="+", default=[2, 5, 10, 20])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--peak", type=int, nargs=3, help=argparse.SUPPRESS)  # the one measurement of a child process
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(peak(*options.peak))
        return
    print(f"torch {torch.__version__}, 1 thread, width {WIDTH}, {HEADS} heads; ratios to attention over all events")
    for length in options.lengths:
        compare(length, options)


def compare(length: int, options: argparse.Namespace) -> None:
    """Prints the table of one length."""
    spreads = [(n, skewed) for n in options.domains for skewed in (False, True) if n > 2 or not skewed]
    cases = {spread: Case(length, *spread) for spread in [(0, False), *spreads]}
    note, columns = "", {"ideal": {spread: case.ideal() for spread, case in cases.items() if spread[0]}}
    for part in options.parts:
        if part == "memory":
            values = {spread: peak_in_a_process(length, *spread) for spread in cases}
            unit = f"{values[0, False]:.1f} MB"
        else:
            calls = {spread: getattr(case, part) for spread, case in cases.items()}
            if part == "blocks":
                calls["softmax"] = cases[0, False].softmax
            values = medians(calls, options.rounds)
            unit = f"{1000 * values[0, False]:.0f} ms"
        ratios = {name: value / values[0, False] for name, value in values.items()}
        columns[f"{part} (all: {unit})"] = ratios
        if part == "blocks":
            note = f"\nTwo layers of the sasrec backbone: {ratios['softmax']:.2f} of two blocks over all events"
    print(f"\nL {length}, {len(cases[0, False].domains)} histories")
    print("| domains | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for n, skewed in spreads:
        cells = " | ".join(f"{values[n, skewed]:.2f}" for values in columns.values())
        print(f"| {n}{', skewed' if skewed else ''} | {cells} |", flush=True)
    if note:
        print(note, flush=True)


def medians(variants: dict, rounds: int) -> dict:
    """CPU seconds of each variant, the median of rounds in which they take turns."""
    seconds: dict = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, call in list(variants.items())[:: -1 if turn % 2 else 1]:
            taken = cpu_seconds(call)
            if turn:  # the first round warms up
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_in_a_process(length: int, n_domains: int, skewed: bool) -> float:
    # Tensors get pages of their own, which go back when they are freed: the peak is that of what is alive.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
    return in_a_process(__file__, "--peak", length, n_domains, int(skewed), env=allocator)[0]


def peak(length: int, n_domains: int, skewed: int) -> float:
    """MB that the attention of one layer adds in this process, at its peak, to what it held before."""
    Case(50, 2, False).attention()  # code that is loaded on the first call does not count
    case = Case(length, n_domains, bool(skewed))
    return measured(lambda: case.attention(layers=1))[1]


if __name__ == "__main__":
    main()
