"""Generated models: chains of layers over shared constants, float16 constants and several subgraphs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from nets import Array, Net, decibels, run

from tfl_rewrite import load, quantize_weights, save
from tfl_rewrite.editing.base import PassResult
from tfl_rewrite.files.store import is_changed, origin_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.invariants import broken, problems
from tfl_rewrite.model.ir import Model, Tensor

WIDTH = 40  # of every value that goes from layer to layer
ROWS = 4

Layer = Callable[["Built", Tensor, int], Tensor]


@dataclass
class Built:
    """A net and the constants of it that later layers may read again."""

    net: Net
    shared: list[Tensor] = field(default_factory=list)
    squares: dict[int, list[Tensor]] = field(default_factory=dict)

    def weights(self, shape: tuple[int, ...], kind: int) -> Tensor:
        """Weights of a kind: fresh, fresh in float16, or those of an earlier layer (or of its bytes)."""
        name = f"w{len(self.net.model.buffers)}_{len(self.net.graph.tensors)}"
        here = [
            t for t in self.shared if t.shape == shape and any(t is item for item in self.net.graph.tensors)
        ]
        elsewhere = [t for t in self.shared if t.shape == shape and t.buffer.blob is not None]
        if kind == 1:
            made = self.net.half(name, self.net.random.standard_normal(shape) * 0.2)
        elif kind == 2 and here:
            return here[-1]
        elif kind == 3 and elsewhere:
            made = self.net.weights(name, shape, elsewhere[-1].buffer)
        else:
            made = self.net.weights(name, shape)
        self.shared.append(made)
        return made


def _dense(built: Built, source: Tensor, kind: int) -> Tensor:
    bias = None
    if kind % 2:
        values = built.net.random.standard_normal(WIDTH)
        name = f"bias{len(built.net.graph.tensors)}"
        bias = (
            built.net.half(name, values) if kind == 1 else built.net.constant(name, values.astype(np.float32))
        )
    return built.net.dense(source, built.weights((WIDTH, WIDTH), kind), _name(built), bias)


def _multiply(built: Built, source: Tensor, kind: int) -> Tensor:
    return built.net.add("MUL", [source, built.weights((ROWS, WIDTH), kind)], _name(built), (ROWS, WIDTH))


def _wide(built: Built, source: Tensor, kind: int) -> Tensor:
    """Adds a table of 1,600 elements, the same that dense layers may read."""
    net = built.net
    flat = net.add(
        "RESHAPE",
        [source, net.constant(_name(built), np.array([4, 1, 40], np.int32))],
        _name(built),
        (4, 1, 40),
    )
    table = built.weights((WIDTH, WIDTH), kind)
    summed = net.add("ADD", [flat, table], _name(built), (4, 40, 40))
    axes = net.constant(_name(built), np.array([1], np.int32))
    return net.add("MEAN", [summed, axes], _name(built), (ROWS, WIDTH))


def _product(built: Built, source: Tensor, kind: int) -> Tensor:
    weight = built.weights((WIDTH, WIDTH), kind)
    return built.net.add("BATCH_MATMUL", [source, weight], _name(built), (ROWS, WIDTH), adj_y=kind % 2 == 1)


def _convolution(built: Built, source: Tensor, kind: int) -> Tensor:
    net = built.net
    shape = net.constant(_name(built), np.array([1, 4, 5, 8], np.int32))
    image = net.add("RESHAPE", [source, shape], _name(built), (1, 4, 5, 8))
    bias = net.constant(_name(built), np.linspace(-1, 1, 8).astype(np.float32))
    if kind % 2:
        weight = built.weights((1, 3, 3, 8), 0 if kind == 3 else kind)
        options = {"stride_w": 1, "stride_h": 1, "depth_multiplier": 1}
        image = net.add("DEPTHWISE_CONV_2D", [image, weight, bias], _name(built), (1, 4, 5, 8), **options)
    else:
        weight = built.weights((8, 3, 3, 8), kind)
        image = net.add("CONV_2D", [image, weight, bias], _name(built), (1, 4, 5, 8), stride_w=1, stride_h=1)
    back = net.constant(_name(built), np.array([ROWS, WIDTH], np.int32))
    return net.add("RESHAPE", [image, back], _name(built), (ROWS, WIDTH))


def _lookup(built: Built, source: Tensor, kind: int) -> Tensor:
    net = built.net
    positions = net.constant(_name(built), np.array([0, 39, 7, 7], np.int32))
    rows = net.add(
        "GATHER", [built.weights((WIDTH, WIDTH), kind), positions], _name(built), (ROWS, WIDTH), axis=0
    )
    return net.add("ADD", [source, rows], _name(built), (ROWS, WIDTH))


LAYERS: dict[str, Layer] = {
    "dense": _dense,
    "multiply": _multiply,
    "wide": _wide,
    "product": _product,
    "convolution": _convolution,
    "lookup": _lookup,
}


def _name(built: Built) -> str:
    return f"t{built.net.model.subgraphs.index(built.net.graph)}_{len(built.net.graph.tensors)}"


# A seed, and for each subgraph the layers with the kind of weights they get.
Recipe = tuple[int, list[list[tuple[str, int]]]]

_steps = st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.integers(0, 3)), min_size=1, max_size=5)
recipes: st.SearchStrategy[Recipe] = st.tuples(
    st.integers(0, 2**16), st.lists(_steps, min_size=1, max_size=2)
)


def build(recipe: Recipe) -> Model:
    """Each subgraph is a chain of layers with its own signature."""
    seed, graphs = recipe
    built = Built(Net(seed))
    for number, steps in enumerate(graphs):
        if number:
            built.net.next_subgraph(f"graph{number}")
        current = built.net.input(f"x{number}", (ROWS, WIDTH))
        for layer, kind in steps:
            current = LAYERS[layer](built, current, kind)
        built.net.output(current)
        built.net.sign(f"signature{number}")
    return built.net.model


options = st.fixed_dictionaries(
    {},
    optional={
        "scheme": st.sampled_from(["auto", "hybrid", "dequantize"]),
        "granularity": st.sampled_from(["channel", "tensor"]),
        "min_elements": st.sampled_from([1, 64, 500, 1601]),
        "min_runtime": st.sampled_from(["1.14", "2.3", "2.14", "2.17", "2.23"]),
        "exclude": st.sampled_from([["FULLY"], ["GATHER"], ["1$"], ["BATCH"]]),
        "keep_first_last": st.booleans(),
    },
)


def rewritten(model: Model, folder: Path, **options: Any) -> tuple[Path, Path, PassResult]:
    """Writes a model, rewrites the file, and checks what holds of every rewrite."""
    before, after = folder / "before.tflite", folder / "after.tflite"
    save(model, before)
    loaded = load(before)
    assert not problems(loaded)
    result = quantize_weights(loaded, **options)
    assert not broken(loaded)
    assert is_changed(loaded) == result.modified
    save(loaded, after)
    return before, after, result


def check(before: Path, after: Path, result: PassResult, **options: Any) -> None:
    """What holds of every rewrite, without running it."""
    model = load(after)
    assert not problems(model)
    origin = origin_of(model)
    # The records come back as they were planned, and nothing in the file is unexplained.
    assert origin is not None and not origin.refusals and not is_changed(model)
    by_buffer: dict[int, int] = {}
    for change in result.changes:
        by_buffer[change.buffer] = by_buffer.get(change.buffer, 0) + change.saved
    assert all(saved > 0 for saved in by_buffer.values())
    if not result.modified:
        assert after.read_bytes() == before.read_bytes()
    else:
        assert after.stat().st_size < before.stat().st_size
    original = load(before)
    for one, two in zip(original.subgraphs, model.subgraphs, strict=True):
        for ours, theirs in ((one.inputs, two.inputs), (one.outputs, two.outputs)):
            assert [(t.name, t.dtype, t.shape) for t in ours] == [(t.name, t.dtype, t.shape) for t in theirs]
    for graph in model.subgraphs:
        used = {id(t) for operator in graph.operators for t in operator.inputs}
        for tensor in graph.tensors:
            if tensor.is_constant:
                assert id(tensor) in used, f"nothing reads {tensor.name}"
            if tensor.dtype == dtypes.INT8.value and tensor.quantization is not None:
                assert set(tensor.quantization.zero_point or ()) == {0}
    again = load(after)
    assert not quantize_weights(again, **options).modified


@given(recipes, options)
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
def test_invariants(recipe: Recipe, chosen: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        before, after, result = rewritten(build(recipe), Path(name), **chosen)
        note("; ".join(f"{change.where} {change.scheme} {change.axis}" for change in result.changes))
        check(before, after, result, **chosen)


@given(recipes, options, st.booleans())
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_outputs(recipe: Recipe, chosen: dict[str, Any], reference: bool) -> None:
    """Both files run, with both sets of kernels, and lose little."""
    with tempfile.TemporaryDirectory() as name:
        before, after, result = rewritten(build(recipe), Path(name), **chosen)
        note("; ".join(f"{change.where} {change.scheme} {change.axis}" for change in result.changes))
        random = np.random.default_rng(7)
        for number, signature in enumerate(load(before).signatures):
            values: Array = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
            inputs = {f"x{number}": values}
            one = run(before, inputs, reference=reference, signature=signature.key)
            two = run(after, inputs, reference=reference, signature=signature.key)
            for key, expected in one.items():
                assert np.isfinite(two[key]).all()
                ratio = decibels(expected, two[key])
                assert ratio >= 20, f"{key}: {ratio:.1f} dB"
                if not result.modified:
                    assert np.array_equal(expected, two[key])
