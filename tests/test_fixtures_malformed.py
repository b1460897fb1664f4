"""Each malformed fixture is wrong in the one way that its name says, read with the generated classes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import flexbuffers
from flatbuffers.number_types import UOffsetTFlags

from .helpers import FIXTURES

MALFORMED = FIXTURES / "malformed"


def malformed(name: str) -> bytes:
    return (MALFORMED / f"{name}.tflite").read_bytes()


def parent() -> bytes:
    return (FIXTURES / "dense_defaults_present.tflite").read_bytes()


def model_of(name: str) -> schema.ModelT:
    return schema.ModelT.InitFromPackedBuf(malformed(name), 0)


def root_of(file: bytes) -> schema.Model:
    return schema.Model.GetRootAs(file, 0)


def first_graph(file: bytes) -> schema.SubGraph:
    return root_of(file).Subgraphs(0)


def root_vtable(file: bytes) -> int:
    (root,) = struct.unpack_from("<I", file)
    return root - struct.unpack_from("<i", file, root)[0]


def subgraph_offset(file: bytes) -> int:
    table = root_of(file)._tab
    return table.Get(UOffsetTFlags, table.Vector(table.Offset(8)))


def byte_after_description(file: bytes) -> int:
    table = root_of(file)._tab
    position = table.Offset(10)
    return file[table.Vector(position) + table.VectorLen(position)]


PATCHED: list[tuple[str, Callable[[bytes], Any], Any]] = [
    ("wrong_identifier", lambda file: file[4:8], b"TFL9"),
    ("root_offset_out_of_range", lambda file: struct.unpack_from("<I", file)[0] > len(file), True),
    ("vtable_out_of_range", lambda file: root_vtable(file) < 0, True),
    ("vtable_size_odd", lambda file: struct.unpack_from("<H", file, root_vtable(file))[0], 7),
    ("table_offset_zero", subgraph_offset, 0),
    ("vector_count_huge", lambda file: first_graph(file).OperatorsLength(), 2**32 - 1),
    ("string_unterminated", byte_after_description, ord("!")),
    ("tensor_buffer_index_out_of_range", lambda file: first_graph(file).Tensors(1).Buffer(), 999),
    ("operator_input_index_out_of_range", lambda file: first_graph(file).Operators(0).Inputs(0), 999),
    ("operator_input_index_negative", lambda file: first_graph(file).Operators(0).Inputs(2), -2),
    ("opcode_index_out_of_range", lambda file: first_graph(file).Operators(0).OpcodeIndex(), 999),
    (
        "signature_tensor_index_out_of_range",
        lambda file: root_of(file).SignatureDefs(0).Inputs(0).TensorIndex(),
        999,
    ),
    ("negative_shape", lambda file: first_graph(file).Tensors(1).Shape(1), -40),
    ("shape_product_overflows", lambda file: first_graph(file).Tensors(1).Shape(0), 2**31 - 1),
    ("union_without_type", lambda file: first_graph(file).Operators(0).BuiltinOptionsType(), 0),
    ("union_type_unknown", lambda file: first_graph(file).Operators(0).BuiltinOptionsType(), 250),
    ("schema_version_2", lambda file: root_of(file).Version(), 2),
]


@pytest.mark.parametrize(("name", "read", "expected"), PATCHED, ids=[row[0] for row in PATCHED])
def test_patched_file_differs_from_its_parent_in_that_field_only(
    name: str, read: Callable[[bytes], Any], expected: Any
) -> None:
    file, sound = malformed(name), parent()
    assert len(file) == len(sound)
    changed = [position for position, (old, new) in enumerate(zip(sound, file, strict=True)) if old != new]
    assert changed and changed[-1] - changed[0] < 4
    assert read(file) == expected
    assert read(sound) != expected


def test_files_that_are_hardly_files() -> None:
    sound = parent()
    assert malformed("empty") == b""
    assert malformed("text").decode("ascii").startswith("This is no model.")
    assert malformed("truncated_header") == sound[:6]
    assert malformed("truncated_middle") == sound[: len(sound) // 2]
    assert malformed("unexplained_trailing_bytes") == sound + b"\xa5" * 64


def test_offsets_amplified_names_one_place_two_thousand_times() -> None:
    file = malformed("offsets_amplified")
    assert len(file) < 25_000
    root = root_of(file)
    count = root.SubgraphsLength()
    assert count == root.Subgraphs(0).TensorsLength() == root.Subgraphs(0).Tensors(0).ShapeLength() == 2000
    assert len({root.Subgraphs(index)._tab.Pos for index in range(count)}) == 1


def test_subgraph_index_out_of_range_is_the_condition_of_a_while() -> None:
    model = model_of("subgraph_index_out_of_range")
    options = model.subgraphs[0].operators[0].builtinOptions
    assert isinstance(options, schema.WhileOptionsT)
    assert options.condSubgraphIndex == 999
    assert options.bodySubgraphIndex < len(model.subgraphs)


def test_buffer_smaller_than_shape_is_four_bytes_short() -> None:
    model = model_of("buffer_smaller_than_shape")
    weights = model.subgraphs[0].tensors[1]
    assert len(model.buffers[weights.buffer].data) == 4 * np.prod(weights.shape) - 4


def test_quantization_that_contradicts_its_tensor() -> None:
    beyond = model_of("quantized_dimension_out_of_range").subgraphs[0].tensors[1]
    assert beyond.quantization.quantizedDimension == len(beyond.shape) == 2
    uneven = model_of("scale_zero_point_count_mismatch").subgraphs[0].tensors[1]
    assert (len(uneven.quantization.scale), len(uneven.quantization.zeroPoint)) == (32, 3)


def test_zero_subgraphs_has_an_empty_vector() -> None:
    root = root_of(malformed("zero_subgraphs"))
    assert root._tab.Offset(8) != 0 and root.SubgraphsLength() == 0


def test_offset_buffer_ends_past_the_file() -> None:
    buffers = model_of("offset_buffer_past_end").buffers
    nbytes = len(malformed("offset_buffer_past_end"))
    (buffer,) = (buffer for buffer in buffers if buffer.offset > 1)
    assert buffer.offset + buffer.size > nbytes


def test_zip_offset_wrong_points_into_the_flatbuffer() -> None:
    file = malformed("zip_central_directory_offset_wrong")
    (directory,) = struct.unpack_from("<I", file, file.rindex(b"PK\x05\x06") + 16)
    assert file[directory : directory + 4] != b"PK\x01\x02"
    start = file.index(b"PK\x03\x04")
    assert file[start + directory : start + directory + 4] == b"PK\x01\x02", "right from the ZIP's start"


def test_zip_offsets_that_count_from_elsewhere() -> None:
    file = malformed("zip_offsets_count_from_elsewhere")
    (directory,) = struct.unpack_from("<I", file, file.rindex(b"PK\x05\x06") + 16)
    assert file[directory + 16 : directory + 20] == b"PK\x01\x02"
    assert 0 < 16 < file.index(b"PK\x03\x04"), "neither the file's start nor the ZIP's"


def test_what_contradicts_itself_about_bytes() -> None:
    def weights(name: str) -> schema.BufferT:
        model = model_of(name)
        return model.buffers[model.subgraphs[0].tensors[1].buffer]

    both = weights("buffer_in_two_places")
    assert len(both.data) == 5120 and (both.offset, both.size) == (64, 16)
    root = root_of(malformed("constant_without_bytes"))
    assert root.Buffers(root.Subgraphs(0).Tensors(1).Buffer())._tab.Offset(4) != 0
    assert weights("constant_without_bytes").data is None or not len(weights("constant_without_bytes").data)
    assert root_of(malformed("buffers_missing")).BuffersIsNone()
    operator = model_of("large_custom_options_without_size").subgraphs[0].operators[0]
    assert (operator.largeCustomOptionsOffset, operator.largeCustomOptionsSize) == (16, 0)


@pytest.mark.runtime
def test_what_is_odd_and_runs() -> None:
    shared = model_of("metadata_shares_weights")
    assert shared.metadata[0].name == b"min_runtime_version"
    assert shared.metadata[0].buffer == shared.subgraphs[0].tensors[1].buffer
    foreign = model_of("options_of_another_operator")
    assert isinstance(foreign.subgraphs[0].operators[0].builtinOptions, schema.MulOptionsT)
    assert foreign.operatorCodes[0].builtinCode == schema.BuiltinOperator.FULLY_CONNECTED
    main = model_of("float16_bias_shape_wrong").subgraphs[0]
    makers = {int(item.outputs[0]): int(item.inputs[0]) for item in main.operators}
    pairs = [(main.tensors[made], main.tensors[read]) for made, read in makers.items()]
    halves = [
        (list(made.shape), list(read.shape)) for made, read in pairs if read.type == schema.TensorType.FLOAT16
    ]
    assert sum(made != read for made, read in halves) == 1
    for name in ("metadata_shares_weights", "options_of_another_operator", "float16_bias_shape_wrong"):
        Interpreter(str(MALFORMED / f"{name}.tflite")).allocate_tensors()


@pytest.mark.runtime
def test_a_signature_without_a_key_is_refused_by_the_runtime() -> None:
    assert model_of("signature_without_key").signatureDefs[0].signatureKey is None
    with pytest.raises((RuntimeError, ValueError), match="method name"):
        Interpreter(str(MALFORMED / "signature_without_key.tflite"))


def test_unknown_field_lies_beyond_the_model_s_last() -> None:
    file = malformed("unknown_field_newer_schema")
    table = root_of(file)._tab
    assert table.Offset(4 + 2 * 15) != 0
    assert not hasattr(schema.ModelT, "field15") and len(vars(schema.ModelT())) < 15


def test_dispatch_op_addresses_bytes_after_the_flatbuffer() -> None:
    file = malformed("dispatch_op_custom")
    model = model_of("dispatch_op_custom")
    assert model.operatorCodes[0].customCode == b"DISPATCH_OP"
    options = flexbuffers.Loads(bytes(model.subgraphs[0].operators[0].customOptions))
    assert options["bytecode_offset"] + options["bytecode_size"] == len(file)
    assert file[options["bytecode_offset"] :].startswith(bytes([1, 2, 3, 4]))


@pytest.mark.runtime
def test_custom_unknown_op_is_refused_by_the_runtime() -> None:
    with pytest.raises(RuntimeError, match="NobodyHasThisOperator"):
        Interpreter(str(MALFORMED / "custom_unknown_op.tflite")).allocate_tensors()


def test_every_malformed_file_is_claimed_above() -> None:
    claimed = {name for name, _, _ in PATCHED} | {
        *("empty", "text", "truncated_header", "truncated_middle", "unexplained_trailing_bytes"),
        *("offsets_amplified", "subgraph_index_out_of_range", "buffer_smaller_than_shape"),
        *("quantized_dimension_out_of_range", "scale_zero_point_count_mismatch", "zero_subgraphs"),
        *("offset_buffer_past_end", "zip_central_directory_offset_wrong", "unknown_field_newer_schema"),
        *("dispatch_op_custom", "custom_unknown_op", "zip_offsets_count_from_elsewhere"),
        *("buffer_in_two_places", "constant_without_bytes", "buffers_missing", "signature_without_key"),
        *("metadata_shares_weights", "options_of_another_operator", "float16_bias_shape_wrong"),
        "large_custom_options_without_size",
    }
    assert {path.stem for path in MALFORMED.iterdir()} == claimed
