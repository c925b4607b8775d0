"""Balancer: the gradient of one optimiser step from several losses, over one or more batches and processes.

Where the strategy asks for gradients, each loss gets a backward pass of its own, and the step is the weighted sum of
what these passes gave: no pass over the sum of the losses follows. Between two such steps (`refresh_every` above 1) the
last weights stay, and one backward pass over the weighted losses is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recbole_cdsr import distributed
from recbole_cdsr.objectives import Weighting, gramian


class NotFinite(ArithmeticError):
    """A loss is NaN or infinite; the message names it."""


class Balancer:
    """Adds up the gradients of the batches of one step, then combines them as the strategy says.

    Call `start_epoch()`, then for each step `add(losses, part)` once per batch and `combine()` once. Nothing is
    carried from one epoch to the next, so that a run resumed between them takes the same steps.

    Args:
        weighting: the strategy.
        parameters: all that are trained.
        compared: numbers of those parameters over which gradients are compared.
        scaler: of mixed precision; gradients are compared unscaled.
        refresh_every: steps from one set of weights to the next; 1: exact in every step.
    """

    def __init__(
        self,
        weighting: Weighting,
        parameters: list[nn.Parameter],
        compared: list[int],
        scaler: torch.amp.GradScaler,
        refresh_every: int = 1,
    ) -> None:
        self.weighting, self.parameters, self.compared = weighting, parameters, compared
        self.scaler, self.refresh_every = scaler, refresh_every
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forgets the weights of earlier steps; the next step asks for new ones."""
        self.weighting.start_epoch()
        self.weights: list[float] | None = None
        self.step = 0
        self._forget_step()

    def _forget_step(self) -> None:
        self.gradients: list[list[Tensor | None]] = []  # [M][parameter], in steps that ask for weights
        self.values: Tensor | None = None  # [M] losses of the step so far, means over batches and processes

    def add(self, losses: dict[str, Tensor], part: float = 1.0) -> dict[str, float]:
        """Backward pass(es) of one batch.

        Args:
            losses: scalars by name, the same names in every batch.
            part: the batch's part of the step; the parts of a step add up to 1.

        Returns:
            the value of each loss, over all processes.

        Raises:
            NotFinite: if one of these values is not finite; before any backward pass.
        """
        values = distributed.averaged(torch.stack([loss.detach().float().reshape(()) for loss in losses.values()]))
        numbers = dict(zip(losses, values.tolist(), strict=True))
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise NotFinite(f"the loss '{name}' is {number}")
        if self.values is None:
            for parameter in self.parameters:
                parameter.grad = None
        self.values = values * part if self.values is None else self.values + values * part
        self.names = tuple(losses)
        scaled = [self.scaler.scale(loss * part) for loss in losses.values()]
        if self._asks_for_weights():
            self._add_each(scaled)
        else:
            weights = self.weights or self.weighting(None, values, self.names).weights.tolist()
            used = [weight * loss for weight, loss in zip(weights, scaled, strict=True) if weight]
            if used:
                sum(used).backward()
        return numbers

    def _asks_for_weights(self) -> bool:
        return self._needs_gradients() and self.step % self.refresh_every == 0

    def _needs_gradients(self) -> bool:
        return self.weighting.needs_gradients and len(self.names) > 1

    def _add_each(self, scaled: list[Tensor]) -> None:
        for number, loss in enumerate(scaled):
            keep = number + 1 < len(scaled)
            found = torch.autograd.grad(loss, self.parameters, retain_graph=keep, allow_unused=True)
            if number == len(self.gradients):
                self.gradients.append(list(found))
            else:
                before = self.gradients[number]
                self.gradients[number] = [_sum(pair, (1.0, 1.0)) for pair in zip(before, found, strict=True)]

    def combine(self) -> dict[str, float]:
        """Leaves in every `.grad` the (scaled) gradient of the step, the same on all processes.

        Returns:
            `loss`, the weighted sum of the losses; and what the strategy logs, if it was asked in this step.
        """
        log: dict[str, float] = {}
        if self._asks_for_weights():
            weights, log = self._weigh()
            for parameter, *parts in zip(self.parameters, *self.gradients, strict=True):
                parameter.grad = _sum(parts, weights)
        else:
            weights = self.weights
            if weights is None:
                weights, log = self._ask(None)
            means = distributed.averaged_together([parameter.grad for parameter in self.parameters])
            for parameter, mean in zip(self.parameters, means, strict=True):
                parameter.grad = mean
        log["loss"] = sum(weight * value for weight, value in zip(weights, self.values.tolist(), strict=True) if weight)
        self.step += 1
        self._forget_step()
        return log

    def _weigh(self) -> tuple[list[float], dict[str, float]]:
        self.gradients = [distributed.averaged_together(row) for row in self.gradients]
        products = gramian([[row[number] for number in self.compared] for row in self.gradients])
        # A strategy may draw random numbers, which differ between processes; the step must not.
        self.weights, log = distributed.from_first(self._ask(products / self.scaler.get_scale() ** 2))
        return self.weights, log

    def _ask(self, products: Tensor | None) -> tuple[list[float], dict[str, float]]:
        outcome = self.weighting(products, self.values, self.names)
        return outcome.weights.tolist(), dict(outcome.log)


def _sum(parts: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor | None:
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
