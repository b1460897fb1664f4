"""Shapes are followed from what a file says of inputs, variables and constants, and from nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load
from tfl_rewrite.editing.shapes import Shapes
from tfl_rewrite.model.ir import Tensor

from ..helpers import CORPUS, NO_CORPUS
from ..nets import Net


def test_what_operators_make_is_not_believed() -> None:
    net = Net()
    source = net.input("in", (2, 3))
    made = net.add("ABS", [source], "made", (9,))
    unknown = net.add("CALL", [made], "unknown", (2, 3))
    shapes = Shapes.of(net.model)
    assert shapes[made] == shapes.full(made) == (2, 3)
    assert shapes[unknown] is shapes.full(unknown) is shapes[None] is None


def test_a_signature_opens_a_dimension() -> None:
    net = Net()
    source = net.input("in", (1, 3))
    source.signature = (-1, 3)
    made = net.add("ABS", [source], "made", (1, 3))
    shapes = Shapes.of(net.model)
    assert shapes[made] == (None, 3)
    assert shapes.full(made) is None


@pytest.mark.parametrize(("shape", "signature"), [((), None), (None, None), ((2, 3), (-1,)), (None, (-1,))])
def test_an_input_without_a_rank_is_unknown(
    shape: tuple[int, ...] | None, signature: tuple[int, ...] | None
) -> None:
    net = Net()
    source = net.input("in", (1,))
    source.shape, source.signature = shape, signature
    assert Shapes.of(net.model)[source] is None


def test_a_scalar_input_says_that_it_is_one() -> None:
    net = Net()
    source = net.input("in", ())
    source.rest = source.rest.replace(has_rank=True)
    assert Shapes.of(net.model)[source] == ()


def test_a_constant_is_believed_if_it_has_as_many_bytes() -> None:
    net = Net()
    source = net.input("in", (2, 6))
    target = net.constant("target", np.array([3, 4], np.int32))
    made = net.add("RESHAPE", [source, target], "made", (1,))
    assert Shapes.of(net.model)[made] == (3, 4)
    target.shape = (3,)
    assert Shapes.of(net.model)[target] is None
    assert Shapes.of(net.model)[made] is None


def test_what_a_caller_may_overwrite_is_no_constant() -> None:
    net = Net()
    source = net.input("in", (2, 6))
    target = net.constant("target", np.array([3, 4], np.int32))
    net.graph.inputs.append(target)
    made = net.add("RESHAPE", [source, target], "made", (1,))
    assert Shapes.of(net.model)[made] == (None, None)


def test_a_variable_has_the_shape_that_it_states() -> None:
    net = Net()
    state = net.variable("state", (1, 4))
    made = net.add("ABS", [state], "made", (9,))
    assert Shapes.of(net.model)[made] == (1, 4)


def test_a_tensor_that_is_written_twice_is_no_single_value() -> None:
    net = Net()
    first, second = net.input("first", (2, 3)), net.input("second", (4,))
    made = net.add("ABS", [first], "made", (2, 3))
    net.add("ABS", [second], "other", (4,))
    net.graph.operators[1].outputs = [made]
    assert Shapes.of(net.model)[made] is None


def streaming(*starts: tuple[int, ...]) -> tuple[Net, Tensor]:
    """A model that joins what it kept with its input, and keeps the end; what it starts with is assigned."""
    net = Net()
    source, handle = net.input("in", (1, 3)), net.add("VAR_HANDLE", [], "handle", (1,))
    kept = net.add("READ_VARIABLE", [handle], "kept", (9,))
    both = net.add("CONCATENATION", [kept, source], "both", (9,), axis=0)
    begin, size = (net.constant(name, np.array([1, at], np.int32)) for name, at in (("b", 0), ("s", -1)))
    size.set_values(np.array([-1, -1], np.int32))
    net.add("ASSIGN_VARIABLE", [handle, net.add("SLICE", [both, begin, size], "end", (9,))], "none", (1,))
    net.graph.operators[-1].outputs = []
    net.output(both)
    net.next_subgraph("start")
    for number, start in enumerate(starts):
        other = net.add("VAR_HANDLE", [], f"handle{number}", (1,))
        net.add("ASSIGN_VARIABLE", [other, net.constant(f"c{number}", np.zeros(start, np.float32))], "x", ())
        net.graph.operators[-1].outputs = []
    return net, both


def test_a_resource_has_the_shape_of_what_is_always_put_in() -> None:
    net, both = streaming((4, 3))
    assert Shapes.of(net.model)[both] == (5, 3)


def test_a_resource_that_grows_has_no_shape() -> None:
    net, both = streaming((4, 3))
    begin = next(item for item in net.graph.tensors + net.model.subgraphs[0].tensors if item.name == "b")
    begin.set_values(np.array([0, 0], np.int32))
    assert Shapes.of(net.model)[both] is None


def test_a_resource_of_two_shapes_has_none() -> None:
    net, both = streaming((4, 3), (2, 3))
    assert Shapes.of(net.model)[both] is None


def test_a_resource_that_somebody_else_may_change_has_no_shape() -> None:
    net, both = streaming((4, 3))
    net.model.subgraphs[1].operators[-1].inputs[0] = net.input("given", (1,))
    assert Shapes.of(net.model)[both] is None


def test_the_inputs_of_a_called_subgraph_are_those_of_its_callers(fixtures: Path) -> None:
    model = load(fixtures / "while_loop.tflite")
    shapes = Shapes.of(model)
    assert all(shapes[tensor] is not None for tensor in model.subgraphs[0].outputs)


_COMPARE = """
import sys
import tfl_rewrite
from tfl_rewrite.editing.shapes import Shapes
from ai_edge_litert.interpreter import Interpreter, OpResolverType
plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
interpreter = Interpreter(sys.argv[1], experimental_op_resolver_type=plain)
interpreter.allocate_tensors()
# What follows from a shape that is computed is allocated on the way.
interpreter.invoke()
model = tfl_rewrite.load(sys.argv[1])
shapes = Shapes.of(model)
found = {row["index"]: tuple(map(int, row["shape"])) for row in interpreter.get_tensor_details()}
tensors = model.subgraphs[0].tensors
known = [(found[at], shapes.full(tensor), tensor) for at, tensor in enumerate(tensors)
         if at in found and shapes.full(tensor) is not None]
wrong = [item for item in known if item[0] != item[1]]
assert not wrong, wrong
print(len(known))
"""


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.skipif(not CORPUS, reason=NO_CORPUS)
@pytest.mark.parametrize(
    "part", ["movenet", "torchaudio_conformer", "style_transfer", "ocr_dr", "okay_nabu", "DTLN__model_1"]
)
def test_public_models_are_allocated_as_the_rules_say(part: str) -> None:
    (path,) = (item for item in Path(CORPUS or ".").glob("*.tflite") if part in item.name)
    made = subprocess.run(
        [sys.executable, "-c", _COMPARE, str(path)], capture_output=True, text=True, check=False, timeout=100
    )
    assert made.returncode == 0, made.stderr[-2000:]
    assert int(made.stdout) > 20
