"""Cross-domain sequential recommendation as a plugin for RecBole."""

__version__ = "0.1.0"
__all__ = ["evaluate", "load", "run"]


def __getattr__(name: str):
    """`run`, `evaluate` and `load`, imported when they are first asked for: the command line's help needs no torch."""
    if name in __all__:
        from recbole_cdsr import quick_start

        return getattr(quick_start, name)
    raise AttributeError(f"module 'recbole_cdsr' has no attribute '{name}'")
