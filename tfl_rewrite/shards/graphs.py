"""The manifest of a model in parts that run, as data. Reading one trusts nothing in it.

JSON, version 1::

    {"format": "tfl-rewrite-graph-parts", "version": 1, "name": "model.tflite",
     "nbytes": ..., "sha256": "...",
     "inputs": [{"name": "image", "dtype": "float32", "shape": [1, -1, -1, 3]}, ...],
     "outputs": [{"name": "scores", "dtype": ..., "shape": ..., "from": [part, output]}, ...],
     "parts": [{"name": "1-<16 hex digits>.tflite", "nbytes": ..., "sha256": "...", "operators": 12,
                "inputs": [{"name": ..., "dtype": ..., "shape": ..., "from": [part, output]}, ...],
                "outputs": [{"name": ..., "dtype": ..., "shape": ...}, ...]}, ...]}

Parts run in their order. ``from`` says where a value comes from: the number of a part before and of its
output, or -1 and the number of an input of the whole. A size of -1 is known only when the model runs.
Names are for people and for :class:`tfl_rewrite.Chain`; no two inputs, and no two outputs, of the whole have
one name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.judge.routes import OUTSIDE, Feed
from tfl_rewrite.options.json_data import JsonFormat
from tfl_rewrite.shards.manifest import MAX_MANIFEST_NBYTES, MAX_TOTAL, count_in, digest_in, file_name_in

FORMAT = "tfl-rewrite-graph-parts"
VERSION = 1
_MOST_ENDS = 1 << 14
_MOST_RANK = 64
_JSON = JsonFormat(
    name=FORMAT,
    version=VERSION,
    what="a manifest of parts that run",
    most_nbytes=MAX_MANIFEST_NBYTES,
    remedy="name the chain.json that 'tfl-rewrite split' wrote",
)


@dataclass(frozen=True, slots=True)
class EndRow:
    """An input or an output.

    Attributes:
        name: Of the tensor.
        dtype: As numpy calls it, or ``string``.
        shape: -1 where a size is known only when the model runs.
        feed: Where its value comes from; None of an output of a part, and of an input of the whole.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    feed: Feed | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        data: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        return data if self.feed is None else {**data, "from": list(self.feed)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPart:
    """One file: a model that runs.

    Attributes:
        name: A plain file name; never a path.
        operators: How many it has.
        inputs: In order of its primary subgraph, each with what feeds it.
        outputs: Likewise.
    """

    name: str
    nbytes: int
    sha256: str
    operators: int
    inputs: tuple[EndRow, ...]
    outputs: tuple[EndRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphManifest:
    """Which parts there are, and who feeds whom. One that exists has been checked.

    Attributes:
        name: File name of the whole, for people.
        nbytes: Of the whole.
        sha256: Of the whole.
        inputs: Of the whole.
        outputs: Of the whole, each with where it comes from.
        parts: In the order in which they run.
    """

    name: str
    nbytes: int
    sha256: str
    inputs: tuple[EndRow, ...]
    outputs: tuple[EndRow, ...]
    parts: tuple[GraphPart, ...]

    def dump(self) -> bytes:
        """Returns the JSON text; the same manifest gives the same bytes."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "nbytes": self.nbytes,
            "sha256": self.sha256,
            "inputs": [row.to_dict() for row in self.inputs],
            "outputs": [row.to_dict() for row in self.outputs],
            "parts": [
                {
                    "name": part.name,
                    "nbytes": part.nbytes,
                    "sha256": part.sha256,
                    "operators": part.operators,
                    "inputs": [row.to_dict() for row in part.inputs],
                    "outputs": [row.to_dict() for row in part.outputs],
                }
                for part in self.parts
            ],
        }
        return (json.dumps(data, indent=1) + "\n").encode("ascii")


def parse(text: bytes, file: str) -> GraphManifest:
    """Reads a manifest.

    Args:
        text: The JSON.
        file: Where it came from, for errors.

    Raises:
        FormatError: It is damaged, leads out of its folder, or a part takes what is not there yet.
        UnsupportedError: A newer version of the format.
    """
    try:
        return _manifest(_JSON.parse(text))
    except (FormatError, UnsupportedError) as error:
        error.file = file
        raise


def _manifest(data: dict[str, Any]) -> GraphManifest:
    name = data.get("name")
    if not isinstance(name, str) or len(name) > 255:
        raise FormatError("is not a text of at most 255 characters", where="name")
    inputs = _ends(data, "inputs", "", None)
    counts = [len(inputs)]
    rows = data.get("parts")
    if not isinstance(rows, list) or not 1 <= len(rows) <= _MOST_ENDS:
        raise FormatError("is not a list of parts", where="parts")
    parts = []
    for number, row in enumerate(rows):
        where = f"parts[{number}]"
        if not isinstance(row, dict):
            raise FormatError("is not an object", where=where)
        parts.append(
            GraphPart(
                name=file_name_in(row, where),
                nbytes=count_in(row, "nbytes", MAX_TOTAL, where),
                sha256=digest_in(row, "sha256", where),
                operators=count_in(row, "operators", MAX_TOTAL, where),
                inputs=_ends(row, "inputs", f"{where}.", counts),
                outputs=_ends(row, "outputs", f"{where}.", None),
            )
        )
        counts.append(len(parts[-1].outputs))
    outputs = _ends(data, "outputs", "", counts)
    for what, ends in (("inputs", inputs), ("outputs", outputs)):
        if len({end.name for end in ends}) != len(ends):
            raise FormatError("two have the same name", where=what)
    return GraphManifest(
        name=name,
        nbytes=count_in(data, "nbytes", MAX_TOTAL, ""),
        sha256=digest_in(data, "sha256", ""),
        inputs=inputs,
        outputs=outputs,
        parts=tuple(parts),
    )


def _ends(data: dict[str, Any], key: str, where: str, counts: Sequence[int] | None) -> tuple[EndRow, ...]:
    """Reads inputs or outputs.

    Args:
        data: The object that has them.
        key: The field.
        where: In front of it, for errors.
        counts: How many inputs the whole has, and how many outputs each part so far; None where nothing feeds
            them.
    """
    rows = data.get(key)
    if not isinstance(rows, list) or len(rows) > _MOST_ENDS:
        raise FormatError("is not a list", where=f"{where}{key}")
    made = []
    for number, row in enumerate(rows):
        place = f"{where}{key}[{number}]"
        if not isinstance(row, dict):
            raise FormatError("is not an object", where=place)
        name, dtype, shape = row.get("name"), row.get("dtype"), row.get("shape")
        if not isinstance(name, str) or not isinstance(dtype, str) or len(name) > 1 << 16 or len(dtype) > 32:
            raise FormatError("is not a name and a type", where=place)
        if not isinstance(shape, list) or len(shape) > _MOST_RANK or not all(map(_is_size, shape)):
            raise FormatError("is not a list of sizes", where=f"{place}.shape")
        feed = None if counts is None else _feed(row.get("from"), counts, place)
        made.append(EndRow(name, dtype, tuple(shape), feed))
    return tuple(made)


def _is_size(value: object) -> bool:
    return type(value) is int and -1 <= value < 1 << 31


def _feed(value: object, counts: Sequence[int], place: str) -> Feed:
    if not isinstance(value, list) or len(value) != 2 or any(type(item) is not int for item in value):
        raise FormatError("is not [part, output]", where=f"{place}.from")
    part, output = value
    if not OUTSIDE <= part < len(counts) - 1 or not 0 <= output < counts[part + 1]:
        raise FormatError(f"{value} is not an output of a part before it", where=f"{place}.from")
    return part, output
