"""Wrong domain labels on purpose, to learn what a model's quality owes to right ones."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError


def wrong_labels(domains: Tensor, n_domains: int, share: float, seed: int) -> Tensor:
    """Domains of items in which ``share`` of the items have another domain, drawn evenly from the others.

    A larger share keeps the wrong labels of a smaller one with the same seed.

    Args:
        domains: [V] from 1 to n_domains - 1; item 0 is padding and stays.
        n_domains: C, counting domain 0.
        share: part of the items, [0, 1]; rounded to whole items.

    Raises:
        CDSRError: if labels shall be wrong and there is only one domain.
    """
    wrong = round(share * (len(domains) - 1))
    if wrong == 0:
        return domains
    others = n_domains - 2
    if others < 1:
        raise CDSRError("the key 'label_noise' needs two domains or more, but the data set has one; set it to 0")
    generator = torch.Generator().manual_seed(seed)
    items = 1 + torch.randperm(len(domains) - 1, generator=generator)
    steps = torch.randint(1, others + 1, (len(domains),), generator=generator)
    chosen = items[:wrong]
    result = domains.clone()
    result[chosen] = (domains[chosen] - 1 + steps[chosen]) % (others + 1) + 1
    return result
