"""Balancing several losses by their gradients: everything here sees an [M, M] Gramian and [M] losses, never a network.

- Minimum-norm point: Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018 (arXiv 1810.04650).
  Two objectives have the closed form. For more we solve the quadratic programme exactly, by an active set, where
  common releases run a fixed number of Frank-Wolfe steps and clip the weights of two.
- Preference step: Lin et al., "Pareto Multi-Task Learning", 2019 (arXiv 1912.12854), as AutoCDSR (Ju et al., 2025,
  arXiv 2505.21811) uses it. AutoCDSR's text and its release differ; this is the release's step, solved exactly, with
  a negative factor clipped unless asked otherwise.

The solvers work in float64 on the CPU and answer in the dtype and on the device of the Gramian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError

NEGATIVE_FACTOR_CHOICES = ("clip", "keep")


def gramian(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Inner products [M, M] of M gradients, each a list with one tensor (or None: zero) per parameter.

    Sums parameter by parameter in at least float32, without concatenating the gradients into one vector.
    """
    if len({len(row) for row in gradients}) != 1:
        raise CDSRError("gramian() needs at least one gradient, and the same parameters in the same order in each")
    n = len(gradients)
    given = [g for row in gradients for g in row if g is not None]
    if not given:
        return torch.zeros(n, n)
    dtype = torch.float32
    for g in given:
        dtype = torch.promote_types(dtype, g.dtype)
    products = [[given[0].new_zeros((), dtype=dtype)] for _ in range(n * n)]  # terms of each entry, row by row
    for column in zip(*gradients, strict=True):
        views = _flat_views(column, dtype)
        for i in range(n):
            for j in range(i, n):
                if views[i] is not None and views[j] is not None:
                    products[i * n + j].append(torch.dot(views[i], views[j]))
    upper = torch.stack([torch.stack(terms).sum() for terms in products]).view(n, n)
    return upper + upper.triu(1).T


def _flat_views(column: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """One parameter's gradients as vectors in one common order of elements; no copy if they are laid out alike."""
    strides = {g.stride() for g in column if g is not None}
    if len(strides) != 1:
        return [None if g is None else g.detach().reshape(-1).to(dtype) for g in column]
    stride = strides.pop()
    # In the memory's own order reshape gives a view of a transposed tensor, which linear layers' gradients often are.
    order = sorted(range(len(stride)), key=stride.__getitem__, reverse=True)
    return [None if g is None else g.detach().permute(order).reshape(-1).to(dtype) for g in column]


def min_norm_weights(gramian: Tensor) -> Tensor:
    """Weights [M] (non-negative, sum 1) of the point of smallest norm in the convex hull of M gradients.

    Defined for every finite Gramian: zero gradients share all the weight, identical gradients share theirs equally.
    Raises CDSRError on a Gramian that is not square, not finite, or has a negative diagonal.
    """
    if gramian.dim() != 2 or gramian.shape[0] != gramian.shape[1] or gramian.shape[0] == 0:
        raise CDSRError(f"a Gramian must be square with at least one row, not of shape {tuple(gramian.shape)}")
    matrix = _float64(gramian)
    if not np.isfinite(matrix).all():
        raise CDSRError("the Gramian holds NaN or infinity; check the gradients before asking for weights")
    if (matrix.diagonal() < 0).any():
        raise CDSRError("the Gramian has a negative diagonal entry, so it does not hold inner products of gradients")
    return torch.as_tensor(_min_norm(matrix)).to(dtype=gramian.dtype, device=gramian.device)


def _float64(x: Tensor) -> np.ndarray:
    return x.detach().cpu().to(torch.float64).numpy()  # the CPU first: not every device has float64


def _min_norm(matrix: np.ndarray) -> np.ndarray:
    largest = np.abs(matrix).max()
    matrix = matrix / largest if largest > 0 else matrix
    zero = matrix.diagonal() <= 0
    if zero.any():
        return zero / zero.sum()
    weights = _min_norm_of_two(matrix) if len(matrix) == 2 else _min_norm_of_many(matrix)
    # Equal rows are identical gradients (|g_i - g_j| = 0): any split of their weight is optimal, so take the equal one.
    same = (matrix[:, None, :] == matrix[None, :, :]).all(-1)
    return same @ weights / same.sum(1)


def _min_norm_of_two(matrix: np.ndarray) -> np.ndarray:
    """g_0 / (g_0 + g_1) with g_i the other gradient's excess over the inner product: no cancellation, no 0/0."""
    inner = 0.5 * (matrix[0, 1] + matrix[1, 0])
    excess = np.maximum(matrix.diagonal()[::-1] - inner, 0.0)  # [excess of 1, excess of 0]
    if not excess.any():  # identical up to rounding
        return np.array([0.5, 0.5])
    return excess / excess.sum()


def _min_norm_of_many(matrix: np.ndarray) -> np.ndarray:
    """Exact solution by non-negative least squares.

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
    solution = _non_negative_least_squares(np.vstack([unit_gradients, shrink]), np.eye(len(unit_gradients) + 1)[-1])
    weights = solution * shrink
    return weights / weights.sum()


def _non_negative_least_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """argmin |a x - b| over x >= 0 by Lawson & Hanson's active-set method (1974); columns of `a` have norms near 1."""
    n = a.shape[1]
    tolerance = 4 * n * np.finfo(np.float64).eps
    x, free, rejected = np.zeros(n), np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    for _ in range(10 * n + 10):  # far above what is needed; at the bound x is feasible and optimal up to rounding
        slope = np.where(free | rejected, -np.inf, a.T @ (b - a @ x))
        entering = int(slope.argmax())
        if slope[entering] <= tolerance:
            break
        free[entering] = True
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
    return x


def _least_squares(a: np.ndarray, b: np.ndarray, free: np.ndarray) -> np.ndarray:
    x = np.zeros(a.shape[1])
    x[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
    return x


def preference_weights(gramian: Tensor, losses: Tensor, preference_vectors: Tensor, anchor: Tensor) -> Tensor:
    """Weights [M] of the preference step, not normalised and with their signs.

    gramian [M, M] (AutoCDSR: of unit gradients), losses [M], preference_vectors [K, M], anchor [M]. With
    w_k = p_k - anchor, constraint k is active where w_k . losses > 0 (strictly: the anchor itself never is). The step
    is the minimum-norm point over the M gradients and the gradients of the active constraints w_k . losses.
    """
    matrix, values = _float64(gramian), _float64(losses)
    if not np.isfinite(values).all() or not np.isfinite(matrix).all():
        raise CDSRError("losses or Gramian hold NaN or infinity; check them before asking for weights")
    constraints = _float64(torch.as_tensor(preference_vectors)) - _float64(torch.as_tensor(anchor))[None, :]
    active = constraints[constraints @ values > 0]
    directions = np.vstack([np.eye(len(matrix)), active])  # [M + active, M]
    shares = _min_norm(directions @ matrix @ directions.T)
    return torch.as_tensor(shares @ directions).to(dtype=gramian.dtype, device=gramian.device)


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


@dataclass(frozen=True)
class Outcome:
    """What a strategy decided for one step.

    weights [M]: on the losses' device; a weight of 0 means: leave that gradient out (0 * NaN is NaN).
    log: `weight_cross_domain`, `clipped` and `skipped` (0 or 1; their sums count steps), and where defined in this step
    `factor`, `gradient_norm_rec`, `gradient_norm_cross_domain`, `cosine`. Always finite, so epochs can average them.
    """

    weights: Tensor
    log: dict[str, float]


class Weighting:
    """Maps the Gramian and the losses of one step, ordered (rec, cross_domain), to weights.

    Keeps no state between steps: a resumed run needs nothing from it. A single loss has weight 1.
    Subclasses say whether they need gradients (gramian is None otherwise) and override `weigh`.
    """

    needs_gradients = False

    def __init__(self, cross_domain_weight: float, negative_factor: str):
        self.cross_domain_weight = cross_domain_weight
        self.negative_factor = negative_factor

    def start_epoch(self) -> None:
        """Forgets what a strategy keeps between steps; called before each epoch."""

    def __call__(self, gramian: Tensor | None, losses: Tensor, names: Sequence[str] = ()) -> Outcome:
        if losses.dim() != 1 or not 1 <= len(losses) <= 2:
            raise CDSRError(
                f"losses must be a tensor (rec,) or (rec, cross_domain), not of shape {tuple(losses.shape)}"
            )
        if len(losses) == 1:
            return Outcome(torch.ones_like(losses), {})
        if self.needs_gradients and (gramian is None or gramian.shape != (2, 2)):
            raise CDSRError(f"{type(self).__name__} needs the 2 x 2 Gramian of the two losses' gradients")
        weights, log = self.weigh(gramian, losses.detach())
        steps = {"weight_cross_domain": weights[1], "clipped": 0.0, "skipped": 0.0}
        return Outcome(losses.new_tensor(weights), steps | log)

    def weigh(self, gramian: Tensor | None, losses: Tensor) -> tuple[list[float], dict[str, float]]:
        raise NotImplementedError


class NoWeighting(Weighting):
    """The recommendation loss alone."""

    def weigh(self, gramian: Tensor | None, losses: Tensor) -> tuple[list[float], dict[str, float]]:
        return [1.0, 0.0], {}


class FixedWeighting(Weighting):
    """L_rec + cross_domain_weight * a_cd; a_cd is skipped in a step where it is not finite."""

    def weigh(self, gramian: Tensor | None, losses: Tensor) -> tuple[list[float], dict[str, float]]:
        if not math.isfinite(losses[1].item()):
            return [1.0, 0.0], {"skipped": 1.0}
        return [1.0, self.cross_domain_weight], {}


class PreferenceWeighting(Weighting):
    """AutoCDSR's released step on cross_domain_weight * a_cd: (1, factor * cross_domain_weight).

    a_cd is skipped where a gradient is zero or anything is not finite. The factor depends on unit gradients only, so
    the scale of a_cd is left open by the method; the release has 1 on its own reduction of a_cd.
    """

    needs_gradients = True

    def weigh(self, gramian: Tensor, losses: Tensor) -> tuple[list[float], dict[str, float]]:
        # One transfer from the device for everything.
        numbers = _float64(torch.cat([gramian.reshape(-1), losses.to(gramian)])).tolist()
        rec_rec, rec_cross, _, cross_cross, rec_loss, cross_domain = numbers
        squares = {"gradient_norm_rec": rec_rec, "gradient_norm_cross_domain": cross_cross}
        log = {key: math.sqrt(square) for key, square in squares.items() if 0 <= square < math.inf}
        if not (rec_rec > 0 and cross_cross > 0 and all(map(math.isfinite, numbers))):
            return [1.0, 0.0], log | {"skipped": 1.0, "factor": 0.0}
        cosine = rec_cross / math.sqrt(rec_rec) / math.sqrt(cross_cross)
        log["cosine"] = min(max(cosine, -1.0), 1.0)
        factor = preference_factor(*torch.tensor([log["cosine"], rec_loss, cross_domain], dtype=torch.float64)).item()
        if factor < 0 and self.negative_factor == "clip":
            return [1.0, 0.0], log | {"clipped": 1.0, "factor": 0.0}
        return [1.0, factor * self.cross_domain_weight], log | {"factor": factor}


STRATEGIES: dict[str, type[Weighting]] = {
    "none": NoWeighting,
    "fixed": FixedWeighting,
    "preference": PreferenceWeighting,
}


def make_weighting(
    name: str, *, cross_domain_weight: float = 1.0, negative_factor: str = "clip", **others: object
) -> Weighting:
    """The strategy called `name`: none | fixed | preference; raises CDSRError on an unknown name or option.

    cross_domain_weight: scale of a_cd, finite, not negative; the whole weight in `fixed`.
    negative_factor: clip | keep, read by `preference`.
    """
    if name not in STRATEGIES:
        raise CDSRError(f"objective_weighting is {name!r}; choose one of {', '.join(STRATEGIES)}")
    if negative_factor not in NEGATIVE_FACTOR_CHOICES:
        raise CDSRError(f"negative_factor is {negative_factor!r}; choose one of {', '.join(NEGATIVE_FACTOR_CHOICES)}")
    number = isinstance(cross_domain_weight, (int, float)) and not isinstance(cross_domain_weight, bool)
    if not number or not math.isfinite(cross_domain_weight) or cross_domain_weight < 0:
        raise CDSRError(f"cross_domain_weight is {cross_domain_weight!r}; give a finite number that is not negative")
    return STRATEGIES[name](float(cross_domain_weight), negative_factor)
