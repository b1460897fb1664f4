"""``metadata``: written to a model, or out of it."""

from __future__ import annotations

import argparse

from tfl_rewrite.cli.commands.rewrite import pass_of, rewrite_file
from tfl_rewrite.cli.text import safe, show
from tfl_rewrite.errors import UsageError


def write_metadata(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite metadata IN [OUT]``."""
    made = pass_of(arguments)
    if arguments.export is None:
        if arguments.target is None:
            raise UsageError("OUT is missing", remedy="name the file to write, or a folder with --export DIR")
        return rewrite_file(arguments, [made])
    from tfl_rewrite.reading.export import export_metadata

    if arguments.target is not None:
        raise UsageError("OUT and --export at once", remedy="write first, then export what was written")
    facts = export_metadata(arguments.source, arguments.export, force=arguments.force)
    names = ", ".join(safe(row["file"]) for row in facts["files"]) or "no files"
    said = "its metadata" if facts["metadata"] is not None else "no metadata"
    show(arguments, lambda: facts, lambda: [f"{safe(arguments.export)}: metadata.json ({said}), {names}"])
    return 0
