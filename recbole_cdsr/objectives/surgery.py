"""Gradient surgery by TorchJD, fed with the Gramian; all of it optional.

- pcgrad: Yu et al., "Gradient Surgery for Multi-Task Learning", 2020 (arXiv 2001.06782).
- imtl_g: Liu et al., "Towards Impartial Multi-task Learning", 2021, in TorchJD's form for any rank (arXiv 2406.16232).
- cagrad: Liu et al., "Conflict-Averse Gradient Descent", 2021 (arXiv 2110.14048).
- upgrad: Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024 (arXiv 2406.16232).
- nash_mtl: Navon et al., "Multi-Task Learning as a Bargaining Game", 2022 (arXiv 2202.01017).

Their weights have no common scale: those of IMTL-G sum to 1, those of PCGrad to the number of objectives or more.
CAGrad solves a programme in each step, Nash-MTL up to 20; that costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives.weighting import GradientWeighting, Options, Problem


class SurgeryWeighting(GradientWeighting):
    """A weighting of TorchJD. A failure of its solver, and weights that are all 0 or not finite, are no answer.

    CAGrad and IMTL-G answer with zeros where gradients cancel; a run would stand still there without a word.
    Subclasses name the extra that brings their libraries, and override `build`.
    """

    extra = "surgery"

    def __init__(self, options: Options):
        super().__init__(options)
        try:
            self.solver, self.failures = self.build()
        except ImportError as error:
            what = f"{type(self).__name__} needs libraries that are not installed"
            raise CDSRError(f'{what}: pip install "recbole-cdsr[{self.extra}]"') from error

    def build(self) -> tuple[Callable[[Tensor], Tensor], tuple[type[Exception], ...]]:
        """TorchJD's weighting, and what it raises when its solver fails."""
        raise NotImplementedError

    def matrix(self, problem: Problem) -> np.ndarray:
        """What the weighting is asked with: the Gramian, scaled, since TorchJD takes a trace below 1e-4 for zero."""
        return problem.gramian / problem.gramian.trace()

    def solve(self, problem: Problem) -> np.ndarray | None:
        try:
            weights = self.solver(torch.from_numpy(self.matrix(problem))).numpy()
        except self.failures:
            return None
        return weights if np.isfinite(weights).all() and weights.any() else None


class PCGradWeighting(SurgeryWeighting):
    """Projects each gradient off those it conflicts with, in an order drawn from torch's generator on the CPU."""

    def build(self):
        from torchjd import aggregation

        return aggregation.PCGradWeighting(), ()


class IMTLGWeighting(SurgeryWeighting):
    """Equal projections on all gradients, in closed form; weights may be negative from three objectives on."""

    def build(self):
        from torchjd import aggregation

        return aggregation.IMTLGWeighting(), (torch.linalg.LinAlgError,)


class CAGradWeighting(SurgeryWeighting):
    """The best worst-case improvement near the mean gradient; of the paper's radii c in [0, 1) we take 0.5."""

    def build(self):
        from cvxpy import SolverError
        from torchjd import aggregation

        # ValueError: the solver gave up without an exception, and TorchJD multiplies by its None.
        return aggregation.CAGradWeighting(c=0.5), (SolverError, ValueError, torch.linalg.LinAlgError)


class UPGradWeighting(SurgeryWeighting):
    """The mean of the gradients, each projected onto the dual cone of all."""

    extra = "surgery-gpl"

    def build(self):
        from qpsolvers.exceptions import QPError
        from torchjd import aggregation

        return aggregation.UPGradWeighting(), (QPError, ValueError)


class NashMTLWeighting(SurgeryWeighting):
    """The Nash bargaining solution, with the paper's bound of 1 on the norm of the step, so gradients keep their scale.

    Each step starts from the last one's weights (of as many objectives) and keeps them where the solver fails.
    """

    extra = "surgery-gpl"

    def build(self):
        from cvxpy import SolverError
        from torchjd.aggregation import NashMTL

        NashMTL(n_tasks=2)  # tells now if a solver is missing
        self.by_size: dict[int, NashMTL] = {}

        def solver(matrix: Tensor) -> Tensor:
            if len(matrix) not in self.by_size:
                self.by_size[len(matrix)] = NashMTL(n_tasks=len(matrix))
            return self.by_size[len(matrix)].weighting(matrix)

        return solver, (SolverError, np.linalg.LinAlgError)

    def matrix(self, problem: Problem) -> np.ndarray:
        """Vectors, one a row, with the Gramian of the gradients, which is all that TorchJD takes from a Jacobian."""
        values, vectors = np.linalg.eigh(problem.gramian)
        return vectors * np.sqrt(np.maximum(values, 0.0))

    def start_epoch(self) -> None:
        self.by_size.clear()


STRATEGIES: dict[str, type[SurgeryWeighting]] = {
    "pcgrad": PCGradWeighting,
    "imtl_g": IMTLGWeighting,
    "cagrad": CAGradWeighting,
    "upgrad": UPGradWeighting,
    "nash_mtl": NashMTLWeighting,
}
