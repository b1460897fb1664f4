"""Where parts come from (a folder, a web server, anything that fsspec reads), and how one gets to its places.

It is checked while it is read, unpacked, and written.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import importlib
import os
import re
import stat
import threading
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from tfl_rewrite.errors import FileAccessError, FormatError, UsageError
from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.shards.manifest import MAX_MANIFEST_NBYTES, Part, too_long
from tfl_rewrite.shards.web import Pace, Request, TooSlow, WebSource


class Stream(Protocol):
    """Bytes to read."""

    def read(self, size: int, /) -> bytes:
        """Returns at most ``size`` bytes, none at the end."""


class Source(Protocol):
    """A folder of parts, wherever it is.

    Attributes:
        remote: Whether reading a part twice costs more than keeping it.
    """

    remote: bool

    def open(self, name: str) -> AbstractContextManager[Stream]:
        """Opens a file of the folder by its plain name.

        Raises:
            FileAccessError: It is missing, or cannot be read; the error names it.
        """


class FolderSource:
    """A folder on this machine."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def open(self, name: str) -> Any:
        """Opens a plain file."""
        path = self.folder / name
        with open_plain(path) as descriptor, open(descriptor, "rb", buffering=0, closefd=False) as stream:
            yield _Reading(stream, str(path))


@contextlib.contextmanager
def open_plain(path: Path) -> Iterator[int]:
    """Opens a file that is neither a link, which could lead out of its folder, nor a pipe or a device.

    Raises:
        FileAccessError: It is, or it is missing, or cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
    try:
        # A pipe would block.
        descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if path.is_symlink():
            raise FileAccessError("is a symbolic link, which is not followed", file=path) from None
        missing = isinstance(error, FileNotFoundError)
        what = "is missing" if missing else f"cannot read: {error.strerror}"
        raise FileAccessError(what, file=path) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileAccessError("is not a regular file", file=path)
        yield descriptor
    finally:
        os.close(descriptor)


class FsspecSource:
    """A folder of a file system that fsspec knows."""

    remote = True

    def __init__(self, system: Any, folder: str, label: str) -> None:
        self._system = system
        self._folder = folder
        self._label = label
        self._pace = Pace()

    @contextlib.contextmanager
    def open(self, name: str) -> Any:
        """Opens a file for reading from the start to the end."""
        label = f"{self._label}/{name}"
        watched = self._pace.begin()
        try:
            try:
                stream = self._system.open(f"{self._folder}/{name}" if self._folder else name, "rb")
            except Exception as error:
                # Each file system raises exceptions of its own.
                missing = isinstance(error, (FileNotFoundError, KeyError))
                what = "is missing" if missing else f"cannot read: {type(error).__name__}: {error}"
                raise FileAccessError(what, file=label) from error
            watched.answered()
            with stream:
                yield _Reading(stream, label, self._pace, watched)
        finally:
            self._pace.finish(watched)


class _Reading:
    """Turns what goes wrong while reading into an error with the file's name."""

    def __init__(
        self, stream: Any, label: str, pace: Pace | None = None, watched: Request | None = None
    ) -> None:
        self._stream = stream
        self._label = label
        self._pace = pace
        self._watched = watched

    def read(self, size: int, /) -> bytes:
        try:
            with self._pace.waiting() if self._pace is not None else contextlib.nullcontext():
                data = bytes(self._stream.read(size))
        except Exception as error:
            raise FileAccessError(f"cannot read: {error}", file=self._label) from error
        if self._pace is not None:
            self._pace.arrived(len(data))
        if self._watched is not None and self._watched.reason is not None:
            raise TooSlow(self._watched.reason, file=self._label)
        return data


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(::|://)")
_WEB = ("http", "https")
_LOCAL = ("file", "local")
_CACHES = ("simplecache", "filecache", "blockcache", "cached")
"""What fsspec puts before an address to keep a copy; parts are kept anyway, so it is left out."""
_ARCHIVES = ("zip", "tar")
_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
"""What fsspec reads from where the user's own settings say, and no address does."""


def find_source(where: str, *, allow_private: bool = False) -> tuple[Source, str]:
    """Returns the folder of a manifest and the manifest's name in it.

    Args:
        where: A path; an http, https or file URL; a URL of a store (``s3``, ``gs``, ``az``, ``abfs``, ``hf``)
            for fsspec; ``zip://NAME::`` or ``tar://NAME::`` before a path or a URL of a store. What fsspec
            keeps copies with (``simplecache::``) may stand before any of them.
        allow_private: Whether http may connect to private and loopback addresses.

    Raises:
        UsageError: The URL makes no sense or is of another kind, or fsspec or what it needs is not installed.
    """
    archives, base = _chain(where)
    match = _SCHEME.match(base)
    scheme = match[1].lower() if match is not None else "file"
    if archives:
        if scheme in _WEB:
            raise UsageError(
                "is in an archive on a web server",
                file=where,
                remedy="fetch the archive, and name it by its path",
            )
        return _fsspec(where, "::".join([*archives, base]))
    if match is None:
        path = Path(base)
        return FolderSource(path.parent), path.name
    if scheme in _LOCAL:
        return _file_url(base)
    if scheme in _WEB:
        return WebSource.at(base, allow_private=allow_private)
    return _fsspec(where, base)


def _chain(where: str) -> tuple[list[str], str]:
    """Takes an address apart, every link of which is looked at.

    Returns:
        The archives, outermost last, and where they lie.

    Raises:
        UsageError: A link is of another kind than those that are known.
    """
    archives: list[str] = []
    rest = where
    while (match := _SCHEME.match(rest)) is not None:
        scheme, after = match[1].lower(), rest[match.end() :]
        if match[2] == "::" and scheme in _CACHES:
            rest = after
        elif match[2] == "://" and scheme in _ARCHIVES and "::" in after:
            member, _, rest = after.partition("::")
            archives.append(f"{scheme}://{member}")
        elif match[2] == "://" and scheme in (*_WEB, *_LOCAL, *_STORES):
            # On the web it is part of the path, or of an address. Elsewhere fsspec would see another link.
            if "::" in after and scheme not in _WEB:
                raise UsageError(f"{scheme}:// is not the last link of a chain", file=where)
            return archives, rest if scheme in _WEB else f"{scheme}://{after}"
        else:
            known = ", ".join((*_WEB, *_LOCAL, *_STORES))
            raise UsageError(
                f"{scheme}{match[2]} is not read from",
                file=where,
                remedy=f"give a path, or a URL of one of {known}, or zip://NAME:: or tar://NAME:: before it",
            )
    if archives and "::" in rest:
        raise UsageError("is a path that fsspec takes for a chain", file=rest, remedy="rename it")
    return archives, rest


def read_manifest_text(source: Source, name: str, where: str) -> bytes:
    """Reads a manifest, at most so much as one may have.

    Args:
        source: Where it lies.
        name: Its plain name there.
        where: What the user calls it, for errors.

    Raises:
        FileAccessError: See :meth:`Source.open`.
        FormatError: It is too long.
    """
    text = bytearray()
    with source.open(name) as stream:
        while piece := stream.read(1 << 16):
            text += piece
            if len(text) > MAX_MANIFEST_NBYTES:
                raise too_long(where)
    return bytes(text)


def _file_url(where: str) -> tuple[Source, str]:
    parts = urllib.parse.urlsplit(where)
    if parts.netloc not in ("", "localhost"):
        raise UsageError("names another machine", file=where, remedy="write file:///path")
    path = Path(urllib.request.url2pathname(parts.path))
    return FolderSource(path.parent), path.name


def _fsspec(where: str, url: str) -> tuple[Source, str]:
    """Opens what was looked at with fsspec."""
    try:
        core = importlib.import_module("fsspec.core")
    except ImportError:
        raise UsageError(
            "needs fsspec", file=where, remedy="install it with: pip install 'tfl-rewrite[remote]'"
        ) from None
    try:
        system, path = core.url_to_fs(url)
    except Exception as error:
        raise UsageError(f"fsspec cannot open it: {error}", file=where) from error
    folder, _, name = str(path).rpartition("/")
    # Parts of an archive are named beside it.
    label = url.partition("::")[2] if "::" in url else where.rpartition("/")[0]
    return FsspecSource(system, folder, label), name


_PIECE = 1 << 20


class Stopped(Exception):
    """Another part failed; this one need not be finished."""


def stored_pieces(part: Part, stream: Stream, stop: threading.Event | None = None) -> Iterator[bytes]:
    """Yields the bytes of a stored part; the last of them only after size and hash were found right.

    Args:
        part: What it must be.
        stream: Its stored bytes.
        stop: Set when somebody else failed.

    Raises:
        FormatError: They are not those of the manifest; it names the part.
    """
    digest = hashlib.sha256()
    left = part.stored_nbytes
    held = b""
    while True:
        if stop is not None and stop.is_set():
            raise Stopped
        piece = stream.read(min(_PIECE, left) or 1)
        if not piece:
            break
        left -= len(piece)
        if left < 0:
            raise wrong(part, f"is longer than {part.stored_nbytes} bytes")
        digest.update(piece)
        if held:
            yield held
        held = piece
    if left:
        raise wrong(part, f"ends after {part.stored_nbytes - left} of {part.stored_nbytes} bytes")
    if digest.hexdigest() != part.stored_sha256:
        raise wrong(part, "has the wrong SHA-256")
    if held:
        yield held


def unpacked_pieces(part: Part, stream: Stream, stop: threading.Event | None = None) -> Iterator[bytes]:
    """Yields the unpacked bytes of a part, never more than it declares; see :func:`stored_pieces`.

    Raises:
        FormatError: The part is not what the manifest says.
    """
    if part.compression == "none":
        yield from stored_pieces(part, stream, stop)
        return
    digest = hashlib.sha256()
    left = part.nbytes
    unpacker = zlib.decompressobj(wbits=31)
    for packed in stored_pieces(part, stream, stop):
        if unpacker.eof:
            raise wrong(part, "has bytes after its gzip stream")
        data = packed
        while not unpacker.eof:
            # One byte more than there may be tells a stream that is too long.
            most = min(_PIECE, left + 1)
            try:
                piece = unpacker.decompress(data, most)
            except zlib.error:
                raise wrong(part, "is not gzip") from None
            left -= len(piece)
            if left < 0:
                raise wrong(part, f"unpacks to more than {part.nbytes} bytes")
            digest.update(piece)
            if piece:
                yield piece
            data = unpacker.unconsumed_tail
            # Output may be pending although all input is taken.
            if not data and len(piece) < most:
                break
        if unpacker.unused_data:
            raise wrong(part, "has bytes after its gzip stream")
    if not unpacker.eof or left:
        raise wrong(part, f"unpacks to {part.nbytes - left} of {part.nbytes} bytes")
    if digest.hexdigest() != part.sha256:
        raise wrong(part, "has the wrong SHA-256 when unpacked")


def write_part(
    part: Part,
    slices: list[tuple[int, int, int]],
    stream: Stream,
    sink: Sink,
    *,
    stop: threading.Event | None = None,
    tick: Callable[[int], None] | None = None,
) -> None:
    """Writes a part to all its places.

    Args:
        part: What it must be.
        slices: ``(offset in the part, nbytes, offset in the model)``, ascending.
        stream: Its stored bytes.
        sink: Of the model.
        stop: Set when somebody else failed.
        tick: Called with the bytes that went to their places.

    Raises:
        FormatError: The part is not what the manifest says; some of it may have been written.
    """
    starts = [offset for offset, _, _ in slices]
    longest = max(nbytes for _, nbytes, _ in slices)
    position = 0
    for piece in unpacked_pieces(part, stream, stop):
        end = position + len(piece)
        view = memoryview(piece)
        # Those that may reach into [position, end): none starts more than the longest before it.
        first = bisect.bisect_right(starts, position - longest)
        for offset, nbytes, target in slices[first : bisect.bisect_left(starts, end)]:
            low, high = max(offset, position), min(offset + nbytes, end)
            if low < high:
                sink.write_at(view[low - position : high - position], target + low - offset)
                if tick is not None:
                    tick(high - low)
        position = end


def wrong(part: Part, what: str) -> FormatError:
    """An error that names a part."""
    return FormatError(what, where=f"part {part.name}", remedy="it is damaged; fetch or make it again")
