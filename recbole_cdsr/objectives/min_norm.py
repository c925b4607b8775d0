"""The minimum-norm point: the shortest vector in the convex hull of the gradients.

Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018 (arXiv 1810.04650). Two objectives have the
closed form. For more we solve the quadratic programme exactly, by an active set, where common releases run a fixed
number of Frank-Wolfe steps and clip the weights of two.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives.gradients import as_float64


def min_norm_weights(gramian: Tensor) -> Tensor:
    """Weights [M] (non-negative, sum 1) of the point of smallest norm in the convex hull of M gradients.

    Defined for every finite Gramian: zero gradients share all the weight, identical gradients share theirs equally.
    Raises CDSRError on a Gramian that is not square, not finite, or has a negative diagonal.
    """
    if gramian.dim() != 2 or gramian.shape[0] != gramian.shape[1] or gramian.shape[0] == 0:
        raise CDSRError(f"a Gramian must be square with at least one row, not of shape {tuple(gramian.shape)}")
    matrix = as_float64(gramian)
    if not np.isfinite(matrix).all():
        raise CDSRError("the Gramian holds NaN or infinity; check the gradients before asking for weights")
    if (matrix.diagonal() < 0).any():
        raise CDSRError("the Gramian has a negative diagonal entry, so it does not hold inner products of gradients")
    return torch.as_tensor(min_norm_point(matrix)).to(gramian)


def min_norm_point(matrix: np.ndarray) -> np.ndarray:
    """`min_norm_weights` on a finite float64 array."""
    return _solve(matrix)[0]


def min_norm_steps(matrix: np.ndarray) -> int:
    """How many steps the active set takes for a finite float64 Gramian; 0 where the closed form answers."""
    return _solve(matrix)[1]


def _solve(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    largest = np.abs(matrix).max()
    matrix = matrix / largest if largest > 0 else matrix
    zero = matrix.diagonal() <= 0
    if zero.any():
        return zero / zero.sum(), 0
    weights, steps = (_min_norm_of_two(matrix), 0) if len(matrix) == 2 else _min_norm_of_many(matrix)
    # Equal rows are identical gradients (|g_i - g_j| = 0): any split of their weight is optimal, so take the equal one.
    same = (matrix[:, None, :] == matrix[None, :, :]).all(-1)
    return same @ weights / same.sum(1), steps


def _min_norm_of_two(matrix: np.ndarray) -> np.ndarray:
    """g_0 / (g_0 + g_1) with g_i the other gradient's excess over the inner product: no cancellation, no 0/0."""
    inner = 0.5 * (matrix[0, 1] + matrix[1, 0])
    excess = np.maximum(matrix.diagonal()[::-1] - inner, 0.0)  # [excess of 1, excess of 0]
    if not excess.any():  # identical up to rounding
        return np.array([0.5, 0.5])
    return excess / excess.sum()


def _min_norm_of_many(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """Exact solution by non-negative least squares, and the number of its steps.

    For s > 0 and weights on the simplex, min over s of |s x|^2 + (s - 1)^2 grows with |x|^2, so minimising
    |sum_i v_i g_i|^2 + (sum_i v_i - 1)^2 over v >= 0 finds the minimum-norm point, also when that point is the origin.
    Unit gradients (v_i = u_i / |g_i|) keep the problem well scaled when the norms differ by many orders.
    """
    norms = np.sqrt(matrix.diagonal())
    cosines = np.clip(0.5 * (matrix + matrix.T) / norms[:, None] / norms[None, :], -1.0, 1.0)
    np.fill_diagonal(cosines, 1.0)
    values, vectors = np.linalg.eigh(cosines)
    # Directions below rounding carry no information: dropping them makes dependent gradients exactly dependent.
    kept = values > len(matrix) * np.finfo(np.float64).eps * values[-1]
    unit_gradients = np.sqrt(values[kept])[:, None] * vectors[:, kept].T  # [rank, M]
    shrink = norms.min() / norms
    target = np.eye(len(unit_gradients) + 1)[-1]
    solution, steps = _non_negative_least_squares(np.vstack([unit_gradients, shrink]), target)
    weights = solution * shrink
    return weights / weights.sum(), steps


def _non_negative_least_squares(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, int]:
    """argmin |a x - b| over x >= 0, and the number of steps to it.

    Lawson & Hanson's active-set method (1974); columns of `a` have norms near 1.
    """
    n = a.shape[1]
    tolerance = 4 * n * np.finfo(np.float64).eps
    x, free, rejected = np.zeros(n), np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    count = 0
    while count < 10 * n + 10:  # far above what is needed; at the bound x is feasible and optimal up to rounding
        slope = np.where(free | rejected, -np.inf, a.T @ (b - a @ x))
        entering = int(slope.argmax())
        if slope[entering] <= tolerance:
            break
        count, free[entering] = count + 1, True
        candidate = _least_squares(a, b, free)
        if candidate[entering] <= 0:  # numerically dependent on the free columns: entering it would cycle
            free[entering], rejected[entering] = False, True
            continue
        while (candidate[free] <= 0).any():
            blocked = np.flatnonzero(free & (candidate <= 0))
            steps = x[blocked] / (x[blocked] - candidate[blocked])
            x = np.where(free, x + steps.min() * (candidate - x), 0.0)
            free[blocked[steps.argmin()]] = False
            free &= x > 0
            x[~free] = 0.0
            candidate = _least_squares(a, b, free)
        x, rejected[:] = candidate, False
    return x, count


def _least_squares(a: np.ndarray, b: np.ndarray, free: np.ndarray) -> np.ndarray:
    x = np.zeros(a.shape[1])
    x[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
    return x
