"""The integer kernels compute what their rows say: one operator a file, on every resolver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net, decibels, nearest
from tfl_rewrite import save
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.kernels.integer import Caveat, Scales
from tfl_rewrite.kernels.table import ROWS
from tfl_rewrite.model.ir import Model, Tensor

pytestmark = pytest.mark.runtime

Array = np.ndarray[Any, Any]
SHAPE = (2, 4, 4, 8)
LEAST = {8: 28.0, 16: 45.0}
"""In dB, of one operator on numbers between -2 and 2, or 0.5 and 2."""
LOWER = {("RSQRT", 16): 18.0, ("EXP", 8): 20.0, ("SOFTMAX", 8): 20.0, ("SOFTMAX", 16): 40.0}
"""Tables of few entries, and outputs far below the fixed scale."""

POSITIVE = {"SQRT", "LOG", "RSQRT"}
UNARY = ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "HARD_SWISH", "ABS", "EXP", "SQRT", "LOG", "RSQRT")
BINARY = ("ADD", "SUB", "MUL", "SQUARED_DIFFERENCE", "MAXIMUM", "MINIMUM")
FIXED = ("SOFTMAX", "LOGISTIC", "TANH")


def unary(kind: str, net: Net, source: Tensor) -> Tensor:
    return net.add(kind, [source], "out", SHAPE, **({"beta": 1.0} if kind == "SOFTMAX" else {}))


def binary(kind: str, net: Net, source: Tensor) -> Tensor:
    other = net.random.uniform(-0.5, 0.5, SHAPE).astype(np.float32)
    return net.add(kind, [source, net.constant("other", other)], "out", SHAPE)


def dense(_kind: str, net: Net, source: Tensor) -> Tensor:
    return net.dense(source, net.weights("w", (6, 8)), "out", net.constant("b", np.ones(6, np.float32)))


def convolution(kind: str, net: Net, source: Tensor) -> Tensor:
    weight, bias = net.weights("w", (6, 1, 1, 8)), net.constant("b", np.ones(6, np.float32))
    return net.add(kind, [source, weight, bias], "out", (2, 4, 4, 6), stride_w=1, stride_h=1)


def depthwise(kind: str, net: Net, source: Tensor) -> Tensor:
    weight, bias = net.weights("w", (1, 3, 3, 8)), net.constant("b", np.ones(8, np.float32))
    options = {"stride_w": 1, "stride_h": 1, "depth_multiplier": 1}
    return net.add(kind, [source, weight, bias], "out", SHAPE, **options)


def sloped(kind: str, net: Net, source: Tensor) -> Tensor:
    return net.add(kind, [source, net.constant("slopes", np.full((1, 1, 8), 0.3, np.float32))], "out", SHAPE)


def averaged(kind: str, net: Net, source: Tensor) -> Tensor:
    return net.add(kind, [source, net.constant("axes", np.array([1, 2], np.int32))], "out", (2, 8))


def transposed(kind: str, net: Net, source: Tensor) -> Tensor:
    order = net.constant("order", np.array([0, 3, 1, 2], np.int32))
    return net.add(kind, [source, order], "out", (2, 8, 4, 4))


def padded(kind: str, net: Net, source: Tensor) -> Tensor:
    sizes = net.constant("sizes", np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    return net.add(kind, [source, sizes], "out", (2, 6, 6, 8))


Make = Callable[[str, Net, Tensor], Tensor]
MADE: dict[str, Make] = {
    **dict.fromkeys((*UNARY, *FIXED), unary),
    **dict.fromkeys(BINARY, binary),
    "FULLY_CONNECTED": dense,
    "CONV_2D": convolution,
    "DEPTHWISE_CONV_2D": depthwise,
    "PRELU": sloped,
    "MEAN": averaged,
    "REDUCE_MAX": averaged,
    "TRANSPOSE": transposed,
    "PAD": padded,
}


def built(kind: str) -> tuple[Model, Array]:
    net = Net(3)
    source = net.input("in", SHAPE)
    net.output(MADE[kind](kind, net, source))
    low, high = (0.5, 2.0) if kind in POSITIVE else (-2.0, 2.0)
    return net.model, np.random.default_rng(5).uniform(low, high, SHAPE).astype(np.float32)


def computed(path: Path, values: Array, resolver: str) -> Array:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kinds = {
        "default": OpResolverType.AUTO,
        "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": OpResolverType.BUILTIN_REF,
    }
    interpreter = Interpreter(str(path), experimental_op_resolver_type=kinds[resolver], num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    found: Array = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("kind", sorted(MADE))
def test_an_operator_computes_in_integers_on_every_resolver(kind: str, width: int, tmp_path: Path) -> None:
    row = ROWS[kind].integer
    assert row is not None
    model, values = built(kind)
    save(model, tmp_path / "float.tflite")
    wanted = computed(tmp_path / "float.tflite", values, "builtin")
    seen = {"in": values, "out": wanted}
    floats = [item for item in model.subgraphs[0].tensors if item.dtype_name == "FLOAT32"]
    held = [(item, item.values if item.is_constant else seen[item.name]) for item in floats]
    ranges = {id(item): (float(array.min()), float(array.max())) for item, array in held}
    plan = IntegerPlan(model, lambda _: width, ranges)
    own = width if row.version(width) else 8
    assert set(plan.modes.widths.values()) == {own}
    editor = Editor(model)
    plan.convert(editor, nearest)
    editor.finish()
    save(model, tmp_path / "integers.tflite")
    found = [
        decibels(wanted, computed(tmp_path / "integers.tflite", values, resolver))
        for resolver in ("default", "builtin", "reference")
    ]
    least = LOWER.get((kind, own), LEAST[own])
    assert min(found) > least, found
    assert max(found) - min(found) < 3 or min(found) > 2 * least, found


def test_caveats_name_what_they_are_about() -> None:
    kernels = {name: row.integer for name, row in ROWS.items() if row.integer is not None}
    assert {name for name, item in kernels.items() if Caveat.REFERENCE_WRONG in item.caveats} == {"SUM"}
    for name, item in kernels.items():
        assert (item.scales is Scales.FIXED) == bool(item.fixed), name
        assert set(item.fixed) == ({8, 16} if item.version16 else {8}) or not item.fixed, name
        assert set(item.old) <= {8, 16} and set(item.micro) <= {8, 16}, name
