"""How scales by block are stored and read.

For any reader, measured on LiteRT 2.3 with every resolver (and, for int8, on tflite-runtime 2.14): the
integers lie as ``[blocks, length]`` with one scale for all, a power of two; the scales of the blocks as
float16 ``[blocks, 1]``. DEQUANTIZE expands both, MUL multiplies, RESHAPE gives the result its shape. A block
costs 2 bytes, where per-channel scales of the integers would cost 12 (a float32, and an int64 zero point that
the runtime demands): 1,024 x 1,024 weights as int4 in blocks of 32 took 922,472 bytes so, and 595,072 in this
form. It is multiplied at each call with XNNPACK (0.4 ms a million weights), once without.

Where a block is a whole row, what follows the first axis, the integers keep their shape ``[out, ...]`` beside
scales ``[out, 1, ...]``, and no RESHAPE is needed. Integers in two parts (int6) are expanded and added before
they are multiplied, so that both share the scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.kernels.table import ADD, DEQUANTIZE, MUL, RESHAPE, dequantize_form
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import (
    Buffer,
    Operator,
    Quantization,
    SubGraph,
    Tensor,
    new_record,
    schema,
)
from tfl_rewrite.numerics.blocks import SMALLEST_DIRECT, BlockScales, direct, factored
from tfl_rewrite.numerics.symmetric import Channels, Floats, scaled_integers
from tfl_rewrite.weights.payloads import QuantizedPayload
from tfl_rewrite.weights.rounders import Rounder, Work
from tfl_rewrite.weights.storage import (
    BUFFER_NBYTES,
    OPERATOR_NBYTES,
    QUANTIZATION_NBYTES,
    TENSOR_NBYTES,
    Decision,
    Part,
    StorageForm,
    Stored,
    fit,
)

_MOST_DIMENSIONS = 4
"""Of rows that keep their shape: with more, MUL of old runtimes does not spread one over the other."""

SCALE_NBYTES = 12
"""A float32 scale and an int64 zero point; the runtime refuses fewer zero points than scales."""


def store_parts(
    editor: Editor, payload: QuantizedPayload, parts: Sequence[Part], buffer: Buffer
) -> tuple[Buffer, ...]:
    """Gives a buffer, and others that are added, the parts of integers; returns one for each part."""
    homes = (buffer, *(editor.add_buffer(None) for _ in parts[1:]))
    for home, part in zip(homes, parts, strict=True):
        home.blob = payload.blob(dtypes.BY_NAME[part.kind].bits, part.take)
    return homes


class BlockPayload(QuantizedPayload):
    """Makes the integers of one constant.

    Args:
        work: The constant.
        rounder: Makes its integers.
        scales: As the file holds them.
    """

    def __init__(self, work: Work, rounder: Rounder, scales: BlockScales) -> None:
        super().__init__(work, rounder, scales.effective)
        self.factor = scales.factor


@dataclass(frozen=True)
class Blocks(StorageForm):
    """Integers of another form with a scale for each block; made for a constant, not named by an encoding.

    Attributes:
        base: The form of the integers.
        length: Elements of a block.
        in_kernel: Whether a kernel reads the blocks itself.
    """

    base: StorageForm | None = None
    length: int = 0
    in_kernel: bool = False

    @classmethod
    def of(cls, form: StorageForm, length: int, *, in_kernel: bool = False) -> Blocks:
        """Returns a form in blocks."""
        return cls(form.name, form.parts, form.full_range, base=form, length=length, in_kernel=in_kernel)

    def divided(self) -> tuple[Part, ...]:
        """As the form does that it blocks."""
        assert self.base is not None
        return self.base.divided()

    @property
    def block(self) -> int | None:
        """The length."""
        return self.length

    @property
    def native(self) -> bool:
        """Whether a kernel reads them."""
        return self.in_kernel

    def channels(self, shape: Sequence[int], _axis: int | None) -> Channels:
        """One after the other."""
        return block_channels(shape, self.length)

    def granularity(self, _axis: int | None) -> str:
        """Always the same."""
        return Granularity.BLOCK.value

    def text(self, axis: int | None) -> str:
        """With the length that it came to be."""
        return f"{self.name}:{self.granularity(axis)}:{self.length}"

    def nbytes(self, made: Decision) -> int:
        """A float16 for each block, and one float32 with a zero point for them all."""
        scales = 2 * made.channels.channels + SCALE_NBYTES * len(self.parts)
        return self.data_nbytes(made.item.elements) + scales

    def overhead(self, made: Decision) -> int:
        """The tensor of scales; where they are expanded, what expands, adds, multiplies and reshapes."""
        if self.in_kernel:
            return QUANTIZATION_NBYTES + made.tensor_nbytes + BUFFER_NBYTES
        parts, reshapes = len(self.parts), not is_row(made.item.shape, self.length)
        # DEQUANTIZE of each part, their sums, DEQUANTIZE of the scales, MUL.
        operators = parts + (parts - 1) + 2 + reshapes
        added = operators * OPERATOR_NBYTES + parts * (made.tensor_nbytes + BUFFER_NBYTES)
        # The scales, and what operators make that is not the constant itself.
        added += made.tensor_nbytes + (operators - 1) * TENSOR_NBYTES
        # The new shape, a constant and a vector of options.
        added += reshapes * (TENSOR_NBYTES + BUFFER_NBYTES + 8 * len(made.item.shape))
        return parts * QUANTIZATION_NBYTES + added

    def store(self, editor: Editor, made: Decision, work: Work, rounder: Rounder, buffer: Buffer) -> Stored:
        """Rounds to the scales that float16 holds of those that the rounder chooses."""
        scale, zero = rounder.scales(work), work.largest == 0
        scales = None
        if self.in_kernel:
            # The plan found that none underflows; what a rounder made smaller since is lifted.
            scales = direct(np.maximum(scale, SMALLEST_DIRECT), zero)
        scales = scales or factored(scale, zero)
        payload = BlockPayload(work, rounder, scales)
        homes = store_parts(editor, payload, self.divided(), buffer)
        return Stored(payload, (*homes, editor.add_buffer(scales.quotients.tobytes())))

    def rewire(
        self, editor: Editor, made: Decision, stored: Stored, _quantization: Quantization | None
    ) -> None:
        """A kernel reads them, or what they are expanded to."""
        if self.in_kernel:
            _read_by_kernel(editor, made, stored)
        else:
            _expand(editor, made, self.divided(), stored)

    def read(self, tensor: Tensor) -> Floats | None:
        """Those that a quantization of blocks is said of."""
        return None if tensor.quantization is None else read_blocks(tensor, tensor.quantization)


def read_blocks(tensor: Tensor, details: Quantization) -> Floats | None:
    """Returns what integers mean whose scales by block are a tensor; None where it is of another form."""
    blob, shape, holder = tensor.buffer.blob, tensor.shape or (), details.scales_tensor
    if holder is None or blob is None:
        return None
    table, record = holder.buffer.blob, details.rest.get("details")
    block = record.get("block_size") if record is not None and "block_size" in record.spec.by_name else 0
    unknown = details.zero_points_tensor is not None or holder.dtype_name != "FLOAT16"
    if table is None or table.nbytes % 2 or unknown or block < 1 or tensor.elements % block:
        return None
    scale = np.frombuffer(bytes(table.view()), "<f2").astype(np.float32)
    channels = block_channels(shape, block)
    if scale.size != channels.channels:
        return None
    return scaled_integers(tensor, blob, channels, scale, np.zeros(scale.size, np.int64))


def is_row(shape: Sequence[int], block: int) -> bool:
    """Whether a block is all that follows the first axis, so that integers keep their shape."""
    return 2 <= len(shape) <= _MOST_DIMENSIONS and block == math.prod(shape[1:])


def block_channels(shape: Sequence[int], block: int) -> Channels:
    """Returns how blocks of a row-major constant fall."""
    return Channels(1, math.prod(shape) // block, block)


def _read_by_kernel(editor: Editor, made: Decision, stored: Stored) -> None:
    """Makes the constant integers with a blockwise quantization, whose scales are a tensor of their own."""
    item, block = made.item, made.form.block
    assert block is not None
    buffer, scales = stored.buffers
    shape = item.shape
    table = editor.add_tensor(
        item.subgraph,
        Tensor(f"{item.value.name}_scales", (shape[0], shape[1] // block), dtypes.FLOAT16.value, scales),
    )
    details = new_record("BlockwiseQuantization").replace(block_size=block)
    number = schema().enums["QuantizationDetails"].values["BlockwiseQuantization"]
    rest = new_record("QuantizationParameters").replace(details_type=number, details=details)
    quantization = Quantization(scales_tensor=table, rest=rest)
    integers = item.stored
    editor.store(integers, made.form.parts[0], buffer, quantization)
    for use in item.uses:
        use.operator.inputs[use.position] = integers
    if item.expand is not None:
        editor.remove_operator(item.subgraph, item.expand, item.value)
    for use, form in zip(item.uses, made.kernels, strict=True):
        note = f"{use.operator.code.name} reads the blocks of its weight itself. {form.note}"
        if not form.by_default and note not in editor.notes:
            editor.notes.append(note)
        fit(editor, made, use.operator, form)
        editor.stamp(use.operator, form.version)


def _expand(editor: Editor, made: Decision, parts: Sequence[Part], stored: Stored) -> None:
    """Makes the float tensor what is made of integers in some parts, and of their scales."""
    item, length, payload = made.item, made.form.block, stored.payload
    assert length is not None and isinstance(payload, BlockPayload)
    count, subgraph, value, name = made.channels.channels, item.subgraph, item.value, item.value.name
    *homes, scales = stored.buffers
    # Both parts have one factor, times what each counts.
    quantized = [Quantization.symmetric(np.float32(payload.factor * part.step).tobytes()) for part in parts]
    integers = []
    if item.expand is None:
        place = editor.first_reader(subgraph, value)
        value.buffer = editor.sentinel()
    else:
        integers = [item.stored]
        editor.store(item.stored, parts[0].kind, homes[0], quantized[0])
        place = editor.drop_operator(subgraph, item.expand)
    for part, home, details in list(zip(parts, homes, quantized, strict=True))[len(integers) :]:
        integers.append(editor.add_beside(subgraph, value, part.kind, home, details))
    row = is_row(item.shape, length)
    for tensor in integers:
        tensor.shape = item.shape if row else (count, length)
    shape = (count, *(1,) * (len(item.shape) - 1)) if row else (count, 1)
    table = editor.add_tensor(subgraph, Tensor(f"{name}_scales", shape, dtypes.FLOAT16.value, scales))
    subgraph.operators[place:place] = _expanding(editor, subgraph, value, integers, table)


def expand_stored_blocks(
    editor: Editor, subgraph: SubGraph, value: Tensor, integers: Tensor, block: int
) -> None:
    """Makes a float tensor what int8 in blocks, which kernels read as such, stand for.

    Args:
        editor: Makes the edits.
        subgraph: Of the tensors.
        value: The float tensor, of the shape of the constant; read by nothing yet.
        integers: The constant; its scales are a tensor of float16. DEQUANTIZE alone may read it then.
        block: Elements of a block.
    """
    details = integers.quantization
    assert details is not None and details.scales_tensor is not None
    count = integers.elements // block
    held = details.scales_tensor.buffer
    # Others may name the same tensor as their scales.
    table = Tensor(f"{integers.name}_scales", (count, 1), dtypes.FLOAT16.value, held)
    editor.add_tensor(subgraph, table)
    place = editor.first_reader(subgraph, integers)
    integers.shape, integers.quantization = (count, block), Quantization.symmetric(np.float32(1).tobytes())
    subgraph.operators[place:place] = _expanding(editor, subgraph, value, [integers], table)


def _expanding(
    editor: Editor, subgraph: SubGraph, value: Tensor, parts: Sequence[Tensor], table: Tensor
) -> list[Operator]:
    """Returns the operators that make a float tensor of integers, one for each scale in a row, and of those.

    The tensors between have names that repeat, which a compact file holds once.
    """
    none, whole, operators = editor.sentinel(), parts[0].shape or (), []

    def computed(name: str, shape: Sequence[int]) -> Tensor:
        return editor.add_tensor(subgraph, Tensor(name, tuple(shape), dtypes.FLOAT32.value, none))

    def expanded(tensor: Tensor, name: str) -> Tensor:
        form = dequantize_form(tensor.dtype_name, Granularity.TENSOR if tensor is not table else None)
        assert form is not None
        made = computed(name, tensor.shape or ())
        operators.append(editor.builtin(DEQUANTIZE, form.version, [tensor], made))
        return made

    steps = expanded(parts[0], "steps")
    for part in parts[1:]:
        total, term = computed("sums", whole), expanded(part, "steps")
        operators.append(editor.builtin(ADD, 1, [steps, term], total))
        steps = total
    factors = expanded(table, "factors")
    if value.shape == whole:
        return [*operators, editor.builtin(MUL, 1, [steps, factors], value)]
    flat, shape = computed("blocks", whole), ScalarVector.of(INT32, value.shape or ())
    held = editor.constant(bytes(shape.raw))
    target = editor.add_tensor(subgraph, Tensor("shape", (len(shape),), dtypes.INT32.value, held))
    return [
        *operators,
        editor.builtin(MUL, 1, [steps, factors], flat),
        editor.builtin(RESHAPE, 1, [flat, target], value, new_shape=shape),
    ]


FORMS: tuple[StorageForm, ...] = ()
"""None of its own: integers that can be in blocks are named with the granularity."""
