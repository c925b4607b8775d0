"""`recbole-cdsr doctor`: what is installed, what of it is in the way, and how to mend it.

Reads versions from the packages' metadata and imports nothing itself, so that it answers where torch or RecBole are
missing or broken; two processes of their own then try what rules cannot know: building a config here, and by RecBole
alone. compat.py and the comments in setup.cfg say more about each conflict.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from recbole_cdsr import __version__

SECONDS_TO_TRY = 120
OURS = """
import torch
from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig
CDSRConfig("AutoCDSR", "toy")
print(torch.cuda.device_count(), torch.get_num_threads())
"""
ALONE = """
import recbole.quick_start
from recbole.config import Config
from recbole.utils import get_model
Config(model="SASRec", dataset="ml-100k")
"""


class Bound(NamedTuple):
    """Versions of a package that this one works with: least <= version < below, and not `but`."""

    least: str
    below: str | None = None
    but: str | None = None
    extra: str | None = None  # the extra that needs it; None: every run does
    reason: str = ""

    @property
    def text(self) -> str:
        others = [f"!={self.but}"] * bool(self.but) + [f"<{self.below}"] * bool(self.below)
        return ",".join([f">={self.least}", *others])


# The bounds of setup.cfg; a test compares them.
BOUNDS = {
    "recbole": Bound("1.2.0", "1.3", but="1.2.1", reason="compat.py patches the inside of RecBole 1.2"),
    "torch": Bound("2.6", reason="before 2.6 a foreign checkpoint could run code (CVE-2025-32434)"),
    "numpy": Bound("1.26"),
    "pandas": Bound("2.2", "3", reason="RecBole's fillna on a column changes nothing from pandas 3 on"),
    "pyarrow": Bound("16"),
    "scipy": Bound("1.15"),
    "safetensors": Bound("0.4"),
    "pyyaml": Bound("6"),
    "tqdm": Bound("4.48.2"),
    "matplotlib": Bound("3.9", extra="plots"),
    "torchjd": Bound("0.18", "0.19", extra="surgery", reason="its weightings move between minor releases"),
    "cvxpy": Bound("1.6", extra="surgery"),
    "optuna": Bound("5", extra="tune-searchers"),
    "hyperopt": Bound("0.3", extra="tune-searchers"),
    "qpsolvers": Bound("1.0.1", extra="surgery-gpl"),
    "quadprog": Bound("0.1.9", but="0.1.10", extra="surgery-gpl"),
    "ecos": Bound("2.0.14", extra="surgery-gpl"),
    "ray": Bound("2.42", extra="tune", reason="older ones have another interface, and 2.6 fails with numpy 2"),
}
ALSO_SHOWN = ("setuptools", "tensorboard", "thop", "kmeans_pytorch")


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be; `stops` says whether it keeps every run from working."""

    stops: bool
    what: str
    mend: str


@dataclass(frozen=True)
class Environment:
    """Python's version and those of the packages, None for what is not installed."""

    python: tuple[int, int]
    versions: dict[str, str | None]

    def at_least(self, package: str, version: str) -> bool:
        """Whether the package is installed in this version or a later one."""
        found = self.versions.get(package)
        return found is not None and numbers(found) >= numbers(version)


def main(argv: list[str]) -> int:
    """Prints what it finds; 1 if a run cannot work here, else 0."""
    parser = argparse.ArgumentParser(
        prog="recbole-cdsr doctor",
        description="tell what of the installed packages is in the way, and how to mend it",
        epilog="The exit status is 1 if a run cannot work here, else 0.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the findings for other programs")
    options = parser.parse_args(argv)
    here = installed()
    findings, alone = conflicts(here), conflicts_of_recbole_alone(here)
    machine = _try(OURS, findings)
    _try(ALONE, alone)
    works, alone_works = (not any(one.stops for one in found) for found in (findings, alone))
    if options.json:
        report = {"versions": {"python": platform.python_version(), **here.versions}}
        report |= {"works": works, "findings": [asdict(one) for one in findings]}
        report |= {"recbole_alone_works": alone_works, "recbole_alone": [asdict(one) for one in alone]}
        print(json.dumps(report, indent=1))
    else:
        print("\n".join([*_table(here, machine), "", *_verdicts(findings, works, alone, alone_works)]))
    return 0 if works else 1


def _try(code: str, findings: list[Finding]) -> str:
    """Runs the code unless something is known to stop it; a failure becomes a finding. Returns what it printed."""
    if any(finding.stops for finding in findings):
        return ""
    printed, failure = attempt(code)
    if failure:
        findings.append(
            Finding(True, failure, "install anew what the message names, or start from a fresh environment")
        )
    return printed


def installed() -> Environment:
    """What this Python finds."""
    return Environment(sys.version_info[:2], {name: _version(name) for name in [*BOUNDS, *ALSO_SHOWN]})


def numbers(version: str) -> tuple[int, ...]:
    """1.2.10+cpu -> (1, 2, 10): enough to compare releases."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version).group().split(".") if part)


def conflicts(here: Environment) -> list[Finding]:
    """What is in the way of this package, the stopping ones first."""
    found = []
    if not (3, 10) <= here.python < (3, 14):
        name = ".".join(map(str, here.python))
        found.append(Finding(here.python < (3, 10), f"Python {name} is not tested", "take Python 3.10 to 3.13"))
    for package, bound in BOUNDS.items():
        found += _outside(package, bound, here)
    if here.versions["recbole"] == "1.2.1":
        what = "RecBole 1.2.1 demands ray<=2.6.3, so pip cannot agree with it; this package runs with it all the same"
        found.append(Finding(False, what, "pip install recbole==1.2.0"))
    return sorted(found, key=lambda finding: not finding.stops)


def _outside(package: str, bound: Bound, here: Environment) -> list[Finding]:
    version = here.versions[package]
    mend = f"pip install '{package}{bound.text}'"
    if version is None:
        return [] if bound.extra else [Finding(True, f"{package} is not installed", mend)]
    because = f": {bound.reason}" if bound.reason else ""
    needed = f"; only the extra '{bound.extra}' needs it" if bound.extra else ""
    if numbers(version) < numbers(bound.least):
        return [Finding(not bound.extra, f"{package} {version} is older than {bound.least}{because}{needed}", mend)]
    if bound.below and numbers(version) >= numbers(bound.below):
        stops = package == "recbole"
        return [Finding(stops, f"{package} {version} is not below {bound.below}{because}{needed}", mend)]
    return []


def conflicts_of_recbole_alone(here: Environment) -> list[Finding]:
    """What is in the way of RecBole without the patches of compat.py: of `recbole.quick_start`."""
    recbole, numpy, ray = (here.versions[name] for name in ("recbole", "numpy", "ray"))
    if recbole is None:
        return [Finding(True, "recbole is not installed", "pip install recbole==1.2.0")]
    found = []
    if ray is None:
        found.append(Finding(True, "its quick_start imports ray, which is not installed", "pip install 'ray[tune]'"))
    elif not here.at_least("ray", "2.42") and here.at_least("numpy", "2"):
        what = f"its quick_start imports ray, and ray {ray} fails with numpy {numpy}"
        found.append(Finding(True, what, "pip install recbole==1.2.0 'ray[tune]>=2.42'"))
    if recbole == "1.2.0" and here.versions["kmeans_pytorch"] is None:
        what = "RecBole 1.2.0 imports kmeans_pytorch to find any model, and does not declare it"
        found.append(Finding(True, what, "pip install kmeans_pytorch"))
    if here.at_least("numpy", "2"):
        what = f"its Config reads np.float_, which numpy {numpy} no longer has"
        found.append(Finding(True, what, "pip install 'numpy<2'"))
    if here.at_least("torch", "2.6"):
        what = "torch 2.6 and later refuse to load its checkpoints of pickled objects, so it trains and cannot test"
        found.append(Finding(True, what, "pip install 'torch<2.6'"))
    if here.python >= (3, 12) and here.versions["setuptools"] is None:
        what = "it counts operations with thop, whose distutils Python 3.12 has from setuptools only"
        found.append(Finding(True, what, "pip install setuptools"))
    if here.at_least("pandas", "3"):
        found.append(Finding(False, "pandas 3 leaves missing values that it means to fill", "pip install 'pandas<3'"))
    if here.at_least("scipy", "1.13"):
        what = "LightGCN, NGCF and five more call dok_matrix._update, which scipy 1.13 removed"
        found.append(Finding(False, what, "pip install 'scipy<1.13'"))
    return found


def attempt(code: str) -> tuple[str, str | None]:
    """Runs Python code in a process of its own, in an empty folder.

    Returns:
        what it printed, and the last line of its error if it failed.
    """
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS_TO_TRY,
            )
        except subprocess.TimeoutExpired:
            return "", f"no answer within {SECONDS_TO_TRY} s"
    if done.returncode == 0:
        return done.stdout, None
    return done.stdout, (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _table(here: Environment, machine: str) -> list[str]:
    lines = [f"recbole-cdsr {__version__} in {Path(__file__).parent}"]
    lines.append(f"Python {platform.python_version()} on {platform.platform()}")
    if machine:
        lines.append("GPUs that torch can use: {}; threads: {}".format(*machine.split()[-2:]))
    lines += ["", f"{'package':<16}{'installed':<16}needed"]
    for name, version in here.versions.items():
        bound = BOUNDS.get(name)
        needed = "" if bound is None else bound.text + (f" (extra '{bound.extra}')" if bound.extra else "")
        lines.append(f"{name:<16}{version or '-':<16}{needed}".rstrip())
    return lines


def _verdicts(findings: list[Finding], works: bool, alone: list[Finding], alone_works: bool) -> list[str]:
    lines = [f"recbole-cdsr {'runs' if works else 'cannot run'} here."]
    lines += _listed(findings)
    lines.append(f"RecBole alone (recbole.quick_start) would {'' if alone_works else 'not '}run here.")
    if works and not alone_works:
        lines.append(
            "Its models run all the same: recbole-cdsr run --model SASRec. To run it alone, take an environment"
        )
        lines.append("of its own and mend these there:")
    lines += _listed(alone)
    return lines


def _listed(findings: list[Finding]) -> list[str]:
    return [f"  {'error' if one.stops else 'note'}: {one.what}\n    mend: {one.mend}" for one in findings]
