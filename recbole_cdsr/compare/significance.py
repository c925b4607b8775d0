"""Whether two models differ on the same events: paired bootstrap and Wilcoxon's test, with Holm's correction.

Values are metrics of single events, averaged over seeds, so the tests speak about events and take the trained models as
they are. Tests and resampling are scipy's. Holm's correction (Scandinavian Journal of Statistics 6, 1979), which scipy
lacks, holds the chance of any wrong mark in a family of tests below the level, whatever the tests' dependence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05
RESAMPLES = 9999
# Of the index arrays that a resampling holds at once, which would else be rows x RESAMPLES.
MOST_DRAWN = 2**24
SEED = 0


class Interval(NamedTuple):
    """A mean difference with its bootstrap interval and two-sided bootstrap p-value."""

    mean: float
    low: float
    high: float
    p: float


def bootstrap(differences: Sequence[np.ndarray], confidence: float = 0.95) -> Interval:
    """The mean over strata of mean differences, with its percentile interval.

    Rows are drawn anew within each stratum. The p-value is twice the smaller share of resamples on one side of zero,
    with the observed sample counted in (Davison and Hinkley 1997, section 4.2).

    Args:
        differences: for each stratum (one, or one per domain for a macro mean) the paired differences [rows > 0].
    """
    strata = [np.asarray(values, dtype=np.float64) for values in differences]
    mean = float(np.mean([values.mean() for values in strata]))
    if not any(values.any() for values in strata):
        return Interval(0.0, 0.0, 0.0, 1.0)
    rng, drawn = np.random.default_rng(SEED), np.zeros(RESAMPLES)
    for values in strata:
        if len(values) == 1:  # nothing to draw; scipy refuses it
            drawn += values[0]
            continue
        batch = max(1, MOST_DRAWN // len(values))
        keys = {"n_resamples": RESAMPLES, "batch": batch, "method": "percentile", "vectorized": True}
        drawn += stats.bootstrap((values,), np.mean, rng=rng, **keys).bootstrap_distribution
    drawn /= len(strata)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    one_side = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Interval(mean, low, high, min(1.0, 2 * (int(one_side) + 1) / (RESAMPLES + 1)))


def wilcoxon(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test.

    Differences of zero are dropped (zero_method "wilcox"): most events are beyond k for both models and say nothing.
    """
    differences = np.asarray(differences, dtype=np.float64)
    # Averages over seeds that differ in the last bit only are ties, which ranks would order by noise.
    moved = np.round(differences, 12)
    moved = moved[moved != 0]
    return float(stats.wilcoxon(moved, zero_method="wilcox").pvalue) if len(moved) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


class Comparison(NamedTuple):
    """The best model of a domain and metric against another one."""

    domain: str
    metric: str
    best: str
    other: str
    difference: Interval
    p_bootstrap: float  # corrected
    p_wilcoxon: float  # corrected

    @property
    def mark(self) -> str:
        """† where one of the two tests finds a difference at LEVEL, ‡ where both do."""
        return ("", "†", "‡")[(self.p_bootstrap < LEVEL) + (self.p_wilcoxon < LEVEL)]


def against_best(values: dict[str, dict[tuple[str, str], np.ndarray]]) -> list[Comparison]:
    """In each domain and metric, the model with the best mean against each other one.

    Holm's correction is over domains x metrics, for each of the other models.

    Args:
        values: model -> (domain, metric) -> values of events [rows], the same events in the same order.
    """
    columns = [column for column in next(iter(values.values()), {}) if len(next(iter(values.values()))[column])]
    best = {column: max(values, key=lambda model: values[model][column].mean()) for column in columns}
    found = []
    for other in values:
        mine = [column for column in columns if best[column] != other]
        pairs = [values[best[column]][column] - values[other][column] for column in mine]
        intervals = [bootstrap([pair]) for pair in pairs]
        corrected = zip(holm([one.p for one in intervals]), holm([wilcoxon(pair) for pair in pairs]), strict=True)
        for column, interval, (p_bootstrap, p_wilcoxon) in zip(mine, intervals, corrected, strict=True):
            found.append(Comparison(*column, best[column], other, interval, p_bootstrap, p_wilcoxon))
    return found
