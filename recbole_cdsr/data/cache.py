"""Prepared data, kept for the next start: flat arrays that are mapped into memory instead of read, and one json.

What is kept is the state after reading, filtering and ordering, before label noise, split and restriction. An entry is
a folder `cache/<files>-<settings>` beside the data. `<files>` stands for every byte of the data set's files, the code
of this package that prepares them, and the versions of the libraries. `<settings>` stands for the settings on which the
entry depends: all those that were read while it was made, with their values. Whoever reads the same files with the same
code and the same values of these takes the same way to the same result, so that no list of keys has to be right.

An entry appears whole (one rename). It is used only if the checksum of the json and the sizes and checksums of all
files are right; if not, the data are prepared as if it were not there, and it is replaced. Nothing in it can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_cdsr import compat
from recbole_cdsr.environment import versions
from recbole_cdsr.files import remove_left_over, replacing_folder

compat.apply()

from recbole.data.interaction import Interaction  # noqa: E402
from recbole.utils import FeatureSource, FeatureType  # noqa: E402

if TYPE_CHECKING:
    from recbole_cdsr.data.dataset import CDSRDataset

FOLDER, MANIFEST = "cache", "entry.json"
SUFFIXES = ("inter", "item", "user")
LEAST_BYTES = 1 << 24  # of .inter, from which on `auto` keeps data: what takes more than half a second
KEPT = 3  # entries of a data set; those that were used longest ago go
BLOCK = 1 << 24  # bytes read at once
# Settings that say where the data lie, not what they are.
PLACES = {"data_path", "dataset"}
# What is as it is in json; the rest of a data set's state is arrays.
PLAIN = ("field2seqlen", "field2bucketnum", "feat_name_list", "time_origin", "dropped", "tie_share", "repeated")
TABLES = ("user_feat", "item_feat")
# What reading or writing an entry raises that cannot be read or written.
UNUSABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


class Watched:
    """A config that remembers which of its keys were asked for."""

    def __init__(self, config) -> None:
        self._config = config
        self.read: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in PLACES:
            self.read[key] = self._config[key]
        return self._config[key]


class Cache:
    """The entries for the files of one data set as they are now."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / FOLDER
        self._files = [folder / f"{name}.{suffix}" for suffix in SUFFIXES]
        self._seen = self._stats()
        self.key = self._content()

    def _stats(self) -> list[tuple | None]:
        stats = [path.stat() if path.is_file() else None for path in self._files]
        return [one and (one.st_size, one.st_mtime_ns, one.st_ino) for one in stats]

    def _content(self) -> str:
        digest = hashlib.sha256(json.dumps(versions()).encode())
        code = [Path(compat.__file__), *sorted(Path(__file__).parent.glob("*.py"))]
        for path in [*code, *filter(Path.is_file, self._files)]:
            one = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(BLOCK):
                    one.update(block)
            digest.update(f"{path.suffix if path in self._files else path.name} {one.hexdigest()}\n".encode())
        return digest.hexdigest()[:32]

    def load(self, dataset: CDSRDataset) -> bool:
        """Gives the data set the state of an entry with its settings, if there is one that is whole."""
        for entry in sorted(self.folder.glob(f"{self.key}-*")):
            try:
                manifest = _manifest(entry)
                config = dataset.config
                if manifest["settings"] != _text({key: config[key] for key in json.loads(manifest["settings"])}):
                    continue
                arrays = {place: _array(entry, one) for place, one in manifest["arrays"].items()}
            except UNUSABLE as error:
                note(dataset, f"the prepared data in {entry} are not used ({error})")
                continue
            _restore(dataset, manifest["state"], arrays)
            note(dataset, f"prepared data are taken from {entry}")
            with contextlib.suppress(OSError):  # it is only about which entry goes first
                os.utime(entry)
            return True
        return False

    def keep(self, dataset: CDSRDataset, settings: dict[str, Any]) -> None:
        """Writes an entry, if the data set can be kept, the files are still the same and the folder can be written."""
        if dataset._preloaded_weight or not {*dataset.feat_name_list} <= {"inter_feat", *TABLES}:
            return
        text = _text(settings)
        entry = self.folder / f"{self.key}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        try:
            if self._stats() != self._seen or _is_whole(entry):
                return
            with replacing_folder(entry) as fresh:
                _write(fresh, dataset, text)
            self._evict()
        except UNUSABLE as error:  # no place, or a field of another kind
            note(dataset, f"prepared data are not kept in {entry} for the next start ({error})")

    def _evict(self) -> None:
        """Removes what killed processes left, and all but the newest entries; whoever maps one still can read it."""
        for half in self.folder.glob(".*.tmp"):
            remove_left_over(self.folder / half.name.split(".")[1])
        entries = [path for path in self.folder.iterdir() if (path / MANIFEST).is_file()]
        entries = [path for path in entries if not path.name.startswith(".")]
        for entry in sorted(entries, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(entry, ignore_errors=True)


def note(dataset: CDSRDataset, text: str) -> None:
    """A line for the log, which begins after the data are prepared."""
    dataset.cache_notes.append(text)


def wanted(config) -> bool:
    """Whether data of this size are kept, by the key `data_cache`."""
    path = Path(config["data_path"]) / f"{config['dataset']}.inter"
    size = path.stat().st_size if path.is_file() else 0
    return size > 0 and config["data_cache"] is not False and (config["data_cache"] is True or size >= LEAST_BYTES)


def find(config) -> Cache | None:
    """The cache of the data set of `config`; None where data are not kept, or there are none that can be read."""
    try:
        return Cache(Path(config["data_path"]), config["dataset"]) if wanted(config) else None
    except OSError:
        return None


def _text(settings: dict[str, Any]) -> str:
    """Settings in one form; what json has no form for is told by its type and text."""
    return json.dumps(settings, default=lambda value: f"{type(value).__name__} {value!r}")


def _is_whole(entry: Path) -> bool:
    """Whether another process has written the entry meanwhile."""
    try:
        return all(_sum(entry / one["file"]) == one["sum"] for one in _manifest(entry)["arrays"].values())
    except UNUSABLE:
        return False


def _write(folder: Path, dataset: CDSRDataset, settings: str) -> None:
    arrays = {("offsets",): dataset.events.offsets}
    arrays |= {("events", name): values for name, values in dataset.events.columns.items()}
    for table in filter(dataset.feat_name_list.__contains__, TABLES):
        arrays |= {(table, name): values for name, values in getattr(dataset, table).interaction.items()}
    arrays |= {("names", name): values for name, values in dataset.field2id_token.items()}
    files = {}
    for number, (place, values) in enumerate(arrays.items()):
        path = folder / f"{number}.npy"
        np.save(path, np.asarray(values), allow_pickle=False)
        files[json.dumps(place)] = {"file": path.name, "sum": _sum(path)}
    state = {name: getattr(dataset, name) for name in PLAIN}
    state["field2type"] = {name: kind.value for name, kind in dataset.field2type.items()}
    state["field2source"] = {name: source.value for name, source in dataset.field2source.items()}
    _write_manifest(folder, {"settings": settings, "state": state, "arrays": files})


def _write_manifest(entry: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, default=lambda number: number.item())
    checked = {"sum": zlib.crc32(text.encode()), "entry": text}
    (entry / MANIFEST).write_text(json.dumps(checked), encoding="utf-8")


def _manifest(entry: Path) -> dict[str, Any]:
    checked = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
    if zlib.crc32(checked["entry"].encode()) != checked["sum"]:
        raise ValueError(f"{MANIFEST} is damaged")
    return json.loads(checked["entry"])


def _sum(path: Path) -> list[int]:
    """Bytes and checksum; read in blocks, since mapped pages count as memory of the process."""
    size = value = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            size, value = size + len(block), zlib.crc32(block, value)
    return [size, value]


def _array(entry: Path, one: dict[str, Any]) -> np.ndarray:
    path = entry / one["file"]
    if _sum(path) != one["sum"]:
        raise ValueError(f"{path.name} is damaged")
    # Copy on write: who changes a value changes a page of his own, never the file.
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))


def _restore(dataset: CDSRDataset, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    tables: dict[str, dict] = {"names": {}, "events": {}, **{name: {} for name in TABLES}}
    for text, values in arrays.items():
        place = json.loads(text)
        if place[0] in tables:
            tables[place[0]][place[1]] = values if place[0] == "names" else torch.from_numpy(values)
    dataset._get_preset()
    dataset._get_field_from_config()
    for name in PLAIN:
        setattr(dataset, name, state[name])
    dataset.field2type = {name: FeatureType(kind) for name, kind in state["field2type"].items()}
    dataset.field2source = {name: FeatureSource(source) for name, source in state["field2source"].items()}
    dataset._init_alias()
    dataset.field2id_token.update(tables["names"])
    for name in TABLES:
        setattr(dataset, name, Interaction(tables[name]) if tables[name] else None)
    dataset.hold(torch.from_numpy(arrays[json.dumps(["offsets"])]), tables["events"])
