"""Each row of what can stand for an operator gives the same numbers, in LiteRT and in TFLite Micro."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flatbuffers import flexbuffers

from tests.kernels.measure import BUILTIN, MICRO, XNNPACK, Case, Outcome, measure, needs_micro
from tests.nets import Net, codes, with_grid
from tfl_rewrite.editing.drafts import Draft
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.shapes import Shapes
from tfl_rewrite.editing.substitutes import DECONVOLUTION, SUBSTITUTES, Replaced, replace_missing
from tfl_rewrite.files.source import layout
from tfl_rewrite.flatbuf.record import INT64, UINT8, ScalarVector
from tfl_rewrite.kernels.platforms import Platform
from tfl_rewrite.kernels.shapes import outputs_of, whole_numbers
from tfl_rewrite.kernels.table import row_named, row_of
from tfl_rewrite.model.ir import Model, OperatorCode, Tensor, new_record, operator_number

Array = np.ndarray[Any, Any]
Made = tuple[Model, list[Array]]
RANDOM = np.random.default_rng(5)


def made(net: Net, *outputs: Tensor) -> Made:
    for output in outputs:
        net.output(output)
    inputs = []
    for tensor in net.graph.inputs:
        shape = tensor.shape or ()
        values: Array = RANDOM.standard_normal(shape).astype(np.float32) * 2
        if tensor.dtype_name == "BOOL":
            values = RANDOM.integers(0, 2, shape).astype(np.bool_)
        elif tensor.dtype_name != "FLOAT32":
            kind = tensor.dtype_name.lower()
            values = RANDOM.integers(0, 4, shape).astype(kind)
        inputs.append(values)
    return net.model, inputs


def unary(kind: str, shape: tuple[int, ...] = (2, 5), dtype: Any = np.float32, **options: object) -> Made:
    net = Net()
    source = net.input("in", shape, dtype)
    return made(net, net.add(kind, [source], "out", shape, dtype=dtype, **options))


def binary(kind: str, dtype: Any = np.float32, result: Any = None, shape: tuple[int, ...] = (10, 10)) -> Made:
    net = Net()
    one, other = net.input("a", shape, dtype), net.input("b", shape, dtype)
    return made(net, net.add(kind, [one, other], "out", shape, dtype=result or dtype))


def with_constant(
    kind: str,
    values: Any,
    shape: tuple[int, ...],
    result: tuple[int, ...],
    dtype: Any = np.float32,
    index: Any = np.int32,
    **options: object,
) -> Made:
    net = Net()
    source = net.input("in", shape, dtype)
    constant = net.constant("c", np.array(values, index))
    return made(net, net.add(kind, [source, constant], "out", result, dtype=dtype, **options))


def select(kind: str, condition: tuple[int, ...], dtype: Any = np.float32) -> Made:
    net = Net()
    chosen = net.input("if", condition, np.bool_)
    one, other = net.input("a", (2, 5), dtype), net.input("b", (2, 5), dtype)
    return made(net, net.add(kind, [chosen, one, other], "out", (2, 5), dtype=dtype))


def join(count: int, axis: int = 1) -> Made:
    net = Net()
    source = net.input("in", (2, 3))
    parts: list[Tensor | None] = [source] * count
    return made(net, net.add("CONCATENATION", parts, "out", (2, 3 * count), axis=axis))


def join_beyond() -> Made:
    net = Net()
    source = net.input("in", (2, 3))
    return made(net, net.add("CONCATENATION", [source] * 11, "out", (2, 33), axis=7))


def deconvolution_of_a_matrix() -> Made:
    net = Net()
    weights, bias = net.weights("w", (2, 2, 2, 3)), net.weights("b", (2,))
    output = net.add("RELU", [net.input("in", (4, 3)), weights, bias], "out", (1, 8, 8, 2))
    operator = net.graph.operators[0]
    operator.code = OperatorCode(operator_number("CUSTOM"), DECONVOLUTION, 1)
    net.model.operator_codes[:] = [operator.code]
    options = ScalarVector(UINT8, np.array([1, 2, 2], "<i4").tobytes())
    operator.rest = operator.rest.replace(custom_options=options)
    return made(net, output)


def one_hot() -> Made:
    net = Net()
    indices = net.input("in", (2, 3), np.int32)
    depth = net.constant("depth", np.array(4, np.int32))
    on, off = (net.constant(name, np.array(at, np.float32)) for name, at in (("on", 1), ("off", 0)))
    return made(net, net.add("ONE_HOT", [indices, depth, on, off], "out", (2, 3, 4), axis=-1))


def stablehlo_pad(shape: tuple[int, ...] = (2, 3), low: Sequence[int] = (0, 1)) -> Made:
    """A padding of some before and one more behind."""
    net = Net()
    source, value = net.input("in", shape), net.constant("v", np.array(0.5, np.float32))
    source.rest = source.rest.replace(has_rank=True)
    sizes = [size + 2 * before + 1 for size, before in zip(shape, low, strict=True)]
    output = net.add("STABLEHLO_PAD", [source, value], "out", sizes)
    operator = net.graph.operators[0]
    pads = {
        "edge_padding_low": low,
        "edge_padding_high": [before + 1 for before in low],
        "interior_padding": [0] * len(low),
    }
    fields = {name: ScalarVector.of(INT64, values) for name, values in pads.items()}
    operator.options2 = new_record("StablehloPadOptions").replace(**fields)
    operator.rest = operator.rest.replace(builtin_options_2_type=10)
    return made(net, output)


def power(exponent: float) -> Made:
    model, inputs = with_constant("POW", exponent, (2, 5), (2, 5), index=np.float32)
    return model, [np.abs(item) + 0.1 for item in inputs]


def update() -> Made:
    net = Net()
    source, part = net.input("in", (4, 3)), net.input("part", (2, 3))
    start = net.constant("start", np.array([1, 0], np.int64))
    return made(net, net.add("DYNAMIC_UPDATE_SLICE", [source, part, start], "out", (4, 3)))


def largest(shape: tuple[int, ...] = (2, 5), count: int = 3) -> Made:
    """The largest of numbers of which some are equal."""
    net = Net()
    source, how_many = net.input("in", shape), net.constant("k", np.array(count, np.int32))
    values = net.add("TOPK_V2", [source, how_many], "out", (*shape[:-1], count))
    places = net.tensor("places", (*shape[:-1], count), np.int32)
    net.graph.operators[0].outputs.append(places)
    model, inputs = made(net, values, places)
    return model, [np.round(item) for item in inputs]


def rows_on_axes() -> Made:
    net = Net()
    source, weights, bias = net.input("in", (2, 3, 4)), net.weights("w", (5, 4)), net.weights("b", (5,))
    options = {"keep_num_dims": True, "fused_activation_function": 1}
    return made(net, net.add("FULLY_CONNECTED", [source, weights, bias], "out", (2, 3, 5), **options))


def with_bytes(result: Any) -> Made:
    """All bytes there are."""
    net = Net()
    source = net.input("in", (2, 128), np.uint8)
    model, _ = made(net, net.add("CAST", [source], "out", (2, 128), dtype=result))
    return model, [np.arange(256, dtype=np.uint8).reshape(2, 128)]


def below_zero(kind: str, divisor: Any) -> Made:
    """Whole numbers divided of which most leave something over, on both sides of 0."""
    model, _ = with_constant(kind, divisor, (5, 5), (5, 5), np.int32)
    ends = [-(2**31), -(2**31) + 1, 2**31 - 1, 2**31 - 2, 0]
    return model, [np.concatenate([np.arange(-10, 10), ends]).astype(np.int32).reshape(5, 5)]


def detections() -> Made:
    """Boxes, scores and anchors as bytes, of which the file says no shape that comes of them."""
    net = Net()
    boxes, scores = (
        with_grid(net.input(name, shape, np.uint8), scale, zero)
        for name, shape, scale, zero in (("boxes", (1, 20, 4), 0.01, 128), ("scores", (1, 20, 4), 1 / 256, 0))
    )
    anchors = net.constant("anchors", net.random.integers(30, 220, (20, 4), np.uint8))
    outputs = [net.tensor(name, shape) for name, shape in
               (("where", (1, 5, 4)), ("what", (1, 5)), ("how", (1, 5)), ("count", (1,)))]  # fmt: skip
    net.add("ABS", [boxes, scores, with_grid(anchors, 0.005, 0)], "unused", ())
    (operator,) = net.graph.operators
    operator.outputs = list(outputs)
    net.graph.tensors = [item for item in net.graph.tensors if item.name != "unused"]
    operator.code = OperatorCode(operator_number("CUSTOM"), "TFLite_Detection_PostProcess", 1)
    net.model.operator_codes[:] = [operator.code]
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, count in (("max_detections", 5), ("max_classes_per_detection", 1), ("num_classes", 3)):
            builder.Key(key)
            builder.Int(count)
        for key, value in (("nms_score_threshold", 0.1), ("nms_iou_threshold", 0.6), *SCALES.items()):
            builder.Key(key)
            builder.Float(value)
    options = ScalarVector(UINT8, bytes(builder.Finish()))
    operator.rest = operator.rest.replace(custom_options=options)
    assert outputs_of(row_of(operator).shape, Shapes.of(net.model).given(operator)) == [
        item.shape for item in outputs
    ]
    model, _ = made(net, *outputs)
    return model, [RANDOM.integers(0, 256, (1, 20, 4), np.uint8) for _ in range(2)]


SCALES = {"y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}

CASES: dict[str, tuple[Callable[[], Made], str]] = {
    "add": (lambda: binary("STABLEHLO_ADD"), "2.14"),
    "multiply": (lambda: binary("STABLEHLO_MULTIPLY"), "2.14"),
    "maximum": (lambda: binary("STABLEHLO_MAXIMUM"), "2.14"),
    "minimum": (lambda: binary("STABLEHLO_MINIMUM"), "2.14"),
    "pad by a value": (stablehlo_pad, "2.14"),
    "select": (lambda: select("SELECT", (2, 5)), "tflm"),
    "select rows": (lambda: select("SELECT", (2,)), "tflm"),
    "select numbers": (lambda: select("SELECT_V2", (2, 5), np.int32), "tflm"),
    "select numbers of both": (lambda: select("SELECT", (2,), np.int32), "tflm"),
    "tile": (lambda: with_constant("TILE", [2, 1, 3], (2, 4, 5), (4, 4, 15)), "tflm"),
    "tile one": (lambda: with_constant("TILE", [1, 3, 1], (2, 1, 4), (2, 3, 4)), "tflm"),
    "tile nothing": (lambda: with_constant("TILE", [1, 1], (2, 4), (2, 4)), "tflm"),
    "tile by joining": (lambda: with_constant("TILE", [2, 2, 2], (2, 3, 2), (4, 6, 4)), "tflm"),
    "join twelve": (lambda: join(12), "tflm"),
    "join twenty-one": (lambda: join(21), "tflm"),
    "broadcast": (lambda: with_constant("BROADCAST_TO", [3, 2, 4], (2, 1), (3, 2, 4), version=2), "2.4"),
    "clamp": (lambda: unary("RELU_N1_TO_1"), "tflm"),
    "clamp above 0": (lambda: unary("RELU_0_TO_1"), "2.9"),
    "sign": (lambda: unary("SIGN"), "tflm"),
    "gelu": (lambda: unary("GELU", (2, 500), approximate=True), "2.8"),
    "gelu with erf": (lambda: unary("GELU", (2, 500)), "tflm"),
    **{f"power {at}": (lambda at=at: power(at), "tflm") for at in (2, 3, 5, 8, 0.5, -0.5, -1)},  # type: ignore[misc]
    "any": (lambda: with_constant("REDUCE_ANY", [1], (3, 4), (3,), np.bool_), "tflm"),
    "one hot": (one_hot, "tflm"),
    "product": (lambda: with_constant("REDUCE_PROD", [1, -1], (2, 3, 4), (2,)), "tflm"),
    "product of numbers": (lambda: with_constant("REDUCE_PROD", 0, (3, 2), (2,), np.int32), "tflm"),
    "largest": (largest, "tflm"),
    "largest of all": (lambda: largest((11,), 10), "tflm"),
    "largest one": (lambda: largest((1, 2, 3), 1), "tflm"),
    "rows on axes": (rows_on_axes, "1.15"),
    "expand": (lambda: with_constant("EXPAND_DIMS", 1, (2, 5), (2, 1, 5), np.int32), "tflm"),
    "join along the last": (lambda: join(12, -1), "tflm"),
    "transpose from behind": (
        lambda: with_constant("TRANSPOSE", [-2, 0, -1], (1, 3, 4), (3, 1, 4), np.int32),
        "tflm",
    ),
    "transpose": (lambda: with_constant("TRANSPOSE", [1, 0, 2], (1, 3, 4), (3, 1, 4), np.int32), "tflm"),
    "indices": (lambda: with_constant("GATHER", [2, 0], (3, 4), (2, 4), index=np.int64), "tflm"),
    "update": (update, "2.14"),
    "bools": (lambda: with_constant("PAD", [[1, 0], [0, 2]], (2, 3), (3, 5), np.bool_), "2.14"),
    "move bools": (lambda: with_constant("GATHER", [2, 0], (3, 4), (2, 4), np.bool_), "tflm"),
    "equal": (lambda: binary("EQUAL", np.int16, np.bool_), "2.14"),
    "floats of bytes": (lambda: with_bytes(np.float32), "tflm"),
    "numbers of bytes": (lambda: with_bytes(np.int32), "tflm"),
    "detections": (detections, "tflm"),
    "quotients": (lambda: below_zero("FLOOR_DIV", [3, 1, 7, 2, 2**31 - 1]), "tflm"),
    "rests": (lambda: below_zero("FLOOR_MOD", [3, 1, 7, 2, 2**31 - 1]), "tflm"),
    "quotients by one number": (lambda: below_zero("FLOOR_DIV", 5), "tflm"),
    "less": (lambda: binary("LESS", np.int16, np.bool_), "tflm"),
}
ROUNDED = ("gelu", "power", "detections")


def replaced(name: str) -> tuple[Model, Replaced, list[Array]]:
    make, target = CASES[name]
    model, inputs = make()
    editor = Editor(model)
    done = replace_missing(model, Platform.parse(target), editor)
    editor.finish()
    return model, done, inputs


@pytest.mark.parametrize("name", CASES)
def test_what_stands_there_is_what_the_runtime_has(name: str) -> None:
    model, done, _ = replaced(name)
    platform = Platform.parse(CASES[name][1])
    assert len(done.done) == 1 and done.exact is not name.startswith(ROUNDED)
    assert [platform.lacks(operator) for _, operator in model.operators()] == [""] * len(codes(model))
    assert replace_missing(model, platform, Editor(model)).done == []


def test_every_row_is_tried() -> None:
    used = {operator.code.name for name in CASES for operator, _, _ in replaced(name)[1].done}
    untried = {row.name for row in SUBSTITUTES} - used
    # Of rows that stand for many operators, one each is.
    alike = {
        "GATHER_ND",
        "MEAN",
        "SUM",
        "REDUCE_MAX",
        "REDUCE_MIN",
        "ARG_MAX",
        "ARG_MIN",
        "PADV2",
        "PACK",
        "UNPACK",
    }
    alike |= {"SPLIT", "NOT_EQUAL", "GREATER_EQUAL", "LESS_EQUAL", "GREATER", "SQUEEZE"}
    assert untried == alike | {"UNIDIRECTIONAL_SEQUENCE_LSTM", DECONVOLUTION}


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_constant("POW", [2.0, 3.0], (2, 2), (2, 2), index=np.float32),
        lambda: with_constant("TRANSPOSE", [1, 0], (2, 3), (3, 2), np.int32),
        lambda: with_constant("TRANSPOSE", [-1, 0], (2, 3), (3, 2), np.int32),
        lambda: with_constant("TRANSPOSE", [5, 0], (2, 3), (3, 2), np.int32),
        lambda: with_constant("GATHER", [0, -(1 << 63)], (3, 4), (2, 4), index=np.int64),
        lambda: with_constant("BROADCAST_TO", [3], (2, 3), (3,)),
        join_beyond,
        lambda: stablehlo_pad((), ()),
        deconvolution_of_a_matrix,
        lambda: select("SELECT", ()),
        lambda: largest((2, 20), 11),
        lambda: with_constant("REDUCE_PROD", [0, 2], (2, 3, 2), (3,)),
        lambda: with_constant("REDUCE_PROD", 0, (17, 2), (2,)),
        lambda: with_constant("FLOOR_DIV", [2, 0], (3, 2), (3, 2), np.int32),
        lambda: with_constant("FLOOR_MOD", -3, (3, 2), (3, 2), np.int32),
        lambda: binary("FLOOR_DIV", np.int32),
        lambda: with_bytes(np.int64),
    ],
)
def test_what_has_no_row_stays(make: Callable[[], Made]) -> None:
    model, _ = make()
    before = codes(model)
    editor = Editor(model)
    assert replace_missing(model, Platform.parse("tflm"), editor).done == [] and codes(model) == before


def test_shapes_on_the_way_are_followed_and_not_those_declared() -> None:
    net = Net()
    source = net.input("in", (2, 3), np.bool_)
    first = net.add("LOGICAL_NOT", [source], "first", (1, 6), dtype=np.bool_)
    net.output(net.add("LOGICAL_NOT", [first], "out", (1, 6), dtype=np.bool_))
    for full, known in ((Shapes.of(net.model).full, (2, 3)), (lambda _: None, None)):
        draft = Draft(net.graph.operators[1], full)
        step = draft.step(row_named("LOGICAL_NOT"), [draft.cast(first, "BOOL", "cast")], (1, 6), "step")
        assert draft.shape(step) == known
        assert draft.shape(draft.reshaped(step, (3, 2), "turned")) == (3, 2)


def test_whole_numbers_of_a_map_are_read_and_damaged_ones_are_refused() -> None:
    known = {"a": -70_000, "most": 5, "b": 1 << 40}
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in known.items():
            builder.Key(key)
            builder.Int(value)
        builder.Key("half")
        builder.Float(0.5)
    data = bytes(builder.Finish())
    assert whole_numbers(data) == known
    for wrong in (b"", b"\0", data[:-1], data[-3:], bytes([*data[:-3], 255, *data[-2:]])):
        with pytest.raises(ValueError):
            whole_numbers(wrong)
    numbers = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[int(numbers.integers(len(data)))] = int(numbers.integers(256))
        with contextlib.suppress(ValueError):
            assert len(whole_numbers(bytes(damaged))) <= len(data)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Outcome]]:
    cases = []
    for name in CASES:
        original, _ = CASES[name][0]()
        model, _, inputs = replaced(name)
        file = name.replace(" ", "_")
        cases.append(Case(file, layout(model).to_bytes(), inputs, layout(original).to_bytes()))
    return measure(cases, tmp_path_factory.mktemp("stand"), resolvers=(BUILTIN, MICRO))


@needs_micro
@pytest.mark.runtime
@pytest.mark.parametrize("name", CASES)
def test_numbers_are_the_same(name: str, outcomes: dict[str, dict[str, Outcome]]) -> None:
    found = outcomes[name.replace(" ", "_")]
    assert found[BUILTIN].reference_error is None
    least = 120.0 if name.startswith(ROUNDED) else np.inf
    assert found[BUILTIN].ok(least), str(found[BUILTIN])
    if CASES[name][1] == "tflm":
        # Its outputs are named by position, as those of LiteRT are; TANH and EXP are other libraries'.
        assert found[MICRO].ok(min(least, 110.0)), str(found[MICRO])


SPECIAL = np.float32([np.nan, np.inf, -np.inf, -0.0, 0.0, 2e-38, -2e-38, 1.0, -1.0, 3e38])
"""What kernels may treat each in its way; but for denormal numbers, which XNNPACK takes for 0."""
CUT_OFF = ("add", "multiply", "broadcast", "product")
"""The kernels of ADD and MUL make the largest float of an infinite number, as an activation would."""


def special(given: list[Array]) -> list[Array]:
    """Special floats in the place of others; of two inputs in all pairs."""
    floats = iter((np.tile(SPECIAL, 10), np.repeat(SPECIAL, 10)))
    return [np.resize(next(floats), item.shape) if item.dtype == np.float32 else item for item in given]


def bits(array: Array, is_cut_off: bool) -> list[str]:
    """Numbers as text, which tells -0.0 from 0.0 and no NaN from another."""
    ends = np.finfo(np.float32).max * np.array([-1, 1], np.float32)
    return [str(item) for item in (np.clip(array, *ends) if is_cut_off else array).reshape(-1)]


@pytest.mark.runtime
def test_special_numbers_are_the_same_where_a_row_is_exact(tmp_path: Path) -> None:
    # The largest of numbers that do not compare, or have none below them, are not said.
    names = [name for name in CASES if not name.startswith((*ROUNDED, "largest"))]
    cases = []
    for name in names:
        model, _, inputs = replaced(name)
        for kind, each in (("was", CASES[name][0]()[0]), ("is", model)):
            cases.append(Case(f"{name}.{kind}", layout(each).to_bytes(), special(inputs)))
    found = measure(cases, tmp_path, resolvers=(BUILTIN, XNNPACK))
    for name in names:
        for resolver in (BUILTIN, XNNPACK):
            was, now = (found[f"{name}.{kind}"][resolver] for kind in ("was", "is"))
            assert was.error is None and now.error is None
            for key, array in was.outputs.items():
                is_cut_off = name in CUT_OFF
                assert bits(now.outputs[key], is_cut_off) == bits(array, is_cut_off), (name, resolver)
