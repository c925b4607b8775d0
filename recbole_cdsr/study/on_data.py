"""Studies that change the data: the same variants are trained on several forms of one data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_cdsr.compare.plan import Cell
from recbole_cdsr.compare.records import Finished, by_variant
from recbole_cdsr.study.planned import Answer, Study, domains_of

DATA = "data"  # folder of the forms, among the runs


@dataclass(frozen=True, kw_only=True)
class DataStudy(Study):
    """
    forms: name of a data set -> names of its forms, each ending in - and a number; CDSRError for one it cannot change.
    build: (name of the data set, keys, form, folder that gets the form's folder) writes a form, if it is not there.
    analyse: ({number of a form: its variants with their runs}, metric) -> answer.
    """

    forms: Callable[[str], list[str]]
    build: Callable[[str, dict[str, Any], str, Path], None]

    def cells(self, dataset: str, seeds: list[int], keys: dict[str, Any], runs: Path) -> list[Cell]:
        own = {**keys, "data_path": str(runs / DATA)}
        plan = self.plan(self.forms(dataset), seeds, own)
        domains = domains_of(self.plan([dataset], seeds, keys), dataset) if self.alone else []
        return plan.cells(lambda name: domains)

    def make_data(self, dataset: str, keys: dict[str, Any], runs: Path) -> None:
        for form in self.forms(dataset):
            self.build(dataset, keys, form, runs / DATA)

    def answer(self, runs: list[Finished], metric: str) -> Answer:
        forms = dict.fromkeys(sorted(map(number_of, {run.dataset for run in runs})))
        return self.analyse({n: by_variant(run for run in runs if number_of(run.dataset) == n) for n in forms}, metric)


def number_of(form: str) -> int:
    """The number at the end of a form's name."""
    return int(form.rpartition("-")[2])
