"""What was prepared, as plain numbers and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recbole_cdsr.prepare.arrange import count_repeats, count_ties
from recbole_cdsr.prepare.events import Events, Reading
from recbole_cdsr.prepare.times import are_whole_days, as_date


def summarise(reading: Reading, events: Events, removed: Mapping[str, int]) -> dict:
    """Plain dicts, texts and numbers, ready for json.

    Args:
        events: those that are written.
        removed: rule -> events it removed.
    """
    n_users, n_domains = len(events.users), len(events.domains)
    pairs = np.unique(events.user.astype(np.int64) * n_domains + events.domain)
    users = np.bincount(pairs % n_domains, minlength=n_domains)
    items = np.bincount(_domain_of_items(events), minlength=n_domains)
    counts = np.bincount(events.domain, minlength=n_domains)
    names = events.domains.to_pylist()
    order = np.argsort(-counts, kind="stable")
    several = int((np.bincount(pairs // n_domains) > 1).sum())
    return {
        "read": reading.n_read,
        "left_out": {reason: count for reason, count in reading.left_out.items() if count},
        "removed": dict(removed),
        "domains": {
            names[d]: {"users": int(users[d]), "items": int(items[d]), "events": int(counts[d])} for d in order
        },
        "total": {"users": n_users, "items": len(events.items), "events": len(events)},
        "users_of_several_domains": several,
        **count_ties(events),
        **count_repeats(events),
        "time_unit": events.unit,
        "whole_days": are_whole_days(events.time, events.unit),
        "first": as_date(events.time.min().item(), events.unit),
        "last": as_date(events.time.max().item(), events.unit),
    }


def _domain_of_items(events: Events) -> np.ndarray:
    domain = np.zeros(len(events.items), dtype=np.int64)
    domain[events.item] = events.domain
    return domain


def table(summary: dict, tie_seed: int | None) -> str:
    """Fixed-width lines: each domain, the total, and sentences about what was left out, ties and repeats."""
    total = summary["total"]
    rows = [("domain", "users", "items", "events", "events/user")]
    for name, counts in [*summary["domains"].items(), ("all", total)]:
        per_user = counts["events"] / counts["users"]
        numbers = (f"{counts[key]:,}" for key in ("users", "items", "events"))
        rows.append((" ".join(name.split()), *numbers, f"{per_user:.1f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], "", *_sentences(summary, tie_seed)])


def _sentences(summary: dict, tie_seed: int | None) -> list[str]:
    total = summary["total"]
    lines = [f"{summary['read']:,} events read, {total['events']:,} written"]
    for reason, count in {**summary["left_out"], **summary["removed"]}.items():
        lines.append(f"  left out, {reason}: {count:,}")
    lines.append(
        f"users of several domains: {summary['users_of_several_domains']:,} "
        f"({_share(summary['users_of_several_domains'], total['users'])})"
    )
    shuffled = "in the order of the files" if tie_seed is None else f"shuffled by seed {tie_seed}"
    lines.append(
        f"ties: {summary['ties']:,} of {summary['pairs']:,} neighbouring events of a user have equal times "
        f"({_share(summary['ties'], summary['pairs'])}), {summary['ties_across_domains']:,} across domains; {shuffled}"
    )
    if tie_seed is None and summary["ties_across_domains"]:
        lines.append("  equal times follow the order of the files, which may sort them by domain; see --tie_seed")
    lines.append(
        f"repeats: {summary['repeats']:,} events repeat an item of the user "
        f"({_share(summary['repeats'], total['events'])}), {summary['exact_repeats']:,} at the same time; see --repeats"
    )
    days = ", whole days only" if summary["whole_days"] else ""
    lines.append(f"time: {summary['first']} to {summary['last']} (read as {summary['time_unit']}{days})")
    if len(summary["domains"]) == 1:
        lines.append("there is only one domain: nothing can cross")
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.1%}"
