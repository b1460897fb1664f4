"""The rules name what is broken, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tfl_rewrite import check
from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, UINT8, ScalarVector
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.invariants import broken, out_of_order, problems
from tfl_rewrite.model.ir import (
    Buffer,
    Model,
    Operator,
    OperatorCode,
    Quantization,
    Signature,
    SubGraph,
    Tensor,
    new_record,
    operator_name,
    operator_number,
    schema,
)

# Real files whose problems the runtime has, too.
PUBLIC_PROBLEMS = {"tensorflow+tflite-micro__person_detect": "quantized_dimension 3 is out of range"}


def sound_model() -> Model:
    """input -> MUL(input, weights) -> middle -> TANH -> output."""
    empty, data = Buffer(), Buffer(OwnedBlob(bytes(16)))
    source, middle, target = (Tensor(name, (2, 2), 0, empty) for name in ("in", "mid", "out"))
    weights = Tensor("weights", (2, 2), 0, data)
    multiply, tanh = OperatorCode(operator_number("MUL")), OperatorCode(operator_number("TANH"))
    graph = SubGraph(
        [source, weights, middle, target],
        [source],
        [target],
        [Operator(multiply, [source, weights], [middle]), Operator(tanh, [middle], [target])],
    )
    signature = Signature(
        "run", graph, [(new_record("TensorMap"), source)], [(new_record("TensorMap"), target)]
    )
    return Model([multiply, tanh], [graph], [empty, data], signatures=[signature])


def stray() -> Tensor:
    return Tensor("stray", (2, 2), 0, Buffer())


def quantize(tensor: Tensor, scales: int, zero_points: int, dimension: int) -> None:
    tensor.quantization = Quantization(
        ScalarVector.of(FLOAT32, [1.0] * scales), ScalarVector.of(INT64, [0] * zero_points), dimension
    )


def graph_of(model: Model) -> SubGraph:
    return model.subgraphs[0]


STRUCTURE: dict[str, tuple[Callable[[Model], object], str]] = {
    "input is no tensor": (
        lambda m: graph_of(m).inputs.append(stray()),
        "input or output 'stray' is not a tensor",
    ),
    "output is no tensor": (lambda m: graph_of(m).outputs.append(stray()), "input or output 'stray'"),
    "operand is no tensor": (
        lambda m: graph_of(m).operators[0].inputs.append(stray()),
        "'stray' is not a tensor of its subgraph",
    ),
    "intermediate is no tensor": (
        lambda m: graph_of(m).operators[0].intermediates.append(stray()),
        "'stray' is not a tensor of its subgraph",
    ),
    "tensor listed twice": (lambda m: graph_of(m).tensors.append(graph_of(m).tensors[0]), "listed twice"),
    "foreign buffer": (
        lambda m: setattr(graph_of(m).tensors[1], "buffer", Buffer()),
        "the buffer of 'weights' is not part",
    ),
    "foreign code": (lambda m: m.operator_codes.pop(), "operator code is not part"),
    "foreign subgraph": (
        lambda m: setattr(
            graph_of(m).operators[1],
            "options",
            new_record("IfOptions").replace(then_subgraph_index=SubGraph([], [], [], [])),
        ),
        "runs a subgraph that is not part",
    ),
    "order": (lambda m: graph_of(m).operators.reverse(), "TANH reads 'mid', which is made later"),
    "signature": (
        lambda m: m.signatures[0].inputs.append((new_record("TensorMap"), stray())),
        "an argument is not a tensor",
    ),
}
RUNTIME: dict[str, tuple[Callable[[Model], object], str]] = {
    "sentinel": (lambda m: setattr(m.buffers[0], "blob", OwnedBlob(bytes(16))), "it must be empty"),
    "type": (lambda m: setattr(graph_of(m).tensors[0], "dtype", 99), "unknown type 99"),
    "variable": (lambda m: setattr(graph_of(m).tensors[1], "is_variable", True), "yet has constant bytes"),
    "size": (
        lambda m: setattr(graph_of(m).tensors[1], "shape", (2, 3)),
        r"buffer holds 16 bytes, but FLOAT32 \[2, 3\] takes 24",
    ),
    "negative": (lambda m: setattr(graph_of(m).tensors[0], "shape", (-1, 2)), "negative dimension"),
    "zero points": (lambda m: quantize(graph_of(m).tensors[1], 2, 1, 0), "2 scales but 1 zero points"),
    "dimension": (lambda m: quantize(graph_of(m).tensors[1], 2, 2, 2), "2 is out of range for 2 dimensions"),
    "negative axis": (lambda m: quantize(graph_of(m).tensors[1], 1, 1, -1), "quantized_dimension -1"),
    "channels": (lambda m: quantize(graph_of(m).tensors[1], 3, 3, 1), "3 scales for a dimension of 2"),
    "custom": (lambda m: setattr(m.operator_codes[0], "builtin", 32), "custom operator without a name"),
    "keys": (lambda m: m.signatures.append(m.signatures[0]), "two signatures have the same key"),
}


def test_a_sound_model_has_no_problem() -> None:
    assert broken(sound_model()) == problems(sound_model()) == []


@pytest.mark.parametrize("name", STRUCTURE)
def test_broken_structure_is_named(name: str) -> None:
    model = sound_model()
    change, text = STRUCTURE[name]
    change(model)
    (problem,) = broken(model)
    with pytest.raises(ValueError, match=text):
        raise ValueError(str(problem))
    assert problem in problems(model), "what is broken is a problem, too"


@pytest.mark.parametrize("name", RUNTIME)
def test_what_the_runtime_refuses_is_named(name: str) -> None:
    model = sound_model()
    change, text = RUNTIME[name]
    change(model)
    assert broken(model) == [], "the structure holds"
    found = problems(model)
    assert found
    with pytest.raises(ValueError, match=text):
        raise ValueError("; ".join(map(str, found)))


def test_an_operator_must_not_read_what_it_makes_unless_it_is_a_state() -> None:
    model = sound_model()
    middle = graph_of(model).tensors[2]
    graph_of(model).operators[0].inputs.append(middle)
    assert out_of_order(graph_of(model)) == ["operators[0] MUL reads 'mid', which is made later"]
    middle.is_variable = True
    assert out_of_order(graph_of(model)) == []


def test_sparse_and_string_tensors_are_not_measured_by_their_shape() -> None:
    model = sound_model()
    weights = graph_of(model).tensors[1]
    weights.shape = (100, 100)
    assert problems(model)
    weights.dtype = dtypes.BY_NAME["STRING"].value
    assert problems(model) == []
    weights.dtype, weights.rest = 0, weights.rest.replace(sparsity=new_record("SparsityParameters"))
    assert problems(model) == []


EMPTY = ScalarVector.of(UINT8, [])
MISSES = "has an empty vector of constant bytes"


def told_of_weights(**changes: object) -> list[str]:
    """Problems of a model whose weights have no bytes, but a vector of bytes, and some changes."""
    model = sound_model()
    weights = graph_of(model).tensors[1]
    weights.buffer.blob, weights.buffer.rest = None, weights.buffer.rest.replace(data=EMPTY)
    for name, value in changes.items():
        setattr(weights.buffer if name in ("blob", "outside") else weights, name, value)
    return [problem.what for problem in problems(model)]


def test_an_empty_vector_is_a_constant_without_its_bytes() -> None:
    (told,) = told_of_weights()
    assert told.startswith(MISSES)
    assert told_of_weights(outside=True) == [told]
    assert told_of_weights(is_variable=True, shape=(0, 2)) == [told]
    assert told_of_weights(is_variable=True, dtype=dtypes.BY_NAME["STRING"].value) == [told]


def test_where_no_bytes_are_enough() -> None:
    assert told_of_weights(blob=OwnedBlob(bytes(16))) == []
    assert told_of_weights(shape=(0, 2)) == []
    assert told_of_weights(dtype=dtypes.BY_NAME["STRING"].value) == []
    assert told_of_weights(rest=new_record("Tensor").replace(sparsity=new_record("SparsityParameters"))) == []
    assert told_of_weights(dtype=99) == ["has the unknown type 99"]
    # That of the empty buffer is none.
    model = sound_model()
    model.buffers[0].rest = model.buffers[0].rest.replace(data=EMPTY)
    assert problems(model) == []


def test_no_bytes_at_an_offset_are_an_empty_vector() -> None:
    model = sound_model()
    buffer = graph_of(model).tensors[1].buffer
    buffer.outside = True
    assert problems(model) == []
    buffer.blob = None
    (problem,) = problems(model)
    assert problem.what.startswith(MISSES)


def test_a_model_without_buffers() -> None:
    model = sound_model()
    model.buffers.clear()
    graph_of(model).tensors[1].buffer = Buffer()
    assert broken(model) == []
    assert [problem.where for problem in problems(model)] == ["buffers"]
    model.rest = model.rest.replace(buffers=[])
    assert problems(model) == []


def test_fixture_has_no_problem(sound: Path) -> None:
    assert check(sound) == []


def test_public_model_has_no_unknown_problem(public: Path) -> None:
    try:
        found = check(public)
    except (FormatError, UnsupportedError) as error:
        pytest.skip(f"not readable: {error.what}")
    expected = PUBLIC_PROBLEMS.get(public.stem)
    assert bool(found) is (expected is not None)
    assert all(expected is not None and expected in line for line in found)


# -- Rows and names ------------------------------------------------------------------------------------------


def test_dtypes_are_those_of_the_schema() -> None:
    assert {row.name: row.value for row in dtypes.BY_VALUE.values()} == schema().enums["TensorType"].values


@pytest.mark.parametrize("name", [name for name, row in dtypes.BY_NAME.items() if row.numpy])
def test_dtype_bits_are_those_of_numpy(name: str) -> None:
    import numpy as np

    row = dtypes.BY_NAME[name]
    assert np.dtype(row.numpy).itemsize * 8 == row.bits
    assert row.nbytes(3) == 3 * np.dtype(row.numpy).itemsize


@pytest.mark.parametrize(
    ("name", "elements", "nbytes"), [("INT4", 3, 2), ("INT4", 4, 2), ("INT2", 5, 2), ("INT2", 0, 0)]
)
def test_packed_types_fill_whole_bytes(name: str, elements: int, nbytes: int) -> None:
    assert dtypes.BY_NAME[name].nbytes(elements) == nbytes


def test_operator_names_and_numbers() -> None:
    assert operator_name(operator_number("CONV_2D")) == "CONV_2D" and operator_number("ADD") == 0
    assert operator_name(9999) == "9999"


# -- Who reads what ------------------------------------------------------------------------------------------


def test_graph_lists_readers_makers_and_what_is_exposed() -> None:
    model = sound_model()
    graph = graph_of(model)
    source, weights, middle, target = graph.tensors
    index = Graph.of(model)
    assert [(use.operator, use.position) for use in index.uses_of(weights)] == [(graph.operators[0], 1)]
    assert index.uses_of(target) == [] and index.maker_of(source) is None
    assert index.maker_of(middle) is graph.operators[0]
    assert index.exposed == {id(source), id(target)} and index.given == {id(source)}


def test_tensors_of_blockwise_scales_are_given() -> None:
    model = sound_model()
    source, weights, middle, target = graph_of(model).tensors
    target.quantization = Quantization(scales_tensor=weights, zero_points_tensor=middle)
    assert Graph.of(model).given == {id(source), id(weights), id(middle)}


@pytest.mark.parametrize(
    ("shape", "scales", "dimension", "said"),
    [
        ((2, 2), None, 0, ""),
        ((2, 2), None, 1, ""),
        ((2, 2), None, 2, ""),
        ((2, 2), 1, 1, ""),
        ((2, 2), 1, -1, "quantized_dimension -1 is out of range"),
        ((), None, 0, ""),
        (None, 1, 0, ""),
        (None, 1, 1, "quantized_dimension 1 is out of range"),
        ((2, 2), 2, 1, ""),
        ((2, 2), 2, 2, "quantized_dimension 2 is out of range for 2 dimensions"),
        ((2, 2), 3, 1, "has 3 scales for a dimension of 2"),
        (None, 2, 0, "quantized_dimension 0 is out of range for 0 dimensions"),
    ],
)
def test_scales_lie_along_an_axis_that_is_there(
    shape: tuple[int, ...] | None, scales: int | None, dimension: int, said: str
) -> None:
    model = sound_model()
    middle = graph_of(model).operators[0].outputs[0]
    assert middle is not None
    middle.shape = shape
    if scales is None:
        middle.quantization = Quantization(None, None, dimension)
    else:
        quantize(middle, scales, scales, dimension)
    found = [str(item) for item in problems(model)]
    assert len(found) == bool(said) and all(line.endswith(said) for line in found), found


def test_one_scale_for_all() -> None:
    made = Quantization.single(0.5, 3)
    assert made.scale is not None and made.scale.tolist() == [0.5]
    assert made.zero_point is not None and made.zero_point.tolist() == [3] and made.dimension == 0
