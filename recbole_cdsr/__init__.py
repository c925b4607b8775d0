"""Cross-domain sequential recommendation as a plugin for RecBole."""

import importlib

__version__ = "0.1.0"
__all__ = ["evaluate", "load", "run"]


def __getattr__(name: str):
    """`run`, `evaluate` and `load`, imported when they are first asked for: the command line's help needs no torch."""
    if name in __all__:
        return getattr(importlib.import_module("recbole_cdsr.quick_start"), name)
    raise AttributeError(f"module 'recbole_cdsr' has no attribute '{name}'")
