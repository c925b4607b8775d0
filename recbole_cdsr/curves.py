"""Curves of runs over epochs, and maps of attention between domains: panels and maps for `plots`."""

from __future__ import annotations

import math
import re

from recbole_cdsr import plots
from recbole_cdsr.run_records import Points, RunRecord, arrow, largest_pairs, valid_metric

MOST_RUNS_WITH_MAPS = 3
# Title, unit, scale, and which columns of history.csv belong there; the group is what the legend calls them.
PANELS = (
    ("Losses", "loss (nats)", "linear", r"loss_(?!cross_domain$)(.+)"),
    ("Attention across domains (a_cd)", "share of attention", "share", r"loss_(cross_domain)"),
    ("Validation score", "{metric} (mean of domains)", "linear", r"valid_(score)"),
    ("Weights of the objectives", "multiplier of the loss", "linear", r"weight_(.+)|(factor)"),
    ("Cosine between gradients", "cosine (-1 to 1)", "linear", r"(cosine|cosine_min)"),
    ("Angle between gradients and the step", "degrees (above 90: against it)", "linear", r"angle_(.+)"),
    ("Conflicts and exceptions", "share of steps", "share", r"(conflict|clipped|skipped)"),
    ("Norms of the gradients", "L2 norm (log scale)", "log", r"gradient_norm_(.+)"),
    ("Validation score by domain", "{metric}", "linear", r"valid_[a-z]+@\d+_(?!macro$|micro$)(.+)"),
)


def panels_of(records: list[RunRecord]) -> list[plots.Panel]:
    """The panels that have at least one line."""
    metric = valid_metric(records)
    panels = []
    for title, unit, scale, pattern in PANELS:
        lines = [
            line
            for number, record in enumerate(records)
            for column, points in record.history.items()
            if (match := re.fullmatch(pattern, column))
            and (line := _line(match[match.lastindex], number, points, scale == "log"))
        ]
        if lines:
            panels.append(plots.Panel(title, unit.format(metric=metric), lines, scale))
    pairs = largest_pairs(records, plots.MOST_LINES)
    lines = [
        plots.Line(arrow(pair), number, list(points), list(points.values()))
        for number, record in enumerate(records)
        for pair in pairs
        if (points := record.transfer.get(pair))
    ]
    if lines:
        panels.append(plots.Panel("Attention on another domain", "share of attention", lines, "share"))
    return panels


def drawn_columns(record: RunRecord) -> list[str]:
    """The columns of history.csv that some panel shows, panel by panel."""
    patterns = [pattern for *_, pattern in PANELS]
    return [column for pattern in patterns for column in record.history if re.fullmatch(pattern, column)]


def _line(label: str, run: int, points: Points, positive: bool) -> plots.Line | None:
    """A line through the points, on a log scale through the positive ones; None if there is none."""
    kept = {epoch: value for epoch, value in points.items() if value > 0 or not positive}
    return plots.Line(label, run, list(kept), list(kept.values())) if kept else None


def maps_of(record: RunRecord) -> list[plots.ShareMap]:
    """Attention between all pairs of domains at the first, the best and the last epoch with a record."""
    epochs = sorted({epoch for points in record.transfer.values() for epoch in points})
    roles: dict[int, list[str]] = {}
    for role, epoch in (("first", epochs[0]), ("best", record.best_epoch), ("last", epochs[-1])):
        if epoch in epochs:
            roles.setdefault(epoch, []).append(role)
    return [
        plots.ShareMap(f"epoch {epoch} ({', '.join(names)})", record.domains, _shares(record, epoch))
        for epoch, names in sorted(roles.items())
    ]


def _shares(record: RunRecord, epoch: int) -> list[list[float]]:
    names = record.domains
    return [[record.transfer.get((query, key), {}).get(epoch, math.nan) for key in names] for query in names]
