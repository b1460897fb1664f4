"""The manifest of a model in parts, as data. Reading one trusts nothing in it.

JSON; version 1 has no base::

    {"format": "tfl-rewrite-parts", "version": 2, "name": "model.tflite", "nbytes": ..., "sha256": "...",
     "parts": [{"name": "<32 hex digits>.part", "compression": "none" or "gzip",
                "stored_nbytes": ..., "stored_sha256": "...", "nbytes": ..., "sha256": "..."}, ...],
     "base": {"nbytes": ..., "sha256": "...", "layout": [[part, offset, nbytes], ...]},
     "layout": [[part, offset, nbytes], [offset, nbytes],
                [part, offset, nbytes, codes, scales, channels, inner, first, width], ...]}

The model is the rows of ``layout`` one after the other. Three numbers are a slice: ``nbytes`` bytes from
``offset`` of the unpacked part with that number. So a part may hold a large constant and nothing else, while
all the small stretches between constants share a few parts.

Version 2 has a base, a model of its own that consists of slices. Two numbers are bytes of that. Nine are
weights: the slice is what is left of floats of ``width`` bytes, 4 or 2 (:mod:`tfl_rewrite.shards.residual`),
when two things are known: their int8 codes, from offset ``codes`` of the base on, and ``channels`` float32
scales from offset ``scales``. Element ``i`` of the row has the scale ``(first + i) // inner % channels``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.options.json_data import JsonFormat

FORMAT = "tfl-rewrite-parts"
VERSION = 2
MAX_MANIFEST_NBYTES = 8 << 20
MAX_PART = 1 << 30
"""No part is larger, so that a manifest cannot ask for more at once."""
MAX_TOTAL = 1 << 40
MAX_RATIO = 1032
"""What deflate shrinks at most (zlib's technical notes); more is not a gzip stream but a lie."""
MAX_ELEMENTS = 64 << 10
"""Of one row of weights, which whoever joins holds at once."""
WIDTHS = (2, 4)
"""Bytes of a float."""

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


class WeightRow(NamedTuple):
    """A row of weights; see above."""

    part: int
    offset: int
    nbytes: int
    codes: int
    scales: int
    channels: int
    inner: int
    first: int
    width: int

    @property
    def elements(self) -> int:
        """How many floats it makes."""
        return self.nbytes // self.width


Row = tuple[int, ...]
"""One of ``layout``: a slice of a part, a slice of the base, or a :class:`WeightRow`."""
_SLICE, _COPY = 3, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What to fetch, and how the model is made of it. One that exists has been checked.

    Attributes:
        name: File name of the model, for people.
        nbytes: Size of the model.
        sha256: Of the model.
        parts: Without repetition; each is used.
        layout: In the order of the file.
        base: Another model, of some of the parts, of which this one is made too; or None.
    """

    name: str
    nbytes: int
    sha256: str
    parts: tuple[Part, ...]
    layout: tuple[Row, ...]
    base: Manifest | None = None

    @property
    def assembled_nbytes(self) -> int:
        """Bytes that are put together for it, those of its base included."""
        return self.nbytes + (0 if self.base is None else self.base.nbytes)

    def slices(self) -> list[list[tuple[int, int, int]]]:
        """For each part the ``(offset in it, nbytes, offset in the model)``, by offset in the part.

        Rows of weights that share their bytes are one slice, which has the place of the first.
        """
        result: list[list[tuple[int, int, int]]] = [[] for _ in self.parts]
        for position, row in self._placed():
            if len(row) == _SLICE:
                result[row[0]].append((row[1], row[2], position))
        for position, rows in self.weights().items():
            _, first = rows[0]
            result[first.part].append((first.offset, first.nbytes, position))
        for found in result:
            found.sort()
        return result

    def copies(self) -> list[tuple[int, int, int]]:
        """The ``(offset in the base, nbytes, offset in the model)`` of what both have."""
        return [(*row, position) for position, row in self._placed() if len(row) == _COPY]  # type: ignore[misc]

    def weights(self) -> dict[int, list[tuple[int, WeightRow]]]:
        """Rows of weights that share their bytes, with their offsets in the model; by that of the first."""
        groups: dict[tuple[int, int, int], list[tuple[int, WeightRow]]] = {}
        for position, row in self._placed():
            if isinstance(row, WeightRow):
                groups.setdefault((row.part, row.offset, row.nbytes), []).append((position, row))
        return {rows[0][0]: rows for rows in groups.values()}

    def _placed(self) -> Iterator[tuple[int, Row]]:
        """Yields each row with its offset in the model."""
        position = 0
        for row in self.layout:
            yield position, row
            position += _nbytes(row)

    def dump(self) -> bytes:
        """Returns the JSON text; the same manifest gives the same bytes."""
        head = {"format": FORMAT, "version": 1 if self.base is None else VERSION, "name": self.name}
        head |= {"nbytes": self.nbytes, "sha256": self.sha256}
        lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        parts = ",\n".join("  " + json.dumps(asdict(part)) for part in self.parts)
        lines.append(f' "parts": [\n{parts}\n ],')
        if self.base is not None:
            numbers = {part.name: number for number, part in enumerate(self.parts)}
            base = [(numbers[self.base.parts[row[0]].name], *row[1:]) for row in self.base.layout]
            sizes = f'"nbytes": {self.base.nbytes}, "sha256": {json.dumps(self.base.sha256)}'
            lines.append(f' "base": {{{sizes}, "layout": [\n{_text(base)}\n ]}},')
        lines.append(f' "layout": [\n{_text(self.layout)}\n ]')
        return ("{\n" + "\n".join(lines) + "\n}\n").encode("ascii")


def _nbytes(row: Row) -> int:
    return row[1] if len(row) == _COPY else row[2]


def _text(rows: Sequence[Row]) -> str:
    starts = range(0, len(rows), 6)
    lines = (", ".join(json.dumps(list(row)) for row in rows[start : start + 6]) for start in starts)
    return ",\n".join(f"  {line}" for line in lines)


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
    base = _base(data, name, parts) if data["version"] > 1 else None
    layout = _layout(data, total, parts, base, "")
    used = {row[0] for row in layout if len(row) != _COPY}
    names = {part.name for part in base.parts} if base is not None else set()
    for number, part in enumerate(parts):
        if number not in used and part.name not in names:
            raise FormatError("no slice uses it", where=f"parts[{number}]")
    return Manifest(
        name=name, nbytes=total, sha256=digest_in(data, "sha256", ""), parts=parts, layout=layout, base=base
    )


def _base(data: dict[str, Any], name: str, parts: tuple[Part, ...]) -> Manifest:
    row = data.get("base")
    if not isinstance(row, dict):
        raise FormatError("is not an object", where="base")
    total = count_in(row, "nbytes", MAX_TOTAL, "base")
    layout = _layout(row, total, parts, None, "base.")
    used = list(dict.fromkeys(part for part, *_ in layout))
    numbers = {part: number for number, part in enumerate(used)}
    return Manifest(
        name=name,
        nbytes=total,
        sha256=digest_in(row, "sha256", "base"),
        parts=tuple(parts[part] for part in used),
        layout=tuple((numbers[part], *rest) for part, *rest in layout),
    )


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


def _layout(
    data: dict[str, Any], total: int, parts: tuple[Part, ...], base: Manifest | None, inside: str
) -> tuple[Row, ...]:
    rows = data.get("layout")
    if not isinstance(rows, list) or not rows:
        raise FormatError("is not a list of slices", where=f"{inside}layout")
    shapes = (_SLICE,) if base is None else (_SLICE, _COPY, len(WeightRow._fields))
    made: list[Row] = []
    for index, row in enumerate(rows):
        where = f"{inside}layout[{index}]"
        if not isinstance(row, list) or len(row) not in shapes or any(type(item) is not int for item in row):
            kinds = "" if base is None else ", or [offset, nbytes] of the base, or a row of weights"
            raise FormatError(f"is not [part, offset, nbytes]{kinds}", where=where)
        if len(row) == _COPY:
            assert base is not None
            _check_inside(row[0], row[1], base.nbytes, "the base", where)
            made.append(tuple(row))
            continue
        if not 0 <= row[0] < len(parts):
            raise FormatError(f"part {row[0]} is out of range; there are {len(parts)}", where=where)
        _check_inside(row[1], row[2], parts[row[0]].nbytes, "a part", where)
        made.append(
            tuple(row) if base is None or len(row) == _SLICE else _weights(WeightRow(*row), base, where)
        )
    covered = sum(map(_nbytes, made))
    if covered != total:
        raise FormatError(f"the slices add up to {covered} bytes, not {total}", where=f"{inside}layout")
    _check_apart(made, f"{inside}layout")
    return tuple(made)


def _check_inside(offset: int, nbytes: int, most: int, what: str, where: str) -> None:
    if offset < 0 or nbytes < 1 or offset + nbytes > most:
        raise FormatError(f"{nbytes} bytes at {offset} are not inside of {what} of {most}", where=where)


def _weights(row: WeightRow, base: Manifest, where: str) -> WeightRow:
    """Checks what a row of weights is predicted from."""
    if row.width not in WIDTHS or row.nbytes % row.width or row.elements > MAX_ELEMENTS:
        what = f"at most {MAX_ELEMENTS} floats of 2 or 4 bytes"
        raise FormatError(f"{row.nbytes} bytes are not {what}", where=where)
    _check_inside(row.codes, row.elements, base.nbytes, "the base", where)
    if not 1 <= row.channels <= base.nbytes:
        raise FormatError(f"has {row.channels} channels", where=where)
    _check_inside(row.scales, 4 * row.channels, base.nbytes, "the base", where)
    if not 1 <= row.inner <= MAX_TOTAL or not 0 <= row.first <= MAX_TOTAL:
        raise FormatError(f"element {row.first} of channels of {row.inner} is out of range", where=where)
    return row


def _check_apart(layout: list[Row], where: str) -> None:
    """Refuses rows of weights of which several are incomplete at once while their part is read."""
    found = sorted({row[:3] for row in layout if isinstance(row, WeightRow)})
    for before, after in pairwise(found):
        if before[0] == after[0] and before[1] + before[2] > after[1]:
            raise FormatError(f"rows of weights overlap in part {after[0]} at {after[1]}", where=where)


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


def digest_of(value: object) -> str:
    """Returns a SHA-256 that somebody gave, in lower case.

    Raises:
        ValueError: It is none.
    """
    text = str(value).strip().lower()
    if not _SHA256.fullmatch(text):
        raise ValueError("is no SHA-256 of 64 hex digits")
    return text


def digest_in(row: dict[str, Any], name: str, where: str) -> str:
    """Returns a SHA-256 that an object has.

    Raises:
        FormatError: It has none.
    """
    value = row.get(name)
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise FormatError("is not a SHA-256 of 64 lower-case hex digits", where=f"{where}.{name}".lstrip("."))
    return value
