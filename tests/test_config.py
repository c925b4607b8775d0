"""CDSRConfig: aliases, types, nearest names, and no evaluation of strings."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from recbole_cdsr.config import CDSRConfig, plain
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import model_name, own_models
from recbole_cdsr.yaml_values import parse_value


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("AutoCDSR", "AutoCDSR"),
        ("autocdsr", "AutoCDSR"),
        ("sasrec", "SASRec"),
        ("bert4rec", "BERT4Rec"),
        ("pop", "Pop"),
    ],
)
def test_names_as_people_write_them(written, name):
    assert model_name(written) == name
    assert CDSRConfig(written, "ml-100k").model == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "SARSec"}, "did you mean 'SASRec'?"),
        ({"model": "xyzzy"}, "run `recbole-cdsr --help`"),
        ({"config_dict": {"learnin_rate": 1}}, "did you mean 'learning_rate'?"),
        ({"config_dict": {"mask_ratio": 0.2}, "model": "SASRec"}, "SASRec has no key 'mask_ratio'"),
        ({"config_dict": {"learning_rate": "fast"}}, "'learning_rate' takes a number, but got 'fast'"),
        ({"config_dict": {"epochs": 1.5}}, "'epochs' takes a whole number"),
        ({"config_dict": {"epochs": 0}}, "'epochs' must be at least 1"),
        ({"config_dict": {"repeatable": "yes please"}}, "'repeatable' takes True or False"),
        ({"config_dict": {"eval_args": {"splt": 1}}}, "eval_args has no key 'splt'"),
        ({"config_dict": {"eval_args": {"order": "RO"}}}, "trains on the future"),
        ({"config_dict": {"eval_args": {"order": "TO", "mode": "uni100"}}}, "sampled candidates"),
        ({"config_dict": {"metrics": ["GiniIndex"]}}, "cannot be computed from ranks"),
        ({"config_dict": {"valid_metric": "NDCG"}}, "looks like NDCG@10"),
        ({"config_dict": {"layout": "rows"}}, "takes one of sequence, prefix, interaction"),
        ({"config_dict": {"benchmark_filename": ["train"]}}, "carry no event times"),
        ({"config_dict": {"save_dataset": True}}, "never pickled"),
        ({"config_dict": {"learner": "lion"}}, "'learner' takes one of adam"),
        ({"config_dict": {"seed": -1}}, "'seed' takes a whole number from 0"),
        ({"config_dict": {"learning_rate": -0.1}}, "learning_rate must be above 0"),
        ({"config_dict": {"clip_grad_norm": 5}}, "looks like {max_norm: 5}"),
        ({"config_dict": {"clip_grad_norm": {"norm": 1}}}, "looks like {max_norm: 5}"),
        ({"config_dict": {"clip_grad_norm": {"max_norm": None}}}, "looks like {max_norm: 5}"),
        ({"config_dict": {"field_separator": "::"}}, "takes one character"),
        ({"config_dict": {"user_inter_num_interval": "[16,inf"}}, "takes an interval like [5,inf)"),
        ({"config_dict": {"val_interval": {"timestamp": "(1,2"}}}, "'val_interval.timestamp' takes an interval"),
        ({"config_file_list": ["missing.yaml"]}, "cannot read the config file missing.yaml"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message):
    with pytest.raises(CDSRError) as caught:
        CDSRConfig(**{"model": "AutoCDSR", "dataset": "toy", **arguments})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_evaluated(tmp_path):
    text = "__import__('os').mkdir('owned')"
    config = CDSRConfig("SASRec", "toy", config_dict={"data_path": text})
    assert text in config["data_path"]
    assert parse_value(text) == text
    file = tmp_path / "evil.yaml"
    file.write_text("data_path: !!python/object/apply:os.mkdir [owned]\n")
    with pytest.raises(CDSRError, match=r"evil\.yaml is not valid yaml"):
        CDSRConfig("SASRec", "toy", [str(file)])
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("0.5", 0.5), ("7", 7), ("true", True), ("None", None), ("a=b", "a=b"), ("[1, 2]", [1, 2]),
     ("{LS: valid_only}", {"LS": "valid_only"}), ("1.", 1.0), ("adam", "adam"), ("2024-01", "2024-01"), (",", ","),
     ("[5,inf)", "[5,inf)")],
)  # fmt: skip
def test_values_are_read_as_yaml(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


def test_later_settings_win(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("learning_rate: 0.1\nepochs: 3\n")
    second.write_text("learning_rate: 1e-2\n")
    config = CDSRConfig("SASRec", "toy", [str(first), str(second)], {"epochs": 5})
    assert config["learning_rate"] == 0.01 and config["epochs"] == 5


@pytest.mark.parametrize("model", ["AutoCDSR", "SASRec", "BERT4Rec", "FPMC", "Pop", "BPR"])
def test_a_saved_config_gives_the_same_config(model):
    config = CDSRConfig(model, "ml-100k")
    text = yaml.safe_dump(plain(config), sort_keys=False)
    settings = yaml.safe_load(text)
    again = CDSRConfig(settings.pop("model"), settings.pop("dataset"), config_dict=settings)
    keys = {*config.final_config_dict, *again.final_config_dict} - {"data_path"}
    assert {key: config[key] for key in keys} == {key: again[key] for key in keys}
    assert os.path.abspath(config["data_path"]) == os.path.abspath(again["data_path"])
    assert list(config["domain_groups"]) == list(again["domain_groups"]), "their order decides"


def test_the_environment_and_yaml_stay_untouched(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    CDSRConfig("SASRec", "toy")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert yaml.load("1e-3", Loader=yaml.FullLoader) == "1e-3"


def test_anomaly_detection_stays_as_it_was():
    """RecBole's SINE, imported with every sequential model, switches it on: 1.5 times the time of a step."""
    code = "import torch; from recbole_cdsr.config import resolve_model; resolve_model('SASRec');"
    for before in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", f"{code} print(torch.is_anomaly_enabled())".replace(
                ";", f"; torch.autograd.set_detect_anomaly({before});", 1)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == str(before)


def test_two_configs_share_nothing():
    first, second = CDSRConfig("SASRec", "toy"), CDSRConfig("SASRec", "toy")
    first["eval_args"]["split"]["LS"] = "changed"
    first["topk"].append(99)
    assert second["eval_args"]["split"] == {"LS": "valid_and_test"} and 99 not in second["topk"]
    assert CDSRConfig("SASRec", "toy")["topk"] == [10]


@pytest.mark.parametrize("name", sorted(own_models().values()))
def test_every_key_of_our_models_is_read(name, repo):
    """No dead keys: each key of properties/model/<Model>.yaml stands as a string in the package's source."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in (repo / "recbole_cdsr").rglob("*.py"))
    overall = yaml.safe_load((repo / "properties" / "overall.yaml").read_text(encoding="utf-8"))
    keys = yaml.safe_load((repo / "properties" / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    recboles = {"learning_rate", "train_batch_size"}  # read by RecBole's Trainer and by the loaders
    assert [key for key in keys if f'"{key}"' not in source and key not in recboles | set(overall)] == []


def test_a_part_of_eval_args_keeps_the_rest():
    config = CDSRConfig("AutoCDSR", "toy", config_dict={"eval_args": {"split": {"LS": "valid_only"}}})
    assert config["eval_args"]["order"] == "TO" and config["eval_args"]["split"] == {"LS": "valid_only"}


def test_columns_to_read_follow_the_names_of_the_fields():
    config = CDSRConfig("AutoCDSR", "toy", config_dict={"USER_ID_FIELD": "uid", "DOMAIN_FIELD": "cat"})
    assert config["load_col"] == {"inter": ["uid", "item_id", "timestamp", "cat"], "item": ["item_id", "cat"]}


def test_a_class_derived_from_a_model_starts_from_its_keys():
    from recbole_cdsr.config import resolve_model

    for parent, key in (("AutoCDSR", "objective_weighting"), ("GRU4Rec", "num_layers")):
        mine = type("Mine", (resolve_model(parent),), {})
        assert CDSRConfig(mine, "toy")[key] == CDSRConfig(parent, "toy")[key] is not None


def test_values_of_numpy_and_pathlib_are_taken(tmp_path):
    values = {"seed": np.int64(3), "learning_rate": np.float64(0.1), "topk": (5, 10), "data_path": tmp_path}
    config = CDSRConfig("AutoCDSR", "toy", config_dict=values)
    assert yaml.safe_load(yaml.safe_dump(plain(config)))["topk"] == [5, 10]


def test_more_processes_than_gpus_are_refused_in_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CDSRError, match="2 processes need a GPU each, but there are 1; start fewer"):
        CDSRConfig("AutoCDSR", "toy")
