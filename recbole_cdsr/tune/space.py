"""Search spaces in plain yaml: what each key may be, checked before anything is trained, and never evaluated.

    learning_rate: {loguniform: [1e-4, 1e-2]}          # from low to high, evenly on a log scale
    hidden_dropout_prob: {quniform: [0.1, 0.6, 0.1]}   # in steps of 0.1
    n_layers: {choice: [1, 2, 3]}                      # or just [1, 2, 3]
    mask_ratio: {uniform: [0.1, 0.5], when: {backbone: bert4rec}}   # drawn where backbone is bert4rec, else the default
    epochs: 30                                         # the same in every trial

The kinds are Ray Tune's: uniform, loguniform, randint (high excluded) and quniform, qloguniform, qrandint with a step.
RecBole's .hyper files (`learning_rate loguniform -8,0`) are read too; their loguniform is in powers of e, as there.
"""

from __future__ import annotations

import itertools
import math
import numbers
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import nearest
from recbole_cdsr.paths import properties_dir
from recbole_cdsr.yaml_values import SafeLoader, one_line, parse_value, read_yaml

RANGES = ("uniform", "loguniform", "randint", "quniform", "qloguniform", "qrandint")
KINDS = ("choice", *RANGES)


@dataclass(frozen=True)
class Axis:
    """What a key may be: `kind` is one of KINDS, `values` its choices or its ends (and step).

    when: key -> the value that it must have, else this key keeps its default.
    """

    kind: str
    values: tuple
    when: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[Any]:
        """Choices as every searcher can handle them: numbers, texts and None as they are, of others what they print."""
        return [value if isinstance(value, (int, float, str, type(None))) else str(value) for value in self.values]

    def settled(self, value: Any) -> Any:
        """What a searcher proposed, as a value of this axis, which not every searcher keeps to.

        A choice for its name; else inside the ends, on a step, and whole where the file's numbers are whole.
        """
        if self.kind == "choice":
            return value if value in self.values else self.values[self.names().index(value)]
        low, high = self.values[:2]
        value = min(max(value, low), high - 1 if self.kind == "randint" else high)
        if self.kind.startswith("q"):
            step = self.values[2]
            value = round(round(value / step) * step, 12)  # 0.3, not 0.30000000000000004
        return int(value) if _is_whole(self) else float(value)


def space_of(model: str, path: str | None) -> dict[str, Axis]:
    """The space in a yaml or .hyper file; without a path that of the model in properties/search/.

    Raises:
        CDSRError: if there is none, or it makes no sense; names file and key.
    """
    if path is None:
        file = properties_dir() / "search" / f"{model}.yaml"
        if not file.is_file():
            known = ", ".join(sorted(one.stem for one in file.parent.glob("*.yaml")))
            raise CDSRError(
                f"there is no search space for {model} (only for {known}); write one and give it by --space"
            )
    else:
        file = Path(path)
    content = _read_hyper(file) if file.suffix == ".hyper" else read_yaml(file)
    if not content:
        raise CDSRError(
            f"{file} holds no key to search; write lines like `learning_rate: {{loguniform: [1e-4, 1e-2]}}`"
        )
    return read_axes(file, content)


def read_axes(file: Path, content: dict[str, Any]) -> dict[str, Axis]:
    """The space that the content of a file describes; CDSRError names file and key."""
    axes = {str(key): _axis(f"{file}, key '{key}'", value) for key, value in content.items()}
    for key, axis in axes.items():
        for other, wanted in axis.when.items():
            if (
                other not in axes
                or axes[other].kind != "choice"
                or wanted not in axes[other].values
                or axes[other].when
            ):
                what = (
                    f"{file}, key '{key}': when needs a choice of this space that has the value, not {other}: {wanted}"
                )
                raise CDSRError(f"{what}; correct it or leave when out")
    return axes


def _axis(where: str, value: Any) -> Axis:
    """What stands behind a key in a yaml file."""
    if not isinstance(value, dict):
        value = {"choice": value if isinstance(value, list) else [value]}
    value = dict(value)
    when = value.pop("when", {})
    if len(value) != 1 or not isinstance(when, dict):
        raise CDSRError(f"{where}: write one of {', '.join(KINDS)}, and perhaps when: {{other_key: value}}")
    ((kind, values),) = value.items()
    if kind not in KINDS:
        raise CDSRError(f"{where}: there is no '{kind}'; {nearest(str(kind), KINDS, 'use one of ' + ', '.join(KINDS))}")
    if kind == "choice":
        if not isinstance(values, list) or not values:
            raise CDSRError(f"{where}: choice needs a list of one value or more, but got {values!r}")
        return Axis(kind, tuple(values), when)
    count = 3 if kind.startswith("q") else 2
    wanted = "[low, high, step]" if count == 3 else "[low, high]"
    fits = isinstance(values, list) and len(values) == count and all(_is_number(v, "int" in kind) for v in values)
    if not fits:
        whole = "whole " if "int" in kind else ""
        raise CDSRError(f"{where}: {kind} needs {whole}numbers {wanted}, but got {values!r}")
    if not values[0] < values[1] or values[-1] <= 0 and count == 3 or (values[0] <= 0 and "log" in kind):
        rule = "0 < low < high" if "log" in kind else "low < high"
        raise CDSRError(f"{where}: {kind} needs {rule}{' and a step above 0' if count == 3 else ''}, but got {values}")
    if count == 3 and any(abs(v / values[2] - round(v / values[2])) > 1e-9 for v in values[:2]):
        raise CDSRError(f"{where}: {kind} needs ends that are multiples of the step, but got {values}")
    return Axis(kind, tuple(values), when)


def _is_whole(axis: Axis) -> bool:
    return axis.kind not in ("uniform", "loguniform") and all(isinstance(value, int) for value in axis.values)


def _is_number(value: Any, whole: bool) -> bool:
    kind = numbers.Integral if whole else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _read_hyper(path: Path) -> dict[str, Any]:
    """RecBole's format: `key kind values` in every line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CDSRError(f"cannot read the search space {path}: {one_line(error)}") from None
    content: dict[str, Any] = {}
    for number, line in enumerate(lines, start=1):
        parts = line.split(maxsplit=2)
        if not parts or parts[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        if len(parts) != 3 or parts[1] not in ("choice", "uniform", "loguniform", "quniform"):
            raise CDSRError(f"{where}: write `key choice [a, b]`, or uniform, loguniform or quniform with `low,high`")
        key, kind, text = parts
        try:
            values = yaml.load(text if text.startswith("[") else f"[{text}]", Loader=SafeLoader)
        except yaml.YAMLError:
            raise CDSRError(f"{where}: '{text}' is no list of values") from None
        if kind == "choice":  # RecBole evaluates the texts of lists once more, as in ['[64,64]','[128]']
            values = [parse_value(v) if isinstance(v, str) and v.startswith("[") else v for v in values]
        if kind == "loguniform" and len(values) == 2 and all(_is_number(value, False) for value in values):
            values = [math.exp(value) for value in values]
        content[key] = {kind: values}
    return content


def active(point: dict[str, Any], axes: dict[str, Axis]) -> dict[str, Any]:
    """The keys of a drawn point that count, those whose `when` is met, with values as their axes have them."""
    point = {key: axes[key].settled(value) for key, value in point.items()}
    return {k: v for k, v in point.items() if all(point.get(o) == wanted for o, wanted in axes[k].when.items())}


def grid(axes: dict[str, Axis]) -> list[dict[str, Any]]:
    """Every point of a space of choices, each once.

    Raises:
        CDSRError: if a key has a range.
    """
    for key, axis in axes.items():
        if axis.kind != "choice":
            raise CDSRError(
                f"a grid takes lists of choices, but '{key}' is {axis.kind}; list its values, or use random"
            )
    points: list[dict[str, Any]] = []
    for values in itertools.product(*(axis.values for axis in axes.values())):
        point = active(dict(zip(axes, values, strict=True)), axes)
        if point not in points:
            points.append(point)
    return points


def examples(axes: dict[str, Axis]) -> list[dict[str, Any]]:
    """Points that hold every choice at least once, and the low ends of ranges, to check keys and values with."""
    ends = {key: axis.values if axis.kind == "choice" else axis.values[:1] for key, axis in axes.items()}
    longest = max(map(len, ends.values()))
    return [active({key: of[min(n, len(of) - 1)] for key, of in ends.items()}, axes) for n in range(longest)]
