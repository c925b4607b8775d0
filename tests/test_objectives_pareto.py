"""The paper's Pareto step: the exact minimum found another way, KKT, what it degenerates to, degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives import min_norm_weights, pareto_weights
from tests.balancing import double, random_gradients

RATIOS = [1e-6, 0.003, 0.01, 0.02, 0.05, 0.3, 1.0, 4.0, 1e3, 1e9]  # a_cd / L_rec


def violated_directions(losses: np.ndarray, n_preferences: int) -> np.ndarray:
    """p_k - p_1 [n, 2] of the violated constraints, written down from the definition."""
    vectors = [(math.cos(a), math.sin(a)) for a in np.linspace(0, math.pi / 2, n_preferences + 1)]
    anchor = np.array(vectors[1])
    return np.array([p - anchor for k, p in enumerate(vectors) if k != 1 and p @ losses > anchor @ losses])


@pytest.mark.parametrize("kind", ["random", "aligned", "opposed", "mixed_scales"])
@pytest.mark.parametrize("n_preferences", [1, 2, 7, 100])
def test_pareto_weights_reach_the_minimum_over_the_simplex(n_preferences, kind):
    for seed, ratio in enumerate(RATIOS):
        vectors = random_gradients(seed, 2, 5, kind)
        matrix, losses = vectors @ vectors.T, np.array([1.0, ratio])
        weights = pareto_weights(double(matrix), double(losses), n_preferences).numpy()
        directions = violated_directions(losses, n_preferences)
        if len(directions) == 0:
            np.testing.assert_array_equal(weights, min_norm_weights(double(matrix)).numpy())
            continue
        norm = weights @ matrix @ weights
        scale = np.abs(directions @ matrix @ directions.T).max()
        # KKT: the nearest point of the hull; every constraint's gradient is at least as far along it.
        assert (directions @ matrix @ weights >= norm - 1e-13 * scale).all()
        # The solver for any number of gradients, which knows nothing of a plane, finds no shorter vector ...
        shares = min_norm_weights(double(directions @ matrix @ directions.T)).numpy()
        assert norm <= shares @ (directions @ matrix @ directions.T) @ shares + 1e-13 * scale
        # ... and the weights lie in the hull: between two neighbours, or the ends, of the polygon.
        assert_in_hull(weights, directions)


def assert_in_hull(point: np.ndarray, corners: np.ndarray) -> None:
    shifted = corners - point
    matrix = shifted @ shifted.T
    shares = min_norm_weights(double(matrix)).numpy()
    assert shares @ matrix @ shares < 1e-14 * max(1.0, (corners**2).sum(1).max())


def test_a_dense_grid_finds_nothing_shorter():
    vectors = random_gradients(3, 2, 4, "aligned")
    matrix, losses = vectors @ vectors.T, np.array([1.0, 4.0])
    weights = pareto_weights(double(matrix), double(losses), 3).numpy()
    directions = violated_directions(losses, 3)
    assert len(directions) == 2
    shares = np.linspace(0, 1, 10_001)[:, None]
    points = shares * directions[0] + (1 - shares) * directions[1]
    norms = np.einsum("ki,ij,kj->k", points, matrix, points)
    assert weights @ matrix @ weights == pytest.approx(norms.min(), rel=1e-6)
    np.testing.assert_allclose(weights, points[norms.argmin()], atol=1e-3)


def test_it_degenerates_as_the_docstring_says():
    """Above the band the recommendation loss is raised, below it a_cd is rewarded, inside it both are lowered."""
    matrix, band = double([[1.0, 0.1], [0.1, 0.5]]), math.pi / 200
    for ratio in np.tan(band * np.array([1.51, 3.0, 20.0, 95.0])):
        rec, cross_domain = pareto_weights(matrix, double([1.0, ratio]), 100)
        assert rec < 0 < cross_domain < 2 * band
    rec, cross_domain = pareto_weights(matrix, double([1.0, math.tan(0.49 * band)]), 100)
    assert cross_domain < 0 < rec
    for place in (0.51, 1.0, 1.49):
        weights = pareto_weights(matrix, double([1.0, math.tan(place * band)]), 100)
        torch.testing.assert_close(weights, min_norm_weights(matrix))


@pytest.mark.parametrize("scale", [1e-10, 1e15])
@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.3])
def test_neither_the_scale_of_gradients_nor_of_losses_matters(scale, ratio):
    vectors = double(random_gradients(5, 2, 4))
    matrix, losses = vectors @ vectors.T, double([1.0, ratio])
    expected = pareto_weights(matrix, losses, 100)
    torch.testing.assert_close(pareto_weights(matrix * scale**2, losses, 100), expected)
    torch.testing.assert_close(pareto_weights(matrix, losses * scale, 100), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("matrix", [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]],
                                    [[1.0, 1.0], [1.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])  # fmt: skip
def test_degenerate_gradients_have_finite_weights(matrix, dtype):
    for losses in ([1.0, 0.3], [0.0, 0.3], [1.0, 0.0], [0.0, 0.0]):
        weights = pareto_weights(torch.tensor(matrix, dtype=dtype), torch.tensor(losses), 100)
        assert weights.dtype == dtype
        assert weights.isfinite().all()


def test_bad_input_is_refused():
    good, losses = torch.eye(2), torch.tensor([1.0, 0.3])
    for matrix, values, hint in [
        (torch.eye(3), losses, "rec, cross_domain"),
        (good, torch.ones(3), "rec, cross_domain"),
        (good * math.nan, losses, "NaN"),
        (good, losses * math.inf, "NaN or infinity"),
    ]:
        with pytest.raises(CDSRError, match=hint):
            pareto_weights(matrix, values, 100)
    with pytest.raises(CDSRError, match="n_preferences"):
        pareto_weights(good, losses, 0)
