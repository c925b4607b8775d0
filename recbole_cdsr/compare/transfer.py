"""What a model gains in a domain by training on all domains instead of that domain alone.

Paired on the same test events, as mean over seeds, with a bootstrap interval over events. An event without an earlier
event of its domain has no history in the single-domain run; it is left out on both sides, and the number of events says
so. The models are taken as trained: the interval does not hold the spread between seeds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from recbole_cdsr.compare.records import Finished, by_variant, mean_by_row, require_same_events
from recbole_cdsr.compare.significance import Interval, bootstrap
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.ranks import RankTable


class Gain(NamedTuple):
    """All domains minus one domain; `domain` is None for the mean over domains."""

    variant: str
    domain: str | None
    metric: str
    candidates: str
    seeds: list[int]
    events: int
    of_events: int
    all_domains: float
    one_domain: float
    gain: Interval


def gains(runs: list[Finished], candidates: str, asked: dict[str, Any]) -> list[Gain]:
    """The gains of every variant that was trained both on all domains and on single ones, with seeds of both kinds.

    Args:
        runs: of one data set.
        asked: metrics and topk.

    Raises:
        CDSRError: if a single-domain run ranked events that the others did not.
    """
    found = []
    for variant, group in by_variant(runs).items():
        whole = [run for run in group if not run.only]
        pairs: dict[str, tuple] = {}
        for domain in dict.fromkeys(run.only[0] for run in group if len(run.only) == 1):
            single = [run for run in group if run.only == (domain,)]
            seeds = [run.seed for run in single if run.seed in {run.seed for run in whole}]
            if seeds:
                chosen = [[run for run in kind if run.seed in seeds] for kind in (whole, single)]
                pairs[domain] = (seeds, *_paired(*chosen, domain, candidates, asked))
        found += _of_variant(variant, pairs, candidates)
    return found


def _of_variant(variant: str, pairs: dict[str, tuple], candidates: str) -> list[Gain]:
    """A gain for each domain and metric, and for several domains their mean."""
    found = []
    for metric in next(iter(pairs.values()))[1] if pairs else []:
        sides = {domain: (one[metric], two[metric]) for domain, (_, one, two, _) in pairs.items() if len(one[metric])}
        for domain, (one, two) in sides.items():
            seeds, *_, of_events = pairs[domain]
            means = (float(one.mean()), float(two.mean()))
            counts = (len(one), of_events)
            found.append(Gain(variant, domain, metric, candidates, seeds, *counts, *means, bootstrap([one - two])))
        if len(sides) > 1:
            seeds = sorted(set.intersection(*(set(pairs[domain][0]) for domain in sides)))
            means = (float(np.mean([side[n].mean() for side in sides.values()])) for n in range(2))
            counts = (sum(len(one) for one, _ in sides.values()), sum(pairs[domain][-1] for domain in sides))
            mean = bootstrap([one - two for one, two in sides.values()])
            found.append(Gain(variant, None, metric, candidates, seeds, *counts, *means, mean))
    return found


def _paired(
    whole: list[Finished], single: list[Finished], domain: str, candidates: str, asked: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Metric -> values of the events that both kinds of runs ranked, for both, and how many events the domain has."""
    require_same_events(whole)
    require_same_events(single)
    there, rows = (places_of(runs[0].ranks, domain) for runs in (whole, single))
    if lost := [event for event in rows if event not in there]:
        what = f"{single[0].folder} ranked an event of the user {lost[0][0]} that {whole[0].folder} did not"
        raise CDSRError(f"{what}; give both runs the same data and eval_args")
    places = np.array([there[event] for event in rows], dtype=np.int64), np.array(list(rows.values()), dtype=np.int64)
    for column in ("item", f"candidates_{candidates}"):
        columns = [getattr(runs[0].ranks, column)[p] for runs, p in zip((whole, single), places, strict=True)]
        if not np.array_equal(*columns):
            what = f"{single[0].folder} and {whole[0].folder} differ in the column '{column}' of the same events"
            raise CDSRError(f"{what}; give both runs the same data and eval_args")
    one, two = mean_by_row(whole, candidates, asked), mean_by_row(single, candidates, asked)
    one, two = ({m: v[p] for m, v in values.items()} for values, p in zip((one, two), places, strict=True))
    return one, two, len(there)


def places_of(ranks: RankTable, domain: str) -> dict[tuple[str, int], int]:
    """(user, number of the user's earlier events in the domain) -> row; the same in both kinds of runs."""
    rows = np.flatnonzero(ranks.domain == ranks.domain_names.index(domain))
    events = zip(ranks.user[rows].tolist(), ranks.domain_history_length[rows].tolist(), strict=True)
    return dict(zip(events, rows.tolist(), strict=True))
