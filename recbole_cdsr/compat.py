"""Every change that RecBole 1.2.0 / 1.2.1 needs to run on current libraries.

`apply()` is idempotent, is called before any RecBole class is used, and changes nothing that is not
listed here. Each entry says why it is there and what would make it superfluous.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import torch


def apply() -> None:
    """Patch what has to be patched; safe to call any number of times."""
    _restore_numpy_names()
    _provide_kmeans()
    _keep_tensorboard_in_run_folder()
    _restore_dok_matrix_update()
    _count_popularity_exactly()
    _silence_known_warnings()


def _restore_numpy_names() -> None:
    """RecBole's Config and Dataset use names that numpy 2 removed. Superfluous once RecBole supports numpy 2."""
    removed = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}
    aliases = {"float": np.float64, "int": np.int64, "bool": np.bool_, "object": np.object_, "str": np.str_}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in {**removed, **aliases}.items():
            if not hasattr(np, name):
                setattr(np, name, value)


def _provide_kmeans() -> None:
    """RecBole 1.2.0 imports the undeclared `kmeans_pytorch` together with every general recommender.

    Only LDiffRec calls it. Superfluous once RecBole declares it or imports it where it is used.
    """
    if "kmeans_pytorch" in sys.modules or importlib.util.find_spec("kmeans_pytorch") is not None:
        return

    def kmeans(*args, **kwargs):
        raise ImportError("LDiffRec needs the package kmeans_pytorch: pip install kmeans_pytorch")

    module = types.ModuleType("kmeans_pytorch")
    module.kmeans = kmeans
    sys.modules["kmeans_pytorch"] = module


def _keep_tensorboard_in_run_folder() -> None:
    """RecBole's Trainer always opens ./log_tensorboard in the working directory.

    The writer goes beside the log file of the run instead, and nowhere if there is none.
    Superfluous once the trainer takes a folder.
    """
    import recbole.trainer.trainer as recbole_trainer

    recbole_trainer.get_tensorboard = tensorboard_beside_log


def tensorboard_beside_log(logger: logging.Logger):
    """A TensorBoard writer in `tensorboard/` beside the logger's file, or one that drops everything.

    Args:
        logger: the root logger; its first file handler names the run folder.
    """
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(str(Path(handler.baseFilename).parent / "tensorboard"))
    return _NoWriter()


class _NoWriter:
    """Takes the calls that RecBole's and our trainer make on a SummaryWriter, and drops them."""

    def add_scalar(self, *args, **kwargs) -> None: ...

    def add_hparams(self, *args, **kwargs) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _restore_dok_matrix_update() -> None:
    """LightGCN, NGCF and others fill a scipy matrix by `_update`, which scipy 1.13 removed.

    Superfluous once RecBole builds these matrices in another way.
    """
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda matrix, entries: matrix._dict.update(entries)


def _count_popularity_exactly() -> None:
    """RecBole's Pop counts an item once per batch however often it occurs (an indexed `x[i] = x[i] + 1`).

    Superfluous once RecBole counts with `index_add_`.
    """
    from recbole.model.general_recommender.pop import Pop

    def calculate_loss(self, interaction):
        item = interaction[self.ITEM_ID]
        self.item_cnt.index_add_(0, item, torch.ones_like(item).unsqueeze(1))
        self.max_cnt = self.item_cnt.max(dim=0)[0]
        return self.fake_loss.sum() * 0

    Pop.calculate_loss = calculate_loss


def import_model(module: str) -> types.ModuleType:
    """Imports a module of RecBole's models, and leaves autograd's anomaly detection as it was.

    RecBole's SINE switches detection on when it is imported, which any sequential model's import does: every training
    step then takes 1.5 times as long. Superfluous once SINE no longer does that.
    """
    before = torch.is_anomaly_enabled()
    try:
        return importlib.import_module(module)
    finally:
        torch.autograd.set_detect_anomaly(before)


def _silence_known_warnings() -> None:
    """Deprecations inside RecBole's own files, which a user cannot act on."""
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"recbole\..*")
        warnings.filterwarnings("ignore", category=category, module=r"thop\..*")
