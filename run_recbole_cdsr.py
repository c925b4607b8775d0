"""Runs a model from a checkout: `python run_recbole_cdsr.py --model AutoCDSR --dataset ml-100k`.

The same as `recbole-cdsr run ...`. Another command may stand first: `python run_recbole_cdsr.py evaluate ...`.
"""

from __future__ import annotations

import sys

from recbole_cdsr.cli import main


def with_command(arguments: list[str]) -> list[str]:
    """The arguments, with `run` in front unless they name a command; options of `run` all begin with a dash."""
    if arguments and not arguments[0].startswith("-"):
        return arguments
    return ["run", *arguments]


if __name__ == "__main__":
    sys.exit(main(with_command(sys.argv[1:])))
