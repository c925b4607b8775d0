"""What finished runs say, grouped for tables; runs are compared only on the same events and candidates."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_cdsr.compare.cells import FREE_KEYS, Usage, finished, usage_of
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.ranks import RankTable, metric_keys
from recbole_cdsr.run_folder import CONFIG, RANKS, RESULT
from recbole_cdsr.yaml_values import read_yaml

_NOT_IN_A_NAME = FREE_KEYS | {"model", "dataset", "seed", "train_domains"}


@dataclass
class Finished:
    """A finished run; `only` names the domains that it was trained on, () for all."""

    folder: Path
    dataset: str
    variant: str
    seed: int
    only: tuple[str, ...]
    settings: dict[str, Any]
    result: dict[str, Any]
    ranks: RankTable
    usage: Usage | None


def read_finished(folders: Iterable[Path]) -> list[Finished]:
    """The finished runs in `folders`.

    A run of a comparison has the name it has there. Another one is called by its model, with the keys in which runs of
    the same model differ.

    Raises:
        CDSRError: if a file is damaged, or two runs are the same variant, data set, seed and domains.
    """
    runs = [_read(folder) for folder in folders if finished(folder)]
    _name_variants([run for run in runs if not run.variant])
    seen: dict[tuple, Path] = {}
    for run in runs:
        other = seen.setdefault((run.dataset, run.variant, run.seed, run.only), run.folder)
        if other != run.folder:
            raise CDSRError(f"{run.folder} and {other} are both {run.variant} with seed {run.seed}; leave one out")
    return runs


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """Every folder of a finished run at or below `folders`.

    Raises:
        CDSRError: if there is none in one of them.
    """
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        below = [path.parent for path in sorted(folder.rglob(RESULT)) if finished(path.parent)]
        if not below:
            raise CDSRError(f"there is no finished run in {folder}; give folders of runs or of comparisons")
        found |= dict.fromkeys(below)
    return list(found)


def _read(folder: Path) -> Finished:
    settings, usage = read_yaml(folder / CONFIG), usage_of(folder)
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        dataset, seed = result["dataset"], result["seed"]
    except (OSError, ValueError, KeyError) as error:
        raise CDSRError(f"{folder / RESULT} is damaged ({error}); evaluate the run again, or leave it out") from None
    only = tuple(map(str, settings.get("train_domains") or ()))
    variant, ranks = usage.variant if usage else "", RankTable.load(folder / RANKS)
    return Finished(folder, dataset, variant, seed, only, settings, result, ranks, usage)


def _name_variants(runs: list[Finished]) -> None:
    """Calls each run by its model, and by the keys in which runs of this model on this data set differ."""
    for run in runs:
        kind = (run.result["model"], run.dataset)
        alike = [other.settings for other in runs if (other.result["model"], other.dataset) == kind]
        keys = [key for key in run.settings if key not in _NOT_IN_A_NAME]
        differ = [f"{key} = {run.settings[key]}" for key in keys if any(s.get(key) != run.settings[key] for s in alike)]
        run.variant = f"{run.result['model']} ({', '.join(differ)})" if differ else run.result["model"]


def by_variant(runs: Iterable[Finished]) -> dict[str, list[Finished]]:
    """Variant -> its runs, in order of seeds; variants in the order in which they come."""
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        groups.setdefault(run.variant, []).append(run)
    return {variant: sorted(group, key=lambda run: run.seed) for variant, group in groups.items()}


def require_same_events(runs: list[Finished]) -> None:
    """CDSRError unless all runs ranked the same events, in the same order, among equally many items."""
    first = runs[0]
    for run in runs[1:]:
        same = run.ranks.domain_names == first.ranks.domain_names and all(
            np.array_equal(getattr(run.ranks, column), getattr(first.ranks, column))
            for column in ("user", "item", "domain", "history_length", "candidates_domain", "candidates_all")
        )
        if not same:
            what = f"{run.folder} ranked other events or candidates than {first.folder}"
            raise CDSRError(f"{what}, so they cannot be compared; use the same data, filters and eval_args")


def metrics_of(run: Finished) -> dict[str, Any]:
    """The metrics and cut-offs that the run was asked for, as arguments of a rank table."""
    return {"metrics": run.settings["metrics"], "topk": run.settings["topk"]}


def mean_by_row(runs: list[Finished], candidates: str, asked: dict[str, Any]) -> dict[str, np.ndarray]:
    """Metric -> values of events [rows], averaged over runs that ranked the same events."""
    tables = [run.ranks.by_row(candidates=candidates, **asked) for run in runs]
    return {metric: np.mean([table[metric] for table in tables], axis=0) for metric in tables[0]}


def main_metric(run: Finished) -> str:
    """The metric that epochs were chosen by, such as ndcg@10, if the run was asked for it; else its first one."""
    asked = [key for key, *_ in metric_keys(run.settings["metrics"], run.settings["topk"])]
    chosen = str(run.settings.get("valid_metric", "")).lower()
    return chosen if chosen in asked else asked[0]


def asked_for(metric: str) -> dict[str, Any]:
    """The metric as arguments of a rank table."""
    name, _, k = metric.partition("@")
    return {"metrics": [name], "topk": [int(k)]}


def by_place(runs: list[Finished], metric: str) -> dict[str, list[float]]:
    """Domain with events, or macro -> the metric of each run among the items of the target's domain."""
    tables = [run.ranks.by_domain(candidates="domain", **asked_for(metric)) for run in runs]
    places = [place for place, values in tables[0].items() if values["rows"] and place != "micro"]
    return {place: [table[place][metric] for table in tables] for place in places}


def macro(run: Finished, metric: str) -> float:
    """Mean over domains on test events, among the items of the target's domain."""
    return run.ranks.by_domain(candidates="domain", **asked_for(metric))["macro"][metric]


def seconds_per_epoch(result: dict[str, Any]) -> float:
    """CPU seconds of training per epoch, of the content of result.json."""
    return result["train_cpu_seconds"] / max(result["epochs"], 1)
