"""Does attention across domains tell of negative transfer? (AutoCDSR, Fig. 2)

The bare backbone is trained on all domains and on each domain alone. A test event is right if its item stands among the
first ten of its domain. Where only the single domain is right, the other domains have hurt; the paper finds more
attention across domains there (.31 against .18 where both are right, BERT4Rec on KuaiRand). a_cd of an event: the mean
over layers, heads and events of its history of the attention that falls on another domain. An event counts once a seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recbole_cdsr import plots, quick_start
from recbole_cdsr.compare.drawing import legend_outside, offset, standard_error
from recbole_cdsr.compare.records import Finished
from recbole_cdsr.compare.transfer import places_of
from recbole_cdsr.layers.cross_domain import CrossDomainRecord
from recbole_cdsr.study import STUDIES
from recbole_cdsr.study.planned import Answer, Groups, Study

BACKBONES = ("sasrec", "bert4rec")
TOP = 10
GROUPS = ("both right", "only single right", "only all right", "both wrong")


def analyse(groups: Groups, metric: str) -> Answer:
    sentences, shown = [], {}
    for backbone in BACKBONES:
        bare, balanced = f"bare {backbone}", f"AutoCDSR on {backbone}"
        group, shares = observed(groups[bare], groups[balanced])
        shares = dict(zip((bare, balanced), shares, strict=True))
        shown |= {name: [share[group == number] for number in range(len(GROUPS))] for name, share in shares.items()}
        sentences += in_words(bare, balanced, shares, group)
    return Answer(sentences, lambda: plots.rendered(lambda: _compose(shown)))


def observed(bare: list[Finished], balanced: list[Finished]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Number in GROUPS of the events of all seeds, and their a_cd under the bare and the balanced model."""
    group, shares = [], ([], [])
    for whole, other in zip([run for run in bare if not run.only], balanced, strict=True):
        numbers, rows = outcomes(whole, [run for run in bare if run.only and run.seed == whole.seed])
        group.append(numbers)
        for found, run in zip(shares, (whole, other), strict=True):
            found.append(attention_across(run)[rows])
    return np.concatenate(group), list(map(np.concatenate, shares))


def outcomes(whole: Finished, single: list[Finished]) -> tuple[np.ndarray, np.ndarray]:
    """Number in GROUPS of each event that both kinds of runs ranked, and its row among those of the whole run."""
    group, rows = [], []
    for run in single:
        there, here = (places_of(one.ranks, run.only[0]) for one in (whole, run))
        for event, row in here.items():
            right = whole.ranks.rank_domain[there[event]] <= TOP, run.ranks.rank_domain[row] <= TOP
            group.append({(True, True): 0, (False, True): 1, (True, False): 2, (False, False): 3}[right])
            rows.append(there[event])
    return np.array(group), np.array(rows)


@torch.no_grad()
def attention_across(run: Finished) -> np.ndarray:
    """a_cd of each test event [rows], in the order of the run's ranks."""
    built = quick_start.load(run.folder)
    model, shares = built.model.eval(), []
    for batch in built.evaluated[1]:
        items, domains, _ = model.history(batch.to(built.config["device"]))
        for number in range(len(items)):
            record = CrossDomainRecord(domains[number : number + 1], model.n_domains)
            model.contextualise(items[number : number + 1], domains[number : number + 1], record)
            shares.append(float(record.share()))
    return np.array(shares)


def in_words(bare: str, balanced: str, shares: dict[str, np.ndarray], group: np.ndarray) -> list[str]:
    """Means by group, the test between hurt and helped events, and what balancing changes."""
    from scipy import stats

    means = ", ".join(
        f"{shares[bare][group == n].mean():.3f} where {name} ({(group == n).sum()})"
        for n, name in enumerate(GROUPS)
        if (group == n).any()
    )
    sentences = [f"{bare}: a_cd is {means}."]
    hurt, helped = (shares[bare][group == n] for n in (1, 2))
    if min(len(hurt), len(helped)) > 1:
        p = float(stats.mannwhitneyu(hurt, helped).pvalue)
        moved = np.isin(group, (1, 2))
        rho = float(stats.spearmanr(shares[bare][moved], group[moved] == 1).statistic)
        verdict = "differs" if p < 0.05 else "does not differ beyond noise"
        sentences.append(
            f"Between events that the other domains hurt and those they helped it {verdict} "
            f"(Mann-Whitney p = {p:.3f}, Spearman's correlation with being hurt {rho:+.2f})."
        )
    changes = [
        f"{100 * (shares[balanced][group == n].mean() / shares[bare][group == n].mean() - 1):+.0f} % where {GROUPS[n]}"
        for n in (1, 2)
        if (group == n).any()
    ]
    return [*sentences, f"{balanced} changes it by {' and '.join(changes)}."] if changes else sentences


def _compose(shown: dict[str, list[np.ndarray]]) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9, 4.2), layout="constrained")
    axes = canvas.subplots()
    for number, (name, lists) in enumerate(shown.items()):
        at = [place + offset(number, len(shown), width=0.5) for place, one in enumerate(lists) if len(one) > 1]
        means = [one.mean() for one in lists if len(one) > 1]
        errors = [standard_error(one) for one in lists if len(one) > 1]
        style = {"color": plots.PALETTE[number], "marker": plots.MARKERS[number], "linestyle": "", "capsize": 3}
        axes.errorbar(at, means, errors, label=name, **style)
    counts = [len(one) for one in next(iter(shown.values()))]
    axes.set_xticks(range(len(GROUPS)), [f"{name}\n({count})" for name, count in zip(GROUPS, counts, strict=True)])
    axes.set(ylabel="a_cd: attention on other domains, ± standard error")
    legend_outside(axes)
    return canvas


BARE = tuple(f"bare {backbone}" for backbone in BACKBONES)
STUDY = Study(
    "proxy",
    STUDIES["proxy"],
    {
        **{f"bare {b}": {"model": "AutoCDSR", "backbone": b, "objective_weighting": "none"} for b in BACKBONES},
        **{f"AutoCDSR on {b}": {"model": "AutoCDSR", "backbone": b} for b in BACKBONES},
    },
    analyse,
    alone=BARE,
)
main = STUDY.main
