"""run(), evaluate(), load(): from names and settings to a folder with everything about one run.

A run folder holds config.yaml (all settings), environment.json (command, commit, versions), run.log, tensorboard/,
history.csv (one line per epoch), checkpoint.pth and best.pth, ranks.npz (the rank of every test event) and result.json.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recbole_cdsr import checkpoint, compat
from recbole_cdsr.config import CDSRConfig, plain, read_yaml
from recbole_cdsr.data.dataset import CDSRDataset
from recbole_cdsr.data.loaders import RowDataLoader, make_loaders
from recbole_cdsr.data.sources import ensure_built_in
from recbole_cdsr.environment import environment
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import normalise
from recbole_cdsr.ranks import RankTable
from recbole_cdsr.report import result_dict, table
from recbole_cdsr.trainer import LAST, MGDATrainer

compat.apply()

import recbole.trainer  # noqa: E402
from recbole.utils import ModelType, init_seed  # noqa: E402

CONFIG, RESULT, RANKS, LOG, ENVIRONMENT = "config.yaml", "result.json", "ranks.npz", "run.log", "environment.json"
# May differ from the first start of a run when it is resumed: they change how long it goes on, not what it does.
MAY_CHANGE = {"epochs", "stopping_step", "show_progress", "state"}

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
    model: str | type = "AutoCDSR",
    dataset: str = "ml-100k",
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Trains a model, ranks the test events with its best epoch, and writes the run folder.

    Args:
        model: name or class, ours or RecBole's.
        dataset: name of a folder in `data_path`; ml-100k and toy are built on first use.
        config_file_list, config_dict: settings; see CDSRConfig.
        run_dir: runs/<model>-<dataset>-<time>-<hash> by default.
        resume: go on with the run in `run_dir`, whose own settings then hold.
        command: how the run was started, for the record.

    Returns:
        what result.json holds.

    Raises:
        CDSRError: for anything a user can mend.
    """
    if resume:
        config, folder = _config_of(run_dir, config_dict or {})
    else:
        config = CDSRConfig(model, dataset, config_file_list, config_dict)
        folder = _free_folder(config, run_dir)
    data = prepare(config)  # before the folder is made: bad data leave nothing behind
    _open_folder(folder, config, command, new=not resume)
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
    _refuse_special_models(config)
    ensure_built_in(config["dataset"], Path(config["data_path"]), config["domain_groups"])
    init_seed(config["seed"], config["reproducibility"])
    dataset = CDSRDataset(config)
    return dataset, make_loaders(config, dataset)


def build(config: CDSRConfig, data: tuple[CDSRDataset, tuple], folder: Path) -> Run:
    """Model and trainer for prepared data, seeded; checkpoints will lie in `folder`."""
    config["checkpoint_dir"] = str(folder)
    dataset, loaders = data
    init_seed(config["seed"], config["reproducibility"])
    model = config.model_class(config, loaders[0].dataset).to(config["device"])
    return Run(config, dataset, model, MGDATrainer(config, model), *loaders)


def load(run_dir: str | Path) -> Run:
    """The finished (or interrupted) run in `run_dir` with the weights of its best epoch.

    Raises:
        CDSRError: if the folder holds no run, or its checkpoint is damaged.
    """
    config, folder = _config_of(run_dir, {})
    built = build(config, prepare(config), folder)
    built.trainer.load_best()
    return built


def evaluate(run_dir: str | Path) -> dict[str, Any]:
    """Ranks the test events of a run again, from its checkpoint, and compares with what the run wrote.

    Returns:
        result as in result.json, with `reproduced`: True, False, or None if the run wrote no ranks.
    """
    built = load(run_dir)
    part, loader = built.evaluated
    ranks = built.trainer.rank_table(loader, built.config["show_progress"])
    result = _result(built, part, ranks)
    stored = Path(run_dir) / RANKS
    result["reproduced"] = bool(RankTable.load(stored).equals(ranks)) if stored.is_file() else None
    return result


def _train(built: Run, folder: Path, resume: bool) -> dict[str, Any]:
    _describe(built)
    if resume and (folder / LAST).is_file():
        built.trainer.resume_checkpoint(folder / LAST)
        logger.info("resumed after epoch %d", built.trainer.start_epoch - 1)
    show = bool(built.config["show_progress"])
    built.trainer.fit(built.train, built.valid if len(built.valid) else None, show_progress=show)
    built.trainer.load_best()
    part, loader = built.evaluated
    if not len(loader):
        raise CDSRError("the split leaves no validation and no test events; change eval_args.split")
    ranks = built.trainer.rank_table(loader, show)
    ranks.save(folder / RANKS)
    result = _result(built, part, ranks)
    checkpoint.write_bytes(folder / RESULT, _json(result))
    return result


def _result(built: Run, part: str, ranks: RankTable) -> dict[str, Any]:
    config, trainer = built.config, built.trainer
    return {
        "model": config.model,
        "dataset": config.dataset,
        "part": part,
        "layout": config["layout"],
        "seed": config["seed"],
        "target_domain_was_input": bool(getattr(built.model, "needs_target_domain", False)),
        "best_epoch": trainer.best_epoch,
        "epochs": len(trainer.history),
        "valid_score": float(trainer.best_valid_score) if trainer.best_valid_result else None,
        "train_cpu_seconds": sum(row["train_cpu_seconds"] for row in trainer.history),
        "parameters": sum(p.numel() for p in built.model.parameters() if p.requires_grad),
        **result_dict(ranks, config["metrics"], config["topk"]),
        "run_dir": config["checkpoint_dir"],
        "environment": json.loads((Path(config["checkpoint_dir"]) / ENVIRONMENT).read_text(encoding="utf-8")),
        "table": table(ranks, config["metrics"], config["topk"]),
    }


def _describe(built: Run) -> None:
    """Says in a few lines what the data and the model are."""
    data, config = built.train.dataset, built.config
    n_domains = len(data.domain_names)
    events = data.events.columns[data.domain_field].bincount(minlength=n_domains).tolist()
    items = data.item_domain.bincount(minlength=n_domains).tolist()
    users, catalogue, tied = data.user_num - 1, data.item_num - 1, 100 * data.tie_share
    logger.info("%s: %d users, %d items, %d events", config["dataset"], users, catalogue, len(data.events))
    logger.info("%.1f %% of neighbouring events share a time and keep the order of the file", tied)
    for name, n_events, n_items in list(zip(data.domain_names, events, items, strict=True))[1:]:
        logger.info("domain %s: %d events, %d items", name, n_events, n_items)
    count = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    logger.info("%s: %d parameters on %s, layout %s", config.model, count, config["device"], config["layout"])
    rows = [len(loader.dataset) for loader in (built.train, built.valid, built.test)]
    logger.info("targets: %d to train on, %d to validate, %d to test", *rows)


def _refuse_special_models(config: CDSRConfig) -> None:
    """RecBole models that need more than events, or a training procedure of their own."""
    kinds = (ModelType.SEQUENTIAL, ModelType.GENERAL, ModelType.TRADITIONAL)
    own_trainer = hasattr(recbole.trainer, f"{config.model}Trainer")
    users_as_rows = config.model in ("MultiDAE", "MultiVAE", "MacridVAE", "CDAE", "ENMF", "DiffRec", "LDiffRec")
    if config["MODEL_TYPE"] not in kinds or own_trainer or users_as_rows:
        raise CDSRError(f"{config.model} trains in a way of its own (pre-training, graphs or whole users as rows), "
                        f"which is not offered here; choose a model listed by `recbole-cdsr --help`")  # fmt: skip
    if config["layout"] == "sequence" and config.model_class.__module__.startswith("recbole.model"):
        raise CDSRError(f"{config.model} predicts one target per row; leave the key 'layout' at prefix")


def _free_folder(config: CDSRConfig, run_dir: str | Path | None) -> Path:
    """The folder for a new run; it may exist, but holds no run."""
    digest = hashlib.sha256(yaml.safe_dump(plain(config)).encode()).hexdigest()[:6]
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    folder = Path(run_dir) if run_dir else Path("runs") / f"{normalise(config.model)}-{config.dataset}-{now}-{digest}"
    if (folder / CONFIG).exists():
        raise CDSRError(f"{folder} already holds a run; go on with it by --resume, or choose another --run_dir")
    return folder


def _open_folder(folder: Path, config: CDSRConfig, command: str | None, new: bool) -> None:
    """Makes the folder, sends the log there, and writes down what a new run starts from."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CDSRError(f"cannot make the run folder {folder}: {error.strerror or error}; set --run_dir") from None
    _log_to(folder / LOG, config["state"])
    if new:
        checkpoint.write_bytes(folder / CONFIG, _config_text(config, command).encode())
        checkpoint.write_bytes(folder / ENVIRONMENT, _json(environment(config, command)))
    logger.info("run folder: %s", folder)


def _config_of(run_dir: str | Path | None, changes: dict[str, Any]) -> tuple[CDSRConfig, Path]:
    """The settings that a run folder holds, with those `changes` that a resumed run may make."""
    if run_dir is None:
        raise CDSRError("to resume, say which run: --resume --run_dir runs/<name>")
    folder = Path(run_dir)
    if not (folder / CONFIG).is_file():
        raise CDSRError(f"{folder} holds no run (there is no {CONFIG} in it); give the folder of a run")
    settings = read_yaml(folder / CONFIG)
    for key, value in changes.items():
        if key not in MAY_CHANGE and settings.get(key) != value:
            raise CDSRError(
                f"the run in {folder} has {key} = {settings.get(key)}; a resumed run cannot change it to {value}"
            )
        settings[key] = value
    return CDSRConfig(settings.pop("model"), settings.pop("dataset"), config_dict=settings), folder


def _config_text(config: CDSRConfig, command: str | None) -> str:
    head = f"# {datetime.date.today()}: {command or 'recbole_cdsr.quick_start.run'}\n"
    return head + yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _log_to(path: Path, level: str) -> None:
    """Root logger: to the run's log file, and to the handlers that the program has set up."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise CDSRError(
            f"cannot write {path}: {error.strerror or error}; set --run_dir to a folder that can be written"
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(getattr(logging, str(level).upper(), logging.INFO))
