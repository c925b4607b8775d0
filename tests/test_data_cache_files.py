"""Entries of prepared data: never stale, never half, never code, and nobody's harm."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.data import cache
from recbole_cdsr.data.dataset import CDSRDataset
from recbole_cdsr.errors import CDSRError
from tests.cached import COLUMNS, ENTRY, RICH, entries, everything, listen, write_rich
from tests.helpers import make_config


@pytest.fixture
def told(monkeypatch):
    return listen(monkeypatch)


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
