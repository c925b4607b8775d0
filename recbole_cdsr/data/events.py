"""EventStore: all events as flat arrays in time order, from which rows are gathered when a batch asks for them.

RecBole writes out one padded row per prefix, about L copies of every event. Here a row is three numbers
(user, position of its target, number of events before it), and `gather` makes the padded lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor


@dataclass
class EventStore:
    """Events sorted by user, then time, then file order.

    Attributes:
        offsets: [users + 1] events of user u stand at offsets[u] .. offsets[u + 1]; user 0 is padding.
        columns: field name -> values [events].
    """

    offsets: Tensor
    columns: dict[str, Tensor]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def user(self) -> Tensor:
        """User of every event [events]."""
        return torch.repeat_interleave(torch.arange(len(self.offsets) - 1), self.offsets.diff())

    def user_of(self, event: Tensor) -> Tensor:
        """User of each of some events, of the shape of `event`."""
        return torch.bucketize(event, self.offsets, right=True) - 1

    def gather(self, field: str, position: Tensor, length: Tensor, width: int) -> Tensor:
        """The `length` events before `position`, left-aligned and padded with 0.

        Args:
            position: [B] index of the event that is predicted.
            length: [B] how many events before it.
            width: columns of the result.

        Returns:
            [B, width] values of `field`, or [B, width, S] for a sequence field.
        """
        column = torch.arange(width)
        valid = column < length[:, None]
        index = torch.where(valid, (position - length)[:, None] + column, 0)
        values = self.columns[field][index]
        return torch.where(valid.view(*valid.shape, *[1] * (values.dim() - 2)), values, 0)

    def ties(self, time_field: str, item_field: str) -> tuple[float, int]:
        """The share of neighbouring events of a user with equal times, and how many events stand there a second time.

        A second time: with user, item and time of another event.
        """
        time, pair = self.columns[time_field], torch.ones(max(len(self) - 1, 0), dtype=torch.bool)
        first = self.offsets[1:-1]  # of each user but one; the pair before it is of two users
        pair[first[(first > 0) & (first < len(self))] - 1] = False
        equal = (time[1:] == time[:-1]) & pair
        tied = torch.zeros(len(self), dtype=torch.bool)
        tied[1:], tied[:-1] = equal, tied[:-1] | equal
        event = torch.nonzero(tied).flatten()
        columns = (self.user_of(event), time[event], self.columns[item_field][event])
        table = pd.DataFrame({number: values.numpy() for number, values in enumerate(columns)})
        return float(equal.sum()) / max(int(pair.sum()), 1), int(table.duplicated().sum())

    def count_before(self, values: Tensor) -> Tensor:
        """For each event, how many earlier events of its user have the same value; `values` [events], to the same."""
        value = values.numpy()
        key = self.user.numpy() * (int(value.max(initial=0)) + 1) + value
        order = np.argsort(key, kind="stable")
        sorted_key = key[order]
        first = np.searchsorted(sorted_key, sorted_key, side="left")
        count = np.empty(len(key), dtype=np.int64)
        count[order] = np.arange(len(key)) - first
        return torch.from_numpy(count)


def stable_order(values: Tensor) -> Tensor:
    """[n] indices that sort the values, equal ones as they stand; whole numbers in 32 bits where they fit."""
    low = int(values.min()) if len(values) else 0
    if values.dtype == torch.int64 and len(values) and int(values.max()) - low < 2**31:
        values = (values - low).to(torch.int32)
    return torch.argsort(values, stable=True)


def windows(start: Tensor, stop: Tensor, width: int, first: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts each user's events into windows of `width` inputs that share no target.

    An event is the target of the event before it, so a user's targets are the events start + 1 .. stop - 1.
    The first window of a user ends after `first` targets (all, if there are no more than `width`), each
    following one after `width` more, the last where the events end.

    Args:
        start, stop: [users] a user's events are start .. stop - 1.
        width: most inputs, and so most targets, of a window.
        first: [users] targets of the first window, 1 .. width.

    Returns:
        position [windows] of the last target of each window, and length [windows]: its number of targets.
    """
    targets = (stop - start - 1).clamp(min=0)
    first = torch.where(targets <= width, targets, first)
    count = torch.where(targets > 0, 1 + torch.div(targets - first + width - 1, width, rounding_mode="floor"), 0)
    user = torch.repeat_interleave(torch.arange(len(start)), count)
    before = torch.cumsum(count, 0) - count
    nth = torch.arange(len(user)) - before[user]
    last = torch.minimum(first[user] + nth * width, targets[user])
    done = torch.where(nth == 0, 0, first[user] + (nth - 1) * width)
    return start[user] + last, last - done
