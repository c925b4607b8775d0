"""The tables of a comparison as markdown, LaTeX (booktabs) and csv with every number in full."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_cdsr.checkpoint import write_bytes
from recbole_cdsr.compare.tables import Table, Tables
from recbole_cdsr.files import make_folder
from recbole_cdsr.html import Cell

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$",
    "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def write(tables: Tables, folder: Path) -> list[Path]:
    """Writes tables.md, tables.tex, scores.csv, tests.csv and gains.csv; those without content are left out.

    Returns:
        the files.

    Raises:
        CDSRError: if the folder cannot be written.
    """
    files = {
        "tables.md": markdown_page(tables.tables),
        "tables.tex": "% Needs \\usepackage{booktabs}.\n" + "\n".join(map(latex, tables.tables)),
        "scores.csv": as_csv(tables.scores),
        "tests.csv": as_csv([comparison_record(*one) for one in tables.tests]),
        "gains.csv": as_csv([gain_record(*one) for one in tables.gains]),
    }
    make_folder(folder)
    written = {folder / name: content for name, content in files.items() if content}
    for path, content in written.items():
        write_bytes(path, content.encode())
    return list(written)


def markdown_page(tables: list[Table]) -> str:
    """All tables; a caption that neighbours share stands once, below the last of them."""
    following = [*(table.caption for table in tables[1:]), None]
    shown = [
        replace(one, caption="") if one.caption == after else one for one, after in zip(tables, following, strict=True)
    ]
    return "\n".join(map(markdown, shown))


def markdown(table: Table) -> str:
    """Title, table, caption."""
    lines = [[_pipe(name) for name in table.head], ["---"] + ["---:"] * (len(table.head) - 1)]
    lines += [[_in_markdown(value) for value in row] for row in table.rows]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"## {table.title}\n\n{body}\n" + (f"\n{table.caption}\n" if table.caption else "")


def _in_markdown(value: Cell) -> str:
    text = _pipe(value.text)
    return (f"**{text}**" if value.bold else text) + value.mark


def _pipe(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def latex(table: Table) -> str:
    """A floating table for booktabs."""
    rows = [[_in_latex(value) for value in row] for row in table.rows]
    lines = [" & ".join(cells) + r" \\" for cells in ([escaped(name) for name in table.head], *rows)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(table.title)}. {escaped(table.caption)}}}",
            rf"\label{{tab:{table.name.replace('_', '-').replace('@', '-')}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _in_latex(value: Cell) -> str:
    text = escaped(value.text)
    text = rf"\textbf{{{text}}}" if value.bold else text
    return text + (rf"\textsuperscript{{{escaped(value.mark)}}}" if value.mark else "")


def escaped(text: str) -> str:
    """The text with LaTeX's special characters spelled out."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def comparison_record(dataset: str, candidates: str, test: Any) -> dict[str, Any]:
    """One line of tests.csv."""
    low, high = test.difference.low, test.difference.high
    found = {"difference": test.difference.mean, "low": low, "high": high, "p_bootstrap": test.p_bootstrap}
    names = {"domain": test.domain, "metric": test.metric, "best": test.best, "other": test.other}
    return {
        "dataset": dataset,
        "candidates": candidates,
        **names,
        **found,
        "p_wilcoxon": test.p_wilcoxon,
        "mark": test.mark,
    }


def gain_record(dataset: str, gain: Any) -> dict[str, Any]:
    """One line of gains.csv."""
    line = {"dataset": dataset, **gain._asdict(), **gain.gain._asdict()}
    line |= {"domain": gain.domain or "macro", "seeds": " ".join(map(str, gain.seeds)), "gain": gain.gain.mean}
    return {key: value for key, value in line.items() if key not in ("mean", "p")}


def as_csv(records: list[dict[str, Any]]) -> str:
    """The records as csv, one line each; nothing for none."""
    if not records:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
