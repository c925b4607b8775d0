"""The rank table: one row per test event with the rank of its target, and every metric that follows from a rank.

Ranks come from `recbole_cdsr.counting`, whose functions are offered here too. A rank with ties may end in .5. A metric
at k counts a target whose rank is at most k; NDCG is then 1 / log2(rank + 1) and MRR 1 / rank. Without ties the values
are those of RecBole's evaluator; with ties RecBole follows the order in which topk happens to return equal scores.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from recbole_cdsr.counting import Catalogue, Ranks, count_ranks, count_ranks_tiled
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.files import replacing

__all__ = ["Catalogue", "RankTable", "Ranks", "count_ranks", "count_ranks_tiled", "metric_keys"]

CANDIDATE_SETS = ("domain", "all")
DEFAULT_METRICS = ("NDCG", "Recall", "MRR")
SUMMARIES = ("macro", "micro")
_FORMAT = 1
# One target per event: recall, hit and average precision lose their sums over targets.
_METRICS = {
    "ndcg": lambda rank, k: 1 / np.log2(rank + 1),
    "recall": lambda rank, k: np.ones_like(rank),
    "hit": lambda rank, k: np.ones_like(rank),
    "mrr": lambda rank, k: 1 / rank,
    "map": lambda rank, k: 1 / rank,
    "precision": lambda rank, k: np.full_like(rank, 1 / k),
}
_NEEDS_LISTS = ("itemcoverage", "averagepopularity", "shannonentropy", "giniindex", "tailpercentage")
_NEEDS_LABELS = ("auc", "gauc", "mae", "rmse", "logloss")


def metric_keys(metrics: str | Sequence[str], topk: int | Sequence[int]) -> list[tuple[str, str, int]]:
    """RecBole's keys such as "ndcg@10", each with its metric and its k; CDSRError on what a rank cannot give."""
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    cuts = [topk] if isinstance(topk, (int, np.integer)) else list(topk)
    if not names or not cuts:
        raise CDSRError("metrics and topk must each name at least one.")
    for name in (str(name).lower() for name in names):
        if name in _NEEDS_LISTS:
            raise CDSRError(f"metric {name} needs the recommended lists; a rank table keeps the ranks of targets only.")
        if name in _NEEDS_LABELS:
            raise CDSRError(f"metric {name} is made of scores or labels of many items; a rank table keeps ranks only.")
        if name not in _METRICS:
            near = get_close_matches(name, _METRICS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise CDSRError(f"metric {name} is unknown; known are {', '.join(_METRICS)}.{hint}")
    for k in cuts:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise CDSRError(f"topk must hold whole numbers of 1 or more, but has {k!r}.")
    return [(f"{str(name).lower()}@{k}", str(name).lower(), int(k)) for name in names for k in cuts]


@dataclass
class RankTable:
    """One row per test event; `domain` is a number into `domain_names`, whose index 0 is padding."""

    user: np.ndarray  # str tokens
    item: np.ndarray  # str tokens of the targets
    domain: np.ndarray  # int, the target's domain
    domain_names: list[str]
    history_length: np.ndarray  # int, events before the target
    domain_history_length: np.ndarray  # int, those of the target's domain
    switch: np.ndarray  # bool, the target's domain is not that of the last event
    rank_all: np.ndarray  # float64
    rank_domain: np.ndarray  # float64
    candidates_all: np.ndarray  # int, candidates with the target itself
    candidates_domain: np.ndarray  # int
    ties: np.ndarray  # bool, another item has the target's score

    def __post_init__(self) -> None:
        self.domain_names = [str(name) for name in self.domain_names]
        if len(set(self.domain_names)) < len(self.domain_names):
            raise CDSRError("Two domains of a rank table have the same name: give each domain its own.")
        for name in _COLUMNS:
            setattr(self, name, np.asarray(getattr(self, name), dtype=_TYPES.get(name, np.int64)))
            if getattr(self, name).shape != (len(self),):
                raise CDSRError(f"Column {name} of a rank table must have one value for each of {len(self)} rows.")
        if len(self) and not 0 < self.domain.min() <= self.domain.max() < len(self.domain_names):
            raise CDSRError(f"Domains of a rank table must lie from 1 to {len(self.domain_names) - 1}.")
        for which in CANDIDATE_SETS:
            rank, candidates = self.ranks(which)
            if not ((rank >= 1) & (rank <= candidates)).all():  # also false for NaN
                raise CDSRError(f"A rank in rank_{which} does not lie between 1 and the number of candidates.")

    def __len__(self) -> int:
        return len(self.user)

    def ranks(self, candidates: str = "domain") -> tuple[np.ndarray, np.ndarray]:
        """Ranks and numbers of candidates of one candidate set, "domain" or "all"."""
        if candidates not in CANDIDATE_SETS:
            raise CDSRError(f"candidates must be one of {', '.join(CANDIDATE_SETS)}, but is {candidates!r}.")
        return getattr(self, f"rank_{candidates}"), getattr(self, f"candidates_{candidates}")

    def metrics(
        self,
        metrics: str | Sequence[str] = DEFAULT_METRICS,
        topk: int | Sequence[int] = (10,),
        candidates: str = "domain",
        rows: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Means over the rows (all, or those of a mask or index array); NaN where there is no row."""
        result = {}
        for key, values in self.by_row(metrics, topk, candidates).items():
            values = values if rows is None else values[np.asarray(rows)]
            result[key] = float(values.mean()) if len(values) else float("nan")
        return result

    def by_row(
        self,
        metrics: str | Sequence[str] = DEFAULT_METRICS,
        topk: int | Sequence[int] = (10,),
        candidates: str = "domain",
    ) -> dict[str, np.ndarray]:
        """The metrics of every row, each [rows]; for tests on events."""
        rank = self.ranks(candidates)[0]
        keys = metric_keys(metrics, topk)
        return {key: np.where(rank <= k, _METRICS[name](rank, k), 0.0) for key, name, k in keys}

    def summary(
        self,
        metrics: str | Sequence[str] = DEFAULT_METRICS,
        topk: int | Sequence[int] = (10,),
        candidates: str = "domain",
    ) -> dict[str, dict]:
        """{"per_domain": {name: values}, "macro": values, "micro": values}, where values are metrics and "rows".

        macro is the mean over the domains that have rows, micro the mean over rows. A domain without rows is listed
        with rows 0 and NaN, and left out of macro.
        """
        per_domain = {}
        for d in range(1, len(self.domain_names)):
            rows = np.flatnonzero(self.domain == d)
            per_domain[self.domain_names[d]] = {**self.metrics(metrics, topk, candidates, rows), "rows": len(rows)}
        micro = {**self.metrics(metrics, topk, candidates), "rows": len(self)}
        present = [values for values in per_domain.values() if values["rows"]]
        macro = {k: sum(values[k] for values in present) / len(present) if present else float("nan") for k in micro}
        return {"per_domain": per_domain, "macro": {**macro, "rows": len(self)}, "micro": micro}

    def by_domain(
        self,
        metrics: str | Sequence[str] = DEFAULT_METRICS,
        topk: int | Sequence[int] = (10,),
        candidates: str = "domain",
    ) -> dict[str, dict]:
        """`summary` as one flat dict: domain names, then "macro" and "micro".

        A domain that is itself called macro or micro appears as "domain:macro" or "domain:micro".
        """
        result = self.summary(metrics, topk, candidates)
        flat = {f"domain:{name}" if name in SUMMARIES else name: v for name, v in result["per_domain"].items()}
        return {**flat, **{name: result[name] for name in SUMMARIES}}

    def by_group(
        self,
        groups: np.ndarray,
        metrics: str | Sequence[str] = DEFAULT_METRICS,
        topk: int | Sequence[int] = (10,),
        candidates: str = "domain",
    ) -> dict[bool | int, dict]:
        """Metrics and "rows" for each value of `groups`, a mask or an integer array with one entry per row."""
        groups = np.asarray(groups)
        if groups.shape != (len(self),) or groups.dtype.kind not in "bui":
            raise CDSRError(f"groups must hold one truth value or whole number for each of the {len(self)} rows.")
        result = {}
        for value in np.unique(groups).tolist():
            rows = np.flatnonzero(groups == value)
            result[value] = {**self.metrics(metrics, topk, candidates, rows), "rows": len(rows)}
        return result

    def equals(self, other: RankTable) -> bool:
        """Whether every value is the same."""
        return all(np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    @classmethod
    def concat(cls, tables: Sequence[RankTable]) -> RankTable:
        """The rows of several tables, in the order given; their domain names must agree."""
        if not tables:
            raise CDSRError("There is no rank table to concatenate.")
        if any(table.domain_names != tables[0].domain_names for table in tables):
            raise CDSRError("Rank tables with different domain names cannot be concatenated.")
        columns = {name: np.concatenate([getattr(table, name) for table in tables]) for name in _COLUMNS}
        return cls(domain_names=tables[0].domain_names, **columns)

    def save(self, path: str | Path) -> None:
        """Writes an .npz without pickles; the file appears complete or not at all."""
        path = Path(path)
        columns = {name: getattr(self, name) for name in _COLUMNS}
        names = np.array(self.domain_names, dtype=str)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                np.savez_compressed(file, format=_FORMAT, domain_names=names, **columns)
        except OSError as error:
            reason = error.strerror or error
            raise CDSRError(f"cannot write {path}: {reason}; make room or choose another folder") from None

    @classmethod
    def load(cls, path: str | Path) -> RankTable:
        """Reads what `save` wrote; CDSRError if the file is missing, damaged or of a newer version."""
        if not Path(path).is_file():
            raise CDSRError(f"{path}: there is no rank table here.")
        try:
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:  # np.load skips the check of a cut array
                    raise ValueError(f"wrong checksum of {damaged}")
            with np.load(path, allow_pickle=False) as stored:
                version, names = int(stored["format"]), stored["domain_names"].tolist()
                columns = {name: stored[name] for name in _COLUMNS} if version == _FORMAT else {}
            if version == _FORMAT:
                return cls(domain_names=names, **columns)
        except Exception as error:  # a damaged archive fails in a dozen ways; each means the same to the user
            raise CDSRError(f"{path}: the rank table is damaged ({error}); evaluate again to write it anew.") from error
        raise CDSRError(f"{path}: rank table of version {version}, but this library reads {_FORMAT}; update it.")


_COLUMNS = [field.name for field in fields(RankTable) if field.name != "domain_names"]
_TYPES = {"user": str, "item": str, "switch": bool, "ties": bool, "rank_all": np.float64, "rank_domain": np.float64}
