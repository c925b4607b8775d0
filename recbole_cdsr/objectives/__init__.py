"""Balancing M losses by their gradients: an [M, M] Gramian and [M] losses in, [M] weights out; never a network.

- `gradients`: the Gramian of the gradients.
- `min_norm`, `preference`, `pareto`: the steps as plain functions of tensors, solved exactly.
- `weighting`: what a strategy is, and which objectives take part in a step.
- `strategies`: the strategies by name (STRATEGIES, make_weighting); `surgery`: those that TorchJD computes.

Solvers work in float64 on the CPU and answer in the dtype and on the device of what they were given.
"""

from recbole_cdsr.objectives.gradients import gramian
from recbole_cdsr.objectives.min_norm import min_norm_weights
from recbole_cdsr.objectives.pareto import pareto_weights
from recbole_cdsr.objectives.preference import preference_factor, preference_weights
from recbole_cdsr.objectives.strategies import STRATEGIES, make_weighting
from recbole_cdsr.objectives.weighting import Outcome, Weighting

__all__ = [
    "STRATEGIES",
    "Outcome",
    "Weighting",
    "gramian",
    "make_weighting",
    "min_norm_weights",
    "pareto_weights",
    "preference_factor",
    "preference_weights",
]
