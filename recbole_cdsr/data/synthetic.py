"""Histories with a planted rule across domains, which only a model that sees every domain can learn.

A history is a row of visits, each in another domain than the visit before. The last item of a visit decides the first
item of the next one, through a fixed permutation for every ordered pair of domains; everything else is noise.

Every history ends with two switches, so its last event (test) and the one before (validation) follow the rule. All
earlier visits end with an item drawn at random, which hides the rule from a model of one domain: the first item of a
visit depends on nothing that happened in the same domain before. (With two domains the test item does depend on
the item two events earlier, which is of its own domain, but no training target shows this.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.files import replacing

FIRST_DAY = 1_600_000_000  # seconds; float32 cannot tell seconds apart there, so a wrong cast shows


@dataclass(frozen=True)
class PlantedEvents:
    """Events in the order of time, and the rule behind them.

    user, item, domain, timestamp [E] int64: item ids run over all domains, domain d owns d * n to (d + 1) * n - 1.
    rule [C, C, n]: rule[a, b, i] is the item of domain b that follows item i (counted within domain a) at a switch;
    rule[a, a] is the weak preference within a domain.
    """

    user: np.ndarray
    item: np.ndarray
    domain: np.ndarray
    timestamp: np.ndarray
    rule: np.ndarray


def planted_rule(
    n_users: int,
    n_items_per_domain: int,
    n_domains: int = 2,
    *,
    n_visits: tuple[int, int] = (3, 6),
    visit_length: tuple[int, int] = (2, 4),
    noise: float = 0.05,
    weak_markov: float = 0.1,
    seed: int = 0,
) -> PlantedEvents:
    """Histories in which the last item before a switch of domain decides the first item after it.

    Args:
        n_visits: fewest and most visits before the two last ones, both included.
        visit_length: fewest (at least 2) and most events of such a visit, both included.
        noise: share of switches that lead to a random item instead.
        weak_markov: share of events inside a visit, neither first nor last, that follow rule[d, d].

    Raises:
        CDSRError: if a number is out of its range, naming it.
    """
    _check(n_users, n_items_per_domain, n_domains, n_visits, visit_length, noise, weak_markov)
    rng = np.random.default_rng(seed)
    rule = _draw_rule(rng, n_domains, n_items_per_domain)
    visits, longest = n_visits[1] + 2, visit_length[1]
    steps = rng.integers(1, n_domains, (n_users, visits))
    steps[:, 0] = rng.integers(0, n_domains, n_users)
    domains = steps.cumsum(1) % n_domains  # [users, visits]
    lengths = rng.integers(visit_length[0], longest + 1, (n_users, visits))
    lengths[:, -2:] = 1
    # Visits are counted from the end: a user with fewer of them lacks the first ones.
    lengths[np.arange(visits) < n_visits[1] - rng.integers(n_visits[0], n_visits[1] + 1, n_users)[:, None]] = 0
    items = domains[:, :, None] * n_items_per_domain + _draw_items(rng, rule, domains, lengths, noise, weak_markov)
    happened = np.arange(longest) < lengths[:, :, None]  # [users, visits, longest]
    user, visit, _ = happened.nonzero()
    timestamp = _draw_timestamps(rng, happened)[happened]
    order = np.argsort(timestamp, kind="stable")
    return PlantedEvents(user[order], items[happened][order], domains[user, visit][order], timestamp[order], rule)


def toy() -> PlantedEvents:
    """The small set shipped with the package: 60 users, two domains of 20 items each, a few kB."""
    return planted_rule(60, 20, seed=2025)


def write_atomic(folder: str | os.PathLike, name: str, events: PlantedEvents) -> None:
    """Writes <name>.inter and <name>.item into `folder`, each complete or not at all; .inter comes last.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    n_domains, _, n_items = events.rule.shape
    items = [f"i{i}" for i in range(n_domains * n_items)]
    domains = [f"d{d}" for d in range(n_domains) for _ in range(n_items)]
    _write(folder / f"{name}.item", "item_id:token\tdomain_id:token", items, domains)
    users = np.array([f"u{u}" for u in range(events.user.max() + 1)], dtype=object)[events.user]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    chosen = np.array(items, dtype=object)[events.item]
    _write(folder / f"{name}.inter", header, users, chosen, map(str, events.timestamp.tolist()))


def _check(n_users, n_items, n_domains, n_visits, visit_length, noise, weak_markov) -> None:
    for key, value, least in (("n_users", n_users, 1), ("n_items_per_domain", n_items, 2), ("n_domains", n_domains, 2)):
        if value < least:
            raise CDSRError(f"{key} is {value}; it must be at least {least}")
    for key, (fewest, most), least in (("n_visits", n_visits, 1), ("visit_length", visit_length, 2)):
        if not least <= fewest <= most:
            raise CDSRError(f"{key} is ({fewest}, {most}); it must be (fewest, most), with at least {least} as fewest")
    for key, value in (("noise", noise), ("weak_markov", weak_markov)):
        if not 0 <= value <= 1:
            raise CDSRError(f"{key} is {value}; it must be a share from 0 to 1")


def _draw_rule(rng: np.random.Generator, n_domains: int, n_items: int) -> np.ndarray:
    return rng.permuted(np.tile(np.arange(n_items), (n_domains, n_domains, 1)), axis=-1)


def _draw_items(
    rng: np.random.Generator,
    rule: np.ndarray,
    domains: np.ndarray,
    lengths: np.ndarray,
    noise: float,
    weak_markov: float,
) -> np.ndarray:
    """Items within their domain [users, visits, longest]: noise first, then the rules are laid over it."""
    users, visits = domains.shape
    shape = (users, visits, int(lengths.max()))
    items = rng.integers(0, rule.shape[-1], shape)
    follows = rng.random(shape) < weak_markov
    follows[:, :, 0] = rng.random((users, visits)) >= noise
    follows[:, 0, 0] = False
    row = np.arange(users)
    for visit in range(visits):
        domain, previous = domains[:, visit], domains[:, visit - 1]
        last = items[row, visit - 1, np.maximum(lengths[:, visit - 1], 1) - 1]
        items[:, visit, 0] = np.where(follows[:, visit, 0], rule[previous, domain, last], items[:, visit, 0])
        for place in range(1, shape[2]):
            inside = follows[:, visit, place] & (place < lengths[:, visit] - 1)
            after = rule[domain, domain, items[:, visit, place - 1]]
            items[:, visit, place] = np.where(inside, after, items[:, visit, place])
    return items


def _draw_timestamps(rng: np.random.Generator, happened: np.ndarray) -> np.ndarray:
    gaps = rng.integers(1, 3600, happened.shape) * happened
    start = FIRST_DAY + rng.integers(0, 30 * 86_400, len(happened))
    return start[:, None, None] + gaps.reshape(len(happened), -1).cumsum(1).reshape(happened.shape)


def _write(path: Path, header: str, *columns: Iterable[str]) -> None:
    rows = map("\t".join, zip(*columns, strict=True))
    with replacing(path) as file:
        file.write(("\n".join([header, *rows]) + "\n").encode())
