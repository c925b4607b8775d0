"""What came of a search: a table of trials, best.yaml, the test of the best trial, a report."""

from __future__ import annotations

import csv
import datetime
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recbole_cdsr import html, plots, quick_start
from recbole_cdsr.checkpoint import write_bytes
from recbole_cdsr.config import plain
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.run_folder import config_of
from recbole_cdsr.tune.plan import Search
from recbole_cdsr.tune.space import active
from recbole_cdsr.tune.trial import ENDED, EPOCH, ERROR, SCORE, folder_of

TRIALS, BEST_CONFIG, REPORT = "trials.csv", "best.yaml", "report.html"
MOST_LISTED = 10  # trials on the terminal


@dataclass(frozen=True)
class Trial:
    """One trial at its end; `error` is empty where all went well, `seconds` are those of its process.

    ended: last epoch, no improvement, failed, or the scheduler that stopped it.
    """

    name: str
    point: dict[str, Any]
    score: float
    epochs: int
    seconds: float
    ended: str
    error: str


def trials_of(grid: Any, search: Search) -> list[Trial]:
    """All trials, best first; those with an error last.

    Args:
        grid: Ray's ResultGrid.
    """
    found = []
    for result in grid:
        metrics = result.metrics or {}
        error = metrics.get(ERROR) or ("its process died too often" if result.error else "")
        point = active(result.config.get("point", result.config), search.space)
        name, seconds = Path(result.path).name, float(metrics.get("time_total_s", 0.0))
        ended = "failed" if error else metrics.get(ENDED) or search.scheduler
        score, epochs = float(metrics.get(SCORE, 0.0)), int(metrics.get(EPOCH, 0))
        found.append(Trial(name, point, score, epochs, seconds, ended, error))
    return sorted(found, key=lambda trial: (bool(trial.error), -trial.score))


def write_best(best: Trial, search: Search, out: Path) -> Path:
    """The settings of the best trial, with its number of epochs: a run of them gives its validation score again."""
    config, _ = config_of(folder_of(out, best.name), {})
    settings = {**plain(config), "epochs": best.epochs, "show_progress": True}
    head = (
        f"# {datetime.date.today()}: {search.command}\n# Trial {best.name}: validation score {best.score:.6f} after "
        f"{best.epochs} epochs, {search.cpus_per_trial:g} threads. Run it again, with the test:\n"
        f"#   recbole-cdsr run --config_files {out / BEST_CONFIG}\n"
    )
    path = out / BEST_CONFIG
    write_bytes(path, (head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)).encode())
    return path


def test_best(best: Trial, out: Path) -> dict[str, Any]:
    """Ranks the test events with the best weights of the best trial: the only time that a search looks at them."""
    folder = folder_of(out, best.name)
    return quick_start.conclude(quick_start.load(folder), folder)


def as_csv(trials: list[Trial], keys: list[str]) -> bytes:
    """A line for each trial."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", SCORE, "epochs", "seconds", ENDED, *keys, ERROR])
    for trial in trials:
        values = [trial.point.get(key, "") for key in keys]
        writer.writerow(
            [trial.name, trial.score, trial.epochs, round(trial.seconds, 1), trial.ended, *values, trial.error]
        )
    return text.getvalue().encode()


def write(trials: list[Trial], search: Search, out: Path, result: dict[str, Any], best_file: Path) -> list[Path]:
    """Writes trials.csv and report.html, with figures where matplotlib is installed; returns the files."""
    keys = list(search.space)
    write_bytes(out / TRIALS, as_csv(trials, keys))
    rows = [
        [html.Cell(one.name, bold=number == 0), html.Cell(f"{one.score:.4f}"), html.Cell(str(one.epochs))]
        + [
            html.Cell(f"{one.seconds:.0f}"),
            html.Cell(one.ended),
            *(html.Cell(_shown(one.point.get(key, "-"))) for key in keys),
        ]
        + [html.Cell(one.error or "-")]
        for number, one in enumerate(trials)
    ]
    head = ["trial", f"validation {search.config({})['valid_metric']}", "epochs", "seconds", ENDED, *keys, "error"]
    parts = [
        html.listing(
            [
                f"command: {search.command}",
                f"scheduler: {search.scheduler}, search: {search.search}",
                spent(trials, search),
            ]
        ),
        html.paragraph(
            "Trials are compared on validation events; the test events were ranked once, by the best trial:"
        ),
        html.preformatted(result["table"]),
        html.paragraph(f"Its settings are in {best_file.name}."),
        html.heading("Trials"),
        html.table(head, rows, "Best first. Click on the head of a column to sort by it."),
    ]
    good = [trial for trial in trials if not trial.error]
    if not plots.available():
        parts.append(html.paragraph(plots.NO_FIGURES))
    elif len(good) > 1:
        from recbole_cdsr.tune.figures import importance, parallel

        parts.append(html.heading("Figures"))
        parts += [html.figure(*drawn) for drawn in (parallel(good, keys), importance(good, keys)) if drawn]
    write_bytes(out / REPORT, html.page(f"Search: {search.model} on {search.dataset}", parts).encode())
    return [out / TRIALS, out / REPORT]


def spent(trials: list[Trial], search: Search) -> str:
    """How many epochs were trained, how many trials the scheduler stopped, and what that can have saved at most."""
    longest = search.config({})["epochs"]
    stopped = [trial for trial in trials if trial.ended == search.scheduler]
    saved = sum(longest - trial.epochs for trial in stopped)
    total, failed = sum(trial.epochs for trial in trials), sum(bool(trial.error) for trial in trials)
    text = f"{len(trials)} trials, {total} epochs in all; "
    text += f"{search.scheduler} stopped {len(stopped)} trials and saved at most {saved} epochs"
    return f"{text}; {failed} failed" if failed else text


def listed(trials: list[Trial], search: Search) -> str:
    """The best trials as a text table."""
    lines = [["trial", "score", "epochs", "ended", *search.space]]
    for one in trials[:MOST_LISTED]:
        keys = [_shown(one.point.get(key, "-")) for key in search.space]
        lines.append([one.name, f"{one.score:.4f}", str(one.epochs), one.ended, *keys])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    more = len(trials) - MOST_LISTED
    return "\n".join([*text, *([f"and {more} more in {TRIALS}"] if more > 0 else [])])


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def best_of(trials: list[Trial]) -> Trial:
    """The best trial; CDSRError if all failed."""
    if not trials or trials[0].error:
        why = f" ({trials[0].error})" if trials else ""
        raise CDSRError(f"no trial came to an end{why}; correct the space or the keys, and start a new search")
    return trials[0]
