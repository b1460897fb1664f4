"""All checks over one file: of its structure, quantization parameters, numbers, and where its bytes lie."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from tfl_rewrite.editing.base import Context
from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.files.source import ModelLike, Source, origin_of
from tfl_rewrite.flatbuf.reader import misaligned
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operands import scales_of, zero_points_of
from tfl_rewrite.kernels.reads import weight_reads
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.invariants import problems
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.numerics.symmetric import SMALLEST_SCALE
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.json_data import JsonData, computed
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.passes.repair import unaligned
from tfl_rewrite.reading.findings import KINDS, Finding, Severity
from tfl_rewrite.reading.metadata import associated_files, zip_members
from tfl_rewrite.reading.operator_findings import check_operators, check_versions
from tfl_rewrite.weights.biases import Reading, wrong_scales, wrong_types
from tfl_rewrite.weights.repairs import (
    right_dimension,
    scale_values,
    tensors_of,
    wrong_dimension,
    zero_scales,
)

_ORDER = {kind.name: index for index, kind in enumerate(KINDS)}
# What the structural check says too, and a row says better.
_SAID_BETTER = ("quantized_dimension", " scales but ", " scales for a dimension")


@frozen
class Diagnosis(JsonData):
    """What is wrong with one file.

    Attributes:
        findings: Worst first, then in the order of :data:`tfl_rewrite.reading.findings.KINDS`.
        notes: Of the program: what limits all that it says.
    """

    schema: ClassVar[int] = 1
    file: str
    nbytes: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {severity}" for severity, count in self.counts.items())
        return f"<Diagnosis: {self.nbytes:,} bytes, findings: {counts}>"

    @property
    @computed(after="nbytes")
    def counts(self) -> dict[str, int]:
        """How many findings are of each severity."""
        return {severity.value: self.count(severity) for severity in Severity}

    def count(self, severity: Severity) -> int:
        """Returns how many findings are of a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    @property
    def repairable(self) -> tuple[str, ...]:
        """Names of the kinds that ``repair`` settles here."""
        return tuple(dict.fromkeys(finding.kind for finding in self.findings if finding.repairable))

    def reaches(self, severity: Severity) -> bool:
        """Whether anything is as bad as that, or worse."""
        return any(finding.severity.rank <= severity.rank for finding in self.findings)


def diagnose(model: ModelLike, *, min_runtime: str | None = None) -> Diagnosis:
    """Reads a file and says what will go wrong where. Nothing is run, nothing is written.

    Args:
        model: A path, bytes, an open file or a model.
        min_runtime: The oldest runtime that is to run it, as for
            :class:`tfl_rewrite.passes.QuantizeWeights`; None for no particular one.

    Raises:
        FormatError: It is damaged so far that it cannot be read.
        UsageError: ``min_runtime`` is no version.
        FileAccessError, UnsupportedError: As for :func:`tfl_rewrite.files.source.load`.

    Example:
        >>> found = tfl_rewrite.diagnose("model.tflite", min_runtime="2.14")
        >>> [(finding.kind, finding.severity.value) for finding in found.findings]
        [('unaligned', 'note')]
    """
    wanted = None if min_runtime is None else runtimes.parse_runtime(min_runtime)
    origin = Source.of(model)
    model = origin.model()
    found = [
        *check_quantization(model, Graph.of(model)),
        *check_operators(model),
        *check_versions(model, wanted),
        *check_values(model),
    ]
    for problem in problems(model):
        if not any(words in problem.what for words in _SAID_BETTER):
            found.append(Finding("structure", problem.where, problem.what))
    found += check_file(model)
    found.sort(key=lambda finding: (finding.severity.rank, _ORDER[finding.kind]))
    notes = tuple(filter(None, (runtimes.unmeasured_here(),)))
    return Diagnosis(origin.path, origin.container.nbytes, tuple(found), notes)


_INTEGERS = ("INT8", "UINT8", "INT16", "INT4", "INT2")


def check_quantization(model: Model, graph: Graph) -> Iterator[Finding]:
    """Yields what is wrong with scales, zero points and axes."""
    hybrid = {id(read.weight) for read in weight_reads(model)}
    for place, tensor in tensors_of(model):
        where = f"{place} {tensor.name}".rstrip()
        yield from _parameters(tensor, where)
        if tensor.is_constant and (tensor.dtype_name in _INTEGERS or zero_scales(tensor)):
            expanded = bool(graph.uses_of(tensor)) and all(
                row_of(use.operator) is DEQUANTIZE for use in graph.uses_of(tensor)
            )
            yield from _scales(tensor, where, repairable=id(tensor) in hybrid or expanded)
    for read in wrong_types(model):
        computed = read.reading is Reading.REFUSED and not read.bias.is_constant
        where = f"{read.place} {read.operator.code.name}"
        yield Finding("int16-bias", where, read.reading.value, repairable=not computed)
    for scale in wrong_scales(model):
        kind = "zero-bias-scale" if scale.zero and not scale.refused else "bias-scale"
        where = f"{scale.place} {scale.bias.name}".rstrip()
        detail = f"{scale.detail}; all of its values are zero" if scale.zero else scale.detail
        yield Finding(kind, where, detail, repairable=scale.zero)


def _parameters(tensor: Tensor, where: str) -> Iterator[Finding]:
    wrong = wrong_dimension(tensor)
    if wrong is not None:
        known = right_dimension(tensor) is not None
        yield Finding("quantized-dimension", where, wrong, repairable=known)
    scales, points = scales_of(tensor), zero_points_of(tensor)
    if scales and len(points) != len(scales):
        detail = f"{len(scales)} scales, {len(points)} zero points"
        yield Finding("zero-points", where, detail, repairable=len(set(points)) == 1)


def _scales(tensor: Tensor, where: str, *, repairable: bool) -> Iterator[Finding]:
    details = tensor.quantization
    scales = scales_of(tensor)
    if details is not None and details.scales_tensor is not None:
        values = scale_values(details.scales_tensor)
        scales = [] if values is None else [float(value) for value in values]
    zero = sum(scale == 0 for scale in scales)
    if zero:
        yield Finding("zero-scale", where, f"{zero} of {len(scales)} scales", repairable=repairable)
    odd = [scale for scale in scales if scale != 0 and not SMALLEST_SCALE <= scale < math.inf]
    if odd:
        yield Finding("odd-scale", where, f"{len(odd)} of {len(scales)} scales, such as {odd[0]:g}")


_PIECE = 1 << 22


def check_values(model: Model) -> Iterator[Finding]:
    """Yields float constants that hold NaN or infinities; each range of bytes is looked at once."""
    seen: set[object] = set()
    for place, tensor in tensors_of(model):
        blob, row = tensor.buffer.blob, dtypes.BY_VALUE.get(tensor.dtype)
        if blob is None or row is None or row.name not in ("FLOAT32", "FLOAT16", "FLOAT64"):
            continue
        if blob.identity in seen or not tensor.is_constant or blob.nbytes % (row.bits // 8):
            continue
        seen.add(blob.identity)
        values = np.frombuffer(blob.view(), row.numpy)
        nans = infinities = 0
        for start in range(0, values.size, _PIECE):
            piece = values[start : start + _PIECE]
            if not np.isfinite(piece).all():
                nans += int(np.isnan(piece).sum())
                infinities += int(np.isinf(piece).sum())
        blob.release()
        where = f"{place} {tensor.name}".rstrip()
        if nans:
            yield Finding("nan", where, f"{nans} of {values.size} elements")
        if infinities:
            kind = "float16-infinity" if row.name == "FLOAT16" else "infinity"
            yield Finding(kind, where, f"{infinities} of {values.size} elements")


def check_file(model: Model) -> Iterator[Finding]:
    """Yields what is wrong with the file as a container, and what could be smaller.

    Args:
        model: Changed by the last of the checks: nothing else may look at it afterwards.
    """
    origin = origin_of(model)
    assert origin is not None
    outside = [buffer for buffer in model.buffers if buffer.outside and buffer.nbytes]
    if outside:
        detail = f"{len(outside)} buffers, {sum(buffer.nbytes for buffer in outside)} bytes"
        yield Finding("offset-buffers", "buffers", detail, repairable=True)
    yield from _external(model, Path(origin.container.path))
    yield from _zip(model, origin)
    vectors = misaligned(origin.root)
    if vectors:
        place, offset = vectors[0]
        more = f", and {len(vectors) - 1} more" if len(vectors) > 1 else ""
        yield Finding("misaligned", place, f"at offset {offset}{more}", repairable=not origin.refusals)
    askew = unaligned(model)
    if askew:
        yield Finding("unaligned", "buffers", f"{askew} constants", repairable=not origin.refusals)
    if origin.dead:
        count = sum(stop - start for start, stop in origin.dead)
        where = f"bytes {origin.dead[0][0]} to {origin.dead[-1][1]}"
        advice = (
            "cut them off if nothing needs them; tfl-rewrite refuses to move them" if origin.refusals else ""
        )
        yield Finding("dead-bytes", where, f"{count} bytes", saves=count, advice=advice)
    for refusal in origin.refusals:
        yield Finding("fixed-in-place", refusal.where or "the file", refusal.what)
    if not origin.refusals:
        yield from _waste(model)


def _external(model: Model, path: Path) -> Iterator[Finding]:
    used = {id(tensor.external) for _, tensor in model.tensors()}
    slices = [item for item in model.external_buffers if id(item) in used]
    if not slices:
        return
    ends: dict[str, int] = {}
    for item in slices:
        name = item.group.name or ""
        ends[name] = max(ends.get(name, 0), item.offset + item.nbytes)
    names = ", ".join(repr(name) for name in ends)
    yield Finding("external-buffers", "external_buffers", f"{len(slices)} slices of {names}")
    for name, end in ends.items():
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            yield Finding("external-missing", "external_buffer_groups", f"{name!r} is no plain file name")
            continue
        try:
            size = os.path.getsize(path.parent / name)  # noqa: PTH202
        except OSError as error:
            yield Finding("external-missing", "external_buffer_groups", f"{name!r}: {error.strerror}")
            continue
        if size < end:
            detail = f"{name!r} has {size} bytes, the model reads up to {end}"
            yield Finding("external-missing", "external_buffer_groups", detail)


def _zip(model: Model, origin: Source) -> Iterator[Finding]:
    members: dict[str, int] = {}
    if origin.tail is not None:
        try:
            members = {item.filename: item.compress_type for item in zip_members(origin.tail.moved(0))}
        except ValueError as error:
            yield Finding("zip-member", "ZIP", f"the archive cannot be read: {error}")
            return
        if members and not origin.tail.absolute:
            yield Finding("zip-offsets", "ZIP", f"its first byte is at {origin.tail.offset} of the file")
        if not members:
            yield Finding("zip-empty", "ZIP", f"{origin.tail.nbytes} bytes", saves=origin.tail.nbytes)
    for name, method in members.items():
        if method != zipfile.ZIP_STORED:
            yield Finding("zip-compressed", f"ZIP {name}", f"compression method {method}")
    entry = model.metadata_named("TFLITE_METADATA")
    if entry is None or entry.buffer.blob is None:
        return
    try:
        named = associated_files(bytes(entry.buffer.blob.view()))
    except ValueError as error:
        yield Finding("zip-member", "metadata TFLITE_METADATA", f"it cannot be read: {error}")
        return
    for name in named:
        if name not in members:
            held = ", ".join(repr(item) for item in members) or "nothing"
            detail = f"{name!r} is not in the ZIP, which holds {held}" if origin.tail else f"{name!r}: no ZIP"
            yield Finding("zip-member", "metadata TFLITE_METADATA", detail)


def _waste(model: Model) -> Iterator[Finding]:
    """Asks the passes themselves what they would take out; the model is spent then."""
    origin = origin_of(model)
    assert origin is not None
    copy = origin.model()
    for kind, item, own in (("duplicates", Dedup(), copy), ("dead-content", RemoveDead(), model)):
        try:
            result = item.run(own, Context())
        except TflRewriteError:
            continue
        saved = sum(getattr(change, "saved", 0) for change in result.changes)
        operators = sum("operator removed" in getattr(change, "what", "") for change in result.changes)
        # Empty buffers and codes that nothing uses are not worth a line.
        if saved or operators:
            count = sum(getattr(change, "data", {}).get("count", 1) for change in result.changes)
            detail = f"{count} changes, {saved} bytes of content"
            yield Finding(kind, "the file", detail, saves=saved)
