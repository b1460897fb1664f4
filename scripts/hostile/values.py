"""Operators that compute value by value or sum up, and those that run other subgraphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hostile.net import SAME, Net, Step, shape_of
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.model.ir import Operator, Tensor, new_record, schema


def plain(kind: str, table: str | None = None, **options: Any) -> Step:
    """An operator of one input whose output has its shape."""
    return lambda net, x: net.add(kind, [x], shape_of(x), table=table, **options)


def of_positive(kind: str) -> Step:
    """The same, where the input must be positive."""

    def step(net: Net, x: Tensor) -> Tensor:
        square = net.add("SQUARE", [x], shape_of(x), table="SquareOptions")
        one = net.constant(np.ones(1, np.float32))
        more = net.add("ADD", [square, one], shape_of(x), table="AddOptions")
        return net.add(kind, [more], shape_of(x))

    return step


def with_constant(kind: str, table: str | None) -> Step:
    """An operator of the value and a constant: one number, one for each channel, or a whole tensor."""

    def step(net: Net, x: Tensor) -> Tensor:
        shape = shape_of(x)
        chosen = net.random.choice(((1,), shape[-1:], shape))
        values = net.numbers.uniform(0.5, 1.5, chosen).astype(np.float32)
        if net.random.random() < 0.4:
            values = np.full(chosen, net.random.choice((0.5, 2.0)), np.float32)
        return net.add(kind, [x, net.constant(values)], shape, table=table)

    return step


def with_itself(kind: str, table: str | None) -> Step:
    """An operator of the value and another operator's result of the same shape."""

    def step(net: Net, x: Tensor) -> Tensor:
        same = [item for op in net.graph.operators for item in op.outputs if item and item.shape == x.shape]
        floats = [item for item in same if item.dtype == x.dtype]
        return net.add(kind, [x, net.random.choice(floats or [x])], shape_of(x), table=table)

    return step


def reduced(kind: str) -> Step:
    def step(net: Net, x: Tensor) -> Tensor:
        shape = shape_of(x)
        axis = net.random.randrange(1, len(shape)) if len(shape) > 1 else 0
        kept = (*shape[:axis], 1, *shape[axis + 1 :])
        return net.add(kind, [x, net.ints(axis)], kept, table="ReducerOptions", keep_dims=True)

    return step


def pooled(kind: str) -> Step:
    def step(net: Net, x: Tensor) -> Tensor:
        _, high, wide, channels = shape_of(x)
        made = (1, -(-high // 2), -(-wide // 2), channels)
        sizes = {"stride_w": 2, "stride_h": 2, "filter_width": 2, "filter_height": 2}
        return net.add(kind, [x], made, table="Pool2DOptions", padding=SAME, **sizes)

    return step


def summed_up(net: Net, x: Tensor) -> Tensor:
    axis = net.constant(np.asarray(len(shape_of(x)) - 1, np.int32))
    return net.add("CUMSUM", [x, axis], shape_of(x), table="CumsumOptions")


def prelu(net: Net, x: Tensor) -> Tensor:
    return net.add(
        "PRELU", [x, net.weights(*[1] * (len(shape_of(x)) - 2), shape_of(x)[-1], fan=9)], shape_of(x)
    )


_INNER: tuple[Step, ...] = (
    plain("TANH"),
    plain("LOGISTIC"),
    with_constant("MUL", "MulOptions"),
    with_constant("ADD", "AddOptions"),
    with_itself("MAXIMUM", "MaximumMinimumOptions"),
)


# -- Where a small error may become a large one --------------------------------------------------------------


def compared(net: Net, x: Tensor) -> Tensor:
    kind = net.random.choice(("GREATER", "LESS", "GREATER_EQUAL", "LESS_EQUAL", "NOT_EQUAL"))
    zero = net.constant(np.zeros(1, np.float32))
    found = net.add(kind, [x, zero], shape_of(x), dtype=bool)
    if net.random.random() < 0.5:
        other = net.add("LESS", [x, net.constant(np.ones(1, np.float32))], shape_of(x), dtype=bool)
        both = net.random.choice(("LOGICAL_AND", "LOGICAL_OR"))
        found = net.add(both, [found, other], shape_of(x), dtype=bool)
    return net.add("CAST", [found], shape_of(x), table="CastOptions", in_data_type=6, out_data_type=0)


def cast(net: Net, x: Tensor) -> Tensor:
    whole = net.add(
        "CAST", [x], shape_of(x), dtype=np.int32, table="CastOptions", in_data_type=0, out_data_type=2
    )
    return net.add("CAST", [whole], shape_of(x), table="CastOptions", in_data_type=2, out_data_type=0)


def top(net: Net, x: Tensor) -> Tensor:
    shape = shape_of(x)
    outputs = [net.tensor((*shape[:-1], 2)), net.tensor((*shape[:-1], 2), np.int32)]
    two = net.constant(np.asarray(2, np.int32))
    net.graph.operators.append(Operator(net.code("TOPK_V2", 1), [x, two], list(outputs)))
    return outputs[0]


def largest(net: Net, x: Tensor) -> Tensor:
    shape = shape_of(x)
    axis = net.constant(np.asarray(len(shape) - 1, np.int32))
    found = net.add("ARG_MAX", [x, axis], shape[:-1], dtype=np.int32, table="ArgMaxOptions", output_type=2)
    depth, on, off = (
        net.constant(np.asarray(v, t)) for v, t in ((4, np.int32), (1, np.float32), (0, np.float32))
    )
    return net.add("ONE_HOT", [found, depth, on, off], (*shape[:-1], 4), table="OneHotOptions", axis=-1)


# -- Several subgraphs ---------------------------------------------------------------------------------------


def loop(net: Net, x: Tensor) -> Tensor:
    """WHILE: a few rounds of a small layer."""
    outer, shape = net.graph, shape_of(x)
    kinds = [((), np.int32), (shape, np.float32)]
    cond, (count, _) = net.inside("cond", kinds)
    cond.outputs = [net.add("LESS", [count, net.constant(np.asarray(2, np.int32))], (), dtype=bool)]
    body, (count, value) = net.inside("body", kinds)
    one = net.constant(np.asarray(1, np.int32))
    more = net.add("ADD", [count, one], (), dtype=np.int32, table="AddOptions")
    for _ in range(net.random.randrange(1, 3)):
        value = net.random.choice(_INNER)(net, value)
    body.outputs = [more, value]
    net.graph = outer
    first = net.constant(np.asarray(0, np.int32))
    options = {"cond_subgraph_index": cond, "body_subgraph_index": body}
    return _two_results(net, "WHILE", [first, x], shape, "WhileOptions", options)


def _two_results(
    net: Net,
    kind: str,
    inputs: list[Tensor | None],
    shape: Sequence[int],
    table: str,
    options: dict[str, Any],
) -> Tensor:
    outputs: list[Tensor | None] = [net.tensor((), np.int32), net.tensor(shape)]
    rest = new_record("Operator").replace(builtin_options_type=schema().enums["BuiltinOptions"].values[table])
    record = Record(schema().tables[table], dict(options))
    net.graph.operators.append(Operator(net.code(kind, 1), inputs, outputs, [], record, rest=rest))
    made = outputs[1]
    assert made is not None
    return made


def branch(net: Net, x: Tensor) -> Tensor:
    """IF: one of two small layers."""
    outer, shape = net.graph, shape_of(x)
    branches = []
    for name in ("then", "else"):
        graph, (value,) = net.inside(name, [(shape, np.float32)])
        graph.outputs = [net.random.choice(_INNER)(net, value)]
        branches.append(graph)
    net.graph = outer
    chosen = net.constant(np.asarray(net.random.random() < 0.5, bool))
    indices = {"then_subgraph_index": branches[0], "else_subgraph_index": branches[1]}
    return net.add("IF", [chosen, x], shape, table="IfOptions", **indices)
