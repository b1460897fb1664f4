"""Writes a model as parts with their manifest, or parts that a folder has already."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, UsageError, VerificationError
from tfl_rewrite.files.atomic import PLAIN, NamelessFile, access_of, nameless_file
from tfl_rewrite.files.container import Container
from tfl_rewrite.model.likeness import equal_pieces
from tfl_rewrite.shards.cuts import Cut, cut
from tfl_rewrite.shards.manifest import MAX_MANIFEST_NBYTES, Manifest, Part, Row, parse, sha256_of
from tfl_rewrite.shards.residual import Residual
from tfl_rewrite.shards.settings import ShardOptions
from tfl_rewrite.shards.sources import FolderSource, write_part

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
        UsageError: A file with other content exists there, or there would be too many parts.
        FileAccessError: The folder cannot be written.
    """
    cuts, notes = cut(container, options.max_nbytes)
    with part_writer(container, folder, options, tick) as writer:
        packing = DEFAULT if options.compress == "gzip" else None
        made = numbered(cuts, writer.parts(container, cuts, packing))
        manifest = replace(writer.whole(), parts=made.parts, layout=made.layout)
        writer.publish(manifest)
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


@dataclass(frozen=True, slots=True)
class Packing:
    """How zlib looks for a deflate stream; any reader unpacks each of them.

    Attributes:
        memory: ``memLevel``: the lower, the fewer symbols share one code.
        strategy: ``Z_DEFAULT_STRATEGY`` or another.
    """

    memory: int = zlib.DEF_MEM_LEVEL
    strategy: int = zlib.Z_DEFAULT_STRATEGY


DEFAULT = Packing()


def gzipped(pieces: Iterable[bytes | memoryview], packing: Packing = DEFAULT) -> Iterator[bytes]:
    """Compresses to a gzip member that depends on the bytes alone, piece by piece.

    Neither a time nor the system goes into the header (RFC 1952, 2.3).
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, packing.memory, packing.strategy)
    check = size = 0
    yield _GZIP_HEAD
    for piece in pieces:
        check = zlib.crc32(piece, check)
        size += len(piece)
        yield packer.compress(piece)
    yield packer.flush() + struct.pack("<II", check, size & 0xFFFFFFFF)


class PartWriter:
    """Writes parts to a folder, and last a manifest; :func:`part_writer` makes one.

    Attributes:
        reused: Names of parts that were in the folder already.
    """

    def __init__(
        self,
        container: Container,
        folder: Path,
        options: ShardOptions,
        pool: ThreadPoolExecutor,
        tick: Callable[[int], None],
    ) -> None:
        self.reused: set[str] = set()
        self.created: set[str] = set()
        # The longest job, since it cannot be divided, goes first.
        self._digest = pool.submit(sha256_of, container.pieces())
        self._container = container
        self._folder = folder
        self._options = options
        self._pool = pool
        self._tick = tick
        # Who may not read the model may not read it in parts either.
        self._access = access_of(container.path) & PLAIN
        self._made: set[str] = set()
        self._lock = threading.Lock()

    def whole(self) -> Manifest:
        """Returns the manifest of the model, without any part yet."""
        name = Path(self._container.path).name.encode("utf-8", "replace").decode("utf-8")
        sha256 = self._digest.result()
        return Manifest(name=name, nbytes=self._container.nbytes, sha256=sha256, parts=(), layout=())

    def parts(self, container: Container, cuts: list[Cut], packing: Packing | None) -> list[Part]:
        """Stores the parts of a file, several at once; as gzip where that is smaller, if at all."""
        return list(self._pool.map(partial(self._part, container, packing), cuts))

    def publish(self, manifest: Manifest, base: Container | None = None) -> None:
        """Reads all parts back, compares what they make with the model, and writes the manifest.

        Args:
            manifest: Of the model.
            base: What the base must be, where it has one.

        Raises:
            VerificationError: It is not what was written.
            UsageError: It has too many parts, or another manifest exists there.
        """
        text = manifest.dump()
        if len(text) > MAX_MANIFEST_NBYTES:
            count = len(manifest.parts)
            raise UsageError(f"{count} parts are too many", remedy="use a larger --max-size")
        if self._options.dry_run:
            return
        read = parse(text, self._options.manifest)
        if base is not None:
            assert read.base is not None
            self._check(read.base, base)
        self._check(read, self._container, Residual(read, base.data) if base is not None else None)
        self._container.ensure_unchanged()
        target = self._folder / self._options.manifest
        force, access = self._options.force, self._access
        publish(target, len(text), lambda: iter([text]), force=force, access=access)

    def _check(self, manifest: Manifest, container: Container, residual: Residual | None = None) -> None:
        """Reads every part back and compares it with the bytes of the file."""
        source = FolderSource(self._folder)

        def one(row: tuple[Part, list[tuple[int, int, int]]]) -> None:
            part, slices = row
            sink = _BytesCheck(container)
            if slices:
                with source.open(part.name) as stream:
                    over = sink if residual is None else residual.over(sink)
                    write_part(part, slices, stream, over, tick=self._tick)
            if sink.different:
                raise VerificationError("does not hold what was written to it", file=self._folder / part.name)

        list(self._pool.map(one, zip(manifest.parts, manifest.slices(), strict=True)))
        if residual is not None:
            sink = _BytesCheck(container)
            for nbytes in residual.copy_to(sink):
                self._tick(nbytes)
            if sink.different:
                raise VerificationError("the base does not hold what both have", file=container.path)

    def _part(self, container: Container, packing: Packing | None, item: Cut) -> Part:
        """Packs and stores one part, in pieces."""

        def pieces() -> Iterator[bytes | memoryview]:
            for offset, nbytes in item.slices:
                yield from container.pieces(offset, nbytes)

        sha256 = sha256_of(pieces())
        part = self._packed(item, sha256, pieces, packing) if packing is not None else None
        if part is None:
            part = Part(
                name=_part_name(sha256),
                compression="none",
                stored_nbytes=item.nbytes,
                stored_sha256=sha256,
                nbytes=item.nbytes,
                sha256=sha256,
            )
            force, access = self._options.force, self._access
            self._store(part, pieces, partial(publish, pieces=pieces, force=force, access=access))
        self._tick(item.nbytes)
        return part

    def _packed(self, item: Cut, sha256: str, pieces: Pieces, packing: Packing) -> Part | None:
        """Stores one part as gzip; None if that would take as many bytes or more."""
        digest = hashlib.sha256()
        nbytes = 0
        # What is only tried has no file in a folder that is not there.
        place = Path(tempfile.gettempdir()) if self._options.dry_run else self._folder
        with nameless_file(place, access=self._access) as file:
            for packed in gzipped(pieces(), packing):
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
            self._store(
                part, file.pieces, partial(_name, file, pieces=file.pieces, force=self._options.force)
            )
        return part

    def _store(self, part: Part, pieces: Pieces, write: Callable[[Path, int], bool]) -> None:
        """Has a part written that the folder lacks, unless another of this model has the same bytes."""
        with self._lock:
            if part.name in self._made:
                return
            self._made.add(part.name)
        target = self._folder / part.name
        there = target.exists()
        if is_present(target, part.stored_nbytes, pieces):
            self.reused.add(part.name)
        elif not self._options.dry_run and write(target, part.stored_nbytes) and not there:
            self.created.add(part.name)


def _part_name(sha256: str) -> str:
    return f"{sha256[:32]}.part"


@dataclass(frozen=True, slots=True)
class Numbered:
    """The parts of a manifest, and its layout."""

    parts: tuple[Part, ...]
    layout: tuple[Row, ...]


def numbered(cuts: list[Cut], made: list[Part]) -> Numbered:
    """Returns the parts of a file without repetition, and their slices in the order of the file."""
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
    return Numbered(
        tuple(parts), tuple((number, inside, nbytes) for _, number, inside, nbytes in sorted(rows))
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


@contextlib.contextmanager
def part_writer(
    container: Container, folder: Path, options: ShardOptions, tick: Callable[[int], None] | None = None
) -> Iterator[PartWriter]:
    """Opens a folder for the parts of a model; if it fails, parts that it made are removed.

    Args:
        container: The whole model.
        folder: Exists.
        options: How.
        tick: Called with bytes done, from any thread.
    """
    writer: PartWriter | None = None
    try:
        with ThreadPoolExecutor(options.jobs or os.cpu_count() or 1) as pool:
            writer = PartWriter(container, folder, options, pool, tick or (lambda _nbytes: None))
            yield writer
    except BaseException:
        # Parts without a manifest are of use to nobody.
        for name in writer.created if writer is not None else ():
            (folder / name).unlink(missing_ok=True)
        raise
