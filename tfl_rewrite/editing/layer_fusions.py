"""Fusions around layers: padding before one, a shape behind one, a product or a sum that is one.

They need shapes, which are followed from the inputs (:mod:`tfl_rewrite.editing.shapes`); a caller that
resizes an input later gets what the runtime makes of the fused operators then.
"""

from __future__ import annotations

import math

import numpy as np

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.patterns import CLOSE, INTEGERS, Constant, Either, Match, Op, Value, op
from tfl_rewrite.editing.replacements import Fusion, Making, Refused, stamped
from tfl_rewrite.kernels.operands import fused_clamp, scales_of, zero_points_of
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.table import (
    BATCH_MATMUL,
    DIV,
    FULLY_CONNECTED,
    MAX_POOL,
    MEAN,
    MUL,
    PAD,
    PADV2,
    RESHAPE,
    ROWS,
    SUM,
    row_of,
)
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Buffer, Operator, Tensor, schema
from tfl_rewrite.numerics.products import same_padding

_X, _WEIGHTS = Value("x"), Value("weights")
_PADDING = schema().enums["Padding"].values

# -- Padding -------------------------------------------------------------------------------------------------

_LAYERS = tuple(
    row for row in ROWS.values() if row.product in (ProductKind.CONVOLUTION, ProductKind.DEPTHWISE)
)
_ROOM = "its padding is not that of SAME: {} where SAME pads {}"


def _same_padding(match: Match, editor: Editor) -> Making:
    """SAME instead of VALID behind a PAD of what SAME pads."""
    host, padded = match.nodes["host"], match.operators[0]
    x, pads = match.tensors["x"], match.arrays["pads"]
    shape, sizes = match.shapes[x], _window_of(match, host)
    if shape is None or len(shape) != 4 or None in shape[1:3] or sizes is None or pads.shape != (4, 2):
        return Refused("the height or the width of what it pads is not known", "shape")
    if pads[0].any() or pads[3].any():
        return Refused("it pads batches or channels, which SAME does not", "padding")
    if row_of(host) is MAX_POOL and not _is_positive(match.graph, x):
        return Refused("a zero that is padded may be the largest number, and SAME pads none", "pool")
    output = padded.outputs[0]
    assert output is not None
    if scales_of(x) != scales_of(output) or zero_points_of(x) != zero_points_of(output):
        return Refused("its input and its output have different scales", "scales")
    for (before, after), dim, size, axis in zip(pads[1:3].tolist(), shape[1:3], sizes, "hw", strict=True):
        stride = host.option(f"stride_{axis}") or 1
        reach = (size - 1) * (host.option(f"dilation_{axis}_factor") or 1) + 1
        made = -(-(dim or 0) // stride)
        same = same_padding(dim or 0, reach, stride)
        # What lies behind the last window is read by none.
        if before != same[0] or ((dim or 0) + before + after - reach) // stride + 1 != made:
            there = f"{before} before and {after} behind"
            return Refused(_ROOM.format(there, f"{same[0]} and {same[1]}"), "padding")
    editor.set_option(host, "padding", _PADDING["SAME"])
    host.inputs[0] = x
    return [host]


def _window_of(match: Match, host: Operator) -> tuple[int, int] | None:
    """Returns height and width of a filter or of the window of a pool."""
    if row_of(host) is MAX_POOL:
        return host.option("filter_height"), host.option("filter_width")
    shape = match.shapes.full(host.inputs[1])
    return None if shape is None or len(shape) != 4 else (shape[1], shape[2])


def _is_positive(graph: Graph, tensor: Tensor) -> bool:
    """Whether a clamp gives a tensor no negative number."""
    maker = graph.maker_of(tensor)
    if maker is None:
        return False
    return any(clamp is not None and clamp[0] >= 0 for clamp in (row_of(maker).clamp, fused_clamp(maker)))


_PADDED = Either(
    (
        op(PAD, _X, Constant("pads", types=INTEGERS), types=()),
        op(PADV2, _X, Constant("pads", types=INTEGERS), Constant(near=0.0)),
    )
)
_BEFORE_VALID = Op(
    (*_LAYERS, MAX_POOL),
    (_PADDED,),
    name="host",
    options={"padding": _PADDING["VALID"]},
    types=(),
    activates=True,
    more=True,
)

# -- FULLY_CONNECTED -----------------------------------------------------------------------------------------


def _keep_dims(match: Match, editor: Editor) -> Making:
    """FULLY_CONNECTED that keeps the leading axes, instead of giving them back behind it."""
    host, shapes = match.nodes["host"], match.shapes
    x, made, weights = shapes[match.tensors["x"]], shapes[match.output], shapes.full(match.tensors["weights"])
    if x is None or made is None or weights is None or len(weights) != 2 or len(x) < 3:
        return None
    # With one dimension unknown the number of elements settles it.
    if x[-1] != weights[1] or made != (*x[:-1], weights[0]) or x.count(None) > 1:
        return None
    editor.set_option(host, "keep_num_dims", True)
    host.outputs = [match.output]
    return [stamped(host, editor)]


def _as_layer(match: Match, editor: Editor) -> Making:
    """FULLY_CONNECTED instead of BATCH_MATMUL with a constant matrix."""
    product, shapes = match.operators[0], match.shapes
    x, weights = match.tensors["x"], match.tensors["weights"]
    given, made, shape = shapes[x], shapes[match.output], shapes.full(weights)
    if given is None or made is None or shape is None or not 2 <= len(shape) <= len(given):
        return None
    if math.prod(shape[:-2]) != 1 or not match.graph.is_constant(weights):
        return None
    turned = bool(product.option("adj_y"))
    inputs, outputs = shape[-2:][::-1] if turned else shape[-2:]
    if given[-1] != inputs or made != (*given[:-1], outputs):
        return None
    buffer = weights.buffer if turned else _turned(match, editor, (inputs, outputs))
    if buffer is None:
        return Refused("other operators read its constant, which would be there twice", "shared")
    matrix = Tensor(f"{weights.name}_matrix", (outputs, inputs), weights.dtype, buffer)
    editor.add_tensor(match.subgraph, matrix)
    keeps = {"keep_num_dims": True} if len(given) > 2 else {}
    layer = editor.builtin(FULLY_CONNECTED, 1, [x, matrix, None], match.output, **keeps)
    return [stamped(layer, editor)]


def _turned(match: Match, editor: Editor, shape: tuple[int, int]) -> Buffer | None:
    """Returns a matrix with rows and columns changed; None where something else reads it as it is."""
    buffer, model = match.tensors["weights"].buffer, editor.model
    if id(buffer) in model.pinned:
        return None
    for tensor in model.holders()[id(buffer)]:
        for use in match.graph.uses_of(tensor):
            if row_of(use.operator) is not BATCH_MATMUL or use.position != 1 or use.operator.option("adj_x"):
                return None
    values = match.arrays["weights"].reshape(shape)
    return editor.constant(np.ascontiguousarray(values.T).tobytes())


# -- Means ---------------------------------------------------------------------------------------------------


def _mean(match: Match, editor: Editor) -> Making:
    """MEAN instead of SUM, divided by how many there are."""
    shape, count = match.shapes[match.tensors["x"]], match.arrays["count"]
    axes = match.arrays["axes"].reshape(-1).tolist()
    if shape is None or count.size != 1 or count.ndim > len(match.shapes[match.output] or ()):
        return None
    over = {axis % max(len(shape), 1) for axis in axes if -len(shape) <= axis < len(shape)}
    dims = [shape[axis] for axis in over]
    if len(over) != len(axes) or None in dims:
        return None
    number = float(count.flat[0])
    parts = number if row_of(match.operators[-1]) is DIV else 1 / number if number else math.inf
    elements = math.prod(dim or 0 for dim in dims)
    if abs(parts - elements) > CLOSE * elements:
        return None
    total = match.nodes["sum"]
    made = editor.builtin(MEAN, 1, total.inputs[:2], match.output, keep_dims=bool(total.option("keep_dims")))
    return [stamped(made, editor)]


_SUMMED = op(SUM, _X, Constant("axes", types=INTEGERS), name="sum")

LAYER_FUSIONS: tuple[Fusion, ...] = (
    Fusion(
        kind="mean",
        patterns=(op(DIV, _SUMMED, Constant("count")), op(MUL, _SUMMED, Constant("count"))),
        make=_mean,
    ),
    Fusion(
        kind="matmul",
        patterns=(op(BATCH_MATMUL, _X, Constant("weights"), options={"adj_x": False}),),
        make=_as_layer,
    ),
    Fusion(
        kind="keep-dims",
        patterns=(
            op(
                RESHAPE,
                op(
                    FULLY_CONNECTED,
                    _X,
                    _WEIGHTS,
                    name="host",
                    options={"keep_num_dims": False, "weights_format": 0},
                    activates=True,
                    more=True,
                ),
                more=True,
            ),
        ),
        make=_keep_dims,
        exact=True,
    ),
    Fusion(kind="padding", patterns=(_BEFORE_VALID,), make=_same_padding, exact=True, known_to_xnnpack=True),
)
"""In the order of preference."""
