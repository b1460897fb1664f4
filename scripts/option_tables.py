"""Writes the tables of options in docs/ from the rows of the options themselves.

    python scripts/option_tables.py          # writes them
    python scripts/option_tables.py --check  # exits with 1 if one is not as it would be written

In a page, a table stands between ``<!-- options of NAME -->`` and ``<!-- end of options -->``; NAME is that
of a pass, or one of `OTHERS`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.options.option import SWITCH, Option, options_of
from tfl_rewrite.passes import catalog
from tfl_rewrite.pipeline.chain import ChainOptions
from tfl_rewrite.pipeline.targets import Reshaping
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.shards.settings import JoinOptions, ShardOptions
from tfl_rewrite.shards.split import SplitOptions

DOCS = Path(__file__).resolve().parent.parent / "docs"
OTHERS: dict[str, Any] = {
    "verification": Judging,
    "shrink": Goal,
    "reshape": Reshaping,
    "chain": ChainOptions,
    "split": SplitOptions,
    "shard": ShardOptions,
    "join": JoinOptions,
}
_TABLE = re.compile(r"(<!-- options of ([a-z-]+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def table(owner: Any) -> str:
    """The options of a dataclass, a row each."""
    rows = [f"| {_names(row)} | {_cell(row.text)} |" for row in options_of(owner)]
    return "\n".join(["| option | meaning |", "|---|---|", *rows, ""])


def _names(row: Option) -> str:
    value = "" if row.kind is SWITCH else " " + (row.metavar or "|".join(row.choices))
    return ", ".join(f"`{flag}{value}`" for flag in row.flags).replace("|", "\\|")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def written(page: str) -> str:
    """A page with its tables as the rows of the options are now.

    Raises:
        KeyError: Nothing has the name that a table asks for.
    """
    owners = {**{kind.name: kind for kind in catalog.every()}, **OTHERS}
    return _TABLE.sub(lambda found: found[1] + table(owners[found[2]]) + found[3], page)


def names(page: str) -> list[str]:
    """Whose options a page lists."""
    return [found[2] for found in _TABLE.finditer(page)]


def main() -> int:
    """Writes every page that changes, or says which would."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a page would change"
    )
    options = parser.parse_args()
    changed = []
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        made = written(page)
        if made != page:
            changed.append(path)
            if not options.check:
                path.write_text(made, encoding="utf-8")
    for path in changed:
        print(f"{path.relative_to(DOCS.parent)}: {'not as the options say' if options.check else 'written'}")
    return 1 if changed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
