"""Makes the test models in `fixtures/`.

Needs an environment with `tensorflow`, `scikit-learn` and `ai-edge-litert`; for fixtures that TensorFlow
takes no part in, named with `--only`, `ai-edge-litert` is enough. What is derived from another fixture
reads that one from the output folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fixture_makers import readme
from fixture_makers.catalog import FIXTURES

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "fixtures"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Make the test models in fixtures/.")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="make these only, and what is made together with them; 'malformed' means all malformed files",
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where to (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the names and make nothing")
    options = parser.parse_args(argv)
    unknown = set(options.only or ()) - {name for fixture in FIXTURES for name in names(fixture.name)}
    if unknown:
        parser.error(f"no such fixture: {', '.join(sorted(unknown))}")
    return options


def names(name: str) -> set[str]:
    """What a fixture answers to: its name, or the folder that it stands in."""
    return {name, name.split("/")[0]}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the makers that the command line asks for, each once, in the catalogue's order."""
    options = arguments(argv)
    if options.list:
        print("\n".join(fixture.name for fixture in FIXTURES))
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    (options.out / "inputs").mkdir(parents=True, exist_ok=True)
    wanted = [
        fixture for fixture in FIXTURES if options.only is None or names(fixture.name) & set(options.only)
    ]
    for make in dict.fromkeys(fixture.make for fixture in wanted):
        made = [fixture.name for fixture in FIXTURES if fixture.make is make]
        print(made[0] if len(made) == 1 else f"{made[0]} and {len(made) - 1} more", file=sys.stderr)
        with contextlib.redirect_stdout(io.StringIO()):  # Keras reports every export
            make(options.out)
    readme.write(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
