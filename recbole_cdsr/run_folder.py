"""The folder of a run: where it lies, what it starts from, and how its settings are read again."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import yaml

from recbole_cdsr import checkpoint
from recbole_cdsr.config import CDSRConfig, plain
from recbole_cdsr.environment import environment
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.files import remove_halves
from recbole_cdsr.names import model_name, normalise
from recbole_cdsr.yaml_values import read_yaml

CONFIG, RESULT, RANKS, LOG, ENVIRONMENT = "config.yaml", "result.json", "ranks.npz", "run.log", "environment.json"
LAST, BEST, HISTORY, TRANSFER = "checkpoint.pth", "best.pth", "history.csv", "transfer.csv"
# May differ from the first start of a run when it is resumed: they change how long it goes on, not what it does.
MAY_CHANGE = {"epochs", "stopping_step", "show_progress", "state", "data_path", "data_cache", "gpu_id", "use_gpu"}

logger = logging.getLogger()


def free_folder(config: CDSRConfig, run_dir: str | Path | None) -> Path:
    """The folder for a new run; it may exist, but holds no run."""
    digest = hashlib.sha256(yaml.safe_dump(plain(config)).encode()).hexdigest()[:6]
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    folder = Path(run_dir) if run_dir else Path("runs") / f"{normalise(config.model)}-{config.dataset}-{now}-{digest}"
    if (folder / LAST).exists():
        raise CDSRError(f"{folder} already holds a run; go on with it by --resume, or choose another --run_dir")
    return folder


def open_folder(folder: Path, config: CDSRConfig, command: str | None, new: bool) -> None:
    """Makes the folder, sends the log there, and writes down what a new run starts from."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CDSRError(f"cannot make the run folder {folder}: {error.strerror or error}; set --run_dir") from None
    remove_halves(folder)
    _log_to(folder / LOG, config["state"])
    if new:
        checkpoint.write_bytes(folder / ENVIRONMENT, as_json(environment(config, command)))
    # Last, since a folder with this file can be resumed.
    checkpoint.write_bytes(folder / CONFIG, _config_text(config, command).encode())
    logger.info("run folder: %s", folder)


def config_of(run_dir: str | Path | None, changes: dict[str, Any]) -> tuple[CDSRConfig, Path]:
    """The settings that a run folder holds, with those `changes` that a resumed run may make."""
    if run_dir is None:
        raise CDSRError("to resume, say which run: --resume --run_dir runs/<name>")
    folder = Path(run_dir)
    if not (folder / CONFIG).is_file():
        raise CDSRError(
            f"{folder} holds no run (there is no {CONFIG} in it); give the folder of a run, or leave --resume out"
        )
    settings = read_yaml(folder / CONFIG)
    if "model" not in settings or "dataset" not in settings:
        raise CDSRError(f"{folder / CONFIG} names no model and data set; it is not the file that the run wrote")
    model = changes.get("model", settings["model"])  # a class of the user's own has no name to find it by
    wanted = model_name(model) if isinstance(model, str) else model.__name__
    if wanted != settings["model"]:
        raise CDSRError(f"the run in {folder} has model = {settings['model']}; it cannot change to {wanted}")
    before = plain(_make({**settings, "model": model}))
    config = _make({**settings, **changes})
    after = plain(config)
    for key in changes:
        if key not in MAY_CHANGE and before.get(key) != after.get(key):
            raise CDSRError(f"the run in {folder} has {key} = {before.get(key)}; it cannot change to {after.get(key)}")
    return config, folder


def _make(settings: dict[str, Any]) -> CDSRConfig:
    keys = {key: value for key, value in settings.items() if key not in ("model", "dataset")}
    return CDSRConfig(settings["model"], settings["dataset"], config_dict=keys)


def _config_text(config: CDSRConfig, command: str | None) -> str:
    head = f"# {datetime.date.today()}: {command or 'recbole_cdsr.quick_start.run'}\n"
    return head + yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def as_json(content: dict) -> bytes:
    """Strict json: a value that is not finite is an error, not a wrong file."""
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
