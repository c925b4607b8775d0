"""The errors that a user can act on."""

from __future__ import annotations


class CDSRError(ValueError):
    """Bad input or a broken environment, told in one sentence: what is wrong, where, and what to do.

    The command line prints the sentence without a stack trace and ends with exit status 2.
    """

    of_one_process = False  # True: of several processes started by torchrun, each tells its own
