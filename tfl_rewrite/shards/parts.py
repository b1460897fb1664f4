"""Writes a model as parts and a manifest."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tfl_rewrite.container import Container
from tfl_rewrite.errors import FileAccessError, UsageError, VerificationError
from tfl_rewrite.landing import landing
from tfl_rewrite.shards.cutting import Cut, cut
from tfl_rewrite.shards.manifest import MAX_MANIFEST_NBYTES, Manifest, Part, parse
from tfl_rewrite.shards.pouring import BytesCheck, Hashing, pour_part
from tfl_rewrite.shards.sources import FolderSource

MANIFEST_NAME = "manifest.json"
COMPRESSIONS = ("none", "gzip")
_PIECE = 1 << 20
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
    writer = _Writer(container, folder, compression == "gzip", force, dry_run, tick or (lambda _nbytes: None))
    try:
        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            made = list(pool.map(writer.part, cuts))
        manifest = _manifest(container, cuts, made)
        text = manifest.dump()
        if len(text) > MAX_MANIFEST_NBYTES:
            raise UsageError(f"{len(made)} parts are too many", remedy="use a larger --max-size")
        if not dry_run:
            _check(parse(text, manifest_name), folder, container)
            container.ensure_unchanged()
            publish_bytes(folder / manifest_name, text, force=force)
    except BaseException:
        # Parts without a manifest are of use to nobody.
        for name in writer.created:
            (folder / name).unlink(missing_ok=True)
        raise
    return Parted(manifest=manifest, reused=tuple(sorted(writer.reused)), notes=tuple(notes))


def publish_bytes(target: Path, data: bytes | memoryview, *, force: bool) -> bool:
    """Writes a file that appears at once and complete; returns whether it was missing or different.

    Raises:
        UsageError: It exists with other content, and ``force`` is off.
        FileAccessError: It cannot be written, or what has its name is not a plain file.
    """
    present = _present(target, data)
    if present:
        return False
    with landing(target.parent, nbytes=len(data)) as file:
        file.sink.write_at(data, 0)
        try:
            file.publish(target, force=force)
        except FileExistsError:
            # Another process may have made it meanwhile.
            if not _present(target, data):
                raise UsageError(
                    "exists already, with other content", file=target, remedy="use --force to overwrite it"
                ) from None
    return True


def _present(target: Path, data: bytes | memoryview) -> bool:
    try:
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise UsageError("is not a plain file", file=target, remedy="remove it, or use another folder")
        return target.is_file() and target.stat().st_size == len(data) and target.read_bytes() == data
    except OSError as error:
        raise FileAccessError(f"cannot read: {error.strerror or error}", file=target) from error


def gzipped(pieces: list[memoryview], *, most: int) -> bytes | None:
    """Compresses to a gzip member that depends on the bytes alone; None if it would not get below ``most``.

    Neither a time nor the system goes into the header (RFC 1952, 2.3).
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    result = bytearray(_GZIP_HEAD)
    check = size = 0
    for piece in pieces:
        for start in range(0, len(piece), _PIECE):
            part = piece[start : start + _PIECE]
            check = zlib.crc32(part, check)
            size += len(part)
            result += packer.compress(part)
        if len(result) >= most:
            return None
    result += packer.flush() + struct.pack("<II", check, size & 0xFFFFFFFF)
    return bytes(result) if len(result) < most else None


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
        self.reused: set[str] = set()
        self.created: set[str] = set()
        self.made: set[str] = set()
        self.lock = threading.Lock()

    def part(self, item: Cut) -> Part:
        """Packs and stores one part."""
        pieces = [self.container.data[offset : offset + nbytes] for offset, nbytes in item.slices]
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        packed = gzipped(pieces, most=item.nbytes) if self.gzip else None
        stored: bytes | memoryview
        stored = packed or (pieces[0] if len(pieces) == 1 else b"".join(pieces))
        stored_digest = hashlib.sha256(stored).hexdigest()
        part = Part(
            name=f"{stored_digest[:32]}.part",
            compression="none" if packed is None else "gzip",
            stored_nbytes=len(stored),
            stored_sha256=stored_digest,
            nbytes=item.nbytes,
            sha256=digest.hexdigest(),
        )
        with self.lock:
            known = part.name in self.made
            self.made.add(part.name)
        if not known:
            target = self.folder / part.name
            was_there = target.exists()
            if self.dry_run:
                fresh = not _present(target, stored)
            else:
                fresh = publish_bytes(target, stored, force=self.force)
            if fresh and not was_there:
                self.created.add(part.name)
            if not fresh:
                self.reused.add(part.name)
        for offset, nbytes in item.slices:
            self.container.release(offset, nbytes)
        self.tick(item.nbytes)
        return part


def _manifest(container: Container, cuts: list[Cut], made: list[Part]) -> Manifest:
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
    whole = hashlib.sha256()
    for start in range(0, container.nbytes, _PIECE):
        whole.update(container.data[start : start + _PIECE])
    name = Path(container.path).name.encode("utf-8", "replace").decode("utf-8")
    return Manifest(
        name=name,
        nbytes=container.nbytes,
        sha256=whole.hexdigest(),
        parts=tuple(parts),
        layout=tuple((number, inside, nbytes) for _, number, inside, nbytes in sorted(rows)),
    )


def _check(manifest: Manifest, folder: Path, container: Container) -> None:
    """Reads every part back and compares it with the bytes of the file."""
    source = FolderSource(folder)
    for part, slices in zip(manifest.parts, manifest.slices(), strict=True):
        sink = BytesCheck(container.data)
        with source.open(part.name) as stream:
            pour_part(part, slices, stream, sink, Hashing())
        if sink.different:
            raise VerificationError("does not hold what was written to it", file=folder / part.name)
