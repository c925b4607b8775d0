"""Cross-domain sequential recommendation as a plugin for RecBole."""

__version__ = "0.1.0"
