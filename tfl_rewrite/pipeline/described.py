"""What a chain says of itself: the descriptions of its inputs and outputs, and the label files behind it.

An input is described as the first model describes it, an output as the second does. What a stage takes over
is left out, such as the normalization of an input before which there is a stage. Label files of both models
come along; of two that differ and have one name, that of the second gets the name of its model in front.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfl_rewrite.editing.descriptions import SIDES, read_descriptions, record
from tfl_rewrite.editing.metadata import DESCRIPTIONS
from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.files.container import ZipTail
from tfl_rewrite.files.layout import packed, read_members, tail_of
from tfl_rewrite.files.source import Source
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.model.ir import Model
from tfl_rewrite.pipeline.wiring import End

if TYPE_CHECKING:
    from tfl_rewrite.files.layout import Members

_AXIS_LABELS, _VALUE_LABELS = 2, 3
"""``AssociatedFileType``: names of the places along an axis, and of the values."""
_NUMBERS = ("argmax", "top-k")


def joined_zip(
    sources: Sequence[Source], names: Sequence[str]
) -> tuple[ZipTail | None, list[dict[str, str]]]:
    """Returns the label files of all models as one ZIP, and for each model the new names of its files.

    Args:
        sources: The files.
        names: In front of names that are taken.

    Raises:
        UnsupportedError: A ZIP cannot be read, or holds more than label files take.
    """
    held = [(source.tail, name) for source, name in zip(sources, names, strict=True)]
    renamed: list[dict[str, str]] = [{} for _ in held]
    tails = [tail for tail, _ in held if tail is not None]
    if len(tails) < 2:
        return (tails[0] if tails else None), renamed
    known: dict[str, bytes] = {}
    members: Members = []
    for (tail, name), source, new in zip(held, sources, renamed, strict=True):
        try:
            # As if it began its file: offsets count from its own start then.
            own = read_members(None if tail is None else tail.moved(0))
        except UnsupportedError as error:
            error.file = source.path
            raise
        for info, data in own:
            if known.get(info.filename, data) != data:
                new[info.filename] = _free(f"{name}_{info.filename}", known)
            chosen = new.get(info.filename, info.filename)
            if chosen not in known:
                known[chosen] = data
                entry = zipfile.ZipInfo(chosen, info.date_time)
                entry.compress_type = info.compress_type
                members.append((entry, data))
    return tail_of(packed(members, {})), renamed


def _free(name: str, taken: Mapping[str, object]) -> str:
    made, number = name, 1
    while made in taken:
        number += 1
        made = f"{number}_{name}"
    return made


def described(
    models: Sequence[Model],
    inputs: Sequence[End],
    outputs: Sequence[End],
    renamed: Sequence[Mapping[str, str]],
    notes: list[str],
) -> Record | None:
    """Returns what the whole says of itself; None where no model says anything.

    Args:
        models: As they were.
        inputs: Of the whole.
        outputs: Of the whole.
        renamed: For each model new names of its label files.
        notes: Gets a line for each model whose descriptions cannot be read.
    """
    roots: list[Record | None] = []
    for model, new in zip(models, renamed, strict=True):
        try:
            root = read_descriptions(model)
        except (FormatError, UnsupportedError) as error:
            notes.append(f"metadata {DESCRIPTIONS} not kept: it {error.what}")
            root = None
        roots.append(None if root is None else _with_files(root, new))
    first = next((root for root in roots if root is not None), None)
    if first is None:
        return None
    graphs = [(root.get("subgraph_metadata") or [None])[0] if root is not None else None for root in roots]
    made = {
        SIDES["inputs"]: [_tensor(graphs, end, "inputs") for end in inputs],
        SIDES["outputs"]: [_tensor(graphs, end, "outputs") for end in outputs],
    }
    files = [item for graph in graphs if graph is not None for item in graph.get("associated_files") or ()]
    more: dict[str, Any] = {"associated_files": _once(files)} if files else {}
    own = next((graph for graph in graphs if graph is not None), None)
    name = own.get("name") if own is not None else None
    graph = record("SubGraphMetadata", name=name, **made, **more)
    whole = [item for root in roots if root is not None for item in root.get("associated_files") or ()]
    more = {"associated_files": _once(whole)} if whole else {}
    return first.replace(subgraph_metadata=[graph], **more)


def _tensor(graphs: Sequence[Record | None], end: End, side: str) -> Record:
    """What is said of an input or an output."""
    graph = graphs[end.model]
    rows = list(graph.get(SIDES[side]) or ()) if graph is not None else []
    name = end.arguments[0][1] if end.arguments else end.tensor.name
    if end.place >= len(rows):
        return record("TensorMetadata", name=name)
    row: Record = rows[end.place]
    if not end.through:
        return row
    files = list(row.get("associated_files") or ())
    if any(stage in _NUMBERS for stage in end.through):
        # Names of places are names of values now, and a score has none.
        is_number = end.tensor.name.endswith(("_argmax", "_indices"))
        files = [item.replace(type=_VALUE_LABELS) for item in files if item.get("type") == _AXIS_LABELS]
        return record("TensorMetadata", name=name, associated_files=files if is_number and files else None)
    # Its least and largest values, and what was to be done to it, are those of the model inside.
    row = row.replace(stats=None)
    return row.replace(process_units=None) if side == "inputs" else row


def _with_files(item: Any, renamed: Mapping[str, str]) -> Any:
    """The same with label files under their new names, wherever they are named."""
    if not renamed:
        return item
    if isinstance(item, list):
        return [_with_files(part, renamed) for part in item]
    if not isinstance(item, Record):
        return item
    changes = {
        key: _with_files(value, renamed)
        for key, value in item.values.items()
        if isinstance(value, (list, Record))
    }
    if item.spec.name == "AssociatedFile" and item.get("name") in renamed:
        changes["name"] = renamed[item.get("name")]
    return item.replace(**changes) if changes else item


def _once(files: Sequence[Record]) -> list[Record]:
    """Each file once, by its name."""
    return list({item.get("name") or str(number): item for number, item in enumerate(files)}.values())


def lost(models: Sequence[Model], sources: Sequence[Source], kept: Sequence[str]) -> list[str]:
    """Says which metadata of each model the whole does not have."""
    notes = []
    for model, source in zip(models, sources, strict=True):
        names = [entry.name or "(unnamed)" for entry in model.metadata if entry.name not in kept]
        if names:
            notes.append(f"metadata of {Path(source.path).name} not kept: {', '.join(names)}")
    return notes
