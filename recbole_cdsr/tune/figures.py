"""Figures of a search: parallel coordinates, and how much each key alone says about the score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from recbole_cdsr import plots
from recbole_cdsr.tune.outcome import Trial

Drawn = tuple[bytes, str, str]  # svg, title, caption


def parallel(trials: list[Trial], keys: list[str]) -> Drawn:
    """A line for each trial over all keys, coloured by its score."""
    axes_of = [(key, *_places([trial.point.get(key) for trial in trials])) for key in keys]
    scores = np.array([trial.score for trial in trials])
    axes_of.append(("validation score", *_places(scores.tolist())))

    def compose():
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(max(6.0, 1.7 * len(axes_of) + 1), 4.5), layout="constrained")
        axes = canvas.subplots()
        colours = ScalarMappable(Normalize(scores.min(), scores.max() or 1.0), "cividis")
        heights = np.array([places for _, places, _ in axes_of])
        for number in np.argsort(scores):  # the best on top
            known = ~np.isnan(heights[:, number])
            best = number == int(scores.argmax())
            width, colour = (3, plots.PALETTE[1]) if best else (1.2, colours.to_rgba(scores[number]))
            axes.plot(
                np.flatnonzero(known), heights[known, number], color=colour, linewidth=width, marker="o", markersize=3
            )
        for place, (_, _, ticks) in enumerate(axes_of):
            axes.axvline(place, color="#555555", linewidth=0.8, zorder=0)
            for height, text in ticks:
                axes.annotate(
                    plots.printable(text, 14),
                    (place, height),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        axes.set_xticks(range(len(axes_of)), [plots.printable(name, 20) for name, *_ in axes_of], rotation=20)
        axes.set(yticks=[], xlim=(-0.3, len(axes_of) - 0.4))
        axes.grid(False)
        canvas.colorbar(colours, ax=axes, label="validation score")
        return canvas

    caption = (
        "Every line is a trial; bright is a high validation score, the thick line the best trial. Ranges over more "
        "than a factor of 20 are on a log scale. A key that does not count in a trial has no point."
    )
    return plots.rendered(compose)["svg"], "Trials over the search space", caption


def _places(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1 (NaN where there is no value), and the ticks of the axis."""
    known = [value for value in values if value is not None]
    if not _is_numeric(known):
        names = sorted({str(value) for value in known})
        height = {name: (n + 0.5) / len(names) for n, name in enumerate(names)}
        return [math.nan if v is None else height[str(v)] for v in values], [(h, name) for name, h in height.items()]
    low, high = min(known), max(known)
    if low == high:
        return [math.nan if v is None else 0.5 for v in values], [(0.5, f"{low:.4g}")]
    scale = math.log if low > 0 and high / low > 20 else float
    span = scale(high) - scale(low)
    heights = [math.nan if v is None else (scale(v) - scale(low)) / span for v in values]
    ticks = sorted(set(known)) if len(set(known)) <= 4 else [low, high]
    return heights, [((scale(v) - scale(low)) / span, f"{v:.4g}") for v in ticks]


def _is_numeric(values: list[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def shares(trials: list[Trial], keys: list[str]) -> dict[str, float]:
    """Share of the variance of the scores' ranks that each key alone explains, from 0 to 1, largest first.

    The square of Spearman's correlation for numbers; the correlation ratio over groups for other values. Keys with one
    value only are left out. It sees no interaction of keys, and in few trials it is high by chance.
    """
    from scipy import stats

    found = {}
    for key in keys:
        pairs = [(trial.point[key], trial.score) for trial in trials if key in trial.point]
        values, scores = [value for value, _ in pairs], [score for _, score in pairs]
        if len({str(value) for value in values}) < 2 or len(set(scores)) < 2:
            continue
        if _is_numeric(values):
            found[key] = float(stats.spearmanr(values, scores).statistic ** 2)
            continue
        ranks = stats.rankdata(scores)
        names = np.array([str(value) for value in values])
        within = sum(ranks[names == name].var() * (names == name).sum() for name in set(names))
        found[key] = float(1 - within / (ranks.var() * len(ranks)))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def importance(trials: list[Trial], keys: list[str]) -> Drawn | None:
    """Bars of `shares`; None if no key took two values."""
    found = shares(trials, keys)
    if not found:
        return None

    def compose():
        from matplotlib.figure import Figure as Canvas
        from matplotlib.ticker import PercentFormatter

        canvas = Canvas(figsize=(7, 1.2 + 0.35 * len(found)), layout="constrained")
        axes = canvas.subplots()
        axes.barh(range(len(found)), list(found.values()), color=plots.PALETTE[0], height=0.6)
        axes.set_yticks(range(len(found)), [plots.printable(key, 30) for key in found])
        axes.set(xlim=(0, 1), ylim=(len(found) - 0.5, -0.5), xlabel="share of the scores' rank variance")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(False, axis="y")
        return canvas

    caption = (
        f"How much of the ranks of the scores each key explains alone: Spearman's correlation squared, for names the "
        f"correlation ratio; {len(trials)} trials. It sees no interaction; early stopping favours what learns fast."
    )
    return plots.rendered(compose)["svg"], "Importance of keys", caption
