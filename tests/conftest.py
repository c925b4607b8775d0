"""What every test shares: one thread, an empty working directory, a command line that is not pytest's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before anything imports torch or numpy: small tensors run faster on one thread, and results do not depend on cores.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

REPO = Path(__file__).resolve().parent.parent
# A process that a test starts elsewhere imports this checkout too, whatever copy is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
if str(REPO) not in sys.path:  # "pytest" instead of "python -m pytest"
    sys.path.insert(0, str(REPO))

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# No deadline: a busy machine is not a bug. In CI the same examples every time.
settings.register_profile("repository", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("repository")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository; tests run elsewhere, so a path into the repository starts here."""
    return REPO


@pytest.fixture(scope="session", autouse=True)
def _session_directory(tmp_path_factory):
    """Fixtures of a wider scope than one test leave nothing in the checkout either."""
    previous = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("session"))
    yield
    os.chdir(previous)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    """Each test works in its own empty folder: RecBole makes log/ and saved/ wherever it stands."""
    monkeypatch.chdir(tmp_path)
    # RecBole's Config takes every --key=value it finds in sys.argv for a setting: pytest's options too.
    monkeypatch.setattr(sys, "argv", ["pytest"])
