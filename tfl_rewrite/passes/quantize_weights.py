"""Stores large float constants as int8.

Promise: float weights become symmetric int8 (zero point 0), either read by the runtime's hybrid kernel
or expanded by a DEQUANTIZE operator; activations, biases, small constants, the interface, and everything
that is quantized already stay as they are. Outputs may differ within the tolerance of verification. No
constant is changed whose new form is not smaller; a second run changes nothing. Every float constant is
reported, with what became of it or why it stayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from tfl_rewrite import kernels
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Buffer, Model, Quantization
from tfl_rewrite.passes.base import PassResult
from tfl_rewrite.passes.candidates import UNNAMED, Candidate, Selection
from tfl_rewrite.passes.edits import Editor
from tfl_rewrite.passes.weight_changes import Reading, Rounding, WeightChange
from tfl_rewrite.passes.weight_plan import Decision, Scheme, WeightPlan
from tfl_rewrite.quant.symmetric import Channels


@dataclass(frozen=True, slots=True)
class QuantizeWeights:
    """The pass; see the module.

    Attributes:
        scheme: ``hybrid``: the runtime's dynamic-range kernels only. ``dequantize``: int8 constant,
            DEQUANTIZE, float kernel. ``auto``: hybrid where a kernel takes it, else the other.
        granularity: Scales per channel where the kernel takes them, or one per tensor.
        selection: Which constants.
        min_runtime: The oldest runtime that must compute the file correctly, as ``(major, minor)``.
        only: If given, only constants whose stored tensor passes; for measuring one at a time.
    """

    name: ClassVar[str] = "quantize-weights"
    lossy: ClassVar[bool] = True
    grows: ClassVar[bool] = False

    scheme: Scheme = Scheme.AUTO
    granularity: kernels.Granularity = kernels.Granularity.CHANNEL
    selection: Selection = field(default_factory=Selection)
    min_runtime: kernels.Runtime = kernels.NEWEST_RUNTIME
    only: Callable[[Candidate], bool] | None = None

    def run(self, model: Model) -> PassResult:
        """Rewrites the model in place.

        Constants are read for their scales now; the integers are made when the file is written.
        """
        plan = WeightPlan(self, model)
        decisions, skips = plan.decide()
        changes, notes = _apply(model, plan, decisions)
        return PassResult(self.name, tuple(changes), tuple(skips), tuple(notes))


def _apply(model: Model, plan: WeightPlan, decisions: list[Decision]) -> tuple[list[WeightChange], list[str]]:
    """Carries the decisions out."""
    editor = Editor(model)
    changes: list[WeightChange] = []
    homes: dict[tuple[int, Channels], tuple[Buffer, Rounding]] = {}
    rounded: set[int] = set()
    quantizations: dict[tuple[object, Channels, int | None], Quantization] = {}
    positions = {id(buffer): index for index, buffer in enumerate(model.buffers)}
    sources = {id(made.item.stored.buffer): made.item.stored.buffer.blob for made in decisions}
    for made in decisions:
        # Rewiring replaces the blob and the type of what other decisions still refer to as their source.
        key, channels = id(made.item.stored.buffer), made.channels
        blob = sources[key]
        assert blob is not None
        scale = plan.scales(made, blob)
        quantization = quantizations.setdefault(
            (blob.identity, channels, made.axis), Quantization.symmetric(scale.tobytes(), made.axis or 0)
        )
        first = key not in rounded
        rounded.add(key)
        home = homes.get((key, channels))
        shared = home is not None
        saved = (blob.nbytes if first else 0) - made.overhead
        if home is None:
            saved -= channels.elements + 12 * channels.channels
            dtype = dtypes.BY_VALUE[made.item.stored.dtype].numpy
            rounding = Rounding(blob, dtype, scale, channels)
            buffer = made.item.stored.buffer if first else editor.add_buffer(None)
            buffer.blob = rounding.blob()
            home = homes[(key, channels)] = (buffer, rounding)
        changes.append(_change(made, positions[key], blob.nbytes, saved, home[1], shared=shared))
        _rewire(editor, made, home[0], quantization)
    for made in decisions:
        for use, reading in zip(made.item.uses, made.readings, strict=True):
            if reading is Reading.HYBRID and use.operator.code.name in kernels.FLOAT32_BIAS_OPERATORS:
                editor.store_bias_as_float32(use.subgraph, use.operator)
    editor.finish()
    return changes, editor.notes


def _change(
    made: Decision, position: int, nbytes: int, saved: int, rounding: Rounding, *, shared: bool
) -> WeightChange:
    item = made.item
    return WeightChange(
        item.value.name or item.stored.name or UNNAMED,
        position,
        item.stored.dtype_name,
        item.shape,
        tuple(item.readers),
        made.kinds,
        made.axis,
        made.channels.channels,
        nbytes,
        made.channels.elements,
        saved,
        rounding,
        shared,
    )


def _rewire(editor: Editor, made: Decision, buffer: Buffer, quantization: Quantization) -> None:
    """Makes the tensor int8 and gives each reader what it takes."""
    item = made.item
    forms = dict(zip(_readers(made), made.forms, strict=False))
    expands = Reading.DEQUANTIZE in made.kinds
    only_rows = made.rows and set(made.readings) == {Reading.LOOKUP}
    if item.expand is not None:
        integers = item.stored
        editor.make_int8(integers, buffer, quantization)
    elif expands:
        integers = editor.add_int8_beside(item.subgraph, item.value, buffer, quantization)
    else:
        integers = item.value
        editor.make_int8(integers, buffer, quantization)
    for index, use in enumerate(item.uses):
        reading = made.readings[index]
        if reading is Reading.DEQUANTIZE:
            continue
        form = forms[index]
        use.operator.inputs[use.position] = integers
        if reading is Reading.LOOKUP and made.rows:
            editor.look_up_rows(item.subgraph, use.operator, use.position, integers, quantization)
        elif reading is Reading.LOOKUP:
            editor.dequantize_output(item.subgraph, use.operator, quantization)
        elif isinstance(form, kernels.Form):
            row = kernels.hybrid_row(use.operator.code.name)
            if row is not None and kernels.Need.FLOAT_BIAS in row.needs:
                editor.ensure_bias(item.subgraph, use.operator, item.shape[row.axis() or 0])
            if form.asymmetric_inputs is not None:
                editor.set_option(use.operator, "asymmetric_quantize_inputs", form.asymmetric_inputs)
        editor.stamp(use.operator, form.version)
    if expands:
        form = made.forms[-1]
        editor.expand(item.subgraph, integers, item.value, item.expand, form.version)
    elif item.expand is not None:
        editor.remove_operator(item.subgraph, item.expand, item.value)
    if only_rows:
        editor.drop_unread(item.subgraph, integers)


def _readers(made: Decision) -> list[int]:
    """Returns the indices of the uses that read integers, in the order of ``made.forms``."""
    return [index for index, reading in enumerate(made.readings) if reading is not Reading.DEQUANTIZE]


__all__ = ["QuantizeWeights", "Reading", "Rounding", "Scheme", "WeightChange"]
