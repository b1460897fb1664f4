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
from tfl_rewrite.numerics.symmetric import Float32, Int8
from tfl_rewrite.weights.decisions import Decision

STEP = 4
"""Steps of the second part in a step of the first."""


def parts(integers: Int8) -> tuple[Int8, Int8]:
    """Splits integers from -34 to 29."""
    low = ((integers + np.int8(2)) & np.int8(3)) - np.int8(2)
    high = (integers - low) >> np.int8(2)
    return high.astype(np.int8), low.astype(np.int8)


def scales(scale: Float32) -> tuple[Float32, Float32]:
    """Returns the scales of both parts; the first is the second times a power of two, which is exact."""
    return np.asarray(scale * np.float32(STEP), np.float32), scale


def quantizations(made: Decision, scale: Float32) -> tuple[Quantization, Quantization]:
    """Returns the scales of both parts."""
    first, second = (Quantization.symmetric(each.tobytes(), made.axis or 0) for each in scales(scale))
    return first, second


def expand(
    editor: Editor,
    made: Decision,
    buffers: tuple[Buffer, Buffer],
    quantized: tuple[Quantization, Quantization],
) -> None:
    """Makes the float tensor the sum of what DEQUANTIZE makes of both parts."""
    item = made.item
    subgraph, value = item.subgraph, item.value
    granularity = Granularity.TENSOR if made.axis is None else Granularity.CHANNEL
    kinds = [part.tensor_type for part in made.dtype.parts]
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
