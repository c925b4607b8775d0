"""One trial: a run of its own in a folder of its own, which reports validation scores and never ranks a test event.

A trial whose process dies is started again by Ray and goes on from its last epoch. An error that would come again, such
as too little memory or a loss that is not finite, ends the trial with its sentence and the score 0.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_cdsr import quick_start
from recbole_cdsr.checkpoint import write_bytes
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.data.dataset import CDSRDataset
from recbole_cdsr.data.loaders import loaders_of
from recbole_cdsr.data.withheld import without_test
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.memory import is_out_of_memory
from recbole_cdsr.run_folder import BEST, LAST, open_folder
from recbole_cdsr.tune.plan import Search
from recbole_cdsr.yaml_values import one_line

SCORE, EPOCH, ERROR, ENDED = "valid_score", "epoch", "error", "ended"
ERROR_FILE = "error.txt"


def folder_of(out: Path, trial: str) -> Path:
    """The folder of a trial's run."""
    return out / "trials" / trial


@dataclass(frozen=True)
class TrialData:
    """Parts of the data without their test events, and the digest of the whole, which checkpoints are marked with."""

    parts: list[CDSRDataset]
    digest: str


def data_of(config: CDSRConfig) -> TrialData:
    """What a trial may see of the data.

    Raises:
        CDSRError: if the data cannot be used, or no event is left to validate on.
    """
    _, loaders = quick_start.prepare(config)
    train, valid, test = (loader.dataset for loader in loaders)
    if not len(valid):
        raise CDSRError("eval_args.split leaves no event to validate on, by which trials are compared; change it")
    return TrialData(without_test((train, valid, test)), train.digest())


def run_trial(drawn: dict[str, Any], search: Search, out: str, data: TrialData | None) -> None:
    """What Ray runs in a worker; reports valid_score (best so far), epoch and last_score after every validation,
    and why training ended after the last.

    Args:
        drawn: the point of the search space.
        out: folder of the search, on a disk that all nodes see.
        data: from the object store; None if each trial loads its own.
    """
    from ray import tune

    # RecBole's and our log lines belong into the folder of the run, not onto the terminal of the search.
    logging.getLogger().handlers.clear()
    torch.set_num_threads(max(1, int(search.cpus_per_trial)))
    folder = folder_of(Path(out), tune.get_context().get_trial_id())
    drawn = drawn.get("point", drawn)
    try:
        _train(drawn, search, folder, data)
    except Exception as error:  # every one is told in the table of trials, and the search goes on
        what = "out of memory" if is_out_of_memory(error) else one_line(error)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / ERROR_FILE, f"{type(error).__name__}: {what}\n".encode())
        tune.report({SCORE: 0.0, "last_score": 0.0, EPOCH: 0, ERROR: what})


def _train(drawn: dict[str, Any], search: Search, folder: Path, data: TrialData | None) -> None:
    from ray import tune

    config = search.config(drawn)
    donor = tune.get_checkpoint()
    if donor is not None:  # of pbt: another trial's weights, or its own, go on with the keys of this one
        with donor.as_directory() as path:
            shutil.copytree(path, folder, dirs_exist_ok=True)
    resume = (folder / LAST).is_file()
    open_folder(folder, config, search.command, new=not resume)
    data = data or data_of(config)
    built = quick_start.build(config, (data.parts[0], loaders_of(config, data.parts)), folder)
    trainer, reported = built.trainer, []
    trainer.data_digest = data.digest
    if resume:
        trainer.resume_checkpoint(folder / LAST)
        for group in trainer.optimizer.param_groups:
            group["lr"], group["weight_decay"] = config["learning_rate"], config["weight_decay"]

    def report(epoch: int, score: float) -> None:
        reported.append(epoch)
        last = epoch + 1 + trainer.eval_step > trainer.epochs
        ended = "last epoch" if last else "no improvement" if trainer.finished else ""
        best = float(trainer.best_valid_score)
        metrics = {SCORE: best, "last_score": score, EPOCH: epoch + 1, ENDED: ended, ERROR: ""}
        if search.scheduler != "pbt":
            tune.report(metrics)
            return
        with tempfile.TemporaryDirectory() as copied:
            for name in (LAST, BEST):
                shutil.copyfile(folder / name, Path(copied) / name)
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(copied))

    quick_start.train(built, folder, resume=False, callback=report)
    if not reported:  # the process died after the last epoch
        report(len(trainer.history) - 1, float(trainer.best_valid_score))
