"""The minimum-norm point: properties, exact minima found another way, reference numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives import min_norm, min_norm_weights
from tests.balancing import double, random_gradients

KINDS = ["random", "aligned", "mixed_scales", "near_duplicates", "opposed", "integers"]


def assert_kkt(matrix: np.ndarray, weights: np.ndarray, tolerance: float = 1e-13) -> None:
    """x is the minimum-norm point exactly when g_i . x >= x . x for every gradient, and equal where it has weight."""
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    norms = np.sqrt(matrix.diagonal())
    slack = (matrix @ weights - weights @ matrix @ weights) / (norms * max(norms.min(), np.finfo(float).tiny))
    assert slack.min() > -tolerance
    assert np.abs(slack * weights).max() < tolerance * 1e2


def exact_by_enumeration(matrix: np.ndarray) -> float:
    """Smallest squared norm over all sets of gradients that may carry weight (independent of the package's solver)."""
    if (matrix.diagonal() == 0).any():
        return 0.0
    norms, n = np.sqrt(matrix.diagonal()), len(matrix)
    cosines, shrink = matrix / np.outer(norms, norms), norms.min() / norms
    best = norms.min() ** 2
    for size in range(2, n + 1):
        for support in map(list, itertools.combinations(range(n), size)):
            border = shrink[support][:, None]
            system = np.block([[cosines[np.ix_(support, support)], border], [border.T, np.zeros((1, 1))]])
            if np.linalg.cond(system) > 1e12:  # dependent: the same point has a smaller support
                continue
            weights = np.linalg.solve(system, np.eye(size + 1)[-1])[:-1]  # of unit gradients
            if (weights >= 0).all():
                unit_norm = weights @ cosines[np.ix_(support, support)] @ weights
                best = min(best, unit_norm * norms.min() ** 2)
    return best


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "width"), [(2, 3), (3, 3), (4, 32), (6, 8), (8, 3)])
def test_min_norm_reaches_the_exact_minimum(n, width, kind):
    for seed in range(3):
        vectors = random_gradients(seed, n, width, kind)
        matrix = vectors @ vectors.T
        weights = min_norm_weights(double(matrix)).numpy()
        assert_kkt(matrix, weights)
        badly_conditioned = kind == "near_duplicates" or (kind == "mixed_scales" and n > width)
        if not badly_conditioned:  # for the enumeration; the conditions above decide alone
            exact = exact_by_enumeration(matrix)
            assert weights @ matrix @ weights == pytest.approx(exact, rel=1e-9, abs=1e-12 * matrix.diagonal().min())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "width"), [(16, 10), (21, 200), (33, 200), (64, 30), (64, 500)])
def test_min_norm_of_many_objectives_satisfies_kkt(n, width, kind):
    vectors = random_gradients(n + width, n, width, kind)
    matrix = vectors @ vectors.T
    if (matrix.diagonal() > 0).all():
        assert_kkt(matrix, min_norm_weights(double(matrix)).numpy())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=n, max_size=n
        )
    )
)  # fmt: skip
def test_min_norm_of_integer_gradients(vectors):
    """Small integers reach every degenerate case: zeros, duplicates, opposed gradients, the origin inside the hull."""
    matrix = np.array(vectors, dtype=float) @ np.array(vectors, dtype=float).T
    weights = min_norm_weights(double(matrix)).numpy()
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1.0)
    norm = weights @ matrix @ weights
    assert norm == pytest.approx(exact_by_enumeration(matrix), abs=1e-12)
    assert (matrix @ weights >= norm - 1e-12).all()


def test_closed_form_of_two_equals_the_solver():
    for seed in range(200):
        vectors = random_gradients(seed, 2, 3, KINDS[seed % 3])
        matrix = vectors @ vectors.T
        closed, solved = min_norm._min_norm_of_two(matrix), min_norm._min_norm_of_many(matrix)[0]
        np.testing.assert_allclose(closed, solved, atol=1e-12)


def test_min_norm_of_two_against_reference_numbers():
    """A reference implementation's weights, and the exact weights where it clips them."""
    vectors = double([[1.359748, 1.224721, -0.510307], [-0.29797, -0.527384, 0.569726]])
    expected = double([0.29112212299708595, 0.708877877002914])
    torch.testing.assert_close(min_norm_weights(vectors @ vectors.T), expected, rtol=0, atol=1e-12)
    vectors = double([[2.746886, 0.152675, 3.566549], [1.903568, 2.680378, 1.863434], [1.620901, 2.46311, 2.824514],
                      [1.79747, 1.847214, 2.685699]])  # fmt: skip
    expected = double([0.0, 0.34643697492005937, 0.0, 0.6535630250799382])
    torch.testing.assert_close(min_norm_weights(vectors @ vectors.T), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 21])
def test_min_norm_does_not_depend_on_scale(n, dtype):
    vectors = random_gradients(n, n, 30)
    base = torch.as_tensor(vectors @ vectors.T, dtype=dtype)
    expected = min_norm_weights(base)
    assert expected.dtype == dtype
    for exponent in range(-20, 31, 5):  # gradients from 1e-10 to 1e15
        weights = min_norm_weights(base * 10.0**exponent)
        torch.testing.assert_close(weights, expected, rtol=1e-5 if dtype == torch.float32 else 1e-11, atol=1e-6)


def test_min_norm_of_gradients_with_norms_from_1e_minus_10_to_1e15():
    norms = 10.0 ** np.array([-10.0, 0.0, 15.0])
    weights = min_norm_weights(double(np.diag(norms**2))).numpy()
    np.testing.assert_allclose(weights, norms**-2 / (norms**-2).sum(), rtol=1e-9, atol=1e-40)


@pytest.mark.parametrize("n", [2, 3, 6, 21, 64])
def test_min_norm_permutes_with_its_objectives(n):
    vectors = random_gradients(n, n, 40)
    matrix, order = double(vectors @ vectors.T), torch.randperm(n, generator=torch.Generator().manual_seed(n))
    permuted = min_norm_weights(matrix[order][:, order])
    torch.testing.assert_close(permuted, min_norm_weights(matrix)[order], rtol=0, atol=1e-12)


def test_steps_of_the_solver_are_counted():
    assert min_norm.min_norm_steps(np.eye(2)) == 0
    assert [min_norm.min_norm_steps(np.eye(n)) for n in (3, 6, 21)] == [3, 6, 21]  # each objective enters once
    shortest = np.diag([1.0, 1.0, 1e-6]) + 0.1 * (1 - np.eye(3))
    assert min_norm.min_norm_steps(np.where(np.isclose(shortest, 0.1), 1e-4, shortest)) < 3


def test_min_norm_of_degenerate_gramians():
    assert min_norm_weights(double([[7.0]])).tolist() == [1.0]
    assert min_norm_weights(double([[0.0]])).tolist() == [1.0]
    assert min_norm_weights(double([[0.0, 0.0], [0.0, 4.0]])).tolist() == [1.0, 0.0]
    assert min_norm_weights(torch.zeros(3, 3)).tolist() == pytest.approx([1 / 3] * 3)
    assert min_norm_weights(torch.ones(2, 2)).tolist() == [0.5, 0.5]
    assert min_norm_weights(torch.ones(5, 5)).tolist() == pytest.approx([0.2] * 5)
    assert min_norm_weights(double([[1.0, -3.0], [-3.0, 9.0]])).tolist() == [0.75, 0.25]
    assert min_norm_weights(double([[1.0, 2.0], [2.0, 4.0]])).tolist() == [1.0, 0.0]
    duplicated = random_gradients(1, 3, 4)[[0, 1, 0, 2]]
    weights = min_norm_weights(double(duplicated @ duplicated.T))
    assert weights[0] == weights[2]


@pytest.mark.parametrize("n", [2, 4, 9])
def test_unit_gradients_with_equal_cosines_share_the_weight_equally(n):
    matrix = torch.full((n, n), 0.3, dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(min_norm_weights(matrix), torch.full((n,), 1 / n, dtype=torch.float64))


@pytest.mark.parametrize(
    "bad",
    [
        torch.ones(2, 3),
        torch.ones(2),
        torch.empty(0, 0),
        double([[1.0, math.nan], [math.nan, 1.0]]),
        double([[math.inf]]),
        double([[-1.0]]),
    ],  # fmt: skip
)
def test_min_norm_refuses_what_is_no_gramian(bad):
    with pytest.raises(CDSRError, match="Gramian"):
        min_norm_weights(bad)
