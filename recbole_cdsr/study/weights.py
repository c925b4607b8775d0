"""Is any fixed weight of attention across domains best everywhere, and do dynamic strategies find it? (Fig. 4)"""

from __future__ import annotations

import statistics
from typing import Any

from recbole_cdsr import plots
from recbole_cdsr.compare.drawing import deviation
from recbole_cdsr.compare.records import by_place
from recbole_cdsr.compare.tables import title_of
from recbole_cdsr.study import STUDIES
from recbole_cdsr.study.planned import Answer, Groups, Study, chosen_by_validation, difference, told

GRID = (0.0, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
FIXED = {f"fixed {weight:g}": weight for weight in GRID}
DYNAMIC = ("preference", "mgda")


def analyse(groups: Groups, metric: str) -> Answer:
    fixed = [name for name in FIXED if name in groups]
    dynamic = [name for name in DYNAMIC if name in groups]
    chosen = chosen_by_validation(groups, fixed)
    ranks = groups[fixed[0]][0].ranks
    values = {name: by_place(groups[name], metric) for name in (*fixed, *dynamic)}
    places = list(values[fixed[0]])
    best = {
        place: max(fixed, key=lambda name: statistics.fmean(values[name][place]))
        for place in places
        if place != "macro"
    }
    where = ", ".join(f"{place} {FIXED[name]:g}" for place, name in best.items())
    sentences = [f"Validation chooses the fixed weight {FIXED[chosen]:g}."]
    if len(set(best.values())) > 1:
        sentences.append(f"On test events the best weight differs by domain: {where}.")
    else:
        sentences.append(f"On test events one weight is best in every domain: {FIXED[best[places[0]]]:g}.")
    # How much of that is noise: in each domain, its best weight against the one that validation chose.
    gains = [
        difference(groups, name, chosen, metric, ranks.domain_names.index(place))
        for place, name in best.items()
        if name != chosen
    ]
    clear = sum(gain.low > 0 for gain in gains)
    sentences.append(f"In {clear} of {len(best)} domains its best weight beats the chosen one beyond noise.")
    sentences += [
        told(f"{name} minus the chosen fixed weight, macro", difference(groups, name, chosen, metric))
        for name in dynamic
    ]
    return Answer(sentences, lambda: plots.rendered(lambda: _compose(values, places, fixed, dynamic, metric)))


def _compose(values: dict, places: list[str], fixed: list[str], dynamic: list[str], metric: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    columns = min(3, len(places))
    rows = -(-len(places) // columns)
    canvas = Canvas(figsize=(12, 0.8 + 3 * rows), layout="constrained")
    panels = canvas.subplots(rows, columns, squeeze=False).flatten()
    at = range(len(fixed))
    for axes, place in zip(panels, places, strict=False):
        means = [statistics.fmean(values[name][place]) for name in fixed]
        bars = [deviation(values[name][place]) for name in fixed]
        axes.errorbar(at, means, bars, marker="o", color=plots.PALETTE[0], capsize=2, label="fixed weight")
        for number, name in enumerate(dynamic, start=1):
            style = {"color": plots.PALETTE[number], "linestyle": plots.DASHES[number]}
            axes.axhline(statistics.fmean(values[name][place]), label=name, **style)
        axes.set(title=plots.printable(place, 30), xlabel="weight", ylabel=title_of(metric))
        axes.set_xticks(list(at), [f"{FIXED[name]:g}" for name in fixed])
    for axes in panels[len(places) :]:
        axes.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return canvas


STUDY = Study(
    "weights",
    STUDIES["weights"],
    {
        **{
            name: {"model": "AutoCDSR", "objective_weighting": "fixed", "cross_domain_weight": w}
            for name, w in FIXED.items()
        },
        **{name: {"model": "AutoCDSR", "objective_weighting": name} for name in DYNAMIC},
    },
    analyse,
)
main = STUDY.main
