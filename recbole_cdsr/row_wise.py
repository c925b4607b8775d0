"""Steps whose cost follows the batch, not the catalogue: the learner `sparse_adam`.

The gradient of the item table holds the rows of a batch's items alone (histories, targets, negatives), and
torch.optim.SparseAdam moves these rows alone; every other parameter has torch.optim.Adam. RecBole's learner of this
name gives all parameters to SparseAdam, which refuses dense gradients.

It is not Adam: the moments of an item that a step does not see stay as they are, where Adam lets them decay and goes on
moving the item.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.model.base import CDSRRecommender

logger = logging.getLogger()

LEARNER = "sparse_adam"
SAMPLED = ("sampled", "sampled_cosine")
# Items from which on a loss over all of them takes most of a step: at 100,000 some 30 times the step of a sampled loss.
LARGE_CATALOGUE = 50_000


class RowWiseAdam:
    """Adam for all parameters but the item table, SparseAdam for that; one optimiser to whoever calls it.

    Args:
        model: of this package, built with a sampled loss.
        learning_rate: of both.
    """

    def __init__(self, model: CDSRRecommender, learning_rate: float) -> None:
        table = model.item_embedding.weight
        others = [parameter for parameter in model.parameters() if parameter is not table]
        self.parts = [torch.optim.Adam(others, lr=learning_rate), torch.optim.SparseAdam([table], lr=learning_rate)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, stored in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(stored)


def row_wise_adam(config: Any, model: nn.Module) -> RowWiseAdam:
    """The optimiser of the learner `sparse_adam`; the model's item table has gradients by rows from now on.

    Raises:
        CDSRError: if the loss reads all items, the model is RecBole's, or something else needs dense gradients.
    """
    if not isinstance(model, CDSRRecommender):
        raise CDSRError(f"the learner {LEARNER} is for models of this package, not {config.model}; set learner to adam")
    if model.loss_type not in SAMPLED:
        raise CDSRError(
            f"the learner {LEARNER} needs a loss that reads few items, but loss_type {model.loss_type} reads all; set "
            f"loss_type to {' or '.join(name for name in SAMPLED if name in model.loss_types)}, or learner to adam"
        )
    if config["weight_decay"]:
        raise CDSRError(f"the learner {LEARNER} has no weight_decay; set it to 0, or learner to adam")
    model.item_embedding.sparse = True
    return RowWiseAdam(model, config["learning_rate"])


def name_cheaper_loss(model: nn.Module) -> None:
    """Says which loss and learner cost less, where a model of this package reads a large catalogue at each step."""
    if isinstance(model, CDSRRecommender) and model.n_items > LARGE_CATALOGUE and model.loss_type not in SAMPLED:
        logger.info(
            "loss_type %s reads all items for every target, most of a step here; loss_type sampled with the learner %s "
            "reads few, see docs/scaling.md",
            *(model.loss_type, LEARNER),
        )


def with_values(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Those with a gradient; for a gradient by rows a stand-in whose dense gradient is its values, which it shares."""
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # each row once: a norm of parts would be another one
            stand_in = torch.empty_like(parameter.grad.values())
            stand_in.grad = parameter.grad.values()
            parameter = stand_in
        found.append(parameter)
    return found
