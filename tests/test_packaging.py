"""What a user installs is what lies in the repository: packages, property files, dependencies, commands."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import types
import zipfile
from pathlib import Path

import pytest

PACKAGE = "recbole_cdsr"
# Where a distribution's name is not the name it is imported by.
DISTRIBUTION = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow"}


@pytest.fixture(scope="module")
def setup_cfg(repo):
    parser = configparser.RawConfigParser()
    parser.read(repo / "setup.cfg", encoding="utf-8")
    return parser


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _names(requirements: str) -> set[str]:
    return {re.match(r"[A-Za-z0-9._-]+", line.strip()).group().lower() for line in _lines(requirements)}


def _sources(repo: Path) -> list[Path]:
    return sorted((repo / PACKAGE).rglob("*.py"))


def _property_files(repo: Path) -> list[Path]:
    return sorted(path for path in (repo / "properties").rglob("*") if path.is_file())


def test_every_folder_of_code_is_a_package(repo):
    """A folder without __init__.py works in a checkout and is missing from the wheel."""
    folders = {path.parent for path in _sources(repo)}
    assert not sorted(str(folder) for folder in folders if not (folder / "__init__.py").is_file())


def test_setup_cfg_names_every_package(repo, setup_cfg):
    found = {".".join(path.parent.relative_to(repo).parts) for path in _sources(repo)} | {f"{PACKAGE}.properties"}
    listed = {line.strip() for line in _lines(setup_cfg["options"]["packages"])}
    assert listed == found, "bring [options] packages of setup.cfg up to date"


def test_package_data_covers_every_property_file(repo, setup_cfg):
    patterns = _lines(setup_cfg["options.package_data"][f"{PACKAGE}.properties"])
    covered = {path for pattern in patterns for path in (repo / "properties").glob(pattern.strip())}
    assert sorted(covered) == _property_files(repo)
    assert repo / "properties" / "overall.yaml" in covered


def test_properties_are_found_in_the_checkout(repo):
    from recbole_cdsr.paths import properties_dir

    assert properties_dir() == repo / "properties"


def test_properties_missing_is_told(tmp_path, monkeypatch):
    from recbole_cdsr import paths
    from recbole_cdsr.errors import CDSRError

    monkeypatch.setattr(paths, "__file__", str(tmp_path / PACKAGE / "paths.py"))
    with pytest.raises(CDSRError, match="properties"):
        paths.properties_dir()


def test_every_library_that_is_imported_is_declared(repo, setup_cfg):
    """Top-level imports need a core dependency; one inside a function may come from an extra."""
    extras = setup_cfg["options.extras_require"]
    core = _names(setup_cfg["options"]["install_requires"])
    every = core.union(*(_names(text) for text in extras.values()))
    missing = []
    for path in _sources(repo):
        tree = ast.parse(path.read_text("utf-8"))
        deferred = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                targets = [node.module]
            else:
                continue
            for library in {target.partition(".")[0] for target in targets} - sys.stdlib_module_names - {PACKAGE}:
                if DISTRIBUTION.get(library, library).lower() not in (every if id(node) in deferred else core):
                    missing.append(f"{path.relative_to(repo)}, line {node.lineno}: {library}")
    assert not missing


@pytest.mark.parametrize("command", ['pip install -e ".[test]"', "python -m pytest", "python run_recbole_cdsr.py"])
def test_ci_runs_what_the_readme_says(repo, command):
    assert command in (repo / ".ci" / "run").read_text("utf-8")
    readme = repo / "README.md"
    if readme.is_file():
        assert command in readme.read_text("utf-8")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_ci_script_is_executable_bash(repo):
    assert os.access(repo / ".ci" / "run", os.X_OK)
    assert subprocess.run(["bash", "-n", str(repo / ".ci" / "run")]).returncode == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["run"]),
        (["--epochs", "2"], ["run", "--epochs", "2"]),
        (["--help"], ["run", "--help"]),
        (["run", "--epochs=2"], ["run", "--epochs=2"]),
        (["evaluate", "--run_dir", "x"], ["evaluate", "--run_dir", "x"]),
    ],
)
def test_script_puts_run_in_front(repo, monkeypatch, given, expected):
    monkeypatch.setitem(sys.modules, f"{PACKAGE}.cli", types.SimpleNamespace(main=None))
    spec = importlib.util.spec_from_file_location("run_script", repo / "run_recbole_cdsr.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.with_command(given) == expected


def _without_checkout() -> dict[str, str]:
    """The environment of a process that must not import the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _run(*command: object, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=_without_checkout())
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(repo, tmp_path_factory) -> Path:
    """The wheel, built from a copy: no build folder is left in the checkout, and no old one leaks into the wheel."""
    source = tmp_path_factory.mktemp("source")
    for file in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (repo / file).is_file():
            shutil.copy(repo / file, source)
    for folder in (PACKAGE, "properties"):
        shutil.copytree(repo / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", target)
    _run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=target)
    (built,) = target.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_the_code_and_the_property_files(repo, wheel):
    expected = {path.relative_to(repo).as_posix() for path in _sources(repo)}
    expected |= {f"{PACKAGE}/{path.relative_to(repo).as_posix()}" for path in _property_files(repo)}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name for name in names if ".dist-info/" not in name} == expected
        assert any(name.endswith("LICENSE") for name in names)
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    import recbole_cdsr

    assert f"\nVersion: {recbole_cdsr.__version__}\n" in text
    assert "\nRequires-Python: >=3.10\n" in text
    assert "\nProvides-Extra: tune\n" in text


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The scripts folder of a new environment that holds the wheel; the libraries are borrowed from this one.

    A path in a .pth file is only appended to sys.path: .pth files in the borrowed folder, such as that of an editable
    install of the checkout, are not read.
    """
    folder = tmp_path_factory.mktemp("environment") / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    options = ("--no-deps", "--no-index", "--disable-pip-version-check")
    _run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_run(python, "-c", where, cwd=folder).strip())
    borrowed = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n", "utf-8")
    return scripts


@pytest.mark.slow
def test_installed_wheel_finds_its_properties(installed, tmp_path):
    code = "from recbole_cdsr.paths import properties_dir; print(properties_dir())"
    found = Path(_run(installed / "python", "-c", code, cwd=tmp_path).strip())
    assert found.is_relative_to(installed.parent)
    assert found.parts[-2:] == (PACKAGE, "properties")


@pytest.mark.slow
@pytest.mark.parametrize("module", [False, True])
def test_installed_command_answers(installed, tmp_path, module):
    command = [installed / "python", "-m", PACKAGE] if module else [installed / "recbole-cdsr"]
    assert "run" in _run(*command, "--help", cwd=tmp_path)
