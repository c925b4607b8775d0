"""The layers of import: a module may import its own layer and those below it, and heavy libraries only where said."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "recbole_cdsr"
ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    # Below everything: standard library only.
    {"__init__", "errors", "paths", "files", "names"},
    # 0. Pure mathematics: torch and numpy only.
    {"layers", "objectives", "balance", "distributed", "counting", "ranks", "checkpoint", "history", "memory"},
    # 1. What touches RecBole's configuration, data and run folders, or turns numbers into tables, pictures, pages.
    {
        "data",
        "prepare",
        "config",
        "compat",
        "protocol",
        "yaml_values",
        "run_folder",
        "run_records",
        "run_result",
        "environment",
    }
    | {"report", "plots", "curves", "html", "progress"},
    # 2.
    {"model"},
    # 3. One trainer and one way to rank for every model.
    {"trainer", "steps", "row_wise", "evaluation"},
    # 4. What a script calls.
    {"quick_start", "compare", "recommend"},
    # 5. What a person calls.
    {"tune", "study", "doctor", "cli", "__main__"},
]
LAYER_OF = {name: level - 1 for level, names in enumerate(LAYERS) for name in names}
# Libraries that a layer's modules may import at all; None: any.
ALLOWED = {-1: set(), 0: {"torch", "numpy"}}
# Libraries that stay out of a module's top level, since they are optional or slow to load.
OPTIONAL = {"ray", "matplotlib", "torchjd", "cvxpy", "qpsolvers"}
# What a module of a pure layer may import inside functions all the same.
SURGERY = {f"{PACKAGE}.objectives.surgery": {"torchjd", "cvxpy", "qpsolvers"}}
LAZY_FOR_PEOPLE = OPTIONAL | {"pandas"}
HEAVY_FOR_CLI = {"torch", "recbole", "pandas", "ray", "matplotlib", "numpy", "pyarrow", "scipy"}


class Import(NamedTuple):
    target: str  # dotted name
    line: int
    at_import: bool  # executed when the module is imported, not inside a function or under TYPE_CHECKING


class _Collector(ast.NodeVisitor):
    def __init__(self, package: str, is_module) -> None:
        self.package, self.is_module = package, is_module
        self.imports: list[Import] = []
        self.deferred = 0

    def _defer(self, node: ast.AST) -> None:
        self.deferred += 1
        self.generic_visit(node)
        self.deferred -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _defer

    def visit_If(self, node: ast.If) -> None:
        typing_only = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        self.deferred += typing_only
        for child in node.body:
            self.visit(child)
        self.deferred -= typing_only
        for child in node.orelse:
            self.visit(child)

    def _add(self, target: str, node: ast.AST) -> None:
        self.imports.append(Import(target, node.lineno, not self.deferred))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        parents = self.package.split(".")
        base = parents[: len(parents) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            name = f"{module}.{alias.name}"
            self._add(name if self.is_module(name) else module, node)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name == "recbole.quick_start" or path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_of(source: str, package: str) -> list[Import]:
    """Every import in the source of a module that lies in `package`."""
    collector = _Collector(package, _is_module)
    collector.visit(ast.parse(source))
    return collector.imports


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_dotted(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
IMPORTS = {
    name: imports_of(path.read_text("utf-8"), name if path.name == "__init__.py" else name.rpartition(".")[0])
    for name, path in MODULES.items()
}
every_module = pytest.mark.parametrize("module", MODULES)


def _area(module: str) -> str:
    """The name that the layers are told in: `recbole_cdsr.model.base` -> `model`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _layer(module: str) -> int:
    return LAYER_OF.get(_area(module), 99)  # test_has_a_layer tells of a module without one


def _library(target: str) -> str:
    return target.partition(".")[0]


@every_module
def test_has_a_layer(module):
    assert _area(module) in LAYER_OF, f"{module} has no layer yet: give it one in LAYERS of this file"


@every_module
def test_imports_only_its_layer_and_below(module):
    layer = _layer(module)
    upward = [
        f"line {line}: {target} is of layer {_layer(target)}"
        for target, line, _ in IMPORTS[module]
        if _library(target) == PACKAGE and _layer(target) > layer
    ]
    assert not upward, f"{module} is of layer {layer}"


@every_module
def test_low_layers_stay_pure(module):
    allowed = ALLOWED.get(_layer(module))
    if allowed is None:
        return
    own = allowed | SURGERY.get(module, set()) | {PACKAGE} | sys.stdlib_module_names
    assert not [f"line {i.line}: {i.target}" for i in IMPORTS[module] if _library(i.target) not in own]


@every_module
def test_only_models_know_concrete_models(module):
    """The trainer and what stands on it reach a model by its name, so that a new model is two files."""
    if _layer(module) not in (3, 4) and module != f"{PACKAGE}.model.base":
        return
    allowed = {f"{PACKAGE}.model", f"{PACKAGE}.model.base"}
    models = [i for i in IMPORTS[module] if _area(i.target) == "model" and _library(i.target) == PACKAGE]
    assert not [f"line {i.line}: {i.target}" for i in models if i.target not in allowed]


@every_module
def test_optional_and_slow_libraries_are_imported_where_used(module):
    lazy = LAZY_FOR_PEOPLE if _layer(module) == 5 or _area(module) == "report" else OPTIONAL
    assert not [f"line {i.line}: {i.target}" for i in IMPORTS[module] if i.at_import and _library(i.target) in lazy]


@every_module
def test_never_recbole_quick_start(module):
    """It imports ray at its top level, under whatever name it is reached."""
    assert not [i.line for i in IMPORTS[module] if i.target.startswith("recbole.quick_start")]
    texts = [node for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))) if isinstance(node, ast.Constant)]
    assert not [node.lineno for node in texts if node.value == "recbole.quick_start"]


@pytest.mark.parametrize("start", [f"{PACKAGE}.cli", f"{PACKAGE}.__main__", f"{PACKAGE}.names", PACKAGE])
def test_answers_help_without_heavy_libraries(start):
    """`recbole-cdsr --help` must not wait for torch: follow every import made at import time."""
    seen, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module in seen or module not in MODULES:
            continue
        seen.add(module)
        for target, line, at_import in IMPORTS[module]:
            if at_import:
                assert _library(target) not in HEAVY_FOR_CLI, f"{module}, line {line}, imports {target} for {start}"
                if _library(target) == PACKAGE:  # importing a.b.c runs a and a.b too
                    parts = target.split(".")
                    waiting += [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def test_importing_everything_needs_no_optional_library(repo):
    """What the source promises, seen in a process: every module but the command's own, and no ray or matplotlib."""
    names = [name for name in MODULES if not name.endswith("__main__")]
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted({OPTIONAL!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import ray", ("ray", True)),
        ("def f():\n    import ray", ("ray", False)),
        ("try:\n    import ray.tune as t\nexcept ImportError:\n    t = None", ("ray.tune", True)),
        ("class A:\n    import ray", ("ray", True)),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray", ("ray", False)),
        ("from recbole import quick_start", ("recbole.quick_start", True)),
        ("from recbole.quick_start import run_recbole", ("recbole.quick_start", True)),
        ("from . import base", ("recbole_cdsr.model", True)),
        ("from ..errors import CDSRError", ("recbole_cdsr.errors", True)),
        ("from recbole_cdsr import errors", ("recbole_cdsr.errors", True)),
        ("from recbole_cdsr import __version__", ("recbole_cdsr", True)),
    ],
)
def test_the_check_sees(source, expected):
    found = imports_of(source, "recbole_cdsr.model")[-1]
    if source == "from . import base" and _is_module("recbole_cdsr.model.base"):
        expected = ("recbole_cdsr.model.base", True)
    assert (found.target, found.at_import) == expected
