"""Writes a model as parts and a manifest."""

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
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, UsageError, VerificationError
from tfl_rewrite.files.atomic import PLAIN, Landing, access_of, landing
from tfl_rewrite.files.container import Container
from tfl_rewrite.model.likeness import equal_pieces
from tfl_rewrite.shards.cut import Cut, cut
from tfl_rewrite.shards.manifest import MAX_MANIFEST_NBYTES, Manifest, Part, parse
from tfl_rewrite.shards.pouring import BytesCheck, Hashing, pour_part
from tfl_rewrite.shards.sources import FolderSource

MANIFEST_NAME = "manifest.json"
COMPRESSIONS = ("none", "gzip")
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
    container: Container,
    folder: Path,
    *,
    max_nbytes: int,
    compression: str = "none",
    manifest_name: str = MANIFEST_NAME,
    force: bool = False,
    jobs: int = 0,
    dry_run: bool = False,
    tick: Callable[[int], None] | None = None,
) -> Parted:
    """Cuts a file, writes its parts and, last, the manifest.

    A part that the folder has already, byte for byte, stays. The manifest is published only after the model
    was put together again from the parts on disk and found equal.

    Args:
        container: The file.
        folder: Exists.
        max_nbytes: Of a part, packed or not.
        compression: ``none`` or ``gzip``; a part that gzip does not shrink is stored as it is.
        manifest_name: A plain file name.
        force: Whether files of other content with these names may be replaced.
        jobs: Threads; 0 for one per processor.
        dry_run: Do not write anything.
        tick: Called with bytes done, from any thread.

    Raises:
        UsageError: A file with other content is in the way, or there would be too many parts.
        FileAccessError: The folder cannot be written.
    """
    cuts, notes = cut(container, max_nbytes)
    tick = tick or (lambda _nbytes: None)
    writer = _Writer(container, folder, compression == "gzip", force, dry_run, tick)
    try:
        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            # The longest job, since it cannot be divided, goes first.
            whole = pool.submit(_hash_of, container.pieces())
            made = list(pool.map(writer.part, cuts))
            manifest = _manifest(container, cuts, made, whole.result())
            text = manifest.dump()
            if len(text) > MAX_MANIFEST_NBYTES:
                raise UsageError(f"{len(made)} parts are too many", remedy="use a larger --max-size")
            if not dry_run:
                _check(parse(text, manifest_name), folder, container, pool, tick)
                container.ensure_unchanged()
                publish_bytes(folder / manifest_name, text, force=force, access=writer.access)
    except BaseException:
        # Parts without a manifest are of use to nobody.
        for name in writer.created:
            (folder / name).unlink(missing_ok=True)
        raise
    return Parted(manifest=manifest, reused=tuple(sorted(writer.reused)), notes=tuple(notes))


def publish_bytes(target: Path, data: bytes, *, force: bool, access: int = PLAIN) -> bool:
    """Writes a file that appears at once and complete; returns whether it was missing or different.

    Raises:
        UsageError: It exists with other content, and ``force`` is off.
        FileAccessError: It cannot be written, or what has its name is not a plain file.
    """
    return _publish(target, len(data), lambda: iter([data]), force=force, access=access)


Pieces = Callable[[], Iterator[bytes | memoryview]]
"""Gives the bytes of a file from the start, each time that it is called."""


def _publish(target: Path, nbytes: int, pieces: Pieces, *, force: bool, access: int) -> bool:
    """As :func:`publish_bytes`, for bytes that come in pieces."""
    if _present(target, nbytes, pieces):
        return False
    with landing(target.parent, nbytes=nbytes, access=access) as file:
        offset = 0
        for piece in pieces():
            file.sink.write_at(piece, offset)
            offset += len(piece)
        return _name(file, target, nbytes, pieces, force=force)


def _name(file: Landing, target: Path, nbytes: int, pieces: Pieces, *, force: bool) -> bool:
    """Gives a written file its name; returns whether it was missing or different."""
    try:
        file.publish(target, force=force)
    except FileExistsError:
        # Another process may have made it meanwhile.
        if not _present(target, nbytes, pieces):
            raise UsageError(
                "exists already, with other content", file=target, remedy="use --force to overwrite it"
            ) from None
    return True


def _present(target: Path, nbytes: int, pieces: Pieces) -> bool:
    """Whether a file is there and holds just these bytes."""
    try:
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise UsageError("is not a plain file", file=target, remedy="remove it, or use another folder")
        if not target.is_file() or target.stat().st_size != nbytes:
            return False
        with open(target, "rb", buffering=0) as file:
            return all(equal_pieces(file.read(len(piece)), piece) for piece in pieces())
    except OSError as error:
        raise FileAccessError(f"cannot read: {error.strerror or error}", file=target) from error


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
        self,
        container: Container,
        folder: Path,
        gzip: bool,
        force: bool,
        dry_run: bool,
        tick: Callable[[int], None],
    ) -> None:
        self.container = container
        self.folder = folder
        self.gzip = gzip
        self.force = force
        self.dry_run = dry_run
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

        sha256 = _hash_of(pieces())
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
            if self._is_first(part):
                target = self.folder / part.name
                there = target.exists()
                if self.dry_run:
                    fresh = not _present(target, item.nbytes, pieces)
                else:
                    fresh = _publish(target, item.nbytes, pieces, force=self.force, access=self.access)
                self._note(part, there=there, fresh=fresh)
        self.tick(item.nbytes)
        return part

    def _packed(self, item: Cut, sha256: str, pieces: Pieces) -> Part | None:
        """Stores one part as gzip; None if that would take as many bytes or more."""
        digest = hashlib.sha256()
        nbytes = 0
        # What is only tried has no file in a folder that is not there.
        place = Path(tempfile.gettempdir()) if self.dry_run else self.folder
        with landing(place, access=self.access) as file:
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
            if self._is_first(part):
                target = self.folder / part.name
                there = target.exists()
                fresh = not _present(target, nbytes, file.pieces)
                if fresh and not self.dry_run:
                    fresh = _name(file, target, nbytes, file.pieces, force=self.force)
                self._note(part, there=there, fresh=fresh)
        return part

    def _is_first(self, part: Part) -> bool:
        """Whether no other part of this model has the same bytes."""
        with self.lock:
            known = part.name in self.made
            self.made.add(part.name)
        return not known

    def _note(self, part: Part, *, there: bool, fresh: bool) -> None:
        if fresh and not there:
            self.created.add(part.name)
        if not fresh:
            self.reused.add(part.name)


def _part_name(sha256: str) -> str:
    return f"{sha256[:32]}.part"


def _hash_of(pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


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
        sink = BytesCheck(container)
        with source.open(part.name) as stream:
            pour_part(part, slices, stream, sink, Hashing(), tick=tick)
        if sink.different:
            raise VerificationError("does not hold what was written to it", file=folder / part.name)

    list(pool.map(one, zip(manifest.parts, manifest.slices(), strict=True)))
