"""``python -m tfl_rewrite``."""

from __future__ import annotations

import sys

from tfl_rewrite.cli import main

if __name__ == "__main__":
    sys.exit(main())
