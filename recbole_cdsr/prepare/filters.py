"""Which events stay: a core per domain, a minimum per user, users of several domains, repeated up to a fixed point.

The rules are monotone (taking events away can only break a rule, never mend it), so the largest set of events that
keeps all of them is unique, whatever the order of the rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recbole_cdsr.errors import CDSRError


@dataclass(frozen=True)
class Limits:
    """core: least events of an item, and of a user within a domain. min_user: least events of a user, over all domains.

    min_domains: least domains of a user. 0 and 1 ask for nothing.
    """

    core: int = 0
    min_user: int = 0
    min_domains: int = 0


def surviving(
    user: np.ndarray, item: np.ndarray, domain: np.ndarray, limits: Limits
) -> tuple[np.ndarray, dict[str, int]]:
    """The largest set of events in which every rule holds.

    Args:
        user, item, domain: [E] numbers from 0; an item has one domain.

    Returns:
        indices of the events that stay, in order; and for each rule the events it removed.
    """
    pair, pairs = pd.factorize(user.astype(np.int64) * (int(domain.max()) + 1) + domain)
    user_of_pair = pairs // (int(domain.max()) + 1)
    kept = np.arange(len(user))
    removed: dict[str, int] = {}

    def rare(numbers: np.ndarray, least: int) -> np.ndarray:
        return np.bincount(numbers)[numbers] < least

    rules = {
        f"item with less than {limits.core} events": (limits.core, lambda: rare(item[kept], limits.core)),
        f"user with less than {limits.core} events in the domain": (limits.core, lambda: rare(pair[kept], limits.core)),
        f"user with less than {limits.min_user} events": (limits.min_user, lambda: rare(user[kept], limits.min_user)),
        f"user of less than {limits.min_domains} domains": (
            limits.min_domains,
            lambda: np.bincount(user_of_pair[np.unique(pair[kept])])[user[kept]] < limits.min_domains,
        ),
    }
    rules = {name: breaks for name, (least, breaks) in rules.items() if least > 1}
    before = -1
    while before != len(kept) and len(kept):
        before = len(kept)
        for name, breaks in rules.items():
            if len(kept):
                broken = breaks()
                removed[name] = removed.get(name, 0) + int(broken.sum())
                kept = kept[~broken]
    if not len(kept):
        raise CDSRError(
            f"the filters leave no event of {len(user):,}; ask for less by --core, --min_user or --min_domains"
        )
    return kept, removed
