"""How the balance of objectives went over training: losses, weights, gradients, attention across domains.

Ju et al. (KDD 2025, arXiv 2505.21811) balance a_cd against recommendation; this shows how far it went, and where.
Trains fixed weights, whose gradients are recorded too, and dynamic strategies. With --run it trains nothing, and
reads what run folders hold (history.csv, and transfer.csv of models with a record of attention).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

from recbole_cdsr import plots
from recbole_cdsr.checkpoint import write_bytes
from recbole_cdsr.compare.figures import training
from recbole_cdsr.curves import MOST_RUNS_WITH_MAPS, drawn_columns, maps_of, panels_of
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.files import make_folder
from recbole_cdsr.run_records import RunRecord, mean, read_runs, record_of
from recbole_cdsr.study import STUDIES
from recbole_cdsr.study.planned import Answer, Groups, Study, difference, told
from recbole_cdsr.study.trajectory_summary import markdown, summary

DEFAULT_FOLDER = "trajectory"
CHOSEN = "fixed 0.02"  # the default weight
DYNAMIC = ("preference", "mgda", "pareto")
ANGLES = ("angle_rec", "angle_cross_domain")


def main(arguments: list[str]) -> int:
    """`recbole-cdsr study trajectory`, of runs that are there (--run), or of runs that it trains."""
    reads = any(one.split("=")[0] == "--run" for one in arguments)
    return read(arguments) if reads else STUDY.main(arguments)


def read(arguments: list[str]) -> int:
    """Draws runs that are there; returns 0, raises CDSRError for what a user can mend."""
    parser = argparse.ArgumentParser(
        prog="recbole-cdsr study trajectory --run DIR",
        description=f"Shows {STUDIES['trajectory']}. Nothing is trained; interrupted runs work too.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, nargs="+", action="extend", metavar="DIR", help="folders of runs")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for png, svg, csv and md (default: DIR/trajectory of one run, runs/trajectory of several)",
    )
    parser.add_argument("--json", action="store_true", help="print only the numbers, for other programs")
    options = parser.parse_args(arguments)
    records = read_runs(options.run)
    folder = Path(options.out or (Path(options.run[0]) if len(records) == 1 else Path("runs")) / DEFAULT_FOLDER)
    report = write_report(records, folder)
    if options.json:
        print(json.dumps(report, indent=1, allow_nan=False))
    else:
        print("\n".join(sentence for run in report["runs"] for sentence in [f"{run['run']}:", *run["sentences"]]))
        print(f"\nwritten: {', '.join(report['files'])}")
    return 0


def write_report(records: list[RunRecord], folder: Path) -> dict[str, Any]:
    """Writes the four files into `folder`; returns their paths and each run's numbers and sentences.

    Raises:
        CDSRError: if there is nothing to draw, matplotlib is missing, or the folder cannot be written.
    """
    panels = panels_of(records)
    few = len(records) <= MOST_RUNS_WITH_MAPS
    maps = {record.name: maps_of(record) for record in records if few and record.transfer}
    if not panels:
        raise CDSRError(
            f"{records[0].folder} holds nothing to draw: its history has no loss, weight, gradient or validation score"
        )
    title, subtitle = _titles(records)
    marked = [record.best_epoch for record in records]
    files = plots.draw(plots.Figure(title, subtitle, [record.name for record in records], marked, panels, maps))
    runs = [summary(record, drawn_columns(record)) for record in records]
    files |= {"csv": table(records), "md": markdown(runs).encode()}
    make_folder(folder)
    paths = {kind: folder / f"trajectory.{kind}" for kind in files}
    for kind, content in files.items():
        write_bytes(paths[kind], content)
    return {"files": [str(path) for path in paths.values()], "runs": runs}


def _titles(records: list[RunRecord]) -> tuple[str, str]:
    """What stands above the figure: what was trained, and how to read the dotted lines."""
    dotted = "dotted: the best epoch" if any(record.best_epoch is not None for record in records) else "no validation"
    if len(records) > 1:
        return "Balance of objectives over training", f"{len(records)} runs; {dotted} of each"
    keys = records[0].settings
    trained = f": {keys['model']} on {keys['dataset']}" if {"model", "dataset"} <= keys.keys() else ""
    weighting = f"; objective_weighting: {keys['objective_weighting']}" if keys.get("objective_weighting") else ""
    return f"Balance of objectives over training{trained}", f"run {records[0].name}{weighting}; {dotted}"


def table(records: list[RunRecord]) -> bytes:
    """All that the figure is drawn from, one value per line, as csv; numbers as exact as in the run's own files."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "epoch", "quantity", "query_domain", "key_domain", "value"])
    for record in records:
        for column in drawn_columns(record):
            writer.writerows([record.name, e, column, "", "", value] for e, value in record.history[column].items())
        for pair, points in record.transfer.items():
            writer.writerows([record.name, epoch, "share", *pair, value] for epoch, value in points.items())
    return text.getvalue().encode()


def analyse(groups: Groups, metric: str) -> Answer:
    sentences = []
    for variant, runs in groups.items():
        records = [record_of(run.folder) for run in runs]
        seen = {name: _over_runs(records, name) for name in ("cosine", "conflict", *ANGLES)}
        if None not in seen.values():
            sentences.append(
                f"{variant}: the cosine between both gradients is {seen['cosine']:+.2f} on average, below 0 in "
                f"{100 * seen['conflict']:.0f} % of steps; the step stands {seen[ANGLES[0]]:.0f} degrees from the "
                f"gradient of recommendation and {seen[ANGLES[1]]:.0f} from that of a_cd."
            )
    sentences += [
        told(f"{name} minus {CHOSEN}, macro", difference(groups, name, CHOSEN, metric))
        for name in ("fixed 0", *DYNAMIC)
    ]
    return Answer(sentences, lambda: training(groups)[0].files)


def _over_runs(records: list[RunRecord], column: str) -> float | None:
    """Mean over epochs, then over runs; None if a run lacks it."""
    points = [record.history.get(column) for record in records]
    return statistics.fmean(mean(one) for one in points) if all(points) else None


STUDY = Study(
    "trajectory",
    STUDIES["trajectory"],
    {
        **{
            f"fixed {weight:g}": {
                "model": "AutoCDSR",
                "objective_weighting": "fixed",
                "cross_domain_weight": weight,
                "record_gradients": True,
            }
            for weight in (0.0, 0.02, 1.0)
        },
        **{name: {"model": "AutoCDSR", "objective_weighting": name} for name in DYNAMIC},
    },
    analyse,
    note="With --run DIR [DIR ...] nothing is trained: runs that are there are drawn.",
)
