"""What a model says of itself, and the files that belong to it, written out to a folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from tfl_rewrite.editing.descriptions import read_descriptions
from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.files.atomic import check_target, write_whole
from tfl_rewrite.files.attached import read_members
from tfl_rewrite.files.source import ModelLike, Source
from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.options.json_data import json_data

ENTRY = "metadata.json"
"""The metadata as JSON, beside the files."""
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def export_metadata(
    model: ModelLike, folder: str | os.PathLike[str], *, force: bool = False
) -> dict[str, Any]:
    """Writes the metadata of a model as JSON, and the files in its ZIP.

    A file keeps its name where that is plain: letters, digits, dots, dashes and low lines. Any other, such as
    one with a path in it, is written as ``file-N``; the JSON says which is which.

    Args:
        model: Whose.
        folder: Made if it is not there; its own folder has to be.
        force: Whether files in it may be replaced.

    Returns:
        What is in the JSON file.

    Raises:
        UsageError: A file exists, and ``force`` is off; or one is a symbolic link.
        FileAccessError: It cannot be read or written.
        FormatError, UnsupportedError: The metadata or the ZIP cannot be read.
    """
    source = Source.of(model)
    loaded = source.model()
    root = read_descriptions(loaded)
    members = read_members(source.tail.data if source.tail is not None else None)
    target = Path(folder)
    rows: list[dict[str, Any]] = []
    contents: dict[str, bytes] = {}
    for place, (member, data) in enumerate(members):
        if member.is_dir():
            continue
        name = _plain(member.filename, place, {known.casefold() for known in contents})
        contents[name] = data
        rows.append({"name": member.filename, "file": name, "nbytes": len(data)})
    entries = [{"name": entry.name, "nbytes": entry.buffer.nbytes} for entry in loaded.metadata]
    facts = {"schema": 1, "metadata": _data(root), "files": rows, "entries": entries}
    contents[ENTRY] = (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode("ascii")
    try:
        target.mkdir(exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileAccessError(f"cannot make the folder: {reason}", file=os.fspath(folder)) from error
    for name in contents:
        check_target(target / name, force=force)
        if (target / name).is_symlink():
            # What it leads to is somewhere else.
            raise UsageError(
                "is a symbolic link", file=target / name, remedy="remove it, or name another folder"
            )
    for name, data in contents.items():
        write_whole(target / name, data, force=force)
    return facts


def _plain(name: str, place: int, taken: set[str]) -> str:
    """Returns a name under which a file cannot leave the folder, nor be another one than it seems."""
    taken = {*taken, ENTRY}
    if _SAFE.fullmatch(name) and not _DEVICES.fullmatch(name) and name.casefold() not in taken:
        return name
    number = place
    while f"file-{number}" in taken:
        number += 1
    return f"file-{number}"


def _data(value: Any) -> Any:
    """Returns a record as JSON data: numbers of enumerations by name, bytes as numbers, NaN as text."""
    if isinstance(value, Record):
        rows: dict[str, Any] = {}
        for name, item in value.values.items():
            enum = value.spec.by_name[name].enum
            rows[name] = enum.name_of(item) if enum is not None and isinstance(item, int) else _data(item)
        return rows
    if isinstance(value, ScalarVector):
        return json_data(value.tolist())
    if isinstance(value, list):
        return [_data(item) for item in value]
    return json_data(value)
