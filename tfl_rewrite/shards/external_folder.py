"""Folders with external buffers: written, verified, published; and read back into one file."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfl_rewrite.errors import FileAccessError, FormatError, TflRewriteError, UsageError
from tfl_rewrite.files.atomic import PLAIN, FileSink, access_of, atomic_write, nameless_file
from tfl_rewrite.files.claims import is_same
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source, layout, load
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.blob import Blob, MappedBlob
from tfl_rewrite.shards.external import Moved, WeightFile, move_in, move_out
from tfl_rewrite.shards.manifest import sha256_of
from tfl_rewrite.shards.parts import is_in_the_way, is_present
from tfl_rewrite.shards.settings import (
    MODEL_NAME,
    JoinOptions,
    ShardFailed,
    ShardFile,
    ShardOptions,
    ShardReport,
)
from tfl_rewrite.shards.sources import open_plain

if TYPE_CHECKING:
    from tfl_rewrite.judge.verdict import Verdict


def shard_external(
    container: Container, place: Path, options: ShardOptions, *, folder: str, settings: Judging
) -> ShardReport:
    """Writes ``model.tflite`` and its weight files into a folder; see :func:`tfl_rewrite.shard`.

    Raises:
        ShardFailed: CompiledModel computes something else, or mode is ``require`` and it does not run.
        UnsupportedError: Nothing can be moved, or the file cannot be rewritten.
        UsageError: A file with other content is in the way.
    """
    model = Source(container).model()
    try:
        moved = move_out(model, max_nbytes=options.max_nbytes)
        made = layout(model)
    except TflRewriteError as error:
        error.file = error.file or container.path
        raise
    with _staging(None if options.dry_run else place) as stage:
        staged = stage / MODEL_NAME
        access = access_of(container.path) & PLAIN
        with atomic_write(staged, force=False, nbytes=made.nbytes, access=access) as output:
            made.write_to(output.sink)
            output.publish()
        for file in moved.files:
            _write(file, stage / file.name)
        names = [*(file.name for file in moved.files), MODEL_NAME]
        # Looked at before the long part, so that a refusal does not take it.
        fresh = {name: _is_new(stage / name, place / name, force=options.force) for name in names}
        report = _report(container, folder, moved, stage, fresh, dry_run=options.dry_run)
        report = verified(report, Path(container.path), staged, Path(container.path), settings)
        if not options.dry_run:
            for name in names:
                if fresh[name]:
                    _publish(stage / name, place / name, force=options.force)
    return report


def join_external(path: Path, target: Path, options: JoinOptions, *, settings: Judging) -> ShardReport:
    """Brings weights from the files beside a model into one file; see :func:`tfl_rewrite.join`.

    Raises:
        ShardFailed: As for :func:`shard_external`.
        FormatError: A weight file is missing bytes, or its name leads out of the folder.
        FileAccessError: A weight file is missing.
        UsageError: The model has no external buffers.
    """
    container = Container.open(path)
    model = Source(container).model()
    if not model.external_buffers:
        raise UsageError("is a whole model already; nothing is beside it", file=path)
    weights = _Weights(path.parent)
    try:
        notes = move_in(model, weights.slice)
        made = layout(model)
    except TflRewriteError as error:
        error.file = error.file or os.fspath(path)
        raise
    if any(is_same(target, item.path) for item in weights.opened.values()):
        raise UsageError("is what the result is made of", file=target, remedy="name another place")
    with nameless_file(target.parent, nbytes=made.nbytes, access=access_of(path)) as file:
        made.write_to(FileSink(file.descriptor))
        load(file.path)
        report = ShardReport(
            command="join",
            format="external",
            source=os.fspath(path),
            target=os.fspath(target),
            entry=os.fspath(path),
            nbytes=made.nbytes,
            sha256=sha256_of(file.pieces()),
            files=tuple(
                ShardFile.of_file(name, item, "read") for name, item in sorted(weights.opened.items())
            ),
            notes=tuple(notes),
            dry_run=options.dry_run,
        )
        report = verified(report, path, file.path, file.path, settings)
        if not options.dry_run:
            file.publish(target, force=options.force)
    return report


def verified(report: ShardReport, before: Path, after: Path, whole: Path, settings: Judging) -> ShardReport:
    """Has CompiledModel judge a result; returns the report with what it said.

    Raises:
        ShardFailed: It differs, or it could not be judged and mode is ``require``.
    """
    if settings.mode == "off":
        return replace(report, unverified="not run, as asked")
    from tfl_rewrite.judge.compiled import judge_compiled

    beside = [_weights_of(path) for path in (before, after)]
    verdict: Verdict = judge_compiled(before, after, whole, settings, beside=beside)
    report = replace(report, verdict=verdict)
    reasons = "; ".join(verdict.reasons)
    if verdict.passed:
        return report
    if verdict.status == "unverified":
        report = replace(report, unverified=reasons)
        if settings.mode != "require":
            return report
        raise ShardFailed(
            f"could not be verified, nothing was written: {reasons}",
            replace(report, outcome="failed"),
            "use --verify auto to write it",
        )
    raise ShardFailed(
        f"CompiledModel computes something else, nothing was written: {reasons}",
        replace(report, outcome="failed"),
    )


def _weights_of(model: Path) -> list[Path]:
    """Returns the weight files beside a model."""
    names = {group.name for group in load(model).external_groups if group.name}
    # A name that leads elsewhere was refused when the model was opened.
    return [model.absolute().parent / name for name in sorted(names) if Path(name).name == name]


class _Weights:
    """The weight files beside a model, opened when first named."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.opened: dict[str, Container] = {}

    def slice(self, name: str, offset: int, nbytes: int) -> Blob:
        if name not in self.opened:
            self.opened[name] = self._open(name)
        container = self.opened[name]
        if offset > container.nbytes or nbytes > container.nbytes - offset:
            raise FormatError(
                f"{nbytes} bytes at {offset} reach past its end ({container.nbytes} bytes)",
                file=container.path,
                remedy="the file may be cut short",
            )
        return MappedBlob(container, offset, nbytes)

    def _open(self, name: str) -> Container:
        path = self._folder / name
        with open_plain(path) as descriptor:
            if not os.fstat(descriptor).st_size:
                raise FormatError("the file is empty", file=path)
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        return Container(os.fspath(path), memoryview(mapped), mapped)


@contextlib.contextmanager
def _staging(place: Path | None) -> Iterator[Path]:
    """A folder where the files lie together until they are verified; on the disk of the target."""
    try:
        with Scratch(place, ".tfl-rewrite-") as stage:
            yield stage.path
    except OSError as error:
        raise FileAccessError(f"cannot write: {error.strerror or error}", file=place) from error


def _write(file: WeightFile, path: Path) -> None:
    access = access_of(path.with_name(MODEL_NAME))
    with atomic_write(path, force=False, nbytes=file.nbytes, access=access) as output:
        for offset, blob in file.slices:
            blob.write_to(output.sink, offset)
        output.publish()


def _is_new(staged: Path, target: Path, *, force: bool) -> bool:
    """Whether a file is missing or different; a different one may be replaced with ``force`` only."""
    data = Container.open(staged)
    if is_present(target, data.nbytes, data.pieces):
        return False
    if target.exists() and not force:
        raise is_in_the_way(target)
    return True


def _publish(staged: Path, target: Path, *, force: bool) -> None:
    if force:
        staged.replace(target)
        return
    try:
        os.link(staged, target)
    except FileExistsError:
        _is_new(staged, target, force=False)
    except OSError:
        # A file system without hard links.
        staged.rename(target)


def _report(
    container: Container, folder: str, moved: Moved, stage: Path, fresh: dict[str, bool], *, dry_run: bool
) -> ShardReport:
    return ShardReport(
        command="shard",
        format="external",
        source=container.path,
        target=folder,
        entry=os.fspath(Path(folder) / MODEL_NAME),
        nbytes=container.nbytes,
        sha256=sha256_of(container.pieces()),
        files=tuple(
            ShardFile.of_file(name, Container.open(stage / name), "new" if is_new else "kept")
            for name, is_new in fresh.items()
        ),
        notes=(_moved_note(moved.tensors), *moved.notes),
        dry_run=dry_run,
    )


def _moved_note(count: int) -> str:
    return f"{count} tensor{' has its' if count == 1 else 's have their'} bytes in weight files"
