"""Generated graphs of operators that change nothing, and of constants: outputs stay equal."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tfl_rewrite import load, save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Tensor
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.fold_constants import FoldConstants
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.passes.remove_noops import RemoveNoops

from ..nets import Array, Net, with_grid

START = (2, 1, 4, 3)
KINDS = (
    *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "PACK", "UNPACK", "SPLIT"),
    *(
        "CONCATENATION",
        "PAD",
        "TILE",
        "CAST",
        "MUL",
        "ADD",
        "RELU",
        "RELU6",
        "NEG",
        "SHAPE",
        "FULLY_CONNECTED",
    ),
)
INTEGER_KINDS = (*KINDS[: KINDS.index("PAD")], "RELU", "SPLIT", "SPLIT")


def ints(net: Net, values: object) -> Tensor:
    return net.constant(f"c{len(net.graph.tensors)}", np.array(values, np.int32))


def moved(draw: DrawFn, kind: str, net: Net, x: Tensor, name: str) -> Tensor:
    """What copies or moves the numbers of a tensor, wholly or in part."""
    shape = list(x.shape or ())
    rank = len(shape)
    if kind == "RESHAPE":
        made = draw(st.permutations(shape)) if draw(st.booleans()) else shape
        return net.add(kind, [x, ints(net, made)], name, made)
    if kind == "SQUEEZE":
        left = [dim for dim in shape if dim != 1] or [1]
        return net.add(kind, [x], name, left) if len(left) < rank else x
    if kind == "EXPAND_DIMS" and rank < 5:
        at = draw(st.integers(0, rank))
        return net.add(kind, [x, ints(net, at)], name, [*shape[:at], 1, *shape[at:]])
    if kind == "TRANSPOSE" and rank < 5:
        order = draw(st.permutations(range(rank)))
        return net.add(kind, [x, ints(net, order)], name, [shape[axis] for axis in order])
    if kind == "SLICE":
        sizes = [dim - draw(st.sampled_from((0, 0, 0, 1))) or dim for dim in shape]
        return net.add(kind, [x, ints(net, [0] * rank), ints(net, sizes)], name, sizes)
    if kind == "STRIDED_SLICE":
        begin = [0 if dim == 1 else draw(st.sampled_from((0, 0, 0, 1))) for dim in shape]
        sizes = [dim - first for dim, first in zip(shape, begin, strict=True)]
        return net.add(kind, [x, ints(net, begin), ints(net, shape), ints(net, [1] * rank)], name, sizes)
    if kind == "PAD":
        pads = [[0, draw(st.sampled_from((0, 0, 0, 1)))] for _ in shape]
        sizes = [dim + after for dim, (_, after) in zip(shape, pads, strict=True)]
        return net.add(kind, [x, ints(net, pads)], name, sizes) if rank < 5 else x
    if kind == "TILE":
        return net.add(kind, [x, ints(net, [1] * rank)], name, shape)
    return parted(draw, kind, net, x, name)


def parted(draw: DrawFn, kind: str, net: Net, x: Tensor, name: str) -> Tensor:
    """What joins and parts."""
    shape = list(x.shape or ())
    rank = len(shape)
    if kind == "PACK" and rank < 4:
        count, axis = draw(st.sampled_from((1, 1, 2))), draw(st.integers(0, rank))
        return net.add(
            kind, [x] * count, name, [*shape[:axis], count, *shape[axis:]], axis=axis, values_count=count
        )
    if kind == "UNPACK" and rank > 1:
        axis = draw(st.integers(0, rank - 1))
        left = [*shape[:axis], *shape[axis + 1 :]]
        made = net.add(kind, [x], name, left, axis=axis, num=shape[axis])
        others = [net.tensor(f"{name}_{at}", left) for at in range(1, shape[axis])]
        net.graph.operators[-1].outputs += others
        return draw(st.sampled_from([made, *others]))
    if kind == "SPLIT":
        axis = draw(st.integers(0, rank - 1))
        count = draw(st.sampled_from([count for count in (1, 2) if shape[axis] % count == 0]))
        sizes = [*shape[:axis], shape[axis] // count, *shape[axis + 1 :]]
        made = net.add(kind, [ints(net, axis), x], name, sizes, num_splits=count)
        others = [net.tensor(f"{name}_{at}", sizes) for at in range(1, count)]
        net.graph.operators[-1].outputs += others
        if draw(st.booleans()):
            return net.add("CONCATENATION", [made, *others], f"{name}_joined", shape, axis=axis)
        return made
    if kind == "CONCATENATION":
        return net.add(kind, [x], name, shape, axis=rank - 1)
    return computed(draw, kind, net, x, name)


def computed(draw: DrawFn, kind: str, net: Net, x: Tensor, name: str) -> Tensor:
    """What computes, or seems to."""
    shape = x.shape or ()
    if kind in ("MUL", "ADD"):
        number = draw(st.sampled_from((1.0, 1.0, 2.0) if kind == "MUL" else (-0.0, 0.0, 1.0)))
        size = draw(st.sampled_from(((), (1,), shape[-1:], (1,) * (len(shape) + 1))))
        made = np.broadcast_shapes(size, shape)
        value = net.constant(f"{name}_c", np.full(size, number, np.float32))
        return net.add(kind, [x, value], name, made) if len(made) < 5 else x
    if kind == "SHAPE":
        target = net.add(kind, [x], f"{name}_shape", (len(shape),), dtype=np.int32, out_type=2)
        return net.add("RESHAPE", [x, target], name, shape)
    if kind == "FULLY_CONNECTED":
        weight = net.weights(f"{name}_w", (2, shape[-1]))
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        return net.add(kind, [x, weight, None], name, (rows, 2))
    return net.add(kind, [x], name, shape) if kind in ("RELU", "RELU6", "NEG", "CAST") else x


@st.composite
def nets(draw: DrawFn) -> Net:
    """A few operators, most of which change nothing; any of what they make is an output, too."""
    net = Net()
    values = [net.input("x", START)]
    dtype = draw(st.sampled_from(("FLOAT32", "FLOAT32", "INT8", "UINT8", "UINT8")))
    # Few kinds a graph, so that those that cancel come together.
    drawn = st.sampled_from(KINDS if dtype == "FLOAT32" else INTEGER_KINDS)
    kinds = draw(st.lists(drawn, min_size=1, max_size=4))
    for index in range(draw(st.integers(1, 9))):
        source = values[-1] if draw(st.integers(0, 3)) else draw(st.sampled_from(values))
        made = moved(draw, draw(st.sampled_from(kinds)), net, source, f"t{index}")
        if made is not source:
            values.append(made)
    outputs = draw(st.lists(st.sampled_from(values), min_size=0, max_size=2, unique_by=id))
    last = net.add("NEG" if dtype == "FLOAT32" else "RELU", [values[-1]], "last", values[-1].shape or ())
    for tensor in [last, *(item for item in outputs if item is not values[0])]:
        net.output(tensor)
    for operator in net.graph.operators:
        for tensor in operator.outputs:
            # XNNPACK looks at the rank that is declared, the kernel of SLICE at the sizes, others at nothing.
            tampers = operator.code.name != "SLICE" and draw(st.integers(0, 4)) == 0
            if tensor is not None and tampers:
                tensor.shape = tuple(9 for _ in tensor.shape or ())
    if dtype != "FLOAT32":
        quantize(draw, net, dtype)
    return net


def quantize(draw: DrawFn, net: Net, dtype: str) -> None:
    """Makes integers of all floats; a CONCATENATION of uint8 is given parts of other scales, too."""
    for tensor in net.graph.tensors:
        if tensor.dtype_name == "FLOAT32":
            tensor.dtype = dtypes.BY_NAME[dtype].value
            with_grid(tensor, 0.5, 3)
    for operator in net.graph.operators:
        if operator.code.name == "SPLIT" and dtype == "UINT8":
            for tensor in operator.outputs:
                if tensor is not None and draw(st.booleans()):
                    with_grid(tensor, 0.25, 3)


def outputs(path: Path) -> dict[str, list[Array]]:
    """What each kind of kernels gives; XNNPACK refuses a SPLIT into parts of other scales."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    found = {}
    for kind in ("AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF"):
        resolver = getattr(OpResolverType, kind)
        interpreter = Interpreter(str(path), experimental_op_resolver_type=resolver, num_threads=1)
        try:
            interpreter.allocate_tensors()
        except RuntimeError:
            continue
        (row,) = interpreter.get_input_details()
        values = np.arange(-8, 16, dtype=np.float32).reshape(START)
        values[0, 0, 0] = -0.0
        if row["dtype"] != np.float32:
            values = (np.arange(values.size) * 10).astype(row["dtype"]).reshape(START)
        interpreter.set_tensor(row["index"], values)
        interpreter.invoke()
        found[kind] = [interpreter.get_tensor(item["index"]) for item in interpreter.get_output_details()]
    return found


@pytest.mark.runtime
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(net=nets())
def test_outputs_are_equal_and_a_second_run_finds_nothing(net: Net) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.tflite", Path(folder) / "out.tflite"
        save(net.model, source)
        before = outputs(source)
        assert "BUILTIN_REF" in before
        names = [tensor.name for tensor in net.graph.outputs]
        for passes in ([RemoveNoops()], [FoldConstants(), RemoveNoops(), Dedup(), RemoveDead()]):
            model = load(source)
            for item in passes:
                run_passes(model, [item])
                assert not broken(model)
                assert not run_passes(model, [item])[0].modified
            save(model, target, force=True)
            after = outputs(target)
            for kind, expected in before.items():
                assert [item.shape for item in after[kind]] == [item.shape for item in expected], kind
                assert [item.tobytes() for item in after[kind]] == [item.tobytes() for item in expected], kind
            assert [tensor.name for tensor in model.subgraphs[0].outputs] == names
