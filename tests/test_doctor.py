"""doctor names what is in the way, in this environment and in others."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys

import pytest

from recbole_cdsr import doctor

GOOD = {
    "recbole": "1.2.0", "torch": "2.13.0+cpu", "numpy": "2.4.6", "pandas": "2.3.3", "pyarrow": "26.0.1",
    "scipy": "1.17.1", "safetensors": "0.8.0", "pyyaml": "6.0.4", "tqdm": "4.70.1", "setuptools": "84.2.1",
}  # fmt: skip
# What RecBole 1.2.0 alone runs in.
OLD = {**GOOD, "numpy": "1.26.4", "torch": "2.5.1", "scipy": "1.12.0", "ray": "2.60.0", "kmeans_pytorch": "0.3"}


def environment(base=GOOD, python=(3, 11), **versions):
    empty = dict.fromkeys([*doctor.BOUNDS, *doctor.ALSO_SHOWN])
    return doctor.Environment(python, {**empty, **base, **versions})


def test_the_bounds_are_those_of_setup_cfg(repo):
    setup = configparser.RawConfigParser()
    setup.read(repo / "setup.cfg", encoding="utf-8")
    texts = {None: setup["options"]["install_requires"], **setup["options.extras_require"]}
    wanted = {}
    for extra, text in texts.items():
        for line in text.splitlines() if extra not in ("test", "dev") else []:
            if found := re.match(r"([a-z]+)(?:\[.*\])?([<>=!].*)", line.strip()):
                wanted[found[1]] = found[2], extra
    assert {name: (bound.text, bound.extra) for name, bound in doctor.BOUNDS.items()} == wanted


def test_a_good_environment_has_no_findings():
    assert doctor.conflicts(environment()) == []
    assert doctor.conflicts_of_recbole_alone(environment(OLD)) == []


@pytest.mark.parametrize(
    ("versions", "stops", "what"),
    [
        ({"torch": None}, True, "torch is not installed"),
        ({"safetensors": None}, True, "safetensors is not installed"),
        ({"recbole": "1.1.1"}, True, "recbole 1.1.1 is older than 1.2.0"),
        ({"recbole": "1.3.0"}, True, "recbole 1.3.0 is not below 1.3"),
        ({"recbole": "1.2.1"}, False, "demands ray<=2.6.3"),
        ({"torch": "2.5.1+cu124"}, True, "CVE-2025-32434"),
        ({"pandas": "3.1.0"}, False, "fillna"),
        ({"ray": "2.6.3"}, False, "only the extra 'tune' needs it"),
        ({"torchjd": "0.19.0"}, False, "only the extra 'surgery' needs it"),
    ],
)
def test_each_conflict_is_named_with_a_way_to_mend_it(versions, stops, what):
    (finding,) = doctor.conflicts(environment(**versions))
    assert finding.stops is stops and what in finding.what
    assert finding.mend.startswith("pip install ")


def test_python_outside_the_tested_versions_is_told():
    old, new = (doctor.conflicts(environment(python=python))[0] for python in ((3, 9), (3, 14)))
    assert old.stops and not new.stops


@pytest.mark.parametrize(
    ("python", "versions", "stops", "what"),
    [
        ((3, 11), {"ray": None}, True, "imports ray"),
        ((3, 11), {"kmeans_pytorch": None}, True, "kmeans_pytorch"),
        ((3, 11), {"numpy": "2.0.0"}, True, "np.float_"),
        ((3, 11), {"torch": "2.6.0"}, True, "checkpoints"),
        ((3, 12), {"setuptools": None}, True, "distutils"),
        ((3, 11), {"pandas": "3.0.0"}, False, "missing values"),
        ((3, 11), {"scipy": "1.13.0"}, False, "dok_matrix"),
        ((3, 11), {"recbole": None}, True, "not installed"),
    ],
)
def test_each_reason_against_recbole_alone_is_named(python, versions, stops, what):
    (finding,) = doctor.conflicts_of_recbole_alone(environment(OLD, python, **versions))
    assert finding.stops is stops and what in finding.what and finding.mend


def test_versions_compare_as_numbers():
    assert doctor.numbers("2.13.0+cpu") == (2, 13, 0) > doctor.numbers("2.6")
    assert doctor.numbers("0.1.1-2209072238") == (0, 1, 1)


def run(*options):
    return subprocess.run(
        [sys.executable, *options, "-m", "recbole_cdsr", "doctor", "--json"], capture_output=True, text=True
    )


def test_it_finds_this_environment_fit():
    done = run()
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["works"], report["findings"]
    assert report["versions"]["recbole"].startswith("1.2.")
    page = subprocess.run([sys.executable, "-m", "recbole_cdsr", "doctor"], capture_output=True, text=True).stdout
    assert "recbole-cdsr runs here." in page and "RecBole alone (recbole.quick_start) would" in page


def test_it_answers_where_nothing_is_installed():
    done = run("-S")  # without site-packages
    report = json.loads(done.stdout)
    assert done.returncode == 1 and not report["works"] and not report["recbole_alone_works"]
    assert {"recbole is not installed", "torch is not installed"} <= {one["what"] for one in report["findings"]}


def test_what_is_installed_and_broken_is_told(monkeypatch, tmp_path, capsys):
    (tmp_path / "pyarrow.py").write_text("raise ImportError('libarrow.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor.main([]) == 1
    page = capsys.readouterr().out
    assert "recbole-cdsr cannot run here" in page and "libarrow.so: cannot open" in page
