"""Raw sources -> atomic files. Built-in data sets are made on first use, from what is already on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from recbole_cdsr.data.atomic import read_columns, read_header
from recbole_cdsr.data.synthetic import toy, write_atomic
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.files import remove_left_over, replacing_folder
from recbole_cdsr.names import recbole_dir
from recbole_cdsr.paths import properties_dir
from recbole_cdsr.yaml_values import read_yaml

META_FILE = "meta.json"


def ensure_built_in(name: str, folder: Path, domain_groups: dict[str, list[str]] | None = None) -> None:
    """Builds the built-in data set `name` in `folder`, if it is one and is not there as it should be.

    A folder with files of that name and no meta.json is somebody's own data and stays untouched.

    Args:
        folder: where <name>.inter and <name>.item belong.
        domain_groups: for ml-100k: domain -> genres; the shipped properties/dataset/ml-100k.yaml by default.

    Raises:
        CDSRError: if the folder cannot be written, or the groups do not fit the data.
    """
    if name == "ml-100k":
        recipe = recipe_of_ml100k(domain_groups or shipped_groups())
    elif name == "toy":
        recipe = {"source": "generated: recbole_cdsr.data.synthetic.toy"}
    else:
        return
    if name == "toy":
        build(name, folder, recipe, lambda fresh: write_atomic(fresh, name, toy()))
    else:
        build(name, folder, recipe, lambda fresh: write_ml100k(fresh, name, recipe["domain_groups"]))


def require(name: str, folder: Path) -> None:
    """CDSRError if the events of the data set `name` are not in `folder`."""
    path = folder / f"{name}.inter"
    if not path.is_file():
        raise CDSRError(
            f"there is no data set '{name}': {path} does not exist; put the file there, set --data_path, or use ml-100k"
        )


def build(name: str, folder: Path, recipe: dict, write: Callable[[Path], None]) -> None:
    """Writes the data set `name` into `folder`, unless it is there by the same recipe, or is somebody's own.

    Args:
        recipe: what the data follow from, as json can hold it.
        write: fills a new, empty folder.

    Raises:
        CDSRError: if the folder cannot be written.
    """
    remove_left_over(folder)
    if (folder / f"{name}.inter").is_file() and _stored_recipe(folder) in (None, recipe):
        return
    try:
        with replacing_folder(folder) as fresh:
            write(fresh)
            (fresh / META_FILE).write_text(json.dumps({"name": name, **recipe}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CDSRError(
            f"cannot write the data set {name} to {folder}: {error.strerror or error}; set --data_path to a folder "
            f"that can be written"
        ) from None


def shipped_groups() -> dict[str, list[str]]:
    """Domain -> genres of ml-100k, as shipped."""
    return read_yaml(properties_dir() / "dataset" / "ml-100k.yaml")["domain_groups"]


def recipe_of_ml100k(groups: dict[str, list[str]]) -> dict:
    """What ml-100k with these groups follows from."""
    source = recbole_dir() / "dataset_example" / "ml-100k"
    return {"source": "ml-100k of the installed RecBole", "sha256": _digest(source), "domain_groups": groups}


def _stored_recipe(folder: Path) -> dict | None:
    """What the folder was built from, or None if it holds somebody's own data."""
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        meta.pop("name", None)
        return meta
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def _digest(source: Path) -> str:
    digest = hashlib.sha256()
    for suffix in ("inter", "item"):
        digest.update((source / f"ml-100k.{suffix}").read_bytes())
    return digest.hexdigest()


def write_ml100k(folder: Path, name: str, groups: dict[str, list[str]]) -> None:
    """RecBole's ml-100k as the data set `name`, one domain per film: the first group that holds one of its genres.

    Raises:
        CDSRError: if a film has none of the genres, naming it.
    """
    source = recbole_dir() / "dataset_example" / "ml-100k"
    path = source / "ml-100k.item"
    films = read_columns(path, read_header(path, "\t"), ["item_id", "class"], "\t", "utf-8")
    lines = ["item_id:token\tdomain_id:token"]
    for item, genres in zip(films["item_id"], films["class"], strict=True):
        domain = next((name for name, wanted in groups.items() if set(wanted) & set(genres.split())), None)
        if domain is None:
            raise CDSRError(
                f"film {item} of ml-100k has the genres '{genres}', which no entry of domain_groups holds; "
                f"add one of them to a group in the dataset's yaml"
            )
        lines.append(f"{item}\t{domain}")
    (folder / f"{name}.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = source / "ml-100k.inter"
    events = read_columns(path, read_header(path, "\t"), ["user_id", "item_id", "timestamp"], "\t", "utf-8")
    events.columns = ["user_id:token", "item_id:token", "timestamp:float"]
    events.to_csv(folder / f"{name}.inter", sep="\t", index=False)
