"""Passes that promise equal outputs keep them in every order, on models with dead, equal and shared parts."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tfl_rewrite import load, save
from tfl_rewrite.editing.base import Pass, run_passes
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Buffer, Model, Tensor
from tfl_rewrite.passes.compact import Compact
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.remove_dead import RemoveDead

from ..nets import Array, Net

SHAPE = (2, 3)


@st.composite
def nets(draw: DrawFn) -> Net:
    """A few operators over few constants, so that equal ones are common, of which some are read."""
    net = Net()
    values = [net.input("x", SHAPE), net.input("z", SHAPE)]
    shared = net.buffer(np.full(SHAPE, 2, np.float32).tobytes())
    for index in range(draw(st.integers(0, 4))):
        level = draw(st.integers(0, 2))
        data = np.full(SHAPE, level, np.float32)
        values.append(net.constant(f"c{index}", data, shared if level == 2 and draw(st.booleans()) else None))
    made: list[Tensor] = []
    for index in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["ADD", "MUL", "SUB", "MAXIMUM", "ABS"]))
        operands = [draw(st.sampled_from(values)) for _ in range(1 if kind == "ABS" else 2)]
        name = draw(st.sampled_from([f"t{index}", "same", ""]))
        values.append(net.add(kind, operands, name, SHAPE))
        made.append(values[-1])
        if draw(st.booleans()):
            net.model.buffers.append(Buffer())
            values[-1].buffer = net.model.buffers[-1]
    chosen = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique_by=id))
    for position, tensor in enumerate(chosen):
        tensor.name = f"out{position}"
        net.output(tensor)
    for _ in range(draw(st.integers(0, 2))):
        net.buffer(b"nobody's, or a twin's")
    if draw(st.booleans()):
        net.sign("serve")
    if draw(st.booleans()):
        net.next_subgraph("orphan")
        net.output(net.add("ABS", [net.input("o", SHAPE)], "p", SHAPE))
    return net


def outputs(path: Path) -> list[Array]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    for row in interpreter.get_input_details():
        interpreter.set_tensor(row["index"], np.linspace(-2, 3, 6, dtype=np.float32).reshape(SHAPE))
    interpreter.invoke()
    return [interpreter.get_tensor(row["index"]) for row in interpreter.get_output_details()]


def applied(source: Path, target: Path, passes: list[Pass]) -> Model:
    """Runs passes and saves; the file after them, read again."""
    model = load(source)
    results = run_passes(model, passes)
    save(model, target, force=True, packing=results[-1].packing)
    return load(target)


@pytest.mark.runtime
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(net=nets())
def test_every_order_keeps_the_outputs_and_comes_to_an_end(net: Net) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.tflite", Path(folder) / "out.tflite"
        save(net.model, source)
        before = outputs(source)
        for order in itertools.permutations([RemoveDead(), Dedup(), Compact()]):
            model = applied(source, target, list(order))
            assert not broken(model)
            assert [item.tobytes() for item in outputs(target)] == [item.tobytes() for item in before]
            assert [t.name for t in model.subgraphs[0].inputs] == ["x", "z"]
            assert target.stat().st_size <= source.stat().st_size
            for item in (RemoveDead(), Dedup(), RemoveDead(), Dedup(), Compact()):
                run_passes(model, [item])
            again = [run_passes(model, [item])[0] for item in (RemoveDead(), Dedup(), Compact())]
            assert not any(result.modified for result in again)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(net=nets())
def test_each_alone_finds_nothing_the_second_time(net: Net) -> None:
    for item in (RemoveDead(), Dedup(), Compact()):
        run_passes(net.model, [item])
        assert not run_passes(net.model, [item])[0].modified
