"""The manifest of a model in parts, as data. Reading one trusts nothing in it.

JSON, version 1::

    {"format": "tfl-rewrite-parts", "version": 1, "name": "model.tflite", "nbytes": ..., "sha256": "...",
     "parts": [{"name": "<32 hex digits>.part", "compression": "none" or "gzip",
                "stored_nbytes": ..., "stored_sha256": "...", "nbytes": ..., "sha256": "..."}, ...],
     "layout": [[part, offset, nbytes], ...]}

The model is the slices of ``layout`` one after the other: ``nbytes`` bytes from ``offset`` of the unpacked
part with that number. So a part may hold a large constant and nothing else, while all the small stretches
between constants share a few parts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.options.formats import JsonFormat

FORMAT = "tfl-rewrite-parts"
VERSION = 1
MAX_MANIFEST_NBYTES = 8 << 20
MAX_PART = 1 << 30
"""No part is larger, so that a manifest cannot ask for more at once."""
MAX_TOTAL = 1 << 40
MAX_RATIO = 1032
"""What deflate shrinks at most (zlib's technical notes); more is not a gzip stream but a lie."""

_JSON = JsonFormat(
    name=FORMAT,
    version=VERSION,
    what="a manifest",
    most_nbytes=MAX_MANIFEST_NBYTES,
    remedy="name the manifest.json that 'tfl-rewrite shard' wrote",
)
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of the folder.

    Attributes:
        name: A plain file name; never a path.
        compression: ``none`` or ``gzip``.
        stored_nbytes: Size of the file, never more than ``nbytes``.
        stored_sha256: Of the file.
        nbytes: Unpacked.
        sha256: Unpacked.
    """

    name: str
    compression: str
    stored_nbytes: int
    stored_sha256: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What to fetch, and how the model is made of it. One that exists has been checked.

    Attributes:
        name: File name of the model, for people.
        nbytes: Size of the model.
        sha256: Of the model.
        parts: Without repetition; each is used.
        layout: ``(part, offset, nbytes)`` in the order of the file.
    """

    name: str
    nbytes: int
    sha256: str
    parts: tuple[Part, ...]
    layout: tuple[tuple[int, int, int], ...]

    def slices(self) -> list[list[tuple[int, int, int]]]:
        """For each part the ``(offset in it, nbytes, offset in the model)``, by offset in the part."""
        result: list[list[tuple[int, int, int]]] = [[] for _ in self.parts]
        position = 0
        for part, offset, nbytes in self.layout:
            result[part].append((offset, nbytes, position))
            position += nbytes
        for rows in result:
            rows.sort()
        return result

    def dump(self) -> bytes:
        """Returns the JSON text; the same manifest gives the same bytes."""
        head = {"format": FORMAT, "version": VERSION, "name": self.name}
        head |= {"nbytes": self.nbytes, "sha256": self.sha256}
        lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        parts = ",\n".join("  " + json.dumps(asdict(part)) for part in self.parts)
        rows = ",\n".join(
            "  " + ", ".join(json.dumps(list(row)) for row in self.layout[start : start + 6])
            for start in range(0, len(self.layout), 6)
        )
        body = [*lines, f' "parts": [\n{parts}\n ],', f' "layout": [\n{rows}\n ]']
        return ("{\n" + "\n".join(body) + "\n}\n").encode("ascii")


def parse(text: bytes, file: str) -> Manifest:
    """Reads a manifest.

    Args:
        text: The JSON; at most ``MAX_MANIFEST_NBYTES``.
        file: Where it came from, for errors.

    Raises:
        FormatError: It is damaged, or would lead out of its folder or beyond its own sizes.
        UnsupportedError: A newer version of the format.
    """
    try:
        return _manifest(_JSON.parse(text))
    except (FormatError, UnsupportedError) as error:
        error.file = file
        raise


def sha256_of(pieces: Iterable[bytes | memoryview]) -> str:
    """Returns the SHA-256 of bytes that come in pieces, in hex."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def too_long(file: str | None = None) -> FormatError:
    """The error about a manifest of more bytes than one may have."""
    return _JSON.too_long(file)


def _manifest(data: dict[str, Any]) -> Manifest:
    name = data.get("name")
    if not isinstance(name, str) or len(name) > 255:
        raise FormatError("is not a text of at most 255 characters", where="name")
    total = count_in(data, "nbytes", MAX_TOTAL, "")
    rows = data.get("parts")
    if not isinstance(rows, list) or not rows:
        raise FormatError("is not a list of parts", where="parts")
    parts = tuple(_part(row, f"parts[{index}]") for index, row in enumerate(rows))
    # Not all file systems tell upper from lower case.
    if len({part.name.casefold() for part in parts}) != len(parts):
        raise FormatError("two parts have the same name", where="parts")
    layout = tuple(_layout(data.get("layout"), parts))
    covered = sum(nbytes for _, _, nbytes in layout)
    if covered != total:
        raise FormatError(f"the slices add up to {covered} bytes, not {total}", where="layout")
    unused = set(range(len(parts))) - {part for part, _, _ in layout}
    if unused:
        raise FormatError("no slice uses it", where=f"parts[{min(unused)}]")
    return Manifest(name=name, nbytes=total, sha256=digest_in(data, "sha256", ""), parts=parts, layout=layout)


def _part(row: object, where: str) -> Part:
    if not isinstance(row, dict):
        raise FormatError("is not an object", where=where)
    name = file_name_in(row, where)
    compression = row.get("compression")
    if compression not in ("none", "gzip"):
        raise FormatError(f"{str(compression)[:40]!r} is not none or gzip", where=f"{where}.compression")
    part = Part(
        name=name,
        compression=compression,
        stored_nbytes=count_in(row, "stored_nbytes", MAX_PART, where),
        stored_sha256=digest_in(row, "stored_sha256", where),
        nbytes=count_in(row, "nbytes", MAX_PART, where),
        sha256=digest_in(row, "sha256", where),
    )
    if part.stored_nbytes > part.nbytes or part.nbytes > part.stored_nbytes * MAX_RATIO:
        raise FormatError(
            f"{part.stored_nbytes} bytes cannot hold {part.nbytes}", where=f"{where}.stored_nbytes"
        )
    same = (part.stored_nbytes, part.stored_sha256) == (part.nbytes, part.sha256)
    if compression == "none" and not same:
        raise FormatError("differs from the unpacked part, which is not compressed", where=where)
    return part


def _layout(rows: object, parts: tuple[Part, ...]) -> Iterator[tuple[int, int, int]]:
    if not isinstance(rows, list) or not rows:
        raise FormatError("is not a list of slices", where="layout")
    for index, row in enumerate(rows):
        where = f"layout[{index}]"
        if not isinstance(row, list) or len(row) != 3 or any(type(item) is not int for item in row):
            raise FormatError("is not [part, offset, nbytes]", where=where)
        part, offset, nbytes = row
        if not 0 <= part < len(parts):
            raise FormatError(f"part {part} is out of range; there are {len(parts)}", where=where)
        if offset < 0 or nbytes < 1 or offset + nbytes > parts[part].nbytes:
            raise FormatError(
                f"{nbytes} bytes at {offset} are not inside of a part of {parts[part].nbytes}", where=where
            )
        yield part, offset, nbytes


def file_name_in(row: dict[str, Any], where: str) -> str:
    """Returns the plain file name that an object has; never a path.

    Raises:
        FormatError: It has none.
    """
    name = row.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _RESERVED.fullmatch(name):
        raise FormatError(f"{str(name)[:80]!r} is not a plain file name", where=f"{where}.name")
    return name


def count_in(row: dict[str, Any], name: str, most: int, where: str) -> int:
    """Returns a number from 1 on that an object has.

    Raises:
        FormatError: It has none.
    """
    value = row.get(name)
    # A bool is an int to Python.
    if type(value) is not int or not 1 <= value <= most:
        raise FormatError(f"is not a number from 1 to {most}", where=f"{where}.{name}".lstrip("."))
    return value


def digest_in(row: dict[str, Any], name: str, where: str) -> str:
    """Returns a SHA-256 that an object has.

    Raises:
        FormatError: It has none.
    """
    value = row.get(name)
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise FormatError("is not a SHA-256 of 64 lower-case hex digits", where=f"{where}.{name}".lstrip("."))
    return value
