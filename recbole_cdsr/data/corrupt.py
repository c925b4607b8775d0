"""Wrong and hidden domain labels on purpose, to learn what a model's quality owes to right ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.data.validate import fault
from recbole_cdsr.errors import CDSRError

if TYPE_CHECKING:
    from recbole_cdsr.data.dataset import CDSRDataset

HIDDEN = "[HIDDEN]"  # the domain of items whose domain models shall not see


def corrupt_labels(dataset: CDSRDataset) -> None:
    """Sets `item_domain` and `domain_names`, which models see, by the keys label_noise and label_hidden.

    Raises:
        CDSRError: if labels shall be wrong and there is one domain, or hidden ones and a domain is called so.
    """
    names, share, seed = dataset.true_domain_names, dataset.config["label_hidden"], dataset.config["seed"]
    labels = wrong_labels(dataset.true_domain, len(names), dataset.config["label_noise"], seed)
    if share:
        if HIDDEN in names:
            raise fault(dataset.item_path, f"a domain is called '{HIDDEN}'", "rename it, or set label_hidden to 0")
        labels, names = hidden_labels(labels, len(names), share, seed), [*names, HIDDEN]
        dataset.field2id_token[dataset.domain_field] = np.array(names)
        dataset.field2token_id[dataset.domain_field] = {name: number for number, name in enumerate(names)}
    dataset.item_domain, dataset.domain_names = labels, names


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


def hidden_labels(domains: Tensor, n_domains: int, share: float, seed: int) -> Tensor:
    """Domains of items in which ``share`` of the items have the domain ``n_domains``, which stands for unknown.

    A larger share hides the labels of a smaller one with the same seed, too.

    Args:
        domains: [V] from 1 to n_domains - 1; item 0 is padding and stays.
        n_domains: C, counting domain 0.
        share: part of the items, [0, 1]; rounded to whole items.
    """
    items = 1 + torch.randperm(len(domains) - 1, generator=torch.Generator().manual_seed(seed))
    result = domains.clone()
    result[items[: round(share * len(items))]] = n_domains
    return result
