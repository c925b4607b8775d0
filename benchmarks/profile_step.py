"""Where the time of a training step goes, and how far it is from what this machine can multiply.

    OMP_NUM_THREADS=1 python benchmarks/profile_step.py [--models AutoCDSR HSTU] [--dataset ml-100k] [--steps 20]

Parts are CPU ms of a step on one thread, median over steps: gathering the batch, losses (the softmax over items takes
its gradients there), other gradients, Adam. Kinds are the shares of torch's operators by its profiler. GFLOP are those
of matrix products, by torch's counter; the peak is that of a 1024 x 1024 product. Each variant of the step is timed in
turn with the plain one.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measuring import cpu_seconds
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig

KINDS = {
    "matrix products": r"aten::(mm|addmm|bmm|baddbmm|_scaled_dot_product.*|linear|matmul)_?",
    "softmax and logarithms": r"aten::(_?softmax|_?log_softmax|logsumexp|exp|log|amax|silu|gelu|sigmoid).*",
    "normalisation": r"aten::native_(layer|group)_norm.*",
    "random numbers": r"aten::(bernoulli|rand|native_dropout|uniform|normal).*",
    "gathering and scattering": r"aten::(index|gather|scatter|embedding|take|nonzero|unique|sort|argsort|bucketize).*",
    "copies and fills": r"aten::(copy|clone|contiguous|cat|fill|zero|zeros|full|empty|new_|_to_copy).*",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["AutoCDSR", "HSTU"])
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    peak = matmul_peak()
    print(f"{options.dataset}, batches of 2,048 targets, 1 thread; peak {peak:.0f} GFLOP/s in float32")
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            keys = {"data_path": options.data_path, "show_progress": False}
            config = CDSRConfig(model, options.dataset, config_dict=keys)
            built = quick_start.build(config, quick_start.prepare(config), Path(folder))
            report(model, built, peak, options.steps)


def matmul_peak() -> float:
    """GFLOP/s of the best of some products."""
    left, right = torch.randn(2, 1024, 1024)
    return max(2 * 1024**3 / cpu_seconds(lambda: left @ right) / 1e9 for _ in range(20))


def report(model: str, built: Any, peak: float, count: int) -> None:
    steps, batches = built.trainer.steps, list(itertools.islice(built.train, count))
    whole(steps, batches[:3])  # warms up
    gathering = cpu_seconds(lambda: list(itertools.islice(built.train, count))) / len(batches)
    parts = {"gathering the batch": gathering, **timed_parts(built, batches)}
    total = sum(parts.values())
    with FlopCounterMode(display=False) as counter:
        whole(steps, batches[:1])
    flop = counter.get_total_flops() / 1e9
    print(f"\n**{model}**: {flop:.2f} GFLOP in {1000 * total:.0f} ms, {flop / total:.0f} GFLOP/s, ", end="")
    print(f"{100 * flop / total / peak:.0f} % of the peak; at the peak a step would take {1000 * flop / peak:.0f} ms\n")
    print("| part | ms per step | share |\n|---|---|---|")
    for name, seconds in parts.items():
        print(f"| {name} | {1000 * seconds:.1f} | {100 * seconds / total:.0f} % |")
    print("\n| kind of operator | share of the step |\n|---|---|")
    for name, share in kinds(steps, batches).items():
        print(f"| {name} | {100 * share:.0f} % |")
    print("\n| variant of the step | CPU time to the plain one |\n|---|---|")
    for name, ratio in variants(built, batches).items():
        print(f"| {name} | {ratio:.2f} |")


def whole(steps: Any, batches: list) -> None:
    for _ in steps.run(batches, len(batches), 0):
        pass


def timed_parts(built: Any, batches: list) -> dict[str, float]:
    """Median CPU seconds of the parts of a step after gathering."""
    steps = built.trainer.steps
    parts = {
        "losses": (steps, "_losses"),
        "gradients": (steps.balancer, "add"),
        "weights, clipping and Adam": (steps, "_step"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    with ExitStack() as stack:
        for name, (holder, attribute) in parts.items():
            timed = timing(getattr(holder, attribute), seconds[name])
            stack.enter_context(mock.patch.object(holder, attribute, timed))
        whole(steps, batches)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def timing(call: Callable, seconds: list[float]) -> Callable:
    def timed(*arguments: Any, **keys: Any) -> Any:
        start = time.process_time()
        result = call(*arguments, **keys)
        seconds.append(time.process_time() - start)
        return result

    return timed


def kinds(steps: Any, batches: list) -> dict[str, float]:
    """Share of the operators' own CPU time by kind, the optimiser's by itself."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        whole(steps, batches)
    events = profiler.key_averages()
    adam = sum(event.cpu_time_total for event in events if event.key.startswith("Optimizer.step"))
    total = sum(event.self_cpu_time_total for event in events)
    found = dict.fromkeys(KINDS, 0.0)
    for event in events:
        for name, pattern in KINDS.items():
            if re.fullmatch(pattern, event.key):
                found[name] += event.self_cpu_time_total / total
                break
    found["Adam"] = adam / total
    found["everything else, mostly sums and products by element"] = 1 - sum(found.values())
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def variants(built: Any, batches: list) -> dict[str, float]:
    """CPU time of whole steps with another optimiser loop, to that of the plain ones, in turn; medians."""
    steps = built.trainer.steps
    parameters = [p for p in built.model.parameters() if p.requires_grad]
    loops = {
        "plain": steps.optimizer,
        "Adam over lists (foreach)": torch.optim.Adam(parameters, foreach=True),
        "Adam in one kernel (fused)": torch.optim.Adam(parameters, fused=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(5):
        for name, optimizer in loops.items():
            steps.optimizer = optimizer
            seconds[name].append(cpu_seconds(lambda: whole(steps, batches)))
    steps.optimizer = loops["plain"]
    return {
        name: statistics.median(one / plain for one, plain in zip(seconds[name], seconds["plain"], strict=True))
        for name in loops
        if name != "plain"
    }


if __name__ == "__main__":
    main()
