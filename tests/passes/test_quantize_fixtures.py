"""What becomes of each constant of each committed model, and what the pass must leave alone."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.files.source import is_changed
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.invariants import problems
from tfl_rewrite.model.ir import Buffer, Model, Quantization, Tensor
from tfl_rewrite.model.lower import lower
from tfl_rewrite.numerics import symmetric
from tfl_rewrite.passes.quantize_weights import QuantizeWeights

from ..nets import Array, codes, data_of, decibels, dequantized, named, readers, run

Row = tuple[str, list[int], str, int | None]

_DIGITS: list[Row] = [
    ("DEPTHWISE_CONV_2D", [1, 3, 3, 128], "hybrid", 3),
    ("CONV_2D", [64, 1, 1, 128], "hybrid", 0),
    ("CONV_2D", [128, 1, 1, 32], "hybrid", 0),
    ("FULLY_CONNECTED", [10, 1024], "hybrid", 0),
    ("CONV_2D", [32, 3, 3, 1], "hybrid", 0),
]
_RNET: list[Row] = [
    ("CONV_2D", [64, 2, 2, 48], "hybrid", 0),
    ("CONV_2D", [48, 3, 3, 28], "hybrid", 0),
    ("FULLY_CONNECTED", [2, 128], "hybrid", 0),
    ("FULLY_CONNECTED", [4, 128], "hybrid", 0),
    ("FULLY_CONNECTED", [128, 576], "hybrid", 0),
    ("CONV_2D", [28, 3, 3, 3], "hybrid", 0),
]
_DENSE: list[Row] = [("FULLY_CONNECTED", [32, 40], "hybrid", 0)]
_LSTM: list[Row] = [
    *[("UNIDIRECTIONAL_SEQUENCE_LSTM", [40, 32], "hybrid", None)] * 4,
    *[("UNIDIRECTIONAL_SEQUENCE_LSTM", [40, 40], "hybrid", None)] * 4,
]
_BIDIRECTIONAL: list[Row] = [
    *[("BIDIRECTIONAL_SEQUENCE_LSTM", [36, 32], "hybrid", None)] * 4,
    *[("BIDIRECTIONAL_SEQUENCE_LSTM", [36, 36], "hybrid", None)] * 4,
]

# File: what becomes int8 (readers, shape, how it is read, axis of the scales), and how many stay, by rule.
EXPECTED: dict[str, tuple[list[Row], dict[str, int]]] = {
    "already_int4": ([], {"bias": 1}),
    "already_int8": ([], {"bias": 1}),
    "batch_matmul": ([("BATCH_MATMUL", [2, 40, 32], "hybrid", None)], {}),
    "bidirectional_lstm": (_BIDIRECTIONAL * 2, {"bias": 8}),
    "blockwise_int4": ([], {"interface": 1, "bias": 1}),
    "composite": (_DENSE, {"bias": 1}),
    "conv_without_bias": ([("CONV_2D", [12, 3, 3, 16], "hybrid", 0)], {}),
    "dense": (_DENSE, {"bias": 1}),
    "dense_defaults_present": (_DENSE, {"bias": 1}),
    "digits_cnn": (_DIGITS, {"bias": 5}),
    "digits_cnn_dynamic_range": (_DIGITS[-1:], {"bias": 5}),
    # Of 16 bits only half are saved; for two of the kernels that is less than scales and tables take.
    "digits_cnn_float16": ([_DIGITS[3], _DIGITS[2], _DIGITS[1]], {"bias": 5, "not-smaller": 2}),
    "digits_cnn_full_int8": ([], {}),
    "dynamic_shapes": (_DENSE, {}),
    "if_branches": (_DENSE * 2, {"bias": 2, "small": 1}),
    "lstm": (
        [
            ("FULLY_CONNECTED", [32, 8], "hybrid", 0),
            *_LSTM,
            ("FULLY_CONNECTED", [10, 40], "hybrid", 0),
        ],
        {"bias": 6},
    ),
    "metadata_label_zip": (_DIGITS, {"bias": 5}),
    # PReLU's slopes are read by no hybrid kernel, and are below its 1,024 elements.
    "mtcnn_rnet": (_RNET, {"bias": 6, "small": 4}),
    "mtcnn_rnet_old_schema": (_RNET, {"bias": 6, "small": 4}),
    "offset_buffers": (_DIGITS, {"bias": 5}),
    "resource_variables": ([("FULLY_CONNECTED", [40, 40], "hybrid", 0)], {"small": 2}),
    "rnn": (
        [
            ("UNIDIRECTIONAL_SEQUENCE_RNN", [40, 32], "hybrid", None),
            ("UNIDIRECTIONAL_SEQUENCE_RNN", [40, 40], "hybrid", None),
            *[("RNN", [40, 40], "hybrid", None)] * 2,
        ],
        {"bias": 2},
    ),
    "shared_constant_two_ops": ([("FULLY_CONNECTED+MUL", [32, 40], "hybrid+dequantize", 0)], {"bias": 1}),
    "sparse": ([], {"sparse": 1, "bias": 1}),
    "string_input": (_DENSE, {"bias": 1}),
    # Both weights or none, and one scale each.
    "svdf": ([("SVDF", [96, 40], "hybrid", None), ("SVDF", [96, 12], "hybrid", None)], {"bias": 1}),
    "text_embedding": (
        [
            ("FULLY_CONNECTED", [4, 96], "hybrid", 0),
            ("FULLY_CONNECTED", [96, 16], "hybrid", 0),
            ("GATHER", [1000, 16], "lookup", 0),
        ],
        {"bias": 2},
    ),
    "transpose_conv": ([("TRANSPOSE_CONV", [8, 3, 3, 16], "dequantize", 0)], {}),
    "two_signatures_shared_weights": (
        [
            ("FULLY_CONNECTED", [40, 40], "hybrid", 0),
            ("FULLY_CONNECTED", [5, 40], "hybrid", 0),
            ("FULLY_CONNECTED", [40, 40], "hybrid", 0),
        ],
        {},
    ),
    "while_loop": ([("FULLY_CONNECTED", [40, 40], "hybrid", 0)], {}),
    "model": ([], {"bias": 5, "external": 5}),
}

# A change of scales moves the figures of the pass's own judgement, so several settings see every file.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "dequantize": {"scheme": "dequantize"},
    "hybrid": {"scheme": "hybrid"},
    "tensor": {"granularity": "tensor"},
    "old": {"min_runtime": "2.14"},
    "everything": {"min_elements": 1},
    "ends": {"keep_first_last": True},
}
every_setting = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
RENEWED = {"already_int8", "blockwise_int4", "digits_cnn_dynamic_range"}


def quantized(path: Path, **options: Any) -> tuple[Model, PassResult]:
    model = load(path)
    return model, run_passes(model, [QuantizeWeights(**options)])[0]


def test_the_table_is_complete(fixtures: Path) -> None:
    assert {path.stem for path in fixtures.glob("*.tflite")} | {"model"} == set(EXPECTED)


def test_outcome(sound: Path) -> None:
    changes, skips = EXPECTED[sound.stem]
    _, result = quantized(sound)
    assert [
        ("+".join(item.readers), list(item.shape), item.scheme, item.axis) for item in result.changes
    ] == changes
    assert Counter(item.rule for item in result.skips) == skips
    assert all(item.reason for item in result.skips)


@every_setting
def test_what_is_written(sound: Path, options: dict[str, Any], tmp_path: Path) -> None:
    """One rewrite of each file under each setting, and all that holds for it."""
    before, model = load(sound), load(sound)
    kept = Kept.of(model)
    result = run_passes(model, [QuantizeWeights(**options)])[0]
    modified, target = is_changed(model), tmp_path / "out.tflite"
    nbytes = save(model, target)
    assert nbytes == target.stat().st_size
    after = load(target)
    assert len(problems(after)) <= len(problems(before))
    check_second_run(target, options)
    # Weights in a form that 2.14 does not know are stored anew for it, at whatever size (test_renewal).
    if sound.stem in RENEWED and "min_runtime" in options:
        return
    assert len(result.changes) + len(result.skips) == len(floats_of(before))
    assert result.modified == modified
    check_sizes(sound, target, result)
    check_integers(before, after, result)
    kept.check(result, before)


def floats_of(model: Model) -> list[Tensor]:
    return [
        tensor
        for subgraph in model.subgraphs
        for tensor in subgraph.tensors
        if tensor.is_constant and tensor.dtype_name in ("FLOAT32", "FLOAT16")
    ]


def check_second_run(path: Path, options: dict[str, Any]) -> None:
    """It changes nothing."""
    again, result = quantized(path, **options)
    assert result.changes == ()
    assert again.to_bytes() == path.read_bytes()


def check_sizes(sound: Path, target: Path, result: PassResult) -> None:
    """What is changed is smaller, buffer by buffer, and so is the file; what is not changed costs nothing."""
    saved: Counter[int] = Counter()
    together = {"LSTM", "RNN", "SVDF"}
    for change in result.changes:
        recurrent = any(name.split("_")[-1] in together for name in change.readers)
        saved[-1 if recurrent else change.buffer] += change.saved
    assert all(nbytes > 0 for nbytes in saved.values())
    nbytes = target.stat().st_size
    assert nbytes <= sound.stat().st_size
    if not result.modified:
        assert target.read_bytes() == sound.read_bytes()
    else:
        # The estimate is an upper bound of what is written, less the rounding of positions.
        assert sound.stat().st_size - nbytes >= sum(saved.values()) * 0.97 - 256


def test_same_input_same_bytes(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for index, (cores, block) in enumerate([(1, 1 << 16), (4, 1 << 16), (2, 500)]):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setattr(symmetric, "BLOCK_ELEMENTS", block)
        model, _ = quantized(sound)
        save(model, tmp_path / f"{index}.tflite")
        made.append((tmp_path / f"{index}.tflite").read_bytes())
    assert made[0] == made[1] == made[2]


def _expected_integers(values: Array, axis: int | None) -> tuple[Array, Array]:
    """Plain numpy: integers and float32 scales."""
    wide = values.astype(np.float32)
    others = None if axis is None else tuple(index for index in range(values.ndim) if index != axis)
    largest = np.abs(wide).max(axis=others, keepdims=True)
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(127)).astype(np.float32)
    return np.clip(np.rint(wide / scale), -127, 127).astype(np.int8), scale.reshape(-1)


def check_integers(before: Model, after: Model, result: PassResult) -> None:
    """The int8 tensors of the written file hold what rounding to the nearest gives, with zero points 0."""
    int8_before, int8_after = _int8(before), _int8(after)
    for change in result.changes:
        source = before.buffers[change.buffer]
        tensor = next(item for graph in before.subgraphs for item in graph.tensors if item.buffer is source)
        integers, scale = _expected_integers(data_of(tensor), change.axis)
        if change.scheme == "lookup" and change.axis is not None:
            # Looked up by rows: the integers bear no scales, a table of them lies beside.
            floats = [data_of(t).tobytes() for g in after.subgraphs for t in g.tensors if _is_float(t)]
            assert scale.tobytes() in floats
            scale = scale[:0]
        key = (change.shape, integers.tobytes(), scale.tobytes(), change.axis or 0)
        assert key in int8_after
    assert int8_before <= int8_after


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_constant and tensor.dtype == dtypes.FLOAT32.value


def _int8(model: Model) -> set[tuple[Any, ...]]:
    found = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.dtype == dtypes.INT8.value and tensor.is_constant:
                details = tensor.quantization or Quantization()
                scale = bytes(details.scale.raw) if details.scale is not None else b""
                # XNNPACK refuses zero and subnormal scales; the kernels want one zero point a scale.
                assert len(details.zero_point or ()) == len(details.scale or ())
                values = np.frombuffer(scale, "<f4")
                assert (values >= np.finfo(np.float32).tiny).all() and np.isfinite(values).all()
                found.add((tensor.shape, data_of(tensor).tobytes(), scale, details.dimension))
    return found


def _depthwise(model: Model) -> list[Tensor]:
    return [
        tensor
        for _, operator in model.operators()
        if operator.code.name == "DEPTHWISE_CONV_2D"
        and (tensor := operator.inputs[1]) is not None
        and tensor.dtype == dtypes.INT8.value
    ]


@every_setting
def test_depthwise_has_a_scale_per_channel(fixtures: Path, options: dict[str, Any]) -> None:
    """With fewer scales the kernel reads past them."""
    model, _ = quantized(fixtures / "digits_cnn.tflite", **options)
    found = _depthwise(model)
    assert len(found) == (1 if options.get("scheme") != "dequantize" and "granularity" not in options else 0)
    for tensor in found:
        assert tensor.quantization is not None and tensor.quantization.dimension == 3
        assert len(tensor.quantization.scale or ()) == (tensor.shape or ())[3]


# -- What stays ---------------------------------------------------------------------------------------------


def _different(old: Record, new: Record) -> set[str]:
    """Names of the fields that differ; blobs by their identity."""

    def equal(one: Any, two: Any) -> bool:
        if isinstance(one, Record) and isinstance(two, Record):
            return not _different(one, two)
        if isinstance(one, list) and isinstance(two, list):
            return len(one) == len(two) and all(map(equal, one, two))
        if hasattr(one, "identity") and hasattr(two, "identity"):
            return bool(one.identity == two.identity)
        return bool(one == two)

    names = old.values.keys() | new.values.keys()
    return {name for name in names if not equal(old.values.get(name), new.values.get(name))}


def _rows(model: Model, root: Record, field: str) -> dict[int, tuple[Any, Record]]:
    """Tensors or operators by identity, each with its record."""
    return {
        id(item): (item, row)
        for graph, record in zip(model.subgraphs, root["subgraphs"], strict=True)
        for item, row in zip(getattr(graph, field), record.get(field) or [], strict=True)
    }


@dataclass(frozen=True)
class Kept:
    """What the tensors and operators of a model were before it was rewritten."""

    model: Model
    old: Record
    tensors: dict[int, tuple[Any, Record]]
    operators: dict[int, tuple[Any, Record]]
    before: dict[int, tuple[int, Buffer, Quantization | None]]
    reads: dict[int, tuple[list[Any], list[Any], str]]
    buffers: list[tuple[Buffer, Any]]

    @classmethod
    def of(cls, model: Model) -> Kept:
        old = lower(model)
        tensors, operators = _rows(model, old, "tensors"), _rows(model, old, "operators")
        return cls(
            model,
            old,
            tensors,
            operators,
            {key: (item.dtype, item.buffer, item.quantization) for key, (item, _) in tensors.items()},
            {
                key: (list(item.inputs), list(item.outputs), item.code.name)
                for key, (item, _) in operators.items()
            },
            [(buffer, buffer.blob) for buffer in model.buffers],
        )

    def check(self, result: PassResult, sound: Model) -> None:
        """Field by field, records that belong to nothing rewritten are those of the input."""
        model, old, tensors, operators, before, reads, buffers = (
            getattr(self, item.name) for item in fields(self)
        )
        new = lower(model)
        rewritten = {id(buffers[change.buffer][0]) for change in result.changes}
        tensors_after, operators_after = _rows(model, new, "tensors"), _rows(model, new, "operators")

        # Tensors. Those of a rewritten constant, and float16 biases that become float32, change in three
        # fields.
        for key, (tensor, record) in tensors.items():
            dtype, buffer, quantization = before[key]
            if key not in tensors_after:
                assert id(buffer) in rewritten or record.get("type") in (0, 1)
                continue
            differs = _different(record, tensors_after[key][1])
            if (tensor.dtype, tensor.buffer, tensor.quantization) == (dtype, buffer, quantization):
                assert differs == set()
            else:
                assert differs <= {"type", "buffer", "quantization"}
                assert id(buffer) in rewritten or (dtype == 0 and tensor.buffer.nbytes == 4 * tensor.elements)
        # Operators. They read other tensors only where a constant was rewritten.
        for key, (operator, record) in operators.items():
            inputs, outputs, name = reads[key]
            if key not in operators_after:
                assert name == "DEQUANTIZE"
                continue
            numbers = {"inputs", "outputs", "opcode_index"}
            differs = _different(record, operators_after[key][1])
            assert operator.code.name == name
            if differs - numbers:
                assert differs <= {*numbers, "builtin_options", "builtin_options_type"}
                one = record.get("builtin_options")
                two = operators_after[key][1]["builtin_options"]
                if one is not None:
                    assert _different(one, two) == {"asymmetric_quantize_inputs"}
            moved = [one for one, two in zip(inputs, operator.inputs, strict=False) if one is not two]
            assert all(
                one is not None and (id(one) not in tensors_after or _was(one, before, rewritten))
                for one in moved
            )
            assert len(operator.inputs) == len(inputs) or name in ("CONV_2D", "DEPTHWISE_CONV_2D")
            assert all(map(_is_same, operator.outputs, outputs)) or name == "GATHER"
        # Buffers keep their places; only rewritten ones, freed float16 biases and the minimum runtime change.
        said = model.metadata_named("min_runtime_version")
        for index, (buffer, blob) in enumerate(buffers):
            assert model.buffers[index] is buffer
            if buffer.blob is not blob and id(buffer) not in rewritten:
                assert buffer.blob is None or (said is not None and said.buffer is buffer)
        # The interface, metadata, and everything above.
        assert _different(old, new) <= {"operator_codes", "subgraphs", "buffers", "signature_defs"}
        for one, two in zip(old["subgraphs"], new["subgraphs"], strict=True):
            assert _different(one, two) <= {"tensors", "inputs", "outputs", "operators"}
        for signature, row in zip(sound.signatures, model.signatures, strict=True):
            assert signature.key == row.key
            for one_rows, two_rows in ((signature.inputs, row.inputs), (signature.outputs, row.outputs)):
                assert [(r.get("name"), t.name, t.dtype) for r, t in one_rows] == [
                    (r.get("name"), t.name, t.dtype) for r, t in two_rows
                ]
        for graph, other in zip(sound.subgraphs, model.subgraphs, strict=True):
            for one_side, two_side in ((graph.inputs, other.inputs), (graph.outputs, other.outputs)):
                assert [(t.name, t.dtype, t.shape) for t in one_side] == [
                    (t.name, t.dtype, t.shape) for t in two_side
                ]


def _was(tensor: Tensor, before: dict[int, tuple[int, Buffer, Any]], rewritten: set[int]) -> bool:
    return id(before[id(tensor)][1]) in rewritten


def _is_same(one: object, two: object) -> bool:
    return one is two


@pytest.mark.parametrize(
    "name", ["already_int4", "already_int8", "blockwise_int4", "digits_cnn_full_int8", "sparse"]
)
@every_setting
def test_quantized_already(fixtures: Path, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    if name in RENEWED and "min_runtime" in options:
        pytest.skip("its weights are stored anew")
    model, result = quantized(fixtures / f"{name}.tflite", **{"min_elements": 1024, **options})
    assert not result.modified
    save(model, tmp_path / "out.tflite")
    assert (tmp_path / "out.tflite").read_bytes() == (fixtures / f"{name}.tflite").read_bytes()


def test_old_schema_stays_old_where_untouched(fixtures: Path) -> None:
    """Codes that nothing needed keep the one field they had; what is stamped or added carries both."""
    model, _ = quantized(fixtures / "mtcnn_rnet_old_schema.tflite")
    rows = lower(model)["operator_codes"]
    by_name = {code.name: row for code, row in zip(model.operator_codes, rows, strict=True)}
    assert set(by_name) >= {"CONV_2D", "FULLY_CONNECTED", "PRELU", "MAX_POOL_2D", "SOFTMAX"}
    for name, row in by_name.items():
        if name in ("CONV_2D", "FULLY_CONNECTED"):
            assert row["deprecated_builtin_code"] == row["builtin_code"]
            assert row["version"] > 1
        else:
            assert "builtin_code" not in row and row.get("version") == 1


def test_shared_by_two_operators(fixtures: Path, tmp_path: Path) -> None:
    """One int8 buffer: FULLY_CONNECTED reads the integers, MUL what DEQUANTIZE makes of them."""
    source = fixtures / "shared_constant_two_ops.tflite"
    model, result = quantized(source)
    save(model, tmp_path / "out.tflite")
    after = load(tmp_path / "out.tflite")
    assert [item.where for item in result.changes] == ["shared"]
    integers = [t for t in after.subgraphs[0].tensors if t.dtype == dtypes.INT8.value and t.is_constant]
    assert len({id(t.buffer) for t in integers}) == 1
    assert sorted(name for t in integers for name in readers(after, t)) == ["DEQUANTIZE", "FULLY_CONNECTED"]
    maker = Graph.of(after).maker_of(named(after, "shared"))
    assert maker is not None and maker.code.name == "DEQUANTIZE"
    assert readers(after, named(after, "shared")) == ["MUL"]
    assert named(after, "shared").buffer.nbytes == 0


def test_shared_by_two_subgraphs(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "two_signatures_shared_weights.tflite"
    model, result = quantized(source)
    save(model, tmp_path / "out.tflite")
    after = load(tmp_path / "out.tflite")
    int8 = [t for graph in after.subgraphs for t in graph.tensors if t.dtype == dtypes.INT8.value]
    assert len(int8) == 3 and len({id(t.buffer) for t in int8}) == 2
    assert [item.shared for item in result.changes] == [False, False, True]


def test_float16_from_its_own_values(fixtures: Path, tmp_path: Path) -> None:
    """Integers come from the float16 values; a bias beside an int8 filter becomes float32 (XNNPACK)."""
    source = fixtures / "digits_cnn_float16.tflite"
    before = load(source)
    model, result = quantized(source)
    save(model, tmp_path / "out.tflite")
    after = load(tmp_path / "out.tflite")
    makers = Graph.of(before).makers
    for change in result.changes:
        stored = next(t for t in before.subgraphs[0].tensors if t.buffer is before.buffers[change.buffer])
        assert stored.dtype_name == "FLOAT16"
    hybrid = 0
    for _, operator in after.operators():
        if operator.code.name not in ("CONV_2D", "FULLY_CONNECTED", "DEPTHWISE_CONV_2D"):
            continue
        weight, bias = operator.inputs[1], operator.inputs[2]
        assert weight is not None and bias is not None
        if weight.dtype == dtypes.INT8.value:
            hybrid += 1
            assert bias.dtype == dtypes.FLOAT32.value and bias.is_constant
            maker = makers[id(named(before, bias.name))]
            assert maker.inputs[0] is not None
            assert np.array_equal(data_of(bias), data_of(maker.inputs[0]).astype(np.float32))
        else:
            assert not weight.is_constant
    assert hybrid == 3
    # No DEQUANTIZE is left for what became int8, and no tensor for what nobody reads.
    graph = Graph.of(after)
    for tensor in after.subgraphs[0].tensors:
        assert graph.uses_of(tensor) or tensor in after.subgraphs[0].outputs


@pytest.mark.parametrize("name", ["while_loop", "if_branches", "composite"])
def test_weights_of_inner_subgraphs(fixtures: Path, tmp_path: Path, name: str) -> None:
    model, _ = quantized(fixtures / f"{name}.tflite")
    assert any(t.dtype == dtypes.INT8.value for graph in model.subgraphs[1:] for t in graph.tensors)


def test_variables_stay(fixtures: Path) -> None:
    for name in ("lstm", "svdf", "bidirectional_lstm", "rnn"):
        model, _ = quantized(fixtures / f"{name}.tflite", min_elements=1)
        variables = [t for graph in model.subgraphs for t in graph.tensors if t.is_variable]
        assert variables and all(t.dtype == dtypes.FLOAT32.value and not t.quantization for t in variables)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@every_setting
def test_not_finite(fixtures: Path, tmp_path: Path, value: float, options: dict[str, Any]) -> None:
    from tfl_rewrite.model.blob import OwnedBlob

    model = load(fixtures / "shared_constant_two_ops.tflite")
    tensor = named(model, "shared")
    values = data_of(tensor).copy()
    values[3, 5] = value
    tensor.buffer.blob = OwnedBlob(values.tobytes())
    save(model, tmp_path / "bad.tflite")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, result = quantized(tmp_path / "bad.tflite", **options)
    assert not result.changes and not is_changed(again)
    rules = {item.where: (item.rule, item.reason) for item in result.skips}
    if "keep_first_last" in options:
        assert rules["shared"][0] in ("first-or-last", "not-finite")
    elif options.get("scheme") == "hybrid":
        assert rules["shared"][0] in ("no-hybrid-kernel", "not-finite")
    else:
        assert rules["shared"] == ("not-finite", "it holds NaN or infinite values")


# -- Outputs ------------------------------------------------------------------------------------------------


def _with_dequantized_weights(source: Path, quantized_file: Path, target: Path) -> None:
    """Writes the float model whose weights are what the integers of the other file mean."""
    from tfl_rewrite.model.blob import OwnedBlob

    model, after = load(source), load(quantized_file)
    makers = Graph.of(after).makers
    for graph, other in zip(model.subgraphs, after.subgraphs, strict=True):
        for tensor in graph.tensors:
            if not tensor.is_constant or tensor.dtype != dtypes.FLOAT32.value:
                continue
            now = next((t for t in other.tensors if t.name == tensor.name), None)
            maker = makers.get(id(now)) if now is not None else None
            if maker is not None and maker.code.name == "DEQUANTIZE" and maker.inputs[0] is not None:
                now = maker.inputs[0]
            if now is not None and now.dtype == dtypes.INT8.value:
                tensor.buffer.blob = OwnedBlob(dequantized(now).tobytes())
    save(model, target)


@pytest.mark.runtime
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize(
    "name", ["dense", "shared_constant_two_ops", "transpose_conv", "batch_matmul", "rnn", "text_embedding"]
)
def test_dequantize_is_exact(fixtures: Path, tmp_path: Path, name: str, granularity: str) -> None:
    """Behind DEQUANTIZE, outputs are those of the float model with the rounded weights."""
    source = fixtures / f"{name}.tflite"
    model, result = quantized(source, scheme="dequantize", granularity=granularity)
    assert {change.scheme for change in result.changes} == {"dequantize"}
    save(model, tmp_path / "out.tflite")
    _with_dequantized_weights(source, tmp_path / "out.tflite", tmp_path / "float.tflite")
    with np.load(fixtures / "inputs" / f"{name}.npz") as arrays:
        inputs = {key: arrays[key][:1] for key in arrays.files}
    for reference in (False, True):
        ours = run(tmp_path / "out.tflite", _fitting(source, inputs), reference=reference)
        expected = run(tmp_path / "float.tflite", _fitting(source, inputs), reference=reference)
        original = run(source, _fitting(source, inputs), reference=reference)
        for key, value in expected.items():
            np.testing.assert_allclose(ours[key], value, rtol=0, atol=1e-6 * float(np.abs(value).max()))
            assert decibels(original[key], ours[key]) > 30
            assert not np.array_equal(original[key], ours[key])


def _fitting(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    """One sample for each input by tensor name, in its recorded shape."""
    made = {}
    for tensor in load(path).subgraphs[0].inputs:
        values = next((v for k, v in inputs.items() if k == tensor.name or tensor.name.endswith(k)), None)
        if values is None:
            values = next(iter(inputs.values()))
        made[tensor.name] = values.reshape(tensor.shape or ())
    return made


def test_codes_of_the_fixtures(fixtures: Path) -> None:
    """The versions that tell which runtime knows the form."""
    found = set()
    for name in ("digits_cnn", "text_embedding", "batch_matmul", "transpose_conv", "svdf", "rnn", "lstm"):
        model, _ = quantized(fixtures / f"{name}.tflite")
        found |= {code for code in codes(model) if code[1] > 1}
    assert found >= {
        ("CONV_2D", 5),
        ("DEPTHWISE_CONV_2D", 6),
        ("FULLY_CONNECTED", 12),
        ("BATCH_MATMUL", 4),
        ("DEQUANTIZE", 5),
        ("SVDF", 4),
        ("RNN", 3),
        ("UNIDIRECTIONAL_SEQUENCE_RNN", 3),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", 3),
        ("GATHER", 2),
    }


def test_a_float16_bias_that_is_an_output_too_stays(fixtures: Path, tmp_path: Path) -> None:
    model = load(fixtures / "digits_cnn_float16.tflite")
    (subgraph,) = model.subgraphs
    read = {id(op.inputs[2]) for op in subgraph.operators if op.code.name == "FULLY_CONNECTED"}
    half = next(op.inputs[0] for op in subgraph.operators if id(op.outputs[0]) in read)
    assert half is not None
    subgraph.outputs.append(half)
    assert run_passes(model, [QuantizeWeights(min_elements=16)])[0].modified
    save(model, tmp_path / "out.tflite")
    made = load(tmp_path / "out.tflite").subgraphs[0]
    assert made.outputs[-1].name == half.name and made.outputs[-1].buffer.blob is not None


def test_what_a_second_operator_writes_to_stays(fixtures: Path, tmp_path: Path) -> None:
    """As in a damaged file: DEQUANTIZE, which goes, is not the only one that gives it."""
    model = load(fixtures / "digits_cnn_float16.tflite")
    (subgraph,) = model.subgraphs
    weight = next(op.inputs[1] for op in subgraph.operators if op.code.name == "FULLY_CONNECTED")
    assert weight is not None
    subgraph.operators[-1].outputs.append(weight)
    assert run_passes(model, [QuantizeWeights(min_elements=16)])[0].modified
    save(model, tmp_path / "out.tflite")
    assert load(tmp_path / "out.tflite").subgraphs[0].operators[-1].outputs[-1].name == weight.name
