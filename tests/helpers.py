"""What several test files need: atomic files, configs and data sets made in the test's own folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.data.dataset import CDSRDataset


def write_dataset(name: str, inter: list[tuple], item: list[tuple] | None, inter_header=None, item_header=None) -> Path:
    """Writes dataset/<name>/<name>.inter and .item below the working directory."""
    folder = Path("dataset") / name
    folder.mkdir(parents=True, exist_ok=True)
    inter_header = inter_header or ("user_id:token", "item_id:token", "timestamp:float")
    tables = [("inter", inter_header, inter)]
    if item is not None:
        tables.append(("item", item_header or ("item_id:token", "domain_id:token"), item))
    for suffix, header, rows in tables:
        lines = ["\t".join(header), *("\t".join(map(str, row)) for row in rows)]
        (folder / f"{name}.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def random_events(n_users=20, n_items=30, n_domains=3, most=25, seed=0, times=10_000) -> tuple[list, list]:
    """Rows of .inter in random order with many equal times, and rows of .item."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n_users), rng.integers(1, most, n_users))
    rng.shuffle(users)
    items = rng.integers(0, n_items, len(users))
    stamps = 1_600_000_000 + rng.integers(0, times, len(users))
    inter = [(f"u{u}", f"i{i}", t) for u, i, t in zip(users, items, stamps, strict=True)]
    return inter, [(f"i{i}", f"d{i % n_domains}") for i in range(n_items)]


def make_config(name: str, model: str = "AutoCDSR", **keys) -> CDSRConfig:
    keys = {"MAX_ITEM_LIST_LENGTH": 8, "show_progress": False, "train_batch_size": 16, "eval_batch_size": 7, **keys}
    return CDSRConfig(model, name, config_dict=keys)


def make_dataset(name: str, model: str = "AutoCDSR", **keys) -> tuple[CDSRConfig, CDSRDataset]:
    config = make_config(name, model, **keys)
    return config, CDSRDataset(config)


def plain_histories(inter: list[tuple]) -> dict[str, list[tuple]]:
    """Ten lines of plain Python: each user's (item, time) in exact time order, ties as they stand in the file."""
    histories: dict[str, list[tuple]] = {}
    for user, item, time in inter:
        histories.setdefault(user, []).append((item, time))
    for events in histories.values():
        events.sort(key=lambda event: event[1])
    return histories
