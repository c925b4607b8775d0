"""Bad atomic files: each ends in one sentence with file, line, column and what to do."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from recbole_cdsr import cli
from recbole_cdsr.data.loaders import make_loaders
from recbole_cdsr.errors import CDSRError
from tests.helpers import make_dataset, write_dataset

INTER = """user_id:token\titem_id:token\ttimestamp:float
u1\ta\t10
u1\tc\t20
u1\tb\t30
u2\tc\t15
u2\ta\t25
u2\td\t35
"""
ITEM = "item_id:token\tdomain_id:token\na\tx\nb\tx\nc\ty\nd\ty\n"
WITH_DOMAIN = "\n".join(
    f"{line}\t{last}"
    for line, last in zip(INTER.splitlines(), ("domain_id:token", "x", "y", "x", "y", "x", "y"), strict=True)
)
WITH_DOMAIN += "\n"
# What to do begins with one of these.
VERBS = (
    "add", "begin", "check", "choose", "correct", "fill", "give", "keep", "leave", "name", "put", "remove", "rename",
    "save", "shorten", "unpack", "weaken", "write",
)  # fmt: skip
HEAD = "user_id:token\titem_id:token\ttimestamp:float"
PRICES = "item_id:token\tdomain_id:token\tprice:float\na\tx\t1\nb\tx\t"


def line(number: int, new: str, text: str = INTER) -> str:
    """`text` with another line at `number` (from 1)."""
    lines = text.splitlines()
    lines[number - 1] = new
    return "\n".join(lines) + "\n"


def head(new: str, text: str = INTER) -> str:
    return line(1, new, text)


class Bad(NamedTuple):
    says: str  # a part of the message after the place
    at: int | None = None  # line
    column: str | None = None
    inter: str | bytes = INTER
    item: str | bytes | None = ITEM
    keys: dict = {}

    @property
    def file(self) -> str:
        """The file that is not as it should be."""
        return "bad.item" if self.inter == INTER and self.item is not None else "bad.inter"


CASES = {
    # The header
    "no header": Bad("is not name:type", 1, "u1", INTER.split("\n", 1)[1]),
    "no header in .item": Bad("is not name:type", 1, "a", item=ITEM.split("\n", 1)[1]),
    "an empty file": Bad("the file is empty", 1, inter=""),
    "an empty .item": Bad("the file is empty", 1, item=""),
    "a byte order mark only": Bad("the file is empty", 1, inter=b"\xef\xbb\xbf"),
    "line breaks only": Bad("the first line is empty", 1, inter="\n\n\n\n"),
    "an empty line above the header": Bad("the first line is empty", 1, inter="\n" + INTER),
    "a header only": Bad("a header but no rows", 1, inter=INTER.split("\n", 1)[0] + "\n"),
    "a header only in .item": Bad("a header but no rows", 1, item="item_id:token\tdomain_id:token\n"),
    "a header cut in half": Bad("is not name:type", 1, "item_id:to", INTER[:24]),
    "names without types": Bad("is not name:type", 1, "user_id", head("user_id\titem_id\ttimestamp")),
    "an unknown type": Bad("is not name:type", 1, "timestamp:int", head(HEAD.replace("float", "int"))),
    "a type in capitals": Bad("is not name:type", 1, "item_id:Token", item=ITEM.replace("token", "Token", 1)),
    "a space after a type": Bad("is not name:type", 1, "user_id:token ", head(HEAD.replace("\t", " \t"))),
    "a space before a name": Bad("spaces around it", 1, " item_id:token", head(HEAD.replace("\t", "\t "))),
    "a type without a name": Bad("has no name", 1, ":token", head("user_id:token\t:token\ttimestamp:float")),
    "a column twice": Bad("twice", 1, "user_id", head("user_id:token\tuser_id:token\ttimestamp:float")),
    "a column twice in .item": Bad("twice", 1, "item_id", item=head("item_id:token\titem_id:token", ITEM)),
    "no column of users": Bad("no column 'user_id'", 1, inter=head("member:token\titem_id:token\ttimestamp:float")),
    "no column of items": Bad("no column 'item_id'", 1, inter=head("user_id:token\tasin:token\ttimestamp:float")),
    "no column of times": Bad("no column 'timestamp'", 1, inter=head("user_id:token\titem_id:token\ttime:float")),
    "no column of items in .item": Bad("no column 'item_id'", 1, item=head("asin:token\tdomain_id:token", ITEM)),
    "no column of domains": Bad("neither this file nor bad.item", 1, inter=INTER + "\n", item="item_id:token\na\nb\n"),
    "no .item and no domains": Bad("neither this file nor bad.item", 1, item=None),
    "users as floats": Bad("its type is float", 1, "user_id", head("user_id:float\titem_id:token\ttimestamp:float")),
    "items as lists": Bad("its type is token_seq", 1, "item_id", head(HEAD.replace("token\tt", "token_seq\tt"))),
    "times as tokens": Bad("its type is token", 1, "timestamp", head("user_id:token\titem_id:token\ttimestamp:token")),
    "domains as floats": Bad("its type is float", 1, "domain_id", item=head("item_id:token\tdomain_id:float", ITEM)),
    "a column that load_col leaves out": Bad(
        "is not loaded", 1, "timestamp", INTER + "\n", keys={"load_col": {"inter": ["user_id", "item_id"]}}
    ),
    # Separators
    "commas": Bad("a comma separates the columns, not a tab", 1, inter=INTER.replace("\t", ",")),
    "semicolons in .item": Bad("a semicolon separates the columns, not a tab", 1, item=ITEM.replace("\t", ";")),
    "tabs where the key says commas": Bad(
        "a tab separates the columns, not a comma", 1, inter=INTER + "\n", keys={"field_separator": ","}
    ),
    "a header with tabs, rows with commas": Bad(
        "put a tab between values, not a comma", 2, "item_id", INTER.replace("\t", ",").replace(",", "\t", 2)
    ),
    "spaces instead of tabs in a row": Bad("put a tab between values, not a space", 4, "item_id", line(4, "u1 b 30")),
    "too few values": Bad("the line has 2 of the header's 3 values", 5, "timestamp", line(5, "u2\tc")),
    "too many values": Bad("the line has 4 values, but the header has 3", 3, "timestamp", line(3, "u1\tc\t20\t9")),
    "too few values in .item": Bad("1 of the header's 2", 4, "domain_id", item=line(4, "c", ITEM)),
    "a tab inside quotes": Bad("in quotes or not", 3, "timestamp", line(3, 'u1\t"a\tb"\t20')),
    "a line break inside quotes": Bad("1 of the header's 3", 3, "item_id", line(3, '"u\n1"\tc\t20')),
    "a carriage return inside a value": Bad("2 of the header's 3", 3, "timestamp", line(3, "u1\tc\rc\t20")),
    "a line of spaces": Bad("1 of the header's 3", 4, "item_id", line(4, "  ")),
    # Files that are cut or no text
    "cut within a line": Bad("2 of the header's 3", 4, "timestamp", INTER[: INTER.index("\t30")] + "\n"),
    "cut within a number": Bad("ends within this line", 7, inter=INTER[:-2]),
    "cut after a number": Bad("ends within this line", 7, inter=INTER[:-1]),
    "cut within a name in .item": Bad("ends within this line", 5, item=ITEM[:-2]),
    "zeros at the end": Bad("a zero byte", 8, "user_id", INTER + "\0" * 512),
    "a zero in a name": Bad("a zero byte", 3, "item_id", line(3, "u1\tc\0\t20")),
    "Latin-1": Bad("the value is not utf-8 text", 3, "item_id", line(3, "u1\té\t20").encode("latin-1")),
    "Latin-1 in .item": Bad("is not utf-8 text", 2, "domain_id", item=line(2, "a\té", ITEM).encode("latin-1")),
    "Latin-1 in the header": Bad("the header is not utf-8 text", 1, inter=head("usé:token").encode("latin-1")),
    "UTF-16": Bad("the header is not utf-8 text", 1, inter=INTER.encode("utf-16")),
    "half a character": Bad("the value is not utf-8 text", 7, "timestamp", INTER.encode()[:-1] + b"\xc3\n"),
    "not of the encoding that the key names": Bad(
        "the value is not ascii text", 3, "item_id", line(3, "u1\té\t20"), keys={"encoding": "ascii"}
    ),
    "compressed": Bad("this is a gzip file", inter=gzip.compress(INTER.encode())),
    "an endless line": Bad("longer than a million bytes", 3, inter=line(3, f"u1\t{'c' * 3_000_000}\t20")),
    # Names
    "no user": Bad("the value is missing", 2, "user_id", line(2, "\ta\t10")),
    "no item": Bad("the value is missing", 2, "item_id", line(2, "u1\t\t10")),
    "a user of spaces": Bad("the value is missing", 2, "user_id", line(2, "  \ta\t10")),
    "no item in .item": Bad("the value is missing", 3, "item_id", item=line(3, "\tx", ITEM)),
    "no domain": Bad("the value is missing", 3, "domain_id", item=line(3, "b\t", ITEM)),
    "no domain in .inter": Bad("the value is missing", 3, "domain_id", line(3, "u1\tc\t20\t", WITH_DOMAIN), None),
    "a space after a user": Bad("'u1 ' begins or ends with a space", 3, "user_id", line(3, "u1 \tc\t20")),
    "a space before an item": Bad("' c' begins or ends with a space", 3, "item_id", line(3, "u1\t c\t20")),
    "a space after a domain": Bad("'x ' begins or ends with a space", 3, "domain_id", item=line(3, "b\tx ", ITEM)),
    "a space that cannot be seen": Bad("begins or ends with a space", 3, "item_id", line(3, "u1\tc\u00a0\t20")),
    "a very long name": Bad("longer than 1000 bytes", 3, "item_id", line(3, f"u1\t{'c' * 1001}\t20")),
    "a domain called [PAD]": Bad("the name of padding", 4, "domain_id", item=ITEM.replace("y", "[PAD]")),
    # Items and domains
    "an item without a line in .item": Bad("the item 'q' has no line in bad.item", 4, "item_id", line(4, "u1\tq\t30")),
    "an item twice in .item": Bad("'a' stands there a second time", 6, "item_id", item=ITEM + "a\tx\n"),
    "an item with two domains in .item": Bad("'a' stands there a second time", 6, "item_id", item=ITEM + "a\ty\n"),
    "an item with two domains in .inter": Bad(
        "the item 'a' is in domain 'y' here and in 'x' before", 6, "domain_id", line(6, "u2\ta\t25\ty", WITH_DOMAIN)
    ),
    "a domain with one item": Bad("the domain 'z' has no item but 'e'", 6, "domain_id", item=ITEM + "e\tz\n"),
    "a domain with one item in .inter": Bad(
        "the domain 'y' has no item but 'c'", 3, "domain_id", line(7, "u2\ta\t35\tx", WITH_DOMAIN), None
    ),
    # Times
    "a time that is no number": Bad("'soon' is not a number", 4, "timestamp", line(4, "u1\tb\tsoon")),
    "no time": Bad("the value is missing", 4, "timestamp", line(4, "u1\tb\t")),
    "a date": Bad("'2020-01-31' is not a number", 4, "timestamp", line(4, "u1\tb\t2020-01-31")),
    "a decimal comma": Bad("'1,5' is not a number", 4, "timestamp", line(4, "u1\tb\t1,5")),
    "a hexadecimal time": Bad("'0x10' is not a number", 4, "timestamp", line(4, "u1\tb\t0x10")),
    "an underscore in a time": Bad("'1_000' is not a number", 4, "timestamp", line(4, "u1\tb\t1_000")),
    "a time in quotes": Bad("""'"30"' is not a number""", 4, "timestamp", line(4, 'u1\tb\t"30"')),
    "a negative time": Bad("the time -3 is negative", 4, "timestamp", line(4, "u1\tb\t-3")),
    "a negative broken time": Bad("the time -0.5 is negative", 4, "timestamp", line(4, "u1\tb\t-0.5")),
    "a time that is NaN": Bad("'NaN' is not a finite number", 4, "timestamp", line(4, "u1\tb\tNaN")),
    "an infinite time": Bad("'inf' is not a finite number", 4, "timestamp", line(4, "u1\tb\tinf")),
    "a time beyond any float": Bad("'1e999' is not a finite number", 4, "timestamp", line(4, "u1\tb\t1e999")),
    "a time of 1e20": Bad("too large to be put in exact order", 4, "timestamp", line(4, "u1\tb\t1e20")),
    "a time beyond 64 bits": Bad("too large to be put in exact", 4, "timestamp", line(4, f"u1\tb\t{2**63}")),
    # Other columns
    "a price that is no number": Bad(
        "'cheap' is not a number", 3, "price", item=f"{PRICES}cheap\n",
        keys={"load_col": None},
    ),
    "an infinite price": Bad(
        "not a finite number", 3, "price", item=f"{PRICES}inf\n",
        keys={"load_col": None},
    ),
    "a list of numbers with a word": Bad(
        "'1 two' is no list of numbers", 2, "v", item="item_id:token\tdomain_id:token\tv:float_seq\na\tx\t1 two\n",
        keys={"load_col": None},
    ),
    # Too little
    "nobody with three events": Bad("no event is left", None, None, "\n".join(INTER.splitlines()[:3]) + "\n"),
}  # fmt: skip


def write(inter: str | bytes, item: str | bytes | None, folder: Path = Path("dataset/bad")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, content in (("inter", inter), ("item", item)):
        if content is not None:
            content = content.encode() if isinstance(content, str) else content
            (folder / f"{folder.name}.{suffix}").write_bytes(content)


def load(**keys):
    config, dataset = make_dataset("bad", **keys)
    make_loaders(config, dataset)
    return dataset


def assert_helps(message: str) -> None:
    """One line of bearable length that ends with what to do."""
    assert len(message) <= 300 and message.isprintable(), message
    assert re.split("[ ,]", message.rsplit("; ", 1)[1])[0] in VERBS, message


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_input_is_told_with_its_place_and_what_to_do(case):
    write(case.inter, case.item)
    with pytest.raises(CDSRError) as caught:
        load(**case.keys)
    message = str(caught.value)
    wanted = f"dataset/bad/{case.file}"
    wanted += f", line {case.at}" * bool(case.at) + f", column '{case.column}'" * bool(case.column)
    assert message.startswith(f"{wanted}: "), message
    assert case.says in message
    assert_helps(message)


def test_there_are_many_kinds():
    assert len(CASES) >= 60


@pytest.mark.parametrize(
    "name", ["no header", "a negative time", "Latin-1", "a domain with one item", "cut within a line"]
)
def test_the_command_prints_one_sentence(name, capsys):
    case = CASES[name]
    write(case.inter, case.item)
    assert cli.main(["run", "--dataset", "bad", "--run_dir", "run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: dataset/bad/{case.file}, line {case.at}") and case.says in error
    assert "Traceback" not in error and error.count("\n") == 1 and not Path("run").exists()


def test_a_user_who_knows_every_item_leaves_no_negatives(capsys):
    inter = [(f"u{u}", f"i{i}", t) for u in range(3) for t, i in enumerate((0, 1, 2, 3))]
    write_dataset("full", inter, [(f"i{i}", f"d{i % 2}") for i in range(4)])
    assert cli.main(["run", "--dataset", "full", "--model", "BPR", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "BPR cannot be trained on full" in told and "user_inter_num_interval" in told and "Traceback" not in told
