"""What a model says of itself: how its inputs are made, which files belong to it; a file of one in memory."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from tfl_rewrite.editing.descriptions import read_descriptions
from tfl_rewrite.editing.metadata import DESCRIPTIONS, INPUTS, OUTPUTS, SUBGRAPHS, MetadataTables
from tfl_rewrite.errors import FileAccessError, TflRewriteError, UsageError
from tfl_rewrite.files.atomic import check_target, write_whole
from tfl_rewrite.files.layout import read_members
from tfl_rewrite.files.source import ModelLike, Source, load
from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.interpreter.scratch import Scratch, scratch_errors
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.options.json_data import json_data
from tfl_rewrite.samples.inputs import expand_paths
from tfl_rewrite.samples.media import Declared, Media

# Slots of ``metadata_schema.fbs`` (tflite-support).
_MODEL_FILES, _SUBGRAPH_FILES = 6, 4  # ModelMetadata, SubGraphMetadata
_CONTENT, _PROCESS_UNITS, _TENSOR_FILES = 3, 4, 6  # TensorMetadata
_FILE_NAME = 0  # AssociatedFile
_NORMALIZATION, _AUDIO = 1, 4  # members of ProcessUnitOptions, ContentProperties
_MEAN, _STD = 0, 1  # NormalizationOptions
_RATE = 0  # AudioProperties


def with_media(judging: Judging, model: str | os.PathLike[str]) -> Judging:
    """Prepares the pictures, sound files and folders of them among the inputs.

    Args:
        judging: Says how they are read; what was prepared before stays as it is.
        model: The file whose metadata is asked how its inputs are made, where that is not said.

    Raises:
        UsageError: A path does not exist, or it is said how media are read, and there are none.
    """
    given = {
        "--input-range": judging.input_range,
        "--input-layout": judging.input_layout,
        "--sample-rate": judging.sample_rate,
    }
    if not any(map(_is_media, (*judging.inputs, *judging.holdout))):
        for option, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{option} is for pictures and sound, and no input is one",
                    remedy="name a folder of them with --inputs",
                )
        return judging
    declared = declared_inputs(model)
    made = [
        tuple(
            Media(
                Path(path),
                judging.input_range,
                judging.input_layout,
                judging.sample_rate,
                declared,
            )
            if _is_media(path)
            else path
            for path in paths
        )
        for paths in (judging.inputs, judging.holdout)
    ]
    return replace(
        judging, inputs=made[0], holdout=made[1], input_range=None, input_layout=None, sample_rate=None
    )


def _is_media(path: str | os.PathLike[str]) -> bool:
    return not isinstance(path, Media) and any(isinstance(found, Media) for found in expand_paths([path]))


def declared_inputs(model: str | os.PathLike[str]) -> dict[str, Declared]:
    """What the metadata of a file says of its inputs, by name of the tensor; nothing where it is damaged."""
    try:
        loaded = load(model)
    except TflRewriteError:
        # Verification itself says what is wrong with it, if the runtime minds.
        return {}
    entry = loaded.metadata_named(DESCRIPTIONS)
    if entry is None or entry.buffer.blob is None:
        return {}
    try:
        rows = described_inputs(bytes(entry.buffer.blob.view()))
    except ValueError:
        return {}
    names = [tensor.name or "" for tensor in loaded.subgraphs[0].inputs]
    if len(rows) != len(names) or len(set(names)) < len(names):
        return {}
    return {name: row for name, row in zip(names, rows, strict=True) if row != Declared()}


def unfit_normalization(before: str | os.PathLike[str], after: Model) -> list[str]:
    """Says where the normalization that metadata declares does not fit an input of another type any more.

    Mean and standard deviation make real values of pixels, whatever the type. But readers give inputs of 8
    bits the pixels themselves (``ImagePreprocessor`` of tflite-support): then the integers must be what
    quantizing the normalized pixels gives.

    Args:
        before: The file as it was; its inputs have the same names.
        after: What was made of it.

    Returns:
        A line for each such input.
    """
    declared = declared_inputs(before)
    if not declared:
        return []
    known = {tensor.name: tensor for tensor in load(before).subgraphs[0].inputs}
    notes = []
    for tensor in after.subgraphs[0].inputs:
        row, old = declared.get(tensor.name), known.get(tensor.name)
        if row is None or old is None or not row.mean or old.dtype == tensor.dtype:
            continue
        item = tensor if tensor.dtype_name in _PIXELS else old
        off = _steps_off(item, row)
        if off > 1:
            where, most = f"{item.dtype_name.lower()} input {item.name!r}", f"up to {off:.0f} steps"
            told = f"do not fit {where}: pixels as they are lie {most} off; normalize, then quantize them"
            if item is old:
                told = f"do not make of pixels what {where} took them for: they lie {most} off"
            notes.append(f"the metadata's mean and std {told}")
    return notes


_PIXELS = {"UINT8": 0, "INT8": -128}
"""What inputs of 8 bits get for a black pixel."""


def _steps_off(tensor: Tensor, declared: Declared) -> float:
    """By how many of its steps an input that gets pixels as they are differs from normalized pixels."""
    details = tensor.quantization
    if tensor.dtype_name not in _PIXELS or details is None or not details.scale:
        return 0.0
    scale, zero = float(details.scale[0]), int((details.zero_point or (0,))[0])
    bounds = [
        abs((_PIXELS[tensor.dtype_name] + pixel - zero) - (pixel - mean) / std / scale)
        for pixel in (0, 255)
        for mean, std in zip(declared.mean, cycle(declared.std), strict=False)
    ]
    return max(bounds)


def associated_files(data: bytes) -> list[str]:
    """Returns the names of the files that the metadata of a model speaks of, each once.

    Files of process units (tokenizers) repeat those of the tensor, and are not followed.

    Raises:
        ValueError: The metadata is damaged.
    """
    tables = MetadataTables(data)
    root = tables.root()
    owners = [(root, _MODEL_FILES)]
    for subgraph in tables.tables(root, SUBGRAPHS):
        owners.append((subgraph, _SUBGRAPH_FILES))
        for slot in (INPUTS, OUTPUTS):
            owners += [(tensor, _TENSOR_FILES) for tensor in tables.tables(subgraph, slot)]
    names = [tables.text(file, _FILE_NAME) for table, slot in owners for file in tables.tables(table, slot)]
    return list(dict.fromkeys(name for name in names if name))


def zip_members(data: bytes) -> list[zipfile.ZipInfo]:
    """Returns what an appended ZIP holds.

    Args:
        data: The ZIP, its offsets counted from its own start.

    Raises:
        ValueError: It was found by its records, but not everybody can read it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        raise ValueError(str(error)) from error


def described_inputs(data: bytes) -> list[Declared]:
    """Returns what the metadata of a model says of each input of the first subgraph.

    Raises:
        ValueError: It is damaged.
    """
    tables = MetadataTables(data)
    subgraphs = tables.tables(tables.root(), SUBGRAPHS)
    return [_declared(tables, item) for item in tables.tables(subgraphs[0], INPUTS)] if subgraphs else []


def _declared(tables: MetadataTables, table: int) -> Declared:
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    for unit in tables.tables(table, _PROCESS_UNITS):
        options = tables.member(unit, _NORMALIZATION)
        if options is not None:
            mean, std = tables.floats(options, _MEAN), tables.floats(options, _STD)
    if not mean or not std or not all(map(math.isfinite, (*mean, *std))) or 0.0 in std:
        mean, std = (), ()
    content = tables.target(table, _CONTENT)
    audio = None if content is None else tables.member(content, _AUDIO)
    place = 0 if audio is None else tables.field(audio, _RATE)
    rate = tables.u32(place) if place else 0
    return Declared(mean=mean, std=std, sample_rate=rate if 1000 <= rate <= 768000 else None)


@contextlib.contextmanager
def on_disk(model: ModelLike) -> Iterator[str | os.PathLike[str]]:
    """Gives a path as it is, and of anything else a source that interpreters can open.

    Written to a temporary folder is only what lies in no file, or in one that was replaced meanwhile.

    Raises:
        FileAccessError, FormatError, UnsupportedError, UsageError: See :meth:`Source.of`.
    """
    if isinstance(model, (str, os.PathLike)) and not isinstance(model, Source):
        yield model
        return
    source = Source.of(model)
    if source.file is not None and source.container.is_at(source.file):
        yield source
        return
    with Scratch() as scratch:
        path = scratch.path / "model.tflite"
        with scratch_errors():
            path.write_bytes(source.container.data)
        yield source.placed(path)


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
