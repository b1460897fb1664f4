"""Puts a model together again: every part checked on its way to its places, then the whole.

Parts of a remote source are kept beside the target until it is complete: a join that was stopped goes on
where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, FormatError, UsageError
from tfl_rewrite.files.atomic import PLAIN, nameless_file
from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.shards.manifest import Manifest, Part, parse
from tfl_rewrite.shards.residual import Residual
from tfl_rewrite.shards.settings import DEFAULT_JOBS, JOBS, JoinOptions
from tfl_rewrite.shards.sources import (
    FolderSource,
    Source,
    Stopped,
    read_manifest_text,
    stored_pieces,
    write_part,
)
from tfl_rewrite.shards.web import TooSlow
from tfl_rewrite.work import leads_to, lock, opened_folder

_MARKER = ".tfl-rewrite-join"
_ATTEMPTS = 2


class WorkFolder:
    """Parts that were fetched and found right, beside the file that is made of them.

    Args:
        folder: Its path.
        opened: A descriptor of it.
    """

    def __init__(self, folder: Path, opened: int) -> None:
        self.folder = folder
        self.local = FolderSource(folder)
        self._opened = opened

    def take(self, part: Part, source: Source, stop: threading.Event | None) -> bool:
        """Makes sure that a part is here and right; returns whether it had to be fetched.

        Raises:
            FormatError: What the source has is not what the manifest says.
            FileAccessError: The source does not have it, or the disk refuses.
        """
        if self._is_right(part, stop):
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part.name, dir_fd=self._opened)
        for attempt in range(_ATTEMPTS):
            try:
                with nameless_file(self.folder, nbytes=part.stored_nbytes, opened=self._opened) as file:
                    position = 0
                    with source.open(part.name) as stream:
                        for piece in stored_pieces(part, stream, stop):
                            file.sink.write_at(piece, position)
                            position += len(piece)
                    file.publish(self.folder / part.name, force=True)
                return True
            except (FormatError, FileAccessError) as error:
                # A connection that breaks looks like a part that is too short.
                if attempt == _ATTEMPTS - 1 or isinstance(error, TooSlow):
                    raise
        raise AssertionError("unreachable")

    def _is_right(self, part: Part, stop: threading.Event | None) -> bool:
        try:
            status = os.stat(part.name, dir_fd=self._opened, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_size != part.stored_nbytes:
            return False
        try:
            with self.local.open(part.name) as stream:
                for _ in stored_pieces(part, stream, stop):
                    pass
        except (FormatError, FileAccessError):
            return False
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Removes parts, and the folder unless something else is in it.

        Args:
            names: The parts that are no longer needed. Parts of another version of the model go too.
        """
        with os.scandir(self._opened) as entries:
            others = [entry.name for entry in entries if entry.name.endswith(".part")]
        for name in {*names, *others}:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._opened)


@contextlib.contextmanager
def work_folder(target: Path) -> Iterator[WorkFolder]:
    """Opens the working folder of a file to be made, new or left by a join that was stopped.

    It stays while there are parts in it: what is there a next run need not fetch. Only a folder that a join
    made is used: one that was empty, or has our marker in it.

    Raises:
        UsageError: Another process works in it, or something else has its name.
        FileAccessError: It cannot be made.
    """
    path = target.with_name(f"{target.name}.parts")
    folder, marker = _marked(path)
    try:
        for stale in _stale(folder):
            with contextlib.suppress(OSError):
                os.unlink(stale, dir_fd=folder)
        try:
            yield WorkFolder(path, folder)
        finally:
            # Without parts there is nothing to resume.
            with contextlib.suppress(OSError):
                if os.listdir(folder) == [_MARKER]:  # noqa: PTH208
                    os.unlink(_MARKER, dir_fd=folder)
                    path.rmdir()
    finally:
        os.close(marker)
        os.close(folder)


def _marked(path: Path) -> tuple[int, int]:
    """Makes the folder if it is missing, and locks the marker in it; returns descriptors of both."""
    try:
        while True:
            with contextlib.suppress(FileExistsError):
                path.mkdir(0o700)
            with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
                folder = opened_folder(path)
                stack.callback(os.close, folder)
                held = os.listdir(folder)  # noqa: PTH208
                if held and _MARKER not in held:
                    raise NotADirectoryError
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                marker = os.open(_MARKER, flags, 0o600, dir_fd=folder)
                stack.callback(os.close, marker)
                if not lock(marker, without=True):
                    raise UsageError("another join works in it", file=path, remedy="wait for it to end")
                if leads_to(_MARKER, marker, folder=folder) and leads_to(path, folder):
                    stack.pop_all()
                    return folder, marker
            # A join that ended a moment ago took it away.
    except NotADirectoryError:
        raise UsageError(
            "exists already, and no join made it", file=path, remedy="remove it, or name another OUT"
        ) from None
    except OSError as error:
        raise FileAccessError.of_writing(error, path) from error


def _stale(folder: int) -> list[str]:
    """Names of half-made files that older joins left."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.name.startswith(".") and entry.name.endswith(".tmp")]


def join_parts(
    manifest: Manifest,
    source: Source,
    target: Path,
    options: JoinOptions,
    *,
    access: int = PLAIN,
    tick: Callable[[int], None] | None = None,
) -> frozenset[str]:
    """Makes the file of a manifest, byte for byte; returns the names of parts that were fetched before.

    Parts of a remote source are kept in a folder beside the target until the file is complete.

    Args:
        manifest: Checked.
        source: Where its parts are.
        target: The file to make; see :func:`tfl_rewrite.files.atomic.check_target`.
        options: How many parts at once, and whether it may exist.
        access: Who may read the file, as for :func:`tfl_rewrite.files.atomic.nameless_file`.
        tick: Called with bytes done, from any thread.

    Raises:
        FormatError: A part, or the whole, is not what the manifest says; the error names it.
        FileAccessError: A part is missing, or the disk refuses.
        UsageError: The target appeared meanwhile, or another join works on it.
    """
    with contextlib.ExitStack() as stack:
        work: WorkFolder | None = None
        if source.remote and not options.dry_run:
            work = stack.enter_context(work_folder(target))
        kept, base = frozenset[str](), None
        if manifest.base is not None:
            first = stack.enter_context(nameless_file(target.parent, nbytes=manifest.base.nbytes))
            kept = assemble(manifest.base, source, first.sink, jobs=options.jobs, work=work, tick=tick)
            check_whole(manifest.base, first.pieces(), tick=tick)
            base = first.view()
        with nameless_file(target.parent, nbytes=manifest.nbytes, access=access) as file:
            kept |= assemble(manifest, source, file.sink, base, jobs=options.jobs, work=work, tick=tick)
            check_whole(manifest, file.pieces(), tick=tick)
            if not options.dry_run:
                file.publish(target, force=options.force)
        if work is not None:
            work.remove(part.name for part in manifest.parts)
    return kept


def assemble(
    manifest: Manifest,
    source: Source,
    sink: Sink,
    base: memoryview | None = None,
    *,
    jobs: int = DEFAULT_JOBS,
    work: WorkFolder | None = None,
    tick: Callable[[int], None] | None = None,
) -> frozenset[str]:
    """Writes all parts to their places, several at once; returns the names of those at hand already.

    Args:
        manifest: Checked.
        source: Where its parts are.
        sink: Of the model.
        base: All bytes of the base, which were found right, where the manifest has one.
        jobs: How many at once.
        work: Where parts are kept.
        tick: Called with bytes done, from any thread.

    Raises:
        FormatError, FileAccessError: As for :func:`join_parts`.
    """
    stop = threading.Event()
    residual = Residual(manifest, base) if base is not None else None
    for nbytes in residual.copy_to(sink) if residual is not None else ():
        if tick is not None:
            tick(nbytes)

    def one(part: Part, slices: list[tuple[int, int, int]]) -> bool:
        fetched = work.take(part, source, stop) if work is not None else True
        with (work.local if work is not None else source).open(part.name) as stream:
            over = sink if residual is None else residual.over(sink)
            write_part(part, slices, stream, over, stop=stop, tick=tick)
        return fetched

    pool = ThreadPoolExecutor(max(1, min(jobs or os.cpu_count() or 1, JOBS[1])))
    try:
        # Of some parts only the base has something.
        pairs = [pair for pair in zip(manifest.parts, manifest.slices(), strict=True) if pair[1]]
        futures = [pool.submit(one, part, slices) for part, slices in pairs]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        if any(future.exception() is not None for future in done):
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            # In order of the manifest, and what failed rather than what was stopped for it.
            found = [future.exception() for future in futures if future.done() and not future.cancelled()]
            raise next(item for item in found if item is not None and not isinstance(item, Stopped))
        rows = zip(pairs, futures, strict=True)
        return frozenset(part.name for (part, _), future in rows if not future.result())
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def check_whole(
    manifest: Manifest, pieces: Iterable[bytes | memoryview], *, tick: Callable[[int], None] | None = None
) -> None:
    """Checks the hash of the whole.

    Args:
        manifest: Says what it must be.
        pieces: All bytes, in order.
        tick: Called with bytes done.

    Raises:
        FormatError: Every part was right, but they are not parts of this model.
    """
    digest = hashlib.sha256()
    nbytes = 0
    for piece in pieces:
        digest.update(piece)
        nbytes += len(piece)
        if tick is not None:
            tick(len(piece))
    if nbytes != manifest.nbytes or digest.hexdigest() != manifest.sha256:
        raise FormatError(
            f"the parts are right, but together they have the SHA-256 {digest.hexdigest()}, "
            f"not {manifest.sha256}",
            where="sha256",
            remedy="the manifest is damaged; make it again",
        )


def manifests_of(source: Source, name: str, where: str, options: JoinOptions) -> tuple[Manifest, Manifest]:
    """Reads a manifest; returns it, and that of what is to be made, which has the hash that was asked for."""
    manifest = whole = parse(read_manifest_text(source, name, where), where)
    if options.base:
        if manifest.base is None:
            remedy = "leave --base away; 'tfl-rewrite shard --progressive' makes one"
            raise UsageError("has no base", file=where, remedy=remedy)
        manifest = manifest.base
    if options.sha256 not in (None, manifest.sha256):
        raise UsageError(
            f"is of a model with the SHA-256 {manifest.sha256}, not {options.sha256}",
            file=where,
            remedy="it is another version, or it was tampered with",
        )
    return whole, manifest


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Names the manifest in errors about what it describes."""
    try:
        yield
    except FormatError as error:
        error.file = error.file or where
        raise
