"""The preference step: reference numbers, formula = solver, KKT."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives import min_norm_weights, preference_factor, preference_weights
from tests.balancing import double

ROOT = math.sqrt(0.5)
# Losses ordered (a_cd, L_rec).
VECTORS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [ROOT, ROOT]], dtype=torch.float64)
ANCHOR = VECTORS[1]


def pair(cosine: float) -> torch.Tensor:
    return double([[1.0, cosine], [cosine, 1.0]])


@pytest.mark.parametrize(
    ("gradients", "losses", "anchor", "expected"),
    [  # numbers of the reference implementation; the first from its float32 solver, so to 1e-5
        ([[0.95659, -0.207559, -0.204583], [-0.953735, 0.235177, 0.187298]], [0.176779, 0.883313], 1,
         [0.3332936763763428, 0.3333531618118286]),
        ([[0.013638, 0.189887, 0.455, 0.64546, 0.235622, 0.280171, 0.315619, 0.32632],
          [0.160279, 0.317158, 0.52094, 0.48591, 0.460674, 0.141363, 0.283051, 0.23219]], [4.504422, 8.220574], 0,
         [0.7071002721786499, -0.2928997278213501]),
        ([[0.322497, 0.400554, 0.394152, 0.109475, 0.09163, 0.270324, 0.086678, 0.692262],
          [0.223533, 0.226865, 0.663135, 0.32351, -0.246354, 0.419207, 0.162836, 0.302022]], [0.045025, 0.258984], 1,
         [-0.2873093783855438, 0.6436547040939331]),
    ],
)  # fmt: skip
def test_preference_weights_against_reference_numbers(gradients, losses, anchor, expected):
    vectors = double([[0.0, 1.0], [1.0, 0.0], [0.7071, 0.7071]])
    matrix = double(gradients) @ double(gradients).T
    weights = preference_weights(matrix, double(losses), vectors, vectors[anchor])
    torch.testing.assert_close(weights, double(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("cosine", "ratio", "expected"),  # ratio: L_rec / a_cd; expected: the reference's weight_a / weight_rec
    [(-0.9994644533270001, 4.996707753749032, 0.9998215543084622), (-0.095144624511, 1.2345212915608592, 0.5681176),
     (0.773693597501, 5.752004441976679, -0.446371908), (0.713976309913, 5.746270818671438, -0.33277229),
     (-0.527082787205, 9.041251551707674, 0.81286113), (0.954374112421, 0.19794496353513788, 1.0000078678440618)],
)  # fmt: skip
def test_preference_factor_against_reference_numbers(cosine, ratio, expected):
    assert preference_factor(double(cosine), double(ratio), double(1.0)).item() == pytest.approx(expected, abs=2e-5)


def test_preference_factor_follows_the_closed_form():
    cosines = double([-1.0, 0.0, 0.5, 0.8, 1.0])
    expected = double([1.0, 0.5, 0.0, -0.5, -1.0])
    torch.testing.assert_close(preference_factor(cosines, double(3.0), double(1.0)), expected)
    assert (preference_factor(cosines, double(0.41), double(1.0)) == 1).all()
    assert preference_factor(double(1.0), double(0.9), double(1.0)).item() == pytest.approx(1 - math.sqrt(2))
    # Rounding of a cosine of parallel gradients must not leave the range.
    assert preference_factor(double(1.0 + 1e-7), double(3.0), double(1.0)) == -1.0


@pytest.mark.parametrize("ratio", [1e-4, 0.2, 0.41421, 0.41422, 0.5, 0.7, 0.99, 1.0, 1.0001, 2.0, 5.0, 1e4])
def test_preference_factor_equals_the_general_solver(ratio):
    near_ends = 10.0 ** -np.arange(2, 16, dtype=float)
    for cosine in [*np.linspace(-1, 1, 81), *(1 - near_ends), *(near_ends - 1)]:
        weights = preference_weights(pair(cosine), double([1.0, ratio]), VECTORS, ANCHOR)
        assert weights[1] > 0
        factor = preference_factor(double(cosine), double(ratio), double(1.0))
        assert (weights[0] / weights[1]).item() == pytest.approx(factor.item(), abs=1e-8)


@pytest.mark.parametrize("ratio", [0.3, 0.7, 3.0])
def test_preference_factor_is_continuous_and_falls_with_the_cosine(ratio):
    factors = preference_factor(torch.linspace(-1, 1, 20_001, dtype=torch.float64), double(ratio), double(1.0))
    steps = factors.diff()
    assert (steps <= 1e-15).all()
    assert steps.abs().max() < 5e-4


def test_preference_weights_of_more_objectives_satisfy_kkt():
    rng = np.random.default_rng(4)
    for n in (3, 5):
        gradients, losses = rng.standard_normal((n, 12)), rng.uniform(0.1, 3, n)
        vectors = rng.dirichlet(np.ones(n), 7)
        matrix = gradients @ gradients.T
        weights = preference_weights(double(matrix), double(losses), double(vectors), double(vectors[2])).numpy()
        active = [p - vectors[2] for p in vectors if (p - vectors[2]) @ losses > 0]
        directions = np.vstack([np.eye(n), *active])
        slopes = directions @ matrix @ weights  # of the losses and of every active constraint along the step
        assert slopes.min() >= weights @ matrix @ weights - 1e-12


def test_preference_weights_without_active_constraints_are_the_minimum_norm_weights():
    matrix = double([[2.0, -0.5], [-0.5, 1.0]])
    weights = preference_weights(matrix, double([1.0, 0.1]), VECTORS, ANCHOR)
    torch.testing.assert_close(weights, min_norm_weights(matrix))
    with pytest.raises(CDSRError, match="NaN"):
        preference_weights(matrix, double([1.0, math.nan]), VECTORS, ANCHOR)
