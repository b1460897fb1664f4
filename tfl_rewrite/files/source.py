"""The way from a file, opened and checked once, to a model, any number of times; and back.

Every byte is accounted for. An old converter left tables that it did not use, a packer something behind the
model: such bytes, which no offset of the model reaches, may go with a rewrite unless something finds them by
their position, which the rewrite would move. The options of custom operators (compiled code for an
accelerator is addressed so) and metadata of unknown meaning are bytes that only their owner understands, so a
number in them that lies within such a range counts as an address.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from tfl_rewrite.errors import FileAccessError, FormatError, TflRewriteError, UnsupportedError, shell_path
from tfl_rewrite.files.atomic import PLAIN, access_of, atomic_write
from tfl_rewrite.files.container import Container, ZipTail, explain_orphans, find_zip, unexplained
from tfl_rewrite.files.layout import Layout, bytes_text, differs, planned
from tfl_rewrite.flatbuf.reader import ReadResult, read
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.model.blob import Blob, MappedBlob
from tfl_rewrite.model.ir import Model, schema
from tfl_rewrite.model.lift import DISPATCH, KNOWN_CUSTOM, lift

# The writer is loaded when something is written: it takes longer to import than a small file to read.

if TYPE_CHECKING:
    from tfl_rewrite.flatbuf.writer import Packing


SCHEMA_VERSION = 3
"""The only ``Model.version`` that runtimes since 2017 take (``TFLITE_SCHEMA_VERSION``)."""

Ranges = Sequence[tuple[int, int]]
ModelLike = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Model
"""What is taken wherever a model is: a path, the bytes of a file, a file open for reading, or a model."""

_SMALL_FILE = 1 << 16
_MOST_NBYTES = 1 << 20
"""Of bytes that are searched for addresses; what is longer counts as if it held one."""
_METADATA = frozenset(
    {
        "TFLITE_METADATA",
        "min_runtime_version",
        "CONVERSION_METADATA",
        "OfflineMemoryAllocation",
        "COMPRESSION_METADATA",
        "reduced_precision_support",
    }
)
"""Entries whose content is known: no positions in the file."""
_MOST_READ = 64 << 20
"""Files that a caller loads are read whole up to here: ``open(path, "wb")`` empties one that is read on."""
_CONTENT = ((b"PK\x03\x04", "a ZIP archive"), (b"PK\x05\x06", "a ZIP archive"), (b"TFL3", "another model"))


class Source(os.PathLike[str]):
    """A model's file, parsed and checked; taken wherever a path is, so that nothing is parsed again.

    The file is mapped, not copied: constants are read when they are used. It may also be in memory only, as
    bytes that somebody gave; then :func:`tfl_rewrite.reading.metadata.on_disk` gives it a file for as long as
    something has to open it by a path.

    Args:
        container: The mapped file.

    Attributes:
        file: Path of a file that holds it; None where it is in memory only.
        root: The records as read.
        tail: The ZIP after the model, if any.
        refusals: Why a changed model must not be saved; empty for nearly all files.
        dead: Byte ranges that nothing explains; a rewrite leaves them out, unless a refusal says why not.
        shared: Byte ranges that lie in two things that are not the same, such as a constant over a table.

    Raises:
        FormatError: It is damaged; the error names the place.
        UnsupportedError: It is of a schema version other than 3.
    """

    __slots__ = ("_checked", "container", "dead", "file", "refusals", "root", "shared", "tail")

    def __init__(self, container: Container) -> None:
        ensure_model(container)
        self.container = container
        self.file: str | None = container.path if container.on_disk else None
        try:
            result = read(container.data, schema(), release=container.release_all)
            model = _checked_model(result.root, container)
            self.root: Record = result.root
            self.tail, dead = _account(result, model, container)
            refusals = [_newer(item) for item in result.unknown]
            if dead:
                refusals += _dead(model, container, dead)
            refusals += _absolute_operators(model)
        except TflRewriteError as error:
            error.file = error.file or container.path
            raise
        for refusal in refusals:
            refusal.file = container.path
        self.refusals: tuple[UnsupportedError, ...] = tuple(refusals)
        self.dead: tuple[tuple[int, int], ...] = tuple(dead)
        self.shared: tuple[tuple[int, int], ...] = tuple(_overlaps(result.spans))
        # Whoever asks first gets the model that was made for the checks.
        self._checked: Model | None = model

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Source:
        """Maps and checks a file.

        Raises:
            FileAccessError: It cannot be read.
            FormatError, UnsupportedError: See :class:`Source`.
        """
        return cls(Container.open(path))

    @classmethod
    def of(cls, source: ModelLike) -> Source:
        """Returns what a path, bytes, an open file or a model stands for.

        What is parsed already is not parsed again: an open source, and a model that is as it was loaded.

        Raises:
            FileAccessError: It cannot be read.
            UsageError: It is none of these.
            FormatError, UnsupportedError: See :class:`Source`; or a changed model cannot be written.
        """
        if isinstance(source, Source):
            return source
        if not isinstance(source, Model):
            return cls(Container.of(source))
        origin = origin_of(source)
        made = planned(source, origin)
        if origin is not None and made.verbatim is origin.container:
            return origin
        return cls(Container.of_bytes(made.to_bytes(), "<model>"))

    def placed(self, file: str | os.PathLike[str]) -> Source:
        """Returns the same, of which another file holds the bytes; nothing is parsed again."""
        made = copy.copy(self)
        made.file, made._checked = os.fspath(file), None
        return made

    def __fspath__(self) -> str:
        if self.file is None:
            raise FileAccessError("is in memory, not in a file", file=self.path)
        return self.file

    def __str__(self) -> str:
        return self.container.path

    @property
    def path(self) -> str:
        """The name that it was opened by."""
        return self.container.path

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.container.nbytes

    def to_bytes(self, model: Model) -> bytes:
        """Returns the file of a model that was built here, as it is now; see :meth:`Model.to_bytes`."""
        self.container.ensure_unchanged(as_read=True)
        return planned(model, self).to_bytes()

    def model(self) -> Model:
        """Builds a model of the file as it was opened; nothing is parsed again."""
        model, self._checked = self._checked or lift(self.root, self.container), None
        model.origin = self
        return model


def _checked_model(root: Record, container: Container) -> Model:
    version = root.get("version")
    if version != SCHEMA_VERSION:
        raise UnsupportedError(
            f"the model is of schema version {version}; only version {SCHEMA_VERSION} can be read",
            remedy="convert it again with a converter of 2018 or newer",
        )
    model = lift(root, container)
    if not model.subgraphs:
        raise FormatError("the model has no subgraph", where="subgraphs")
    return model


def _account(
    result: ReadResult, model: Model, container: Container
) -> tuple[ZipTail | None, list[tuple[int, int]]]:
    """Returns the ZIP behind the model, and the bytes that nothing explains."""
    outside = [
        (blob.offset, blob.offset + blob.nbytes)
        for blob in _outside_blobs(model)
        if isinstance(blob, MappedBlob)
    ]
    end = max((stop for _, stop in [*result.spans, *outside]), default=0)
    tail = find_zip(container.data, end)
    spans = [*result.spans, *outside]
    if tail is not None:
        spans.append((tail.offset, container.nbytes))
    dead = unexplained(container.data, spans, release=container.release_all)
    if dead:
        orphans = explain_orphans(container.data, dead, result.vtables)
        # All or nothing: a part that happens to look like tables explains nothing.
        dead = dead if unexplained(container.data, [*spans, *orphans]) else []
    return tail, dead


def origin_of(model: Model) -> Source | None:
    """Returns what a model was loaded from, or None for one made in memory."""
    return model.origin if isinstance(model.origin, Source) else None


def ensure_model(container: Container) -> None:
    """Checks that a file has the identifier of a model.

    Raises:
        FormatError: It is something else; the error says what, and what to do.
    """
    identifier = schema().identifier or b""
    if bytes(container.data[4:8]) == identifier:
        return
    from tfl_rewrite.files.foreign import recognize

    found = recognize(container.data, container.path, identifier)
    remedy = found.remedy.replace("FILE", shell_path(container.path))
    raise FormatError(f"is {found.what}", file=container.path, offset=found.offset, remedy=remedy)


def _overlaps(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yields the ranges in which spans, sorted by where they start, lie over an earlier one."""
    end = 0
    for start, stop in spans:
        if start < end:
            yield start, min(stop, end)
        end = max(end, stop)


def _outside_blobs(model: Model) -> list[Blob]:
    blobs = [buffer.blob for buffer in model.buffers if buffer.outside and buffer.blob is not None]
    return blobs + [item.large_custom for _, item in model.operators() if item.large_custom is not None]


def _newer(item: str) -> UnsupportedError:
    return UnsupportedError(
        f"{item} is newer than this program's schema and would be lost", remedy="use a newer tfl-rewrite"
    )


def _dead(model: Model, container: Container, ranges: list[tuple[int, int]]) -> list[UnsupportedError]:
    """Returns why bytes that no offset reaches cannot be left out; nothing where they can."""
    needed = _who_needs(model, container, ranges)
    if needed is None:
        return []
    where, reason = needed
    remedy = "rewrite the file that it was made from, before they were added"
    if ranges[-1][1] == container.nbytes:
        remedy = f"if they are not needed, keep only the first {ranges[0][0]} bytes of the file"
    what = f"no offset of the model reaches {bytes_text(ranges)}, and they are not zero: {reason}"
    return [UnsupportedError(what, where=where, offset=ranges[0][0], remedy=remedy)]


def _absolute_operators(model: Model) -> list[UnsupportedError]:
    """Finds operators whose custom options hold file positions that only their vendor understands."""
    return [
        UnsupportedError(
            "DISPATCH_OP addresses compiled code by its position in the file, which a rewrite would move",
            where=f"operator_codes[{index}]",
            remedy="rewrite the model before it is compiled for the accelerator",
        )
        for index, code in enumerate(model.operator_codes)
        if code.custom == DISPATCH and any(operator.code is code for _, operator in model.operators())
    ]


def _who_needs(model: Model, container: Container, ranges: Ranges) -> tuple[str | None, str] | None:
    """Returns why bytes that no offset reaches cannot go, or None where they can.

    Args:
        model: The model of the file.
        container: The file.
        ranges: The bytes, as ``(start, end)``.

    Returns:
        The place of what may address them (None where that is not it), and the reason.
    """
    for start, stop in ranges:
        for magic, what in _CONTENT:
            if _find(container, magic, start, stop):
                return None, f"they hold what looks like {what}"
    for place, holder, data in _opaque(model):
        if len(data) > _MOST_NBYTES or DISPATCH in holder:
            return place, f"{holder} may address them by their position"
        number = _address(bytes(data), ranges, container.nbytes)
        if number is not None:
            return place, f"{holder} holds the number {number}, which may address them by their position"
    return None


def _find(container: Container, magic: bytes, start: int, stop: int) -> bool:
    step = 1 << 20
    return any(
        magic in bytes(container.data[at : min(at + step + len(magic), stop)])
        for at in range(start, stop, step)
    )


def _opaque(model: Model) -> Iterator[tuple[str, str, memoryview]]:
    """Yields what only its owner understands: the place, what it is in words, and its bytes."""
    seen: set[int] = set()
    for index, subgraph in enumerate(model.subgraphs):
        for position, operator in enumerate(subgraph.operators):
            place = model.place_of(operator, f"subgraphs[{index}].operators[{position}]")
            name = operator.code.custom
            if name is None or name in KNOWN_CUSTOM or name.startswith("Flex"):
                continue
            options = operator.rest.get("custom_options")
            if options is not None and id(options) not in seen:
                seen.add(id(options))
                yield place, f"the options of custom operator {name}", memoryview(options.raw)
            if operator.large_custom is not None:
                yield place, f"the options of custom operator {name}", operator.large_custom.view()
    for entry in model.metadata:
        if entry.name not in _METADATA and entry.buffer.blob is not None:
            yield f"metadata {entry.name or '(unnamed)'}", "its content", entry.buffer.blob.view()


def _address(data: bytes, ranges: Ranges, nbytes: int) -> int | None:
    """Returns a number in some bytes that lies in a range: 4 bytes or digits, in small files 2 bytes."""
    low, high = min(start for start, _ in ranges), max(stop for _, stop in ranges)
    for width in (4, 2) if nbytes <= _SMALL_FILE else (4,):
        for at in range(len(data) - width + 1):
            number = int.from_bytes(data[at : at + width], "little")
            if low <= number < high and _within(number, ranges):
                return number
    for digits in re.findall(rb"\d{2,12}", data):
        if _within(int(digits), ranges):
            return int(digits)
    return None


def _within(number: int, ranges: Ranges) -> bool:
    return any(start <= number < stop for start, stop in ranges)


def load(source: ModelLike) -> Model:
    """Reads a ``.tflite`` file.

    A large file that is given by its path is mapped, not copied: constants are read when they are used. Until
    then nobody may write into it; to replace it, as :func:`save` does, is no matter.

    Args:
        source: A path, bytes, a file open for reading, or a model, of which this makes another.

    Raises:
        FileAccessError: It cannot be read.
        FormatError: It is damaged; the error names the place.
        UnsupportedError: It is of a schema version other than 3.

    Example:
        >>> model = tfl_rewrite.load("model.tflite")
        >>> [operator.code.name for operator in model.subgraphs[0].operators][-2:]
        ['FULLY_CONNECTED', 'SOFTMAX']
    """
    if isinstance(source, (str, os.PathLike)) and not isinstance(source, Source):
        return Source(Container.open(source, most_read=_MOST_READ)).model()
    return Source.of(source).model()


def is_changed(model: Model) -> bool:
    """Whether a model differs, in any field or byte, from the file that it was loaded from."""
    origin = origin_of(model)
    return origin is None or differs(model, origin)


def layout(model: Model, *, packing: Packing | None = None) -> Layout:
    """Plans the file of a model; nothing is written yet. See :func:`tfl_rewrite.files.layout.planned`."""
    return planned(model, origin_of(model), packing=packing)


def save(
    model: Model,
    target: str | os.PathLike[str],
    *,
    force: bool = False,
    packing: Packing | None = None,
) -> int:
    """Writes a model to a file, atomically; it is not verified (see :func:`tfl_rewrite.rewrite`).

    Args:
        model: An unchanged model is written byte for byte as it was loaded.
        target: The file to make.
        force: Whether it may exist; it may be the file that the model was loaded from. Who may read it is as
            for that file.
        packing: As for :func:`layout`; the ``packing`` of a pass's result.

    Returns:
        The size of the file in bytes.

    Raises:
        UsageError: The target is a directory, exists, or its folder does not.
        UnsupportedError: See :func:`layout`.
        FileAccessError: It cannot be written, or the file that the model came from was changed meanwhile.

    Example:
        >>> model = tfl_rewrite.load("model.tflite")
        >>> model.description = "digits"
        >>> tfl_rewrite.save(model, "described.tflite") > 0
        True
    """
    origin = origin_of(model)
    if origin is not None:
        origin.container.ensure_unchanged(as_read=True)
    made = layout(model, packing=packing)
    access = PLAIN if origin is None else access_of(origin.container.path)
    with atomic_write(target, force=force, nbytes=made.nbytes, access=access) as output:
        made.write_to(output.sink)
        if origin is not None:
            origin.container.ensure_unchanged(as_read=True)
        output.publish()
    return made.nbytes
