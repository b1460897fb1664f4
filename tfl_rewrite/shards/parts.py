"""Cuts a model into parts, and writes them with their manifest.

Content decides where a file is cut, not position: a large constant has parts of its own, which are the same
in every file that holds the constant. What lies between large constants (tables, small constants, padding)
shares a few parts.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, TflRewriteError, UsageError, VerificationError
from tfl_rewrite.files.atomic import PLAIN, NamelessFile, access_of, nameless_file
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source
from tfl_rewrite.model.blob import MappedBlob
from tfl_rewrite.model.ir import Model
from tfl_rewrite.model.likeness import equal_pieces
from tfl_rewrite.shards.join import write_part
from tfl_rewrite.shards.manifest import MAX_MANIFEST_NBYTES, Manifest, Part, parse, sha256_of
from tfl_rewrite.shards.settings import ShardOptions
from tfl_rewrite.shards.sources import FolderSource

LARGE = 64 << 10
"""Constants from here on have parts of their own; a request for fewer bytes costs more than the bytes."""
_LARGE_SHARE = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """One part to be: the slices of the file that it consists of, as ``(offset, nbytes)``."""

    slices: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """Size of the part."""
        return sum(nbytes for _, nbytes in self.slices)


def cut(container: Container, max_nbytes: int) -> tuple[list[Cut], list[str]]:
    """Cuts a whole file into parts; every byte is in exactly one.

    Args:
        container: The file; one that is no sound model is cut by size alone.
        max_nbytes: Of a part.

    Returns:
        The parts in order of their first byte, and what a reader should know.
    """
    notes = []
    try:
        model = Source(container).model()
        constants = _constants(model)
        if any(group.name for group in model.external_groups):
            notes.append(
                "weights in files beside the model are not among the parts; 'tfl-rewrite join' makes one file"
            )
    except TflRewriteError as error:
        error.file = None
        constants = []
        notes.append(f"cut by size alone, the constants could not be told: {error}")
    large = [
        (offset, nbytes) for offset, nbytes in constants if nbytes >= min(LARGE, max_nbytes // _LARGE_SHARE)
    ]
    cuts: list[Cut] = []
    for offset, nbytes in large:
        cuts += [Cut((piece,)) for piece in _pieces(offset, nbytes, max_nbytes)]
    cuts += _packed(_between(large, container.nbytes), constants, max_nbytes)
    return sorted(cuts, key=lambda item: item.slices[0]), notes


def _constants(model: Model) -> list[tuple[int, int]]:
    """Returns the spans of constants in the file, ascending, without overlap."""
    spans = {
        (buffer.blob.offset, buffer.blob.nbytes)
        for buffer in model.buffers
        if isinstance(buffer.blob, MappedBlob) and buffer.nbytes
    }
    result: list[tuple[int, int]] = []
    end = 0
    # At one offset the longest counts; a span that begins inside of another does not.
    for offset, nbytes in sorted(spans, key=lambda span: (span[0], -span[1])):
        if offset >= end:
            result.append((offset, nbytes))
            end = offset + nbytes
    return result


def _between(spans: list[tuple[int, int]], total: int) -> list[tuple[int, int]]:
    gaps = []
    position = 0
    for offset, nbytes in [*spans, (total, 0)]:
        if offset > position:
            gaps.append((position, offset - position))
        position = offset + nbytes
    return gaps


def _pieces(offset: int, nbytes: int, most: int) -> list[tuple[int, int]]:
    return [(offset + start, min(most, nbytes - start)) for start in range(0, nbytes, most)]


def _packed(gaps: list[tuple[int, int]], constants: list[tuple[int, int]], most: int) -> list[Cut]:
    """Fills parts with the stretches between large constants; cuts a long one at small constants."""
    ends = {offset + nbytes for offset, nbytes in constants}
    cuts: list[Cut] = []
    held: list[tuple[int, int]] = []
    room = most
    for offset, nbytes in gaps:
        for piece in _at_ends(offset, nbytes, most, ends):
            if piece[1] > room and held:
                cuts.append(Cut(tuple(held)))
                held, room = [], most
            held.append(piece)
            room -= piece[1]
    return [*cuts, Cut(tuple(held))] if held else cuts


def _at_ends(offset: int, nbytes: int, most: int, ends: set[int]) -> list[tuple[int, int]]:
    """Cuts a stretch of over ``most`` bytes, after a constant where one ends in the later half."""
    pieces = []
    stop = offset + nbytes
    inner = sorted(end for end in ends if offset < end < stop) if nbytes > most else []
    while stop - offset > most:
        fitting = [end for end in inner if offset + most // 2 <= end <= offset + most]
        length = (fitting[-1] if fitting else offset + most) - offset
        pieces.append((offset, length))
        offset += length
    if stop > offset:
        pieces.append((offset, stop - offset))
    return pieces


_GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parted:
    """What sharding into parts did.

    Attributes:
        reused: Names of parts that were in the folder already.
        notes: What a reader should know besides.
    """

    manifest: Manifest
    reused: tuple[str, ...]
    notes: tuple[str, ...]


def write_parts(
    container: Container, folder: Path, options: ShardOptions, tick: Callable[[int], None] | None = None
) -> Parted:
    """Cuts a file, writes its parts and, last, the manifest.

    A part that the folder has already, byte for byte, stays. The manifest is published only after the model
    was put together again from the parts on disk and found equal.

    Args:
        container: The file.
        folder: Exists.
        options: How.
        tick: Called with bytes done, from any thread.

    Raises:
        UsageError: A file with other content is in the way, or there would be too many parts.
        FileAccessError: The folder cannot be written.
    """
    cuts, notes = cut(container, options.max_nbytes)
    tick = tick or (lambda _nbytes: None)
    writer = _Writer(container, folder, options, tick)
    try:
        with ThreadPoolExecutor(options.jobs or os.cpu_count() or 1) as pool:
            # The longest job, since it cannot be divided, goes first.
            whole = pool.submit(sha256_of, container.pieces())
            made = list(pool.map(writer.part, cuts))
            manifest = _manifest(container, cuts, made, whole.result())
            text = manifest.dump()
            if len(text) > MAX_MANIFEST_NBYTES:
                raise UsageError(f"{len(made)} parts are too many", remedy="use a larger --max-size")
            if not options.dry_run:
                _check(parse(text, options.manifest), folder, container, pool, tick)
                container.ensure_unchanged()
                publish(
                    folder / options.manifest,
                    len(text),
                    lambda: iter([text]),
                    force=options.force,
                    access=writer.access,
                )
    except BaseException:
        # Parts without a manifest are of use to nobody.
        for name in writer.created:
            (folder / name).unlink(missing_ok=True)
        raise
    return Parted(manifest=manifest, reused=tuple(sorted(writer.reused)), notes=tuple(notes))


Pieces = Callable[[], Iterator[bytes | memoryview]]
"""Gives the bytes of a file from the start, each time that it is called."""


def is_present(target: Path, nbytes: int, pieces: Pieces) -> bool:
    """Whether a file is there and holds just these bytes.

    Raises:
        UsageError: What has its name is not a plain file.
        FileAccessError: It cannot be read.
    """
    try:
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise UsageError("is not a plain file", file=target, remedy="remove it, or use another folder")
        if not target.is_file() or target.stat().st_size != nbytes:
            return False
        with open(target, "rb", buffering=0) as file:
            return all(equal_pieces(file.read(len(piece)), piece) for piece in pieces())
    except OSError as error:
        raise FileAccessError(f"cannot read: {error.strerror or error}", file=target) from error


def is_in_the_way(target: Path) -> UsageError:
    """The error about a file that may not be replaced."""
    return UsageError("exists already, with other content", file=target, remedy="use --force to overwrite it")


def publish(target: Path, nbytes: int, pieces: Pieces, *, force: bool, access: int) -> bool:
    """Writes a file that appears at once and complete; returns whether it was missing or different.

    Raises:
        UsageError: It exists with other content, and ``force`` is off.
        FileAccessError: It cannot be written, or what has its name is not a plain file.
    """
    if is_present(target, nbytes, pieces):
        return False
    with nameless_file(target.parent, nbytes=nbytes, access=access) as file:
        offset = 0
        for piece in pieces():
            file.sink.write_at(piece, offset)
            offset += len(piece)
        return _name(file, target, nbytes, pieces, force=force)


def _name(file: NamelessFile, target: Path, nbytes: int, pieces: Pieces, *, force: bool) -> bool:
    """Gives a written file its name; returns whether it was missing or different."""
    try:
        file.publish(target, force=force)
    except FileExistsError:
        # Another process may have made it meanwhile.
        if not is_present(target, nbytes, pieces):
            raise is_in_the_way(target) from None
    return True


def gzipped(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Compresses to a gzip member that depends on the bytes alone, piece by piece.

    Neither a time nor the system goes into the header (RFC 1952, 2.3).
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    check = size = 0
    yield _GZIP_HEAD
    for piece in pieces:
        check = zlib.crc32(piece, check)
        size += len(piece)
        yield packer.compress(piece)
    yield packer.flush() + struct.pack("<II", check, size & 0xFFFFFFFF)


class _Writer:
    def __init__(
        self, container: Container, folder: Path, options: ShardOptions, tick: Callable[[int], None]
    ) -> None:
        self.container = container
        self.folder = folder
        self.gzip = options.compress == "gzip"
        self.force = options.force
        self.dry_run = options.dry_run
        self.tick = tick
        # Who may not read the model may not read it in parts either.
        self.access = access_of(container.path) & PLAIN
        self.reused: set[str] = set()
        self.created: set[str] = set()
        self.made: set[str] = set()
        self.lock = threading.Lock()

    def part(self, item: Cut) -> Part:
        """Packs and stores one part, in pieces."""

        def pieces() -> Iterator[bytes | memoryview]:
            for offset, nbytes in item.slices:
                yield from self.container.pieces(offset, nbytes)

        sha256 = sha256_of(pieces())
        part = self._packed(item, sha256, pieces) if self.gzip else None
        if part is None:
            part = Part(
                name=_part_name(sha256),
                compression="none",
                stored_nbytes=item.nbytes,
                stored_sha256=sha256,
                nbytes=item.nbytes,
                sha256=sha256,
            )
            self._store(part, pieces, partial(publish, pieces=pieces, force=self.force, access=self.access))
        self.tick(item.nbytes)
        return part

    def _packed(self, item: Cut, sha256: str, pieces: Pieces) -> Part | None:
        """Stores one part as gzip; None if that would take as many bytes or more."""
        digest = hashlib.sha256()
        nbytes = 0
        # What is only tried has no file in a folder that is not there.
        place = Path(tempfile.gettempdir()) if self.dry_run else self.folder
        with nameless_file(place, access=self.access) as file:
            for packed in gzipped(pieces()):
                if nbytes + len(packed) >= item.nbytes:
                    return None
                digest.update(packed)
                if packed:
                    file.sink.write_at(packed, nbytes)
                nbytes += len(packed)
            part = Part(
                name=_part_name(digest.hexdigest()),
                compression="gzip",
                stored_nbytes=nbytes,
                stored_sha256=digest.hexdigest(),
                nbytes=item.nbytes,
                sha256=sha256,
            )
            self._store(part, file.pieces, partial(_name, file, pieces=file.pieces, force=self.force))
        return part

    def _store(self, part: Part, pieces: Pieces, write: Callable[[Path, int], bool]) -> None:
        """Has a part written that the folder lacks, unless another of this model has the same bytes."""
        with self.lock:
            if part.name in self.made:
                return
            self.made.add(part.name)
        target = self.folder / part.name
        there = target.exists()
        if is_present(target, part.stored_nbytes, pieces):
            self.reused.add(part.name)
        elif not self.dry_run and write(target, part.stored_nbytes) and not there:
            self.created.add(part.name)


def _part_name(sha256: str) -> str:
    return f"{sha256[:32]}.part"


def _manifest(container: Container, cuts: list[Cut], made: list[Part], sha256: str) -> Manifest:
    numbers: dict[str, int] = {}
    parts: list[Part] = []
    rows: list[tuple[int, int, int, int]] = []
    for item, part in zip(cuts, made, strict=True):
        if part.name not in numbers:
            numbers[part.name] = len(parts)
            parts.append(part)
        inside = 0
        for offset, nbytes in item.slices:
            rows.append((offset, numbers[part.name], inside, nbytes))
            inside += nbytes
    name = Path(container.path).name.encode("utf-8", "replace").decode("utf-8")
    return Manifest(
        name=name,
        nbytes=container.nbytes,
        sha256=sha256,
        parts=tuple(parts),
        layout=tuple((number, inside, nbytes) for _, number, inside, nbytes in sorted(rows)),
    )


class _BytesCheck:
    """A sink that compares instead of writing."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self.different = False

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Looks whether the same bytes are there."""
        self.different |= not equal_pieces(self._container.data[offset : offset + len(data)], data)
        self._container.release(offset, len(data))


def _check(
    manifest: Manifest,
    folder: Path,
    container: Container,
    pool: ThreadPoolExecutor,
    tick: Callable[[int], None],
) -> None:
    """Reads every part back and compares it with the bytes of the file."""
    source = FolderSource(folder)

    def one(row: tuple[Part, list[tuple[int, int, int]]]) -> None:
        part, slices = row
        sink = _BytesCheck(container)
        with source.open(part.name) as stream:
            write_part(part, slices, stream, sink, tick=tick)
        if sink.different:
            raise VerificationError("does not hold what was written to it", file=folder / part.name)

    list(pool.map(one, zip(manifest.parts, manifest.slices(), strict=True)))
