"""What happens to the events of every source: one domain per item, order in time, repeats, filters, dense numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.prepare.events import Events
from recbole_cdsr.prepare.filters import Limits, surviving

REPEATS = {
    "keep": "keep all",
    "exact": "keep one of those with the same user, item and time",
    "first": "keep a user's first event with an item",
    "last": "keep a user's last event with an item",
}


@dataclass(frozen=True)
class Rules:
    """What to do with the events; the defaults keep all of them."""

    limits: Limits = field(default_factory=Limits)
    repeats: str = "keep"
    tie_seed: int | None = None
    prefix_items: bool = False


def arrange(events: Events, rules: Rules) -> tuple[Events, dict[str, int]]:
    """Events by user and time, with every name in use; and for each rule the events it removed.

    Raises:
        CDSRError: if an item has two domains and items are not to be prefixed, or no event is left.
    """
    events = _one_domain_per_item(events, rules.prefix_items)
    events = events.take(_order(events, rules.tie_seed))
    kept = _without_repeats(events, rules.repeats)
    removed = {f"repeated ({rules.repeats})": len(events) - len(kept)} if rules.repeats != "keep" else {}
    events = events.take(kept)
    kept, broken = surviving(events.user, events.item, events.domain, rules.limits)
    return _dense(events.take(kept)), removed | broken


def _one_domain_per_item(events: Events, prefix: bool) -> Events:
    if prefix:
        n_domains = len(events.domains)
        item, pairs = pd.factorize(events.item.astype(np.int64) * n_domains + events.domain)
        domains, items = (
            events.domains.take(pa.array(pairs % n_domains)),
            events.items.take(pa.array(pairs // n_domains)),
        )
        return replace(events, item=item.astype(np.int32), items=pc.binary_join_element_wise(domains, items, ":"))
    home = np.zeros(len(events.items), dtype=np.int32)
    home[events.item] = events.domain
    elsewhere = events.domain != home[events.item]
    if elsewhere.any():
        item, domain = (int(numbers[np.argmax(elsewhere)]) for numbers in (events.item, events.domain))
        name, first, second = events.items[item], events.domains[domain], events.domains[int(home[item])]
        n_several = len(np.unique(events.item[elsewhere]))
        raise CDSRError(
            f"the item '{name}' is in the domains '{first}' and '{second}' ({n_several:,} items are in several); an "
            f"item has one domain: --prefix_items makes it one item per domain, like '{first}:{name}'"
        )
    return events


def _order(events: Events, tie_seed: int | None) -> np.ndarray:
    """By user, then time; equal times stand as in the files, or shuffled."""
    if tie_seed is None:
        return np.lexsort((events.time, events.user))
    chance = np.random.default_rng(tie_seed).permutation(len(events))
    return np.lexsort((chance, events.time, events.user))


def _without_repeats(events: Events, repeats: str) -> np.ndarray:
    """Indices of the events that stay; the events stand by user and time."""
    if repeats == "keep":
        return np.arange(len(events))
    keys = [events.user, events.item] + ([events.time] if repeats == "exact" else [])
    order = np.lexsort(keys[::-1])  # stable: equal keys stand in the order of the events
    new = np.zeros(len(events), dtype=bool)
    new[0] = True
    for key in keys:
        new[1:] |= key[order][1:] != key[order][:-1]
    if repeats == "last":
        new = np.append(new[1:], True)
    return np.sort(order[new])


def _dense(events: Events) -> Events:
    changes = {}
    for numbers, names in (("user", "users"), ("item", "items"), ("domain", "domains")):
        used = np.bincount(getattr(events, numbers)) > 0
        changes[numbers] = (np.cumsum(used, dtype=np.int32) - 1)[getattr(events, numbers)]
        changes[names] = getattr(events, names).take(pa.array(np.flatnonzero(used)))
    return replace(events, **changes)


def count_ties(events: Events) -> Mapping[str, int]:
    """Pairs of neighbouring events of a user: all, those with equal times, and those of them in two domains."""
    same_user = events.user[1:] == events.user[:-1]
    ties = same_user & (events.time[1:] == events.time[:-1])
    across = ties & (events.domain[1:] != events.domain[:-1])
    return {"pairs": int(same_user.sum()), "ties": int(ties.sum()), "ties_across_domains": int(across.sum())}


def count_repeats(events: Events) -> Mapping[str, int]:
    """Events that repeat an earlier one of the same user and item, and those of them with the same time too."""
    return {
        "repeats": len(events) - len(_without_repeats(events, "first")),
        "exact_repeats": len(events) - len(_without_repeats(events, "exact")),
    }
