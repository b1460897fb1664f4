"""The calls that a program makes: shard a model, join it again, open it in memory without a file on disk."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tfl_rewrite.errors import FileAccessError, FormatError, TflRewriteError, UsageError
from tfl_rewrite.files.atomic import PLAIN, FileSink, access_of
from tfl_rewrite.files.claims import OUTPUT, Claim, check_claims, claims_of, is_same
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import ModelLike, ensure_model
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.ir import schema
from tfl_rewrite.reading.on_disk import on_disk
from tfl_rewrite.shards.join import DEFAULT_JOBS, MOST_JOBS, assemble, check_whole, join_parts
from tfl_rewrite.shards.manifest import Manifest, parse, parse_size
from tfl_rewrite.shards.parts import MANIFEST_NAME, PartOptions, write_parts
from tfl_rewrite.shards.report import MODEL_NAME, ShardReport
from tfl_rewrite.shards.sources import FolderSource, Source, find_source, read_manifest_text
from tfl_rewrite.work import Progress, Work

FORMATS = ("parts", "external")
DEFAULT_SIZE = "4MB"


def shard(
    source: ModelLike,
    folder: str | os.PathLike[str],
    *,
    format: str = "parts",
    max_size: int | str = DEFAULT_SIZE,
    compress: str = "none",
    manifest: str = MANIFEST_NAME,
    judging: Judging | None = None,
    force: bool = False,
    jobs: int = 0,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ShardReport:
    """Writes a model as several files.

    Args:
        source: A path, bytes, an open file or a model; not changed.
        folder: Where the files go; made if it is missing. Files that it has already, byte for byte, stay.
        format: ``parts`` (with a manifest; :func:`join` restores the file byte for byte) or ``external``
            (weights in files that LiteRT 2.1 and newer reads by itself).
        max_size: Of a file: bytes, or text such as ``4MB``.
        compress: ``none`` or ``gzip``, for parts.
        manifest: File name of the manifest of parts.
        judging: How to verify external buffers; parts are always read back and compared.
        force: Whether files with other content may be replaced.
        jobs: Threads; 0 for one per processor.
        dry_run: Do everything but the write.
        progress: Called with what is going on, and how many of how many bytes are done.

    Raises:
        ShardFailed: The runtime computes something else from the external buffers.
        UsageError: An option makes no sense, or a file is in the way.
        FileAccessError, FormatError, UnsupportedError: As for :func:`tfl_rewrite.files.store.load`.

    Example:
        >>> report = tfl_rewrite.shard("model.tflite", "public", max_size="64KB", compress="gzip")
        >>> len(report.files), report.files[0].nbytes <= 64 * 1024
        (5, True)
    """
    settings = _checked(judging, jobs)
    _choice(format, FORMATS, "format")
    options = PartOptions(
        max_nbytes=parse_size(max_size),
        compression=compress,
        manifest_name=manifest,
        force=force,
        jobs=jobs,
        dry_run=dry_run,
    )
    if format == "external" and compress != "none":
        raise UsageError("external buffers are mapped as they are", remedy="leave --compress away")
    with on_disk(source) as file:
        container = Container.open(file)
        ensure_model(container)
        with _folder(folder, dry_run=dry_run) as place:
            # Whatever --force allows, what is read stays as it is.
            entry = os.fspath(place / (MODEL_NAME if format == "external" else manifest))
            _not_its_own(Path(entry), [Path(file)])
            if place.is_dir():
                reads = claims_of(file, settings.inputs, settings.holdout)
                check_claims(reads, [Claim("OUTDIR", entry, mine=True)], force=force)
            if format == "external":
                from tfl_rewrite.shards.external_folder import shard_external

                return shard_external(
                    container,
                    place,
                    folder=os.fspath(folder),
                    max_nbytes=options.max_nbytes,
                    settings=settings,
                    force=force,
                    dry_run=dry_run,
                )
            if (place / manifest).exists() and not force:
                _same_model_or_refuse(place, manifest, container)
            made = write_parts(
                container,
                place,
                options,
                _ticks(progress, "sharding", container.nbytes * (1 if dry_run else 2)),
            )
    return ShardReport.of_parts(
        made.manifest,
        lambda part: "kept" if part.name in made.reused else "new",
        command="shard",
        source=str(file),
        target=os.fspath(folder),
        entry=os.fspath(Path(folder) / manifest),
        notes=made.notes,
        dry_run=dry_run,
    )


def join(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    judging: Judging | None = None,
    force: bool = False,
    jobs: int = DEFAULT_JOBS,
    allow_private: bool = False,
    sha256: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ShardReport:
    """Makes one file of a model in several.

    Args:
        source: Path or URL of a manifest, or path of a model whose weights lie in files beside it.
        target: The file to make. Parts that come over a network are kept in ``TARGET.parts`` until it is
            complete, so that a join which was stopped does not fetch them again.
        judging: How to verify a model with external buffers; parts are checked by their hashes.
        force: Whether the target may exist.
        jobs: Parts at once.
        allow_private: Whether http may connect to private and loopback addresses.
        sha256: What the model of a manifest must be, if it is known from elsewhere.
        dry_run: Fetch and check everything, but keep nothing.
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
    settings = _checked(judging, jobs)
    where = os.fspath(source)
    origin, name = find_source(where, allow_private=allow_private)
    if isinstance(origin, FolderSource):
        _not_its_own(Path(target), [origin.folder / name])
    folder = isinstance(origin, FolderSource)
    reads = claims_of(where, settings.inputs, settings.holdout) if folder else []
    check_claims(reads, [Claim(OUTPUT, os.fspath(target))], force=force)
    path = Path(os.path.realpath(target))
    if isinstance(origin, FolderSource) and (origin.folder / name).is_dir():
        raise UsageError("is a folder", file=where, remedy=f"name the manifest or model in it{_in(where)}")
    if isinstance(origin, FolderSource) and is_model(origin.folder / name):
        from tfl_rewrite.shards.external_folder import join_external

        if sha256 is not None:
            raise UsageError("a model with external buffers has no hash of the whole", file=where)
        return join_external(origin.folder / name, path, settings=settings, force=force, dry_run=dry_run)
    manifest = _manifest(origin, name, where, sha256)
    if isinstance(origin, FolderSource):
        own = [origin.folder / item for item in (name, *(part.name for part in manifest.parts))]
        _not_its_own(path, own)
    try:
        kept = join_parts(
            manifest,
            origin,
            path,
            force=force,
            access=access_of(origin.folder / name) if isinstance(origin, FolderSource) else PLAIN,
            jobs=jobs,
            dry_run=dry_run,
            tick=_ticks(progress, "joining", 2 * manifest.nbytes),
        )
    except FormatError as error:
        error.file = error.file or where
        raise
    read = "fetched" if origin.remote else "read"
    return ShardReport.of_parts(
        manifest,
        lambda part: "kept" if part.name in kept else read,
        command="join",
        source=where,
        target=os.fspath(target),
        entry=where,
        dry_run=dry_run,
    )


class ShardedModel:
    """A whole model in memory that belongs to no file; pages that are not used may go to swap.

    Use it as a context manager, or let it be collected. Interpreters that were made keep what they need.

    Attributes:
        manifest: What it was made of.
        content: All bytes, read-only, not copied.

    Example:
        >>> report = tfl_rewrite.shard("model.tflite", "parts")
        >>> with tfl_rewrite.open_sharded("parts/manifest.json") as model:
        ...     interpreter = model.interpreter()
        ...     interpreter.allocate_tensors()
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

    Example:
        >>> report = tfl_rewrite.shard("model.tflite", "parts")
        >>> with tfl_rewrite.open_sharded("parts/manifest.json") as model:
        ...     len(model.content)
        102424
    """
    where = os.fspath(manifest)
    _check_jobs(jobs)
    source, name = find_source(where, allow_private=allow_private)
    found = _manifest(source, name, where, sha256)
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


def _checked(judging: Judging | None, jobs: int) -> Judging:
    settings = judging or Judging()
    _check_jobs(jobs)
    return settings


def _check_jobs(jobs: int) -> None:
    if not 0 <= jobs <= MOST_JOBS:
        raise UsageError(f"jobs is {jobs}", remedy=f"give 1 to {MOST_JOBS}, or 0 for one per processor")


def _manifest(source: Source, name: str, where: str, sha256: str | None) -> Manifest:
    """Reads a manifest, and compares it with a hash that is known from elsewhere."""
    manifest = parse(read_manifest_text(source, name, where), where)
    if sha256 is not None and sha256.strip().lower() != manifest.sha256:
        raise UsageError(
            f"is of a model with the SHA-256 {manifest.sha256}, not {sha256[:80]}",
            file=where,
            remedy="it is another version, or it was tampered with",
        )
    return manifest


def _choice(value: str, choices: tuple[str, ...], what: str) -> None:
    if value not in choices:
        raise UsageError(f"{what} {value!r} is unknown", remedy=f"use one of {', '.join(choices)}")


@contextlib.contextmanager
def _folder(folder: str | os.PathLike[str], *, dry_run: bool) -> Iterator[Path]:
    """The folder to write to, made if it is missing; one that was made for nothing is removed."""
    path = Path(folder)
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


def _not_its_own(target: Path, sources: Iterable[Path]) -> None:
    if any(is_same(target, source) for source in sources):
        raise UsageError("is what the result is made of", file=target, remedy="name another place")


def _in(folder: str) -> str:
    """Returns what is there to name, as a half sentence."""
    found = [path for name in (MANIFEST_NAME, MODEL_NAME) if (path := Path(folder) / name).is_file()]
    return f", such as {found[0]}" if found else ""


def _ticks(progress: Progress | None, what: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else Work(progress=progress).stage(what, total).tick
