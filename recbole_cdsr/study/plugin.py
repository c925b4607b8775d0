"""What AutoCDSR and AutoCDSR+ add to a backbone: gain by domain, time of an epoch, time to the best one (Table 4)."""

from __future__ import annotations

import statistics
from typing import Any

from recbole_cdsr import plots
from recbole_cdsr.compare.drawing import legend_outside, offset
from recbole_cdsr.compare.records import seconds_per_epoch
from recbole_cdsr.compare.tables import title_of
from recbole_cdsr.study import STUDIES
from recbole_cdsr.study.planned import Answer, Groups, Study, difference, told

BACKBONES = ("sasrec", "bert4rec")
PLUGINS = ("AutoCDSR", "AutoCDSR+")


def analyse(groups: Groups, metric: str) -> Answer:
    names = next(iter(groups.values()))[0].ranks.domain_names[1:]
    sentences, rows = [], []
    for backbone in BACKBONES:
        for plugin in PLUGINS:
            name, bare = f"{plugin} on {backbone}", f"bare {backbone}"
            gain = difference(groups, name, bare, metric)
            times = [ratio(groups[name], groups[bare], seconds) for seconds in (seconds_per_epoch, to_best)]
            sentences.append(
                told(f"{name}, gain over {bare}, macro", gain)
                + f" An epoch takes {times[0]:.2f} times as long, training to the best epoch {times[1]:.2f} times."
            )
            rows += [
                (name, place, difference(groups, name, bare, metric, number)) for number, place in enumerate(names, 1)
            ]
            rows.append((name, "macro", gain))
    return Answer(sentences, lambda: plots.rendered(lambda: _compose(rows, [*names, "macro"], metric)))


def to_best(result: dict[str, Any]) -> float:
    """CPU seconds of training up to the epoch that was chosen."""
    return seconds_per_epoch(result) * (result["best_epoch"] + 1)


def ratio(group: list, other: list, seconds: Any) -> float:
    """Mean CPU seconds of one variant to those of the other."""
    return statistics.fmean(seconds(run.result) for run in group) / statistics.fmean(
        seconds(run.result) for run in other
    )


def _compose(rows: list[tuple], places: list[str], metric: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    variants = list(dict.fromkeys(name for name, *_ in rows))
    canvas = Canvas(figsize=(9, 1.2 + 0.8 * len(places)), layout="constrained")
    axes = canvas.subplots()
    axes.axvline(0, color="#777777", linewidth=1, zorder=1)
    for number, variant in enumerate(variants):
        own = [(places.index(place), interval) for name, place, interval in rows if name == variant]
        at = [place + offset(number, len(variants)) for place, _ in own]
        means = [interval.mean for _, interval in own]
        ends = [[i.mean - i.low for _, i in own], [i.high - i.mean for _, i in own]]
        style = {"color": plots.PALETTE[number], "fmt": plots.MARKERS[number], "capsize": 2}
        axes.errorbar(means, at, xerr=ends, label=variant, **style)
    axes.set_yticks(range(len(places)), [plots.printable(place, 24) for place in places])
    axes.set(ylim=(len(places) - 0.5, -0.5), xlabel=f"gain of {title_of(metric)} over the bare backbone, 95 % interval")
    legend_outside(axes)
    return canvas


STUDY = Study(
    "plugin",
    STUDIES["plugin"],
    {
        f"{how} {backbone}": {"model": model, "backbone": backbone, **keys}
        for backbone in BACKBONES
        for how, model, keys in (
            ("bare", "AutoCDSR", {"objective_weighting": "none"}),
            ("AutoCDSR on", "AutoCDSR", {}),
            ("AutoCDSR+ on", "AutoCDSR+", {}),
        )
    },
    analyse,
)
main = STUDY.main
