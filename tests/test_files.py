"""Files are replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_cdsr import files
from recbole_cdsr.files import remove_halves, replacing


def test_the_new_content_takes_the_place_of_the_old():
    Path("a").write_text("old")
    with replacing("a") as file:
        file.write(b"new")
        assert Path("a").read_text() == "old"
    assert Path("a").read_text() == "new"
    assert [path.name for path in Path().iterdir()] == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_content_and_nothing_else(error):
    Path("a").write_text("old")
    with pytest.raises(error), replacing("a") as file:
        file.write(b"half")
        raise error
    assert Path("a").read_text() == "old"
    assert [path.name for path in Path().iterdir()] == ["a"]


def test_a_full_disk_leaves_nothing(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"), replacing("a") as file:
        file.write(b"new")
    assert not list(Path().iterdir())


def test_halves_are_removed_files_and_folders_alike(tmp_path):
    for name in (".a.1.tmp", "keep.tmp", "below/.b.2.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".c.3.tmp/inner").mkdir(parents=True)
    (tmp_path / ".c.3.tmp/inner/.d.4.tmp").touch()
    remove_halves(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["below", "keep.tmp"]
