"""What happens to events between reading and writing: filters, order, ties, repeats, times."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.prepare.arrange import Rules, arrange, count_repeats, count_ties
from recbole_cdsr.prepare.events import Events
from recbole_cdsr.prepare.filters import Limits, surviving
from recbole_cdsr.prepare.times import TimeReader, to_seconds

N_USERS, N_ITEMS, N_DOMAINS = 8, 9, 3


def draw(seed: int, n: int, n_users=N_USERS) -> Events:
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, n_users, n).astype(np.int32), rng.integers(0, N_ITEMS, n).astype(np.int32)
    names = [pa.array([f"{kind}{k}" for k in range(count)]) for kind, count in (("u", n_users), ("i", N_ITEMS))]
    domains = pa.array([f"d{k}" for k in range(N_DOMAINS)])
    return Events(user, item, item % N_DOMAINS, rng.integers(0, 5, n), *names, domains, "s")


def rows(events: Events) -> list[tuple]:
    users, items, domains = (names.to_pylist() for names in (events.users, events.items, events.domains))
    triples = zip(events.user, events.item, events.domain, events.time.tolist(), strict=True)
    return [(users[u], items[i], domains[d], t) for u, i, d, t in triples]


def slowly(events: Events, limits: Limits) -> list[int]:
    """Plain Python: throw out every event that breaks a rule until none does."""
    kept = list(range(len(events)))
    while True:
        at = {e: (int(events.user[e]), int(events.item[e]), int(events.domain[e])) for e in kept}
        stay = [
            e
            for e, (u, i, d) in at.items()
            if sum(i == other[1] for other in at.values()) >= limits.core
            and sum((u, d) == (other[0], other[2]) for other in at.values()) >= limits.core
            and sum(u == other[0] for other in at.values()) >= limits.min_user
            and len({other[2] for other in at.values() if other[0] == u}) >= limits.min_domains
        ]
        if stay == kept:
            return kept
        kept = stay


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(0, 3), st.integers(0, 6), st.integers(0, 3))
def test_filters_find_the_largest_set_that_keeps_all_rules(seed, n, core, min_user, min_domains):
    events, limits = draw(seed, n), Limits(core, min_user, min_domains)
    expected = slowly(events, limits)
    if not expected:
        with pytest.raises(CDSRError, match="the filters leave no event"):
            surviving(events.user, events.item, events.domain, limits)
        return
    kept, removed = surviving(events.user, events.item, events.domain, limits)
    assert kept.tolist() == expected
    assert sum(removed.values()) == n - len(kept)
    again, _ = surviving(events.user[kept], events.item[kept], events.domain[kept], limits)
    assert len(again) == len(kept), "a fixed point"


def test_nothing_is_removed_unasked():
    events = draw(0, 40)
    arranged, removed = arrange(events, Rules())
    assert sorted(rows(arranged)) == sorted(rows(events)) and not any(removed.values())


@pytest.mark.parametrize("seed", range(3))
def test_events_stand_by_time_and_ties_as_in_the_file(seed):
    events = draw(seed, 50)
    arranged, _ = arrange(events, Rules())
    for user in arranged.users.to_pylist():
        history = [row for row in rows(events) if row[0] == user]
        assert [row for row in rows(arranged) if row[0] == user] == sorted(history, key=lambda row: row[3])


def test_a_seed_shuffles_ties_only():
    events = draw(1, 60)
    plain, first, again, other = (rows(arrange(events, Rules(tie_seed=s))[0]) for s in (None, 7, 7, 8))
    assert first == again and first != other and first != plain
    assert [(r[0], r[3]) for r in first] == [(r[0], r[3]) for r in plain]
    assert sorted(first) == sorted(plain)


@pytest.mark.parametrize("repeats", ["keep", "exact", "first", "last"])
def test_repeats(repeats):
    events = draw(2, 60)
    before = rows(arrange(events, Rules())[0])
    after = rows(arrange(events, Rules(repeats=repeats))[0])
    key = (lambda row: row) if repeats == "exact" else (lambda row: row[:2])
    if repeats == "keep":
        expected = before
    else:
        ordered = before[::-1] if repeats == "last" else before
        expected = [row for n, row in enumerate(ordered) if key(row) not in [key(r) for r in ordered[:n]]]
        expected = expected[::-1] if repeats == "last" else expected
    assert after == expected


def test_counts():
    events = draw(3, 60)
    arranged, _ = arrange(events, Rules())
    table = rows(arranged)
    pairs = [(a, b) for a, b in zip(table, table[1:], strict=False) if a[0] == b[0]]
    assert count_ties(arranged) == {
        "pairs": len(pairs),
        "ties": sum(a[3] == b[3] for a, b in pairs),
        "ties_across_domains": sum(a[3] == b[3] and a[2] != b[2] for a, b in pairs),
    }
    assert count_repeats(arranged) == {
        "repeats": len(table) - len({row[:2] for row in table}),
        "exact_repeats": len(table) - len(set(table)),
    }


def test_an_item_of_two_domains_is_refused_or_becomes_two():
    events = draw(4, 30)
    events = Events(**{**vars(events), "domain": (events.domain + (np.arange(30) == 5)) % N_DOMAINS})
    with pytest.raises(CDSRError, match="--prefix_items") as error:
        arrange(events, Rules())
    assert f"'{rows(events)[5][1]}'" in str(error.value)
    prefixed = rows(arrange(events, Rules(prefix_items=True))[0])
    assert sorted(prefixed) == sorted((u, f"{d}:{i}", d, t) for u, i, d, t in rows(events))


class Nowhere:
    path = "log"

    def place(self, row: int) -> str:
        return f"line {row}"


def seconds(column: pa.Array, **options):
    reader = TimeReader(**options)
    times = reader.read(column, Nowhere(), np.arange(len(column)))
    unit = reader.unit_of(times)
    return to_seconds(times, unit, times.min().item()).tolist()


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (pa.array(["1600000000", "1600000100"]), {}),
        (pa.array([1600000000, 1600000100]), {}),
        (pa.array([1600000000.0, 1600000100.0]), {}),
        (pa.array(["1600000000000", "1600000100000"]), {}),
        (pa.array(["1600000000000000", "1600000100000000"]), {}),
        (pa.array([1600000000000000000, 1600000100000000000]), {}),
        (pa.array(["2020-09-13T12:26:40", "2020-09-13T12:28:20Z"]), {}),
        (pa.array(["2020-09-13 12:26:40.000", "2020-09-13 14:28:20+02:00"]), {}),
        (pa.array(["13/09/2020 12.26.40", "13/09/2020 12.28.20"]), {"pattern": "%d/%m/%Y %H.%M.%S"}),
        (pa.array([20200913122640, 20200913122820]), {"pattern": "%Y%m%d%H%M%S"}),
        (pa.array([20200913122640.0, 20200913122820.0]), {"pattern": "%Y%m%d%H%M%S"}),
        (pa.array([1600000000, 1600000100], pa.timestamp("s")), {}),
        (pa.array([1600000000000000001, 1600000100000000001], pa.timestamp("ns", "Asia/Tokyo")), {}),
        (pa.array([0, 100]), {}),
        (pa.array([5, 100005]), {"unit": "ms"}),
    ],
)
def test_every_way_to_write_times_gives_exact_seconds(column, options):
    found = seconds(column, **options)
    assert found == [0, 100] and all(isinstance(value, int) for value in found)


def test_fractions_stay():
    assert seconds(pa.array(["1600000000001", "1600000000003"])) == [0, 0.002]
    assert seconds(pa.array(["1600000000.25", "1600000000.5"])) == [0, 0.25]
    assert seconds(pa.array(["2020-01-01", "2020-01-02"])) == [0, 86_400]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["1600000000", "soon"]), "line 1: 'soon' is not a time"),
        (pa.array(["2020-01-01", "2020-13-01"]), "line 1: '2020-13-01' is not a date"),
        (pa.array([1, -5]), "line 1: '-5' is not a time"),
        (pa.array([1600000000, 1600000000000]), "look like different units"),
    ],
)
def test_what_is_no_time_is_told(column, message):
    with pytest.raises(CDSRError, match=message):
        seconds(column)
