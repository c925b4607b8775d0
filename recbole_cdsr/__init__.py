"""Cross-domain sequential recommendation as a plugin for RecBole."""

import importlib

__version__ = "0.1.0"
_HOME = {"evaluate": "quick_start", "load": "quick_start", "run": "quick_start", "Recommender": "recommend.recommender"}
__all__ = ["Recommender", "evaluate", "load", "run"]


def __getattr__(name: str):
    """What `__all__` names, imported when it is first asked for: the command line's help needs no torch."""
    if name in _HOME:
        return getattr(importlib.import_module(f"recbole_cdsr.{_HOME[name]}"), name)
    raise AttributeError(f"module 'recbole_cdsr' has no attribute '{name}'")
