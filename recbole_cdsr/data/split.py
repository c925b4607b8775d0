"""Which row is for training, validation or test: RecBole's splits, without loops over users."""

from __future__ import annotations

import numbers

import numpy as np

from recbole_cdsr.data.tokens import numbers_of_codes
from recbole_cdsr.errors import CDSRError

TRAIN, VALID, TEST, NONE = range(4)


def assign_events(offsets: np.ndarray, time: np.ndarray, eval_args: dict) -> tuple[np.ndarray, np.ndarray]:
    """The part of the row that predicts each event; NONE for a user's first event, which no row predicts.

    Args:
        offsets: [users + 1] where each user's events begin.
        time: [events]
        eval_args: as in `assign_parts`.

    Returns:
        parts [events], int8, and the number of training rows of each user [users].
    """
    count = np.diff(offsets)
    predicted = np.ones(len(time), dtype=bool)
    predicted[offsets[:-1][count > 0]] = False
    user = np.repeat(np.arange(len(count), dtype=np.int32), np.maximum(count - 1, 0))
    part = np.full(len(time), NONE, dtype=np.int8)
    part[predicted] = assign_parts(user, time[predicted], eval_args)
    return part, numbers_of_codes(user, len(count), part[predicted] == TRAIN)


def assign_parts(user: np.ndarray, time: np.ndarray, eval_args: dict) -> np.ndarray:
    """The part of every row.

    Args:
        user: [rows] users, grouped; each user's rows are in time order.
        time: [rows] times of the rows' targets.
        eval_args: RecBole's `split` ({LS: valid_and_test | valid_only | test_only} or {RS: [a, b, c]}) and `group_by`.

    Returns:
        [rows] TRAIN, VALID or TEST, int8.

    Raises:
        CDSRError: if the split is none of RecBole's.
    """
    settings, group = eval_args["split"], str(eval_args.get("group_by")).lower()
    if not isinstance(settings, dict) or len(settings) != 1:
        raise CDSRError("eval_args.split must look like {LS: valid_and_test} or {RS: [0.8, 0.1, 0.1]}")
    ((mode, value),) = settings.items()
    if mode == "LS":
        return _leave_one_out(user, value)
    if mode != "RS" or not isinstance(value, list) or len(value) != 3:
        raise CDSRError(
            f"eval_args.split {settings} is not known; use {{LS: valid_and_test}} or {{RS: [0.8, 0.1, 0.1]}}"
        )
    if not all(isinstance(one, numbers.Real) for one in value) or min(value) < 0 or sum(value) <= 0:
        raise CDSRError(f"eval_args.split RS takes three shares, none negative, but got {value}")
    ratios = np.array(value, dtype=np.float64) / sum(value)
    if group == "user":
        first, count = _groups(user)
        number = np.arange(len(user)) - np.repeat(first, count)
        return _by_count(number, *(np.repeat(limit, count) for limit in _counts(count, ratios)))
    if group != "none":
        raise CDSRError(f"eval_args.group_by must be user or none, but is '{group}'")
    number = np.empty(len(user), dtype=np.int64)
    number[np.argsort(time, kind="stable")] = np.arange(len(user))
    return _by_count(number, *_counts(np.array([len(user)]), ratios))


def _groups(user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each user, and how many rows the user has, both [users]."""
    first = np.flatnonzero(np.diff(user, prepend=user[:1] - 1))
    return first, np.diff(first, append=len(user))


def _leave_one_out(user: np.ndarray, mode: str) -> np.ndarray:
    """The last row of each user is held out (two rows: one to validate, one to test); one row always stays."""
    held = {"valid_and_test": [TEST, VALID], "valid_only": [VALID], "test_only": [TEST]}
    if mode not in held:
        raise CDSRError(f"eval_args.split LS takes {', '.join(held)}, but got '{mode}'")
    first, count = _groups(user)
    part = np.full(len(user), TRAIN, dtype=np.int8)
    for from_end, name in enumerate(held[mode]):
        part[(first + count - 1 - from_end)[count - 1 > from_end]] = name
    return part


def _counts(total: np.ndarray, ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RecBole's rounding: parts are rounded down, but a part whose share is below one row gets one if it can."""
    train = total.copy()
    counts = [(ratio * total).astype(np.int64) for ratio in ratios]
    train -= counts[VALID] + counts[TEST]
    alive = np.ones(len(total), dtype=bool)
    for part in (TEST, VALID):
        alive &= train > 1
        share = ratios[part] * total
        more = alive & (share > 0) & (share < 1)
        counts[part] = counts[part] + more
        train = train - more
    return train, counts[VALID]


def _by_count(number: np.ndarray, n_train: np.ndarray, n_valid: np.ndarray) -> np.ndarray:
    return np.where(number < n_train, TRAIN, np.where(number < n_train + n_valid, VALID, TEST)).astype(np.int8)
