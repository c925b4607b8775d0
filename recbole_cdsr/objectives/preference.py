"""The preference step of AutoCDSR's release (Ju et al., 2025, arXiv 2505.21811), solved exactly.

It follows Lin et al., "Pareto Multi-Task Learning", 2019 (arXiv 1912.12854). AutoCDSR's text has another step, which is
in `pareto`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives.gradients import as_float64
from recbole_cdsr.objectives.min_norm import min_norm_point


def preference_weights(gramian: Tensor, losses: Tensor, preference_vectors: Tensor, anchor: Tensor) -> Tensor:
    """Weights [M] of the preference step, not normalised and with their signs.

    gramian [M, M] (AutoCDSR: of unit gradients), losses [M], preference_vectors [K, M], anchor [M]. With
    w_k = p_k - anchor, constraint k is active where w_k . losses > 0 (strictly: the anchor itself never is). The step
    is the minimum-norm point over the M gradients and the gradients of the active constraints w_k . losses.
    """
    matrix, values = as_float64(gramian), as_float64(losses)
    if not np.isfinite(values).all() or not np.isfinite(matrix).all():
        raise CDSRError("losses or Gramian hold NaN or infinity; check them before asking for weights")
    vectors, anchor = as_float64(torch.as_tensor(preference_vectors)), as_float64(torch.as_tensor(anchor))
    return torch.as_tensor(preference_step(matrix, values, vectors, anchor)).to(gramian)


def preference_step(matrix: np.ndarray, losses: np.ndarray, vectors: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """`preference_weights` on finite float64 arrays."""
    constraints = vectors - anchor
    active = constraints[constraints @ losses > 0]
    directions = np.vstack([np.eye(len(matrix)), active])  # [M + active, M]
    return min_norm_point(directions @ matrix @ directions.T) @ directions


def preference_factor(cosine: Tensor, rec_loss: Tensor, cross_domain: Tensor) -> Tensor:
    """Multiplier of a_cd in the step along L_rec + factor * a_cd; broadcasts, not clipped, finite for finite input.

    cosine: between the gradients of L_rec and a_cd. Equals weight_a / weight_rec of `preference_weights` with losses
    (a_cd, L_rec), vectors (0, 1), (1, 0), (sqrt .5, sqrt .5), anchor (1, 0) and unit gradients:

        L_rec > a_cd:                          (1 - 2c) / (2 - c): 1 at c = -1, 0.5 at 0, 0 at 0.5, -1 at 1
        (sqrt 2 - 1) a_cd < L_rec <= a_cd:     (s - b c) / (b - s c), s = sqrt .5, b = 2 - s, never below 1 - sqrt 2
        L_rec <= (sqrt 2 - 1) a_cd:            1

    In each region the step lies between g_a and the gradient of one active constraint. It is continuous in c, and jumps
    where L_rec / a_cd switches a constraint on or off.
    """
    s, b = math.sqrt(0.5), 2 - math.sqrt(0.5)
    c = cosine.clamp(-1.0, 1.0)
    # The bound is the constraint's own gradient, the end of that segment; the first region never reaches it.
    band = ((s - b * c) / (b - s * c)).clamp(min=1 - 1 / s)
    factor = torch.where(rec_loss > (1 / s - 1) * cross_domain, band, torch.ones_like(c))
    return torch.where(rec_loss > cross_domain, (1 - 2 * c) / (2 - c), factor)
