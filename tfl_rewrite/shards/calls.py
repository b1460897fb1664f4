"""The calls that a program makes: shard a model, join it again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, FormatError, TflRewriteError, UsageError
from tfl_rewrite.files.atomic import PLAIN, access_of
from tfl_rewrite.files.claims import OUTPUT, Claim, check_claims, is_same
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.store import ensure_model
from tfl_rewrite.model.ir import schema
from tfl_rewrite.pipeline.rewrite import claims_of
from tfl_rewrite.pipeline.verification import MODES, Verification
from tfl_rewrite.shards.join import DEFAULT_JOBS, MOST_JOBS, join_parts
from tfl_rewrite.shards.manifest import parse
from tfl_rewrite.shards.opened import expect
from tfl_rewrite.shards.outcome import MODEL_NAME, ShardFile, ShardReport
from tfl_rewrite.shards.parts import COMPRESSIONS, MANIFEST_NAME, write_parts
from tfl_rewrite.shards.sizes import parse_size
from tfl_rewrite.shards.sources import FolderSource, find_source, read_manifest_text
from tfl_rewrite.work import Progress, Work

FORMATS = ("parts", "external")
DEFAULT_SIZE = "4MB"


def shard(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    format: str = "parts",
    max_size: int | str = DEFAULT_SIZE,
    compress: str = "none",
    manifest: str = MANIFEST_NAME,
    verification: Verification | None = None,
    force: bool = False,
    jobs: int = 0,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ShardReport:
    """Writes a model as several files.

    Args:
        source: The ``.tflite`` file; not changed.
        folder: Where the files go; made if it is missing. Files that it has already, byte for byte, stay.
        format: ``parts`` (with a manifest; :func:`join` restores the file byte for byte) or ``external``
            (weights in files that LiteRT 2.1 and newer reads by itself).
        max_size: Of a file: bytes, or text such as ``4MB``.
        compress: ``none`` or ``gzip``, for parts.
        manifest: File name of the manifest of parts.
        verification: How to verify external buffers; parts are always read back and compared.
        force: Whether files with other content may be replaced.
        jobs: Threads; 0 for one per processor.
        dry_run: Do everything but the write.
        progress: Called with what is going on, and how many of how many bytes are done.

    Raises:
        ShardFailed: The runtime computes something else from the external buffers.
        UsageError: An option makes no sense, or a file is in the way.
        FileAccessError, FormatError, UnsupportedError: As for :func:`tfl_rewrite.files.store.load`.
    """
    settings = _checked(verification, jobs)
    _choice(format, FORMATS, "format")
    _choice(compress, COMPRESSIONS, "compression")
    max_nbytes = parse_size(max_size)
    if format == "external" and compress != "none":
        raise UsageError("external buffers are mapped as they are", remedy="leave --compress away")
    if Path(manifest).name != manifest or not manifest.isprintable() or manifest[:1] in (".", ""):
        raise UsageError(f"{manifest!r} is not a plain file name", remedy="such as manifest-v2.json")
    container = Container.open(source)
    ensure_model(container)
    with _folder(folder, dry_run=dry_run) as place:
        # Whatever --force allows, what is read stays as it is.
        entry = os.fspath(place / (MODEL_NAME if format == "external" else manifest))
        _not_its_own(Path(entry), [Path(source)])
        if place.is_dir():
            check_claims(claims_of(source, settings), [Claim("OUTDIR", entry, mine=True)], force=force)
        if format == "external":
            from tfl_rewrite.shards.external_files import shard_external

            return shard_external(
                container,
                place,
                folder=os.fspath(folder),
                max_nbytes=max_nbytes,
                settings=settings,
                force=force,
                dry_run=dry_run,
            )
        if (place / manifest).exists() and not force:
            _same_model_or_refuse(place, manifest, container)
        made = write_parts(
            container,
            place,
            max_nbytes=max_nbytes,
            compression=compress,
            manifest_name=manifest,
            force=force,
            jobs=jobs,
            dry_run=dry_run,
            tick=_ticks(progress, "sharding", container.nbytes * (1 if dry_run else 2)),
        )
    files = tuple(
        ShardFile(
            name=part.name,
            nbytes=part.nbytes,
            stored_nbytes=part.stored_nbytes,
            sha256=part.stored_sha256,
            status="kept" if part.name in made.reused else "new",
        )
        for part in made.manifest.parts
    )
    return ShardReport(
        command="shard",
        format="parts",
        source=os.fspath(source),
        target=os.fspath(folder),
        entry=os.fspath(Path(folder) / manifest),
        nbytes=container.nbytes,
        sha256=made.manifest.sha256,
        files=files,
        notes=made.notes,
        dry_run=dry_run,
    )


def join(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    verification: Verification | None = None,
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
        verification: How to verify a model with external buffers; parts are checked by their hashes.
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
    """
    settings = _checked(verification, jobs)
    where = os.fspath(source)
    origin, name = find_source(where, allow_private=allow_private)
    if isinstance(origin, FolderSource):
        _not_its_own(Path(target), [origin.folder / name])
    reads = claims_of(where, settings) if isinstance(origin, FolderSource) else []
    check_claims(reads, [Claim(OUTPUT, os.fspath(target))], force=force)
    path = Path(os.path.realpath(target))
    if isinstance(origin, FolderSource) and (origin.folder / name).is_dir():
        raise UsageError("is a folder", file=where, remedy=f"name the manifest or model in it{_in(where)}")
    if isinstance(origin, FolderSource) and is_model(origin.folder / name):
        from tfl_rewrite.shards.external_files import join_external

        if sha256 is not None:
            raise UsageError("a model with external buffers has no hash of the whole", file=where)
        return join_external(origin.folder / name, path, settings=settings, force=force, dry_run=dry_run)
    manifest = parse(read_manifest_text(origin, name, where), where)
    expect(manifest, sha256, where)
    if isinstance(origin, FolderSource):
        own = [origin.folder / item for item in (name, *(part.name for part in manifest.parts))]
        _not_its_own(path, own)
    try:
        done = join_parts(
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
    return ShardReport(
        command="join",
        format="parts",
        source=where,
        target=os.fspath(target),
        entry=where,
        nbytes=manifest.nbytes,
        sha256=manifest.sha256,
        files=tuple(
            ShardFile(
                name=part.name,
                nbytes=part.nbytes,
                stored_nbytes=part.stored_nbytes,
                sha256=part.stored_sha256,
                status="kept" if part.name in done.kept else "fetched" if origin.remote else "read",
            )
            for part in manifest.parts
        ),
        dry_run=dry_run,
    )


def _checked(verification: Verification | None, jobs: int) -> Verification:
    settings = verification or Verification()
    _choice(settings.mode, MODES, "verification mode")
    if not 0 <= jobs <= MOST_JOBS:
        raise UsageError(f"jobs is {jobs}", remedy=f"give 1 to {MOST_JOBS}, or 0 for one per processor")
    return settings


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
