"""What tests of kept data need: a data set with everything in it, and all that training sees of it, to be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from recbole_cdsr.data import cache
from recbole_cdsr.data.dataset import CDSRDataset
from recbole_cdsr.data.loaders import make_loaders
from recbole_cdsr.errors import CDSRError
from tests.helpers import make_config, random_events, write_dataset

ENTRY = "prepared data are taken from"


class Told:
    """What data sets of this process say on kept data, all in one text."""

    text = ""


def listen(monkeypatch) -> Told:
    """From now on, and for one test."""
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
