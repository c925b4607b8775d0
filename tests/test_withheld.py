"""Data without their test events: nothing of these is left, and training and validation do not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_cdsr.data.dataset import EVENT_FIELD
from recbole_cdsr.data.loaders import loaders_of
from recbole_cdsr.data.withheld import without_test
from tests.helpers import make_dataset, random_events, write_dataset

SPLITS = [
    {"split": {"LS": "valid_and_test"}},
    {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "user"},
    {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "none"},
    {"split": {"LS": "valid_only"}},
]


def batches(config, parts) -> list[dict[str, torch.Tensor]]:
    """Everything that training and validation read."""
    np.random.seed(0)  # RecBole draws its negatives from there
    torch.manual_seed(0)
    train, valid, _ = loaders_of(config, parts)
    return [batch.interaction for loader in (train, valid) for batch in loader]


@pytest.mark.parametrize("eval_args", SPLITS, ids=str)
@pytest.mark.parametrize(
    ("model", "keys"),
    [("AutoCDSR", {}), ("SASRec", {}), ("BPR", {}), ("AutoCDSR", {"train_domains": ["d1", "d2"]})],
    ids=["sequence", "prefix", "interaction", "two domains"],
)
def test_training_and_validation_stay_and_test_events_go(eval_args, model, keys):
    inter, item = random_events(n_users=40, most=20)
    write_dataset("some", inter, item)
    config, dataset = make_dataset("some", model, eval_args=eval_args, **keys)
    parts = dataset.build()
    digest, before = parts[0].digest(), batches(config, parts)
    withheld = without_test(parts)
    after = batches(config, withheld)
    assert len(before) == len(after) > 2
    for one, two in zip(before, after, strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    events = withheld[0].events
    gone = torch.zeros(len(events), dtype=torch.bool)
    gone[parts[2].inter_feat[EVENT_FIELD]] = True
    assert gone.any() == (eval_args["split"].get("LS") != "valid_only")
    for part in withheld:
        assert part.events is events
    for name, values in events.columns.items():
        assert not values[gone].any() and torch.equal(values[~gone], parts[2].events.columns[name][~gone])
    assert len(withheld[2]) == 0 and parts[0].digest() == digest and len(parts[2]) == int(gone.sum())
