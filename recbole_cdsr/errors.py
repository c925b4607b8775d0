"""The errors that a user can act on."""

from __future__ import annotations


class CDSRError(ValueError):
    """Bad input or a broken environment, told in one sentence: what is wrong, where, and what to do.

    The command line prints the sentence without a stack trace and ends with exit status 2.
    """

    told_here: bool | None = None  # of several processes, whether this one tells it; None: the first one does
