"""Prepared data that are kept: the same as prepared anew, never stale, never half, and nobody's harm."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.data import cache
from recbole_cdsr.data.dataset import CDSRDataset
from recbole_cdsr.data.loaders import make_loaders
from recbole_cdsr.errors import CDSRError
from tests.helpers import make_config, random_events, write_dataset

ENTRY = "prepared data are taken from"


class Told:
    """What data sets of this process say on kept data, all in one text."""

    text = ""


@pytest.fixture
def told(monkeypatch):
    real, all_told = cache.note, Told()

    def note(dataset, text):
        real(dataset, text)
        all_told.text += f"{text}\n"

    monkeypatch.setattr(cache, "note", note)
    return all_told


def write_rich(name: str = "x", separator: str = "\t") -> Path:
    """A data set with all kinds of columns, and several that can be taken for users, items, times and domains."""
    rng = np.random.default_rng(3)
    inter, item = random_events(n_users=25, n_items=30, most=20, times=400)
    header = ("user_id:token", "item_id:token", "timestamp:float", "other_user:token", "other_item:token")
    header += ("when:float", "rating:float", "tags:token_seq", "steps:float_seq")
    rows = [
        (*row, f"v{rng.integers(9)}", f"i{rng.integers(30)}", rng.integers(1, 99), rng.integers(1, 6), "a b|c", "1 2 3")
        for row in inter
    ]
    items = [(*row, f"e{n % 2}", f"i{(n + 1) % 30}", n * 0.5) for n, row in enumerate(item)]
    folder = write_dataset(
        name,
        rows,
        items,
        header,
        ("item_id:token", "domain_id:token", "shelf:token", "other_item:token", "price:float"),
    )
    users = "\n".join(f"u{n}\t{20 + n}" for n in range(30))
    (folder / f"{name}.user").write_text(f"user_id:token\tage:float\n{users}\n", encoding="utf-8")
    for path in folder.iterdir():
        path.write_text(path.read_text().replace("\t", separator))
    return folder


COLUMNS = {
    "inter": ["user_id", "item_id", "timestamp", "rating", "tags"],
    "item": ["item_id", "domain_id", "price"],
}
RICH = {**COLUMNS, "user": ["user_id", "age"]}


def plain(value):
    """Tensors, arrays, tables and enums as values that `==` compares."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return str(value.dtype), value.tolist()
    if hasattr(value, "interaction"):
        return {key: plain(value[key]) for key in value}
    if hasattr(value, "offsets"):
        return plain(vars(value))
    return value


def state(dataset: CDSRDataset) -> dict:
    """Every attribute of a data set, with the tables that are made when asked for."""
    for field in dataset.field2id_token:
        assert dataset.field2token_id[field] is not None
    return {
        name: plain(value) for name, value in vars(dataset).items() if name not in ("config", "logger", "cache_notes")
    }


def everything(keys: dict, data_cache: bool, model: str = "AutoCDSR") -> dict:
    """What training and evaluation see, in numbers; or the error."""
    try:
        config = make_config("x", model, data_cache=data_cache, **keys)
        dataset = CDSRDataset(config)
        made = {"loaded": state(dataset)}
        loaders = make_loaders(config, dataset)
    except CDSRError as error:
        return {"error": str(error)}
    made["parts"] = [state(loader.dataset) for loader in loaders]
    made["batches"] = [[plain(batch) for batch in loader] for loader in loaders[1:]]
    if config["layout"] == "sequence":
        made["windows"] = [plain(batch) for batch in loaders[0]]
    made["digest"] = loaders[0].dataset.digest()
    made["names"] = [
        dataset.field2token_id[field] for field in ("user_id", "item_id") if field in dataset.field2id_token
    ]
    return made


def entries(name: str = "x") -> list[Path]:
    return sorted(Path("dataset", name, "cache").glob("[!.]*"))


@pytest.mark.parametrize(
    ("model", "layout"), [("AutoCDSR", "sequence"), ("SASRec", "prefix"), ("BPR", "interaction")], ids=lambda word: word
)
@pytest.mark.parametrize(
    "load_col", [COLUMNS, RICH, {"inter": "*", "item": COLUMNS["item"]}], ids=["columns", "users", "all"]
)
def test_what_is_loaded_is_what_was_prepared(model, layout, load_col, told):
    write_rich()
    keys = {"load_col": load_col, "layout": layout}
    fresh = everything(keys, data_cache=False, model=model)
    assert "error" not in fresh and not entries()
    first = everything(keys, data_cache=True, model=model)
    assert len(entries()) == 1 and ENTRY not in told.text
    second = everything(keys, data_cache=True, model=model)
    assert ENTRY in told.text
    assert first == fresh and second == fresh


CHANGES = [
    {"USER_ID_FIELD": "other_user", "load_col": {"inter": "*", "item": COLUMNS["item"]}},
    {"TIME_FIELD": "when", "load_col": {"inter": "*", "item": COLUMNS["item"]}},
    {"DOMAIN_FIELD": "shelf", "load_col": {**COLUMNS, "item": ["item_id", "shelf"]}},
    {
        "ITEM_ID_FIELD": "other_item",
        "load_col": {"inter": ["user_id", "other_item", "timestamp"], "item": ["other_item", "domain_id"]},
    },
    {"load_col": RICH},
    {"load_col": {**COLUMNS, "inter": COLUMNS["inter"][:3]}},
    {"load_col": None, "unload_col": {"inter": ["rating", "other_item"], "item": ["other_item"]}},
    {"unused_col": {"inter": ["rating"]}},
    {"seq_separator": "|"},
    {"seq_len": {"tags": 1}},
    {"encoding": "utf-16"},
    {"field_separator": ","},
    {"rm_dup_inter": "first"},
    {"rm_dup_inter": "last"},
    {"val_interval": {"rating": "[2,5]"}},
    {"val_interval": {"rating": "[2,4]"}},
    {"user_inter_num_interval": "[9,inf)"},
    {"item_inter_num_interval": "[4,inf)"},
    {"threshold": {"rating": 3}, "LABEL_FIELD": "liked"},
    {"normalize_field": ["rating"]},
    {"normalize_all": True},
    {"numerical_features": ["rating"]},
    {"discretization": {"rating": {"method": "ED", "bucket": 2}}, "numerical_features": ["rating"]},
    {"alias_of_item_id": ["tags"]},
    {"LIST_SUFFIX": "_history"},
    {"ITEM_LIST_LENGTH_FIELD": "n_items"},
    {"MAX_ITEM_LIST_LENGTH": 5},
    {"label_noise": 0.4},
    {"label_noise": 0.4, "seed": 7},
    {"label_hidden": 0.4},
    {"seed": 7},
    {"train_domains": ["d1"]},
    {"layout": "prefix"},
    {"layout": "interaction"},
    {"eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}}},
    {"eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "none"}},
    {"eval_args": {"split": {"LS": "test_only"}}},
    {"preload_weight": {"shelf": "price"}, "load_col": {**COLUMNS, "item": ["item_id", "domain_id", "shelf", "price"]}},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change))
def test_a_changed_key_never_gives_the_data_of_another(change, told):
    write_rich()
    base = everything({"load_col": COLUMNS}, data_cache=True)
    wanted = everything({"load_col": COLUMNS, **change}, data_cache=False)
    assert wanted != base, "a change that changes nothing shows nothing"
    assert ("error" in wanted) == (change.keys() <= {"encoding", "field_separator"})
    for _ in range(2):  # prepared and kept, then taken
        assert everything({"load_col": COLUMNS, **change}, data_cache=True) == wanted
        assert everything({"load_col": COLUMNS}, data_cache=True) == base


def test_items_in_two_domains():
    header = ("user_id:token", "item_id:token", "timestamp:float", "domain_id:token")
    inter, _ = random_events()
    write_dataset("x", [(*row, f"d{row[2] % 2}") for row in inter], None, header)
    for _ in range(2):
        assert "is in domain" in everything({}, data_cache=True)["error"]
        split = everything({"split_items_by_domain": True}, data_cache=True)
        assert split == everything({"split_items_by_domain": True}, data_cache=False)
    assert len(entries()) == 1


@pytest.mark.parametrize("suffix", ["inter", "item", "user"])
def test_one_other_byte_is_other_data(suffix):
    folder = write_rich()
    path = folder / f"x.{suffix}"
    everything({"load_col": RICH}, data_cache=True)
    before = path.stat()
    text = path.read_text()
    place = text.rindex("1")
    path.write_text(text[:place] + "2" + text[place + 1 :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert everything({"load_col": RICH}, data_cache=True) == everything({"load_col": RICH}, data_cache=False)
    assert len(entries()) == 2


def test_moved_data_are_the_same_data(told):
    folder = write_rich()
    everything({}, data_cache=True)
    folder.parent.rename("elsewhere")
    CDSRDataset(make_config("x", data_cache=True, data_path="elsewhere"))
    assert f"{ENTRY} elsewhere" in told.text


@pytest.mark.parametrize("other", ["versions", "code"])
def test_another_version_prepares_anew(other, told, monkeypatch, tmp_path):
    write_rich()
    everything({}, data_cache=True)
    if other == "versions":
        monkeypatch.setattr(cache, "versions", lambda: {"recbole": "1.2.9"})
    else:
        (tmp_path / "code").mkdir()
        monkeypatch.setattr(cache, "__file__", str(tmp_path / "code" / "cache.py"))
        Path(cache.__file__).write_text("# changed")
    everything({}, data_cache=True)
    assert ENTRY not in told.text and len(entries()) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    other = path.with_name("1.npy" if path.name != "1.npy" else "2.npy")
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [cut, empty, flip, swap, Path.unlink], ids=lambda call: call.__name__)
@pytest.mark.parametrize("file", ["entry.json", "0.npy", "2.npy"])
def test_a_damaged_entry_is_not_used_but_replaced(damage, file, told):
    write_rich()
    wanted = everything({}, data_cache=True)
    (entry,) = entries()
    damage(entry / file)
    assert everything({}, data_cache=True) == wanted
    assert "are not used" in told.text and ENTRY not in told.text
    assert everything({}, data_cache=True) == wanted
    assert ENTRY in told.text and entries() == [entry]


def test_an_entry_runs_no_code(told):
    write_rich()
    wanted = everything({}, data_cache=True)
    (entry,) = entries()

    class Trap:
        def __reduce__(self):
            return Path.touch, (Path("trapped"),)

    np.save(entry / "1.npy", np.array([Trap()], dtype=object))
    manifest = cache._manifest(entry)
    for one in manifest["arrays"].values():
        one["sum"] = cache._sum(entry / one["file"])
    cache._write_manifest(entry, manifest)
    assert everything({}, data_cache=True) == wanted
    assert "are not used" in told.text and not Path("trapped").exists()


def test_what_a_killed_process_left_is_not_used_and_goes():
    write_rich()
    everything({}, data_cache=True)
    (entry,) = entries()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    half = entry.rename(entry.with_name(f".{entry.name}.new.{dead.pid}.tmp"))
    everything({}, data_cache=True)
    assert entries() == [entry] and not half.exists()


def test_a_place_that_cannot_be_written_is_no_reason_to_stop(told):
    folder = write_rich()
    (folder / "cache").write_text("in the way")
    assert everything({}, data_cache=True) == everything({}, data_cache=False)
    assert told.text.count("prepared data are not kept") == 1


def test_files_that_change_while_they_are_read_are_not_kept(monkeypatch):
    folder = write_rich()
    real = CDSRDataset._data_processing

    def slow(dataset):
        real(dataset)
        with open(folder / "x.inter", "a") as file:
            file.write("\n")

    monkeypatch.setattr(CDSRDataset, "_data_processing", slow)
    everything({}, data_cache=True)
    assert not entries()


def test_values_that_somebody_changes_stay_in_his_process(told):
    write_rich()
    wanted = everything({}, data_cache=True)
    dataset = CDSRDataset(make_config("x", data_cache=True))
    assert ENTRY in told.text
    dataset.events.columns["item_id"].zero_()
    dataset.item_feat["domain_id"].zero_()
    assert everything({}, data_cache=True) == wanted


def test_the_oldest_entries_go():
    write_rich()
    for number in range(cache.KEPT + 2):
        everything({"user_inter_num_interval": f"[{number + 3},inf)"}, data_cache=True)
        for path in entries():  # as if all were written a minute ago
            os.utime(path, (path.stat().st_mtime - 60,) * 2)
    kept = [cache._manifest(entry)["settings"] for entry in entries()]
    assert len(kept) == cache.KEPT
    assert {number for number in range(3, 9) if any(f"[{number},inf)" in text for text in kept)} == {5, 6, 7}


def test_only_large_data_are_kept_unasked(monkeypatch):
    write_rich()
    CDSRDataset(make_config("x"))
    assert not entries()
    monkeypatch.setattr(cache, "LEAST_BYTES", 1000)
    CDSRDataset(make_config("x"))
    assert len(entries()) == 1


def test_a_class_of_somebody_elses_is_prepared_by_its_own_code():
    class Other(CDSRDataset):
        def _fill_nan(self):
            super()._fill_nan()
            self.item_feat["price"] = pd.Series(self.item_feat["price"] + 1)

    write_rich()
    config = make_config("x", data_cache=True, load_col=COLUMNS)
    CDSRDataset(config)
    assert Other(config).item_feat["price"][1] == CDSRDataset(config).item_feat["price"][1] + 1


def test_the_key_takes_three_values():
    write_rich()
    with pytest.raises(CDSRError, match="'data_cache' takes auto, True or False, but got 'always'"):
        make_config("x", data_cache="always")


def _start(barrier, answers) -> None:
    barrier.wait()
    answers.put(everything({"load_col": RICH}, data_cache=True))


def test_processes_that_start_together_do_not_harm_each_other():
    write_rich()
    wanted = everything({"load_col": RICH}, data_cache=False)
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_start, args=(barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert all(one == wanted for one in found)
    assert len(list(Path("dataset/x/cache").iterdir())) == 1


def test_a_run_ends_in_the_same_result():
    keys = {"epochs": 1, "show_progress": False, "data_path": "dataset"}
    results = [quick_start.run("AutoCDSR", "toy", config_dict={**keys, "data_cache": False}, run_dir="one")]
    CDSRDataset(CDSRConfig("AutoCDSR", "toy", config_dict={**keys, "data_cache": True}))
    results.append(quick_start.run("AutoCDSR", "toy", config_dict={**keys, "data_cache": True}, run_dir="two"))
    assert ENTRY not in Path("one/run.log").read_text() and ENTRY in Path("two/run.log").read_text()
    one, two = (np.load(f"{run}/ranks.npz") for run in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one.files)
    assert results[0]["valid_score"] == results[1]["valid_score"]
