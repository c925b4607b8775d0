"""How many bottleneck tokens does AutoCDSR+ need, how should they be merged, and how steady are they over seeds?"""

from __future__ import annotations

import statistics

from recbole_cdsr.compare.figures import scores
from recbole_cdsr.compare.records import macro, seconds_per_epoch
from recbole_cdsr.study import STUDIES
from recbole_cdsr.study.planned import Answer, Groups, Study, chosen_by_validation, difference, told
from recbole_cdsr.study.plugin import ratio

DEFAULT = "4 tokens, mean"
COUNTS = {f"{count} tokens, mean": {"n_bottleneck_tokens": count} for count in (1, 2, 4, 8)}
MERGES = {
    f"4 tokens, {merge}": {"n_bottleneck_tokens": 4, "bottleneck_merge": merge}
    for merge in ("sum", "attention", "gate")
}


def analyse(groups: Groups, metric: str) -> Answer:
    chosen = chosen_by_validation(groups, groups)
    sentences = [f"Validation chooses {chosen}."]
    if chosen != DEFAULT:
        sentences.append(told(f"{chosen} minus {DEFAULT}, macro", difference(groups, chosen, DEFAULT, metric)))
    seeds = len(groups[DEFAULT])
    if seeds > 1:
        spreads = {name: statistics.stdev(macro(run, metric) for run in group) for name, group in groups.items()}
        low, high = min(spreads, key=spreads.__getitem__), max(spreads, key=spreads.__getitem__)
        sentences.append(
            f"Over {seeds} seeds the deviation goes from {spreads[low]:.4f} ({low}) to {spreads[high]:.4f} ({high})."
        )
    fewest, *_, most = COUNTS
    times = [ratio(groups[name], groups[DEFAULT], seconds_per_epoch) for name in (fewest, most)]
    sentences.append(f"An epoch with 1 and 8 tokens takes {times[0]:.2f} and {times[1]:.2f} times as long as with 4.")
    return Answer(sentences, lambda: scores(groups, metric).files)


STUDY = Study(
    "tokens",
    STUDIES["tokens"],
    {name: {"model": "AutoCDSR+", **keys} for name, keys in {**COUNTS, **MERGES}.items()},
    analyse,
)
main = STUDY.main
