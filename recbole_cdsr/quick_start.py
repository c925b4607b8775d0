"""run(), evaluate(), load(), export(): from names and settings to a folder with everything about one run.

A run folder holds config.yaml, environment.json, run.log, tensorboard/, history.csv (a line per epoch), checkpoint.pth,
best.pth, ranks.npz (the rank of every test event), result.json, and bundle/, which recommends without the data set.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_cdsr import checkpoint, compat, distributed, memory
from recbole_cdsr.config import CDSRConfig, refuse_special_models
from recbole_cdsr.data.dataset import CDSRDataset
from recbole_cdsr.data.loaders import RowDataLoader, make_loaders
from recbole_cdsr.data.sources import ensure_built_in
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.ranks import RankTable
from recbole_cdsr.recommend import bundle
from recbole_cdsr.recommend.model_card import model_card
from recbole_cdsr.report import result_dict, table
from recbole_cdsr.run_folder import BEST, ENVIRONMENT, LAST, RANKS, RESULT, as_json, config_of, free_folder, open_folder
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
    if getattr(model, "needs_target_domain", False) and config["valid_candidates"] == "all":
        raise CDSRError(
            f"{config.model} is given the domain of the item to predict, which ranks among all items must not know; "
            f"leave the key 'valid_candidates' at domain"
        )
    trainer = MGDATrainer(config, model)
    trainer.data_digest = loaders[0].dataset.digest()
    return Run(config, dataset, model, trainer, *loaders)


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
    result = _result(built, part, ranks)
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
    _describe(built)
    if resume and (folder / BEST).is_file() and not (folder / LAST).is_file():
        raise CDSRError(f"{folder / LAST} is gone, so the run cannot go on; `evaluate` still works, or start a new run")
    if resume and (folder / LAST).is_file():
        built.trainer.resume_checkpoint(folder / LAST)
        logger.info("resumed after epoch %d", built.trainer.start_epoch - 1)
    show = bool(built.config["show_progress"])
    built.trainer.fit(built.train, built.valid if len(built.valid) else None, show_progress=show)
    built.trainer.load_best()
    part, loader = built.evaluated
    ranks = built.trainer.rank_table(loader, show)
    result = _result(built, part, ranks)
    if distributed.rank() == 0:
        ranks.save(folder / RANKS)
        checkpoint.write_bytes(folder / RESULT, as_json(result))
        _write_bundle(built, folder)
    return result


def _result(built: Run, part: str, ranks: RankTable) -> dict[str, Any]:
    config, trainer = built.config, built.trainer
    written = Path(config["checkpoint_dir"]) / ENVIRONMENT
    return {
        "model": config.model,
        "dataset": config.dataset,
        "part": part,
        "layout": config["layout"],
        "seed": config["seed"],
        "target_domain_was_input": bool(getattr(built.model, "needs_target_domain", False)),
        "target_time_was_input": bool(getattr(built.model, "needs_target_time", False)),
        "best_epoch": trainer.best_epoch,
        "epochs": len(trainer.history),
        "valid_score": float(trainer.best_valid_score) if trainer.best_valid_result else None,
        "train_cpu_seconds": sum(row["train_cpu_seconds"] for row in trainer.history),
        "peak_memory_bytes": memory.peak_bytes(),
        "parameters": sum(p.numel() for p in built.model.parameters() if p.requires_grad),
        **result_dict(ranks, config["metrics"], config["topk"]),
        "run_dir": config["checkpoint_dir"],
        "environment": json.loads(written.read_text(encoding="utf-8")) if written.is_file() else None,
        "table": "\n".join([table(ranks, config["metrics"], config["topk"]), *_given(built.model)]),
    }


def _given(model) -> list[str]:
    """What stands below the table of a model that was told something about its targets."""
    lines = []
    if getattr(model, "needs_target_domain", False):
        lines.append("The target's domain was input: do not compare the ranks among all items with other models'.")
    if getattr(model, "needs_target_time", False):
        lines.append("The target's time was input: compare with models that were given it too.")
    return lines


def _describe(built: Run) -> None:
    """Says in a few lines what the data and the model are."""
    data, config = built.train.dataset, built.config
    n_domains = len(data.domain_names)
    events = data.true_domain[data.events.columns[data.iid_field]].bincount(minlength=n_domains).tolist()
    items = data.true_domain.bincount(minlength=n_domains).tolist()
    users, catalogue, tied = data.user_num - 1, data.item_num - 1, 100 * data.tie_share
    logger.info("%s: %d users, %d items, %d events", config["dataset"], users, catalogue, len(data.events))
    logger.info("%.1f %% of neighbouring events share a time and keep the order of the file", tied)
    logger.info("%d events stand there a second time, with the same user, item and time", data.repeated)
    logger.info("dropped for too few events: %d users, %d events in all", *data.dropped.values())
    for name, n_events, n_items in list(zip(data.domain_names, events, items, strict=True))[1:]:
        logger.info("domain %s: %d events, %d items", name, n_events, n_items)
    count = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    logger.info("%s: %d parameters on %s, layout %s", config.model, count, config["device"], config["layout"])
    rows = [len(loader.dataset) for loader in (built.train, built.valid, built.test)]
    logger.info("targets: %d to train on, %d to validate, %d to test", *rows)
