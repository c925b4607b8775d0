"""The strategies by name, and `make_weighting`, which builds one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives import surgery
from recbole_cdsr.objectives.min_norm import min_norm_point
from recbole_cdsr.objectives.pareto import pareto_step
from recbole_cdsr.objectives.preference import preference_factor, preference_step
from recbole_cdsr.objectives.weighting import (
    CROSS_DOMAIN,
    Decision,
    FixedWeighting,
    GradientWeighting,
    NoWeighting,
    Options,
    Problem,
    Weighting,
)

NEGATIVE_FACTOR_CHOICES = ("clip", "keep")
GRADIENT_NORMALISATION_CHOICES = ("none", "l2", "loss", "loss+")


class MGDAWeighting(GradientWeighting):
    """The minimum-norm point of the scaled gradients g_m / s_m; its weights multiply the losses as they are.

    Sener & Koltun 2018. `gradient_normalisation`: s_m is 1 (none), |g_m| (l2), L_m (loss) or L_m |g_m| (loss+).
    With none the shortest gradient takes most of the weight; with l2 two objectives always share equally, (0.5, 0.5).
    With loss and loss+ an objective takes part only while its loss is above 0.
    """

    def taking_part(self, matrix: np.ndarray, losses: np.ndarray) -> np.ndarray:
        usable = super().taking_part(matrix, losses)
        return usable & (losses > 0) if self.options.gradient_normalisation in ("loss", "loss+") else usable

    def solve(self, problem: Problem) -> np.ndarray:
        kind = self.options.gradient_normalisation
        matrix = problem.cosines if kind in ("l2", "loss+") else problem.gramian
        if kind in ("loss", "loss+"):
            matrix = matrix / problem.losses[:, None] / problem.losses[None, :]
        return min_norm_point(matrix)


class PreferenceWeighting(GradientWeighting):
    """AutoCDSR's released step; the recommendation losses together have weight 1, a_cd has `factor`.

    With one recommendation loss the factor is `preference_factor`. With more, `preference_weights` on unit gradients,
    a_cd first: the preference vectors are the M unit vectors and the uniform one, the anchor is a_cd's; the weights are
    divided by the sum of those of the recommendation losses. A step without a_cd weighs them equally.

    The factor depends on unit gradients only, so the scale of a_cd is left open by the method; the release has
    cross_domain_weight 1 on its own reduction of a_cd.
    """

    def check_objectives(self, names: Sequence[str]) -> None:
        if names[-1] != CROSS_DOMAIN:
            raise CDSRError(
                f"objective_weighting: preference balances recommendation against cross_domain, which is not among "
                f"{list(names)}; use mgda or a surgery ({', '.join(surgery.STRATEGIES)})"
            )

    def decide(self, matrix: np.ndarray, losses: np.ndarray, names: Sequence[str]) -> Decision:
        weights, log = super().decide(matrix, losses, names)
        return weights, log | {"factor": float(weights[-1])}

    def solve(self, problem: Problem) -> np.ndarray | None:
        n = len(problem.losses)
        if not problem.has_cross_domain:
            return np.full(n, 1 / n)
        if n == 2:
            rec_loss, cross_domain = problem.losses
            numbers = torch.tensor([problem.cosines[0, 1], rec_loss, cross_domain], dtype=torch.float64)
            return np.array([1.0, preference_factor(*numbers).item()])
        cross_first = np.roll(np.arange(n), 1)
        vectors = np.vstack([np.eye(n), np.full(n, n**-0.5)])
        cosines, losses = problem.cosines[cross_first][:, cross_first], problem.losses[cross_first]
        cross_domain, *rec = preference_step(cosines, losses, vectors, vectors[0])
        rec = np.maximum(rec, 0.0)
        total = rec.sum()
        return np.append(rec, cross_domain) / total if total > 0 else None


class ParetoWeighting(GradientWeighting):
    """The Pareto step of AutoCDSR's text with `n_preferences` + 1 preference vectors; see `pareto_weights`."""

    def check_objectives(self, names: Sequence[str]) -> None:
        if len(names) != 2 or names[-1] != CROSS_DOMAIN:
            raise CDSRError(
                f"objective_weighting: pareto balances one recommendation loss against cross_domain, not "
                f"{list(names)}; use mgda or a surgery ({', '.join(surgery.STRATEGIES)})"
            )

    def solve(self, problem: Problem) -> np.ndarray:
        return pareto_step(problem.gramian, problem.losses, self.options.n_preferences)


STRATEGIES: dict[str, type[Weighting]] = {
    "none": NoWeighting,
    "fixed": FixedWeighting,
    "mgda": MGDAWeighting,
    "preference": PreferenceWeighting,
    "pareto": ParetoWeighting,
    **surgery.STRATEGIES,
}


def make_weighting(
    name: str,
    *,
    cross_domain_weight: float = 1.0,
    negative_factor: str = "clip",
    gradient_normalisation: str = "none",
    n_preferences: int = 100,
    record_gradients: bool = False,
) -> Weighting:
    """The strategy called `name`, one of STRATEGIES.

    cross_domain_weight: scale of a_cd, finite, not negative; the whole weight in `fixed`.
    negative_factor: clip | keep negative weights; `mgda` has none.
    gradient_normalisation: none | l2 | loss | loss+, read by `mgda`.
    n_preferences: 1 or more, read by `pareto`.
    record_gradients: `none` and `fixed` log gradients too.

    Raises CDSRError on an unknown name or option, or if a library that the strategy needs is not installed.
    """
    _check_choice("objective_weighting", name, STRATEGIES)
    _check_choice("negative_factor", negative_factor, NEGATIVE_FACTOR_CHOICES)
    _check_choice("gradient_normalisation", gradient_normalisation, GRADIENT_NORMALISATION_CHOICES)
    number = isinstance(cross_domain_weight, (int, float)) and not isinstance(cross_domain_weight, bool)
    if not number or not math.isfinite(cross_domain_weight) or cross_domain_weight < 0:
        raise CDSRError(f"cross_domain_weight is {cross_domain_weight!r}; give a finite number that is not negative")
    if not isinstance(n_preferences, int) or isinstance(n_preferences, bool) or n_preferences < 1:
        raise CDSRError(f"n_preferences is {n_preferences!r}; give a whole number of at least 1")
    if not isinstance(record_gradients, bool):
        raise CDSRError(f"record_gradients is {record_gradients!r}; give True or False")
    options = Options(
        float(cross_domain_weight), negative_factor, gradient_normalisation, n_preferences, record_gradients
    )
    return STRATEGIES[name](options)


def _check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise CDSRError(f"{key} is {value!r}; choose one of {', '.join(choices)}")
