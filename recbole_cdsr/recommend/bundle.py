"""The bundle: a trained model as one folder of plain data, which loads without the data set and never runs code.

    bundle.json             format and the sha256 of every file below; written last
    config.json             settings, sizes, versions, plain values of the model
    items.json              item and domain names; place in the list = number, place 0 = padding
    model.safetensors       weights, the domain of each item, and how often it stands in the training events
    users.json              names of the known users            } may be left out together:
    histories.safetensors   all their events: items and times   } `export --without_histories`
    README.md               model card with the metrics; free to edit, never read

The checksums tell damage, not who wrote the bundle. What makes a foreign one harmless is that only json and safetensors
are read, and that the model's class is looked up by name among those of this package and of RecBole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from recbole_cdsr.config import CDSRConfig, plain, refuse_special_models
from recbole_cdsr.environment import versions
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.files import remove_left_over, replacing_folder
from recbole_cdsr.recommend.files import (
    MANIFEST,
    read_json,
    read_manifest,
    refusing_what_does_not_fit,
    require_intact,
    write_json,
    write_manifest,
    write_tensors,
)
from recbole_cdsr.recommend.histories import Histories

FOLDER = "bundle"  # inside the folder of its run
SETTINGS, NAMES, MODEL, README = "config.json", "items.json", "model.safetensors", "README.md"
USERS, HISTORIES = "users.json", "histories.safetensors"
WEIGHT, OTHER = "weight.", "other."  # prefixes of the model's tensors in MODEL
OF_THE_MACHINE = ("data_path", "data_cache", "checkpoint_dir", "gpu_id", "use_gpu")


@dataclass
class Catalogue:
    """What a model is built with instead of a data set; it answers the sizes and nothing else.

    Attributes:
        items, domain_names: names by number, "[PAD]" first.
        item_domain: [V]; popularity: [V] number of training events.
        user_num: known users and padding.
        fields: names of the user, item and domain field.
        field2seqlen: most events of a list, by the name of the list.
    """

    items: list[str]
    domain_names: list[str]
    item_domain: Tensor
    popularity: Tensor
    user_num: int
    fields: tuple[str, str, str]
    field2seqlen: dict[str, int]

    @property
    def item_num(self) -> int:
        return len(self.items)

    def num(self, field: str) -> int:
        return dict(zip(self.fields, (self.user_num, self.item_num, len(self.domain_names)), strict=True))[field]

    def check(self) -> None:
        names = [*self.items, *self.domain_names]
        shapes = self.item_domain.shape == self.popularity.shape == (self.item_num,)
        whole = all(values.dtype == torch.int64 for values in (self.item_domain, self.popularity))
        if not (shapes and whole and self.item_num > 1 and all(isinstance(name, str) for name in names)):
            raise ValueError("names and tensors of the items do not fit together")
        if self.item_domain[0] != 0 or not 0 < self.item_domain[1:].min() <= self.item_domain.max() < len(
            self.domain_names
        ):
            raise ValueError("an item has no domain")


@dataclass
class Bundle:
    """What `read` finds; `time_origin` is the raw time of second 0."""

    folder: Path
    config: CDSRConfig
    model: torch.nn.Module
    catalogue: Catalogue
    time_origin: float


def write(folder: Path, config: CDSRConfig, model: torch.nn.Module, train: Any, readme: str, histories: bool) -> None:
    """Writes a bundle, and reads it once to see that it can be read; an older bundle in `folder` is replaced.

    Args:
        model: with its best weights.
        train: the training part of its data (CDSRDataset).
        readme: text of the model card.
        histories: whether the known users and their events go along.

    Raises:
        CDSRError: if the model cannot be kept in a bundle, or the folder cannot be written or holds something else.
    """
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise CDSRError(f"{folder} exists and holds no bundle; choose another folder")
    folder = folder.absolute()
    try:
        remove_left_over(folder)
        with replacing_folder(folder) as fresh:
            _write_files(fresh, config, model, train, readme, histories)
            read(fresh, model=config.model_class)
    except OSError as error:
        raise CDSRError(f"cannot write {folder}: {error.strerror or error}; make room or choose another one") from None


def _write_files(folder: Path, config: CDSRConfig, model: Any, train: Any, readme: str, histories: bool) -> None:
    events, item = train.events, train.events.columns[train.iid_field]
    trained = torch.arange(len(events)) < train.train_stop[events.user]
    tensors = {f"{WEIGHT}{name}": value for name, value in model.state_dict().items()}
    other = model.other_parameter()
    tensors |= {f"{OTHER}{name}": value for name, value in other.items() if isinstance(value, Tensor)}
    tensors |= {"item_domain": train.item_domain, "popularity": item[trained].bincount(minlength=train.item_num)}
    settings = {
        "settings": {key: value for key, value in plain(config).items() if key not in OF_THE_MACHINE},
        "user_num": train.user_num,
        "time_origin": train.time_origin,
        "other_parameter": {name: value for name, value in other.items() if not isinstance(value, Tensor)},
        "versions": versions(),
    }
    tokens = {field: list(map(str, train.field2id_token[field])) for field in (train.uid_field, train.iid_field)}
    write_json(folder / SETTINGS, settings)
    write_json(folder / NAMES, {"items": tokens[train.iid_field], "domains": train.domain_names})
    write_tensors(folder / MODEL, tensors)
    if histories:
        write_json(folder / USERS, tokens[train.uid_field])
        time = events.columns[train.time_field]
        write_tensors(folder / HISTORIES, {"offsets": events.offsets, "items": item.int(), "seconds": time})
    (folder / README).write_text(readme, encoding="utf-8")
    write_manifest(folder, sorted(path.name for path in folder.iterdir() if path.name != README))


def read(folder: Path, device: str = "cpu", model: type | None = None) -> Bundle:
    """Reads and checks everything but the histories, and builds the model in evaluation mode.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        model: class of a model that is neither of this package nor of RecBole.

    Raises:
        CDSRError: if there is no bundle, it is damaged or of a newer format, or its model is not known here.
    """
    files = read_manifest(folder)
    for name in (SETTINGS, NAMES, MODEL):
        require_intact(folder, name, files)
    with refusing_what_does_not_fit(folder):
        stored = read_json(folder / SETTINGS)
        names = read_json(folder / NAMES)
        settings, tensors = dict(stored["settings"]), load_file(folder / MODEL)
        name, dataset = settings.pop("model"), settings.pop("dataset")
        if model is not None and model.__name__ != name:
            raise CDSRError(f"the bundle {folder} holds a {name}, not a {model.__name__}")
        settings |= _machine(device)
        config = CDSRConfig(model or str(name), str(dataset), config_dict=settings)
        if config.model != name:
            raise CDSRError(f"the bundle {folder} names a model {name!r}, which is not known here")
        refuse_special_models(config)
        fields = tuple(config[f"{key}_FIELD"] for key in ("USER_ID", "ITEM_ID", "DOMAIN"))
        values = tensors.pop("item_domain"), tensors.pop("popularity"), int(stored["user_num"])
        widths = {name + config["LIST_SUFFIX"]: config["MAX_ITEM_LIST_LENGTH"] for name in fields[1:]}
        catalogue = Catalogue(names["items"], names["domains"], *values, fields, widths)
        catalogue.check()
        built = _build(config, catalogue, tensors, stored["other_parameter"])
        return Bundle(folder, config, built, catalogue, stored["time_origin"] + 0.0)


def read_histories(bundle: Bundle) -> tuple[list[str], Histories]:
    """Names of the known users, padding first, and the events of each.

    Raises:
        CDSRError: if the bundle came without them, or they are damaged.
    """
    folder, files = bundle.folder, read_manifest(bundle.folder)
    if not {USERS, HISTORIES} <= set(files):
        raise CDSRError(f"the bundle {folder} came without known users; give histories instead")
    for name in (USERS, HISTORIES):
        require_intact(folder, name, files)
    with refusing_what_does_not_fit(folder):
        names, stored = read_json(folder / USERS), load_file(folder / HISTORIES)
        offsets, items, seconds = (stored[name].numpy() for name in ("offsets", "items", "seconds"))
        fits = len(offsets) == len(names) + 1 and offsets[0] == 0 and (np.diff(offsets) >= 0).all()
        fits = fits and offsets[-1] == len(items) == len(seconds)
        if not fits or (len(items) and not 0 < items.min() <= items.max() < bundle.catalogue.item_num):
            raise ValueError("histories that are not of these users and items")
        unknown = np.zeros(len(names), dtype=np.int64)
        return names, Histories(offsets, items.astype(np.int64), seconds + bundle.time_origin, unknown)


def _build(config: CDSRConfig, catalogue: Catalogue, tensors: dict[str, Tensor], plain_values: dict) -> torch.nn.Module:
    """The model with its weights; names, shapes and types are compared before anything is loaded."""
    try:
        model = config.model_class(config, catalogue).to(config["device"])
    except CDSRError:
        raise
    except Exception as error:  # whatever a constructor does with data that a bundle does not hold
        what = f"{type(error).__name__}: {error}"
        raise CDSRError(
            f"{config.model} cannot be built without its data set ({what}), so no bundle can hold it"
        ) from error
    weights = {name[len(WEIGHT) :]: value for name, value in tensors.items() if name.startswith(WEIGHT)}
    other = {name[len(OTHER) :]: value for name, value in tensors.items() if name.startswith(OTHER)} | plain_values
    expected = model.state_dict()
    if _shapes(weights) != _shapes(expected) or set(other) != set(model.other_parameter()):
        raise ValueError(f"its weights are not those of a {config.model} with these settings")
    model.load_state_dict(weights)
    model.load_other_parameter(
        {name: value.to(config["device"]) if isinstance(value, Tensor) else value for name, value in other.items()}
    )
    return model.eval()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple]:
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def _machine(device: str) -> dict[str, Any]:
    kind, _, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise CDSRError(f"device takes cpu, cuda or cuda:N, but got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise CDSRError("device is cuda, but torch finds no GPU; take cpu")
    return {"use_gpu": kind == "cuda", "gpu_id": number or "0"}
