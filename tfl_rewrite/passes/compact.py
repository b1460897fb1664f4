"""compact: the same content in as few bytes as the format allows.

The writer stores equal vectors, strings and tables once, leaves out numbers that equal the schema's default,
takes buffers into the FlatBuffer while that stays under 2 GiB, and gives constants the least alignment that
the schema allows, or the one asked for. On top of that this pass takes out what runtimes read as they read
its absence (:data:`ABSENT_ALIKE`), points tensors without bytes at the empty ``buffers[0]``, and stores equal
constants once. Indices of operators and tensors stay. Outputs are equal to the bit, and a file is never
larger unless ``--align`` asks for more than 16. A second run finds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult
from tfl_rewrite.editing.metadata import COMPRESSION
from tfl_rewrite.errors import UsageError, number_text
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.model.ir import Model, Quantization
from tfl_rewrite.options.option import WHOLE, option
from tfl_rewrite.passes.dedup import buffer_places, constant_buffers, equal_blobs
from tfl_rewrite.passes.remove_dead import STRIP, STRIPS, strips
from tfl_rewrite.work import Work

LEAST_ALIGN = 16
MOST_ALIGN = 1 << 16
"""The largest page of the systems that the runtime runs on (arm64 with 64 KiB pages)."""


@dataclass(frozen=True, slots=True)
class AbsentAlike:
    """Fields of a table that may be absent where they are empty, with the code that reads them."""

    table: str
    fields: tuple[str, ...]
    source: str


ABSENT_ALIKE: tuple[AbsentAlike, ...] = (
    AbsentAlike(
        "Operator",
        ("intermediates", "mutating_variable_inputs"),
        "FlatBufferIntArrayToVector takes a null vector as empty; mutating_variable_inputs is not read",
    ),
    AbsentAlike(
        "QuantizationParameters",
        ("min", "max", "scale", "zero_point"),
        "ParseQuantization: no scale, or none in it, is no quantization; min and max are not read",
    ),
    AbsentAlike(
        "Model",
        ("metadata_buffer", "metadata", "signature_defs", "external_buffer_groups", "external_buffers"),
        "InterpreterBuilder walks each only where it is present",
    ),
)
_ALIKE: Mapping[str, tuple[str, ...]] = {row.table: row.fields for row in ABSENT_ALIKE}


def _check_align(align: int) -> None:
    if not LEAST_ALIGN <= align <= MOST_ALIGN or align & (align - 1):
        raise UsageError(
            f"N is {number_text(align)}",
            remedy=f"give a power of two from {LEAST_ALIGN} to {MOST_ALIGN}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Compact(Pass):
    """Stores the same content in fewer bytes.

    Lays the file out anew: equal vectors, strings, tables and constants once, defaults and empty fields left
    out, offset buffers taken in while the file is under 2 GiB. Outputs stay equal to the bit; a file that
    would not get smaller is copied.

    Example:
        >>> from tfl_rewrite.passes import Compact
        >>> report = tfl_rewrite.rewrite("model.tflite", "paged.tflite", [Compact(align=4096)])
    """

    name: ClassVar[str] = "compact"
    effect: ClassVar[Effect] = Effect.EXACT
    place: ClassVar[str] = "last: it lays out what the others left"

    strip: tuple[str, ...] = option((), STRIP, kind=STRIPS, metavar="WHAT,...")
    align: int = option(
        LEAST_ALIGN,
        "constants of at least N bytes start on a multiple of N in the file, such as 4096 for pages that are "
        "mapped; the file may grow then",
        kind=WHOLE.checked_by(_check_align),
        metavar="N",
    )

    def parts(self) -> Sequence[Pass]:
        """Returns what drops more, where that is asked for, and this."""
        return (*strips(self.strip), Compact(align=self.align)) if self.strip else (self,)

    def run(self, model: Model, context: Context) -> PassResult:
        """Takes out what says nothing, and asks for the file to be laid out anew."""
        changes = [*_empty_fields(model), *_static_signatures(model), *_share_constants(model, context.work)]
        notes = []
        if model.metadata_named(COMPRESSION) is None:
            changes += _empty_buffers(model)
        else:
            notes.append(f"empty buffers stay: metadata {COMPRESSION} refers to buffers by position")
        outside = [buffer for buffer in model.buffers if buffer.outside and buffer.nbytes]
        if outside:
            notes.append(f"{len(outside)} buffers lay after the FlatBuffer; under 2 GiB they lie in it")
        idle = "" if changes else "the same content takes no fewer bytes; --strip names leaves more out"
        return PassResult(self.name, tuple(changes), (), tuple(notes), Packing(page=self.align), idle=idle)


def _empty_fields(model: Model) -> list[Edit]:
    """Leaves out empty vectors where that reads alike."""
    counts: Counter[str] = Counter()
    rows: dict[str, Sized] = {
        "metadata_buffer": model.metadata_buffers,
        "metadata": model.metadata,
        "signature_defs": model.signatures,
        "external_buffer_groups": model.external_groups,
        "external_buffers": model.external_buffers,
    }
    model.rest = _without_empty(model.rest, rows, counts)
    known: dict[int, Quantization | None] = {}
    for _, operator in model.operators():
        rows = {"intermediates": operator.intermediates}
        operator.rest = _without_empty(operator.rest, rows, counts)
    for _, tensor in model.tensors():
        details = tensor.quantization
        if details is not None:
            if id(details) not in known:
                # Shared ones stay shared.
                known[id(details)] = _slim(details, counts)
            tensor.quantization = known[id(details)]
    return [
        Edit(field, f"{count} empty ones left out", 0, {"count": count})
        for field, count in sorted(counts.items())
    ]


def _without_empty(rest: Record, lifted: Mapping[str, Sized], counts: Counter[str]) -> Record:
    """Returns a record without its empty fields; ``lifted`` are those that the model holds itself."""
    gone = []
    for field in _ALIKE[rest.spec.name]:
        value = lifted.get(field, rest.values.get(field))
        if field in rest and value is not None and not len(value):
            gone.append(field)
    counts.update(f"{rest.spec.name}.{field}" for field in gone)
    return rest.replace(**dict.fromkeys(gone)) if gone else rest


def _slim(details: Quantization, counts: Counter[str]) -> Quantization | None:
    """Returns it without empty vectors, or None where nothing is left that says anything."""
    lifted = {
        name: value
        for name, value in (("scale", details.scale), ("zero_point", details.zero_point))
        if value is not None
    }
    rest = details.rest
    if details.scale:
        # That there are no zero points is an error then, for the runtime to see.
        lifted.pop("zero_point", None)
        if "zero_point" in rest and not len(details.zero_point or ()):
            return details
    rest = _without_empty(rest, lifted, counts)
    scale = details.scale or None
    zero_point = details.zero_point or None
    says = any(
        value != rest.spec.by_name[name].default
        for name, value in rest.values.items()
        if name not in ("scale", "zero_point", "quantized_dimension")
    )
    tensors = (details.scales_tensor, details.zero_points_tensor)
    if not (scale or zero_point or any(tensors) or says or details.dimension):
        counts["Tensor.quantization"] += 1
        return None
    if rest is details.rest:
        return details
    return replace(details, rest=rest, scale=scale, zero_point=zero_point)


def _static_signatures(model: Model) -> list[Edit]:
    """Leaves out the ``shape_signature`` of tensors all of whose sizes are known.

    ``Subgraph::ResizeInputTensorStrict`` and the Python interface take the shape then: "`dims_signature` is
    not defined when no unknown dimensions are present" (``tflite/core/subgraph.cc``).
    """
    count = 0
    for _, tensor in model.tensors():
        if tensor.signature is not None and tensor.signature == (tensor.shape or ()):
            tensor.signature = None
            tensor.rest = tensor.rest.replace(shape_signature=None)
            count += 1
    what = f"{count} that equal the shape left out"
    return [Edit("Tensor.shape_signature", what, 0, {"count": count})] if count else []


def _share_constants(model: Model, work: Work) -> list[Edit]:
    """Makes equal constants one run of bytes; each buffer keeps its place in the list."""
    places = buffer_places(model)
    changes = []
    for kept, buffer in equal_blobs(constant_buffers(model), work):
        assert kept.blob is not None and buffer.blob is not None
        if kept.blob.identity != buffer.blob.identity:
            buffer.blob = kept.blob
            what = f"stored once with the equal {places[id(kept)]}"
            changes.append(Edit(places[id(buffer)], what, buffer.nbytes))
    return changes


def _empty_buffers(model: Model) -> list[Edit]:
    """Points tensors without bytes at the sentinel, and drops the empty buffers that nothing needs then.

    A buffer whose vector of bytes is present but empty is another thing: runtimes take its tensor for a
    constant (``InterpreterBuilder::ParseTensors``). So are buffers of variables, which stay.
    """
    if not model.buffers or not model.buffers[0].is_nothing:
        return []
    tensors = [tensor for _, tensor in model.tensors()]
    kept = {id(tensor.buffer) for tensor in tensors if tensor.is_variable or tensor.external is not None}
    kept |= model.pinned
    gone = {id(item) for item in model.buffers[1:] if item.is_nothing and id(item) not in kept}
    for tensor in tensors:
        if id(tensor.buffer) in gone:
            tensor.buffer = model.buffers[0]
    model.buffers = [buffer for buffer in model.buffers if id(buffer) not in gone]
    what = f"{len(gone)} empty ones left out"
    return [Edit("Model.buffers", what, 0, {"count": len(gone)})] if gone else []


__all__ = ["ABSENT_ALIKE", "Compact"]
