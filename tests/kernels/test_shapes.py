"""Shape rules say what the interpreter allocates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.editing.shapes import Shapes
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.kernels.shapes import Given, Shape, UnknownShapeError, broadcast_shape, outputs_of, rows_of
from tfl_rewrite.kernels.table import ROWS, row_of
from tfl_rewrite.model.ir import Model, Tensor

from ..nets import Net
from .cases import Weight, case, consumers, conv, conv_3d, depthwise, fully_connected, rnn, svdf
from .integer_cases import MADE, VARIANTS, built
from .measure import Case


def allocated(path: Path) -> list[tuple[int, ...]]:
    """The shape of each tensor of the main subgraph."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_op_resolver_type=plain, num_threads=1)
    interpreter.allocate_tensors()
    found = interpreter.get_tensor_details()
    by_index = {row["index"]: tuple(int(dim) for dim in row["shape"]) for row in found}
    return [by_index.get(index, ()) for index in range(max(by_index) + 1)]


def without_declared(model: Model) -> Model:
    """The model, where what operators make declares a wrong shape."""
    for _, operator in model.operators():
        for tensor in operator.outputs:
            if tensor is not None:
                tensor.shape, tensor.signature = (7, 7), None
    return model


def small_cases() -> list[Case]:
    float_weight, full = Weight("float", None), Weight("float", None)
    found = [case(name, build, float_weight, 1) for name, build in consumers().items()]
    more = {
        "valid": conv(strideW=2, strideH=2),
        "dilated": conv(dilationWFactor=2, dilationHFactor=2),
        "depthwise": depthwise(),
        "dense": fully_connected(),
        "conv_3d": conv_3d(),
        "conv_3d_transpose": conv_3d(transpose=True),
        "svdf": svdf(),
        "rnn": rnn(operator="RNN"),
        "sequence_rnn": rnn(operator="UNIDIRECTIONAL_SEQUENCE_RNN"),
    }
    return found + [case(name, build, full, 1) for name, build in more.items()]


@pytest.mark.runtime
def test_rules_say_what_the_interpreter_allocates(tmp_path: Path) -> None:
    made = [(item.name, load(item.model)) for item in small_cases()]
    made += [(label, built(label)[0]) for label in [*MADE, *VARIANTS]]
    seen, wrong = set(), []
    for name, model in made:
        path = tmp_path / "made.tflite"
        save(model, path, force=True)
        sizes = allocated(path)
        shapes = Shapes.of(without_declared(model))
        (graph,) = model.subgraphs[:1]
        for operator in graph.operators:
            for tensor in operator.outputs:
                full = shapes.full(tensor)
                index = next(at for at, item in enumerate(graph.tensors) if item is tensor)
                if full is not None:
                    seen.add(operator.code.name)
                    if full != sizes[index]:
                        wrong.append((name, operator, full, sizes[index]))
    assert not wrong
    assert len(seen) > 80


@pytest.mark.runtime
def test_which_kernels_look_at_the_declared_shape_of_their_output(tmp_path: Path) -> None:
    made = [(item.name, load(item.model)) for item in small_cases()]
    made += [(label, built(label)[0]) for label in [*MADE, *VARIANTS]]
    found, path = set(), tmp_path / "made.tflite"
    for _, model in made:
        for _, operator in model.operators():
            for tensor in operator.outputs:
                if tensor is not None:
                    tensor.shape, tensor.signature = (9,) * len(tensor.shape or ()), None
        save(model, path, force=True)
        try:
            allocated(path)
        except RuntimeError as error:
            found |= set(re.findall(r"Node number \d+ \((\w+)\)", str(error)))
    assert found == {name for name, row in ROWS.items() if row.declared}


@pytest.mark.parametrize(
    ("shapes", "made"),
    [
        (((2, 3), (3,)), (2, 3)),
        (((2, 1), (1, 5)), (2, 5)),
        (((None, 3), (1, 3)), (None, 3)),
        (((None, 3), (4, 3)), (4, 3)),
        (((None,), (None,)), (None,)),
        (((), (2,)), (2,)),
        (((0,), (1,)), (0,)),
    ],
)
def test_shapes_broadcast(shapes: tuple[Shape, ...], made: Shape) -> None:
    assert broadcast_shape(*shapes) == made


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnknownShapeError):
        broadcast_shape((2,), (3,))
    with pytest.raises(UnknownShapeError):
        rows_of((2, 3), 4)


@pytest.mark.parametrize(
    ("shape", "columns", "rows"),
    [((2, 3, 4), 4, 6), ((2, 3, 4), 12, 2), ((None, 4), 4, None), ((3, None), 4, None), ((2,), None, None)],
)
def test_rows_of_a_dense_layer(shape: Shape, columns: int | None, rows: int | None) -> None:
    assert rows_of(shape, columns) == rows


@dataclass(frozen=True)
class Row:
    """One operator, the shapes that it is given, its constants by position, and what follows."""

    kind: str
    shapes: tuple[Shape | None, ...]
    made: list[Shape | None]
    constants: Mapping[int, Sequence[int]] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)


def vector(*values: int) -> ScalarVector:
    return ScalarVector.of(INT32, values)


PARTLY = [
    Row("ADD", ((None, 4), (4,)), [(None, 4)]),
    Row("ADD", ((2,), None), [None]),
    Row("ADD", ((2,), (3,)), [None]),
    Row("RESHAPE", ((None, 2, 3), (2,)), [(None, 6)], {1: [-1, 6]}),
    Row("RESHAPE", ((2, 2, 3), (2,)), [(2, 6)], {1: [-1, 6]}),
    Row("RESHAPE", ((2, 2, 3), (2,)), [None], {1: [-1, 5]}),
    Row("RESHAPE", ((2, 2, 3), (2,)), [None], {1: [3, 5]}),
    Row("RESHAPE", ((2, 2, 3), (2,)), [(None, None)]),
    Row("RESHAPE", ((2, 2, 3),), [(12,)], {}, {"new_shape": vector(-1)}),
    Row("RESHAPE", ((1,),), [()], {}, {"new_shape": vector(0)}),
    Row("RESHAPE", ((2, 2, 3),), [None]),
    Row("CONCATENATION", ((None, 4), (3, 4)), [(None, 4)], {}, {"axis": 0}),
    Row("CONCATENATION", ((None, 4), (3, 4)), [(3, 8)], {}, {"axis": -1}),
    Row("CONCATENATION", ((2, 4), (3, 4)), [None], {}, {"axis": 1}),
    Row("CONCATENATION", ((2, 4), (3, 4)), [None], {}, {"axis": 5}),
    Row("PACK", ((None, 4), (3, None)), [(3, 2, 4)], {}, {"axis": 1}),
    Row("STRIDED_SLICE", ((None, 4), (2,), (2,), (2,)), [(None, 2)], {1: [0, 1], 2: [0, 3], 3: [1, 1]},
        {"begin_mask": 1, "end_mask": 1}),
    Row("STRIDED_SLICE", ((5, 4), (2,), (2,), (2,)), [(2,)], {1: [2, -1], 2: [3, 0], 3: [1, -2]},
        {"shrink_axis_mask": 1, "end_mask": 2}),
    Row("STRIDED_SLICE", ((5, 4, 3), (2,), (2,), (2,)), [(5, 4, 2)], {1: [0, 0], 2: [0, 2], 3: [1, 1]},
        {"ellipsis_mask": 1}),
    Row("STRIDED_SLICE", ((5,), (2,), (2,), (2,)), [(1, 2)], {1: [0, 1], 2: [0, 3], 3: [1, 1]},
        {"new_axis_mask": 1}),
    Row("STRIDED_SLICE", ((5,), (1,), (1,), (1,)), [None], {1: [0], 2: [3], 3: [0]}),
    Row("STRIDED_SLICE", ((5,), (1,), (1,), (1,)), [None], {1: [0], 2: [3], 3: [1]}, {"offset": True}),
    Row("MEAN", ((None, 4, 4, 8), (2,)), [(None, 8)], {1: [1, 2]}),
    Row("MEAN", ((None, 4), (1,)), [(None, 1)], {1: [-1]}, {"keep_dims": True}),
    Row("SUM", ((None, 4), (1,)), [None], {1: [2]}),
    Row("RESIZE_BILINEAR", ((None, 4, 4, 8), (2,)), [(None, None, None, 8)]),
    Row("TRANSPOSE", ((None, 4), (2,)), [(4, None)], {1: [1, 0]}),
    Row("FULLY_CONNECTED", ((None, 4), (5, 4)), [(None, 5)]),
    Row("FULLY_CONNECTED", ((2, 3, 4), (5, 4)), [(2, 3, 5)], {}, {"keep_num_dims": True}),
    Row("MAX_POOL_2D", ((1, None, 5, 2),), [(1, None, 2, 2)], {},
        {"padding": 1, "filter_height": 2, "filter_width": 2, "stride_h": 2, "stride_w": 2}),
    Row("MAX_POOL_2D", ((1, 1, 1, 2),), [None], {},
        {"padding": 1, "filter_height": 4, "filter_width": 4, "stride_h": 1, "stride_w": 1}),
    Row("MAX_POOL_2D", ((1, 1, 1, 2),), [None]),
    Row("SHAPE", ((None, 4),), [(2,)]),
    Row("GATHER", ((8, 4), (None,)), [(None, 4)]),
    Row("SQUEEZE", ((1, None),), [None]),
    Row("SQUEEZE", ((1, None),), [(None,)], {}, {"squeeze_dims": vector(0)}),
    Row("SQUEEZE", ((2, None),), [None], {}, {"squeeze_dims": vector(0)}),
    Row("SELECT_V2", ((4, 1), (3,), ()), [(4, 3)]),
    Row("WHERE", ((4, 1),), [(None, 2)]),
    Row("RANGE", ((), (), ()), [(3,)], {0: [1], 1: [8], 2: [3]}),
    Row("TOPK_V2", ((None, 9), ()), [(None, 3)], {1: [3]}),
    Row("UNIQUE", ((9,),), [(None,)]),
    Row("ONE_HOT", ((2, 3), (), (), ()), [(2, 3, 5)], {1: [5]}, {"axis": -1}),
    Row("FILL", ((2,), ()), [(2, 3)], {0: [2, 3]}),
    Row("FILL", ((2,), ()), [None], {0: [2, -3]}),
    Row("TILE", ((None, 3), (2,)), [(None, 6)], {1: [2, 2]}),
    Row("DENSIFY", ((None, 3),), [(None, 3)]),
    Row("UNSORTED_SEGMENT_SUM", ((2,), (2,), ()), [None]),
]  # fmt: skip


@pytest.mark.parametrize("row", PARTLY, ids=lambda row: f"{row.kind} {row.shapes}")
def test_what_is_partly_known(row: Row) -> None:
    net = Net()
    inputs: list[Tensor | None] = [net.tensor(f"t{at}", (1,), np.int32) for at in range(len(row.shapes))]
    net.add(row.kind, inputs, "made", (1,), **row.options)
    (operator,) = net.graph.operators
    given = Given(
        operator,
        row.shapes,
        lambda at: np.array(row.constants[at], np.int32) if at in row.constants else None,
    )
    assert outputs_of(row_of(operator).shape, given) == row.made
