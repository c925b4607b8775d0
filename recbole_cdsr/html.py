"""Pages that work anywhere: one file without links to others, tables that sort by any column, pictures inside.

All text that is handed over is plain and gets escaped here, since names of models and domains come from users' files.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem 1.5rem 4rem; }
h2 { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 1rem; }
p, figcaption, caption, li { max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption, figcaption { caption-side: bottom; font-size: .85rem; padding: .5rem 0 1.5rem; text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; }
td.text { max-width: 40rem; white-space: normal; }
th { background: var(--soft); position: sticky; top: 0; vertical-align: bottom; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
figure { margin: 1rem 0; }
figure img { background: white; max-width: 100%; height: auto; }
@media print { th { position: static; } figure, table { break-inside: avoid; } }
"""
# A column of numbers starts with the largest, another one with the first by name.
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const rows = [...table.tBodies[0].rows];
    const key = row => row.cells[column].dataset.sort;
    const numeric = rows.every(row => key(row) === "" || !isNaN(key(row)));
    const before = head.getAttribute("aria-sort");
    const order = before ? (before === "ascending" ? "descending" : "ascending")
                         : (numeric ? "descending" : "ascending");
    const sign = order === "ascending" ? 1 : -1;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (numeric ? x - y : x.localeCompare(y));
    });
    table.tBodies[0].append(...rows);
  }));
}
"""
NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `mark` stands raised behind it."""

    text: str
    bold: bool = False
    mark: str = ""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page.

    Args:
        parts: html, as the functions below give it.
    """
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # No icon: browsers would ask for one beside the file.
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n'
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def listing(items: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{html.escape(item)}</li>" for item in items) + "\n</ul>"


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "") -> str:
    """A table that a click on a head sorts by its column; a cell counts as the number that it begins with.

    The first column names the rows, and sorts as text.
    """
    heads = "".join(f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in head)
    body = "\n".join(f"<tr>{''.join(_cell(cell, named=not n) for n, cell in enumerate(row))}</tr>" for row in rows)
    below = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{below}<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _cell(cell: Cell, named: bool) -> str:
    number = None if named else NUMBER.match(cell.text)
    key = number[0].replace(",", "") if number else "" if cell.text in ("", "-") else cell.text
    text = html.escape(cell.text)
    text = f"<strong>{text}</strong>" if cell.bold else text
    text += f"<sup>{html.escape(cell.mark)}</sup>" if cell.mark else ""
    kind = "" if number or not cell.text else ' class="text"'
    return f'<td{kind} data-sort="{html.escape(key)}">{text}</td>'


def figure(svg: bytes, title: str, caption: str) -> str:
    """A picture with a heading of its own; the title is what a screen reader says of it."""
    data = base64.b64encode(svg).decode()
    return (
        f'{heading(title, 3)}\n<figure><img alt="{html.escape(title)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
