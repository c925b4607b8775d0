"""MGDATrainer: RecBole's Trainer for models that name their losses.

`steps` takes the optimiser steps of an epoch: the losses of `calculate_losses`, their gradients where the strategy
needs them, and their weighted sum. Here stand the epochs: validation, early stopping, the best weights, exact resume.
With several processes all train and rank, and the first alone writes.

What RecBole's Trainer does otherwise, and why it is not inherited: it selects epochs on one pooled metric,
saves only on improvement and by pickling, names files by the second, and loses random states, the history
and the best result on resume.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor

from recbole_cdsr import checkpoint, compat, distributed, history, row_wise
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.evaluation import attention_between_domains, rank_events
from recbole_cdsr.progress import progress
from recbole_cdsr.ranks import RankTable
from recbole_cdsr.run_folder import BEST, HISTORY, LAST, TRANSFER
from recbole_cdsr.steps import Steps

compat.apply()

from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import ModelType, early_stopping  # noqa: E402

# What a checkpoint says of the epochs so far.
PROGRESS = ("cur_step", "best_valid_score", "best_epoch", "best_valid_result", "history", "transfer")


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
        self.steps = Steps(config, model, self.optimizer, self.folder)
        self.data_digest: str | None = None  # set by whoever knows the data: a checkpoint then fits no other
        self.history: list[dict[str, float]] = []
        self.transfer: list[tuple[int, Tensor]] = []  # epoch, mean attention between domains [C, C]
        self.best_epoch = -1
        self.finished = False

    def _build_optimizer(self, **kwargs):
        if self.config["learner"] == row_wise.LEARNER:
            return row_wise.row_wise_adam(self.config, self.model)
        return super()._build_optimizer(**kwargs)

    # Training

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """Trains until `epochs`, or until more than `stopping_step` validations in a row brought no improvement.

        Args: RecBole's. `callback_fn(epoch, score)` is called after each validation.

        Returns:
            best validation score and the metrics of that epoch; without validation data -inf and None.

        Raises:
            CDSRError: if a loss is not finite, a batch does not fit into memory, or the folder cannot be written.
        """
        self._restore_loader(train_data)
        saved = saved and distributed.rank() == 0
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
                self._write_history(valid_data)
                self._save_last(epoch, train_data)
            if callback_fn and score is not None:
                callback_fn(epoch, score)
        distributed.from_first(None)  # what the first process wrote is there for all
        self.tensorboard.flush()
        return self.best_valid_score, self.best_valid_result

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False) -> dict[str, float]:
        """One pass over the targets; the means of what every step reported."""
        self.model.train()
        if hasattr(train_data, "set_epoch"):
            train_data.set_epoch(epoch_idx)
        if self.config["train_neg_sample_args"]["dynamic"]:
            train_data.get_model(self.model)
        cpu, wall = time.process_time(), time.perf_counter()
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        batches = progress(train_data, f"epoch {epoch_idx}", show_progress)
        for log in self.steps.run(batches, len(train_data), epoch_idx):
            for name, value in log.items():
                sums[name] += value
                counts[name] += 1
        means = {name: total / counts[name] for name, total in sums.items()}
        row = {"epoch": epoch_idx, "steps": counts["loss"], "loss": means.pop("loss"), **means}
        row["train_cpu_seconds"], row["train_seconds"] = time.process_time() - cpu, time.perf_counter() - wall
        return row

    # Validation

    def _validate(self, epoch: int, row: dict, valid_data, show_progress: bool, saved: bool) -> float | None:
        """Ranks the validation events, if it is time to, and keeps the weights if they are the best so far."""
        if not valid_data or (epoch + 1) % self.eval_step:
            return None
        start = time.perf_counter()
        try:
            table = self.rank_table(valid_data, show_progress)
        except distributed.Lost:
            raise
        except CDSRError as error:
            raise CDSRError(f"validation after epoch {epoch} failed: {error}") from None
        score, result = self._score(table)
        row.update({f"valid_{name}": value for name, value in result.items()})
        row["valid_score"], row["valid_seconds"] = score, time.perf_counter() - start
        transfer = attention_between_domains(self.model, valid_data, self.device)
        if transfer is not None:
            self.transfer.append((epoch, transfer))
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
        self.steps.scaler.load_state_dict(state["scaler"])
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
            scaler=self.steps.scaler.state_dict(),
            random=checkpoint.random_state(),
            loader=generator.get_state() if generator is not None else None,
            **{name: getattr(self, name) for name in PROGRESS},
        )
        checkpoint.save(self.folder / LAST, state)

    def _write_history(self, valid_data) -> None:
        history.write(self.folder / HISTORY, self.history)
        if self.transfer:
            history.write_transfer(self.folder / TRANSFER, self.transfer, valid_data.dataset.domain_names)

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
        verbose = verbose and distributed.rank() == 0
        for name, value in row.items():
            if name != "epoch":
                self.tensorboard.add_scalar(name, value, row["epoch"])
        if verbose:
            self.logger.info(history.sentence(row, self.config["valid_metric"], self.best_epoch))
