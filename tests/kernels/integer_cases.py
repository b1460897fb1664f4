"""One float operator a model, of every row that has an integer kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.nets import Net
from tfl_rewrite.calibration.ranges import Memories
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.table import ROWS
from tfl_rewrite.model.ir import Model, Tensor

Array = np.ndarray[Any, Any]
SHAPE = (2, 4, 4, 8)
COMPARISONS = ("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL")
POSITIVE = ("SQRT", "LOG", "RSQRT", "REDUCE_PROD")

Make = Callable[[str, Net, Tensor], Tensor]


def ints(net: Net, *values: object) -> Tensor:
    return net.constant(f"ints{len(net.graph.tensors)}", np.array(values, np.int32))


def floats(net: Net, *shape: int) -> Tensor:
    """A constant on a range of its own."""
    values = net.random.uniform(-0.5, 0.7, shape).astype(np.float32)
    return net.constant(f"floats{len(net.graph.tensors)}", values)


def unary(**options: object) -> Make:
    return lambda kind, net, source: net.add(kind, [source], "out", SHAPE, **options)


def binary(kind: str, net: Net, source: Tensor) -> Tensor:
    """Two activations, each on a grid of its own; the second is never near 0."""
    return net.add(kind, [source, net.input("second", SHAPE)], "out", SHAPE)


def by_constant(kind: str, net: Net, source: Tensor) -> Tensor:
    values = net.random.uniform(0.4, 1.3, SHAPE).astype(np.float32)
    return net.add(kind, [source, net.constant("other", values)], "out", SHAPE)


def weighted(kind: str, net: Net, source: Tensor) -> Tensor:
    pair = {"stride_w": 1, "stride_h": 1}
    product = ROWS[kind].product
    if product is ProductKind.DENSE:
        return net.dense(source, net.weights("w", (6, 8)), "out", floats(net, 6))
    if product is ProductKind.DEPTHWISE:
        weight = net.weights("w", (1, 3, 3, 8))
        return net.add(kind, [source, weight, floats(net, 8)], "out", SHAPE, depth_multiplier=1, **pair)
    if product is ProductKind.TRANSPOSED:
        inputs = [ints(net, 2, 4, 4, 6), net.weights("w", (6, 3, 3, 8)), source, floats(net, 6)]
        return net.add(kind, inputs, "out", (2, 4, 4, 6), **pair)
    return net.add(
        kind, [source, net.weights("w", (6, 3, 3, 8)), floats(net, 6)], "out", (2, 4, 4, 6), **pair
    )


def matmul(kind: str, net: Net, source: Tensor) -> Tensor:
    return net.add(kind, [source, net.input("second", SHAPE)], "out", (2, 4, 4, 4), adj_y=True)


def sloped(kind: str, net: Net, source: Tensor) -> Tensor:
    return net.add(kind, [source, floats(net, 1, 1, 8)], "out", SHAPE)


def reduced(kind: str, net: Net, source: Tensor) -> Tensor:
    return net.add(kind, [source, ints(net, 1, 2)], "out", (2, 8))


def pooled(kind: str, net: Net, source: Tensor) -> Tensor:
    window = {"stride_w": 2, "stride_h": 2, "filter_width": 2, "filter_height": 2, "padding": 1}
    return net.add(kind, [source], "out", (2, 2, 2, 8), **window)


def reshaped(*shape: int, given: bool) -> Make:
    def make(kind: str, net: Net, source: Tensor) -> Tensor:
        return net.add(kind, [source, *([ints(net, *shape)] if given else [])], "out", shape)

    return make


def moved(shape: tuple[int, ...], *operands: object, version: int = 1, **options: object) -> Make:
    """What copies numbers: other operands are constants of int32."""

    def make(kind: str, net: Net, source: Tensor) -> Tensor:
        inputs = [source, *(ints(net, *np.array(item)) for item in operands)]
        return net.add(kind, inputs, "out", shape, version=version, **options)

    return make


def joined(kind: str, net: Net, source: Tensor) -> Tensor:
    shape = (2, 4, 4, 16) if kind == "CONCATENATION" else (2, *SHAPE)
    count = {"values_count": 2} if kind == "PACK" else {}
    axis = 3 if kind == "CONCATENATION" else 0
    return net.add(kind, [source, floats(net, *SHAPE)], "out", shape, axis=axis, **count)


def parted(kind: str, net: Net, source: Tensor) -> Tensor:
    shape = (2, 4, 4, 4) if kind != "UNPACK" else (4, 4, 8)
    axis = net.constant("axis", np.array(3, np.int32))
    two: dict[str, object] = {"num_splits": 2}
    options = {"UNPACK": {"num": 2, "axis": 0}}.get(kind, two)
    inputs = {
        "SPLIT": [axis, source],
        "SPLIT_V": [source, ints(net, 4, 4), axis],
        "UNPACK": [source],
    }[kind]
    made = net.add(kind, inputs, "out", shape, **options)
    second = net.tensor("rest", shape)
    net.graph.operators[-1].outputs.append(second)
    net.output(second)
    return made


def selected(kind: str, net: Net, source: Tensor) -> Tensor:
    chosen = net.constant("chosen", net.random.uniform(0, 1, SHAPE) > 0.5)
    return net.add(kind, [chosen, source, net.input("second", SHAPE)], "out", SHAPE)


def compared(kind: str, net: Net, source: Tensor) -> Tensor:
    return net.add(kind, [source, net.input("second", SHAPE)], "out", SHAPE, dtype=np.bool_)


def highest(kind: str, net: Net, source: Tensor) -> Tensor:
    axis = net.constant("axis", np.array(3, np.int32))
    return net.add(kind, [source, axis], "out", (2, 4, 4), dtype=np.int32, output_type=2)


def padded_with(kind: str, net: Net, source: Tensor) -> Tensor:
    value = net.constant("value", np.array([0.25], np.float32))
    return net.add(kind, [source, ints(net, (0, 0), (1, 1), (1, 1), (0, 0)), value], "out", (2, 6, 6, 8))


PADS = ((0, 0), (1, 1), (1, 1), (0, 0))
MADE: dict[str, Make] = {
    **dict.fromkeys(
        ("ABS", "ELU", "EXP", "GELU", "HARD_SWISH", "L2_NORMALIZATION", "LOG", "LOGISTIC", "LOG_SOFTMAX"),
        unary(),
    ),
    **dict.fromkeys(
        ("NEG", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "RSQRT", "SQRT", "TANH"), unary()
    ),
    "SOFTMAX": unary(beta=1.0),
    "LEAKY_RELU": unary(alpha=0.2),
    **dict.fromkeys(("ADD", "SUB", "MUL", "DIV", "SQUARED_DIFFERENCE", "MAXIMUM", "MINIMUM"), binary),
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"), weighted),
    "BATCH_MATMUL": matmul,
    "PRELU": sloped,
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), reduced),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), pooled),
    "RESHAPE": reshaped(2, 128, given=True),
    "SQUEEZE": reshaped(*SHAPE, given=False),
    "EXPAND_DIMS": moved((2, 1, 4, 4, 8), (1,)),
    "PAD": moved((2, 6, 6, 8), PADS),
    "PADV2": padded_with,
    "MIRROR_PAD": moved((2, 6, 6, 8), PADS, mode=1),
    "TRANSPOSE": moved((2, 8, 4, 4), (0, 3, 1, 2)),
    "SLICE": moved((2, 2, 2, 8), (0, 1, 1, 0), (2, 2, 2, 8)),
    "STRIDED_SLICE": moved((2, 2, 2, 8), (0, 0, 0, 0), (2, 4, 4, 8), (1, 2, 2, 1)),
    "GATHER": moved((2, 4, 4, 8), (1, 0)),
    "GATHER_ND": moved((2, 4, 4, 8), ((1,), (0,))),
    "TILE": moved((4, 4, 4, 8), (2, 1, 1, 1)),
    "BROADCAST_TO": moved((2, 2, 4, 4, 8), (2, 2, 4, 4, 8), version=2),
    "REVERSE_V2": moved(SHAPE, (1,)),
    "RESIZE_BILINEAR": moved((2, 8, 8, 8), (8, 8)),
    "RESIZE_NEAREST_NEIGHBOR": moved((2, 8, 8, 8), (8, 8)),
    "SPACE_TO_DEPTH": moved((2, 2, 2, 32), block_size=2),
    "DEPTH_TO_SPACE": moved((2, 8, 8, 2), block_size=2),
    "SPACE_TO_BATCH_ND": moved((8, 2, 2, 8), (2, 2), ((0, 0), (0, 0))),
    "BATCH_TO_SPACE_ND": moved((1, 4, 8, 8), (1, 2), ((0, 0), (0, 0))),
    **dict.fromkeys(("CONCATENATION", "PACK"), joined),
    **dict.fromkeys(("SPLIT", "SPLIT_V", "UNPACK"), parted),
    **dict.fromkeys(("SELECT", "SELECT_V2"), selected),
    **dict.fromkeys(COMPARISONS, compared),
    "ARG_MAX": highest,
}


def fused(kind: str, net: Net, source: Tensor) -> Tensor:
    return net.add(kind, [source, floats(net, *SHAPE)], "out", SHAPE, fused_activation_function=1)


def without_bias(kind: str, net: Net, source: Tensor) -> Tensor:
    made = weighted(kind, net, source)
    net.graph.operators[-1].inputs.pop()
    return made


VARIANTS: dict[str, tuple[str, Make]] = {
    **{f"{kind} by a constant": (kind, by_constant) for kind in ("ADD", "DIV", "MUL", "SUB", "MAXIMUM")},
    **{f"{kind} fused with RELU": (kind, fused) for kind in ("ADD", "MUL", "SUB")},
    **{f"{kind} without a bias": (kind, without_bias) for kind in ("FULLY_CONNECTED", "TRANSPOSE_CONV")},
    "MEAN keeping axes": ("MEAN", moved((2, 1, 1, 8), (1, 2), keep_dims=True)),
    "RESIZE_BILINEAR from half pixels": (
        "RESIZE_BILINEAR",
        moved((2, 8, 8, 8), (8, 8), version=3, half_pixel_centers=True),
    ),
}
"""What else an operator may be: by its label, the operator and what makes it."""


@dataclass(frozen=True)
class Recurrent:
    """An LSTM, by what it has.

    Attributes:
        cells: By how much larger its weights for the cell state are than others.
        lift: What is added to the bias of its projection.
    """

    kind: str = "UNIDIRECTIONAL_SEQUENCE_LSTM"
    inputs: int = 7
    units: int = 8
    outputs: int = 0
    steps: int = 12
    cifg: bool = False
    peephole: bool = False
    normalized: bool = False
    cells: float = 1.0
    lift: float = 0.0
    options: Mapping[str, object] = field(default_factory=dict)

    def build(self) -> tuple[Model, list[Array]]:
        """Returns the model and its input; of LSTM one step."""
        net, given = Net(3), self.outputs or self.units
        batch = 2
        shape = (batch, self.steps, self.inputs)
        if self.kind == "LSTM":
            shape = (batch, self.inputs)
        elif self.options.get("time_major"):
            shape = (self.steps, batch, self.inputs)

        def matrix(
            name: str, *sides: int, present: bool = True, times: float = 1.0, lift: float = 0.0
        ) -> Tensor | None:
            # Biases and coefficients too: all of different sizes, so that no scale fits another one.
            values = net.random.uniform(-1, 1, sides) * (0.4 + 0.1 * len(net.graph.tensors) % 0.7)
            values = values * times + lift
            return net.constant(name, values.astype(np.float32)) if present else None

        gates = ("input", "forget", "cell", "output")
        mine = {gate: not self.cifg or gate != "input" for gate in gates}
        source = net.input("in", shape)
        inputs: list[Tensor | None] = [source]
        for name, width in (("inputs_of", self.inputs), ("outputs_of", given)):
            inputs += [matrix(f"{name}_{gate}", self.units, width, present=mine[gate]) for gate in gates]
        inputs += [
            matrix(f"cell_of_{gate}", self.units, present=self.peephole and mine[gate], times=self.cells)
            for gate in ("input", "forget", "output")
        ]
        inputs += [matrix(f"bias_of_{gate}", self.units, present=mine[gate]) for gate in gates]
        inputs.append(matrix("projection", given, self.units, present=bool(self.outputs)))
        inputs.append(matrix("bias_of_projection", given, present=bool(self.outputs), lift=self.lift))
        inputs += [net.variable("last", (batch, given)), net.variable("cells", (batch, self.units))]
        inputs += [
            matrix(f"norm_of_{gate}", self.units, present=self.normalized and mine[gate]) for gate in gates
        ]
        options = {"fused_activation_function": 4, **self.options}
        net.output(net.add(self.kind, inputs, "out", (*shape[:-1], given), **options))
        values = np.random.default_rng(5).uniform(-2.0, 1.5, shape)
        return net.model, [values.astype(np.float32)]


def filtered(*, bias: bool = True, rank: int = 2, fused: int = 1) -> tuple[Model, list[Array]]:
    """Returns a model of SVDF, which reads one step, and its input."""
    net = Net(3)
    filters, memory, inputs = 12, 5, 7
    source = net.input("in", (2, inputs))
    operands = [source, net.weights("features", (filters, inputs)), net.weights("times", (filters, memory))]
    operands.append(floats(net, filters // rank) if bias else None)
    operands.append(net.variable("state", (2, filters * memory)))
    made = net.add("SVDF", operands, "out", (2, filters // rank), rank=rank, fused_activation_function=fused)
    net.output(made)
    return net.model, [np.random.default_rng(5).uniform(-2.0, 1.5, (2, inputs)).astype(np.float32)]


_SEQUENCE, _STEP = "UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM"
WITH_STATE: dict[str, Callable[[], tuple[Model, list[Array]]]] = {
    _SEQUENCE: Recurrent().build,
    f"{_SEQUENCE} of one step": Recurrent(steps=1).build,
    f"{_SEQUENCE} of 100 steps": Recurrent(steps=100).build,
    f"{_SEQUENCE} time major": Recurrent(options={"time_major": True}).build,
    f"{_SEQUENCE} clipped": Recurrent(options={"cell_clip": 0.5}).build,
    f"{_SEQUENCE} cifg": Recurrent(cifg=True).build,
    f"{_SEQUENCE} peephole": Recurrent(peephole=True).build,
    f"{_SEQUENCE} cifg peephole": Recurrent(cifg=True, peephole=True).build,
    f"{_SEQUENCE} projection": Recurrent(outputs=5).build,
    f"{_SEQUENCE} square projection peephole": Recurrent(outputs=8, peephole=True).build,
    f"{_SEQUENCE} normalized": Recurrent(normalized=True).build,
    f"{_SEQUENCE} normalized cifg": Recurrent(normalized=True, cifg=True).build,
    f"{_SEQUENCE} normalized peephole": Recurrent(normalized=True, peephole=True).build,
    f"{_SEQUENCE} normalized projection": Recurrent(normalized=True, outputs=5).build,
    f"{_SEQUENCE} normalized of 13 units": Recurrent(normalized=True, units=13).build,
    _STEP: Recurrent(_STEP).build,
    f"{_STEP} peephole": Recurrent(_STEP, peephole=True).build,
    f"{_STEP} normalized projection": Recurrent(_STEP, normalized=True, outputs=5).build,
    f"{_STEP} clipped projection": Recurrent(_STEP, outputs=5, lift=0.2, options={"proj_clip": 0.3}).build,
    f"{_STEP} cifg": Recurrent(_STEP, cifg=True).build,
    "SVDF": filtered,
    "SVDF without a bias": lambda: filtered(bias=False),
    "SVDF of rank 1": lambda: filtered(rank=1),
}
"""What keeps a state: a label begins with the operator. Inputs are run twice, one after the other."""

NOT_COMPUTED: dict[str, tuple[Callable[[], tuple[Model, list[Array]]], str]] = {
    f"{_SEQUENCE} projection peephole": (
        Recurrent(outputs=2, peephole=True, cells=30.0).build,
        "takes as many weights of the cell state as it has outputs",
    ),
    f"{_SEQUENCE} with RELU": (
        Recurrent(options={"fused_activation_function": 1}).build,
        "computes another activation function",
    ),
    "SVDF without RELU": (lambda: filtered(fused=0), "computes another activation function"),
}
"""What integer kernels compute wrong or refuse, and what is said of it."""

LABELS = (*MADE, *VARIANTS, *WITH_STATE)
OF_ONES = "REDUCE_PROD of ones"
"""What no integer kernel is used for: there is nothing to reduce."""


def kind_of(label: str) -> str:
    """Returns the operator of a label."""
    return label.split()[0] if label in WITH_STATE else VARIANTS.get(label, (label, None))[0]


def built(label: str, sizes: tuple[float, float] = (1.0, 1.0)) -> tuple[Model, list[Array]]:
    """Returns a float model of one operator, and its inputs, multiplied by sizes.

    A second input is far from 0, and a divisor above it; of a comparison it is the first one, some of it in
    another order.
    """
    if label in WITH_STATE:
        return WITH_STATE[label]()
    if label in NOT_COMPUTED:
        return NOT_COMPUTED[label][0]()
    net = Net(3)
    if label == OF_ONES:
        source = net.input("in", (*SHAPE, 1))
        net.output(net.add("REDUCE_PROD", [source, ints(net, 4)], "out", SHAPE))
        return net.model, [np.linspace(-2, 1.5, 256, dtype=np.float32).reshape(*SHAPE, 1)]
    kind, make = VARIANTS.get(label) or (label, MADE[label])
    source = net.input("in", SHAPE)
    net.output(make(kind, net, source))
    random = np.random.default_rng(5)
    low, high = (0.5, 2.0) if kind in POSITIVE else (-2.0, 1.5)
    first = random.uniform(low, high, SHAPE).astype(np.float32)
    if len(net.graph.inputs) == 1:
        return net.model, [first * np.float32(sizes[0])]
    signs = [1] if kind == "DIV" else [-1, 1]
    second = (random.uniform(1.0, 3.0, SHAPE) * random.choice(signs, SHAPE)).astype(np.float32)
    if kind in COMPARISONS:
        equal = random.uniform(0, 1, SHAPE) > 0.5
        equal.flat[[first.argmin(), first.argmax()]] = True
        second = np.where(equal, first, first[::-1])
    return net.model, [first * np.float32(sizes[0]), second * np.float32(sizes[1])]


def ranges_of(
    model: Model, inputs: list[Array], outputs: Mapping[str, Array]
) -> dict[int, tuple[float, float]]:
    graph = model.subgraphs[0]
    held = {id(tensor): values for tensor, values in zip(graph.inputs, inputs, strict=True)}
    held |= {id(tensor): outputs[f"turn0_{at}"] for at, tensor in enumerate(graph.outputs)}
    held |= {id(tensor): tensor.values for tensor in graph.tensors if tensor.is_constant}
    states, memories = dict(enumerate(graph.tensors)), Memories(graph)
    for turn in range(2):
        for tensor in graph.inputs:
            at = next(at for at, item in states.items() if item is tensor)
            for place, values in memories.run(at, held[id(tensor)], first=not turn):
                before = held.get(id(states[place]), np.zeros(0))
                held[id(states[place])] = np.append(before, values)
    if any(tensor.is_variable for tensor in graph.tensors):
        # What was kept in the first turn shows in the second.
        for at, tensor in enumerate(graph.outputs):
            held[id(tensor)] = np.append(outputs[f"turn0_{at}"], outputs[f"turn1_{at}"])
    floats = [
        (id(item), held[id(item)])
        for item in graph.tensors
        if item.dtype_name == "FLOAT32" and id(item) in held
    ]
    return {key: (float(values.min()), float(values.max())) for key, values in floats}
