"""What a comparison trains: variants of models x data sets x seeds, and for chosen variants each domain alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recbole_cdsr.checkpoint import write_bytes
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.files import make_folder
from recbole_cdsr.names import model_name, nearest
from recbole_cdsr.yaml_values import read_yaml

PLAN = "plan.yaml"
PARTS = ("models", "datasets", "seeds", "keys", "single_domain")
# A cell sets these itself.
TAKEN = ("seed", "dataset", "train_domains", "show_progress")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison; `only` is the domain that a single-domain run is trained on."""

    dataset: str
    variant: str
    seed: int
    only: str | None
    settings: dict[str, Any] = field(compare=False)

    @property
    def name(self) -> str:
        """What people and folders call it: data set, variant, seed."""
        variant = file_name(self.variant) + (f"@{file_name(self.only)}" if self.only else "")
        return f"{file_name(self.dataset)}/{variant}/{self.seed}"


@dataclass(frozen=True)
class Plan:
    """
    models: variant -> its keys, among them `model`, the name of a model.
    datasets: data set -> keys of its own.
    keys: keys of every run. A data set's keys win over these, a variant's over both.
    single_domain: variants that are trained on each domain alone too.
    """

    models: dict[str, dict[str, Any]]
    datasets: dict[str, dict[str, Any]]
    seeds: list[int]
    keys: dict[str, Any]
    single_domain: list[str]

    def settings(self, dataset: str, variant: str) -> dict[str, Any]:
        """Everything that a cell sets, but for its seed and domains."""
        return {**self.keys, **self.datasets[dataset], **self.models[variant], "dataset": dataset}

    def cells(self, domains_of: Callable[[str], list[str]]) -> list[Cell]:
        """All runs, in the order in which they are started: seed by seed, so that early tables hold every variant.

        Args:
            domains_of: names of the domains of a data set; asked only where single domains are trained.
        """
        domains = {name: domains_of(name) if self.single_domain else [] for name in self.datasets}
        cells = []
        for seed in self.seeds:
            for dataset in self.datasets:
                for variant in self.models:
                    single = domains[dataset] if variant in self.single_domain else []
                    for only in [None, *single]:
                        settings = {**self.settings(dataset, variant), "seed": seed, "show_progress": False}
                        settings["train_domains"] = [only] if only else []
                        cells.append(Cell(dataset, variant, seed, only, settings))
        _refuse_equal_folders(cells)
        return cells


def file_name(name: str) -> str:
    """The name as part of a path: letters, digits and ._+- stay, everything else becomes an underscore."""
    return re.sub(r"[^\w.+-]", "_", name)


def make_plan(content: dict[str, Any]) -> Plan:
    """A plan from what a plan file or the command line says.

    Args:
        content: models and datasets as lists of names or as mappings from a name to keys, seeds, keys, and
            single_domain: a list of variants, or True for all.

    Raises:
        CDSRError: if a part is missing, unknown or of the wrong kind, or names no model.
    """
    for name in content:
        if name not in PARTS:
            raise CDSRError(f"a plan has no part '{name}'; {nearest(str(name), PARTS, 'it has ' + ', '.join(PARTS))}")
    models = _named("models", content.get("models"))
    models = {variant: {"model": variant, **keys} for variant, keys in models.items()}
    models = {variant: {**keys, "model": model_name(str(keys["model"]))} for variant, keys in models.items()}
    datasets = _named("datasets", content.get("datasets"))
    keys = content.get("keys") or {}
    if not isinstance(keys, dict):
        raise CDSRError(f"the plan's 'keys' must map keys to values, but are {keys!r}")
    for given in (keys, *datasets.values(), *models.values()):
        taken = (*TAKEN, "model") if given is keys else TAKEN
        refuse_taken(given, taken, "the comparison's", f"use {', '.join(PARTS)}")
    return Plan(models, datasets, _seeds(content.get("seeds", [2020])), keys, _single(content, list(models)))


def refuse_taken(given: dict[str, Any], taken: tuple[str, ...], whose: str, advice: str) -> None:
    """CDSRError for the first of the keys given that is not theirs to set, but `whose`."""
    if key := next((key for key in given if key in taken), None):
        raise CDSRError(f"the key '{key}' is {whose} to set; {advice}")


def _named(part: str, given: Any) -> dict[str, dict[str, Any]]:
    if isinstance(given, list) and all(isinstance(name, (str, int)) for name in given):
        given = {name: {} for name in given}
    good = isinstance(given, dict) and given and all(isinstance(keys or {}, dict) for keys in given.values())
    if not good:
        raise CDSRError(f"a plan needs '{part}': a list of names, or a mapping from names to keys; got {given!r}")
    return {str(name): dict(keys or {}) for name, keys in given.items()}


def _seeds(given: Any) -> list[int]:
    seeds = given if isinstance(given, list) else [given]
    if not seeds or not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise CDSRError(f"a plan's 'seeds' are different whole numbers, at least one, but are {given!r}")
    return seeds


def _single(content: dict[str, Any], variants: list[str]) -> list[str]:
    given = content.get("single_domain") or []
    chosen = variants if given is True else given
    for name in chosen if isinstance(chosen, list) else [chosen]:
        if name not in variants:
            advice = nearest(str(name), variants, f"the models are {', '.join(variants)}")
            raise CDSRError(f"the plan's 'single_domain' names '{name}', which is none of its models; {advice}")
    return list(chosen)


def _refuse_equal_folders(cells: list[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.name.lower(), cell)
        if other != cell:
            raise CDSRError(f"'{cell.variant}' and '{other.variant}' would share the folder {cell.name}; rename one")


def keep_plan(plan: Plan, folder: Path, begun: Callable[[str, str], bool], write: bool) -> None:
    """Keeps the plan in the folder of the comparison; one that is there already may only grow.

    Args:
        begun: whether a run of (data set, variant) has trained an epoch; until then its keys may change.
        write: False only checks.

    Raises:
        CDSRError: if a variant, data set, seed or key of the plan that is there is gone or changed.
    """
    if (folder / PLAN).is_file():
        before = make_plan(read_yaml(folder / PLAN))
        if difference := _lost(before, plan, begun):
            raise CDSRError(f"{folder} holds a comparison whose {difference}; only add to it, or choose another --out")
    if not write:
        return
    make_folder(folder)
    content = {part: getattr(plan, part) for part in PARTS}
    write_bytes(folder / PLAN, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def _lost(before: Plan, now: Plan, begun: Callable[[str, str], bool]) -> str | None:
    """What of the plan `before` is not in the plan `now`."""
    for part in ("models", "datasets", "seeds", "single_domain"):
        gone = [name for name in getattr(before, part) if name not in getattr(now, part)]
        if gone:
            return f"'{part}' have {gone[0]}, which is not asked for now"
    for dataset in before.datasets:
        for variant in before.models:
            old, new = before.settings(dataset, variant), now.settings(dataset, variant)
            for key in {**old, **new}:
                if old.get(key) != new.get(key) and begun(dataset, variant):
                    return f"{variant} on {dataset} has {key} = {old.get(key)}, not {new.get(key)}"
    return None
