"""A rank table as a text table for the terminal, as markdown, and as plain numbers for result.json."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from recbole_cdsr.ranks import CANDIDATE_SETS, DEFAULT_METRICS, SUMMARIES, RankTable, metric_keys

PAGE_WIDTH = 100
_NAME_WIDTHS = (12, 40)  # least and most columns for the names of domains
_TITLES = {"domain": "items of the domain", "all": "all items"}
_SPELLING = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP"}


def result_dict(
    ranks: RankTable, metrics: str | Sequence[str] = DEFAULT_METRICS, topk: int | Sequence[int] = (10,)
) -> dict:
    """{"candidates": {"domain" and "all": {"per_domain", "macro", "micro"}}, "rows": {"total", "per_domain", "ties"}}.

    Only plain dicts, ints and floats, ready for json. The metrics of a domain without rows are None. "ties" counts the
    rows whose target shares its score with another item: more than a few point to a collapsed model.
    """
    keys = [key for key, _, _ in metric_keys(metrics, topk)]
    candidates = {}
    for which in CANDIDATE_SETS:
        summary = ranks.summary(metrics, topk, which)
        per_domain = {name: _numbers(values, keys) for name, values in summary["per_domain"].items()}
        candidates[which] = {"per_domain": per_domain, **{name: _numbers(summary[name], keys) for name in SUMMARIES}}
    rows = {name: values["rows"] for name, values in summary["per_domain"].items()}
    return {"candidates": candidates, "rows": {"total": len(ranks), "per_domain": rows, "ties": int(ranks.ties.sum())}}


def table(ranks: RankTable, metrics: str | Sequence[str] = DEFAULT_METRICS, topk: int | Sequence[int] = (10,)) -> str:
    """A fixed-width table: one line per domain, then macro and micro; metrics for `domain`, then for `all`.

    It fits 100 columns with up to three metrics at one k, and is wider with more.
    """
    head, body = _cells(ranks, metrics, topk)
    everything, per_set = [head, *body], (len(head) - 2) // len(CANDIDATE_SETS)
    widths = [max(_width(cells[column]) for cells in everything) for column in range(len(head))]
    groups = [range(2 + n * per_set, 2 + (n + 1) * per_set) for n in range(len(CANDIDATE_SETS))]
    spans = [
        max(len(_TITLES[which]), sum(widths[column] + 2 for column in group) - 2)
        for which, group in zip(CANDIDATE_SETS, groups, strict=True)
    ]
    room = PAGE_WIDTH - 2 - widths[1] - sum(span + 3 for span in spans)
    name_width = min(widths[0], max(_NAME_WIDTHS[0], min(_NAME_WIDTHS[1], room)))

    def line(cells: list[str]) -> str:
        parts = ["  ".join(cells[column].rjust(widths[column]) for column in group) for group in groups]
        parts = [part.rjust(span) for part, span in zip(parts, spans, strict=True)]
        return " | ".join([f"{_fit(cells[0], name_width)}  {cells[1].rjust(widths[1])}", *parts])

    first = [" " * (name_width + 2 + widths[1])]
    titles = [_TITLES[which].ljust(span) for which, span in zip(CANDIDATE_SETS, spans, strict=True)]
    rule = "-+-".join("-" * len(part) for part in first + titles)
    lines = [" | ".join(first + titles), line(head), rule, *map(line, body)]
    lines.insert(len(lines) - len(SUMMARIES), rule)
    return "\n".join(text.rstrip() for text in lines)


def markdown(
    ranks: RankTable, metrics: str | Sequence[str] = DEFAULT_METRICS, topk: int | Sequence[int] = (10,)
) -> str:
    """The same table in markdown; every metric names its candidate set."""
    head, body = _cells(ranks, metrics, topk)
    per_set = (len(head) - 2) // len(CANDIDATE_SETS)
    head = head[:2] + [f"{name} ({CANDIDATE_SETS[n // per_set]})" for n, name in enumerate(head[2:])]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *([_escape(cells[0]), *cells[1:]] for cells in body)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _numbers(values: dict, keys: list[str]) -> dict[str, float | None]:
    return {key: None if math.isnan(values[key]) else values[key] for key in keys}


def _cells(ranks: RankTable, metrics: str | Sequence[str], topk: int | Sequence[int]) -> tuple[list[str], list]:
    """Head and lines of both forms of the table; the last lines are macro and micro."""
    keys = metric_keys(metrics, topk)
    head = ["domain", "rows"] + [f"{_SPELLING.get(name, name.capitalize())}@{k}" for _, name, k in keys] * 2
    parts = [ranks.summary(metrics, topk, which) for which in CANDIDATE_SETS]
    lines = []
    for name in parts[0]["per_domain"]:
        lines.append([_printable(name), *_line([part["per_domain"][name] for part in parts], keys)])
    for name in SUMMARIES:
        lines.append([name, *_line([part[name] for part in parts], keys)])
    return head, lines


def _line(parts: list[dict], keys: list[tuple[str, str, int]]) -> list[str]:
    values = [part[key] for part in parts for key, _, _ in keys]
    return [str(parts[0]["rows"]), *("-" if math.isnan(value) else f"{value:.4f}" for value in values)]


def _printable(text: str) -> str:
    """Without line breaks and other control characters, which would tear the table apart."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _width(text: str) -> int:
    """Columns that a text takes in a terminal: East Asian wide letters take two, combining marks none."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _fit(text: str, width: int) -> str:
    """The text in exactly `width` columns; what is too long ends in an ellipsis."""
    if _width(text) > width:
        while _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))
