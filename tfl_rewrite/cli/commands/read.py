"""``check``, ``inspect``, ``doctor`` and ``diff``: they read files, and import no more than that takes."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tfl_rewrite.cli.progress import Bar
from tfl_rewrite.cli.text import print_lines, safe, show
from tfl_rewrite.errors import FormatError, TflRewriteError, VerificationError
from tfl_rewrite.work import working


def inspect_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite inspect MODEL``."""
    from tfl_rewrite.cli.render_reading import inspection_lines
    from tfl_rewrite.reading.inspect import inspect

    with Bar.of(arguments) as bar, working(progress=bar):
        found = inspect(arguments.model, largest=arguments.largest)
    show(arguments, found.to_dict, lambda: inspection_lines(found, verbose=arguments.verbose))
    return 0


def diff_files(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite diff BEFORE AFTER``."""
    from tfl_rewrite.cli.render_reading import comparison_lines
    from tfl_rewrite.reading.diff import diff

    with Bar.of(arguments) as bar, working(progress=bar):
        found = diff(arguments.before, arguments.after)
    show(arguments, found.to_dict, lambda: comparison_lines(found, verbose=arguments.verbose))
    return 0


def doctor_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite doctor MODEL``."""
    from tfl_rewrite.cli.render_reading import diagnosis_lines
    from tfl_rewrite.reading.doctor import diagnose
    from tfl_rewrite.reading.findings import Severity

    found = diagnose(arguments.model, min_runtime=arguments.min_runtime)
    show(arguments, found.to_dict, lambda: diagnosis_lines(found, verbose=arguments.verbose))
    return VerificationError.exit_code if found.reaches(Severity(arguments.fail_on)) else 0


_SOUND = {True: "sound", False: "NOT SOUND", None: "NOT CHECKED"}


def check_files(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite check MODEL...``."""
    from tfl_rewrite.kernels.runtimes import unmeasured_here
    from tfl_rewrite.reading.check import examine

    newer = unmeasured_here()
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
        told = [newer] if newer else []
        print_lines([json.dumps({"schema": 1, "files": rows, "notes": told}, indent=2)])
    elif newer and not arguments.quiet:
        print_lines([f"note: {safe(newer, limit=400)}"])
    return worst
