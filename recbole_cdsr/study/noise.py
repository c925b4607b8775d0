"""What do wrong and hidden domain labels cost? Results go by the right ones.

Models see a share of the items in a wrong domain (flipped), or in one for unknown (hidden).
"""

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
# None is told the domain of the item to predict: a wrong one would tell which item it is.
MODELS = {
    "AutoCDSR": {"model": "AutoCDSR"},
    "AutoCDSR+": {"model": "AutoCDSR+"},
    "TAPE-DDSR-HSTU": {"model": "TAPE-DDSR-HSTU", "tape": "causal", "ddsr": "layer"},
}
KEYS = {"wrong": "label_noise", "hidden": "label_hidden"}


def named(model: str, share: float, how: str = "wrong") -> str:
    return f"{model}, {100 * share:g} % {how}" if share else f"{model}, right labels"


def analyse(groups: Groups, metric: str) -> Answer:
    last = SHARES[-1]
    sentences = [
        told(
            f"{model} with {100 * last:g} % {how} labels minus right ones, macro",
            difference(groups, named(model, last, how), named(model, 0), metric),
        )
        for model in MODELS
        for how in KEYS
    ]
    values = {
        (model, how): [[macro(run, metric) for run in groups[named(model, share, how)]] for share in SHARES]
        for model in MODELS
        for how in KEYS
    }
    return Answer(sentences, lambda: plots.rendered(lambda: _compose(values, metric)))


def _compose(values: dict[tuple[str, str], list[list[float]]], metric: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 4.2), layout="constrained")
    panels = canvas.subplots(1, len(KEYS), sharey=True)
    at = [100 * share for share in SHARES]
    for axes, how in zip(panels, KEYS, strict=True):
        for number, model in enumerate(MODELS):
            lists = values[model, how]
            style = {"color": plots.PALETTE[number], "marker": plots.MARKERS[number], "capsize": 2}
            axes.errorbar(at, list(map(statistics.fmean, lists)), list(map(deviation, lists)), label=model, **style)
        axes.set(title=f"labels {how}", xlabel="share of the items, %")
    panels[0].set_ylabel(f"{title_of(metric)}, macro")
    panels[0].legend(frameon=False)
    return canvas


STUDY = Study(
    "noise",
    STUDIES["noise"],
    {
        named(model, share, how): {**own, **({KEYS[how]: share} if share else {})}
        for model, own in MODELS.items()
        for how in KEYS
        for share in SHARES
    },
    analyse,
)
main = STUDY.main
