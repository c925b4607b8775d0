"""What do wrong domain labels cost? Models see a share of the items in a wrong domain; results go by the right ones."""

from __future__ import annotations

import statistics
from typing import Any

from recbole_cdsr import plots
from recbole_cdsr.compare.drawing import deviation
from recbole_cdsr.compare.records import macro
from recbole_cdsr.compare.tables import title_of
from recbole_cdsr.study import STUDIES
from recbole_cdsr.study.planned import Answer, Groups, Study, difference, told

SHARES = (0.0, 0.05, 0.1, 0.2, 0.5)
MODELS = ("AutoCDSR", "AutoCDSR+", "TAPE-DDSR-HSTU")


def named(model: str, share: float) -> str:
    return f"{model}, {100 * share:g} %"


def analyse(groups: Groups, metric: str) -> Answer:
    last = SHARES[-1]
    sentences = [
        told(
            f"{model} with {100 * last:g} % wrong labels minus right ones, macro",
            difference(groups, named(model, last), named(model, 0), metric),
        )
        for model in MODELS
    ]
    values = {
        model: [[macro(run, metric) for run in groups[named(model, share)]] for share in SHARES] for model in MODELS
    }
    return Answer(sentences, lambda: plots.rendered(lambda: _compose(values, metric)))


def _compose(values: dict[str, list[list[float]]], metric: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 4.2), layout="constrained")
    axes = canvas.subplots()
    for number, (model, lists) in enumerate(values.items()):
        bars = [deviation(one) for one in lists]
        style = {"color": plots.PALETTE[number], "marker": plots.MARKERS[number], "capsize": 2}
        axes.errorbar(
            [100 * share for share in SHARES], [statistics.fmean(one) for one in lists], bars, label=model, **style
        )
    axes.set(xlabel="items with a wrong domain, %", ylabel=f"{title_of(metric)}, macro")
    axes.legend(frameon=False)
    return canvas


STUDY = Study(
    "noise",
    STUDIES["noise"],
    {named(model, share): {"model": model, "label_noise": share} for model in MODELS for share in SHARES},
    analyse,
)
main = STUDY.main
