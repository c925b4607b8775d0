"""Studies that train what they need: a question, variants of models, and an answer from their test events.

Runs are those of `compare`, each in a folder named by its settings, so that studies share runs: what one has trained
is there for the next. A study writes `study.md` (question, what was found, table), its figure, and the tables and
report of a comparison of its variants.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_cdsr import plots
from recbole_cdsr.checkpoint import write_bytes
from recbole_cdsr.compare import command, formats, report
from recbole_cdsr.compare.plan import TAKEN, Cell, Plan, make_plan, refuse_taken
from recbole_cdsr.compare.records import Finished, asked_for, by_variant, main_metric, mean_by_row, read_finished
from recbole_cdsr.compare.significance import Interval, bootstrap
from recbole_cdsr.compare.tables import make_tables
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.files import make_folder
from recbole_cdsr.quick_start import prepare
from recbole_cdsr.yaml_values import parse_keys

RUNS = "runs/studies"
LONGEST_NAME = 100  # characters of a run's name; a longer one ends in a hash
# Studies look at many runs: each stops sooner than a run of its own would.
KEYS = {"stopping_step": 5}

Groups = dict[str, list[Finished]]  # variant -> its runs


@dataclass(frozen=True)
class Answer:
    """What a study found: sentences, and its figure by kind of file, if it draws one."""

    sentences: list[str]
    draw: Callable[[], dict[str, bytes]] | None = None


@dataclass(frozen=True)
class Study:
    """
    variants: name -> keys, among them `model`.
    analyse: (variant -> runs, metric such as ndcg@10) -> answer.
    alone: variants that are trained on each domain alone too; their runs come along, with `only` set.
    note: what --help says besides.
    """

    name: str
    question: str
    variants: dict[str, dict[str, Any]]
    analyse: Callable[[Groups, str], Answer]
    alone: tuple[str, ...] = ()
    note: str = ""

    def main(self, argv: list[str]) -> int:
        """`recbole-cdsr study NAME`; returns 0, 1 if a run failed, 130 after Ctrl-C."""
        options, keys = self._options(argv)
        out, runs = Path(options.out or f"runs/study-{self.name}"), Path(options.runs)
        refuse_taken(keys, (*TAKEN, "model"), "the study's", "use --dataset and --seeds, or leave it out")
        keys = {**KEYS, **keys}
        cells = self.cells(options.dataset, options.seeds, keys, runs)
        if options.dry_run:
            return command.show(cells, runs, options.jobs)
        self.make_data(options.dataset, keys, runs)
        make_folder(out)
        failed = command.train(cells, runs, options.jobs)
        if failed is None:
            return 130
        if failed:
            return command.status_of(failed, cells)
        called = {name: variant for variant, name in self.run_names(options.dataset, keys).items()}
        found = read_finished([runs / cell.name for cell in cells])
        found = [replace(run, variant=called[run.variant]) for run in found]
        print(self.write(found, out))
        return 0

    def run_names(self, dataset: str, keys: dict[str, Any]) -> dict[str, str]:
        """Variant -> what its runs are called in their shared folder."""
        return {variant: run_name({**keys, **own}, dataset) for variant, own in self.variants.items()}

    def plan(self, datasets: list[str], seeds: list[int], keys: dict[str, Any]) -> Plan:
        """All variants on all data sets, with checked settings."""
        names = self.run_names(datasets[0], keys)
        if len(set(names.values())) < len(names):
            raise CDSRError(f"two variants of the study {self.name} are the same with these keys; leave the keys out")
        models = {names[variant]: own for variant, own in self.variants.items()}
        single = [names[variant] for variant in self.alone]
        content = {"models": models, "datasets": datasets, "seeds": seeds, "keys": keys, "single_domain": single}
        plan = make_plan(content)
        for variant in plan.models:
            command.checked_config(plan, datasets[0], variant)
        return plan

    def cells(self, dataset: str, seeds: list[int], keys: dict[str, Any], runs: Path) -> list[Cell]:
        """The runs of the study; checks all settings."""
        plan = self.plan([dataset], seeds, keys)
        return plan.cells(lambda name: domains_of(plan, name))

    def make_data(self, dataset: str, keys: dict[str, Any], runs: Path) -> None:
        """Builds a data set that is built in, here, since several runs would do so at the same time."""
        config = CDSRConfig(next(iter(self.variants.values()))["model"], dataset, config_dict=keys)
        command.make_data(config)

    def answer(self, runs: list[Finished], metric: str) -> Answer:
        return self.analyse(by_variant(runs), metric)

    def write(self, runs: list[Finished], out: Path) -> str:
        """Writes everything; returns the text of study.md."""
        metric, tables = main_metric(runs[0]), make_tables(runs)
        formats.write(tables, out)
        report.write(runs, tables, out)
        answer = self.answer(runs, metric)
        seeds = sorted({run.seed for run in runs})
        found = [f"- {sentence}" for sentence in answer.sentences]
        lines = [f"# {self.question[0].upper()}{self.question[1:]}", "", *found, ""]
        if answer.draw and plots.available():
            for kind, content in answer.draw().items():
                write_bytes(out / f"{self.name}.{kind}", content)
            lines += [f"![{self.question}]({self.name}.svg)", ""]
        lines += [f"Seeds {', '.join(map(str, seeds))}. All tables and figures: report.html.", ""]
        by_dataset = [[t for t in tables.tables if t.dataset == d] for d in dict.fromkeys(run.dataset for run in runs)]
        shown = [table for own in by_dataset for table in (own[0], *own[-2:])]
        text = "\n".join(lines) + "\n" + "\n".join(map(formats.markdown, shown))
        write_bytes(out / "study.md", text.encode())
        return text + f"\nwritten: {out / 'study.md'}, {out / 'report.html'}"

    def _options(self, argv: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
        parser = argparse.ArgumentParser(
            prog=f"recbole-cdsr study {self.name}",
            description=self.question,
            epilog=f"Any other --key value holds for all runs. The same command goes on where it stopped. {self.note}",
            allow_abbrev=False,
        )
        parser.add_argument("-d", "--dataset", default="ml-100k", help="name of a data set (default: ml-100k)")
        parser.add_argument(
            "--seeds", type=command.seeds_of, default=[1], help="whole numbers, separated by commas (default: 1)"
        )
        parser.add_argument("--out", metavar="DIR", help=f"folder of the answer (default: runs/study-{self.name})")
        parser.add_argument("--runs", default=RUNS, metavar="DIR", help=f"folder of the runs, shared (default: {RUNS})")
        parser.add_argument(
            "--jobs", type=int, default=1, help="runs at the same time, which share the cores (default: 1)"
        )
        parser.add_argument("--dry_run", action="store_true", help="list the runs, and train nothing")
        options, rest = parser.parse_known_args(argv)
        if options.jobs < 1:
            raise CDSRError(f"--jobs must be at least 1, but is {options.jobs}")
        return options, parse_keys(rest)


def domains_of(plan: Plan, dataset: str) -> list[str]:
    """Names of the domains of a data set."""
    config = command.checked_config(plan, dataset, next(iter(plan.models)))
    return prepare(config)[0].true_domain_names[1:]


def run_name(keys: dict[str, Any], dataset: str) -> str:
    """The name of a run by its settings, those at their defaults left out: equal settings, equal names."""
    defaults = CDSRConfig(str(keys["model"]), dataset).final_config_dict
    rest = {key: value for key, value in sorted(keys.items()) if key not in ("model", "data_path")}
    name = ",".join([str(keys["model"]), *(f"{k}={v}" for k, v in rest.items() if defaults.get(k, v is None) != v)])
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def difference(groups: Groups, one: str, two: str, metric: str, domain: int | None = None) -> Interval:
    """Variant one minus variant two on the same test events, mean over seeds, with a bootstrap interval over events.

    Args:
        domain: number of a domain; None: the mean over domains.
    """
    values = [mean_by_row(groups[name], "domain", asked_for(metric))[metric] for name in (one, two)]
    of = groups[one][0].ranks.domain
    wanted = [domain] if domain else np.unique(of).tolist()
    return bootstrap([(values[0] - values[1])[of == number] for number in wanted])


def chosen_by_validation(groups: Groups, names: Iterable[str]) -> str:
    """The variant with the best mean validation score."""
    return max(names, key=lambda name: statistics.fmean(run.result["valid_score"] for run in groups[name]))


def told(what: str, interval: Interval) -> str:
    """A difference in words that claim no more than its interval."""
    span = f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    if interval.low > 0 or interval.high < 0:
        return f"{what}: {span}."
    return f"{what}: {span}, within noise."
