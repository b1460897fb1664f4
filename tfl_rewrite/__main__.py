"""``python -m tfl_rewrite``."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated:
    # The current folder comes first with -m: nothing but this package is to be imported from there.
    del sys.path[0]

from tfl_rewrite.cli import main

if __name__ == "__main__":
    sys.exit(main())
