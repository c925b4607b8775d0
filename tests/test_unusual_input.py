"""Atomic files that are unusual but not wrong: read as they stand; what is dropped or repeated is counted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from recbole_cdsr.errors import CDSRError
from tests.test_bad_input import INTER, ITEM, WITH_DOMAIN, line, load, write

GOOD = {"u1": ["a", "c", "b"], "u2": ["c", "a", "d"]}
SENSIBLE = {
    "as it should be": (INTER, ITEM, GOOD),
    "empty lines": (INTER.replace("\n", "\n\n", 3) + "\n\n", ITEM + "\n", GOOD),
    "CRLF": (INTER.replace("\n", "\r\n"), ITEM.replace("\n", "\r\n"), GOOD),
    "CR": (INTER.replace("\n", "\r"), ITEM.replace("\n", "\r"), GOOD),
    "byte order marks": ("\ufeff" + INTER, "\ufeff" + ITEM, GOOD),
    "quotes belong to a name": (INTER.replace("\ta\t", '\t"a"\t'), ITEM.replace("\na", '\n"a"'), {
        "u1": ['"a"', "c", "b"], "u2": ["c", '"a"', "d"]}),
    "numbers, nothing and a slash as names": (
        INTER.replace("\ta\t", "\t01\t").replace("\tb", "\t1").replace("\tc", "\tnan").replace("\td", "\tN/A"),
        ITEM.replace("\na", "\n01").replace("\nb", "\n1").replace("\nc", "\nnan").replace("\nd", "\nN/A"),
        {"u1": ["01", "nan", "1"], "u2": ["nan", "01", "N/A"]}),
    "the name of padding": (
        INTER.replace("\ta\t", "\t[PAD]\t").replace("u1", "[PAD]"),
        ITEM.replace("\na", "\n[PAD]"),
        {"[PAD]": ["[PAD]", "c", "b"], "u2": ["c", "[PAD]", "d"]},
    ),
    "other scripts, spaces inside": (
        INTER.replace("\ta\t", "\tКнига 1\t"), ITEM.replace("\na", "\nКнига 1"),
        {"u1": ["Книга 1", "c", "b"], "u2": ["c", "Книга 1", "d"]}),
    "milliseconds": (re.sub(r"(\d\d)\n", r"17000000000\1\n", INTER), ITEM, GOOD),
    "nanoseconds": (re.sub(r"(\d\d)\n", r"17000000000000000\1\n", INTER), ITEM, GOOD),
    "broken and scientific times": (INTER.replace("20\n", "2.05e1\n").replace("25\n", "+25.5\n"), ITEM, GOOD),
    "spaces around times": (INTER.replace("20\n", " 20 \n"), ITEM, GOOD),
    "columns in another order, and more of them": (
        "timestamp:float\tx:token\titem_id:token\tuser_id:token\n"
        + "".join(f"{t}\t\t{i}\t{u}\n" for u, i, t in (one.split("\t") for one in INTER.splitlines()[1:])), ITEM, GOOD),
    "items that nobody saw": (INTER, ITEM + "e\tx\n", GOOD),
    "users with fewer than three events": (INTER + "u3\ta\t1\nu4\tb\t2\nu4\tb\t3\n", ITEM, GOOD),
    "an event twice": (INTER + "u2\td\t35\n", ITEM, {**GOOD, "u2": ["c", "a", "d", "d"]}),
}  # fmt: skip


def histories(dataset) -> dict[str, list[str]]:
    events = dataset.events
    users, items = (dataset.field2id_token[name] for name in ("user_id", "item_id"))
    parts = np.split(items[events.columns["item_id"].numpy()], events.offsets[1:-1].numpy())
    return {str(user): part.tolist() for user, part in zip(users[1:], parts[1:], strict=True)}


@pytest.mark.parametrize("case", SENSIBLE.values(), ids=SENSIBLE.keys())
def test_unusual_input_is_read_as_it_stands(case):
    inter, item, expected = case
    write(inter, item)
    assert histories(load()) == expected


def test_what_is_dropped_or_repeated_is_counted():
    write(INTER + "u3\ta\t1\nu4\tb\t2\nu4\tb\t3\nu2\td\t35\nu2\ta\t35\nu2\td\t35\n", ITEM)
    dataset = load()
    assert dataset.dropped == {"users": 2, "events": 3}
    assert dataset.repeated == 2, "the third of three equal events counts too, whatever stands between them"
    assert load(user_inter_num_interval="[2,inf)").dropped == {"users": 1, "events": 1}


def test_another_encoding_is_read_when_asked():
    write(INTER.replace("\ta\t", "\té\t").encode("latin-1"), ITEM.replace("\na", "\né").encode("latin-1"))
    assert histories(load(encoding="latin-1"))["u1"][0] == "é"
    with pytest.raises(CDSRError, match="the key 'encoding' takes .* but got 'utf-16'; save"):
        load(encoding="utf-16")


def test_an_item_in_two_domains_becomes_two_when_asked():
    inter = line(6, "u2\ta\t25\ty", WITH_DOMAIN)
    for item in (None, "item_id:token\tname:token\na\tA\nb\tB\nc\tC\nd\tD\n"):
        write(inter, item)
        dataset = load(split_items_by_domain=True, load_col=None)
        assert histories(dataset) == {"u1": ["a@x", "c", "b"], "u2": ["c", "a@y", "d"]}
        number = dataset.field2token_id["item_id"]
        named = {name: dataset.domain_names[dataset.item_domain[number[name]]] for name in ("a@x", "a@y", "b", "c")}
        assert named == {"a@x": "x", "a@y": "y", "b": "x", "c": "y"} and "a" not in number
        Path("dataset/bad/bad.item").unlink(missing_ok=True)
    write(inter.replace("\tc\t", "\ta@y\t"), None)
    with pytest.raises(CDSRError, match="line 3, column 'item_id': .* needs the name 'a@y'.*; rename that item"):
        load(split_items_by_domain=True)
