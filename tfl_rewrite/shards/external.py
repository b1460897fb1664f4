"""Weights in files beside the model: LiteRT's external buffers (schema version 3d).

A change of the model, and the folder that it is written to, verified and published in, or read back from.

What the runtime takes there is a constant at input 1 of a few operators, of which the rows say so; the same
rule as ``litert/tools/externalize_tflite_flatbuffer.py``. Any other constant
becomes an input of a delegate's partition, or is looked at before the weights are there. Slices start at
multiples of 64 bytes (``LITERT_HOST_MEMORY_BUFFER_ALIGNMENT``), group 0 is a placeholder without a name, and
identifiers carry the most significant bit.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfl_rewrite.errors import FileAccessError, FormatError, TflRewriteError, UnsupportedError, UsageError
from tfl_rewrite.files.atomic import PLAIN, FileSink, access_of, atomic_write, nameless_file
from tfl_rewrite.files.claims import is_same
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source, layout, load
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.table import ROWS, row_of
from tfl_rewrite.model import dtypes, likeness
from tfl_rewrite.model.blob import Blob, MappedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Buffer, ExternalBuffer, ExternalGroup, Model, Tensor, new_record
from tfl_rewrite.pipeline.report import unverified, with_newer
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


ALIGNMENT = 64
WEIGHT_INPUT = 1
LEAST_NBYTES = 1024
"""Smaller constants stay: they save nothing, and each slice costs a mapping when the model is loaded."""

_IDENTIFIER_BIT = 1 << 31
_UNPACKED = ("unpacked", "", None)
_NAME = re.compile(r"[^/\\\x00:]{1,255}")


@dataclass(slots=True)
class WeightFile:
    """One file of weights to be written.

    Attributes:
        slices: ``(offset, bytes)``, ascending; what lies between is zero.
    """

    slices: list[tuple[int, Blob]] = field(default_factory=list)
    nbytes: int = 0
    name: str = ""

    def room_for(self, blob: Blob, max_nbytes: int) -> bool:
        """Whether it may take more; an empty one takes anything."""
        return not self.slices or _aligned(self.nbytes) + blob.nbytes <= max_nbytes

    def add(self, blob: Blob) -> int:
        """Appends bytes; returns their offset."""
        offset = _aligned(self.nbytes)
        self.slices.append((offset, blob))
        self.nbytes = offset + blob.nbytes
        return offset

    def pieces(self) -> Iterable[bytes | memoryview]:
        """Yields all its bytes in order."""
        position = 0
        for offset, blob in self.slices:
            yield bytes(offset - position)
            yield from likeness.pieces(blob)
            position = offset + blob.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What became of the constants of a model.

    Attributes:
        files: With their names, in order.
        tensors: How many tensors have their bytes there now.
        notes: What a reader should know.
    """

    files: tuple[WeightFile, ...]
    tensors: int
    notes: tuple[str, ...]


def move_out(model: Model, *, max_nbytes: int) -> Moved:
    """Moves weights into files beside the model.

    A tensor keeps its buffer, which is empty then: :func:`move_in` puts the bytes back there.

    Args:
        model: Changed in place.
        max_nbytes: Of a file; a larger constant gets a file of its own, and a note says so.

    Raises:
        UnsupportedError: There is nothing to move, or the model has external buffers already.
    """
    if model.external_buffers:
        raise UnsupportedError(
            "its weights are in files beside it already", remedy="use 'tfl-rewrite join' first"
        )
    chosen = _movable(model)
    if not chosen:
        readers = ", ".join(sorted(name for name, row in ROWS.items() if row.external_weight))
        raise UnsupportedError(
            f"no weight of {LEAST_NBYTES} bytes or more is read only as a weight of {readers}; "
            "the runtime reads no other from files",
            remedy="use --format parts",
        )
    files: list[WeightFile] = []
    places: dict[int, tuple[WeightFile, int]] = {}
    known: dict[tuple[int, bytes], list[tuple[Blob, WeightFile, int]]] = {}
    notes = []
    for buffer, tensors in chosen:
        blob = buffer.blob
        assert blob is not None
        equal = known.setdefault((blob.nbytes, likeness.digest(blob)), [])
        place = next((item[1:] for item in equal if likeness.same_bytes(item[0], blob)), None)
        if place is None:
            if not files or not files[-1].room_for(blob, max_nbytes):
                files.append(WeightFile())
            if blob.nbytes > max_nbytes:
                notes.append(
                    f"{tensors[0].name!r} alone takes {blob.nbytes} bytes, more than {max_nbytes}: a tensor "
                    "cannot be divided"
                )
            place = (files[-1], files[-1].add(blob))
            equal.append((blob, *place))
        places[id(buffer)] = place
    for file in files:
        # By its content, so that no other content ever has its name.
        file.name = f"weights-{sha256_of(file.pieces())[:16]}.bin"
    groups = {id(file): ExternalGroup(file.name) for file in files}
    model.external_groups = [ExternalGroup(""), *groups.values()]
    for buffer, tensors in chosen:
        file, offset = places[id(buffer)]
        for tensor in tensors:
            identifier = _IDENTIFIER_BIT | len(model.external_buffers)
            rest = new_record("ExternalBuffer").replace(packing="unpacked")
            item = ExternalBuffer(identifier, groups[id(file)], offset, buffer.nbytes, rest)
            model.external_buffers.append(item)
            tensor.external = item
    for buffer, _ in chosen:
        buffer.blob = None
    return Moved(files=tuple(files), tensors=sum(len(tensors) for _, tensors in chosen), notes=tuple(notes))


def move_in(model: Model, open_slice: Callable[[str, int, int], Blob]) -> list[str]:
    """Moves weights from files beside the model into it.

    Args:
        model: Changed in place.
        open_slice: Returns bytes of a file beside the model: its plain name, offset, nbytes. Raises
            ``FormatError`` where the file ends before.

    Returns:
        What a reader should know.

    Raises:
        FormatError: A name leads out of the folder, or a slice is not of its tensor's size.
        UnsupportedError: Bytes are packed in a way that only an accelerator reads.
    """
    users = model.holders()
    named = model.pinned
    made: dict[tuple[str, int, int], Buffer] = {}
    used: set[int] = set()
    restored: set[int] = set()
    others = [tensor.rest for _, tensor in model.tensors() if tensor.external is None]
    # A converter that writes defaults wrote this one everywhere.
    spelled_out = bool(others) and all("external_buffer" in rest for rest in others)
    for index, subgraph in enumerate(model.subgraphs):
        for position, tensor in enumerate(subgraph.tensors):
            external = tensor.external
            if external is None:
                continue
            where = f"subgraphs[{index}].tensors[{position}]"
            used.add(id(external))
            key = (_plain_name(external, where), external.offset, external.nbytes)
            _check_slice(tensor, external, where)
            own = tensor.buffer
            buffer = made.get(key)
            if own.nbytes and id(own) not in restored:
                raise FormatError("has bytes in the model and in a file beside it", where=where)
            keeps = own is not model.buffers[0] and id(own) not in named if model.buffers else False
            if keeps and all(item.external is None or _same_slice(item, key) for item in users[id(own)]):
                # The buffer was left for it; other tensors of this buffer name the same bytes.
                blob = open_slice(*key) if buffer is None else buffer.blob
                own.blob, buffer = blob, own
                restored.add(id(own))
            if buffer is None:
                buffer = model.add_buffer(open_slice(*key))
            made.setdefault(key, buffer)
            tensor.buffer = buffer
            tensor.external = None
            if not spelled_out:
                tensor.rest = tensor.rest.replace(external_buffer=None)
    unused = sum(id(item) not in used for item in model.external_buffers)
    model.external_buffers, model.external_groups = [], []
    model.rest = model.rest.replace(external_buffers=None, external_buffer_groups=None)
    return [f"{unused} external buffers that no tensor refers to were dropped"] if unused else []


def _movable(model: Model) -> list[tuple[Buffer, list[Tensor]]]:
    """Returns the buffers that may move, each with its tensors, in order of the first use."""
    graph = Graph.of(model)
    listed = model.holders()
    order: dict[int, Buffer] = {}
    pinned = model.pinned
    pinned |= {key for key, tensors in listed.items() if not all(_is_weight(item, graph) for item in tensors)}
    for _, operator in model.operators():
        if not row_of(operator).external_weight or len(operator.inputs) <= WEIGHT_INPUT:
            continue
        weight = operator.inputs[WEIGHT_INPUT]
        if weight is not None and id(weight.buffer) not in pinned:
            order.setdefault(id(weight.buffer), weight.buffer)
    return [(buffer, listed[key]) for key, buffer in order.items()]


def _is_weight(tensor: Tensor, graph: Graph) -> bool:
    uses = graph.uses_of(tensor)
    return (
        tensor.is_constant
        and tensor.buffer.nbytes >= LEAST_NBYTES
        and not tensor.is_sparse
        and bool(uses)
        and id(tensor) not in graph.exposed | graph.given
        and graph.maker_of(tensor) is None
        and all(row_of(use.operator).external_weight and use.position == WEIGHT_INPUT for use in uses)
    )


def _plain_name(external: ExternalBuffer, where: str) -> str:
    name = external.group.name or ""
    if not _NAME.fullmatch(name) or name in (".", "..") or not name.isprintable():
        raise FormatError(
            f"the weight file {name[:80]!r} is not a plain file name", where=f"{where}.external_buffer"
        )
    return name


def _check_slice(tensor: Tensor, external: ExternalBuffer, where: str) -> None:
    packing = external.rest.get("packing")
    if packing not in _UNPACKED:
        raise UnsupportedError(
            f"its bytes are packed as {str(packing)[:40]!r}, which only one accelerator reads",
            where=where,
        )
    row = dtypes.BY_VALUE.get(tensor.dtype)
    if row is not None and row.bits and not tensor.is_sparse:
        need = row.nbytes(tensor.elements)
        if external.nbytes != need:
            raise FormatError(
                f"{external.nbytes} bytes in a weight file, but {row.name} {list(tensor.shape or ())} "
                f"takes {need}",
                where=where,
            )


def _same_slice(tensor: Tensor, key: tuple[str, int, int]) -> bool:
    item = tensor.external
    return item is not None and (item.group.name, item.offset, item.nbytes) == key


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def shard_external(
    container: Container, place: Path, options: ShardOptions, *, folder: str, settings: Judging
) -> ShardReport:
    """Writes ``model.tflite`` and its weight files into a folder; see :func:`tfl_rewrite.shard`.

    Raises:
        ShardFailed: CompiledModel computes something else, or mode is ``require`` and it does not run.
        UnsupportedError: Nothing can be moved, or the file cannot be rewritten.
        UsageError: A file with other content exists there.
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
    verdict: Verdict = with_newer(judge_compiled(before, after, whole, settings, beside=beside))
    report = replace(report, verdict=verdict)
    reasons = "; ".join(verdict.reasons)
    if verdict.passed:
        return report
    if verdict.status == "unverified":
        return unverified(report, reasons, settings, ShardFailed)
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
        raise FileAccessError.of_writing(error, place) from error


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
    said = " has its" if moved.tensors == 1 else "s have their"
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
        notes=(f"{moved.tensors} tensor{said} bytes in weight files", *moved.notes),
        dry_run=dry_run,
    )
