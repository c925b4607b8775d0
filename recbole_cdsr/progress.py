"""How far a long loop has come: a bar on a terminal, a line in the log once a minute elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0
logger = logging.getLogger()
_LINE = "{desc}: {percentage:.0f} % after {elapsed}, about {remaining} left"


class _Log:
    """What tqdm takes for a file: each text that says something becomes a line of the log."""

    def write(self, text: str) -> None:
        if text.strip():
            logger.info(text.strip())

    def flush(self) -> None:
        """Nothing waits."""


def progress(steps: Any, description: str, shown: bool) -> tqdm:
    """Iterates over ``steps``, which has a length; a loop shorter than the time between lines logs none."""
    if not shown or sys.stderr.isatty():
        return tqdm(steps, desc=description, leave=False, disable=not shown)
    pause = SECONDS_BETWEEN_LINES
    return tqdm(
        steps,
        desc=description,
        leave=False,
        file=_Log(),
        mininterval=pause,
        maxinterval=pause,
        delay=pause,
        bar_format=_LINE,
    )
