"""Figures of runs: panels of lines over epochs and maps of shares, as png and svg, the same bytes for the same data.

matplotlib is an optional library, imported only inside functions and without pyplot: no display, no global state.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from recbole_cdsr.errors import CDSRError

# Okabe & Ito, "Color Universal Design", 2008: told apart with every kind of colour vision. Yellow, which is hard to see
# as a line on white, is left out.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")  # one for each round through the palette
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
OBJECTIVE_COLOURS = {"rec": PALETTE[0], "cross_domain": PALETTE[1]}
OTHERS = {"color": "#BBBBBB", "linewidth": 0.7, "zorder": 1}
MOST_LINES = 5  # named lines in one panel, for one run or for each of several
MOST_NUMBERS, MOST_NAMES = 8, 24  # domains up to which a map shows numbers in its cells, and each name
COLUMNS, PANEL_HEIGHT = 3, 3.0  # inches
NO_FIGURES = "No figures: they need matplotlib; pip install 'recbole-cdsr[plots]'"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures are equal on all machines
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "text.parse_math": False,  # a dollar in a domain's name is a dollar
    "svg.fonttype": "none",  # text stays text: it can be found, and shown in scripts that the png's font lacks
    "svg.hashsalt": "recbole-cdsr",
}


@dataclass(frozen=True)
class Line:
    """The values of one quantity in one run (its number) at some epochs."""

    label: str
    run: int
    epochs: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Lines that share an axis; `scale` is linear, log, or share (percent)."""

    title: str
    unit: str
    lines: list[Line]
    scale: str = "linear"


@dataclass(frozen=True)
class ShareMap:
    """shares[i][j] of row i's whole that goes to column j, from 0 to 1; NaN where unknown."""

    title: str
    names: list[str]
    shares: list[list[float]]


@dataclass(frozen=True)
class Figure:
    """Panels in rows of three, then a row of maps for each run that has some; either may lack.

    Attributes:
        runs: their names. One run: a colour for each quantity; several: for each run.
        marked: the epoch of each run that a dotted line marks, if there is one.
        maps: name of a run -> at most three maps of as many domains.
    """

    title: str
    subtitle: str
    runs: list[str]
    marked: list[int | None]
    panels: list[Panel]
    maps: dict[str, list[ShareMap]] = field(default_factory=dict)


def available() -> bool:
    """Whether figures can be drawn."""
    return find_spec("matplotlib") is not None


def draw(figure: Figure) -> dict[str, bytes]:
    """The figure as {"png": ..., "svg": ...}, 12 inches wide; see `rendered`."""
    return rendered(lambda: _compose(figure))


def rendered(compose: Callable[[], Any]) -> dict[str, bytes]:
    """What `compose` draws in the style of this module, as {"png": ..., "svg": ...}; the png has 150 dots per inch.

    Args:
        compose: returns a matplotlib Figure.

    Raises:
        CDSRError: if matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise CDSRError("figures need matplotlib; run: pip install 'recbole-cdsr[plots]'") from None
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the svg still holds the name
        canvas = compose()
        files = {}
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            files[kind] = buffer.getvalue()
            canvas.set_layout_engine("none")  # laid out once, for both files
    return files


def printable(text: str, width: int = 0) -> str:
    """The text without line breaks and other signs that do not print; more than `width` lose the middle."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    if width and len(text) > width:
        text = f"{text[: width // 2]}…{text[-(width - width // 2 - 1) :]}"
    return f" {text}" if text.startswith("_") else text  # matplotlib hides what starts with an underscore


def _compose(figure: Figure) -> Any:
    from matplotlib.figure import Figure as Canvas

    rows = math.ceil(len(figure.panels) / COLUMNS)
    domains = max((len(one.names) for row in figure.maps.values() for one in row), default=0)
    heights = [PANEL_HEIGHT * rows] * bool(rows) + [min(4.8, 2.9 + 0.1 * domains)] * len(figure.maps)
    canvas = Canvas(figsize=(12, 0.8 + 0.12 * len(figure.runs) + sum(heights)), layout="constrained")
    canvas.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    canvas.suptitle(f"{printable(figure.title, 110)}\n{printable(figure.subtitle, 110)}", fontsize=12)
    # Parts of their own: the names beside the maps do not push the panels out of line.
    parts = canvas.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    places = parts[0].subplots(rows, COLUMNS, squeeze=False).flat if rows else ()
    for axes, panel in itertools.zip_longest(places, figure.panels):
        if panel is None:
            axes.remove()
        else:
            _draw_panel(axes, panel, figure)
    _draw_maps(parts[bool(rows) :], figure.maps)
    if rows and len(figure.runs) > 1:
        styles = [run_style(number) for number in range(len(figure.runs))]
        names = [printable(name, 44) for name in figure.runs]
        _legend(parts[0], styles, names, loc="outside upper center", ncols=COLUMNS, frameon=False)
    return canvas


def _draw_panel(axes: Any, panel: Panel, figure: Figure) -> None:
    several = len(figure.runs) > 1
    named, rest = _named(panel.lines)
    styles = dict(zip(named, _quantity_styles(named, several), strict=True))
    for line in panel.lines:
        if line.label in named:
            style = styles[line.label] | (run_style(line.run) if several else {})
            axes.plot(line.epochs, line.values, markevery=max(1, len(line.epochs) // 10), **style)
        elif not several:
            axes.plot(line.epochs, line.values, **OTHERS)
    for run, epoch in enumerate(figure.marked):
        if epoch is not None:
            axes.axvline(epoch, color=run_style(run)["color"] if several else "#555555", linestyle=":", linewidth=1)
    axes.set(title=panel.title, xlabel="epoch", ylabel=panel.unit)
    _set_scales(axes, panel)
    handles = [{**style, "color": "black", "marker": ""} if several else style for style in styles.values()]
    labels = [printable(label, 30) for label in named]
    if rest:
        handles.append({"linestyle": ""} if several else OTHERS)
        labels.append(f"{rest} others, not drawn" if several else f"{rest} others")
    columns = max(1, 50 // (max(map(len, labels)) + 5))  # as many as fit below a panel
    _legend(axes, handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=columns, frameon=False)


def _set_scales(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=6))
    if axes.get_ylim()[0] < 0 < axes.get_ylim()[1]:
        axes.axhline(0, color="#777777", linewidth=0.8, zorder=1)
    if panel.scale == "log":
        axes.set_yscale("log")
        set_log_ticks(axes.yaxis, [value for line in panel.lines for value in line.values])
    if panel.scale == "share":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))


def set_log_ticks(axis: Any, values: Sequence[float]) -> None:
    """As many ticks as have room on a log axis that shows these values, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    ratio = max(values) / min(values)
    between = (1,) if ratio > 1000 else (1, 2, 5) if ratio > 20 else (1, 2, 3, 5)
    axis.set_major_locator(LogLocator(subs=between) if ratio > 5 else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(owner: Any, styles: list[dict], labels: list[str], **keys: Any) -> None:
    from matplotlib.lines import Line2D

    owner.legend([Line2D([], [], **style) for style in styles], labels, **keys)


def _named(lines: list[Line]) -> tuple[list[str], int]:
    """The labels of the quantities that moved most, in the order given, and the number of other quantities."""
    spans: dict[str, float] = {}
    for line in lines:
        spans[line.label] = max(spans.get(line.label, 0.0), max(line.values) - min(line.values))
    kept = set(sorted(spans, key=spans.__getitem__, reverse=True)[:MOST_LINES])
    return [label for label in spans if label in kept], len(spans) - len(kept)


def run_style(run: int) -> dict[str, Any]:
    """Colour and marker of a run's number; told apart without colour only by the round through the palette."""
    marker = MARKERS[run // len(PALETTE) % len(MARKERS)]
    return {"color": PALETTE[run % len(PALETTE)], "marker": marker, "markersize": 3.5}


def _quantity_styles(labels: list[str], several: bool) -> list[dict[str, Any]]:
    """Dashes where colours tell runs apart; else colours, the same for an objective in every panel."""
    if several:
        return [{"linestyle": dashes} for dashes in DASHES[: len(labels)]]
    free = itertools.cycle(colour for colour in PALETTE if colour not in OBJECTIVE_COLOURS.values())
    colours = [OBJECTIVE_COLOURS.get(label) or next(free) for label in labels]
    return [{"color": colour, "marker": "o", "markersize": 3.5} for colour in colours]


def _draw_maps(parts: Sequence[Any], maps: dict[str, list[ShareMap]]) -> None:
    """Each row of maps in its part of the figure; all share one colour scale, which leaves the diagonals out."""
    from matplotlib.ticker import PercentFormatter

    tables = [one.shares for row in maps.values() for one in row]
    across = [x for table in tables for i, row in enumerate(table) for j, x in enumerate(row) if i != j and x == x]
    top = max(across, default=0.0) or 1.0
    for part, (name, row) in zip(parts, maps.items(), strict=True):
        part.suptitle(printable(f"Attention between domains, run {name}", 90), fontsize=11)
        places = part.subplots(1, COLUMNS)
        for number, axes in enumerate(places):
            if number < len(row):
                image = _draw_map(axes, row[number], top, leftmost=number == 0)
            else:
                axes.remove()
        bar = part.colorbar(image, ax=places[: len(row)], format=PercentFormatter(1.0))
        bar.set_label("share of attention (cells: %)" if len(row[0].names) <= MOST_NUMBERS else "share of attention")


def _draw_map(axes: Any, one: ShareMap, top: float, leftmost: bool) -> Any:
    import numpy as np

    shares = np.array(one.shares, dtype=float)
    count = len(one.names)
    own = np.eye(count, dtype=bool)
    image = axes.imshow(np.ma.masked_where(own | np.isnan(shares), shares), cmap="cividis", vmin=0, vmax=top)
    axes.set_facecolor("#E5E5E5")
    axes.grid(False)
    axes.set(title=printable(one.title), xlabel="on keys of")
    shown = range(0, count, math.ceil(count / MOST_NAMES))
    names = [printable(one.names[number], 14) for number in shown]
    size = 9 if count <= MOST_NUMBERS else 7
    axes.set_xticks(shown, names, rotation=90 if count > MOST_NUMBERS else 30, fontsize=size)
    axes.set_yticks(shown, names if leftmost else [""] * len(names), fontsize=size)
    if leftmost:
        axes.set_ylabel("attention of queries of")
    if count <= MOST_NUMBERS:
        for (i, j), share in np.ndenumerate(shares):
            dark = i != j and share < 0.6 * top
            if not np.isnan(share):
                colour = "white" if dark else "black"
                axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=9)
    return image
