"""The numbers of a run's training in a small table, and two sentences written from them."""

from __future__ import annotations

import re
from typing import Any

from recbole_cdsr.run_records import Points, RunRecord, arrow, largest_pairs, mean, valid_metric

SHARES_OF_STEPS = ("conflict", "clipped", "skipped")


def summary(record: RunRecord, columns: list[str]) -> dict[str, Any]:
    """First, best, last and mean value of the `columns` and the largest pairs of domains, and two sentences.

    First and last are those of the epochs with a value; best is None where the best epoch has none.
    """
    quantities = {column: record.history[column] for column in columns}
    quantities |= {f"share {arrow(pair)}": record.transfer[pair] for pair in largest_pairs([record])}
    return {
        "run": record.name,
        "epochs": len(record.epochs),
        "best_epoch": record.best_epoch,
        "quantities": {name: _key_values(points, record.best_epoch) for name, points in quantities.items()},
        "sentences": [_what_moved(record), _what_clashed(record)],
    }


def _key_values(points: Points, best: int | None) -> dict[str, float | None]:
    values = list(points.values())
    return {"first": values[0], "best": points.get(best), "last": values[-1], "mean": mean(points)}


def markdown(runs: list[dict[str, Any]]) -> str:
    """The summaries of runs as one document with a table for each."""
    lines = ["# Balance of objectives over training", "", "![losses, weights and attention](trajectory.png)"]
    for run in runs:
        best = "best epoch" if run["best_epoch"] is None else f"best epoch ({run['best_epoch']})"
        lines += ["", f"## {_escaped(run['run'])}", "", *map(_escaped, run["sentences"]), ""]
        lines += [f"| quantity | first | {best} | last | mean over epochs |", "| --- | ---: | ---: | ---: | ---: |"]
        for name, values in run["quantities"].items():
            share = name in SHARES_OF_STEPS or name.startswith("share ")
            cells = [
                "-" if value is None else f"{100 * value:.1f} %" if share else f"{value:.4g}"
                for value in values.values()
            ]
            lines.append("| " + " | ".join([_escaped(name), *cells]) + " |")
    return "\n".join(lines) + "\n"


def _what_moved(record: RunRecord) -> str:
    score = f"the validation score ({valid_metric([record])}, mean over domains)"
    named = {"loss_cross_domain": "a_cd", "valid_score": score, "loss_rec": "the recommendation loss"}
    parts = [
        f"{name} {_moved(record.history[column], record.best_epoch)}"
        for column, name in named.items()
        if column in record.history
    ]
    return _sentence(parts[:2] or ["neither a_cd nor a validation score was recorded"])


def _moved(points: Points, best: int | None) -> str:
    """`fell from 0.62 (epoch 0) to 0.53 by the best epoch (12)`, for whatever the points say."""
    first, last = min(points), max(points)
    end, where = (best, "the best epoch") if best in points else (last, "the last epoch")
    before, after = f"{points[first]:.3g}", f"{points[end]:.3g}"
    if end == first:
        return f"was {after} in {where} ({end}), the first one recorded"
    if before == after:
        return f"was {after} in epoch {first} and in {where} ({end})"
    verb = "fell" if points[end] < points[first] else "rose"
    return f"{verb} from {before} (epoch {first}) to {after} by {where} ({end})"


def _what_clashed(record: RunRecord) -> str:
    history, parts = record.history, []
    if "conflict" in history:
        rate = _percent(mean(history["conflict"]))
        of_pairs, of_steps = (
            f"{rate} of pairs of gradients were in conflict",
            f"gradients were in conflict in {rate} of steps",
        )
        parts.append(of_pairs if "cosine_min" in history else of_steps)
    elif "cosine" in history:
        points = history["cosine"]
        negative = sum(value < 0 for value in points.values())
        parts.append(f"the mean cosine between gradients was below 0 in {negative} of {len(points)} epochs")
    else:
        return "Gradients were not compared, so there is no rate of conflicts."
    if "clipped" in history:
        what = "the factor was" if "factor" in history else "weights were"
        parts.append(f"{what} clipped in {_percent(mean(history['clipped']))} of steps")
    if "skipped" in history and any(history["skipped"].values()):
        parts.append(f"balancing was skipped in {_percent(mean(history['skipped']))} of steps")
    return _sentence(parts)


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts) + "."
    return text if text.startswith("a_cd") else text[0].upper() + text[1:]


def _percent(share: float) -> str:
    """Whole percents from 10 % on, tenths below; a share that is not 0 never reads as 0."""
    if 0 < share < 0.0005:
        return "below 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def _escaped(text: str) -> str:
    """Without signs that end a cell or a line of a markdown table, or start a tag."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    return re.sub(r"([\\|`*<\[\]])", r"\\\1", text)
