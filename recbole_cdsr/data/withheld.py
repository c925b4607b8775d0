"""Data without their test events, for whoever must not see them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from recbole_cdsr.data.dataset import EVENT_FIELD, CDSRDataset
from recbole_cdsr.data.events import EventStore


def without_test(parts: Sequence[CDSRDataset]) -> list[CDSRDataset]:
    """Training, validation and an empty test part, in whose events nothing is left of the test events but their number.

    A test event is the last of its user's, so no history of a training or validation row holds one: training and
    validation are the same to the bit.

    Args:
        parts: training, validation and test, as `CDSRDataset.build` makes them; they stay as they are.
    """
    train, valid, test = parts
    events, gone = test.events, test.inter_feat[EVENT_FIELD]
    kept = EventStore(events.offsets, {name: values.index_fill(0, gone, 0) for name, values in events.columns.items()})
    withheld = [copy.copy(train), copy.copy(valid), test.copy(test.inter_feat[:0])]
    for part in withheld:
        part.events = kept
    return withheld
