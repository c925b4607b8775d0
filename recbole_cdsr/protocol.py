"""The settings without which a result would not be comparable, or would silently mean something else."""

from __future__ import annotations

import re

from recbole_cdsr.errors import CDSRError

LAYOUTS = ("sequence", "prefix", "interaction")
METRICS = ("Recall", "Hit", "NDCG", "MRR", "MAP", "Precision")
LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf)"
INTERVALS = rf"[\[(]{_NUMBER},{_NUMBER}[\])](?:;[\[(]{_NUMBER},{_NUMBER}[\])])*"


def check_settings(config) -> None:
    """The settings without which a result would not be comparable, or would silently mean something else."""
    if config["layout"] not in LAYOUTS:
        raise CDSRError(f"the key 'layout' takes one of {', '.join(LAYOUTS)}, but got {config['layout']!r}")
    if config["valid_candidates"] not in ("domain", "all"):
        raise CDSRError(f"the key 'valid_candidates' takes domain or all, but got {config['valid_candidates']!r}")
    unknown = [name for name in config["metrics"] if name.lower() not in [known.lower() for known in METRICS]]
    if unknown:
        raise CDSRError(f"the metric {unknown[0]} cannot be computed from ranks; choose among {', '.join(METRICS)}")
    name, _, k = config["valid_metric"].partition("@")
    if name.lower() not in [known.lower() for known in METRICS] or not k.isdigit() or int(k) < 1:
        raise CDSRError(f"the key 'valid_metric' looks like NDCG@10, but got {config['valid_metric']!r}")
    _check_eval_args(config)
    _check_data_settings(config)
    _check_optimiser(config)
    for key in ("epochs", "stopping_step", "train_batch_size", "eval_batch_size", "eval_step"):
        if config[key] < 1:
            raise CDSRError(f"the key '{key}' must be at least 1, but is {config[key]}")
    if config["MAX_ITEM_LIST_LENGTH"] < 2:
        raise CDSRError(f"MAX_ITEM_LIST_LENGTH must be at least 2, but is {config['MAX_ITEM_LIST_LENGTH']}")


def _check_eval_args(config) -> None:
    unknown = sorted(set(config["eval_args"]) - {"split", "group_by", "order", "mode"})
    if unknown:
        raise CDSRError(f"eval_args has no key '{unknown[0]}'; it takes split, group_by, order and mode")
    if config["eval_args"]["order"] != "TO":
        raise CDSRError("eval_args.order must be TO (time order): any other order trains on the future")
    if set(config["eval_args"]["mode"].values()) != {"full"}:
        raise CDSRError("eval_args.mode must be full: sampled candidates give ranks that cannot be compared")


def _check_data_settings(config) -> None:
    separator = config["field_separator"]
    if len(separator) != 1 or not separator.isascii() or separator in "\r\n\0:":
        raise CDSRError(f"the key 'field_separator' takes one character like ',', but got {separator!r}")
    for key in ("label_noise", "label_hidden"):
        if not 0 <= config[key] <= 1:
            raise CDSRError(f"the key '{key}' takes a share from 0 to 1, but got {config[key]!r}")
    if config["data_cache"] not in ("auto", True, False):
        raise CDSRError(f"the key 'data_cache' takes auto, True or False, but got {config['data_cache']!r}")
    intervals = {key: config[key] for key in ("user_inter_num_interval", "item_inter_num_interval")}
    for field, value in (config["val_interval"] or {}).items():
        if isinstance(value, str):
            intervals[f"val_interval.{field}"] = value
    for key, value in intervals.items():
        if value is not None and not re.fullmatch(INTERVALS, str(value).replace(" ", "")):
            raise CDSRError(f"the key '{key}' takes an interval like [5,inf) or (0,10], but got {value!r}")


def _check_optimiser(config) -> None:
    if config["learner"] not in LEARNERS:
        raise CDSRError(f"the key 'learner' takes one of {', '.join(LEARNERS)}, but got {config['learner']!r}")
    if not 0 <= config["seed"] < 2**32:
        raise CDSRError(f"the key 'seed' takes a whole number from 0 to {2**32 - 1}, but got {config['seed']}")
    if not config["learning_rate"] > 0 or not config["weight_decay"] >= 0:
        raise CDSRError("learning_rate must be above 0 and weight_decay must not be negative")
    clip = config["clip_grad_norm"]
    fits = isinstance(clip, dict) and "max_norm" in clip and set(clip) <= {"max_norm", "norm_type"}
    if clip is not None and not (fits and all(isinstance(value, (int, float)) for value in clip.values())):
        raise CDSRError(f"the key 'clip_grad_norm' looks like {{max_norm: 5}}, but got {clip!r}")
