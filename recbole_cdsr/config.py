"""CDSRConfig: RecBole's Config, fed safely.

RecBole's own Config evaluates strings as Python, reads the command line of whatever process it runs in,
adds a resolver to yaml's global loader, overwrites CUDA_VISIBLE_DEVICES and lets unknown keys pass. Here
values come typed (from yaml or Python), nothing is evaluated, and an unknown key is an error that names
the nearest known one.
"""

from __future__ import annotations

import copy
import importlib
import numbers
from pathlib import Path
from typing import Any

import yaml

from recbole_cdsr import compat, distributed
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import NOT_OFFERED, model_name, nearest, normalise, own_models, recbole_dir, recbole_models
from recbole_cdsr.paths import properties_dir
from recbole_cdsr.protocol import check_settings
from recbole_cdsr.yaml_values import SafeLoader, merged, one_line, plain_value, read_yaml

compat.apply()

import recbole.trainer  # noqa: E402
import torch  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.utils import ModelType  # noqa: E402

# Keys that RecBole reads although no property file declares them.
UNDECLARED_KEYS = {
    "encoding", "nproc", "numerical_features", "discretization", "benchmark_filename", "additional_feat_suffix",
    "pretrain_path", "valid_neg_sample_args", "test_neg_sample_args",
}  # fmt: skip
# Keys that RecBole offers and this package answers in another way: key -> what to use instead.
REFUSED_KEYS = {
    "save_dataset": "prepared data are never pickled here, but kept as arrays; see the key 'data_cache'",
    "dataset_save_path": "a pickled data set is never loaded here, since it could run code",
    "save_dataloaders": "prepared data are never pickled here",
    "dataloaders_save_path": "a pickled data loader is never loaded here, since it could run code",
    "log_wandb": "the run folder holds TensorBoard files and history.csv",
    "benchmark_filename": "its rows carry no event times; put all events into one .inter file and set eval_args.split",
}
# Keys that take other types than that of their default value.
FREE_TYPE_KEYS = {"topk", "metrics", "gpu_id", "clip_grad_norm", "train_neg_sample_args", "eval_args", "load_col"}
FREE_TYPE_KEYS |= {"data_cache", "exchange_layers", "tape", "ddsr"}  # the last two take `off`: False in yaml


def resolve_model(model: str | type) -> type:
    """The model class that people call `model`; a class is returned as it is.

    Raises:
        CDSRError: if there is no such model, or it needs data that this package does not feed.
    """
    if not isinstance(model, str):
        return model
    name = model_name(model)
    if name in own_models().values():
        files = (Path(__file__).parent / "model").glob("*.py")
        module = next(path.stem for path in files if normalise(path.stem) == normalise(name))
        return getattr(importlib.import_module(f"recbole_cdsr.model.{module}"), name)
    kind = "sequential" if name in recbole_models(("sequential_recommender",)).values() else "general"
    return getattr(compat.import_model(f"recbole.model.{kind}_recommender.{name.lower()}"), name)


class CDSRConfig(Config):
    """All settings of one run; indexable by key like RecBole's Config.

    Args:
        model: name (any spelling that `names.model_name` knows) or class.
        dataset: name of the data set.
        config_file_list: yaml files, later ones win.
        config_dict: typed values that win over the files.

    Raises:
        CDSRError: for an unknown model or key, or a value of the wrong kind.
    """

    def __init__(
        self,
        model: str | type = "AutoCDSR",
        dataset: str = "ml-100k",
        config_file_list: list[str] | None = None,
        config_dict: dict[str, Any] | None = None,
    ) -> None:
        try:
            super().__init__(resolve_model(model), dataset, config_file_list, config_dict)
        except CDSRError:
            raise
        except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, AssertionError) as error:
            raise CDSRError(f"the configuration is not usable: {one_line(error)}") from error
        check_settings(self)

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        self.parameters = copy.deepcopy(self.parameters)

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return SafeLoader

    def _load_config_files(self, file_list: list[str] | None) -> dict:
        return {key: value for key, value in merged(file_list).items() if key not in ("model", "dataset")}

    def _load_variable_config_dict(self, config_dict: dict | None) -> dict:
        return {key: plain_value(value) for key, value in (config_dict or {}).items()}

    def _load_cmd_line(self) -> dict:
        return {}

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        files = [properties_dir() / "overall.yaml"]
        # A class that somebody derives from a model starts from that model's keys.
        for parent in reversed([one.__name__ for one in model_class.__mro__]):
            folders = (recbole_dir() / "properties", properties_dir())
            files += [folder / "model" / f"{parent}.yaml" for folder in folders]
        for path in [*files, properties_dir() / "dataset" / f"{dataset}.yaml"]:
            if path.is_file():
                self.internal_config_dict.update(read_yaml(path))
        if model_class.type != ModelType.SEQUENTIAL:
            self.internal_config_dict.update(layout="interaction", repeatable=False)

    def _get_final_config_dict(self) -> dict:
        self.external_config_dict.pop("checkpoint_dir", None)  # RecBole's files name it; here the run's folder is it
        self._check_keys()
        final = super()._get_final_config_dict()
        if isinstance(final["eval_args"], dict):
            final["eval_args"] = {**self.internal_config_dict["eval_args"], **final["eval_args"]}
        if "load_col" not in self.external_config_dict:
            user, item, time, domain = (final[f"{name}_FIELD"] for name in ("USER_ID", "ITEM_ID", "TIME", "DOMAIN"))
            final["load_col"] = {"inter": [user, item, time, domain], "item": [item, domain]}
        counts_only = self.model_class.type == ModelType.TRADITIONAL
        full_softmax = final.get("loss_type", "BPR" if hasattr(self.model_class, "input_type") else "CE") != "BPR"
        if "train_neg_sample_args" not in self.external_config_dict and (counts_only or full_softmax):
            final["train_neg_sample_args"] = None
        return copy.deepcopy(final)

    def _check_keys(self) -> None:
        known = set(self.internal_config_dict) | UNDECLARED_KEYS
        known.update(key for keys in self.parameters.values() for key in keys)
        known -= {"MODEL_TYPE"}
        for key, value in self.external_config_dict.items():
            if key in REFUSED_KEYS and value:
                raise CDSRError(f"the key '{key}' is not available: {REFUSED_KEYS[key]}")
            if key not in known:
                where = "its keys are documented in properties/overall.yaml and properties/model/"
                raise CDSRError(f"{self.model} has no key '{key}'; {nearest(str(key), sorted(known), where)}")
            self._check_type(key, value)

    def _check_type(self, key: str, value: Any) -> None:
        default = self.internal_config_dict.get(key)
        if default is None or value is None or key in FREE_TYPE_KEYS:
            return
        if isinstance(default, bool):
            fits, wanted = isinstance(value, bool), "True or False"
        elif isinstance(default, int):
            fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            wanted = "a whole number"
        elif isinstance(default, float):
            fits, wanted = isinstance(value, numbers.Real) and not isinstance(value, bool), "a number"
        else:
            fits, wanted = (
                isinstance(value, type(default)),
                {str: "a text", list: "a list", dict: "a mapping"}.get(type(default), type(default).__name__),
            )
        if not fits:
            raise CDSRError(f"the key '{key}' takes {wanted}, but got {value!r}")

    def _set_default_parameters(self) -> None:
        folder = self.final_config_dict["data_path"]
        super()._set_default_parameters()
        self.final_config_dict["data_path"] = str(Path(folder) / self.dataset)

    def _init_device(self) -> None:
        """Like RecBole's, but CUDA_VISIBLE_DEVICES stays as the user or a scheduler set it."""
        final = self.final_config_dict
        final["gpu_id"] = str(final["gpu_id"])
        use_gpu = final["use_gpu"] and torch.cuda.is_available()
        if use_gpu and not (final["gpu_id"].isdigit() and int(final["gpu_id"]) < torch.cuda.device_count()):
            last = torch.cuda.device_count() - 1
            raise CDSRError(f"there is no GPU '{final['gpu_id']}'; set gpu_id to 0 .. {last}, or use_gpu to False")
        if use_gpu and (wanted := distributed.local_started()) > (there := torch.cuda.device_count()):
            reason = f"{wanted} processes need a GPU each, but there are {there}"
            raise CDSRError(f"{reason}; start fewer by --nproc_per_node, or set use_gpu to False")
        number = distributed.local_rank() if distributed.started() > 1 else int(final["gpu_id"]) if use_gpu else 0
        final["device"] = torch.device("cuda", number) if use_gpu else torch.device("cpu")
        final["single_spec"], final["local_rank"] = True, 0


def plain(config: CDSRConfig) -> dict[str, Any]:
    """The settings as plain values that `yaml.safe_dump` can write and CDSRConfig can read back.

    The order of entries is kept: in `domain_groups` it means something.
    """
    derived = {"device", "single_spec", "local_rank", "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "model", "dataset"}
    derived |= {"valid_neg_sample_args", "test_neg_sample_args", "valid_metric_bigger", *REFUSED_KEYS}
    given = (config.internal_config_dict | config.external_config_dict).keys() - derived
    values = {key: value for key, value in config.final_config_dict.items() if key in given}
    values["data_path"] = str(Path(config["data_path"]).parent.resolve())
    values["eval_args"] = {**values["eval_args"], "mode": "full"}
    if (values.get("train_neg_sample_args") or {}).get("distribution") in (None, "none"):
        values["train_neg_sample_args"] = None
    return {"model": config.model, "dataset": config.dataset, **copy.deepcopy(values)}


def refuse_special_models(config: CDSRConfig) -> None:
    """CDSRError for models of RecBole that need more than events, or a training procedure of their own."""
    theirs = config.model_class.__module__.startswith("recbole.model")
    kinds = (ModelType.SEQUENTIAL, ModelType.GENERAL, ModelType.TRADITIONAL)
    own_trainer = theirs and hasattr(recbole.trainer, f"{config.model}Trainer")
    reason = NOT_OFFERED.get(config.model) if theirs else None
    if config["MODEL_TYPE"] not in kinds or own_trainer:
        reason = reason or "trains in a way of its own"
    if reason:
        raise CDSRError(f"{config.model} is not offered: it {reason}; choose a model listed by `recbole-cdsr --help`")
    if theirs and config["layout"] == "sequence":
        raise CDSRError(f"{config.model} predicts one target per row; leave the key 'layout' at prefix")
