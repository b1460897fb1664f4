"""An assignment as a recipe file that can be reviewed and applied again without a search."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from tfl_rewrite.search.units import LEAST_ELEMENTS, Choice, Unit
from tfl_rewrite.weights.patterns import MOST_CHARACTERS, exact
from tfl_rewrite.weights.recipe import VERSION


def recipe_text(units: Sequence[Unit], choice: Choice) -> str:
    """Returns a recipe: a rule for each constant that is stored otherwise, and one that keeps the rest."""
    counts = Counter(unit.name for unit in units)
    lines = [
        "# tfl-rewrite quantize-weights IN OUT --map FILE.toml "
        f"--min-elements {LEAST_ELEMENTS} applies this without a search.",
        "# Rounding looks at --inputs, and shrink lays the file out anew (compact): bytes may differ.",
        f"version = {VERSION}",
        "",
    ]
    for unit in units:
        encoding = choice.get(unit.position)
        if encoding is None:
            continue
        if not unit.name or counts[unit.name] > 1 or not _is_text(unit.name):
            named = json.dumps(unit.name[:200])
            lines.append(f"# left out, for a rule cannot say its name: {named} as {encoding}")
            continue
        lines += [
            "[[rule]]",
            f"# {', '.join(unit.readers)}: {unit.nbytes:,} bytes",
            f"match = {_quoted(exact(unit.name))}",
            f'encoding = "{encoding}"',
            "",
        ]
    lines += ["[[rule]]", 'match = ""', 'encoding = "float32"', ""]
    return "\n".join(lines)


def _is_text(name: str) -> bool:
    """Whether a name can stand in a file of text, and in a pattern."""
    broken = any(0xD800 <= ord(char) <= 0xDFFF for char in name)
    return not broken and len(exact(name)) <= MOST_CHARACTERS


def _quoted(text: str) -> str:
    """Returns a basic string of TOML, whose escapes are those of JSON but for DEL."""
    return json.dumps(text).replace("\x7f", "\\u007f")
