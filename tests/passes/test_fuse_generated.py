"""Graphs that hypothesis makes of parts that fuse, and of readers that forbid it, give what they gave."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tfl_rewrite import save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.passes.fuse import Fuse

from ..nets import Array, Net

SHAPE = (1, 5, 4, 3)
CLOSE = 1e-4
"""A softmax behind sums makes more of what rounding leaves."""


class Built(Net):
    """Adds parts over one shape."""

    def named(self) -> str:
        return f"t{len(self.graph.tensors)}"

    def over(self, kind: str, *operands: Tensor | float | Array, **options: object) -> Tensor:
        inputs = [
            item if isinstance(item, Tensor) else self.constant(self.named(), np.asarray(item, np.float32))
            for item in operands
        ]
        return self.add(kind, inputs, self.named(), SHAPE, **options)

    def filters(self, *shape: int) -> Tensor:
        values = self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return self.constant(self.named(), values.astype(np.float32))

    def numbers(self, *values: int) -> Tensor:
        return self.constant(self.named(), np.int32(values))


Part = Callable[[Built, Tensor, Tensor, int], Tensor]


def clamp(net: Built, x: Tensor, _other: Tensor, number: int) -> Tensor:
    return net.over(("RELU", "RELU6", "RELU_N1_TO_1")[number], x)


def bound(net: Built, x: Tensor, _other: Tensor, number: int) -> Tensor:
    low, high = ((0.0, 6.0), (-1.0, 1.0), (0.0, 2.0))[number]
    return net.over("MINIMUM", net.over("MAXIMUM", x, low), high)


def combined(net: Built, x: Tensor, other: Tensor, number: int) -> Tensor:
    return net.over(("ADD", "SUB", "ADD")[number], x, other, fused_activation_function=number)


def sloped(net: Built, x: Tensor, other: Tensor, number: int) -> Tensor:
    slopes = (np.float32(0.25), np.float32([0.5, -1, 0.1]), np.full((5, 1, 3), 0.5))[number]
    # Of two tensors it is no PRELU.
    of = other if number == 1 else x
    below = net.over("MUL", slopes, net.over("RELU", net.over("NEG", of)))
    return net.over("SUB", net.over("RELU", x), below)


def gelu(net: Built, x: Tensor, _other: Tensor, number: int) -> Tensor:
    cube = net.over("MUL", net.over("MUL", x, x), x) if number else net.over("POW", x, 3.0)
    inner = net.over("MUL", net.over("ADD", x, net.over("MUL", cube, 0.044715)), np.sqrt(2 / np.pi))
    step = net.over("ADD", net.over("TANH", inner), 1.0)
    return net.over("MUL", x, net.over("MUL", step, 0.5 if number < 2 else 0.25))


def softmax(net: Built, x: Tensor, _other: Tensor, number: int) -> Tensor:
    axis = (3, -1, 2)[number]
    less = (1, 5, 1, 3) if axis == 2 else (1, 5, 4, 1)
    top = net.add("REDUCE_MAX", [x, net.numbers(axis)], net.named(), less, keep_dims=True)
    power = net.over("EXP", net.over("SUB", x, top))
    total = net.add("SUM", [power, net.numbers(axis)], net.named(), less, keep_dims=True)
    return net.over("DIV", power, total)


def padded(net: Built, x: Tensor, _other: Tensor, number: int) -> Tensor:
    before, after = ((1, 1), (2, 0), (1, 1))[number]
    sides = net.constant(net.named(), np.int32([[0, 0], [before, after], [before, after], [0, 0]]))
    wide = net.add("PAD", [x, sides], net.named(), (1, 7, 6, 3))
    bias = net.constant(net.named(), np.float32([0.5, 0, -0.5]))
    options = {"stride_h": 1, "stride_w": 1, "dilation_h_factor": 1, "dilation_w_factor": 1, "padding": 1}
    if number == 2:
        return net.over(
            "DEPTHWISE_CONV_2D", wide, net.filters(1, 3, 3, 3), bias, depth_multiplier=1, **options
        )
    return net.over("CONV_2D", wide, net.filters(3, 3, 3, 3), bias, **options)


def product(net: Built, x: Tensor, _other: Tensor, number: int) -> Tensor:
    return net.over("BATCH_MATMUL", x, net.filters(*((), (1,), (5,))[number], 3, 3), adj_y=number == 1)


def layer(net: Built, x: Tensor, _other: Tensor, number: int) -> Tensor:
    flat = net.add("FULLY_CONNECTED", [x, net.filters(3, 3), None], net.named(), (20, 3), version=6)
    if number == 2:
        flat = net.add("RELU6", [flat], net.named(), (20, 3))
    return net.add("RESHAPE", [flat, net.numbers(1, 5, (4, -1, 4)[number], 3)], net.named(), SHAPE)


def centred(net: Built, x: Tensor, _other: Tensor, number: int) -> Tensor:
    less = (1, 1, 1, 3)
    total = net.add("SUM", [x, net.numbers(1, 2)], net.named(), less, keep_dims=True)
    count = net.constant(net.named(), np.float32((20, 21, 1 / 20)[number]))
    mean = net.add(("DIV", "DIV", "MUL")[number], [total, count], net.named(), less)
    return net.over("SUB", x, mean)


PARTS: tuple[Part, ...] = (
    clamp,
    bound,
    combined,
    sloped,
    gelu,
    softmax,
    padded,
    product,
    layer,
    centred,
)


@st.composite
def nets(draw: DrawFn) -> Net:
    """Parts over parts; what some outputs show, and what several parts read, is nobody's inside."""
    net = Built(draw(st.integers(0, 3)))
    values = [net.input("x", SHAPE)]
    for _ in range(draw(st.integers(1, 6))):
        part = draw(st.sampled_from(PARTS))
        # Mostly the last value, so that parts lie behind one another.
        x = draw(st.sampled_from([*values, values[-1], values[-1]]))
        values.append(part(net, x, draw(st.sampled_from(values)), draw(st.integers(0, 2))))
    net.output(values[-1])
    inner = [tensor for tensor in net.graph.tensors if not tensor.is_constant and tensor is not values[0]]
    for tensor in draw(st.lists(st.sampled_from(inner), max_size=2, unique_by=id)):
        if tensor is not values[-1]:
            net.output(tensor)
    if draw(st.booleans()):
        net.sign("serve")
    return net


def outputs(path: Path) -> list[Array]:
    """What a file gives on the three resolvers."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    found: list[Array] = []
    kinds = OpResolverType.AUTO, OpResolverType.BUILTIN_REF, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    for kind in kinds:
        interpreter = Interpreter(str(path), experimental_op_resolver_type=kind, num_threads=1)
        interpreter.allocate_tensors()
        (row,) = interpreter.get_input_details()
        values = np.random.default_rng(5).uniform(-3, 3, row["shape"]).astype(np.float32)
        interpreter.set_tensor(row["index"], values)
        interpreter.invoke()
        found += [interpreter.get_tensor(row["index"]) for row in interpreter.get_output_details()]
    return found


def shown(model: Model) -> list[tuple[str, object]]:
    return [(item.name, item.shape) for item in model.subgraphs[0].outputs]


@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(nets())
def test_what_is_fused_gives_the_same(net: Net) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, model = Path(folder, "model.tflite"), net.model
        save(model, path)
        before, names = outputs(path), shown(model)
        (result,) = run_passes(model, [Fuse()])
        assert not broken(model) and shown(model) == names
        kept = [tensor for item in model.subgraphs for tensor in item.tensors]
        read = {id(tensor) for _, item in model.operators() for tensor in (*item.inputs, *item.outputs)}
        assert all(id(tensor) in read for tensor in kept)
        save(model, path, force=True)
        for old, new in zip(before, outputs(path), strict=True):
            # What is a difference of large numbers may be all rounding.
            least = 0.0 if result.exact else CLOSE * max(1.0, float(np.abs(old).max()))
            assert old.shape == new.shape and float(np.abs(old - new).max()) <= least
        assert not run_passes(model, [Fuse()])[0].modified
