"""Puts a model together again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tfl_rewrite.errors import FormatError
from tfl_rewrite.files.atomic import PLAIN, landing
from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.shards.fetch import WorkFolder, work_folder
from tfl_rewrite.shards.manifest import Manifest, Part
from tfl_rewrite.shards.pouring import Hashing, Stopped, pour_part
from tfl_rewrite.shards.sources import Source

DEFAULT_JOBS = 4
MOST_JOBS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What joining did.

    Attributes:
        manifest: Of what was made.
        kept: Names of those that an earlier run had fetched.
    """

    manifest: Manifest
    kept: frozenset[str]


def join_parts(
    manifest: Manifest,
    source: Source,
    target: Path,
    *,
    force: bool = False,
    jobs: int = DEFAULT_JOBS,
    access: int = PLAIN,
    dry_run: bool = False,
    tick: Callable[[int], None] | None = None,
) -> Joined:
    """Makes the file of a manifest, byte for byte.

    Parts of a remote source are kept in a folder beside the target until the file is complete.

    Args:
        manifest: Checked.
        source: Where its parts are.
        target: The file to make; see :func:`tfl_rewrite.files.atomic.check_target`.
        force: Whether it may exist.
        jobs: Parts at once.
        access: Who may read the file, as for :func:`tfl_rewrite.files.atomic.landing`.
        dry_run: Fetch and check everything, but keep nothing.
        tick: Called with bytes done, from any thread.

    Raises:
        FormatError: A part, or the whole, is not what the manifest says; the error names it.
        FileAccessError: A part is missing, or the disk refuses.
        UsageError: The target appeared meanwhile, or another join works on it.
    """
    with contextlib.ExitStack() as stack:
        work: WorkFolder | None = None
        if source.remote and not dry_run:
            work = stack.enter_context(work_folder(target))
        with landing(target.parent, nbytes=manifest.nbytes, access=access) as file:
            kept = assemble(manifest, source, file.sink, jobs=jobs, work=work, tick=tick)
            check_whole(manifest, file.pieces(), tick=tick)
            if not dry_run:
                file.publish(target, force=force)
        if work is not None:
            work.remove(part.name for part in manifest.parts)
    return Joined(manifest=manifest, kept=kept)


def assemble(
    manifest: Manifest,
    source: Source,
    sink: Sink,
    *,
    jobs: int = DEFAULT_JOBS,
    work: WorkFolder | None = None,
    tick: Callable[[int], None] | None = None,
) -> frozenset[str]:
    """Writes all parts to their places, several at once; returns the names of those at hand already.

    Raises:
        FormatError, FileAccessError: As for :func:`join_parts`.
    """
    stop = threading.Event()
    hashing = Hashing(stop)

    def one(part: Part, slices: list[tuple[int, int, int]]) -> bool:
        fetched = work.take(part, source, hashing) if work is not None else True
        with (work.local if work is not None else source).open(part.name) as stream:
            pour_part(part, slices, stream, sink, hashing, tick=tick)
        return fetched

    with _stopping(stop), ThreadPoolExecutor(max(1, min(jobs or os.cpu_count() or 1, MOST_JOBS))) as pool:
        try:
            futures = [
                pool.submit(one, part, slices)
                for part, slices in zip(manifest.parts, manifest.slices(), strict=True)
            ]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failures = [future.exception() for future in done]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        if any(failure is not None for failure in failures):
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            # In order of the manifest, and what failed rather than what was stopped for it.
            found = [future.exception() for future in futures if future.done() and not future.cancelled()]
            raise next(item for item in found if item is not None and not isinstance(item, Stopped))
        return frozenset(
            part.name for part, future in zip(manifest.parts, futures, strict=True) if not future.result()
        )


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    try:
        yield
    except BaseException:
        stop.set()
        raise


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
