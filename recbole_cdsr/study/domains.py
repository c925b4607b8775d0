"""How do models, balancing and its solver do with 2 to 50 domains? The paper stops at five.

`ml-100k`: the same events with films grouped by genre into 2, 5 (as shipped), 10 and 18 domains. `planted`: generated
histories with 2 to 50 domains and as many items in all, in which the item after a switch follows from the one before.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from recbole_cdsr import plots, quick_start
from recbole_cdsr.compare.drawing import deviation, style_of
from recbole_cdsr.compare.records import Finished, macro
from recbole_cdsr.compare.tables import title_of
from recbole_cdsr.data.sources import build, recipe_of_ml100k, shipped_groups, write_ml100k
from recbole_cdsr.data.synthetic import planted_rule, write_atomic
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives.min_norm import min_norm_steps
from recbole_cdsr.run_records import record_of
from recbole_cdsr.study import STUDIES
from recbole_cdsr.study.on_data import DataStudy, number_of
from recbole_cdsr.study.planned import Answer, Groups, difference, told

COUNTS = {"ml-100k": (2, 5, 10, 18), "planted": (2, 5, 10, 20, 50)}
USERS, ITEMS = 1000, 400
BARE, BALANCED, SEPARATE, TOKENS = "bare", "AutoCDSR", "AutoCDSR, an objective per domain (mgda)", "AutoCDSR+"
# Genres in the order in which a film's group is looked for.
LIGHT = ["Animation", "Children's", "Musical", "Fantasy", "Comedy", "Romance"]
DARK = ["Action", "Adventure", "Crime", "Documentary", "Drama", "Film-Noir", "Horror", "Mystery", "Sci-Fi", "Thriller"]
GROUPS = {
    2: {"light": LIGHT, "dark": [*DARK, "War", "Western", "unknown"]},
    10: {
        "children": ["Animation", "Children's"],
        "musical": ["Musical", "Fantasy"],
        "horror": ["Horror"],
        "crime": ["Crime", "Film-Noir"],
        "thriller": ["Thriller", "Mystery"],
        "future": ["Sci-Fi"],
        "war": ["War", "Western"],
        "action": ["Action", "Adventure"],
        "comedy": ["Comedy", "Romance"],
        "drama": ["Drama", "Documentary", "unknown"],
    },
    18: {
        genre.lower(): [genre, *(["unknown"] if genre == "Drama" else [])]
        for genre in (
            *("Fantasy", "Film-Noir", "Western", "Documentary", "Animation", "Mystery", "Musical", "Horror", "War"),
            *("Crime", "Sci-Fi", "Children's", "Adventure", "Thriller", "Action", "Romance", "Comedy", "Drama"),
        )
    },
}


class Solver(NamedTuple):
    """What the minimum-norm solver takes of one pass over the training batches."""

    share: float  # of the CPU time of a step
    milliseconds: float
    steps: float  # mean number of steps of its active set


def forms(dataset: str) -> list[str]:
    if dataset not in COUNTS:
        raise CDSRError(
            f"the study domains makes its own data and takes --dataset {' or '.join(COUNTS)}, not {dataset}"
        )
    return [f"{dataset}-domains-{count}" for count in COUNTS[dataset]]


def build_form(dataset: str, keys: dict[str, Any], form: str, folder: Path) -> None:
    count = number_of(form)
    if dataset == "ml-100k":
        groups = GROUPS.get(count) or shipped_groups()
        build(form, folder / form, recipe_of_ml100k(groups), lambda fresh: write_ml100k(fresh, form, groups))
    else:
        recipe = {"source": f"planted_rule({USERS}, {ITEMS // count}, {count}, weak_markov=0.5)"}
        events = planted_rule(USERS, ITEMS // count, count, weak_markov=0.5)
        build(form, folder / form, recipe, lambda fresh: write_atomic(fresh, form, events))


def analyse(found: dict[int, Groups], metric: str) -> Answer:
    sentences, solvers = [], {}
    for count, groups in found.items():
        gains = [
            told(f"{name} minus {BARE} at {count} domains, macro", difference(groups, name, BARE, metric))
            for name in (BALANCED, SEPARATE, TOKENS)
        ]
        solvers[count] = solver = solver_of(groups[SEPARATE][0])
        attention = statistics.fmean(attention_of(run) for run in groups[BALANCED])
        sentences += [
            *gains,
            f"There a_cd is {attention:.2f} at the chosen epoch of {BALANCED}; the solver for {count + 1} objectives "
            f"takes {solver.steps:.1f} steps and {solver.milliseconds:.2f} ms, {100 * solver.share:.1f} % of a step.",
        ]
    return Answer(sentences, lambda: plots.rendered(lambda: _compose(found, solvers, metric)))


def attention_of(run: Finished) -> float:
    """a_cd in training at the chosen epoch."""
    return record_of(run.folder).history["loss_cross_domain"][run.result["best_epoch"]]


def solver_of(run: Finished) -> Solver:
    """Measured on one pass over the training batches, from the chosen epoch on; what is trained is thrown away."""
    built = quick_start.load(run.folder)
    steps, loader = built.trainer.steps, built.train
    weighting = steps.balancer.weighting
    watched = _Watched(weighting)
    steps.balancer.weighting = watched
    start = time.process_time()
    for _ in steps.run(loader, len(loader), 0):
        pass
    total = time.process_time() - start - watched.aside
    asked = max(len(watched.iterations), 1)
    return Solver(watched.seconds / total, 1000 * watched.seconds / asked, statistics.fmean(watched.iterations or [0]))


class _Watched:
    """A strategy whose calls are timed, and whose problems are counted out."""

    def __init__(self, weighting: Any) -> None:
        self.weighting, self.needs_gradients = weighting, weighting.needs_gradients
        self.seconds, self.aside, self.iterations = 0.0, 0.0, []

    def start_epoch(self) -> None:
        self.weighting.start_epoch()

    def __call__(self, gramian: Tensor | None, losses: Tensor, names: tuple[str, ...]) -> Any:
        start = time.process_time()
        outcome = self.weighting(gramian, losses, names)
        end = time.process_time()
        scaled = (gramian / losses[:, None] / losses[None, :])[losses != 0][:, losses != 0]
        self.iterations.append(min_norm_steps(scaled.double().cpu().numpy()))
        self.seconds, self.aside = self.seconds + end - start, self.aside + time.process_time() - end
        return outcome


def _compose(found: dict[int, Groups], solvers: dict[int, Solver], metric: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(13, 4.2), layout="constrained")
    quality, attention, solver = canvas.subplots(1, 3)
    at = range(len(found))
    for number, name in enumerate((BARE, BALANCED, SEPARATE, TOKENS)):
        lists = [[macro(run, metric) for run in groups[name]] for groups in found.values()]
        style = {**style_of(number, name), "capsize": 2}
        quality.errorbar(at, list(map(statistics.fmean, lists)), list(map(deviation, lists)), **style)
    lists = [[attention_of(run) for run in groups[BALANCED]] for groups in found.values()]
    attention.errorbar(at, list(map(statistics.fmean, lists)), list(map(deviation, lists)), **style_of(1, BALANCED))
    solver.plot(at, [100 * one.share for one in solvers.values()], **style_of(2, SEPARATE))
    for axes, unit in (
        (quality, f"{title_of(metric)}, macro"),
        (attention, "a_cd: attention on other domains"),
        (solver, "share of a step spent on weights, %"),
    ):
        axes.set_xticks(list(at), [str(count) for count in found])
        axes.set(xlabel="domains", ylabel=unit)
    canvas.legend(*quality.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return canvas


STUDY = DataStudy(
    name="domains",
    question=STUDIES["domains"],
    variants={
        BARE: {"model": "AutoCDSR", "objective_weighting": "none"},
        BALANCED: {"model": "AutoCDSR"},
        SEPARATE: {
            "model": "AutoCDSR",
            "objectives": ["rec_per_domain", "cross_domain"],
            "objective_weighting": "mgda",
            "gradient_normalisation": "loss",
        },
        TOKENS: {"model": "AutoCDSR+"},
    },
    analyse=analyse,
    forms=forms,
    build=build_form,
)
main = STUDY.main
