"""What a strategy is: from the Gramian and the losses of one step to one weight per loss.

`Weighting` has what all share; `GradientWeighting` adds what those need that look at gradients: which objectives take
part, what is logged of the gradients, and the outcome where there is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives.gradients import as_float64

CROSS_DOMAIN = "cross_domain"
Decision = tuple[np.ndarray, dict[str, float]]  # weights [M], and what is logged besides them


@dataclass(frozen=True)
class Outcome:
    """What a strategy decided for one step.

    weights [M]: on the losses' device; a weight of 0 means: leave that gradient out (0 * NaN is NaN).
    log: `weight_<name>` of each objective, `clipped` and `skipped` (0 or 1; their means are shares of steps).
    Strategies with gradients add, where defined in this step, `gradient_norm_<name>`, `cosine` (mean over pairs of
    objectives), `cosine_min` (more than two objectives only), `conflict` (share of pairs with a negative cosine) and
    `angle_<name>` (degrees between an objective's gradient and the step; above 90 the step raises its loss);
    `preference` adds `factor`. Always finite, so epochs can average them. Empty for a single loss.
    """

    weights: Tensor
    log: dict[str, float]


@dataclass(frozen=True)
class Options:
    """The keys that strategies read; see `make_weighting`."""

    cross_domain_weight: float
    negative_factor: str
    gradient_normalisation: str
    n_preferences: int
    record_gradients: bool


@dataclass(frozen=True)
class Problem:
    """The objectives that take part in one step, at least two; if a_cd is one of them, it is the last.

    gramian [m, m] and losses [m], finite float64; cosines [m, m] of the gradients, in [-1, 1].
    """

    gramian: np.ndarray
    losses: np.ndarray
    cosines: np.ndarray
    has_cross_domain: bool


class Weighting:
    """Maps the Gramian [M, M] and the losses [M] of one step to weights.

    names: one of each loss. The last may be `cross_domain` (a_cd); all others are recommendation losses, one or one per
    domain. A domain without targets in a batch has a loss of exactly 0 and is absent: its weight is 0. Whatever a
    strategy decides for a_cd is multiplied by `cross_domain_weight`; 1 gives the method as published. A negative weight
    becomes 0 (`clipped`) unless `negative_factor` is keep. A single loss has weight 1.

    Subclasses say whether they need gradients (gramian may be None otherwise) and override `decide`. With
    `record_gradients` those that need none look at gradients for the log alone.
    """

    needs_gradients = False

    def __init__(self, options: Options):
        self.options = options
        self.needs_gradients = self.needs_gradients or options.record_gradients

    def __call__(self, gramian: Tensor | None, losses: Tensor, names: Sequence[str]) -> Outcome:
        _check_names(losses, names)
        if len(names) == 1:
            return Outcome(torch.ones_like(losses), {})
        self.check_objectives(names)
        matrix, values = self._on_cpu(gramian, losses)
        weights, log = self.decide(matrix, values, names)
        if names[-1] == CROSS_DOMAIN:
            weights[-1] *= self.options.cross_domain_weight
        log = {"clipped": 0.0, "skipped": 0.0} | log
        if matrix is not None:
            log |= _angles(matrix, weights, names)
        weights = weights.tolist()
        log |= {f"weight_{name}": weight for name, weight in zip(names, weights, strict=True)}
        return Outcome(losses.new_tensor(weights), log)

    def check_objectives(self, names: Sequence[str]) -> None:
        """Raises CDSRError if the strategy cannot balance these objectives; here none is refused."""

    def start_epoch(self) -> None:
        """Forgets what earlier steps left behind, so that a run resumed between epochs is exact; here nothing."""

    def decide(self, matrix: np.ndarray | None, losses: np.ndarray, names: Sequence[str]) -> Decision:
        """Weights [M], that of a_cd not yet scaled, and what is logged besides."""
        raise NotImplementedError

    def _on_cpu(self, gramian: Tensor | None, losses: Tensor) -> tuple[np.ndarray | None, np.ndarray]:
        n = len(losses)
        if not self.needs_gradients:
            return None, as_float64(losses)
        if gramian is None or gramian.shape != (n, n):
            raise CDSRError(f"{type(self).__name__} needs the Gramian [{n}, {n}] of the gradients of {n} losses")
        numbers = as_float64(torch.cat([gramian.reshape(-1), losses.to(gramian)]))  # one transfer from the device
        return numbers[:-n].reshape(n, n), numbers[-n:]


class NoWeighting(Weighting):
    """The recommendation losses alone; those that are present share weight 1 equally."""

    def decide(self, matrix: np.ndarray | None, losses: np.ndarray, names: Sequence[str]) -> Decision:
        return equal_weights(losses, names), _seen(matrix, losses, names)


class FixedWeighting(Weighting):
    """As `none`, plus cross_domain_weight * a_cd; a_cd is skipped in a step where it is not finite."""

    def decide(self, matrix: np.ndarray | None, losses: np.ndarray, names: Sequence[str]) -> Decision:
        weights, log = equal_weights(losses, names), _seen(matrix, losses, names)
        if names[-1] != CROSS_DOMAIN:
            return weights, log
        usable = math.isfinite(losses[-1])
        weights[-1] = float(usable)
        return weights, log | {"skipped": float(not usable)}


class GradientWeighting(Weighting):
    """A strategy that looks at gradients; subclasses override `solve`.

    An objective takes part if its loss and its gradient are finite and the gradient is not zero. a_cd takes part only
    beside a recommendation loss. The others are left out of the problem: a_cd has weight 0, an absent recommendation
    loss too, and any other one 1 / (number of those that take part), so that NaN is not hidden. If none takes part, or
    the strategy has no answer, the weights are those of `none`. `skipped` is 1 where there is no answer, and where an
    objective was left out that is not absent.
    """

    needs_gradients = True

    def solve(self, problem: Problem) -> np.ndarray | None:
        """Weights [m] with their signs, or None: no answer."""
        raise NotImplementedError

    def taking_part(self, matrix: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """Which objectives [M] are usable, each for itself."""
        return _usable(matrix, losses)

    def decide(self, matrix: np.ndarray, losses: np.ndarray, names: Sequence[str]) -> Decision:
        n_rec = len(names) - (names[-1] == CROSS_DOMAIN)
        there = losses != 0
        there[n_rec:] = True
        usable = self.taking_part(matrix, losses)
        n_usable_rec = int(usable[:n_rec].sum())
        usable[n_rec:] &= n_usable_rec > 0
        weights = equal_weights(losses, names)
        log = _norms(matrix, names) | {"skipped": float((there & ~usable).any())}
        if n_usable_rec == 0:
            return weights, log
        answer = np.ones(1)
        if usable.sum() > 1:
            problem = _problem(matrix[usable][:, usable], losses[usable], bool(usable[n_rec:].any()))
            log |= _directions(problem.cosines, len(names))
            answer = self.solve(problem)
        if answer is None:
            return weights, log | {"skipped": 1.0}
        if self.options.negative_factor == "clip" and (answer < 0).any():
            answer, log["clipped"] = np.maximum(answer, 0.0), 1.0
        weights[:n_rec] = there[:n_rec] / n_usable_rec
        weights[usable] = answer
        return weights, log


def equal_weights(losses: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The weights of `none` [M]: 1 shared by the recommendation losses that are present (by all if none is), a_cd 0."""
    shares = (losses != 0).astype(float)
    if names[-1] == CROSS_DOMAIN:
        shares[-1] = 0.0
    if not shares.any():
        shares[:] = [name != CROSS_DOMAIN for name in names]
    return shares / shares.sum()


def _check_names(losses: Tensor, names: Sequence[str]) -> None:
    if losses.shape != (len(names),):
        shape = tuple(losses.shape)
        raise CDSRError(f"losses must be a tensor with one entry for each of {', '.join(names)}, not of shape {shape}")
    if not names or CROSS_DOMAIN in (names[0], *names[:-1]) or len(set(names)) < len(names):
        raise CDSRError(
            f"the objectives are {list(names)}; name each once: one or more recommendation losses, and cross_domain "
            f"last if it is there"
        )


def _norms(matrix: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    squares = zip(names, matrix.diagonal().tolist(), strict=True)
    return {f"gradient_norm_{name}": math.sqrt(square) for name, square in squares if 0 <= square < math.inf}


def _usable(matrix: np.ndarray, losses: np.ndarray) -> np.ndarray:
    squares = matrix.diagonal()
    usable = np.isfinite(losses) & np.isfinite(squares) & (squares > 0)
    return usable & np.isfinite(matrix[:, usable]).all(1)


def _seen(matrix: np.ndarray | None, losses: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """What is logged of gradients that no decision needs."""
    if matrix is None:
        return {}
    usable, log = _usable(matrix, losses), _norms(matrix, names)
    if usable.sum() > 1:
        log |= _directions(_problem(matrix[usable][:, usable], losses[usable], False).cosines, len(names))
    return log


def _angles(matrix: np.ndarray, weights: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    used = weights != 0
    inner = matrix[:, used] @ weights[used]  # of each gradient with the step
    square = float(weights[used] @ inner[used])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosines = inner / np.sqrt(matrix.diagonal()) / math.sqrt(square) if square > 0 else np.full(len(names), np.nan)
    degrees = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).tolist()
    return {f"angle_{name}": angle for name, angle in zip(names, degrees, strict=True) if math.isfinite(angle)}


def _problem(matrix: np.ndarray, losses: np.ndarray, has_cross_domain: bool) -> Problem:
    norms = np.sqrt(matrix.diagonal())
    cosines = np.clip(matrix / norms[:, None] / norms[None, :], -1.0, 1.0)
    np.fill_diagonal(cosines, 1.0)
    return Problem(matrix, losses, cosines, has_cross_domain)


def _directions(cosines: np.ndarray, n_objectives: int) -> dict[str, float]:
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    log = {"cosine": float(pairs.mean()), "conflict": float((pairs < 0).mean())}
    return log | ({"cosine_min": float(pairs.min())} if n_objectives > 2 else {})
