"""How integers of six bits are stored and read: an int4 and an int2 constant, DEQUANTIZE of both, and ADD.

Any operator reads the sum, as it reads what blocks expand to (:mod:`tfl_rewrite.weights.forms.blocks`). The
sum is formed at each call.

The runtime has no type between int4 and int8, and 12 dB lie between each of them and the six bits half way:
``q = 4 a + b`` with ``a`` from -8 to 7 and ``b`` from -2 to 1, so ``q`` from -34 to 29.
"""

from __future__ import annotations

import numpy as np

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.kernels.table import ADD, DEQUANTIZE, dequantize_form
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Buffer, Quantization, Tensor
from tfl_rewrite.numerics.symmetric import Float32, Int8, Levels
from tfl_rewrite.weights.encoding import (
    BUFFER_NBYTES,
    OPERATOR_NBYTES,
    QUANTIZATION_NBYTES,
    Decision,
    Stored,
)
from tfl_rewrite.weights.forms.integers import Integer
from tfl_rewrite.weights.payloads import QuantizedPayload
from tfl_rewrite.weights.rounders import Rounder, Work

_INT8 = Levels.full(8)


class SplitInteger(Integer):
    """Integers in two parts, of which the first counts in steps that the second divides."""

    @property
    def levels(self) -> Levels:
        """The sums of both parts that int8 holds too, in which they are made."""
        low, high = super().levels
        return Levels(max(low, _INT8.low), min(high, _INT8.high))

    def coarse(self, integers: Int8) -> Int8:
        """Returns the first part."""
        made: Int8 = ((integers - self.fine(integers)) >> np.int8(self._bits)).astype(np.int8)
        return made

    def fine(self, integers: Int8) -> Int8:
        """Returns the second part."""
        half, mask = np.int8(1 << (self._bits - 1)), np.int8((1 << self._bits) - 1)
        made: Int8 = ((integers + half) & mask) - half
        return made

    def scales(self, scale: Float32) -> tuple[Float32, Float32]:
        """Returns the scales of both parts; the first is the second times a power of two, which is exact."""
        return np.asarray(scale * np.float32(1 << self._bits), np.float32), scale

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
        buffers = (buffer, editor.add_buffer(None))
        for home, kind, part in zip(buffers, self.parts, (self.coarse, self.fine), strict=True):
            home.blob = payload.blob(dtypes.BY_NAME[kind].bits, part)
        return Stored(payload, buffers)

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
            Quantization.symmetric(scale.tobytes(), made.axis or 0)
            for scale in self.scales(stored.payload.scale)
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
            term = Tensor(f"{value.name}_{suffix}", item.shape, dtypes.FLOAT32.value, editor.sentinel())
            terms.append(editor.add_tensor(subgraph, term))
            operators.append(editor.builtin(DEQUANTIZE, form.version, [tensor], terms[-1]))
        operators.append(editor.builtin(ADD, 1, [*terms], value))
        subgraph.operators[place:place] = operators


FORMS = (SplitInteger("int6", ("INT4", "INT2"), tried=("int6:channel:dequantize",)),)
