"""Where the property files lie, in a checkout and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path

from recbole_cdsr.errors import CDSRError


def properties_dir() -> Path:
    """The folder of the shipped yaml files: inside the package (wheel) or beside it (checkout).

    Raises:
        CDSRError: if neither exists.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "properties", package.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise CDSRError(f"no properties/ folder in {package} or beside it; install recbole-cdsr again")
