"""The metadata ``TFLITE_METADATA`` as records: what a model says of itself, read and written whole.

Its schema is that of tflite-support (``metadata_schema.fbs``), compiled beside this file. Tables that are
written again are equal to those that were read, field by field, where nobody changed them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tfl_rewrite.editing.metadata import DESCRIPTIONS, set_content
from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.flatbuf.reader import read
from tfl_rewrite.flatbuf.record import Record, Schema, load_schema
from tfl_rewrite.flatbuf.writer import plan
from tfl_rewrite.model.blob import MemorySink
from tfl_rewrite.model.ir import Metadata, Model

SIDES = {"inputs": "input_tensor_metadata", "outputs": "output_tensor_metadata"}
"""Fields of ``SubGraphMetadata`` that describe inputs and outputs, by those of a subgraph."""
_GROUPS = {"inputs": "input_tensor_groups", "outputs": "output_tensor_groups"}


@lru_cache(maxsize=1)
def schema() -> Schema:
    """Returns the schema of the metadata, that of tflite-support 0.4.4."""
    return load_schema(Path(__file__).with_name("metadata.schema").read_text(encoding="ascii"))


def record(table: str, **values: Any) -> Record:
    """Makes a table of the metadata; what is None is absent."""
    return Record(schema().tables[table]).replace(**values)


def read_descriptions(model: Model) -> Record | None:
    """Returns what a model says of itself; None where it says nothing.

    Raises:
        FormatError: It is damaged.
        UnsupportedError: It holds what the schema does not know.
    """
    entry = model.metadata_named(DESCRIPTIONS)
    if entry is None or entry.buffer.blob is None:
        return None
    try:
        found = read(memoryview(bytes(entry.buffer.blob.view())), schema())
    except FormatError as error:
        raise FormatError(f"is damaged: {error.what}", where=f"metadata {DESCRIPTIONS}") from None
    if found.unknown:
        raise UnsupportedError(
            f"{found.unknown[0]} is newer than this program's schema and would be lost",
            where=f"metadata {DESCRIPTIONS}",
            remedy="use a newer tfl-rewrite",
        )
    return found.root


def write_descriptions(model: Model, root: Record) -> None:
    """Has a model say this of itself; what it said before is gone."""
    made = plan(root, schema())
    sink = MemorySink(made.nbytes)
    made.write_to(sink)
    entry = model.metadata_named(DESCRIPTIONS)
    if entry is None:
        entry = Metadata(DESCRIPTIONS, model.add_buffer())
        model.metadata.append(entry)
    set_content(model, entry, bytes(sink.data))


def with_names(root: Record, place: int, side: str, names: Sequence[Mapping[str, str]]) -> Record:
    """Returns the metadata with other names of the inputs or outputs of a subgraph, and in their groups.

    Args:
        root: The metadata.
        place: Of the subgraph.
        side: ``inputs`` or ``outputs``.
        names: For each of them, new names by what it was called before. Who described it by a name of
            another kind goes on to do so.
    """
    subgraphs = list(root.get("subgraph_metadata") or ())
    if place >= len(subgraphs):
        return root
    described = list(subgraphs[place].get(SIDES[side]) or ())
    if len(described) != len(names):
        return root
    changed: dict[str, str] = {}
    for index, known in enumerate(names):
        old = described[index].get("name")
        new = known.get(old) if old else None
        if new is not None and new != old:
            changed[old] = new
            described[index] = described[index].replace(name=new)
    if not changed:
        return root
    groups = [
        group.replace(tensor_names=[changed.get(name, name) for name in group.get("tensor_names") or ()])
        if group.get("tensor_names")
        else group
        for group in subgraphs[place].get(_GROUPS[side]) or ()
    ]
    more = {_GROUPS[side]: groups} if groups else {}
    subgraphs[place] = subgraphs[place].replace(**{SIDES[side]: described}, **more)
    return root.replace(subgraph_metadata=subgraphs)


def keep_subgraph(model: Model, place: int) -> list[str]:
    """Has the metadata describe one subgraph alone, as the main one.

    Args:
        model: Its metadata is changed.
        place: Of the subgraph, as it was.

    Returns:
        What was done, a line each.
    """
    try:
        root = read_descriptions(model)
    except (FormatError, UnsupportedError) as error:
        return [f"{error.where} left as it is: {error.what}"]
    described = [] if root is None else list(root.get("subgraph_metadata") or ())
    if root is None or described == described[place : place + 1]:
        return []
    write_descriptions(model, root.replace(subgraph_metadata=described[place : place + 1] or None))
    return [f"metadata {DESCRIPTIONS}: it describes the subgraph that stays"]
