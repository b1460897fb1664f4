"""Where parts come from: a folder, a web server, or anything that fsspec reads."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import stat
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from tfl_rewrite.errors import FileAccessError, FormatError, UsageError
from tfl_rewrite.shards.manifest import MAX_MANIFEST_NBYTES
from tfl_rewrite.shards.pouring import Stream


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
    """A folder of any file system that fsspec knows."""

    remote = True

    def __init__(self, system: Any, folder: str, label: str) -> None:
        self._system = system
        self._folder = folder
        self._label = label

    @contextlib.contextmanager
    def open(self, name: str) -> Any:
        """Opens a file for reading from the start to the end."""
        label = f"{self._label}/{name}"
        try:
            stream = self._system.open(f"{self._folder}/{name}", "rb")
        except Exception as error:
            # Each file system raises exceptions of its own.
            missing = isinstance(error, FileNotFoundError)
            what = "is missing" if missing else f"cannot read: {type(error).__name__}: {error}"
            raise FileAccessError(what, file=label) from error
        with stream:
            yield _Reading(stream, label)


class _Reading:
    """Turns what goes wrong while reading into an error with the file's name."""

    def __init__(self, stream: Any, label: str) -> None:
        self._stream = stream
        self._label = label

    def read(self, size: int, /) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except Exception as error:
            raise FileAccessError(f"cannot read: {error}", file=self._label) from error


def find_source(where: str, *, allow_private: bool = False) -> tuple[Source, str]:
    """Returns the folder of a manifest and the manifest's name in it.

    Args:
        where: A path, an http, https or file URL, or a URL of another kind for fsspec.
        allow_private: Whether http may connect to private and loopback addresses.

    Raises:
        UsageError: The URL makes no sense, or fsspec or what it needs is not installed.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(::|://)", where)
    if match is None:
        path = Path(where)
        return FolderSource(path.parent), path.name
    scheme = match[1].lower()
    if scheme == "file" and match[2] == "://":
        return _file_url(where)
    if scheme in ("http", "https") and match[2] == "://":
        from tfl_rewrite.shards.web import WebSource

        return WebSource.at(where, allow_private=allow_private)
    return _fsspec(where)


def read_manifest_text(source: Source, name: str) -> bytes:
    """Reads a manifest, at most so much as one may have.

    Raises:
        FileAccessError: See :meth:`Source.open`.
        FormatError: It is too long.
    """
    text = bytearray()
    with source.open(name) as stream:
        while piece := stream.read(1 << 16):
            text += piece
            if len(text) > MAX_MANIFEST_NBYTES:
                raise FormatError(f"a manifest of over {MAX_MANIFEST_NBYTES} bytes", file=name)
    return bytes(text)


def _file_url(where: str) -> tuple[Source, str]:
    parts = urllib.parse.urlsplit(where)
    if parts.netloc not in ("", "localhost"):
        raise UsageError("names another machine", file=where, remedy="write file:///path")
    path = Path(urllib.request.url2pathname(parts.path))
    return FolderSource(path.parent), path.name


def _fsspec(where: str) -> tuple[Source, str]:
    try:
        core = importlib.import_module("fsspec.core")
    except ImportError:
        raise UsageError(
            "needs fsspec", file=where, remedy="install it with: pip install 'tfl-rewrite[remote]'"
        ) from None
    try:
        system, path = core.url_to_fs(where)
    except Exception as error:
        raise UsageError(f"fsspec cannot open it: {error}", file=where) from error
    folder, _, name = str(path).rpartition("/")
    return FsspecSource(system, folder, where.rpartition("/")[0]), name
