"""Prepared data that are kept: the same as prepared anew, whatever key is changed."""

from __future__ import annotations

import pytest

from tests.cached import COLUMNS, ENTRY, RICH, entries, everything, listen, write_rich
from tests.helpers import random_events, write_dataset


@pytest.fixture
def told(monkeypatch):
    return listen(monkeypatch)


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
