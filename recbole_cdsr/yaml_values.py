"""Values from yaml and from the command line, typed and never evaluated."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recbole_cdsr.errors import CDSRError


class SafeLoader(yaml.SafeLoader):
    """yaml's safe loader that also reads 1e-3 as a number, as RecBole's does."""


SafeLoader.yaml_implicit_resolvers = copy.deepcopy(yaml.SafeLoader.yaml_implicit_resolvers)
SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """A command-line value as yaml reads it; `None` is no value, as RecBole's users write it."""
    if text == "None":
        return None
    try:
        return yaml.load(text, Loader=SafeLoader)
    except yaml.YAMLError:
        return text  # `,` or `[5,inf)`: a text, which the key may take or refuse


def parse_keys(arguments: list[str]) -> dict[str, Any]:
    """`--k v` and `--k=v` as typed values; a key given without a value is True.

    Raises:
        CDSRError: for anything that is not a key, or a key given twice with different values.
    """
    keys: dict[str, Any] = {}
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if not word.startswith("--") or len(word) == 2:
            raise CDSRError(f"'{word}' is neither an option nor a value of one; write --key value or --key=value")
        key, equals, text = word[2:].partition("=")
        if not equals and position < len(arguments) and not arguments[position].startswith("--"):
            text, equals = arguments[position], "="
            position += 1
        value = parse_value(text) if equals else True
        if key in keys and keys[key] != value:
            raise CDSRError(f"the key '{key}' is given twice, as {keys[key]!r} and {value!r}; keep one")
        keys[key] = value
    return keys


def read_yaml(path: str | Path) -> dict:
    """The mapping in a yaml file.

    Raises:
        CDSRError: if the file cannot be read, is not yaml or does not hold a mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=SafeLoader)
    except OSError as error:
        raise CDSRError(f"cannot read the config file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CDSRError(f"{path} is not valid yaml: {one_line(error)}; mend the file") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise CDSRError(f"{path} must hold `key: value` lines, but holds a {type(content).__name__}")
    return content


def merged(paths: str | list[str] | None) -> dict[str, Any]:
    """The mappings of several yaml files as one; later files win."""
    settings: dict[str, Any] = {}
    for path in [paths] if isinstance(paths, str) else paths or []:
        settings.update(read_yaml(path))
    return settings


def plain_value(value: Any) -> Any:
    """A copy in types that yaml can write: what numpy, pathlib and tuples hold becomes numbers, texts and lists."""
    if isinstance(value, dict):
        return {key: plain_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
