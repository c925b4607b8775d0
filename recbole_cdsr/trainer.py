"""MGDATrainer: RecBole's Trainer for models that name their losses.

Each step takes the losses of `calculate_losses`, their gradients where the strategy needs them, asks
`objectives` for weights and steps along the weighted sum. Two gradients cost one forward pass, one full
and one partial backward pass; no third one is made, since the gradients are added.

What RecBole's Trainer does otherwise, and why it is not inherited: it selects epochs on one pooled metric,
saves only on improvement and by pickling, names files by the second, and loses random states, the history
and the best result on resume.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from recbole_cdsr import checkpoint, compat, history
from recbole_cdsr.balance import balanced_backward
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.evaluation import rank_events
from recbole_cdsr.model.base import CDSRRecommender
from recbole_cdsr.objectives import make_weighting
from recbole_cdsr.ranks import RankTable
from recbole_cdsr.run_folder import BEST, HISTORY, LAST

compat.apply()

from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import ModelType, early_stopping  # noqa: E402

# The keys of a model's yaml that `make_weighting` takes.
BALANCING = ("cross_domain_weight", "negative_factor", "gradient_normalisation", "n_preferences")
# What a checkpoint says of the epochs so far.
PROGRESS = ("cur_step", "best_valid_score", "best_epoch", "best_valid_result", "history")


class MGDATrainer(Trainer):
    """Trains any model of ours or RecBole's, balancing its losses by the key `objective_weighting`.

    The folder `checkpoint_dir` receives checkpoint.pth (after every epoch, all that is needed to go on),
    best.pth (weights of the best epoch) and history.csv.

    Args:
        config: CDSRConfig.
        model: built with the training part of the data.
    """

    def __init__(self, config, model) -> None:
        super().__init__(config, model)
        self.folder = Path(config["checkpoint_dir"])
        self.saved_model_file = str(self.folder / BEST)
        if config["MODEL_TYPE"] == ModelType.TRADITIONAL:
            self.epochs = 1
        options = {key: config[key] for key in BALANCING if config[key] is not None}
        self.weighting = make_weighting(config["objective_weighting"] or "none", **options)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=bool(config["enable_scaler"]))
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        shared = {id(p) for p in model.shared_parameters()} if isinstance(model, CDSRRecommender) else set()
        self.shared = [number for number, p in enumerate(self.parameters) if id(p) in shared]
        self.data_digest: str | None = None  # set by whoever knows the data: a checkpoint then fits no other
        self.history: list[dict[str, float]] = []
        self.best_epoch = -1
        self.finished = False

    # Training

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """Trains until `epochs`, or until more than `stopping_step` validations in a row brought no improvement.

        Args: RecBole's. `callback_fn(epoch, score)` is called after each validation.

        Returns:
            best validation score and the metrics of that epoch; without validation data -inf and None.

        Raises:
            CDSRError: if a loss is not finite, or the folder cannot be written.
        """
        self._restore_loader(train_data)
        if saved and self.start_epoch == 0:
            self._save_last(-1, train_data)
        for epoch in range(self.start_epoch, self.epochs):
            if self.finished:
                break
            row = self._train_epoch(train_data, epoch, show_progress=show_progress)
            self.train_loss_dict[epoch] = row["loss"]
            score = self._validate(epoch, row, valid_data, show_progress, saved)
            self.history.append(row)
            self._report(row, verbose)
            if saved:
                if self.best_valid_result is None:  # nothing was validated so far: the last epoch is the one to keep
                    self.best_epoch = epoch
                    self._save_best(epoch)
                history.write(self.folder / HISTORY, self.history)
                self._save_last(epoch, train_data)
            if callback_fn and score is not None:
                callback_fn(epoch, score)
        self.tensorboard.flush()
        return self.best_valid_score, self.best_valid_result

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False) -> dict[str, float]:
        """One pass over the targets; the means of what every step reported."""
        self.model.train()
        self.weighting.start_epoch()
        if hasattr(train_data, "set_epoch"):
            train_data.set_epoch(epoch_idx)
        if self.config["train_neg_sample_args"]["dynamic"]:
            train_data.get_model(self.model)
        cpu, wall = time.process_time(), time.perf_counter()
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        bar = tqdm(train_data, desc=f"epoch {epoch_idx}", leave=False, disable=None if show_progress else True)
        for batch, interaction in enumerate(bar):
            for name, value in self._step(interaction.to(self.device), epoch_idx, batch).items():
                sums[name] += value
                counts[name] += 1
        means = {name: total / counts[name] for name, total in sums.items()}
        row = {"epoch": epoch_idx, "steps": len(train_data), "loss": means.pop("loss"), **means}
        row["train_cpu_seconds"], row["train_seconds"] = time.process_time() - cpu, time.perf_counter() - wall
        return row

    def _step(self, interaction, epoch: int, batch: int) -> dict[str, float]:
        """One optimiser step; returns what to log."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bool(self.enable_amp)):
            losses = self._losses(interaction)
        values = {name: loss.item() for name, loss in losses.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise CDSRError(
                    f"the loss '{name}' is {value} in epoch {epoch}, batch {batch}; the best checkpoint so far is kept "
                    f"in {self.folder}: lower the learning_rate, or set clip_grad_norm"
                )
        self.optimizer.zero_grad(set_to_none=True)
        log = balanced_backward(losses, self.parameters, self.shared, self.weighting, self.scaler)
        self.scaler.unscale_(self.optimizer)
        log["gradient_norm"] = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        total = sum(log.get(f"weight_{name}", 1.0) * value for name, value in values.items())
        return {"loss": total, **{f"loss_{name}": value for name, value in values.items()}, **log}

    def _losses(self, interaction) -> dict[str, Tensor]:
        if isinstance(self.model, CDSRRecommender):
            return self.model.calculate_losses(interaction)
        try:
            loss = self.model.calculate_loss(interaction)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise CDSRError(f"RecBole's {self.config.model} cannot train with these data and keys ({what})") from error
        return {"rec": sum(loss) if isinstance(loss, tuple) else loss}

    def _clip(self) -> float:
        """Clips as `clip_grad_norm` says; returns the norm of the whole gradient before that."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.clip_grad_norm:
            return float(torch.nn.utils.clip_grad_norm_(self.parameters, **self.clip_grad_norm))
        if not gradients:
            return 0.0
        return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))

    # Validation

    def _validate(self, epoch: int, row: dict, valid_data, show_progress: bool, saved: bool) -> float | None:
        """Ranks the validation events, if it is time to, and keeps the weights if they are the best so far."""
        if not valid_data or (epoch + 1) % self.eval_step:
            return None
        start = time.perf_counter()
        try:
            table = self.rank_table(valid_data, show_progress)
        except CDSRError as error:
            raise CDSRError(f"validation after epoch {epoch} failed: {error} Lower the learning_rate.") from None
        score, result = self._score(table)
        row.update({f"valid_{name}": value for name, value in result.items()})
        row["valid_score"], row["valid_seconds"] = score, time.perf_counter() - start
        self.best_valid_score, self.cur_step, stop, better = early_stopping(
            score, float(self.best_valid_score), self.cur_step, max_step=self.stopping_step
        )
        if better:
            self.best_epoch, self.best_valid_result = epoch, result
            if saved:
                self._save_best(epoch)
        self.finished = stop
        return score

    def _score(self, table: RankTable) -> tuple[float, dict[str, float]]:
        """The mean of `valid_metric` over domains, and the metric in each domain."""
        metric, _, k = self.config["valid_metric"].partition("@")
        by_domain = table.by_domain((metric,), (int(k),), self.config["valid_candidates"])
        name = f"{metric.lower()}@{k}"
        result = {f"{name}_{domain}": values[name] for domain, values in by_domain.items() if name in values}
        return by_domain["macro"][name], result

    def rank_table(self, eval_data, show_progress: bool = False) -> RankTable:
        """Ranks every event of `eval_data` with the present weights; see `evaluation.rank_events`."""
        return rank_events(self.model, eval_data, self.device, show_progress)

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False) -> dict[str, float]:
        """RecBole's call: the metrics of the config as means over domains, by RecBole's names."""
        if not eval_data:
            return {}
        if load_best_model:
            self.load_best(model_file)
        table = self.rank_table(eval_data, show_progress)
        macro = table.by_domain(self.config["metrics"], self.config["topk"], self.config["valid_candidates"])["macro"]
        return {name: value for name, value in macro.items() if "@" in name}

    # Keeping and restoring

    def load_best(self, path: str | Path | None = None) -> None:
        """Loads the weights of the best epoch."""
        path = Path(path or self.saved_model_file)
        state = checkpoint.load(path, self.device)
        self._put_weights(state, path)
        self.best_epoch = state["epoch"]

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Puts everything back to the end of the last finished epoch.

        Raises:
            CDSRError: if the checkpoint is missing, damaged, or of another model.
        """
        state = checkpoint.load(Path(resume_file), self.device)
        self._put_weights(state, resume_file)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.start_epoch = state["epoch"] + 1
        self.recall(state)
        self.finished = self.cur_step > self.stopping_step
        if self.best_epoch >= 0:
            checkpoint.load(Path(self.saved_model_file))  # it is needed in the end: tell now if it is gone
        self._loader_state = state["loader"]
        checkpoint.set_random_state(state["random"])

    def recall(self, state: dict[str, Any]) -> None:
        """Takes over what a checkpoint knows of the epochs so far."""
        for name in PROGRESS:
            setattr(self, name, state[name])

    def _put_weights(self, state: dict[str, Any], path: str | Path) -> None:
        if None not in (state.get("data"), self.data_digest) and state["data"] != self.data_digest:
            raise CDSRError(f"the data are not those that {path} was trained on; bring them back, or start a new run")
        try:
            self.model.load_state_dict(state["state_dict"])
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CDSRError(f"{path} does not fit this model and data ({reason}); start a new run") from None
        self.model.load_other_parameter(state["other_parameter"])

    def _restore_loader(self, train_data) -> None:
        if getattr(self, "_loader_state", None) is not None:
            train_data.generator.set_state(self._loader_state.cpu())

    def _save_last(self, epoch: int, train_data) -> None:
        generator = getattr(train_data, "generator", None)
        state = self._weights(epoch)
        state.update(
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            random=checkpoint.random_state(),
            loader=generator.get_state() if generator is not None else None,
            **{name: getattr(self, name) for name in PROGRESS},
        )
        checkpoint.save(self.folder / LAST, state)

    def _save_best(self, epoch: int) -> None:
        checkpoint.save(Path(self.saved_model_file), self._weights(epoch))

    def _weights(self, epoch: int) -> dict[str, Any]:
        other = self.model.other_parameter()
        for name, value in other.items():
            if not isinstance(value, (Tensor, int, float, str, type(None))):
                raise CDSRError(
                    f"{self.config.model} keeps its '{name}' as {type(value).__name__}, which a checkpoint without "
                    f"pickled code cannot hold; choose another model"
                )
        weights = dict(self.model.state_dict())
        return {"epoch": epoch, "state_dict": weights, "other_parameter": other, "data": self.data_digest}

    def _report(self, row: dict[str, float], verbose: bool) -> None:
        for name, value in row.items():
            if name != "epoch":
                self.tensorboard.add_scalar(name, value, row["epoch"])
        if verbose:
            self.logger.info(history.sentence(row, self.config["valid_metric"], self.best_epoch))
