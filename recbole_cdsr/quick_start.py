"""run(), evaluate(), load(), export(): from names and settings to a folder with everything about one run.

A run folder holds config.yaml, environment.json, run.log, tensorboard/, history.csv (a line per epoch), checkpoint.pth,
best.pth, ranks.npz (the rank of every test event), result.json, and bundle/, which recommends without the data set.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_cdsr import checkpoint, compat, distributed, row_wise
from recbole_cdsr.config import CDSRConfig, refuse_special_models
from recbole_cdsr.data import cache
from recbole_cdsr.data.dataset import CDSRDataset
from recbole_cdsr.data.loaders import RowDataLoader, make_loaders
from recbole_cdsr.data.sources import ensure_built_in
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.ranks import RankTable
from recbole_cdsr.recommend import bundle
from recbole_cdsr.recommend.model_card import model_card
from recbole_cdsr.run_folder import BEST, LAST, RANKS, RESULT, as_json, config_of, free_folder, open_folder
from recbole_cdsr.run_result import describe, result_of
from recbole_cdsr.trainer import MGDATrainer
from recbole_cdsr.yaml_values import merged

compat.apply()

from recbole.utils import init_seed  # noqa: E402

logger = logging.getLogger()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message names the run folder, which holds the last finished epoch."""


@dataclass
class Run:
    """A model with its data and trainer, built from a config.

    `evaluated` is the part that results are about: test, or validation where the split leaves no test part.
    """

    config: CDSRConfig
    dataset: CDSRDataset
    model: Any
    trainer: MGDATrainer
    train: Any
    valid: RowDataLoader
    test: RowDataLoader

    @property
    def evaluated(self) -> tuple[str, RowDataLoader]:
        return ("test", self.test) if len(self.test) else ("validation", self.valid)


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Trains a model, ranks the test events with its best epoch, and writes the run folder.

    Args:
        model: name or class, ours or RecBole's; by default what a config file names, else AutoCDSR.
        dataset: name of a folder in `data_path`; by default what a config file names, else ml-100k.
        config_file_list, config_dict: settings; see CDSRConfig.
        run_dir: runs/<model>-<dataset>-<time>-<hash> by default.
        resume: go on with the run in `run_dir`; settings given anew must be those of the run, but for a few.
        command: how the run was started, for the record.

    Returns:
        what result.json holds.

    Raises:
        CDSRError: for anything a user can mend.
    """
    in_files = merged(config_file_list)
    given = {key: value for key, value in (("model", model), ("dataset", dataset)) if value is not None}
    if resume:
        config, folder = config_of(run_dir, {**in_files, **(config_dict or {}), **given})
    else:
        named = {"model": "AutoCDSR", "dataset": "ml-100k", **in_files, **given}
        config = CDSRConfig(named["model"], named["dataset"], config_file_list, config_dict)
        folder = free_folder(config, run_dir)
    try:
        with distributed.processes(config["device"]):
            folder = Path(distributed.from_first(str(folder)))
            return _run(config, folder, command, resume)
    except distributed.Lost as error:
        error.args = (f"{error}; go on with the same command and --resume {folder}",)
        raise


def _run(config: CDSRConfig, folder: Path, command: str | None, resume: bool) -> dict[str, Any]:
    data = prepare(config)  # before the folder is made: bad data leave nothing behind
    if distributed.rank() == 0:
        open_folder(folder, config, command, new=not resume)
    distributed.from_first(None)  # the folder is there for all
    try:
        return _train(build(config, data, folder), folder, resume)
    except KeyboardInterrupt:
        raise Interrupted(str(folder)) from None


def prepare(config: CDSRConfig) -> tuple[CDSRDataset, tuple]:
    """The data of `config`: built if they are built in, loaded, split.

    Returns:
        the whole data set, and the training, validation and test loaders.

    Raises:
        CDSRError: if the data cannot be used, or the model needs what this package does not feed.
    """
    refuse_special_models(config)
    with distributed.first_alone():
        ensure_built_in(config["dataset"], Path(config["data_path"]), config["domain_groups"])
    init_seed(config["seed"], config["reproducibility"])
    # Where prepared data are kept, process 0 prepares them, and all others map what it has kept.
    with distributed.first_alone() if cache.wanted(config) else contextlib.nullcontext():
        dataset = CDSRDataset(config)
    return dataset, make_loaders(config, dataset)


def build(config: CDSRConfig, data: tuple[CDSRDataset, tuple], folder: Path) -> Run:
    """Model and trainer for prepared data, seeded; checkpoints will lie in `folder`."""
    config["checkpoint_dir"] = str(folder)
    dataset, loaders = data
    init_seed(config["seed"], config["reproducibility"])
    try:
        model = config.model_class(config, loaders[0].dataset).to(config["device"])
    except CDSRError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise CDSRError(f"{config.model} cannot be built with these data and keys ({what})") from error
    if getattr(model, "needs_target_domain", False):
        _refuse_leaks(config)
    trainer = MGDATrainer(config, model)
    trainer.data_digest = loaders[0].dataset.digest()
    return Run(config, dataset, model, trainer, *loaders)


def _refuse_leaks(config: CDSRConfig) -> None:
    """CDSRError for settings in which the domain of the item to predict would tell more than its domain."""
    told = f"{config.model} is given the domain of the item to predict"
    if config["valid_candidates"] == "all":
        raise CDSRError(
            f"{told}, which ranks among all items must not know; leave the key 'valid_candidates' at domain"
        )
    if key := next((key for key in ("label_noise", "label_hidden") if config[key]), None):
        raise CDSRError(
            f"{told}, and with {key} a label that is not the right one tells which items it may be; set {key} to 0, or "
            f"take a form that is not told (target_domain_input False, tape causal or off, ddsr not target)"
        )


def load(run_dir: str | Path, config_dict: dict[str, Any] | None = None) -> Run:
    """The finished (or interrupted) run in `run_dir` with the weights of its best epoch.

    Args:
        config_dict: settings that depend on the machine and may differ now: data_path, gpu_id, use_gpu.

    Raises:
        CDSRError: if the folder holds no run, its checkpoint is damaged, or the data are others.
    """
    return _load(*config_of(run_dir, config_dict or {}))


def _load(config: CDSRConfig, folder: Path) -> Run:
    built = build(config, prepare(config), folder)
    if (folder / LAST).is_file():
        built.trainer.recall(checkpoint.load(folder / LAST))
    built.trainer.load_best()
    return built


def evaluate(run_dir: str | Path, config_dict: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ranks the test events of a run again, from its checkpoint, and compares with what the run wrote.

    Args: as in `load`.

    Returns:
        result as in result.json, with `reproduced`: True, False, or None if the run wrote no ranks.
    """
    config, folder = config_of(run_dir, config_dict or {})
    with distributed.processes(config["device"]):
        built = _load(config, folder)
        part, loader = built.evaluated
        ranks = built.trainer.rank_table(loader, config["show_progress"])
    result = result_of(built, part, ranks)
    stored = Path(run_dir) / RANKS
    result["reproduced"] = bool(RankTable.load(stored).equals(ranks)) if stored.is_file() else None
    return result


def export(
    run_dir: str | Path,
    out: str | Path | None = None,
    histories: bool = True,
    config_dict: dict[str, Any] | None = None,
) -> Path:
    """Writes the bundle of a run, finished or interrupted, with its best weights so far.

    Args:
        out: folder of the bundle; `bundle/` in the folder of the run by default.
        histories: whether the users of the data set and their events go along.
        config_dict: as in `load`.

    Returns:
        the folder.

    Raises:
        CDSRError: if the run cannot be loaded, or no bundle can hold its model.
    """
    built = load(run_dir, config_dict)
    folder = Path(out) if out else Path(run_dir) / bundle.FOLDER
    bundle.write(folder, built.config, built.model, built.train.dataset, _model_card(built, Path(run_dir)), histories)
    return folder


def _model_card(built: Run, folder: Path) -> str:
    result = json.loads((folder / RESULT).read_text(encoding="utf-8")) if (folder / RESULT).is_file() else None
    return model_card(built.config, built.train.dataset, result)


def _write_bundle(built: Run, folder: Path) -> None:
    """The bundle of a finished run; a model that none can hold is no reason to fail."""
    try:
        card = _model_card(built, folder)
        bundle.write(folder / bundle.FOLDER, built.config, built.model, built.train.dataset, card, histories=True)
    except CDSRError as error:
        logger.warning("no bundle was written: %s", error)


def _train(built: Run, folder: Path, resume: bool) -> dict[str, Any]:
    train(built, folder, resume)
    return conclude(built, folder)


def train(built: Run, folder: Path, resume: bool, callback: Callable[[int, float], None] | None = None) -> None:
    """Trains, or goes on with training, and takes back the weights of the best epoch. Reads no test event.

    Args:
        folder: of the run.
        resume: whether there may be a run to go on with.
        callback: called with epoch and score after each validation.

    Raises:
        CDSRError: as in `run`.
    """
    describe(built)
    row_wise.name_cheaper_loss(built.model)
    if resume and (folder / BEST).is_file() and not (folder / LAST).is_file():
        raise CDSRError(f"{folder / LAST} is gone, so the run cannot go on; `evaluate` still works, or start a new run")
    if resume and (folder / LAST).is_file():
        built.trainer.resume_checkpoint(folder / LAST)
        logger.info("resumed after epoch %d", built.trainer.start_epoch - 1)
    show = bool(built.config["show_progress"])
    valid = built.valid if len(built.valid) else None
    built.trainer.fit(built.train, valid, show_progress=show, callback_fn=callback)
    built.trainer.load_best()


def conclude(built: Run, folder: Path) -> dict[str, Any]:
    """Ranks the test events with the present weights; writes ranks, result and bundle into the folder of the run.

    Returns:
        what result.json holds.
    """
    part, loader = built.evaluated
    ranks = built.trainer.rank_table(loader, bool(built.config["show_progress"]))
    result = result_of(built, part, ranks)
    if distributed.rank() == 0:
        ranks.save(folder / RANKS)
        checkpoint.write_bytes(folder / RESULT, as_json(result))
        _write_bundle(built, folder)
    return result
