"""The calls that a program makes: shard a model, and join it again."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import FileAccessError, TflRewriteError, UsageError
from tfl_rewrite.files.atomic import PLAIN, FileSink, access_of
from tfl_rewrite.files.claims import OUTPUT, Claim, check_claims, claims_of, is_same
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import ModelLike, ensure_model
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.ir import schema
from tfl_rewrite.reading.metadata import on_disk
from tfl_rewrite.shards.join import assemble, check_whole, join_parts, manifests_of, naming
from tfl_rewrite.shards.manifest import Manifest, parse
from tfl_rewrite.shards.parts import write_parts
from tfl_rewrite.shards.settings import (
    DEFAULT_JOBS,
    MANIFEST_NAME,
    MODEL_NAME,
    JoinOptions,
    ShardOptions,
    ShardReport,
)
from tfl_rewrite.shards.sources import FolderSource, Source, find_source, read_manifest_text
from tfl_rewrite.work import Progress, Work


def shard(
    source: ModelLike,
    folder: str | os.PathLike[str],
    options: ShardOptions | None = None,
    *,
    judging: Judging | None = None,
    progress: Progress | None = None,
) -> ShardReport:
    """Writes a model as several files.

    Args:
        source: A path, bytes, an open file or a model; not changed.
        folder: Where the files go; made if it is missing. Files that it has already, byte for byte, stay.
        options: Parts or external buffers, how large a file may be, and how it is written.
        judging: How to verify external buffers; parts are always read back and compared.
        progress: Called with what is going on, and how many of how many bytes are done.

    Raises:
        ShardFailed: The runtime computes something else from the external buffers.
        UsageError: A file exists there.
        FileAccessError, FormatError, UnsupportedError: As for :func:`tfl_rewrite.files.source.load`.

    Example:
        >>> options = tfl_rewrite.ShardOptions(max_size="64KB", compress="gzip")
        >>> report = tfl_rewrite.shard("model.tflite", "public", options)
        >>> len(report.files), report.files[0].nbytes <= 64 * 1024
        (5, True)
    """
    options, settings = options or ShardOptions(), judging or Judging()
    with on_disk(source) as file:
        container = Container.open(file)
        ensure_model(container)
        with folder_for(folder, dry_run=options.dry_run) as place:
            # Whatever --force allows, what is read stays as it is.
            entry = place / options.entry
            not_its_own(entry, [Path(file)])
            if place.is_dir():
                reads = claims_of(file, settings.inputs, settings.holdout)
                check_claims(reads, [Claim("OUTDIR", os.fspath(entry), mine=True)], force=options.force)
            if options.format == "external":
                from tfl_rewrite.shards.external import shard_external

                made = shard_external(container, place, options, folder=os.fspath(folder), settings=settings)
                return replace(made, source=str(file))
            if entry.exists() and not options.force:
                _same_model_or_refuse(place, options.manifest, container)
            if options.progressive:
                from tfl_rewrite.shards.rest import shard_progressive

                ends = str(file), os.fspath(folder)
                return shard_progressive(
                    container, place, options, settings=settings, ends=ends, progress=progress
                )
            return _shard_plainly(container, place, options, (str(file), os.fspath(folder)), progress)


def _shard_plainly(
    container: Container,
    place: Path,
    options: ShardOptions,
    ends: tuple[str, str],
    progress: Progress | None,
) -> ShardReport:
    """Writes a model as parts of it alone."""
    total = container.nbytes * (1 if options.dry_run else 2)
    made = write_parts(container, place, options, _ticks(progress, "sharding", total))
    return ShardReport.of_parts(
        made.manifest,
        lambda part: "kept" if part.name in made.reused else "new",
        command="shard",
        source=ends[0],
        target=ends[1],
        entry=os.fspath(Path(ends[1]) / options.entry),
        notes=made.notes,
        dry_run=options.dry_run,
    )


def join(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: JoinOptions | None = None,
    *,
    judging: Judging | None = None,
    progress: Progress | None = None,
) -> ShardReport:
    """Makes one file of a model in several.

    Args:
        source: Path or URL of a manifest, or path of a model whose weights lie in files beside it.
        target: The file to make. Parts that come over a network are kept in ``TARGET.parts`` until it is
            complete, so that a join which was stopped does not fetch them again.
        options: What is trusted, and how the file is written.
        judging: How to verify a model with external buffers; parts are checked by their hashes.
        progress: Called with what is going on, and how many of how many bytes are done.

    Raises:
        ShardFailed: The runtime computes something else from the one file.
        FormatError: Something is damaged; the error names the part. Nothing was written.
        UsageError, FileAccessError, UnsupportedError: As for :func:`shard`.

    Example:
        >>> report = tfl_rewrite.shard("model.tflite", "parts")
        >>> tfl_rewrite.join("parts/manifest.json", "joined.tflite").sha256 == report.sha256
        True
    """
    options, settings = options or JoinOptions(), judging or Judging()
    where = os.fspath(source)
    origin, name = find_source(where, allow_private=options.allow_private)
    here = origin.folder / name if isinstance(origin, FolderSource) else None
    path = _target(target, here, where, settings, force=options.force)
    if here is not None and is_model(here):
        from tfl_rewrite.shards.external import join_external

        if options.sha256 is not None:
            raise UsageError("a model with external buffers has no hash of the whole", file=where)
        if options.base:
            raise UsageError("a model with external buffers has no base", file=where)
        return join_external(here, path, options, settings=settings)
    whole, manifest = manifests_of(origin, name, where, options)
    if here is not None:
        not_its_own(path, [here, *(here.with_name(part.name) for part in whole.parts)])
    access = PLAIN if here is None else access_of(here)
    tick = _ticks(progress, "joining", 2 * manifest.assembled_nbytes)
    with naming(where):
        kept = join_parts(manifest, origin, path, options, access=access, tick=tick)
    read = "fetched" if origin.remote else "read"
    return ShardReport.of_parts(
        manifest,
        lambda part: "kept" if part.name in kept else read,
        command="join",
        source=where,
        target=os.fspath(target),
        entry=where,
        dry_run=options.dry_run,
    )


def _target(
    target: str | os.PathLike[str], here: Path | None, where: str, settings: Judging, *, force: bool
) -> Path:
    """Returns the file to make, which is none of those that are read."""
    if here is not None:
        not_its_own(Path(target), [here])
    reads = claims_of(where, settings.inputs, settings.holdout) if here is not None else []
    check_claims(reads, [Claim(OUTPUT, os.fspath(target))], force=force)
    if here is not None and here.is_dir():
        raise UsageError("is a folder", file=where, remedy=f"name the manifest or model in it{_in(where)}")
    return Path(os.path.realpath(target))


@contextlib.contextmanager
def folder_for(folder: str | os.PathLike[str], *, dry_run: bool) -> Iterator[Path]:
    """The folder to write to, made if it is missing; one that was made for nothing is removed."""
    path = Path(folder)
    if not os.fspath(folder):
        # To Path it is the folder at hand.
        raise UsageError("the name is empty", file=folder, remedy="name a folder")
    if path.exists() and not path.is_dir():
        raise UsageError("is not a folder", file=folder, remedy="name a folder")
    made = False
    if not path.exists():
        if not path.absolute().parent.is_dir():
            raise UsageError("its folder does not exist", file=folder, remedy="create it first")
        if not dry_run:
            try:
                path.mkdir()
                made = True
            except OSError as error:
                raise FileAccessError(f"cannot be made: {error.strerror}", file=folder) from error
    try:
        yield path
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _same_model_or_refuse(place: Path, manifest: str, container: Container) -> None:
    """A manifest that is there is fine if it turns out equal; refused early where it cannot."""
    text = read_manifest_text(FolderSource(place), manifest, str(place / manifest))
    try:
        present = parse(text, manifest)
    except TflRewriteError:
        present = None
    if present is None or present.nbytes != container.nbytes:
        raise UsageError(
            "exists already, for another model",
            file=place / manifest,
            remedy="use --force to overwrite it, or --manifest NAME to put this one beside it",
        )


def is_model(path: Path) -> bool:
    """Whether a file is a model, going by its identifier; a manifest of parts is not."""
    try:
        with open(path, "rb") as file:
            return file.read(8)[4:] == schema().identifier
    except OSError:
        # Whatever it is, it will be named when it is opened as a manifest.
        return False


def not_its_own(target: Path, sources: Iterable[Path]) -> None:
    """Refuses to write what is read.

    Raises:
        UsageError: The target is one of the sources.
    """
    if any(is_same(target, source) for source in sources):
        raise UsageError("is what the result is made of", file=target, remedy="name another place")


def _in(folder: str) -> str:
    """Returns what is there to name, as a half sentence."""
    found = [path for name in (MANIFEST_NAME, MODEL_NAME) if (path := Path(folder) / name).is_file()]
    return f", such as {found[0]}" if found else ""


def _ticks(progress: Progress | None, what: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else Work(progress=progress).stage(what, total).tick


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
