"""The report of a comparison: one html page that works anywhere, and its figures as files."""

from __future__ import annotations

from pathlib import Path

from recbole_cdsr import html, plots
from recbole_cdsr.checkpoint import write_bytes
from recbole_cdsr.compare.plan import file_name
from recbole_cdsr.compare.records import Finished
from recbole_cdsr.compare.tables import Table, Tables, named
from recbole_cdsr.files import make_folder

REPORT, FIGURES = "report.html", "figures"
FAIR = (
    "All models share the splits, the candidates (every item, none sampled) and the events that are ranked.",
    "Epochs were chosen on validation events only, one epoch for all domains.",
    "No key was tuned by the comparison; the tables of settings show where models differ.",
)


def write(runs: list[Finished], tables: Tables, folder: Path) -> list[Path]:
    """Writes report.html, and figures/ where matplotlib is installed.

    Args:
        runs: finished, of any data sets.
        tables: those of the runs.
        folder: exists.

    Returns:
        the files.
    """
    written, parts = [], [*_head(runs)]
    for dataset in dict.fromkeys(run.dataset for run in runs):
        parts.append(html.heading(dataset))
        here = [table for table in tables.tables if table.dataset == dataset]
        parts.append(_table(here[0]))
        whole = [run for run in runs if run.dataset == dataset and not run.only]
        pictures, files = _figures(whole, [gain for name, gain in tables.gains if name == dataset], folder, dataset)
        written += files
        parts += [*pictures, html.heading("More tables", 3), *map(_table, here[1:])]
    path = folder / REPORT
    write_bytes(path, html.page("Comparison of models", parts).encode())
    return [path, *written]


def _head(runs: list[Finished]) -> list[str]:
    """What was compared, under which conditions."""
    found = [run.result.get("environment") or {} for run in runs]
    told = {named(run.variant, [run]) for run in runs} - {run.variant for run in runs}
    facts = {
        "models": [run.variant for run in runs],
        "data sets": [run.dataset for run in runs],
        "seeds": [run.seed for run in runs],
        "commits": [one.get("commit") for one in found],
        "versions": [", ".join(f"{k} {v}" for k, v in (one.get("versions") or {}).items()) for one in found],
        "python": [one.get("python") for one in found],
        "dates": [str(one.get("date") or "")[:10] for one in found],
    }
    shown = {name: ", ".join(dict.fromkeys(str(value) for value in values if value)) for name, values in facts.items()}
    warned = f"Told about their targets, so to be compared inside domains only: {', '.join(sorted(told))}."
    return [
        html.listing([f"{name}: {text}" for name, text in shown.items() if text]),
        html.heading("Fair by construction", 3),
        html.listing([*FAIR, *([warned] if told else ["No model was told the domain or the time of its target."])]),
        html.paragraph("Click on the head of a column to sort by it."),
        html.heading("Commands", 3),
        html.listing(list(dict.fromkeys(one["command"] for one in found if one.get("command")))[:10]),
    ]


def _table(table: Table) -> str:
    return html.heading(table.title, 3) + html.table(table.head, table.rows, table.caption)


def _figures(whole: list[Finished], gains: list, folder: Path, dataset: str) -> tuple[list[str], list[Path]]:
    """The pictures of a data set as html, and the files that hold them."""
    if not whole:
        return [html.paragraph("No figures: no model was trained on all domains.")], []
    if not plots.available():
        return [html.paragraph(plots.NO_FIGURES)], []
    from recbole_cdsr.compare.figures import figures

    pictures, files = [], []
    for one in figures(whole, gains):
        for kind, content in one.files.items():
            path = folder / FIGURES / f"{file_name(dataset)}-{one.name}.{kind}"
            make_folder(path.parent)
            write_bytes(path, content)
            files.append(path)
        pictures.append(html.figure(one.files["svg"], one.title, one.caption))
    if not gains:
        pictures.append(html.paragraph("No figure of transfer: it needs runs on single domains (single_domain)."))
    return pictures, files
