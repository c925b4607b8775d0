"""What figures of several models share: how models look, where they stand side by side, how far values spread."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from recbole_cdsr import plots

NAME = 36  # characters in a line of a model's name


def style_of(number: int, variant: str) -> dict[str, Any]:
    """Colour, marker and name of a model; models differ by marker too, for eyes and printers without colour."""
    marker = plots.MARKERS[number % len(plots.MARKERS)]
    label = "\n".join(textwrap.wrap(plots.printable(variant, 4 * NAME), NAME))
    return {**plots.run_style(number), "marker": marker, "markersize": 6, "label": label}


def offset(number: int, count: int, width: float = 0.7) -> float:
    """Where the models stand within a band of height 1, of which they take `width`."""
    return 0.0 if count == 1 else width * (number / (count - 1) - 0.5)


def legend_outside(axes: Any) -> None:
    """The legend to the right, where it covers no point; not needed for one model, which the page names."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)


def deviation(values: Sequence[float]) -> float:
    """Sample deviation; 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def standard_error(values: np.ndarray) -> float:
    """Of the mean of events; 0 for one event."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
