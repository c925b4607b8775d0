"""A bundle is complete, plain and refused when anything about it is not as it was written."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recbole_cdsr import Recommender, quick_start
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.recommend import bundle, files

READ = [files.MANIFEST, bundle.SETTINGS, bundle.NAMES, bundle.MODEL, bundle.USERS, bundle.HISTORIES]
KEYS = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "epochs": 1, "show_progress": False}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    quick_start.run("AutoCDSR", "toy", config_dict={**KEYS, "data_path": str(folder / "data")}, run_dir=folder / "run")
    return folder / "run"


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished / "bundle", tmp_path / "copy"))


def ask(folder: Path):
    """Everything that a bundle is read for."""
    recommender = Recommender.load(folder)
    return recommender.recommend([["i1", "i5"]]) + recommender.recommend_users(["u3"])


def change(folder: Path, name: str, new: bytes) -> None:
    """Another content with the right checksum: what somebody writes on purpose."""
    (folder / name).write_bytes(new)
    manifest = json.loads((folder / files.MANIFEST).read_text())
    manifest["sha256"][name] = hashlib.sha256(new).hexdigest()
    (folder / files.MANIFEST).write_text(json.dumps(manifest))


def change_json(folder: Path, name: str, edit) -> None:
    content = json.loads((folder / name).read_text())
    edit(content)
    change(folder, name, json.dumps(content).encode())


def change_tensors(folder: Path, name: str, edit) -> None:
    tensors = load_file(folder / name)
    edit(tensors)
    save_file(tensors, folder / name)
    change(folder, name, (folder / name).read_bytes())


def test_a_run_writes_all_of_it_and_names_no_place_of_the_machine(finished):
    folder = finished / "bundle"
    assert {path.name for path in folder.iterdir()} == {*READ, bundle.README}
    for path in folder.iterdir():
        assert str(finished.parent).encode() not in path.read_bytes(), path.name
    page = (folder / bundle.README).read_text()
    macro = json.loads((finished / "result.json").read_text())["candidates"]["domain"]["macro"]
    assert f"| **macro** | 60 | {macro['ndcg@10']:.4f} |" in page


def test_it_loads_from_the_run_from_itself_and_from_a_copy(finished, copy):
    assert ask(finished) == ask(finished / "bundle") == ask(copy)


def test_export_writes_the_same_again_and_replaces_bundles_only(finished, copy):
    for out in (None, copy, Path("new/bundle")):
        folder = quick_start.export(finished, out)
        assert (folder / bundle.MODEL).read_bytes() == (finished / "bundle" / bundle.MODEL).read_bytes()
    assert quick_start.export(finished, copy / ".") == copy
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    for taken in ("mine", "mine/letter.txt", "."):
        with pytest.raises(CDSRError, match="exists and holds no bundle"):
            quick_start.export(finished, taken)
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]


def test_users_can_be_left_out(finished):
    quick_start.export(finished, "public", histories=False)
    assert not {bundle.USERS, bundle.HISTORIES} & {path.name for path in Path("public").iterdir()}
    assert b"u39" not in b"".join(path.read_bytes() for path in Path("public").iterdir())
    recommender = Recommender.load("public")
    assert recommender.recommend([["i1", "i5"]]) == Recommender.load(finished).recommend([["i1", "i5"]])
    with pytest.raises(CDSRError, match="came without known users"):
        recommender.recommend_users(["u3"])


@pytest.mark.parametrize("name", READ)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(CDSRError, match=name):
        ask(copy)


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "first byte", "middle byte", "last byte"])
def test_a_damaged_file_is_named(copy, name, damage):
    content = bytearray((copy / name).read_bytes())
    place = {"first byte": 0, "middle byte": len(content) // 2, "last byte": len(content) - 2}.get(damage)
    if place is not None:
        content[place] ^= 1
    new = {"cut": content[: len(content) // 2], "longer": content + b"x", "empty": b""}.get(damage, content)
    (copy / name).write_bytes(new)
    with pytest.raises(CDSRError, match="damaged|recbole-cdsr export|is not of|update"):
        ask(copy)


def test_the_page_may_be_edited_and_strangers_in_the_folder_are_not_read(copy):
    before = ask(copy)
    (copy / bundle.README).write_text("ours")
    for name in ("model.py", "__init__.py", "pytorch_model.bin", "model.pkl"):
        (copy / name).write_text("raise SystemExit")
    assert ask(copy) == before


def test_a_newer_format_is_refused(copy):
    manifest = json.loads((copy / files.MANIFEST).read_text())
    (copy / files.MANIFEST).write_text(json.dumps({**manifest, "format": files.FORMAT + 1}))
    with pytest.raises(CDSRError, match=f"has format {files.FORMAT + 1}.*update recbole-cdsr"):
        Recommender.load(copy)


@pytest.mark.parametrize(
    "content", ["{}", "[]", "1", '{"library": "other", "format": 1, "sha256": {}}', '{"format": 1, "sha256": []}']
)
def test_a_folder_of_another_program_is_refused(copy, content):
    (copy / files.MANIFEST).write_text(content)
    with pytest.raises(CDSRError, match="another program|is not of a bundle"):
        Recommender.load(copy)


def test_folders_without_a_bundle_are_told_apart(finished):
    with pytest.raises(CDSRError, match="holds no bundle"):
        Recommender.load("nowhere")
    shutil.copytree(finished, "run", ignore=shutil.ignore_patterns("bundle"))
    with pytest.raises(CDSRError, match="no bundle yet.*recbole-cdsr export --run run"):
        Recommender.load("run")


@pytest.mark.parametrize(
    "model",
    ["Evil", "os.system", "../../evil", "recbole.model.evil.Evil", "evil:Evil", "", None, 3, ["AutoCDSR"], "S3Rec"],
)
def test_a_foreign_model_is_refused_and_nothing_of_its_folder_is_imported(copy, model, monkeypatch):
    monkeypatch.syspath_prepend(str(copy))
    monkeypatch.chdir(copy)
    for name in ("evil.py", "Evil.py"):
        (copy / name).write_text("raise SystemExit('code of the bundle ran')")
    change_json(copy, bundle.SETTINGS, lambda content: content["settings"].update(model=model))
    with pytest.raises(CDSRError):
        Recommender.load(copy)


def test_another_model_does_not_take_the_weights(copy):
    change_json(copy, bundle.SETTINGS, lambda content: content["settings"].update(model="AutoCDSRPlus"))
    with pytest.raises(CDSRError):
        Recommender.load(copy)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        (bundle.SETTINGS, lambda content: content.pop("settings")),
        (bundle.SETTINGS, lambda content: content.pop("time_origin")),
        (bundle.SETTINGS, lambda content: content.update(time_origin="1970")),
        (bundle.SETTINGS, lambda content: content.update(user_num="many")),
        (bundle.SETTINGS, lambda content: content.update(other_parameter={"forward": "x"})),
        (bundle.SETTINGS, lambda content: content["settings"].update(hidden_size=32)),
        (bundle.SETTINGS, lambda content: content["settings"].update(hidden_size="__import__('os')")),
        (bundle.SETTINGS, lambda content: content["settings"].update(unheard_of=1)),
        (bundle.NAMES, lambda content: content["items"].pop()),
        (bundle.NAMES, lambda content: content["items"].append("more")),
        (bundle.NAMES, lambda content: content["items"].__setitem__(3, 3)),
        (bundle.NAMES, lambda content: content["domains"].pop()),
        (bundle.NAMES, lambda content: content.update(items="text")),
        (bundle.USERS, lambda content: content.pop()),
    ],
)
def test_json_that_does_not_fit_is_refused(copy, name, edit):
    change_json(copy, name, edit)
    with pytest.raises(CDSRError):
        ask(copy)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        (bundle.MODEL, lambda tensors: tensors.pop("item_domain")),
        (bundle.MODEL, lambda tensors: tensors.pop("weight.item_embedding.weight")),
        (bundle.MODEL, lambda tensors: tensors.update({"weight.more": torch.zeros(1)})),
        (bundle.MODEL, lambda tensors: tensors.update({"other.forward": torch.zeros(1)})),
        (bundle.MODEL, lambda tensors: tensors.update({"weight.item_embedding.weight": torch.zeros(41, 8)})),
        (bundle.MODEL, lambda tensors: tensors.update({"weight.input_norm.bias": torch.zeros(16).double()})),
        (bundle.MODEL, lambda tensors: tensors["item_domain"].fill_(7)),
        (bundle.MODEL, lambda tensors: tensors.update(popularity=torch.ones(3).long())),
        (bundle.HISTORIES, lambda tensors: tensors["items"].fill_(41)),
        (bundle.HISTORIES, lambda tensors: tensors["offsets"].neg_()),
        (bundle.HISTORIES, lambda tensors: tensors.pop("seconds")),
        (bundle.HISTORIES, lambda tensors: tensors.update(offsets=torch.zeros(0).long())),
    ],
)
def test_tensors_that_do_not_fit_are_refused(copy, name, edit):
    change_tensors(copy, name, edit)
    with pytest.raises(CDSRError):
        ask(copy)


def test_a_pickle_in_the_place_of_the_weights_is_not_opened(copy):
    class Bomb:
        def __reduce__(self):
            return Path("exploded").touch, ()

    torch.save({"weight": Bomb()}, copy / bundle.MODEL)
    change(copy, bundle.MODEL, (copy / bundle.MODEL).read_bytes())
    with pytest.raises(CDSRError, match="does not fit together"):
        Recommender.load(copy)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99", ""])
def test_devices_that_are_not_there_are_told(finished, device):
    with pytest.raises(CDSRError, match="device|GPU"):
        Recommender.load(finished, device)


def test_a_run_whose_model_fits_in_no_bundle_goes_well_without():
    done = subprocess.run(
        [sys.executable, "-m", "recbole_cdsr", "run", "--model", "LightGCN", "--dataset", "toy", "--epochs", "1"]
        + ["--run_dir", "graph"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "no bundle was written: LightGCN cannot be built without its data set" in done.stderr
    assert Path("graph/result.json").is_file() and not Path("graph/bundle").exists()
