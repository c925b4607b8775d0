"""The Pareto step of AutoCDSR's text (Ju et al., 2025, arXiv 2505.21811).

It follows Lin et al., "Pareto Multi-Task Learning", 2019 (arXiv 1912.12854). The release has another step, which is in
`preference`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives.gradients import as_float64
from recbole_cdsr.objectives.min_norm import min_norm_point


def pareto_weights(gramian: Tensor, losses: Tensor, n_preferences: int) -> Tensor:
    """Weights [2] of the step for losses l = (L_rec, a_cd), not normalised and with their signs.

    gramian [2, 2] of the gradients, losses [2], n_preferences K >= 1. The K + 1 vectors are
    p_k = (cos(k pi / 2K), sin(k pi / 2K)), k = 0..K, and the region is that of p_1. Constraint k is violated where
    p_k . l > p_1 . l: strictly, since p_1 itself would otherwise be in the set and the step would collapse to zero.
    With violated constraints the weights are sum_k beta_k (p_k - p_1), beta on the simplex with the smallest
    |sum_k beta_k (p_k - p_1)^T grad l|^2; without any they are those of the minimum-norm point of the two gradients.

    There is no number of iterations to set where the text runs Frank-Wolfe: the points (p_k - p_1)^T grad l lie in a
    plane, and the minimum is found exactly on the edges of their polygon.

    What this degenerates to: with r = atan(a_cd / L_rec) and t = pi / 2K, constraints 2, 3, ... are violated where
    r > 1.5 t, and each has a negative weight on L_rec: the step lowers a_cd and *raises* L_rec. Where r < 0.5 t only
    constraint 0 is violated, whose weight on a_cd is negative. Both losses are lowered only in the narrow band between
    (for K = 100: a_cd from 0.8 to 2.4 % of L_rec). Outside it the weights are of the order of t.

    Raises CDSRError on other shapes, NaN, infinity, or K below 1.
    """
    if gramian.shape != (2, 2) or losses.shape != (2,):
        shapes = f"{tuple(gramian.shape)} and {tuple(losses.shape)}"
        raise CDSRError(f"pareto_weights() needs Gramian [2, 2] and losses [2] of (rec, cross_domain), not {shapes}")
    if n_preferences < 1:
        raise CDSRError(f"n_preferences is {n_preferences!r}; give a whole number of at least 1")
    matrix, values = as_float64(gramian), as_float64(losses)
    if not np.isfinite(values).all() or not np.isfinite(matrix).all():
        raise CDSRError("losses or Gramian hold NaN or infinity; check them before asking for weights")
    return torch.as_tensor(pareto_step(matrix, values, n_preferences)).to(gramian)


def pareto_step(matrix: np.ndarray, losses: np.ndarray, n_preferences: int) -> np.ndarray:
    """`pareto_weights` on finite float64 arrays."""
    angles = np.arange(n_preferences + 1) * (math.pi / (2 * n_preferences))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    directions = vectors - vectors[1]
    violated = directions[directions @ losses > 0]
    if len(violated) == 0:
        return min_norm_point(matrix)
    return _nearest_to_origin(violated @ _in_a_plane(matrix)) @ violated


def _in_a_plane(matrix: np.ndarray) -> np.ndarray:
    """Two vectors [2, 2], one a row, with this Gramian; the first lies on the first axis."""
    first, second = np.sqrt(matrix.diagonal())
    cosine = min(max(matrix[0, 1] / first / second, -1.0), 1.0) if first > 0 and second > 0 else 0.0
    return np.array([[first, 0.0], [second * cosine, second * math.sqrt((1 - cosine) * (1 + cosine))]])


def _nearest_to_origin(points: np.ndarray) -> np.ndarray:
    """Shares [n] of the point nearest to the origin in the hull of points [n, 2], the corners of a polygon in order.

    The origin is never inside: before the linear map to gradients it is p_1, which lies with the p_k on a circle, and a
    singular map leaves a line, all edge. So the nearest point lies on an edge (for n = 1 of length 0).
    """
    edges = np.roll(points, -1, axis=0) - points
    squares = (edges**2).sum(1)
    along = np.divide(-(points * edges).sum(1), squares, out=np.zeros(len(points)), where=squares > 0).clip(0.0, 1.0)
    feet = points + along[:, None] * edges
    nearest = int((feet**2).sum(1).argmin())
    shares = np.zeros(len(points))
    shares[nearest] = 1 - along[nearest]
    shares[(nearest + 1) % len(points)] += along[nearest]
    return shares
