"""A model as a base of integers that runs at once, and the rest with which it becomes the original.

The base is what ``quantize-weights`` makes, judged as that is. The rest is the original byte by byte: bytes
that the base has too, float weights as what is left of them (:mod:`tfl_rewrite.shards.residual`), and all
other bytes as they are. So it does not matter what the base is good for: a weight that was not found in the
base, or found in the wrong place, costs bytes and nothing else.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source
from tfl_rewrite.interpreter.scratch import Scratch, scratch_errors
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import MappedBlob
from tfl_rewrite.model.ir import Model, SubGraph, Tensor
from tfl_rewrite.model.likeness import digest
from tfl_rewrite.numerics.symmetric import Channels
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.pipeline.report import Plan, Report, RewriteFailed
from tfl_rewrite.pipeline.rewrite import carry_out
from tfl_rewrite.shards.cuts import Cut, between, constants_in, cut, large_from, pieces_of
from tfl_rewrite.shards.manifest import MAX_ELEMENTS, Manifest, Row, WeightRow, sha256_of
from tfl_rewrite.shards.parts import DEFAULT, Numbered, Packing, numbered, part_writer
from tfl_rewrite.shards.residual import codes_and_scales, encode
from tfl_rewrite.shards.settings import ShardFailed, ShardOptions, ShardReport
from tfl_rewrite.work import Progress, Work, working

_LEAST_COPY = 64
"""Bytes that are in the base too from here on are not stored again; a row of the manifest takes as many."""
_SAMPLED = 4096
_FAR = 16
"""Steps. Rounding moves a weight by a few, whatever it looks at; most are further from codes of others."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a float constant is predicted from: offsets in the base, and how its channels lie."""

    codes: int
    scales: int
    channels: int
    inner: int
    width: int = 4

    def row(self, nbytes: int, first: int = 0) -> WeightRow:
        """The row of some elements, from the ``first`` on; it has no part yet."""
        where = self.codes + first, self.scales
        return WeightRow(0, 0, nbytes, *where, self.channels, self.inner, first, self.width)


_WIDTHS = {dtypes.FLOAT32.value: 4, dtypes.FLOAT16.value: 2}
Span = tuple[int, int]
"""``(offset, nbytes)`` in a file."""


def predictions(model: Model, base: Source) -> dict[Span, Prediction]:
    """Finds what the float constants of a model became in its base.

    Args:
        model: The original, as it was loaded.
        base: What was made of it.

    Returns:
        By the place of the constant in the file.
    """
    made = base.model()
    found: dict[Span, Prediction] = {}
    for subgraph, other in zip(model.subgraphs, made.subgraphs, strict=False):
        integers = _integers(other)
        for tensor in subgraph.tensors:
            blob = tensor.buffer.blob
            if not isinstance(blob, MappedBlob) or (blob.offset, blob.nbytes) in found:
                continue
            width = _WIDTHS.get(tensor.dtype, 0)
            if not width or blob.nbytes != width * tensor.elements:
                continue
            for candidate in integers[tensor.shape or ()]:
                if candidate.name.startswith(tensor.name):
                    prediction = _prediction(candidate, other, width)
                    if prediction is not None and _fits(prediction, blob, base):
                        found[blob.offset, blob.nbytes] = prediction
                        break
    return found


def _integers(subgraph: SubGraph) -> dict[tuple[int, ...], list[Tensor]]:
    """Returns the constants that may be codes, by shape; those of the shortest names first."""
    found: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for tensor in sorted(subgraph.tensors, key=lambda item: len(item.name)):
        if tensor.dtype == dtypes.INT8.value and isinstance(tensor.buffer.blob, MappedBlob):
            found[tensor.shape or ()].append(tensor)
    return found


def _prediction(codes: Tensor, subgraph: SubGraph, width: int) -> Prediction | None:
    """Returns where codes and their scales lie, and how; None where there are no scales for them."""
    details, shape, blob = codes.quantization, codes.shape or (), codes.buffer.blob
    assert isinstance(blob, MappedBlob)
    if details is not None and details.scale and details.scale.offset >= 0:
        count, offset, axis = len(details.scale), details.scale.offset, details.dimension
    else:
        # Rows that are looked up have their scales in a constant that is looked up too.
        name = codes.name.removesuffix("rows") + "scales"
        scales = next((item.buffer.blob for item in subgraph.tensors if item.name == name), None)
        if not isinstance(scales, MappedBlob):
            return None
        count, offset, axis = scales.nbytes // 4, scales.offset, 0
    if not 0 <= axis < max(1, len(shape)) or blob.nbytes != codes.elements:
        return None
    channels = Channels.along(shape, axis if count > 1 else None)
    if channels.channels != count:
        return None
    return Prediction(blob.offset, offset, count, channels.inner, width)


def _fits(prediction: Prediction, blob: MappedBlob, base: Source) -> bool:
    """Whether most of the first weights are near what is predicted for them."""
    row = prediction.row(min(blob.nbytes, prediction.width * _SAMPLED))
    codes, scales = codes_and_scales(row, base.container.data)
    floats = np.frombuffer(blob.view(), f"<f{row.width}", row.elements)
    with np.errstate(all="ignore"):
        near = np.abs(floats - codes * scales) <= _FAR * scales
    return bool(near.mean() > 0.5)


@dataclass(frozen=True, slots=True)
class Rest:
    """A file with what the base lacks, and how the original is made of both.

    Attributes:
        container: The file.
        layout: Rows of the manifest; those of which the file has the bytes have the part 0, and the offset in
            the file.
        cuts: How it is cut into parts: a row is never divided.
    """

    container: Container
    layout: tuple[Row, ...]
    cuts: list[Cut]

    def manifest(self, whole: Manifest, base: Manifest, made: Numbered) -> Manifest:
        """Returns the manifest of the original.

        Args:
            whole: What it is.
            base: That of the base.
            made: The parts of the rest, and where they have the rows.
        """
        parts = list({part.name: part for part in (*base.parts, *made.parts)}.values())
        numbers = {part.name: number for number, part in enumerate(parts)}
        offsets = sorted(start for item in self.cuts for start, _ in item.slices)
        places = {
            start: (numbers[made.parts[row[0]].name], row[1])
            for start, row in zip(offsets, made.layout, strict=True)
        }
        rows = (row if len(row) == 2 else _moved(row, *places[row[1]]) for row in self.layout)
        return replace(whole, parts=tuple(parts), layout=tuple(rows), base=base)


def _moved(row: Row, part: int, offset: int) -> Row:
    if isinstance(row, WeightRow):
        return row._replace(part=part, offset=offset)
    return part, offset, row[2]


class _RestWriter:
    """Writes the rest of a model to a file."""

    def __init__(self, source: Source, base: Source, max_nbytes: int, file: BinaryIO) -> None:
        self._data = source.container.data
        self._base = base.container.data
        self._most = max_nbytes
        self._file = file
        self._position = 0
        self.layout: list[Row] = []
        # With what each belongs to: its constant, or None where it shares parts with others.
        self.slices: list[tuple[Span | None, Span]] = []

    def copy(self, offset: int, nbytes: int) -> None:
        """Adds bytes that the base has."""
        self.layout.append((offset, nbytes))

    def store(self, span: Span, home: Span | None) -> None:
        """Adds bytes of the original as they are."""
        for offset, nbytes in pieces_of(*span, self._most):
            data = bytes(self._data[offset : offset + nbytes])
            if home is None and self._grown(nbytes):
                self._write(data)
            else:
                self._add((0, self._position, nbytes), data, home)

    def _grown(self, nbytes: int) -> bool:
        """Makes the last row longer, if that is of bytes as they are that share a part."""
        if not self.layout or len(self.layout[-1]) != 3 or self.slices[-1][0] is not None:
            return False
        _, start, before = self.layout[-1]
        if before + nbytes > self._most:
            return False
        self.layout[-1] = (0, start, before + nbytes)
        self.slices[-1] = (None, (start, before + nbytes))
        return True

    def weights(self, span: Span, prediction: Prediction, home: Span | None) -> None:
        """Adds what is left of weights."""
        width = prediction.width
        for offset, nbytes in pieces_of(*span, width * min(MAX_ELEMENTS, self._most // width)):
            row = prediction.row(nbytes, (offset - span[0]) // width)
            floats = self._data[offset : offset + nbytes]
            left = encode(floats, *codes_and_scales(row, self._base), width)
            self._add(row._replace(offset=self._position), left, home)

    def _add(self, row: Row, data: bytes, home: Span | None) -> None:
        self.layout.append(row)
        self.slices.append((home, (self._position, len(data))))
        self._write(data)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._position += len(data)

    def cuts(self) -> list[Cut]:
        """Cuts it into parts; a large constant has parts of its own."""
        shared = [span for home, span in self.slices if home is None]
        cuts = _filled(shared, self._most)
        for home, group in groupby(self.slices, key=lambda item: item[0]):
            if home is not None:
                cuts += _filled([span for _, span in group], self._most)
        return sorted(cuts, key=lambda item: item.slices[0])


def _filled(spans: list[Span], most: int) -> list[Cut]:
    """Puts spans into parts, one after the other."""
    cuts: list[Cut] = []
    held: list[Span] = []
    room = most
    for span in spans:
        if held and span[1] > room:
            cuts.append(Cut(tuple(held)))
            held, room = [], most
        held.append(span)
        room -= span[1]
    return [*cuts, Cut(tuple(held))] if held else cuts


def rest_of(source: Source, base: Source, max_nbytes: int, path: Path) -> Rest:
    """Writes what the base lacks of a model.

    Args:
        source: The original.
        base: What was made of it.
        max_nbytes: Of a part.
        path: The file to write.
    """
    model = source.model()
    constants = constants_in(model)
    predicted = predictions(model, base)
    same = _Same(base)
    with open(path, "wb") as file:
        writer = _RestWriter(source, base, max_nbytes, file)
        spans = {*constants, *between(constants, source.nbytes)}
        kept = set(constants)
        for span in sorted(spans):
            home = span if span in kept and span[1] >= large_from(max_nbytes) else None
            found = same.place_of(MappedBlob(source.container, *span)) if span in kept else None
            if span in predicted:
                writer.weights(span, predicted[span], home)
            elif found is not None:
                writer.copy(found, span[1])
            else:
                writer.store(span, home)
            source.container.release(*span)
    return Rest(Container.open(path), tuple(writer.layout), writer.cuts())


class _Same:
    """Finds constants that the base has as they are."""

    def __init__(self, base: Source) -> None:
        self._blobs: dict[int, list[MappedBlob]] = defaultdict(list)
        for span in constants_in(base.model()):
            self._blobs[span[1]].append(MappedBlob(base.container, *span))
        self._known: dict[int, dict[bytes, int]] = {}

    def place_of(self, blob: MappedBlob) -> int | None:
        """Returns where the base has the bytes of a constant; None for few bytes, too."""
        others = self._blobs.get(blob.nbytes)
        if others is None or blob.nbytes < _LEAST_COPY:
            return None
        if blob.nbytes not in self._known:
            self._known[blob.nbytes] = {digest(other): other.offset for other in reversed(others)}
        # All bytes are compared when the parts are read back.
        return self._known[blob.nbytes].get(digest(blob))


_PACKING = Packing(memory=6, strategy=1)
"""What made the least of the rest of two real models: codes for few symbols each, and no short matches
(``Z_FILTERED``). It saves 2 % of the floats' bytes against zlib's defaults."""


def shard_progressive(
    container: Container,
    place: Path,
    options: ShardOptions,
    *,
    settings: Judging,
    ends: tuple[str, str],
    progress: Progress | None,
) -> ShardReport:
    """Writes a model as parts of a base and of the rest.

    Args:
        container: The model.
        place: The folder to write to.
        options: How.
        settings: How to verify the base.
        ends: What the user calls the model and the folder.
        progress: Called with what is going on.

    Raises:
        ShardFailed: The base computes something else; nothing is written.
        UnsupportedError: Nothing in the model gets smaller as int8.
        UsageError, FileAccessError, FormatError: As for :func:`tfl_rewrite.shard`.
    """
    source = Source(container)
    facts: dict[str, Any] = {"command": "shard", "source": ends[0], "target": ends[1]}
    facts |= {"entry": os.fspath(Path(ends[1]) / options.entry), "dry_run": options.dry_run}
    with Scratch() as scratch:
        path = scratch.path / "base.tflite"
        try:
            with working(threads=options.jobs, progress=progress):
                report = carry_out(
                    Plan(source=source, target=path, passes=(QuantizeWeights(),), settings=settings)
                )
        except RewriteFailed as error:
            raise _failed(error, source, facts) from error
        if report.outcome == "unchanged":
            raise UnsupportedError(
                "no float weight gets smaller as int8, so there is no base",
                file=source.path,
                remedy="leave out --progressive",
            )
        base = Source.open(path)
        with scratch_errors():
            rest = rest_of(source, base, options.max_nbytes, scratch.path / "rest")
        manifest, reused, notes = _written(source, base, rest, place, options, Work(progress=progress))
    return ShardReport.of_parts(
        manifest,
        lambda part: "kept" if part.name in reused else "new",
        **facts,
        verdict=report.verdict,
        unverified=report.unverified,
        notes=(*report.notes, *notes, *_notes(report, manifest)),
    )


def _written(
    source: Source, base: Source, rest: Rest, place: Path, options: ShardOptions, work: Work
) -> tuple[Manifest, set[str], Sequence[str]]:
    """Writes all parts and the manifest; returns it, names of parts that were there before, and notes."""
    total = 2 * base.nbytes + rest.container.nbytes + source.nbytes
    tick = work.stage("sharding", total).tick
    with part_writer(source.container, place, options, tick) as writer:
        cuts, notes = cut(base.container, options.max_nbytes)
        first = numbered(cuts, writer.parts(base.container, cuts, DEFAULT))
        left = numbered(rest.cuts, writer.parts(rest.container, rest.cuts, _PACKING))
        whole, sha256 = writer.whole(), sha256_of(base.container.pieces())
        own = replace(whole, nbytes=base.nbytes, sha256=sha256, parts=first.parts, layout=first.layout)
        manifest = rest.manifest(whole, own, left)
        writer.publish(manifest, base.container)
        return manifest, writer.reused, notes


def _notes(report: Report, manifest: Manifest) -> Iterator[str]:
    """Says what makes both parts together larger than they could be."""
    total = sum(part.stored_nbytes for part in manifest.parts)
    if total >= manifest.nbytes:
        yield f"all parts together take {total:,} bytes, more than the model"
    if report.finer:
        names = ", ".join(item.tensor for item in report.finer[:3])
        count, more = len(report.finer), ", ..." if len(report.finer) > 3 else ""
        yield f"{count} constant(s) of the base are stored finer, so that it passes: {names}{more}"


def _failed(error: RewriteFailed, source: Source, facts: dict[str, Any]) -> ShardFailed:
    """Returns the error about a base that may not be published."""
    report = ShardReport(
        **facts,
        format="parts",
        outcome="failed",
        nbytes=source.nbytes,
        sha256=sha256_of(source.container.pieces()),
        files=(),
        verdict=error.report.verdict,
        unverified=error.report.unverified,
        notes=error.report.notes,
    )
    return ShardFailed(error.what, report, error.remedy)
