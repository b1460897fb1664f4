"""Graphs of all operators that have an integer kernel, grown by choices: any sizes and any sharing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from tests.nets import Array, Net
from tfl_rewrite.integers.rewrites import negations_to_products
from tfl_rewrite.kernels.table import ROWS
from tfl_rewrite.model.ir import Operator, Tensor

Item = TypeVar("Item")
SIZES = (*[1.0] * 12, 0.03, 30.0, 1e-3, 1e4, 1e-8, 1e8, 1e-30, 1e30)
"""Of numbers: mostly such as models hold, and now and then such as break kernels."""
FUSED = (0, 0, 0, 1, 2, 3)
"""No activation function, RELU, RELU_N1_TO_1 and RELU6."""


class Choices(Protocol):
    """Who decides."""

    def number(self, least: int, most: int) -> int:
        """Returns one of the numbers between two, both of which may be chosen."""

    def pick(self, items: Sequence[Item]) -> Item:
        """Returns one of several."""


class Seeded:
    """Choices that a seed makes."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def number(self, least: int, most: int) -> int:
        return int(self._random.integers(least, most + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.number(0, len(items) - 1)]


class Grown:
    """A model under growth.

    Attributes:
        net: The model.
        pool: Float tensors that may be read.
        conditions: Tensors of truth values, likewise.
        inputs: What the inputs hold, in their order.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.net = Net()
        self.pool: list[Tensor] = []
        self.conditions: list[Tensor] = []
        self.inputs: list[Array] = []
        self._constants: list[Tensor] = []

    def chance(self, one_of: int) -> bool:
        return self.choices.number(1, one_of) == 1

    def name(self) -> str:
        return f"t{len(self.net.graph.tensors)}"

    def values(self, shape: Sequence[int]) -> Array:
        """Numbers of any size: on both sides of 0, on one, all 0, all equal, or one of them far off."""
        random = np.random.default_rng(self.choices.number(0, 2**16))
        kind = self.choices.pick(("both", "both", "both", "above", "below", "zero", "equal", "spike"))
        made = random.standard_normal(tuple(shape))
        if kind in ("above", "below"):
            made = np.abs(made) * (1 if kind == "above" else -1)
        elif kind in ("zero", "equal"):
            made = np.full(tuple(shape), 0.0 if kind == "zero" else 0.7)
        elif kind == "spike" and made.size:
            made.flat[0] = 1e3
        return (made * self.choices.pick(SIZES)).astype(np.float32)

    def input(self, shape: Sequence[int]) -> Tensor:
        made = self.net.input(self.name(), shape)
        self.inputs.append(self.values(shape))
        self.pool.append(made)
        return made

    def constant(self, shape: Sequence[int]) -> Tensor:
        """A new one, or one that somebody reads already."""
        known = [item for item in self._constants if item.shape == tuple(shape)]
        if known and self.chance(3):
            return self.choices.pick(known)
        made = self.net.constant(self.name(), self.values(shape))
        self._constants.append(made)
        return made

    def ints(self, *values: object) -> Tensor:
        return self.net.constant(self.name(), np.array(values, np.int32))

    def integer(self, value: int) -> Tensor:
        return self.net.constant(self.name(), np.array(value, np.int32))

    def other(self, shape: tuple[int, ...]) -> Tensor:
        """A second operand: something that was computed, or a constant that may be broadcast."""
        like = [item for item in self.pool if item.shape == shape]
        if like and not self.chance(3):
            return self.choices.pick(like)
        return self.constant(self.choices.pick((shape, (1, *[1] * (len(shape) - 2), shape[-1]), ())))

    def add(self, kind: str, inputs: Sequence[Tensor | None], shape: Sequence[int], **options: Any) -> Tensor:
        return self.net.add(kind, inputs, self.name(), shape, **options)


Made = Sequence[Tensor]
Make = Callable[[Grown, str, Tensor, tuple[int, ...]], Made]
"""Given who grows, the operator, what it reads and the shape of that, four axes; returns what is made."""


def unary(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    options: dict[str, object] = {
        "SOFTMAX": {"beta": grown.choices.pick((1.0, 0.1, 8.0))},
        "LEAKY_RELU": {"alpha": grown.choices.pick((0.2, 0.01, -0.5, 3.0))},
    }.get(kind, {})
    return [grown.add(kind, [source], shape, **options)]


def binary(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    pair = [source, grown.other(shape)]
    if grown.chance(4):
        pair.reverse()
    fused = {"fused_activation_function": grown.choices.pick(FUSED)} if kind in ("ADD", "SUB", "MUL") else {}
    return [grown.add(kind, pair, shape, **fused)]


def compared(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    made = grown.add(kind, [source, grown.other(shape)], shape, dtype=np.bool_)
    grown.conditions.append(made)
    return [made]


def selected(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    like = [item for item in grown.conditions if item.shape == shape]
    if like:
        chosen = grown.choices.pick(like)
    else:
        chosen = grown.net.constant(grown.name(), np.arange(int(np.prod(shape))).reshape(shape) % 3 == 0)
    others = [item for item in grown.pool if item.shape == shape]
    second = grown.choices.pick(others) if grown.chance(2) else grown.constant(shape)
    return [grown.add(kind, [chosen, source, second], shape)]


def weighted(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    batch, height, width, channels = shape
    outputs = grown.choices.number(1, 5)
    pair = {"stride_w": 1, "stride_h": 1, "fused_activation_function": grown.choices.pick(FUSED)}
    side = grown.choices.pick((1, 3))
    if kind == "FULLY_CONNECTED":
        bias = None if grown.chance(2) else grown.constant((outputs,))
        fused = {"fused_activation_function": pair["fused_activation_function"]}
        inputs = [source, grown.constant((outputs, channels)), bias]
        if grown.chance(2):
            return [grown.add(kind, inputs, (batch * height * width, outputs), **fused)]
        return [grown.add(kind, inputs, (*shape[:3], outputs), keep_num_dims=True, version=5, **fused)]
    if kind == "DEPTHWISE_CONV_2D":
        inputs = [source, grown.constant((1, side, side, channels)), grown.constant((channels,))]
        return [grown.add(kind, inputs, shape, depth_multiplier=1, **pair)]
    weight, made = grown.constant((outputs, side, side, channels)), (*shape[:3], outputs)
    if kind == "TRANSPOSE_CONV":
        bias = [] if grown.chance(2) else [grown.constant((outputs,))]
        pair.pop("fused_activation_function")
        inputs = [grown.ints(*made), weight, source, *bias]
        return [grown.add(kind, inputs, made, version=3 if bias else 1, **pair)]
    return [grown.add(kind, [source, weight, grown.constant((outputs,))], made, **pair)]


def matmul(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    like = [item for item in grown.pool if item.shape == shape]
    second = grown.choices.pick(like) if grown.chance(2) else grown.constant(shape)
    return [grown.add(kind, [source, second], (*shape[:3], shape[2]), adj_y=True)]


def sloped(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    slopes = grown.choices.pick(((1, 1, shape[-1]), (1, 1, 1)))
    return [grown.add(kind, [source, grown.constant(slopes)], shape)]


def reduced(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    axes = grown.choices.pick(((1, 2), (3,), (1,)))
    kept = tuple(1 if at in axes else length for at, length in enumerate(shape))
    return [grown.add(kind, [source, grown.ints(*axes)], kept, keep_dims=True)]


def pooled(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    batch, height, width, channels = shape
    step = grown.choices.pick((1, 2))
    window = {"stride_w": step, "stride_h": step, "filter_width": 2, "filter_height": 2}
    made = (batch, -(-height // step), -(-width // step), channels)
    return [grown.add(kind, [source], made, fused_activation_function=grown.choices.pick(FUSED), **window)]


def reshaped(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    if kind == "EXPAND_DIMS":
        return [grown.add(kind, [source, grown.integer(0)], (1, *shape))]
    if kind == "SQUEEZE":
        made = tuple(length for length in shape if length != 1)
        return [grown.add(kind, [source], made)]
    batch, height, width, channels = shape
    made = (batch, width, height, channels)
    return [grown.add(kind, [source, grown.ints(*made)], made)]


def padded(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    wide = 0 if kind == "MIRROR_PAD" and min(shape[1:3]) < 2 else 1
    made = (shape[0], shape[1] + 2 * wide, shape[2], shape[3])
    inputs = [source, grown.ints((0, 0), (wide, wide), (0, 0), (0, 0))]
    if kind == "PADV2":
        inputs.append(grown.constant((1,)))
    return [grown.add(kind, inputs, made, **({"mode": 1} if kind == "MIRROR_PAD" else {}))]


def moved(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    batch, height, width, channels = shape
    ones = (1, 1, 1, 1)
    parts: dict[str, tuple[Sequence[Tensor], tuple[int, ...], dict[str, object]]] = {
        "TRANSPOSE": ([grown.ints(0, 3, 1, 2)], (batch, channels, height, width), {}),
        "SLICE": (
            [grown.ints(0, 0, 0, 0), grown.ints(batch, 1, width, channels)],
            (batch, 1, *shape[2:]),
            {},
        ),
        "STRIDED_SLICE": (
            [grown.ints(0, 0, 0, 0), grown.ints(*shape), grown.ints(1, 2, 1, 1)],
            (batch, -(-height // 2), width, channels),
            {},
        ),
        "GATHER": ([grown.ints(0, 0)], (2, *shape[1:]), {}),
        "GATHER_ND": ([grown.ints((0,), (0,))], (2, *shape[1:]), {}),
        "TILE": ([grown.ints(1, 1, 1, 2)], (*shape[:3], 2 * channels), {}),
        "BROADCAST_TO": ([grown.ints(2, *shape)], (2, *shape), {"version": 2}),
        "REVERSE_V2": ([grown.ints(1)], shape, {}),
        "SPACE_TO_BATCH_ND": (
            [grown.ints(1, 1), grown.ints((0, 1), (0, 0))],
            (batch, height + 1, width, channels),
            {},
        ),
        "BATCH_TO_SPACE_ND": ([grown.ints(1, 1), grown.ints((0, 0), (0, 0))], shape, {}),
        "RESIZE_BILINEAR": ([grown.ints(2 * height, 3)], (batch, 2 * height, 3, channels), {}),
        "RESIZE_NEAREST_NEIGHBOR": ([grown.ints(2 * height, 3)], (batch, 2 * height, 3, channels), {}),
    }
    if kind not in parts:
        return blocked(grown, kind, source, shape)
    operands, made, options = parts[kind]
    assert len(ones) == len(shape)
    return [grown.add(kind, [source, *operands], made, **options)]


def blocked(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    batch, height, width, channels = shape
    if kind == "SPACE_TO_DEPTH":
        fits, made = height % 2 == width % 2 == 0, (batch, height // 2, width // 2, 4 * channels)
    else:
        fits, made = channels % 4 == 0, (batch, 2 * height, 2 * width, channels // 4)
    return [grown.add(kind, [source], made, block_size=2)] if fits else []


def joined(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    like = [item for item in grown.pool if item.shape == shape]
    parts = [source, *(grown.choices.pick(like) for _ in range(grown.choices.number(1, 2)))]
    if grown.chance(3):
        parts.append(grown.constant(shape))
    count = len(parts)
    if kind == "PACK":
        return [grown.add(kind, parts, (count, *shape), axis=0, values_count=count)]
    return [grown.add(kind, parts, (*shape[:3], count * shape[3]), axis=3)]


def parted(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    if kind == "UNPACK":
        made, count, options = shape[1:], shape[0], {"num": shape[0], "axis": 0}
    else:
        if shape[3] % 2:
            return []
        made, count, options = (*shape[:3], shape[3] // 2), 2, {"num_splits": 2}
    axis = grown.integer(3)
    inputs = {"SPLIT": [axis, source], "UNPACK": [source]}.get(
        kind, [source, grown.ints(*[shape[3] // 2] * 2), axis]
    )
    first = grown.add(kind, inputs, made, **options)
    rest = [grown.net.tensor(grown.name(), made) for _ in range(count - 1)]
    grown.net.graph.operators[-1].outputs += rest
    return [first, *rest]


def highest(grown: Grown, kind: str, source: Tensor, shape: tuple[int, ...]) -> Made:
    return [grown.add(kind, [source, grown.integer(3)], shape[:3], dtype=np.int32, output_type=2)]


_UNARY = (
    *("ABS", "ELU", "EXP", "GELU", "HARD_SWISH", "L2_NORMALIZATION", "LEAKY_RELU", "LOG", "LOGISTIC"),
    *(
        "LOG_SOFTMAX",
        "NEG",
        "RELU",
        "RELU6",
        "RELU_0_TO_1",
        "RELU_N1_TO_1",
        "RSQRT",
        "SOFTMAX",
        "SQRT",
        "TANH",
    ),
)
_COMPARISONS = ("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL")
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
MAKERS: dict[str, Make] = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(("ADD", "SUB", "MUL", "DIV", "SQUARED_DIFFERENCE", "MAXIMUM", "MINIMUM"), binary),
    **dict.fromkeys(_COMPARISONS, compared),
    **dict.fromkeys(("SELECT", "SELECT_V2"), selected),
    **dict.fromkeys(_WEIGHTED, weighted),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), reduced),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), pooled),
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), reshaped),
    **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD"), padded),
    **dict.fromkeys(("CONCATENATION", "PACK"), joined),
    **dict.fromkeys(("SPLIT", "SPLIT_V", "UNPACK"), parted),
    "BATCH_MATMUL": matmul,
    "PRELU": sloped,
    "ARG_MAX": highest,
    **dict.fromkeys(
        (
            *("TRANSPOSE", "SLICE", "STRIDED_SLICE", "GATHER", "GATHER_ND", "TILE", "BROADCAST_TO"),
            *("REVERSE_V2", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "RESIZE_BILINEAR"),
            *("RESIZE_NEAREST_NEIGHBOR", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE"),
        ),
        moved,
    ),
    **dict.fromkeys(("FLOOR", "CEIL"), unary),
}
"""By operator; the last two have no integer kernel. What keeps a state is not among them."""

COMMON = ("ADD", "ADD", "CONCATENATION", "CONV_2D", "FULLY_CONNECTED", "MUL", "RELU", "SOFTMAX", "TANH")
LARGEST = 512
"""Elements of what is read; what is larger is left alone, so that graphs stay small."""

assert set(MAKERS) >= {
    name for name, row in ROWS.items() if row.integer is not None and row.integer.memory is None
}


def grow(choices: Choices, operators: int) -> Grown:
    """Grows a model of some operators; what nobody reads is an output, and so is a part of what is read."""
    grown = Grown(choices)
    for _ in range(choices.number(1, 3)):
        grown.input(choices.pick(((1, 3, 4, 4), (2, 2, 2, 4))))
    kinds = sorted(MAKERS)
    for _ in range(operators):
        fitting = [item for item in grown.pool if len(item.shape or ()) == 4 and item.elements <= LARGEST]
        # What was made last first: chains grow deep.
        source = fitting[-1] if grown.chance(2) else choices.pick(fitting)
        kind = choices.pick(COMMON) if grown.chance(3) else choices.pick(kinds)
        made = MAKERS[kind](grown, kind, source, source.shape or ())
        grown.pool += [item for item in made if item.dtype_name == "FLOAT32"]
    negations_to_products(grown.net.model, lambda _: grown.chance(2))
    read = {id(item) for operator in grown.net.graph.operators for item in operator.inputs}
    for operator in grown.net.graph.operators:
        for item in operator.outputs:
            if item is not None and (id(item) not in read or grown.chance(6)):
                grown.net.output(item)
    if not grown.net.graph.outputs:
        grown.net.output(grown.add("ABS", [grown.pool[0]], grown.pool[0].shape or ()))
    return grown


def widths(choices: Choices, operators: Sequence[Operator]) -> list[int | None]:
    """Bits for each operator: all the same, mixed, and some of them left out."""
    kinds = choices.pick(((8,), (8,), (16,), (16,), (8, 16), (8, 8, None), (16, 16, None), (8, 16, None)))
    return [choices.pick(kinds) for _ in operators]
