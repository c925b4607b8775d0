"""The tables of a comparison, made once and written in any format: scores, cost, gains by transfer, settings."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from recbole_cdsr.compare.records import (
    Finished,
    by_variant,
    mean_by_row,
    metrics_of,
    require_same_events,
    seconds_per_epoch,
)
from recbole_cdsr.compare.significance import LEVEL, RESAMPLES, Comparison, against_best
from recbole_cdsr.compare.transfer import Gain, gains
from recbole_cdsr.html import Cell
from recbole_cdsr.ranks import CANDIDATE_SETS, SUMMARIES

CANDIDATES = {"domain": "items of the target's domain", "all": "all items"}
SCORES_CAPTION = (
    "Test events; mean ± deviation over seeds; best mean in bold. Marks compare with the best model of the column on "
    f"the same events, averaged over seeds: † one, ‡ both of two-sided paired bootstrap ({RESAMPLES:,} resamples) and "
    f"Wilcoxon tests have p < {LEVEL} after Holm's correction over domains x metrics. Macro and micro are not tested. "
    "All models share splits and candidates; one epoch for all domains was chosen on validation events."
)
TRANSFER_CAPTION = (
    "Trained on all domains minus trained on the domain alone, {candidates}: the same test events, mean over seeds, "
    "with the 95 % interval of a paired bootstrap over events. Events without an earlier event of their domain, which "
    "the single-domain model cannot rank, are left out: (n of m) in the head is what counted."
)
SETTINGS_CAPTION = (
    "Keys in which the models' settings differ from each other. No key was tuned by the comparison: every model ran "
    "once per seed with these. Models whose keys were searched before had a larger budget than those run as shipped."
)


@dataclass
class Table:
    """`name` is a short name for files and labels; the first column names the rows."""

    dataset: str
    name: str
    title: str
    caption: str
    head: list[str]
    rows: list[list[Cell]]


@dataclass
class Tables:
    """Everything that a report of a comparison shows; other forms (html, figures) start from here as well.

    Attributes:
        tables: in the order of a report.
        scores: one record per run, candidate set, domain (or macro, micro) and metric.
        tests: (data set, candidate set, comparison).
        gains: (data set, gain).
    """

    tables: list[Table] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    tests: list[tuple[str, str, Comparison]] = field(default_factory=list)
    gains: list[tuple[str, Gain]] = field(default_factory=list)


def make_tables(runs: list[Finished]) -> Tables:
    """All tables of finished runs, data set by data set.

    Raises:
        CDSRError: if runs on one data set did not rank the same events among the same candidates.
    """
    made = Tables()
    for dataset in dict.fromkeys(run.dataset for run in runs):
        here = [run for run in runs if run.dataset == dataset]
        whole = [run for run in here if not run.only]
        if whole:
            require_same_events(whole)
            for candidates in CANDIDATE_SETS:
                _add_scores(made, dataset, by_variant(whole), candidates)
        for candidates in CANDIDATE_SETS:
            _add_gains(made, dataset, gains(here, candidates, metrics_of(here[0])), candidates)
        made.tables += [cost_table(dataset, here), settings_table(dataset, by_variant(here))]
    return made


def _add_scores(made: Tables, dataset: str, groups: dict[str, list[Finished]], candidates: str) -> None:
    first = next(iter(groups.values()))[0]
    asked, names = metrics_of(first), first.ranks.domain_names
    scores = {v: [run.ranks.by_domain(candidates=candidates, **asked) for run in group] for v, group in groups.items()}
    for variant, group in groups.items():
        for run, summary in zip(group, scores[variant], strict=True):
            for column, values in ((name, values) for name, values in summary.items() if values["rows"]):
                place = {"dataset": dataset, "variant": variant, "seed": run.seed, "candidates": candidates}
                of = [key for key in values if key != "rows"]
                made.scores += [
                    {**place, "domain": column, "rows": values["rows"], "metric": m, "value": values[m]} for m in of
                ]
    events = {variant: mean_by_row(group, candidates, asked) for variant, group in groups.items()}
    rows_of = {name: first.ranks.domain == number for number, name in enumerate(names) if number}
    split = {
        variant: {(name, metric): values[rows] for metric, values in table.items() for name, rows in rows_of.items()}
        for variant, table in events.items()
    }
    tests = against_best(split)
    made.tests += [(dataset, candidates, test) for test in tests]
    for metric in next(iter(events.values())):
        marks = {(test.other, _column(test.domain)): test.mark for test in tests if test.metric == metric}
        made.tables.append(_score_table(dataset, candidates, metric, groups, scores, marks))


def _column(domain: str) -> str:
    """The name of a domain in `RankTable.by_domain`."""
    return f"domain:{domain}" if domain in SUMMARIES else domain


def _score_table(dataset: str, candidates: str, metric: str, groups: dict, scores: dict, marks: dict) -> Table:
    columns = [name for name, values in next(iter(scores.values()))[0].items() if values["rows"]]
    counts = {name: next(iter(scores.values()))[0][name]["rows"] for name in columns}
    means = {(v, c): statistics.fmean(one[c][metric] for one in scores[v]) for v in groups for c in columns}
    best = {column: max(means[variant, column] for variant in groups) for column in columns}
    rows = []
    for variant, group in groups.items():
        cells = [Cell(named(variant, group)), Cell(str(len(group)))]
        for column in columns:
            text = spread([one[column][metric] for one in scores[variant]])
            is_best = means[variant, column] == best[column] and len(groups) > 1
            cells.append(Cell(text, is_best, marks.get((variant, column), "")))
        rows.append(cells)
    head = ["model", "seeds", *(f"{name} ({counts[name]})" for name in columns)]
    title = f"{dataset}: {title_of(metric)}, among {CANDIDATES[candidates]}"
    return Table(dataset, f"{dataset}-{metric}-{candidates}", title, SCORES_CAPTION, head, rows)


def _add_gains(made: Tables, dataset: str, found: list[Gain], candidates: str) -> None:
    made.gains += [(dataset, gain) for gain in found]
    for metric in dict.fromkeys(gain.metric for gain in found):
        here = [gain for gain in found if gain.metric == metric]
        counts = {gain.domain: f"({gain.events} of {gain.of_events})" for gain in here}
        columns = [*filter(None, counts), *([None] if None in counts else [])]
        rows = []
        for variant in dict.fromkeys(gain.variant for gain in here):
            of = {gain.domain: gain.gain for gain in here if gain.variant == variant}
            intervals = [of.get(column) for column in columns]
            seeds = next(gain.seeds for gain in here if gain.variant == variant)
            texts = [f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]" if one else "" for one in intervals]
            rows.append([Cell(variant), Cell(str(len(seeds))), *map(Cell, texts)])
        head = ["model", "seeds", *(f"{column or 'macro'} {counts[column]}" for column in columns)]
        caption = TRANSFER_CAPTION.format(candidates=f"among {CANDIDATES[candidates]}")
        title = f"{dataset}: gain of {title_of(metric)} by training on all domains, among {CANDIDATES[candidates]}"
        made.tables.append(Table(dataset, f"{dataset}-gain-{metric}-{candidates}", title, caption, head, rows))


def cost_table(dataset: str, runs: list[Finished]) -> Table:
    """Parameters, CPU seconds of training per epoch, epochs and peak memory of every variant, means over seeds."""
    rows = []
    for label, group in by_label(runs).items():
        results = [run.result for run in group]
        per_epoch = [seconds_per_epoch(result) for result in results]
        memory = [peak / 2**20 for result in results if (peak := result.get("peak_memory_bytes"))]
        epochs = ", ".join(f"{result['epochs']} ({result['best_epoch']})" for result in results)
        texts = [label, str(len(group)), f"{results[0]['parameters']:,}", spread(per_epoch, 2), epochs]
        rows.append([Cell(text) for text in [*texts, spread(memory, 0) if memory else "-"]])
    head = ["model", "seeds", "parameters", "CPU s per epoch", "epochs (best)", "peak memory (MiB)"]
    caption = (
        "CPU seconds of training, all threads; memory is the largest resident set of the process that finished the run."
    )
    return Table(dataset, f"{dataset}-cost", f"{dataset}: cost", caption, head, rows)


def settings_table(dataset: str, groups: dict[str, list[Finished]]) -> Table:
    """The keys in which variants differ, so that a reader sees what was compared."""
    settings = {variant: group[0].settings for variant, group in groups.items()}
    left_out = {"seed", "train_domains", "model", "load_col", "train_neg_sample_args"}
    keys = [key for key in dict.fromkeys(key for one in settings.values() for key in one) if key not in left_out]
    rows = []
    for variant, own in settings.items():
        differ = [key for key in keys if key in own and any(key in s and s[key] != own[key] for s in settings.values())]
        rows.append([Cell(variant), Cell(str(own["model"])), Cell(", ".join(f"{k}: {own[k]}" for k in differ) or "-")])
    return Table(
        dataset, f"{dataset}-settings", f"{dataset}: settings", SETTINGS_CAPTION, ["model", "class", "keys"], rows
    )


def by_label(runs: list[Finished]) -> dict[str, list[Finished]]:
    """The runs of each variant, those on some domains apart from those on all."""
    groups: dict[str, list[Finished]] = {}
    for variant, group in by_variant(runs).items():
        for run in group:
            groups.setdefault(f"{variant}, {'+'.join(run.only)} only" if run.only else variant, []).append(run)
    return groups


def named(variant: str, group: list[Finished]) -> str:
    """The variant, with what it was told about its targets."""
    told = [what for what in ("domain", "time") if any(run.result.get(f"target_{what}_was_input") for run in group)]
    return f"{variant} (given the target's {' and '.join(told)})" if told else variant


def title_of(metric: str) -> str:
    """NDCG@10 for ndcg@10."""
    name, _, k = metric.partition("@")
    return f"{name.upper() if name in ('ndcg', 'mrr', 'map') else name.capitalize()}@{k}"


def spread(values: list[float], digits: int = 4) -> str:
    """Mean, and sample deviation where there are several values."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
