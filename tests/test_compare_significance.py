"""Paired tests and Holm's correction: known values, and what must never depend on anything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recbole_cdsr.compare import significance
from recbole_cdsr.compare.significance import against_best, bootstrap, holm, wilcoxon


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 999)


def test_holm_of_a_worked_example():
    """Four tests: .005 x 4, .01 x 3, .03 x 2, .04 x 1, each at least as large as the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.6]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_lies_between_the_value_and_bonferroni_and_forgets_the_order(p_values, random):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1, p * len(p_values)) + 1e-12
    order = list(range(len(p_values)))
    random.shuffle(order)
    assert holm([p_values[n] for n in order]) == [corrected[n] for n in order]


def test_the_interval_is_that_of_a_normal_mean():
    values = np.random.default_rng(1).normal(0.3, 1.0, 400)
    found, error = bootstrap([values]), values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx([found.mean - 1.96 * error, found.mean + 1.96 * error], abs=0.015)
    assert found.p < 0.01


def test_strata_count_alike_whatever_their_size():
    rng = np.random.default_rng(2)
    large, small = rng.normal(1, 0.1, 500), rng.normal(-1, 0.1, 20)
    found = bootstrap([large, small])
    assert found.mean == pytest.approx((large.mean() + small.mean()) / 2)
    assert found.low < found.mean < found.high and found.high - found.low < 0.1


def test_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(3)
    p = [(bootstrap([d]).p, wilcoxon(d)) for d in rng.normal(0, 1, (60, 40))]
    for column in zip(*p, strict=True):
        assert stats.kstest(column, "uniform").pvalue > 0.001


def test_wilcoxon_is_scipys_and_drops_zeros():
    values = np.random.default_rng(4).normal(0.2, 1, 50)
    assert wilcoxon(values) == stats.wilcoxon(values).pvalue == wilcoxon(np.append(values, np.zeros(500)))
    assert wilcoxon(np.full(10, 1e-17)) == 1.0, "noise of the last bit is no difference"


def test_one_event_decides_nothing():
    assert bootstrap([np.array([0.5])]).p < 1 and wilcoxon(np.array([0.5])) == 1.0
    assert bootstrap([np.zeros(1)]) == (0, 0, 0, 1)


def values_of(shift: float, domains=("a", "b"), metrics=("ndcg@10", "mrr@10"), seed=5):
    rng = np.random.default_rng(seed)
    return {(d, m): rng.normal(shift, 1, 120) for d in domains for m in metrics}


def test_identical_models_never_differ():
    values = values_of(0.0)
    found = against_best({"one": values, "two": values})
    assert found and all(one.p_bootstrap == one.p_wilcoxon == 1 and one.mark == "" for one in found)


def test_a_clear_difference_is_marked_by_both():
    found = against_best({"good": values_of(2.0), "bad": values_of(0.0, seed=6)})
    assert {(one.best, one.other, one.mark) for one in found} == {("good", "bad", "‡")} and len(found) == 4


def test_the_order_of_domains_and_models_changes_nothing():
    values = {"x": values_of(0.0), "y": values_of(0.2, seed=7), "z": values_of(0.3, seed=8)}
    turned = {m: dict(reversed(columns.items())) for m, columns in reversed(values.items())}
    assert sorted(against_best(values)) == sorted(against_best(turned))


def test_a_domain_without_events_is_passed_over():
    values = {name: {("a", "m"): np.ones(5), ("b", "m"): np.ones(0)} for name in "xy"}
    assert [one.domain for one in against_best(values)] == ["a"]
