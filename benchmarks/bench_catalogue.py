"""How a training step grows with the catalogue: losses over all items, in chunks or sampled, and the optimiser.

    OMP_NUM_THREADS=1 python benchmarks/bench_catalogue.py [--items 10000 100000 1000000] [--rounds 3]

One step on 2,048 targets, D 64: vectors of the histories, the loss forwards and backwards, and Adam on the table of
items. plain: softmax by autograd with all logits at once, as RecBole writes it. By rows: gradients and
SparseAdam on the rows of the step's items. Each case in a process of its own; CPU
seconds on one thread, medians; memory is the peak of what a step adds, table, gradient and moments included.
Ratios hold for the machine they were taken on; compare no absolute numbers.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from measuring import in_a_process, measured

from recbole_cdsr.layers.losses import draw_negatives, full_softmax_loss, sampled_softmax_loss

WIDTH, TARGETS, HISTORY, NEGATIVES = 64, 2048, 50, 1024


def sampled(states: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return sampled_softmax_loss(states, table, targets, *draw_negatives(NEGATIVES, len(table), "uniform", table.device))


LOSSES = {
    "plain": lambda states, table, targets: F.cross_entropy(states @ table.T, targets),
    "CE": full_softmax_loss,
    "sampled": sampled,
}
BY_ROWS = "sampled, by rows"  # the learner sparse_adam: a table of the items of the step, as CDSRRecommender.candidates
MOST_LOGITS = 2**28  # above this, plain needs gigabytes for logits and gradients; it is left out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loss", help=argparse.SUPPRESS)  # the one measurement of a child process
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.loss:
        print(*step(options.items[0], options.loss, options.rounds))
        return
    print("| items | loss | loss and gradients, CPU s | Adam, CPU s | memory of a step, MB |\n|---|---|---|---|---|")
    for items in options.items:
        for loss in (*LOSSES, BY_ROWS):
            if loss == "plain" and items * TARGETS > MOST_LOGITS:
                print(
                    f"| {items:,} | plain | not run: {items * TARGETS * 8 / 2**30:.0f} GB of logits and gradients | | |"
                )
                continue
            one, two, peak = in_a_process(__file__, "--items", items, "--loss", loss, "--rounds", options.rounds)
            print(f"| {items:,} | {loss} | {one:.3f} | {two:.3f} | {peak:.0f} |", flush=True)


def step(items: int, loss: str, rounds: int) -> tuple[float, float, float]:
    """Median CPU seconds of loss with gradients and of the optimiser, and MB that the first step adds."""
    torch.manual_seed(1)
    states = torch.randn(TARGETS, WIDTH, requires_grad=True)
    targets = torch.randint(1, items, (TARGETS,))
    history = torch.randint(1, items, (TARGETS // HISTORY, HISTORY))
    taken: list[tuple[float, float]] = []
    made = {}

    def take() -> None:
        if not made:
            made["table"] = torch.nn.Embedding(items + 1, WIDTH, sparse=loss == BY_ROWS)
            optimiser = torch.optim.SparseAdam if loss == BY_ROWS else torch.optim.Adam
            made["adam"] = optimiser(made["table"].parameters())
        start = time.process_time()
        value = (
            loss_by_rows(made["table"], states, targets)
            if loss == BY_ROWS
            else LOSSES[loss](states, made["table"].weight, targets)
        )
        value = value + made["table"](history).square().mean()
        made["adam"].zero_grad()
        value.backward()
        middle = time.process_time()
        made["adam"].step()
        taken.append((middle - start, time.process_time() - middle))

    peak = measured(take)[1]
    for _ in range(rounds):
        take()
    return *(statistics.median(column) for column in zip(*taken[1:], strict=True)), peak


def loss_by_rows(table: torch.nn.Embedding, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    negatives, log_probability = draw_negatives(NEGATIVES, table.num_embeddings, "uniform", targets.device)
    chosen, places = torch.unique(torch.cat([targets, negatives]), return_inverse=True)
    return sampled_softmax_loss(states, table(chosen), *places.split([TARGETS, NEGATIVES]), log_probability)


if __name__ == "__main__":
    main()
