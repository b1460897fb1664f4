"""A model in parts that is put together in memory, without a file on disk."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import UsageError
from tfl_rewrite.files.atomic import FileSink
from tfl_rewrite.shards.join import assemble, check_whole, manifests_of, naming
from tfl_rewrite.shards.manifest import Manifest
from tfl_rewrite.shards.settings import DEFAULT_JOBS, JoinOptions
from tfl_rewrite.shards.sources import Source, find_source


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

    def interpreter(self, *, num_threads: int | None = None, delegates: Sequence[Any] = ()) -> Any:
        """Makes a LiteRT interpreter of it, which maps the same pages.

        Args:
            num_threads: For its kernels; None for what the runtime chooses.
            delegates: Those that ``ai_edge_litert.interpreter.load_delegate`` returned.
        """
        from ai_edge_litert.interpreter import Interpreter

        mapped = self.path is not None and Path(self.path).exists()
        content = {"model_path": self.path} if mapped else {"model_content": bytes(self.content)}
        chosen = list(delegates) or None
        return Interpreter(**content, num_threads=num_threads, experimental_delegates=chosen)

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

    def __exit__(self, *_: object) -> None:
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
    base: bool = False,
) -> ShardedModel:
    """Fetches, checks and assembles a model in memory; nothing is written to disk.

    Args:
        manifest: Path or URL of a ``manifest.json``.
        jobs: Parts at once.
        allow_private: Whether http may connect to private and loopback addresses.
        sha256: What the model must be, if it is known from elsewhere.
        max_nbytes: Refuse a model that says it is larger; a base, of which it is made, counts too.
        base: Only the base of a model that was sharded progressively.

    Raises:
        FormatError: The manifest or a part is damaged; the error names the part.
        FileAccessError: Something is missing or cannot be read.
        UnsupportedError: A newer manifest.
        UsageError: The URL makes no sense, or the model is larger than ``max_nbytes``.

    Example:
        >>> report = tfl_rewrite.shard("model.tflite", "parts")
        >>> with tfl_rewrite.open_sharded("parts/manifest.json") as model:
        ...     len(model.content)
        102424
    """
    where = os.fspath(manifest)
    options = JoinOptions(jobs=jobs, allow_private=allow_private, sha256=sha256, base=base)
    source, name = find_source(where, allow_private=allow_private)
    _, found = manifests_of(source, name, where, options)
    if max_nbytes is not None and (total := found.assembled_nbytes) > max_nbytes:
        raise UsageError(f"the model takes {total} bytes, more than {max_nbytes}", file=where)
    with contextlib.ExitStack() as stack, naming(where):
        first = stack.enter_context(_in_memory(found.base, source, options)) if found.base else None
        return _in_memory(found, source, options, first.content if first is not None else None)


def _in_memory(
    manifest: Manifest, source: Source, options: JoinOptions, base: memoryview | None = None
) -> ShardedModel:
    model = ShardedModel(manifest)
    try:
        assemble(manifest, source, model, base, jobs=options.jobs)
        check_whole(manifest, [model.content])
    except BaseException:
        model.close()
        raise
    return model
