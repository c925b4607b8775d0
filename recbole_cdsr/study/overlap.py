"""Who gains, the fewer users are known in several domains?

All forms of the data hold the same events. In the form of s % a user of several domains stays one user with a chance
of s %, drawn by seed; every other one becomes a user for each of his domains, so that no history tells of two.
Events of a user in a domain where he has fewer than three are left out of all forms. The gain is that of training on
all domains over training on the domain alone, within a form, on the same test events.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recbole_cdsr import plots
from recbole_cdsr.compare.drawing import legend_outside, offset, style_of
from recbole_cdsr.compare.records import Finished, asked_for, mean_by_row
from recbole_cdsr.compare.significance import Interval, bootstrap
from recbole_cdsr.compare.tables import title_of
from recbole_cdsr.compare.transfer import places_of
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.data.sources import build
from recbole_cdsr.quick_start import prepare
from recbole_cdsr.study import STUDIES
from recbole_cdsr.study.on_data import DataStudy, number_of
from recbole_cdsr.study.planned import Answer, Groups, told

SHARES = (0, 20, 50, 80, 100)  # per cent of the users of several domains
SEED, FEWEST = 2020, 3
WHOLE, SPLIT = "+", "-"  # first sign of a user's name: kept whole, or one of several made of him (or of one domain)
KINDS = {WHOLE: "users of several domains", SPLIT: "users of one domain"}
BARE, MODELS = "bare", ("bare", "AutoCDSR", "AutoCDSR+")


def forms(dataset: str) -> list[str]:
    return [f"{dataset}-overlap-{share}" for share in SHARES]


def build_form(dataset: str, keys: dict[str, Any], form: str, folder: Path) -> None:
    whole = prepare(CDSRConfig("AutoCDSR", dataset, config_dict=keys))[0]
    recipe = {"source": whole.digest(), "whole users, %": number_of(form), "seed": SEED}
    build(form, folder / form, recipe, lambda fresh: write(whole, fresh, form, number_of(form) / 100))


def write(dataset: Any, folder: Path, form: str, share: float) -> None:
    """The events of `dataset` with that share of the users of several domains kept whole."""
    import pandas as pd

    events, names = dataset.events, dataset.field2id_token
    item = events.columns[dataset.iid_field].numpy()
    user, domain = events.user.numpy(), dataset.true_domain.numpy()[item]
    pair = user * len(dataset.true_domain_names) + domain
    pairs, place, count = np.unique(pair, return_inverse=True, return_counts=True)
    kept = count[place] >= FEWEST
    n_domains = np.bincount(pairs[count >= FEWEST] // len(dataset.true_domain_names), minlength=dataset.user_num)
    draws = np.random.default_rng(SEED).random(dataset.user_num)
    stays = (n_domains > 1) & (draws < share)
    users, domains = (np.array(list(map(str, part))) for part in (names[dataset.uid_field], dataset.true_domain_names))
    called = np.where(stays[user], np.char.add(WHOLE, users[user]), _split_names(users[user], domains[domain]))
    seconds = events.columns[dataset.time_field].numpy() + dataset.time_origin
    whole_seconds = seconds.astype(np.int64)
    time = whole_seconds if (whole_seconds == seconds).all() else seconds
    table = pd.DataFrame(
        {"user_id:token": called, "item_id:token": names[dataset.iid_field][item], "timestamp:float": time}
    )
    table[kept].to_csv(folder / f"{form}.inter", sep="\t", index=False)
    labels = {"item_id:token": names[dataset.iid_field][1:], "domain_id:token": domains[dataset.true_domain[1:]]}
    pd.DataFrame(labels).to_csv(folder / f"{form}.item", sep="\t", index=False)


def _split_names(users: np.ndarray, domains: np.ndarray) -> np.ndarray:
    return np.char.add(np.char.add(SPLIT, users), np.char.add("@", domains))


def analyse(found: dict[int, Groups], metric: str) -> Answer:
    gains = {
        (share, model, kind): gain
        for share, groups in found.items()
        for model in MODELS
        for kind in (*KINDS, None)
        if (gain := gain_of(groups[model], groups[BARE], kind, metric))
    }
    sentences = []
    for share in (min(found), max(found)):
        for model in MODELS:
            what = f"{model} on all domains minus {BARE} on one, {share} % of users whole, all test events"
            sentences.append(told(what, gains[share, model, None]))
    middle = sorted(found)[len(found) // 2]
    for kind, called in KINDS.items():
        if gain := gains.get((middle, BARE, kind)):
            sentences.append(told(f"At {middle} %, {BARE}, {called}", gain))
    return Answer(sentences, lambda: plots.rendered(lambda: _compose(gains, list(found), metric)))


def gain_of(group: list[Finished], base: list[Finished], kind: str | None, metric: str) -> Interval | None:
    """All domains minus one, mean over test events of a kind of users (all users if None); None without events."""
    whole = mean_by_row(runs := [run for run in group if not run.only], "domain", asked_for(metric))[metric]
    differences = []
    for only in dict.fromkeys(run.only for run in base if run.only):
        single = [run for run in base if run.only == only]
        there, here = (places_of(one.ranks, only[0]) for one in (runs[0], single[0]))
        alone = mean_by_row(single, "domain", asked_for(metric))[metric]
        events = [event for event in here if kind in (None, event[0][0])]
        differences += [whole[there[event]] - alone[here[event]] for event in events]
    return bootstrap([np.array(differences)]) if differences else None


def _compose(gains: dict[tuple, Interval], shares: list[int], metric: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(12, 4.2), layout="constrained")
    panels = canvas.subplots(1, len(KINDS), sharey=True)
    for axes, (kind, called) in zip(panels, KINDS.items(), strict=True):
        axes.axhline(0, color="#777777", linewidth=1, zorder=1)
        for number, model in enumerate(MODELS):
            own = [(n, gains[s, model, kind]) for n, s in enumerate(shares) if (s, model, kind) in gains]
            at = [n + offset(number, len(MODELS), width=0.3) for n, _ in own]
            ends = [[i.mean - i.low for _, i in own], [i.high - i.mean for _, i in own]]
            style = {**style_of(number, model), "linewidth": 1, "capsize": 2}
            axes.errorbar(at, [i.mean for _, i in own], ends, **style)
        axes.set_xticks(range(len(shares)), [str(share) for share in shares])
        axes.set(title=called, xlabel="users of several domains that stay one user, %")
    panels[0].set_ylabel(f"gain of {title_of(metric)} over one domain alone")
    legend_outside(panels[-1])
    return canvas


STUDY = DataStudy(
    name="overlap",
    question=STUDIES["overlap"],
    variants={
        BARE: {"model": "AutoCDSR", "objective_weighting": "none"},
        "AutoCDSR": {"model": "AutoCDSR"},
        "AutoCDSR+": {"model": "AutoCDSR+"},
    },
    analyse=analyse,
    alone=(BARE,),
    forms=forms,
    build=build_form,
)
main = STUDY.main
