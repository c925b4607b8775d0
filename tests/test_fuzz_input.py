"""Generated atomic files, whole and damaged: loaded as plain Python reads them, or one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_cdsr.data.dataset import CDSRDataset
from recbole_cdsr.data.loaders import make_loaders
from recbole_cdsr.errors import CDSRError
from tests.helpers import make_config
from tests.test_bad_input import assert_helps, write

USERS = ["u", "v", "1", "01", "é", "nan", '"q"', "a b"]
ITEMS = ["a", "b", "c", "d", "NA", "1.0"]
DOMAINS = dict(zip(ITEMS, "xxyyxy", strict=True))
WHOLE = ["0", "7", "8", "1700000000", "1700000001", "9007199254740993", "9007199254740992", "9007199254740994"]
BROKEN = ["0", "7", "8.5", "8.25", "1e1", "+3", " 4 ", ".5", "1700000000", "1700000000.25"]
ODD_TIMES = ["", "-1", "nan", "inf", "1e20", "0x1", "1_0", "9223372036854775808", "soon", "1,5"]
DAMAGE = [
    b"",
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b" ",
    b"\0",
    b"\xff",
    b'"',
    b",",
    b"\xef\xbb\xbf",
    b"9",
    b"\xc3\xa9",
]

odd_row = st.tuples(
    st.sampled_from(["u", "", " u", "u "]), st.sampled_from(["a", "", "e", "a "]), st.sampled_from(["7", *ODD_TIMES])
)
damage = st.tuples(st.integers(0, 2000), st.integers(0, 4), st.sampled_from(DAMAGE))


@st.composite
def files(draw) -> bytes:
    """An .inter file: sound, or with an odd row, or with some bytes replaced, or cut."""
    times = draw(st.sampled_from([WHOLE, BROKEN]))
    users = st.sampled_from(draw(st.lists(st.sampled_from(USERS), min_size=1, max_size=4)))
    row = st.tuples(users, st.sampled_from(ITEMS), st.sampled_from(times))
    rows = draw(st.lists(row, min_size=6, max_size=25))
    kind = draw(st.sampled_from(["sound", "sound", "odd row", "damaged", "damaged", "cut"]))
    if kind == "odd row":
        rows.insert(draw(st.integers(0, len(rows))), draw(odd_row))
    ending = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *map("\t".join, rows)]
    content = (ending.join(lines) + ending).encode()
    if kind == "damaged":
        place, length, new = draw(damage)
        place %= len(content) + 1
        content = content[:place] + new + content[place + length :]
    return content[: draw(st.integers(0, len(content)))] if kind == "cut" else content


def plain_histories(content: bytes) -> dict[str, list[str]]:
    """Each user's items in the order of exact time, then of lines; users with three events or more."""
    header, *lines = (line for line in content.decode("utf-8-sig").replace("\r", "\n").split("\n") if line)
    position = {name.partition(":")[0]: number for number, name in enumerate(header.split("\t"))}
    users: dict[str, list[tuple]] = {}
    for line in lines:
        user, item, time = (line.split("\t")[position[name]] for name in ("user_id", "item_id", "timestamp"))
        users.setdefault(user, []).append((int(time) if time.strip("+ ").isdigit() else float(time), item))
    ordered = {user: sorted(events, key=lambda event: event[0]) for user, events in users.items()}
    return {user: [item for _, item in events] for user, events in ordered.items() if len(events) >= 3}


def loaded_histories(dataset) -> dict[str, list[str]]:
    events, users = dataset.events, dataset.field2id_token["user_id"]
    items = dataset.field2id_token["item_id"][events.columns["item_id"].numpy()]
    parts = np.split(items, events.offsets[1:-1].numpy())[1:]
    return {str(user): part.tolist() for user, part in zip(users[1:], parts, strict=True)}


@pytest.fixture(scope="module")
def config():
    return make_config("fuzz", data_path=str(Path("dataset").resolve()))


@settings(derandomize=True, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=files())
def test_loaded_right_or_one_clear_error(config, content):
    item = "item_id:token\tdomain_id:token\n" + "".join(f"{name}\t{domain}\n" for name, domain in DOMAINS.items())
    write(content, item, Path(config["data_path"]))
    try:
        dataset = CDSRDataset(config)
        make_loaders(config, dataset)
    except CDSRError as error:
        assert_helps(str(error).replace(config["data_path"], "dataset/fuzz"))
    else:
        assert loaded_histories(dataset) == plain_histories(content)
        domains = dataset.field2id_token["domain_id"][dataset.item_domain[1:].numpy()]
        assert dict(zip(dataset.field2id_token["item_id"][1:], domains, strict=True)) == DOMAINS
