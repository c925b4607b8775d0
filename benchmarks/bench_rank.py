"""Full sort of large catalogues: ranks counted here against RecBole's evaluation, each case in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/bench_rank.py [--items 100000 1000000] [--rows 2048] [--rounds 3]

Both sides start from states of users and an item table, D 64. RecBole: the scores of a batch, padding masked, and its
own Collector for top-k metrics, 4,096 rows at a time or as many as `--scores` allows. Here: ranks among all items and
inside the target's domain, from which every metric follows. CPU seconds on one thread, medians of rounds in turn;
memory is what is added at the peak.
Ratios hold for the machine they were taken on; compare no absolute numbers.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from measuring import in_a_process, measured

WIDTH, N_DOMAINS, EVAL_BATCH_SIZE = 64, 5, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rows", type=int, default=2048, help="events that are ranked")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scores", type=int, default=2**29, help="scores that RecBole makes at once, at most")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # the one measurement of a child process
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.side:
        print(*SIDES[options.side](options.items[0], options.rows, options.scores))
        return
    print("| items | rows | side | CPU s | RecBole / this | peak, MB | RecBole / this |\n" + "|---" * 7 + "|")
    for items in options.items:
        keys = ["--items", items, "--rows", options.rows, "--scores", options.scores]
        taken = [{side: in_a_process(__file__, *keys, "--side", side) for side in SIDES} for _ in range(options.rounds)]
        for side in SIDES:
            seconds, peak = ([one[side][number] for one in taken] for number in range(2))
            faster = statistics.median(one["RecBole"][0] / one[side][0] for one in taken)
            smaller = statistics.median(one["RecBole"][1] / one[side][1] for one in taken)
            middle = f"{statistics.median(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f}) | {faster:.1f}"
            print(
                f"| {items:,} | {options.rows:,} | {side} | {middle} | {statistics.median(peak):.0f} | {smaller:.0f} |"
            )


def drawn(items: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """States [rows, D], table [items + 1, D], targets [rows], domains of items [items + 1]."""
    generator = torch.Generator().manual_seed(1)
    states, table = (torch.randn(n, WIDTH, generator=generator) for n in (rows, items + 1))
    target = torch.randint(1, items + 1, (rows,), generator=generator)
    domain = torch.randint(1, N_DOMAINS + 1, (items + 1,), generator=generator)
    domain[0] = 0
    return states, table, target, domain


def ours(items: int, rows: int, _: int) -> tuple[float, float]:
    from recbole_cdsr.ranks import count_ranks_tiled

    states, table, target, domain = drawn(items, rows)
    count_ranks_tiled(states[:8], table[:100], domain[:100], torch.arange(1, 9))  # code that is loaded by a first call
    return measured(lambda: count_ranks_tiled(states, table, domain, target))


def recbole(items: int, rows: int, most: int) -> tuple[float, float]:
    from recbole_cdsr import compat

    compat.apply()
    from recbole.evaluator import Collector, Evaluator

    config = {"metrics": ["NDCG", "Recall", "MRR"], "topk": [10], "eval_args": {"mode": "full"}, "device": "cpu"}
    config |= {"metric_decimal_place": 4}
    states, table, target, _ = drawn(items, rows)
    collector, size = Collector(config), max(1, min(EVAL_BATCH_SIZE, most // items))

    def evaluate() -> None:
        for start in range(0, rows, size):
            scores = states[start : start + size] @ table.T
            scores[:, 0] = -torch.inf
            row = torch.arange(len(scores))
            collector.eval_batch_collect(scores, None, row, target[start : start + size])
        Evaluator(config).evaluate(collector.get_data_struct())

    return measured(evaluate)


SIDES = {"RecBole": recbole, "ours": ours}


if __name__ == "__main__":
    main()
