"""How scales by block are stored and read.

For any reader, measured on LiteRT 2.3 with every resolver (and, for int8, on tflite-runtime 2.14): the
integers lie as ``[blocks, length]`` with one scale for all, a power of two; the scales of the blocks as
float16 ``[blocks, 1]``. DEQUANTIZE expands both, MUL multiplies, RESHAPE gives the result its shape. A block
costs 2 bytes, where per-channel scales of the integers would cost 12 (a float32, and an int64 zero point that
the runtime demands): 1,024 x 1,024 weights as int4 in blocks of 32 took 922,472 bytes so, and 595,072 in this
form. It is multiplied at each call with XNNPACK (0.4 ms a million weights), once without.

The file stores ``factor`` as the scale of the integer tensor and the quotients beside it; DEQUANTIZE gives
``integer * factor`` and MUL multiplies by the quotient. The factor is a power of two and both other numbers
have 11 bits at most, so that the product is exact, and any range of 2^29 fits without an underflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.kernels.table import DEQUANTIZE, MUL, RESHAPE, dequantize_form
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
from tfl_rewrite.numerics.symmetric import SMALLEST_SCALE, Channels, Float32, Floats, scaled_integers
from tfl_rewrite.weights.payloads import QuantizedPayload
from tfl_rewrite.weights.rounders import Rounder, Work
from tfl_rewrite.weights.storage import (
    BUFFER_NBYTES,
    OPERATOR_NBYTES,
    QUANTIZATION_NBYTES,
    Decision,
    StorageForm,
    Stored,
    fit,
)

_TOP = 14  # The largest quotient lies in [2^14, 2^15): far from what float16 cannot hold.
_HALF_NORMAL = np.float32(np.finfo(np.float16).tiny)
_LARGEST_POWER = 127

# DEQUANTIZE twice, MUL and RESHAPE; and the tensors of them, with a shape.
_OPERATORS = 4
_TENSORS = 6

SCALE_NBYTES = 12
"""A float32 scale and an int64 zero point; the runtime refuses fewer zero points than scales."""

SMALLEST_DIRECT = float(_HALF_NORMAL)
"""The least scale that a kernel reads as float16."""


@dataclass(frozen=True, slots=True)
class BlockScales:
    """The scales of all blocks of a constant.

    Attributes:
        factor: A power of two.
        quotients: Float16 ``[blocks]``, all normal numbers.
        effective: Float32 ``[blocks]``: what they multiply to, exactly.
    """

    factor: float
    quotients: npt.NDArray[np.float16]
    effective: Float32


def factored(scale: Float32, zero: npt.NDArray[np.bool_] | None = None) -> BlockScales:
    """Returns the nearest scales that can be stored with a common factor.

    Args:
        scale: Float32 ``[blocks]``, positive and finite. Those below 2^-28 of the largest become that.
        zero: Bool ``[blocks]``: which hold zeros only, so that their scale does not matter.
    """
    scale = _without(scale, zero)
    most = float(scale.max())
    power = int(np.floor(np.log2(most))) - _TOP
    smallest = int(np.log2(SMALLEST_SCALE))
    factor = 2.0 ** min(max(power, smallest), _LARGEST_POWER)
    return _stored(scale, factor)


def direct(scale: Float32, zero: npt.NDArray[np.bool_] | None = None) -> BlockScales | None:
    """Returns scales for a kernel that reads float16 scales without a factor; None where some underflow.

    XNNPACK refuses scales that are zero, subnormal or infinite (``CheckFp16Scale``).

    Args:
        scale: Float32 ``[blocks]``, positive and finite.
        zero: Bool ``[blocks]``: which hold zeros only, so that their scale does not matter.
    """
    scale = _without(scale, zero)
    if float(scale.min()) < _HALF_NORMAL or float(scale.max()) > float(np.finfo(np.float16).max):
        return None
    return _stored(scale, 1.0)


def _without(scale: Float32, zero: npt.NDArray[np.bool_] | None) -> Float32:
    if zero is None or not zero.any() or zero.all():
        return scale
    made: Float32 = np.where(zero, scale[~zero].max(), scale)
    return made


def _stored(scale: Float32, factor: float) -> BlockScales:
    quotients = np.maximum(scale / np.float32(factor), _HALF_NORMAL).astype(np.float16)
    effective: Float32 = quotients.astype(np.float32) * np.float32(factor)
    return BlockScales(factor, quotients, effective)


def block_length(shape: Sequence[int], block: int) -> int | None:
    """Returns how long blocks of a constant are, given how long they are wanted; None if it does not fit.

    Blocks lie in row-major order. A row is what follows the first axis (all, where there is but one). The
    longest length up to ``block`` is taken that divides the row, so that no block holds weights of two
    outputs; where rows have no divisor of half the length or more, the longest that divides the whole. What
    is then shorter than a quarter of what was asked for would cost more for scales than it is worth.
    """
    elements = math.prod(shape)
    if not elements:
        return None
    row = math.prod(shape[1:]) if len(shape) > 1 else elements
    found = _divisor(row, block)
    if 2 * found < block:
        found = max(found, _divisor(elements, block))
    return found if 4 * found >= block else None


def _divisor(number: int, most: int) -> int:
    return max(size for size in range(1, most + 1) if number % size == 0)


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
    """Integers of a plain form with a scale for each block; made for a constant, not named by an encoding.

    Attributes:
        length: Elements of a block.
        in_kernel: Whether a kernel reads the blocks itself.
    """

    length: int = 0
    in_kernel: bool = False

    @classmethod
    def of(cls, form: StorageForm, length: int, *, in_kernel: bool = False) -> Blocks:
        """Returns a form in blocks."""
        return cls(form.name, form.parts, form.full_range, length=length, in_kernel=in_kernel)

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
        return self.data_nbytes(made.item.elements) + 2 * made.channels.channels + SCALE_NBYTES

    def overhead(self, made: Decision) -> int:
        """The tensor of scales; where they are expanded, DEQUANTIZE twice, MUL and RESHAPE with theirs."""
        if self.in_kernel:
            return QUANTIZATION_NBYTES + made.tensor_nbytes + BUFFER_NBYTES
        added = _OPERATORS * OPERATOR_NBYTES + _TENSORS * made.tensor_nbytes + 2 * BUFFER_NBYTES
        return QUANTIZATION_NBYTES + 4 * len(made.item.shape) + added

    def store(self, editor: Editor, made: Decision, work: Work, rounder: Rounder, buffer: Buffer) -> Stored:
        """Rounds to the scales that float16 holds of those that the rounder chooses."""
        scale, zero = rounder.scales(work), work.largest == 0
        scales = None
        if self.in_kernel:
            # The plan found that none underflows; what a rounder made smaller since is lifted.
            scales = direct(np.maximum(scale, SMALLEST_DIRECT), zero)
        scales = scales or factored(scale, zero)
        payload = BlockPayload(work, rounder, scales)
        buffer.blob = payload.blob(self.bits)
        return Stored(payload, (buffer, editor.add_buffer(scales.quotients.tobytes())))

    def quantization(self, _made: Decision, stored: Stored) -> Quantization | None:
        """The one scale of the integers that are expanded."""
        if self.in_kernel:
            return None
        assert isinstance(stored.payload, BlockPayload)
        return Quantization.symmetric(np.float32(stored.payload.factor).tobytes())

    def rewire(
        self, editor: Editor, made: Decision, stored: Stored, quantization: Quantization | None
    ) -> None:
        """A kernel reads them, or what they are expanded to."""
        if quantization is None:
            _read_by_kernel(editor, made, stored)
        else:
            _expand(editor, made, stored, quantization)

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


def _expand(editor: Editor, made: Decision, stored: Stored, quantization: Quantization) -> None:
    """Makes the float tensor what DEQUANTIZE, MUL and RESHAPE make of integers and scales."""
    item, length = made.item, made.form.block
    count = made.channels.channels
    assert length is not None
    buffer, scales = stored.buffers
    form = made.kernels[-1]
    half = dequantize_form("FLOAT16", None)
    assert half is not None
    subgraph, value, name = item.subgraph, item.value, item.value.name
    kind = made.form.parts[0]
    if item.expand is None:
        integers = editor.add_beside(subgraph, value, kind, buffer, quantization)
        place = editor.first_reader(subgraph, value)
        value.buffer = editor.sentinel()
    else:
        integers = item.stored
        editor.store(integers, kind, buffer, quantization)
        place = editor.drop_operator(subgraph, item.expand)
    integers.shape = (count, length)
    table = Tensor(f"{name}_scales", (count, 1), dtypes.FLOAT16.value, scales)
    editor.add_tensor(subgraph, table)
    versions = form.version, half.version
    subgraph.operators[place:place] = _expanding(editor, subgraph, value, (integers, table), versions)


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
    form, half = dequantize_form("INT8", Granularity.TENSOR), dequantize_form("FLOAT16", None)
    assert form is not None and half is not None
    count = integers.elements // block
    held = details.scales_tensor.buffer
    # Others may name the same tensor as their scales.
    table = Tensor(f"{integers.name}_scales", (count, 1), dtypes.FLOAT16.value, held)
    editor.add_tensor(subgraph, table)
    place = editor.first_reader(subgraph, integers)
    integers.shape, integers.quantization = (count, block), Quantization.symmetric(np.float32(1).tobytes())
    versions = form.version, half.version
    subgraph.operators[place:place] = _expanding(editor, subgraph, value, (integers, table), versions)


def _expanding(
    editor: Editor,
    subgraph: SubGraph,
    value: Tensor,
    stored: tuple[Tensor, Tensor],
    versions: tuple[int, int],
) -> list[Operator]:
    """Returns the operators that make a float tensor of blocks of integers, and of the scales of those."""
    (integers, table), dimensions = stored, value.shape or ()

    def beside(suffix: str, shape: Sequence[int], dtype: int, where: Buffer) -> Tensor:
        made = Tensor(f"{value.name}_{suffix}", tuple(shape), dtype, where)
        return editor.add_tensor(subgraph, made)

    none, float32, whole = editor.sentinel(), dtypes.FLOAT32.value, integers.shape or ()
    steps = beside("steps", whole, float32, none)
    factors = beside("factors", table.shape or (), float32, none)
    flat = beside("blocks", whole, float32, none)
    shape = ScalarVector.of(INT32, dimensions)
    target = beside("shape", (len(dimensions),), dtypes.INT32.value, editor.constant(bytes(shape.raw)))
    return [
        editor.builtin(DEQUANTIZE, versions[0], [integers], steps),
        editor.builtin(DEQUANTIZE, versions[1], [table], factors),
        editor.builtin(MUL, 1, [steps, factors], flat),
        editor.builtin(RESHAPE, 1, [flat, target], value, new_shape=shape),
    ]


FORMS: tuple[StorageForm, ...] = ()
"""None of its own: integers that can be in blocks are named with the granularity."""
