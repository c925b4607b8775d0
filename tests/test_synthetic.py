"""The planted rule: it holds at its rate, every history ends on it, and one domain alone cannot show it."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_cdsr.data.synthetic import PlantedEvents, planted_rule, toy, write_atomic
from recbole_cdsr.errors import CDSRError


@pytest.fixture(scope="module")
def events() -> PlantedEvents:
    return planted_rule(2000, 10, 3, noise=0.1, weak_markov=0.2, seed=7)


def by_user(events: PlantedEvents) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(item, domain, timestamp) of each history, in the order of time."""
    order = np.lexsort((events.timestamp, events.user))
    starts = np.flatnonzero(np.diff(events.user[order])) + 1
    return [(events.item[part], events.domain[part], events.timestamp[part]) for part in np.split(order, starts)]


def followers(histories: list[np.ndarray], n_items: int) -> np.ndarray:
    """counts[i, j]: how often j follows i directly."""
    counts = np.zeros((n_items, n_items))
    for items in histories:
        np.add.at(counts, (items[:-1], items[1:]), 1)
    return counts


def mutual_information(counts: np.ndarray) -> float:
    """In nats; the bias of counting (Miller & Madow) is subtracted."""
    joint = counts / counts.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    plain = (joint[seen] * np.log(joint[seen] / independent[seen])).sum()
    return plain - (len(counts) - 1) ** 2 / (2 * counts.sum())


def assert_same(one: PlantedEvents, other: PlantedEvents) -> None:
    for field in ("user", "item", "domain", "timestamp", "rule"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_the_seed_decides_everything():
    assert_same(planted_rule(20, 5, seed=3), planted_rule(20, 5, seed=3))
    assert_same(toy(), toy())
    assert not np.array_equal(planted_rule(20, 5, seed=3).timestamp[:20], planted_rule(20, 5, seed=4).timestamp[:20])


@pytest.mark.parametrize("make", [toy, lambda: planted_rule(500, 8, 4, seed=1)])
def test_every_history_is_long_enough_ends_with_two_switches_and_moves_forward(make):
    events = make()
    assert (np.diff(events.timestamp) >= 0).all()  # the file's order is that of time
    histories = by_user(events)
    assert len(histories) == events.user.max() + 1
    for _, domain, timestamp in histories:
        assert len(domain) >= 4
        assert (np.diff(timestamp) > 0).all()
        assert domain[-1] != domain[-2] != domain[-3]
        visits = np.split(domain, np.flatnonzero(np.diff(domain)) + 1)
        assert all(2 <= len(visit) <= 4 for visit in visits[:-2])


def test_every_item_belongs_to_one_domain(events):
    np.testing.assert_array_equal(events.domain, events.item // 10)
    assert set(np.unique(events.item)) == set(range(30))


def test_the_rule_is_one_permutation_for_each_pair_of_domains(events):
    assert events.rule.shape == (3, 3, 10)
    assert (np.sort(events.rule, axis=-1) == np.arange(10)).all()


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 1.0])
def test_the_rule_holds_at_its_rate(noise):
    events = planted_rule(2000, 10, 3, noise=noise, seed=7)
    ends, others = [], []
    for item, domain, _ in by_user(events):
        kept = item[1:] == events.rule[domain[:-1], domain[1:], item[:-1] % 10] + domain[1:] * 10
        switch = domain[1:] != domain[:-1]
        ends += [kept[-2:]]
        others += [kept[:-2][switch[:-2]]]
    expected = 1 - noise + noise / 10  # a random item is the rule's by chance
    for kept in (np.stack(ends)[:, 0], np.stack(ends)[:, 1], np.concatenate(others)):
        spread = np.sqrt(expected * (1 - expected) / len(kept))
        assert abs(kept.mean() - expected) <= 4 * spread


def test_inside_a_visit_only_a_weak_preference_shows(events):
    kept = []
    for item, domain, _ in by_user(events):
        inside = domain[1:] == domain[:-1]
        kept.append((item[1:] == events.rule[domain[1:], domain[1:], item[:-1] % 10] + domain[1:] * 10)[inside])
    assert 0.1 < np.concatenate(kept).mean() < 0.25


@pytest.mark.parametrize("n_domains", [2, 3])
def test_one_domain_alone_does_not_show_the_rule(n_domains):
    """The first item of a visit tells nothing about what came before it in its own domain; across domains it does."""
    events = planted_rule(3000, 6, n_domains, noise=0.0, weak_markov=0.3, seed=5)
    n_items = 6 * n_domains
    across, within = np.zeros((n_items, n_items)), np.zeros((n_items, n_items))
    for item, domain, _ in by_user(events):
        item, domain = item[:-2], domain[:-2]  # what training targets show
        for d in range(n_domains):
            places = np.flatnonzero(domain == d)
            entered = np.flatnonzero(np.diff(places) > 1)
            np.add.at(within, (item[places[entered]], item[places[entered + 1]]), 1)
        switch = np.flatnonzero(np.diff(domain))
        np.add.at(across, (item[switch], item[switch + 1]), 1)
    for d in range(n_domains):
        own = slice(6 * d, 6 * d + 6)
        assert abs(mutual_information(within[own, own])) < 0.02
        before = np.delete(np.arange(n_items), np.r_[own])[:6]  # one other domain
        assert mutual_information(across[before][:, own]) > 0.9 * np.log(6)


def test_counting_predicts_the_last_events_of_toy_from_all_domains_but_not_from_one():
    """The simplest model there is, on the set that the package ships."""
    events = toy()
    histories = by_user(events)
    every = followers([item[:-2] for item, _, _ in histories], 40)
    single = followers([item[:-2][domain[:-2] == d] for item, domain, _ in histories for d in (0, 1)], 40)
    hits = {"every": 0, "single": 0}
    for item, domain, _ in histories:
        candidates = slice(20 * domain[-1], 20 * domain[-1] + 20)
        before = item[:-1][domain[:-1] == domain[-1]][-1]
        hits["every"] += every[item[-2], candidates].argmax() == item[-1] % 20
        hits["single"] += single[before, candidates].argmax() == item[-1] % 20
    assert hits["every"] > 0.8 * len(histories)
    assert hits["single"] < 0.2 * len(histories)


def test_the_files_are_atomic_files(tmp_path):
    events = toy()
    write_atomic(tmp_path / "new" / "toy", "toy", events)
    folder = tmp_path / "new" / "toy"
    assert sorted(path.name for path in folder.iterdir()) == ["toy.inter", "toy.item"]
    header, *rows = (folder / "toy.inter").read_text(encoding="utf-8").splitlines()
    assert header == "user_id:token\titem_id:token\ttimestamp:float"
    expected = zip(events.user, events.item, events.timestamp, strict=True)
    assert rows == [f"u{user}\ti{item}\t{timestamp}" for user, item, timestamp in expected]
    header, *rows = (folder / "toy.item").read_text(encoding="utf-8").splitlines()
    assert header == "item_id:token\tdomain_id:token"
    assert rows == [f"i{item}\td{item // 20}" for item in range(40)]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20_000


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_atomic(tmp_path, "toy", toy())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("recbole_cdsr.data.synthetic.os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomic(tmp_path, "toy", planted_rule(5, 4))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n_users": 0}, "n_users"),
        ({"n_items_per_domain": 1}, "n_items_per_domain"),
        ({"n_domains": 1}, "n_domains"),
        ({"n_visits": (0, 2)}, "n_visits"),
        ({"n_visits": (3, 2)}, "n_visits"),
        ({"visit_length": (1, 3)}, "visit_length"),
        ({"noise": 1.1}, "noise"),
        ({"weak_markov": -0.1}, "weak_markov"),
    ],
)
def test_a_number_out_of_range_is_named(arguments, named):
    with pytest.raises(CDSRError, match=named):
        planted_rule(**({"n_users": 5, "n_items_per_domain": 5} | arguments))
