"""``check``, ``inspect`` and ``doctor``: they read one file, and import no more than that takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tfl_rewrite.cli.commands.doctor import doctor_file
from tfl_rewrite.cli.progress import Bar
from tfl_rewrite.cli.show import show
from tfl_rewrite.cli.text import print_lines, safe
from tfl_rewrite.errors import FormatError, TflRewriteError
from tfl_rewrite.work import working


def inspect_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite inspect MODEL``."""
    from tfl_rewrite.cli.render_reading import inspection_lines
    from tfl_rewrite.reading.inspect import inspect

    with Bar.of(arguments) as bar, working(progress=bar):
        found = inspect(arguments.model, largest=arguments.largest)
    show(arguments, found.to_dict, lambda: inspection_lines(found, verbose=arguments.verbose))
    return 0


_SOUND = {True: "sound", False: "NOT SOUND", None: "NOT CHECKED"}


def check_files(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite check MODEL...``."""
    from tfl_rewrite.reading.check import examine

    rows: list[dict[str, Any]] = []
    worst = 0
    for path in arguments.models:
        notes: list[str] = []
        code = 0
        try:
            problems, notes = examine(path)
            code = FormatError.exit_code if problems else 0
        except TflRewriteError as error:
            error.file = None
            problems, code = [str(error)], error.exit_code
        worst = max(worst, code)
        # Of a file that is not there, or of a kind that this program does not know, nothing is known.
        sound = None if code not in (0, FormatError.exit_code) else code == 0
        rows.append({"file": path, "sound": sound, "problems": problems, "notes": notes})
        if not arguments.json and not (arguments.quiet and not problems):
            lines = [f"{safe(path) or repr(path)}: {_SOUND[sound]}"]
            first = problems if arguments.verbose else problems[:10]
            lines += [f"  {safe(problem, limit=400)}" for problem in first]
            if len(first) < len(problems):
                lines.append(f"  ... and {len(problems) - len(first)} more (-v shows all)")
            lines += [f"  note: {safe(note, limit=400)}" for note in notes]
            print_lines(lines)
    if arguments.json:
        import json

        print_lines([json.dumps({"schema": 1, "files": rows}, indent=2)])
    return worst


BY_NAME: dict[str, Callable[[argparse.Namespace], int]] = {
    "check": check_files,
    "doctor": doctor_file,
    "inspect": inspect_file,
}
