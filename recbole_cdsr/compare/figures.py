"""The figures of a comparison: what the tables say, and where it comes from. Drawn in the style of `plots`."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recbole_cdsr import plots
from recbole_cdsr.compare.drawing import deviation, legend_outside, offset, standard_error, style_of
from recbole_cdsr.compare.records import Finished, asked_for, by_place, by_variant, macro, main_metric, mean_by_row
from recbole_cdsr.compare.tables import title_of
from recbole_cdsr.compare.transfer import Gain
from recbole_cdsr.curves import MOST_RUNS_WITH_MAPS, maps_of, panels_of
from recbole_cdsr.run_folder import HISTORY
from recbole_cdsr.run_records import record_of

WIDTH = 9.0  # inches
# What the interval of a gain says: label, colour, marker.
VERDICTS = {
    "helped": ("helped: the interval is above 0", "#009E73", "^"),
    "hurt": ("hurt (negative transfer): the interval is below 0", "#D55E00", "v"),
    "unclear": ("unclear: the interval holds 0", "#777777", "o"),
}
LENGTHS = (1, 5, 10, 20, 50, 100, 200)  # shortest history of each bin
CURVES = (
    "One run of each model. Losses and gradients are means over the steps of an epoch; a multiplier of 0 switches an "
    "objective off. Models without a second objective have one loss and no weights."
)
MAPS = (
    "Mean attention of validation events of one domain (rows) on events of another (columns). Attention on the own "
    "domain makes the sum of a row 1, and is left out of the colours. A model trained on recommendation alone (none), "
    "if there is one, comes first: the others show what balancing changes."
)


@dataclass(frozen=True)
class Drawn:
    """A figure as files by kind (png, svg); `name` is that of its files."""

    name: str
    title: str
    caption: str
    files: dict[str, bytes]


def figures(runs: list[Finished], gains: list[Gain]) -> list[Drawn]:
    """All figures of one data set for which there are data.

    Args:
        runs: those on all domains, at least one.
        gains: of the data set.

    Raises:
        CDSRError: if matplotlib is missing.
    """
    groups = by_variant(runs)
    metric = main_metric(runs[0])
    drawn = [scores(groups, metric), *transfer(gains, metric), cost(groups, metric), histories(groups, metric)]
    return [*drawn, *training(groups)]


def scores(groups: dict[str, list[Finished]], metric: str) -> Drawn:
    """Every model in every domain, mean and deviation over seeds."""
    found = {variant: by_place(group, metric) for variant, group in groups.items()}
    places = list(next(iter(found.values())))
    ranks = next(iter(groups.values()))[0].ranks
    counts = ranks.by_domain(candidates="domain", **asked_for(metric))
    labels = [f"{plots.printable(name, 24)} ({counts[name]['rows']})" for name in places]

    def compose():
        canvas, axes = _rows(len(places), len(groups))
        for number, (variant, values) in enumerate(found.items()):
            _points(axes, number, len(groups), variant, list(values.values()))
        _finish(axes, labels, f"{title_of(metric)} among the items of the target's domain", len(groups))
        return canvas

    caption = (
        f"Test {title_of(metric)} by domain (number of test events) and their mean, macro. A point is the mean over "
        "seeds, its bar one standard deviation to each side; no bar: one seed."
    )
    return Drawn("scores", f"{title_of(metric)} by domain", caption, plots.rendered(compose))


def transfer(gains: list[Gain], metric: str) -> list[Drawn]:
    """What training on the other domains gives in each domain; nothing where no single-domain run is there."""
    chosen = [gain for gain in gains if gain.metric == metric and gain.candidates == "domain"]
    if not chosen:
        return []
    places = list(dict.fromkeys(gain.domain for gain in chosen if gain.domain))
    places += [None] if any(gain.domain is None for gain in chosen) else []
    variants = list(dict.fromkeys(gain.variant for gain in chosen))

    def compose():
        canvas, axes = _rows(len(places), len(variants))
        axes.axvline(0, color="#777777", linewidth=1, zorder=1)
        for gain in chosen:
            _, colour, marker = VERDICTS[verdict(gain)]
            at = places.index(gain.domain) + offset(variants.index(gain.variant), len(variants))
            ends = [[gain.gain.mean - gain.gain.low], [gain.gain.high - gain.gain.mean]]
            axes.errorbar([gain.gain.mean], [at], xerr=ends, fmt=marker, color=colour, capsize=3, markersize=6)
            if len(variants) > 1:
                name = plots.printable(gain.variant, 26)
                axes.annotate(name, (gain.gain.high, at), (6, 0), textcoords="offset points", va="center", fontsize=8)
        handles = [axes.plot([], [], marker, color=colour, label=text)[0] for text, colour, marker in VERDICTS.values()]
        axes.margins(x=0.25 if len(variants) > 1 else 0.05)
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.4, 1.2), ncols=1, frameon=False)
        _finish(axes, [place or "macro" for place in places], f"gain of {title_of(metric)} by training on all domains")
        return canvas

    caption = (
        "Trained on all domains minus trained on the domain alone, on the same test events; the bar is the 95 % "
        f"interval of a paired bootstrap over events. {sentence_of(chosen)}"
    )
    return [Drawn("transfer", "Where the other domains help or hurt", caption, plots.rendered(compose))]


def verdict(gain: Gain) -> str:
    """Whether the other domains helped, hurt, or neither is shown."""
    return "helped" if gain.gain.low > 0 else "hurt" if gain.gain.high < 0 else "unclear"


def sentence_of(gains: list[Gain]) -> str:
    """Names every domain that is hurt or helped."""
    parts = []
    for kind, words in (("hurt", "Negative transfer"), ("helped", "Positive transfer")):
        found = [f"{gain.variant} in {gain.domain}" for gain in gains if gain.domain and verdict(gain) == kind]
        parts.append(f"{words}: {', '.join(found)}." if found else f"{words}: in no domain.")
    return " ".join(parts)


def cost(groups: dict[str, list[Finished]], metric: str) -> Drawn:
    """What training took against what it gave."""

    def compose():
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(WIDTH, 4.5), layout="constrained")
        axes = canvas.subplots()
        for number, (variant, group) in enumerate(groups.items()):
            seconds = [run.result["train_cpu_seconds"] for run in group]
            values = [macro(run, metric) for run in group]
            style = {**style_of(number, variant), "markersize": 8}
            middle = statistics.fmean(seconds), statistics.fmean(values)
            axes.errorbar(*middle, deviation(values), deviation(seconds), capsize=2, linestyle="", **style)
        axes.set(xscale="log", xlabel="CPU seconds of training", ylabel=f"{title_of(metric)}, macro")
        plots.set_log_ticks(axes.xaxis, [run.result["train_cpu_seconds"] for group in groups.values() for run in group])
        legend_outside(axes)
        return canvas

    caption = (
        f"Mean over seeds of CPU seconds until training stopped (log scale) and of test {title_of(metric)} (mean of "
        "domains, among the items of the target's domain); bars: one standard deviation. Up and left is better."
    )
    return Drawn("cost", "Quality against the cost of training", caption, plots.rendered(compose))


def histories(groups: dict[str, list[Finished]], metric: str) -> Drawn:
    """By the length of the history, and by whether the target lies in another domain than the event before."""
    ranks = next(iter(groups.values()))[0].ranks
    edges = [*LENGTHS, np.inf]
    length = ranks.history_length
    parts = [
        (f"{a}+" if b == np.inf else f"{a}-{b - 1:g}", (length >= a) & (length < b))
        for a, b in itertools.pairwise(edges)
    ]
    panels = {
        "by length of the history": parts,
        "by the target's domain": [("as before", ~ranks.switch), ("another one", ranks.switch)],
    }
    panels = {title: [(name, rows) for name, rows in parts if rows.any()] for title, parts in panels.items()}
    values = {variant: mean_by_row(group, "domain", asked_for(metric))[metric] for variant, group in groups.items()}

    def compose():
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(WIDTH + 1, 4.2), layout="constrained")
        places = canvas.subplots(1, 2, sharey=True, width_ratios=[2, 1])
        for axes, (title, parts) in zip(places, panels.items(), strict=True):
            for number, (variant, of) in enumerate(values.items()):
                at = np.arange(len(parts)) + offset(number, len(values), width=0.35)
                means = [of[rows].mean() for _, rows in parts]
                errors = [standard_error(of[rows]) for _, rows in parts]
                style = {**style_of(number, variant), "linewidth": 1, "capsize": 2}
                axes.errorbar(at, means, errors, **style)
            axes.set_xticks(range(len(parts)), [f"{name}\n({int(rows.sum())})" for name, rows in parts])
            axes.set(title=title, ylabel=f"{title_of(metric)}, events" if axes.get_subplotspec().is_first_col() else "")
        legend_outside(axes)
        return canvas

    caption = (
        f"Test {title_of(metric)} of events (number in brackets) among the items of their domain, mean over seeds; "
        "bars: one standard error over events. Left: events before the target. Right: whether the target lies in the "
        "domain of the event before it."
    )
    return Drawn("histories", "By history and by switch of domain", caption, plots.rendered(compose))


def training(groups: dict[str, list[Finished]]) -> list[Drawn]:
    """Curves of the first run of each model, and attention between domains before and after."""
    kept = [(variant, group) for variant, group in groups.items() if (group[0].folder / HISTORY).is_file()]
    chosen = kept[: len(plots.PALETTE)]
    records = [replace(record_of(group[0].folder), name=variant) for variant, group in chosen]
    seeds = sorted({group[0].seed for _, group in chosen})
    rest = f" The first {len(chosen)} models only." if len(chosen) < len(kept) else ""
    drawn, subtitle = [], f"first seed of each model ({', '.join(map(str, seeds))}); dotted: the epoch that was chosen"
    # A line for each model and domain is too much to read; the table has them.
    panels = [panel for panel in panels_of(records) if len(panel.lines) <= 3 * len(records) or len(records) == 1]
    if panels:
        marked = [record.best_epoch for record in records]
        names = [record.name for record in records]
        files = plots.draw(plots.Figure("Training", subtitle, names, marked, panels))
        drawn.append(Drawn("training", "Losses, weights and gradients over training", f"{CURVES}{rest}", files))
    # The bare backbone, if there is one, shows attention before; the others after.
    records.sort(key=lambda record: record.settings.get("objective_weighting") != "none")
    maps = {record.name: maps_of(record) for record in records if record.transfer}
    maps = dict(list(maps.items())[:MOST_RUNS_WITH_MAPS])
    if maps:
        files = plots.draw(plots.Figure("Attention between domains", "at epochs of training", list(maps), [], [], maps))
        drawn.append(Drawn("attention", "Attention between domains, before and after training", MAPS, files))
    return drawn


def _rows(places: int, variants: int):
    """A canvas with a horizontal band for each place."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH, 1.4 + places * max(0.4, 0.2 * variants + 0.1)), layout="constrained")
    return canvas, canvas.subplots()


def _points(axes: Any, number: int, count: int, variant: str, values: Sequence[Sequence[float]]) -> None:
    at = np.arange(len(values)) + offset(number, count)
    means, bars = [statistics.fmean(one) for one in values], [deviation(one) for one in values]
    axes.errorbar(means, at, xerr=bars, linestyle="", capsize=2, **style_of(number, variant))


def _finish(axes: Any, labels: list[str], unit: str, variants: int = 0) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(False, axis="y")
    for edge in range(1, len(labels)):
        axes.axhline(edge - 0.5, color="#E5E5E5", linewidth=0.8, zorder=0)
    axes.set_xlabel(unit)
    if variants:
        legend_outside(axes)
