"""`python -m recbole_cdsr` does what the command `recbole-cdsr` does."""

from __future__ import annotations

import sys

from recbole_cdsr.cli import main

if __name__ == "__main__":
    sys.exit(main())
