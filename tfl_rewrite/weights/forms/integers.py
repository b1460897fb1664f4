"""Integers with a scale for the tensor or for each channel: int12, int10, int8, int6, int4 and int2.

Kernels read int8, int4 and int2 beside float activations, lookups move them, and DEQUANTIZE expands them for
any reader.

Integers of six bits are an int4 and an int2 constant, DEQUANTIZE of both, and ADD. Any operator reads the
sum, as it reads what blocks expand to (:mod:`tfl_rewrite.weights.forms.blocks`). The sum is formed at each
call. The runtime has no type between int4 and int8, and 12 dB lie between each of them and the six bits half
way: ``q = 4 a + b`` with ``a`` from -8 to 7 and ``b`` from -2 to 1, so ``q`` from -34 to 29. In the same way
an int8 constant and an int2 or int4 one are 10 or 12 bits, which lie between int8 and float16.

Of int8 behind DEQUANTIZE only what is not zero is stored, where that is smaller, and a DENSIFY before it
makes the constant whole again (:mod:`tfl_rewrite.weights.sparse`): the runtime does so once, and knows no
other integers there (``densify.cc``). With 70 % of zeros a weight takes 4.8 bits, as precise as in 8. XNNPACK
leaves layers whose weights come from there to the kernels of the runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.kernels.operators import Granularity, Reading
from tfl_rewrite.kernels.table import ADD, DEQUANTIZE, dequantize_form
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import ComputedBlob
from tfl_rewrite.model.ir import Buffer, Quantization, Tensor
from tfl_rewrite.numerics.symmetric import Channels, Float32, Floats, Int8, scaled_integers
from tfl_rewrite.weights.forms.blocks import read_blocks, store_parts
from tfl_rewrite.weights.payloads import QuantizedPayload
from tfl_rewrite.weights.rounders import Rounder, Work
from tfl_rewrite.weights.sparse import OVERHEAD_NBYTES, make_sparse, sparse_form
from tfl_rewrite.weights.storage import (
    BUFFER_NBYTES,
    OPERATOR_NBYTES,
    QUANTIZATION_NBYTES,
    Decision,
    Part,
    StorageForm,
    Stored,
    fit,
    zero_points_nbytes,
)

_ROW_SCALE_NBYTES = 4


class Integer(StorageForm):
    """Integers whose scales the tensor's own quantization holds."""

    def granularity(self, axis: int | None) -> str:
        """One scale, or one for each channel."""
        return Granularity.TENSOR.value if axis is None else Granularity.CHANNEL.value

    def text(self, axis: int | None) -> str:
        """The name and the granularity."""
        return f"{self.name}:{self.granularity(axis)}"

    def nbytes(self, made: Decision) -> int:
        """Elements, scales and zero points."""
        count, zero_points = made.channels.channels, self.zero_points_nbytes(made)
        scales = self.scales_nbytes(count) + zero_points
        if made.rows:
            # They lie in a constant that is looked up too; who else reads the integers has them beside those.
            scales = _ROW_SCALE_NBYTES * count + (scales if zero_points else 0)
        return self.data_nbytes(made.item.elements) + scales

    def zero_points_nbytes(self, made: Decision) -> int:
        """None for a table whose rows only are looked up, each with a scale."""
        if made.rows and made.kinds == (Reading.LOOKUP,):
            return 0
        return zero_points_nbytes(made.channels.channels, made.sharing)

    def overhead(self, made: Decision) -> int:
        """A lookup by rows takes three operators with an output each, and the tensor of scales."""
        each = 4 if made.rows else 1
        lookups = made.readings.count(Reading.LOOKUP) * each * (OPERATOR_NBYTES + made.tensor_nbytes)
        return super().overhead(made) + lookups

    def store(self, editor: Editor, made: Decision, work: Work, rounder: Rounder, buffer: Buffer) -> Stored:
        """Rounds to the scales that the rounder chooses."""
        payload = QuantizedPayload(work, rounder, rounder.scales(work))
        buffer.blob = payload.blob(self.bits)
        return Stored(payload, (buffer,))

    def quantization(self, made: Decision, stored: Stored) -> Quantization | None:
        """The scales along the axis."""
        assert isinstance(stored.payload, QuantizedPayload)
        return Quantization.symmetric(stored.payload.scale.tobytes(), made.axis or 0)

    def rewire(
        self, editor: Editor, made: Decision, stored: Stored, quantization: Quantization | None
    ) -> None:
        """Kernels and lookups read the integers, all others what DEQUANTIZE makes of them."""
        item, buffer, kind = made.item, stored.buffers[0], self.parts[0]
        expands = Reading.DEQUANTIZE in made.kinds
        if item.expand is None and expands:
            integers = editor.add_beside(item.subgraph, item.value, kind, buffer, quantization)
        else:
            integers = item.stored if item.expand is not None else item.value
            editor.store(integers, kind, buffer, quantization)
        kernels = iter(made.kernels)
        for use, reading in zip(item.uses, made.readings, strict=True):
            if reading is Reading.DEQUANTIZE:
                continue
            form = next(kernels)
            use.operator.inputs[use.position] = integers
            assert quantization is not None
            if reading is Reading.LOOKUP and made.rows:
                editor.look_up_rows(item.subgraph, use.operator, use.position, integers, quantization)
            elif reading is Reading.LOOKUP:
                editor.dequantize_output(item.subgraph, use.operator, quantization)
            else:
                fit(editor, made, use.operator, form)
            editor.stamp(use.operator, form.version)
        if expands:
            editor.expand(item.subgraph, integers, item.value, item.expand, made.kernels[-1].version)
        elif item.expand is not None:
            editor.remove_operator(item.subgraph, item.expand, item.value)
        if made.rows and made.kinds == (Reading.LOOKUP,):
            editor.drop_unread(item.subgraph, integers)

    def read(self, tensor: Tensor) -> Floats | None:
        """Integers of the type, or unsigned ones of as many bits, whatever their zero points."""
        details = tensor.quantization
        if not self.is_plain or tensor.dtype_name.removeprefix("U") != self.parts[0] or details is None:
            return None
        return read_blocks(tensor, details) if details.scales_tensor is not None else _read(tensor, details)


def _read(tensor: Tensor, details: Quantization) -> Floats | None:
    blob, shape = tensor.buffer.blob, tensor.shape or ()
    assert blob is not None and details.scale is not None
    scale = np.frombuffer(bytes(details.scale.raw), "<f4")
    zero = np.resize(np.array(list(details.zero_point or [0]), np.int64), scale.size)
    if not 0 <= details.dimension < max(1, len(shape)):
        return None
    channels = Channels.along(shape, details.dimension if scale.size > 1 else None)
    if scale.size != channels.channels:
        return None
    return scaled_integers(tensor, blob, channels, scale, zero)


class SplitInteger(Integer):
    """Integers in two parts, of which the first counts in steps that the second divides."""

    def coarse(self, integers: npt.NDArray[Any]) -> Int8:
        """Returns the first part."""
        made: Int8 = ((integers - self.fine(integers)) >> np.int8(self._bits)).astype(np.int8)
        return made

    def fine(self, integers: npt.NDArray[Any]) -> Int8:
        """Returns the second part."""
        kind = integers.dtype.type
        half, mask = kind(1 << (self._bits - 1)), kind((1 << self._bits) - 1)
        made: Int8 = (((integers + half) & mask) - half).astype(np.int8)
        return made

    def divided(self) -> tuple[Part, ...]:
        """Both; what the first counts is a power of two, so that its scales are exact."""
        return Part(self.parts[0], 1 << self._bits, self.coarse), Part(self.parts[1], 1, self.fine)

    @property
    def _bits(self) -> int:
        """Of the second part."""
        return dtypes.BY_NAME[self.parts[1]].bits

    def overhead(self, made: Decision) -> int:
        """The second constant, its DEQUANTIZE and the ADD, with what they give."""
        operators = 2 * (OPERATOR_NBYTES + made.tensor_nbytes)
        return super().overhead(made) + operators + made.tensor_nbytes + BUFFER_NBYTES + QUANTIZATION_NBYTES

    def store(self, editor: Editor, made: Decision, work: Work, rounder: Rounder, buffer: Buffer) -> Stored:
        """Rounds once for each part."""
        payload = QuantizedPayload(work, rounder, rounder.scales(work))
        return Stored(payload, store_parts(editor, payload, self.divided(), buffer))

    def quantization(self, _made: Decision, _stored: Stored) -> Quantization | None:
        """Each part has scales of its own."""
        return None

    def rewire(
        self, editor: Editor, made: Decision, stored: Stored, _quantization: Quantization | None
    ) -> None:
        """Makes the float tensor the sum of what DEQUANTIZE makes of both parts."""
        assert isinstance(stored.payload, QuantizedPayload)
        item, buffers, kinds = made.item, stored.buffers, self.parts
        quantized = [
            Quantization.symmetric((stored.payload.scale * np.float32(part.step)).tobytes(), made.axis or 0)
            for part in self.divided()
        ]
        subgraph, value = item.subgraph, item.value
        granularity = Granularity.TENSOR if made.axis is None else Granularity.CHANNEL
        if item.expand is None:
            first = editor.add_beside(subgraph, value, kinds[0], buffers[0], quantized[0])
            place = editor.first_reader(subgraph, value)
            value.buffer = editor.sentinel()
        else:
            first = item.stored
            editor.store(first, kinds[0], buffers[0], quantized[0])
            place = editor.drop_operator(subgraph, item.expand)
        second = editor.add_beside(subgraph, value, kinds[1], buffers[1], quantized[1])
        # What an existing DEQUANTIZE is said to give may have another shape than what it reads.
        first.shape = second.shape = item.shape
        operators, terms = [], []
        for tensor, kind, suffix in zip((first, second), kinds, ("coarse", "fine"), strict=True):
            form = dequantize_form(kind, granularity)
            assert form is not None
            term = Tensor(suffix, item.shape, dtypes.FLOAT32.value, editor.sentinel())
            terms.append(editor.add_tensor(subgraph, term))
            operators.append(editor.builtin(DEQUANTIZE, form.version, [tensor], terms[-1]))
        operators.append(editor.builtin(ADD, 1, [*terms], value))
        subgraph.operators[place:place] = operators


class SparsePayload(QuantizedPayload):
    """Makes the integers of a constant of which only what is not zero is stored: rounding leaves zeros be.

    Args:
        work: The constant.
        rounder: Makes its integers.
        scale: Float32 ``[channels]``, as the file holds them.
    """

    def __init__(self, work: Work, rounder: Rounder, scale: Float32) -> None:
        super().__init__(work, rounder, scale)
        self.form = sparse_form(self.values().reshape(work.shape))
        self.release()

    def stored(self) -> ComputedBlob:
        """Returns what is stored, as bytes that are made while they are written."""
        return ComputedBlob(self.form.where.size, self._write_stored)

    def _write_stored(self, sink: Sink, offset: int) -> None:
        whole = np.empty(self.work.channels.elements, np.int8)

        def put(start: int, block: npt.NDArray[Any]) -> None:
            whole[start : start + block.size] = block

        self.run(put)
        sink.write_at(self.form.data(whole), offset)


@dataclass(frozen=True)
class SparseInteger(Integer):
    """Those that are not zero, of a constant with many zeros; made for it, not named by an encoding.

    Attributes:
        stored_nbytes: What they take, with what says where they lie.
    """

    stored_nbytes: int = 0

    @classmethod
    def of(cls, form: StorageForm, stored_nbytes: int) -> SparseInteger:
        """Returns a form of which only what is not zero is stored."""
        return cls(form.name, form.parts, form.full_range, stored_nbytes=stored_nbytes)

    @property
    def is_sparse(self) -> bool:
        """That is what it is."""
        return True

    def data_nbytes(self, _elements: int) -> int:
        """What is stored, and where it lies."""
        return self.stored_nbytes

    def overhead(self, made: Decision) -> int:
        """The DENSIFY, too."""
        return super().overhead(made) + OVERHEAD_NBYTES

    def store(self, _editor: Editor, _made: Decision, work: Work, rounder: Rounder, buffer: Buffer) -> Stored:
        """Rounds as others do."""
        payload = SparsePayload(work, rounder, rounder.scales(work))
        buffer.blob = payload.stored()
        return Stored(payload, (buffer,))

    def rewire(
        self, editor: Editor, made: Decision, stored: Stored, quantization: Quantization | None
    ) -> None:
        """DEQUANTIZE reads what DENSIFY makes of them."""
        super().rewire(editor, made, stored, quantization)
        assert isinstance(stored.payload, SparsePayload)
        subgraph, buffer = made.item.subgraph, stored.buffers[0]
        integers = next(each for each in subgraph.tensors if each.buffer is buffer and not each.is_sparse)
        make_sparse(editor, subgraph, integers, stored.payload.form, buffer)


FORMS = (
    SplitInteger("int12", ("INT8", "INT4"), full_range=False, tried=("int12:channel:dequantize",)),
    SplitInteger("int10", ("INT8", "INT2"), full_range=False, tried=("int10:channel:dequantize",)),
    Integer(
        "int8",
        ("INT8",),
        full_range=False,
        tried=("int8:channel:dequantize", "int8:tensor:dequantize", "int8:channel"),
    ),
    SplitInteger("int6", ("INT4", "INT2"), tried=("int6:channel:dequantize", "int6:block:dequantize")),
    Integer(
        "int4",
        ("INT4",),
        tried=("int4:channel:dequantize", "int4:block:dequantize"),
        tried_in_kernels=("int4:channel", "int4:block:32"),
    ),
    Integer("int2", ("INT2",), tried=("int2:channel:dequantize", "int2:block:dequantize")),
)

NIBBLES = SplitInteger("int4+int4", ("INT4", "INT4"), full_range=False)
"""As many as int8, for downloads alone: what lies two to a byte deflates to less where most integers are
small and few are large. Deflate finds three equal bytes in a row often then, and spends more bits on them
than on three bytes one by one."""
BYTES = SplitInteger("int8+int8", ("INT8", "INT8"), full_range=False)
"""Sixteen bits, for tables in downloads: the second constant is zero but for the first rows."""
