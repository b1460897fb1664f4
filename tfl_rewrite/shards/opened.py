"""A model in parts, in memory and ready to run, without a file on disk."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from tfl_rewrite.errors import FormatError, UsageError
from tfl_rewrite.files.atomic import FileSink
from tfl_rewrite.shards.join import DEFAULT_JOBS, MOST_JOBS, assemble, check_whole
from tfl_rewrite.shards.manifest import Manifest, parse
from tfl_rewrite.shards.sources import find_source, read_manifest_text


class ShardedModel:
    """A whole model in memory that belongs to no file; pages that are not used may go to swap.

    Use it as a context manager, or let it be collected. Interpreters that were made keep what they need.

    Attributes:
        manifest: What it was made of.
        content: All bytes, read-only, not copied.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._descriptor = -1
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("tfl-rewrite", os.MFD_CLOEXEC)
            os.ftruncate(self._descriptor, manifest.nbytes)
            self._map = mmap.mmap(self._descriptor, manifest.nbytes)
        else:
            self._map = mmap.mmap(-1, manifest.nbytes)
        self.content = memoryview(self._map).toreadonly()

    @property
    def path(self) -> str | None:
        """A path under which this process can open it, while it is open; None where the system has none."""
        return None if self._descriptor < 0 else f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def interpreter(self, **options: Any) -> Any:
        """Makes a LiteRT interpreter of it, which maps the same pages.

        Args:
            **options: Handed to ``ai_edge_litert.interpreter.Interpreter``.
        """
        from ai_edge_litert.interpreter import Interpreter

        if self.path is not None and Path(self.path).exists():
            return Interpreter(model_path=self.path, **options)
        return Interpreter(model_content=bytes(self.content), **options)

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Fills it; only for who makes it."""
        view = memoryview(data).cast("B")
        if self._descriptor >= 0:
            # Writing to the file, unlike to its map, says so when memory is short.
            FileSink(self._descriptor).write_at(view, offset)
        else:
            self._map[offset : offset + len(view)] = bytes(view)

    def close(self) -> None:
        """Gives the memory back, as far as nobody else holds it."""
        with contextlib.suppress(BufferError):
            self.content.release()
            self._map.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> ShardedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_sharded(
    manifest: str | os.PathLike[str],
    *,
    jobs: int = DEFAULT_JOBS,
    allow_private: bool = False,
    sha256: str | None = None,
    max_nbytes: int | None = None,
) -> ShardedModel:
    """Fetches, checks and assembles a model in memory; nothing is written to disk.

    Args:
        manifest: Path or URL of a ``manifest.json``.
        jobs: Parts at once.
        allow_private: Whether http may connect to private and loopback addresses.
        sha256: What the model must be, if it is known from elsewhere.
        max_nbytes: Refuse a model that says it is larger.

    Raises:
        FormatError: The manifest or a part is damaged; the error names the part.
        FileAccessError: Something is missing or cannot be read.
        UnsupportedError: A newer manifest.
        UsageError: The URL makes no sense, or the model is larger than ``max_nbytes``.
    """
    where = os.fspath(manifest)
    if not 0 <= jobs <= MOST_JOBS:
        raise UsageError(f"jobs is {jobs}", remedy=f"give 1 to {MOST_JOBS}, or 0 for one per processor")
    source, name = find_source(where, allow_private=allow_private)
    found = parse(read_manifest_text(source, name, where), where)
    expect(found, sha256, where)
    if max_nbytes is not None and found.nbytes > max_nbytes:
        raise UsageError(f"the model takes {found.nbytes} bytes, more than {max_nbytes}", file=where)
    model = ShardedModel(found)
    try:
        assemble(found, source, model, jobs=jobs)
        check_whole(found, [model.content])
    except BaseException as error:
        model.close()
        if isinstance(error, FormatError):
            error.file = error.file or where
        raise
    return model


def expect(manifest: Manifest, sha256: str | None, where: str) -> None:
    """Compares a manifest with a hash that is known from elsewhere.

    Raises:
        UsageError: It is of another model.
    """
    if sha256 is not None and sha256.strip().lower() != manifest.sha256:
        raise UsageError(
            f"is of a model with the SHA-256 {manifest.sha256}, not {sha256[:80]}",
            file=where,
            remedy="it is another version, or it was tampered with",
        )
