"""Do TAPE and DDSR pay where they should: at a switch of domain, and long after the last visit to the target's?"""

from __future__ import annotations

from typing import Any

import numpy as np

from recbole_cdsr import plots, quick_start
from recbole_cdsr.compare.drawing import legend_outside, offset, standard_error, style_of
from recbole_cdsr.compare.records import Finished, asked_for, mean_by_row
from recbole_cdsr.compare.significance import bootstrap
from recbole_cdsr.compare.tables import title_of
from recbole_cdsr.data.dataset import EVENT_FIELD
from recbole_cdsr.run_folder import config_of
from recbole_cdsr.study import STUDIES
from recbole_cdsr.study.planned import Answer, Groups, Study, told

TAPE = "TAPE-DDSR-HSTU"
VARIANTS = {
    "HSTU": {"model": "HSTU"},
    "HSTU, target's domain": {"model": "HSTU", "target_domain_input": True},
    "inside domains": {"model": TAPE, "tape": "off", "ddsr": "off"},
    "TAPE causal": {"model": TAPE, "tape": "causal", "ddsr": "off"},
    "TAPE next": {"model": TAPE, "tape": "next", "ddsr": "off"},
    "DDSR layer": {"model": TAPE, "tape": "off", "ddsr": "layer"},
    "DDSR final": {"model": TAPE, "tape": "off", "ddsr": "final"},
    "DDSR target": {"model": TAPE, "tape": "off", "ddsr": "target"},
    "TAPE next, DDSR layer": {"model": TAPE, "tape": "next", "ddsr": "layer"},
}
GAPS = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 10**9))  # events since the last one of the target's domain


def analyse(groups: Groups, metric: str) -> Answer:
    ranks = groups["HSTU"][0].ranks
    values = {name: mean_by_row(group, "domain", asked_for(metric))[metric] for name, group in groups.items()}
    sentences = []
    for name, base in (
        ("TAPE causal", "inside domains"),
        ("TAPE next", "inside domains"),
        ("DDSR layer", "inside domains"),
        ("DDSR layer", "HSTU"),
    ):
        for where, rows in (("at switches", ranks.switch), ("elsewhere", ~ranks.switch)):
            if rows.any():
                sentences.append(
                    told(f"{name} minus {base}, {where}", bootstrap([(values[name] - values[base])[rows]]))
                )
    gap = gaps(groups["HSTU"][0])
    return Answer(sentences, lambda: plots.rendered(lambda: _compose(values, gap, metric)))


def gaps(run: Finished) -> np.ndarray:
    """For each test event, how many events ago the user was in its domain: 1 is the event before, 0 never."""
    dataset = quick_start.prepare(config_of(run.folder, {})[0])[1][2].dataset
    events = dataset.events
    user, domain = events.user.numpy(), dataset.true_domain[events.columns[dataset.iid_field]].numpy()
    key = user * len(dataset.domain_names) + domain
    order = np.argsort(key, kind="stable")
    since = np.zeros(len(key), dtype=np.int64)
    same = key[order[1:]] == key[order[:-1]]
    since[order[1:]] = np.where(same, order[1:] - order[:-1], 0)
    return since[dataset.inter_feat[EVENT_FIELD].numpy()]


def _compose(values: dict[str, np.ndarray], gap: np.ndarray, metric: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    bins = [(f"{a}" if a == b else f"{a}-{b}" if b < 10**9 else f"{a}+", (gap >= a) & (gap <= b)) for a, b in GAPS]
    bins = [(name, rows) for name, rows in [*bins, ("never", gap == 0)] if rows.sum() > 1]
    canvas = Canvas(figsize=(11, 4.5), layout="constrained")
    axes = canvas.subplots()
    for number, (name, of) in enumerate(values.items()):
        at = np.arange(len(bins)) + offset(number, len(values), width=0.5)
        errors = [standard_error(of[rows]) for _, rows in bins]
        style = {**style_of(number, name), "capsize": 2, "linewidth": 1}
        axes.errorbar(at, [of[rows].mean() for _, rows in bins], errors, **style)
    axes.set_xticks(range(len(bins)), [f"{name}\n({int(rows.sum())})" for name, rows in bins])
    axes.set(
        xlabel="events since the last one of the target's domain (test events)",
        ylabel=f"{title_of(metric)}, ± standard error",
    )
    legend_outside(axes)
    return canvas


STUDY = Study("switch", STUDIES["switch"], VARIANTS, analyse)
main = STUDY.main
