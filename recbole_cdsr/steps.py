"""Steps: from batches to optimiser steps, for models of this package and of RecBole, in one process or several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recbole_cdsr import compat, distributed
from recbole_cdsr.balance import Balancer, NotFinite
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.memory import is_out_of_memory, told_when_short
from recbole_cdsr.model.base import CDSRRecommender, read_choice, read_count
from recbole_cdsr.objectives import make_weighting
from recbole_cdsr.row_wise import with_values

compat.apply()

from recbole.utils import ModelType  # noqa: E402

BALANCE_OVER = ("shared", "all", "encoder")


class Steps:
    """Takes the optimiser steps of an epoch.

    Config keys: objective_weighting and the keys of the strategies, balance_over, weight_refresh_every,
    accumulate_batches, clip_grad_norm, enable_amp, enable_scaler. A model without the key objective_weighting, as
    RecBole's are, has one loss and nothing to balance.

    Args:
        config: CDSRConfig.
        model, optimizer: what is trained, and by what.
        folder: of the run, named in the message about a loss that is not finite.
    """

    def __init__(self, config: Any, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        self.config, self.model, self.optimizer, self.folder = config, model, optimizer, folder
        self.device = config["device"]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=bool(config["enable_scaler"]))
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.accumulate_batches = read_count(config, "accumulate_batches")
        self.balancer = self._balancer()

    def _balancer(self) -> Balancer:
        strategy = self.config["objective_weighting"]
        if strategy is None:
            return Balancer(make_weighting("none"), self.parameters, [], self.scaler)
        weighting = make_weighting(strategy, **weighting_keys(self.config))
        refresh_every = read_count(self.config, "weight_refresh_every")
        return Balancer(weighting, self.parameters, self._compared(), self.scaler, refresh_every)

    def _compared(self) -> list[int]:
        """Numbers of the parameters over which gradients are compared."""
        over = read_choice(self.config, "balance_over", BALANCE_OVER)
        if over == "all":
            return list(range(len(self.parameters)))
        chosen = {id(p) for p in self.model.shared_parameters()}
        if over == "encoder":
            embeddings = (module for module in self.model.modules() if isinstance(module, nn.Embedding))
            chosen -= {id(p) for module in embeddings for p in module.parameters()}
        return [number for number, p in enumerate(self.parameters) if id(p) in chosen]

    def run(self, batches: Iterable[Any], count: int, epoch: int) -> Iterator[dict[str, float]]:
        """Trains on `count` batches; yields the losses of each batch and what was logged of each step.

        Raises:
            CDSRError: if a loss is not finite, or a batch does not fit into memory.
        """
        self.balancer.start_epoch()
        if distributed.world() > 1:  # each process has random numbers of its own, which follow from seed and epoch
            torch.manual_seed((self.config["seed"] * 1_000_003 + epoch) * distributed.world() + distributed.rank())
        for batch, interaction in enumerate(batches):
            group = batch // self.accumulate_batches * self.accumulate_batches
            size = min(self.accumulate_batches, count - group)
            # A model that counts learns nothing from the other processes: each counts all rows.
            rows = interaction if self.config["MODEL_TYPE"] == ModelType.TRADITIONAL else own_rows(interaction)
            where = f"epoch {epoch}, batch {batch}"
            with told_when_short(where, self._smaller()):
                log = self._add(rows.to(self.device), 1 / size, where)
            yield log
            if batch + 1 == group + size:
                with told_when_short(where, self._smaller()):
                    log = self._step()
                yield log

    def _smaller(self) -> str:
        """What to do when a batch does not fit into memory."""
        half, twice = max(self.config["train_batch_size"] // 2, 1), 2 * self.accumulate_batches
        keys = f"--train_batch_size {half} --accumulate_batches {twice}"
        return f"start a new run with {keys}, which takes steps of the same size"

    def _add(self, interaction: Any, part: float, where: str) -> dict[str, float]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bool(self.config["enable_amp"])):
            losses = self._losses(interaction)
        try:
            values = self.balancer.add(losses, part)
        except NotFinite as error:
            raise CDSRError(
                f"{error} in {where}; the best checkpoint so far is kept in {self.folder}: lower the learning_rate, or "
                f"set clip_grad_norm"
            ) from None
        return {f"loss_{name}": value for name, value in values.items()}

    def _losses(self, interaction: Any) -> dict[str, Tensor]:
        if isinstance(self.model, CDSRRecommender):
            return self.model.calculate_losses(interaction)
        try:
            loss = self.model.calculate_loss(interaction)
        except CDSRError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            what = f"{type(error).__name__}: {error}"
            raise CDSRError(f"RecBole's {self.config.model} cannot train with these data and keys ({what})") from error
        loss = sum(loss) if isinstance(loss, tuple) else loss
        return {"rec": loss * distributed.share(len(interaction))}

    def _step(self) -> dict[str, float]:
        log = self.balancer.combine()
        if all(p.grad is None for p in self.parameters):  # every weight is 0
            return {**log, "gradient_norm": 0.0}
        self.scaler.unscale_(self.optimizer)
        log["gradient_norm"] = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return log

    def _clip(self) -> float:
        """Clips as `clip_grad_norm` says; returns the norm of the whole gradient before that."""
        moved = with_values(self.parameters)
        if self.config["clip_grad_norm"]:
            return float(torch.nn.utils.clip_grad_norm_(moved, **self.config["clip_grad_norm"]))
        return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in moved])))


def weighting_keys(config: Any) -> dict[str, Any]:
    """The settings of the strategies, as `make_weighting` takes them."""
    keys = (
        "cross_domain_weight",
        "negative_factor",
        "gradient_normalisation",
        "n_preferences",
        "record_gradients",
    )
    return {key: config[key] for key in keys}


def own_rows(interaction: Any) -> Any:
    """This process's rows of a batch; all rows where there are fewer than processes, which changes no mean."""
    count = distributed.world()
    if count == 1 or len(interaction) < count:
        return interaction
    return interaction[torch.arange(distributed.rank(), len(interaction), count)]  # a slice would not be contiguous
