"""One backward step for several losses: gradients where the strategy needs them, weights, and their weighted sum.

Two losses cost one full backward pass and one partial one. No third pass is made over the weighted sum of the losses:
their gradients are added instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_cdsr.objectives import Weighting, gramian


def balanced_backward(
    losses: dict[str, Tensor],
    parameters: list[nn.Parameter],
    shared: list[int],
    weighting: Weighting,
    scaler: torch.amp.GradScaler,
) -> dict[str, float]:
    """Leaves in every `.grad` the (scaled) gradient of the weighted sum of the losses.

    Args:
        losses: scalars, `rec` first.
        parameters: all that are trained.
        shared: numbers of those parameters over which gradients are compared.
        weighting: the strategy.
        scaler: of mixed precision; the gradients it scaled are compared unscaled.

    Returns:
        what the strategy logs of this step.
    """
    values = torch.stack([loss.detach().float().reshape(()) for loss in losses.values()])
    scaled = [scaler.scale(loss) for loss in losses.values()]
    if len(losses) == 1 or not weighting.needs_gradients:
        outcome = weighting(None, values, tuple(losses))
        sum(weight * loss for weight, loss in zip(outcome.weights.tolist(), scaled, strict=True) if weight).backward()
        return dict(outcome.log)
    gradients = []
    for number, loss in enumerate(scaled):
        keep = number + 1 < len(scaled)
        gradients.append(torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True))
    products = gramian([[gradient[number] for number in shared] for gradient in gradients])
    outcome = weighting(products / scaler.get_scale() ** 2, values, tuple(losses))
    for parameter, *parts in zip(parameters, *gradients, strict=True):
        parameter.grad = _weighted_sum(parts, outcome.weights.tolist())
    return dict(outcome.log)


def _weighted_sum(parts: list[Tensor | None], weights: list[float]) -> Tensor | None:
    """Sum of weight * part; None if no part is there. A weight of 0 leaves its part out."""
    total = None
    for part, weight in zip(parts, weights, strict=True):
        if part is None or weight == 0:
            continue
        if total is None:
            total = part if weight == 1 else part * weight
        else:
            total = torch.add(total, part, alpha=weight)
    return total
