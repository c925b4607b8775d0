"""Which models and data sets exist, found by their property files; imports neither RecBole nor torch.

A model of ours is `model/<name>.py` beside `properties/model/<Name>.yaml`; nothing is registered. People
write `AutoCDSR+`, `autocdsr_plus` or `TAPE-DDSR-HSTU`; `normalise` makes them one name.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.paths import properties_dir

BUILT_IN_DATASETS = {
    "ml-100k": "100,000 film ratings shipped with RecBole; one domain per genre group",
    "toy": "small generated histories with a planted cross-domain rule",
}

# Models of RecBole that this package does not feed, and why.
_FEATURES, _USERS, _PICKLE = "needs features beside events", "trains on whole users as rows", "keeps more than tensors"
NOT_OFFERED = {
    **dict.fromkeys(("DIN", "DIEN", "FDSA", "GRU4RecF", "GRU4RecKG", "KSR", "SASRecF"), _FEATURES),
    **dict.fromkeys(("MultiDAE", "MultiVAE", "MacridVAE", "CDAE", "ENMF", "DiffRec", "LDiffRec"), _USERS),
    **dict.fromkeys(("EASE", "ItemKNN", "SLIMElastic"), _PICKLE),
    "FEARec": "reads every padded row at once, which are not stored here",
    "S3Rec": "needs features and trains in two stages",
}


def normalise(name: str) -> str:
    """The name without case and punctuation; a plus sign is spelled out."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "plus"))


def own_models() -> dict[str, str]:
    """Normalised name -> class name of every model of this package."""
    return {normalise(path.stem): path.stem for path in sorted((properties_dir() / "model").glob("*.yaml"))}


def recbole_dir() -> Path:
    """The folder of the installed RecBole.

    Raises:
        CDSRError: if RecBole is not installed.
    """
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise CDSRError("RecBole is not installed; run: pip install 'recbole>=1.2.0,!=1.2.1,<1.3'")
    return Path(spec.origin).parent


def recbole_models(kinds: tuple[str, ...] = ("sequential_recommender", "general_recommender")) -> dict[str, str]:
    """Normalised name -> class name of RecBole's models that have a module in one of the `kinds`."""
    root = recbole_dir()
    modules = {path.stem for kind in kinds for path in (root / "model" / kind).glob("*.py")}
    stems = (path.stem for path in sorted((root / "properties" / "model").glob("*.yaml")))
    return {normalise(stem): stem for stem in stems if stem.lower() in modules}


def model_name(name: str) -> str:
    """The class name of the model that people call `name`.

    Raises:
        CDSRError: if there is none; names the nearest.
    """
    known = {**recbole_models(), **own_models()}
    key = normalise(name)
    if key in known:
        return known[key]
    raise CDSRError(f"there is no model '{name}'; {nearest(key, known, 'run `recbole-cdsr --help` to see all models')}")


def nearest(name: str, known, otherwise: str = "") -> str:
    """'did you mean X?' for the known name most like `name`, else the advice `otherwise`.

    Args:
        known: the valid names, or a mapping from a normalised name to the name to show.
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    if not found:
        return otherwise
    shown = known[found[0]] if isinstance(known, dict) else found[0]
    return f"did you mean '{shown}'?"
