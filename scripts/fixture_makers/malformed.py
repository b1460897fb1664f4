"""Files with one thing wrong each: damaged bytes, contradictions, and what this runtime cannot take.

Most are a well-formed parent with a single field replaced, so that a reader that accepts one of them
has missed exactly the check that the file is named after.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from . import wire
from .builder import ModelBuilder
from .handmade import WIDTH, dense_model, int8_model
from .object_api import BLOB_ALIGNMENT, FILE_IDENTIFIER, pack, read
from .rearranged import (
    aligned,
    labels_text,
    stored_zip,
    with_label_metadata,
    with_offset_buffers,
)
from .wire import patched

FAR_INDEX = 999
MODEL_FIELDS = 10
UNKNOWN_SLOT = MODEL_FIELDS + 5
AMPLIFICATION = 2000


@dataclass(frozen=True)
class Malformation:
    """One malformed file: its name, its kind, what is wrong, and its bytes given the fixtures folder.

    `kind` is `damaged` (the bytes contradict the format or the schema), `odd` (unusual, yet runtimes take
    it),
    `unsupported` (well formed, of another schema) or `unrunnable` (well formed, and no builtin kernel runs
    it).
    """

    name: str
    kind: str
    wrong: str
    make: Callable[[Path], bytes]


def parent() -> bytes:
    """The single dense layer with every scalar field present, hence patchable."""
    return pack(dense_model().model, force_defaults=True)


def graph(data: bytes) -> wire.Table:
    """The first subgraph."""
    return wire.root(data).vector(wire.MODEL_SUBGRAPHS).table(0)


def tensor(data: bytes, index: int) -> wire.Table:
    """A tensor of the first subgraph: 0 the input, 1 the weights, 2 the bias, 3 the output."""
    return graph(data).vector(wire.GRAPH_TENSORS).table(index)


def operator(data: bytes) -> wire.Table:
    """The first operator of the first subgraph."""
    return graph(data).vector(wire.GRAPH_OPERATORS).table(0)


def in_parent(locate: Callable[[bytes], int], layout: str, value: int) -> Callable[[Path], bytes]:
    """Replaces the number that `locate` finds in the parent."""

    def make(_: Path) -> bytes:
        data = parent()
        return patched(data, locate(data), layout, value)

    return make


def truncated(nbytes: Callable[[int], int]) -> Callable[[Path], bytes]:
    """Keeps the first bytes of the parent."""
    return lambda _: parent()[: nbytes(len(parent()))]


def with_objects(
    change: Callable[[schema.ModelT], None], source: Callable[[], ModelBuilder] = dense_model
) -> Callable[[Path], bytes]:
    """Changes a model's objects before packing, for what no patch in place can do."""

    def make(_: Path) -> bytes:
        model = source().model
        change(model)
        return pack(model, force_defaults=True)

    return make


def shorten_weights(model: schema.ModelT) -> None:
    """Takes four bytes off the weights' buffer."""
    buffer = model.buffers[model.subgraphs[0].tensors[1].buffer]
    buffer.data = buffer.data[:-4]


def drop_subgraphs(model: schema.ModelT) -> None:
    """Leaves an empty vector of subgraphs."""
    model.subgraphs = []
    model.signatureDefs = None


def set_quantized_dimension(model: schema.ModelT) -> None:
    """Names axis 2 of a matrix."""
    model.subgraphs[0].tensors[1].quantization.quantizedDimension = 2


def drop_zero_points(model: schema.ModelT) -> None:
    """Keeps three zero points for 32 scales."""
    model.subgraphs[0].tensors[1].quantization.zeroPoint = np.zeros(3, np.int64)


def metadata_in_weights(model: schema.ModelT) -> None:
    """Lets a metadata entry name the buffer of the weights, which raising the version must not overwrite."""
    entry = schema.MetadataT()
    entry.name = "min_runtime_version"
    entry.buffer = model.subgraphs[0].tensors[1].buffer
    model.metadata = [entry]


def options_of_mul(model: schema.ModelT) -> None:
    """Gives the dense layer the options of a MUL."""
    layer = model.subgraphs[0].operators[0]
    layer.builtinOptionsType = schema.BuiltinOptions.MulOptions
    layer.builtinOptions = schema.MulOptionsT()


def bytes_in_two_places(model: schema.ModelT) -> None:
    """Gives the weights' buffer a file offset beside its bytes."""
    buffer = model.buffers[model.subgraphs[0].tensors[1].buffer]
    buffer.offset, buffer.size = 64, 16


def empty_weights(model: schema.ModelT) -> None:
    """Leaves the weights a vector without bytes."""
    model.buffers[model.subgraphs[0].tensors[1].buffer].data = []


def no_buffers(model: schema.ModelT) -> None:
    """Leaves no list of buffers, and tensors that are all computed."""
    model.buffers = None
    model.metadata = None
    for item in model.subgraphs[0].tensors:
        item.buffer = 0


def no_signature_key(model: schema.ModelT) -> None:
    """Takes the signature's key away."""
    model.signatureDefs[0].signatureKey = None


def options_outside_without_size(model: schema.ModelT) -> None:
    """Gives the layer custom options of no bytes, somewhere in the file."""
    model.subgraphs[0].operators[0].largeCustomOptionsOffset = 16


def half_bias_of_another_shape(out: Path) -> bytes:
    """Lets the output of a bias's DEQUANTIZE claim five times the elements of its input."""
    model = read(out / "digits_cnn_float16.tflite")
    main = model.subgraphs[0]
    biases = {
        int(item.inputs[2])
        for item in main.operators
        if model.operatorCodes[item.opcodeIndex].builtinCode == schema.BuiltinOperator.CONV_2D
    }
    bias = main.tensors[min(biases)]
    bias.shape = [5 * int(bias.shape[0])]
    return pack(model)


def zip_offset_from_elsewhere(_: Path) -> bytes:
    """Puts 16 bytes of padding between a model and the ZIP whose offsets were right without them."""
    data = parent()
    whole = stored_zip(data, {"labels.txt": labels_text()})
    return data + bytes(16) + whole[len(data) :]


def while_condition_out_of_range(out: Path) -> bytes:
    """Lets a WHILE name a subgraph that does not exist."""
    data = pack(read(out / "while_loop.tflite"), force_defaults=True)
    return patched(data, operator(data).table(wire.OPERATOR_OPTIONS).field(wire.WHILE_COND), "i", FAR_INDEX)


def offset_buffer_past_end(_: Path) -> bytes:
    """Lets the last offset buffer end 4 KiB after the file."""
    data = with_offset_buffers(dense_model().model)
    buffers = wire.root(data).vector(wire.MODEL_BUFFERS)
    for index in range(buffers.count):
        buffer = buffers.table(index)
        if buffer.has(wire.BUFFER_OFFSET):
            position = buffer.field(wire.BUFFER_OFFSET)
    (offset,) = struct.unpack_from("<Q", data, position)
    return patched(data, position, "Q", offset + 4096)


def zip_offset_wrong(_: Path) -> bytes:
    """Appends a ZIP made on its own: its offsets count from the ZIP's start, not the file's."""
    return with_label_metadata(parent()) + stored_zip(b"", {"labels.txt": labels_text()})


def unknown_field(_: Path) -> bytes:
    """Adds a Model field beyond the schema, as a newer writer would."""

    def start(builder: flatbuffers.Builder) -> None:
        builder.StartObject(UNKNOWN_SLOT + 1)
        builder.PrependUint32Slot(UNKNOWN_SLOT, 42, 0)

    with mock.patch.object(schema, "ModelStart", start):
        return pack(dense_model().model)


def shared_offsets(_: Path) -> bytes:
    """Names one subgraph 2,000 times, in it one tensor 2,000 times, in it a shape of 2,000 axes."""
    builder = flatbuffers.Builder(1 << 16)

    def same(offset: int) -> int:
        builder.StartVector(4, AMPLIFICATION, 4)
        for _ in range(AMPLIFICATION):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    shape = builder.CreateNumpyVector(np.ones(AMPLIFICATION, np.int32))
    schema.TensorStart(builder)
    schema.TensorAddShape(builder, shape)
    tensors = same(schema.TensorEnd(builder))
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    subgraphs = same(schema.SubGraphEnd(builder))
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, subgraphs)
    builder.Finish(schema.ModelEnd(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def custom_model(name: str, options: dict[str, int | str]) -> ModelBuilder:
    """One custom operator with FlexBuffer options."""
    model = ModelBuilder("a custom operator")
    main = model.graph("main")
    x, y = main.input("x", [1, WIDTH]), main.value("y", [1, WIDTH])
    custom = main.operator(name, [x], [y])
    custom.customOptions = np.frombuffer(flexbuffers.Dumps(options), np.uint8)
    main.finish(y)
    return model


def dispatch_op(_: Path) -> bytes:
    """An NPU program after the FlatBuffer, addressed from inside the operator's custom options."""
    bytecode = bytes(range(1, 256)) * 4

    def file(offset: int) -> bytes:
        options: dict[str, int | str] = {
            "bytecode_size": len(bytecode),
            "bytecode_offset": offset,
            "name": "npu",
        }
        return custom_model("DISPATCH_OP", options).pack()

    start = aligned(len(file(len(bytecode))), BLOB_ALIGNMENT)
    data = file(start)
    if len(data) > start:
        raise AssertionError("the options grew with the offset that they hold")
    return data + bytes(start - len(data)) + bytecode


def description_terminator(data: bytes) -> int:
    """Position of the description's terminating zero."""
    text = wire.root(data).vector(wire.MODEL_DESCRIPTION)
    return text.item(text.count, 1)


DAMAGED = [
    ("empty", "no byte at all", lambda _: b""),
    ("text", "a text file", lambda _: b"This is no model.\n" * 8),
    ("truncated_header", "ends within the file identifier", truncated(lambda _: 6)),
    ("truncated_middle", "the second half is missing", truncated(lambda nbytes: nbytes // 2)),
    ("wrong_identifier", "the identifier is TFL9", in_parent(lambda _: 7, "B", ord("9"))),
    (
        "root_offset_out_of_range",
        "the root table lies past the end",
        in_parent(lambda _: 0, "I", 1 << 24),
    ),
    (
        "vtable_out_of_range",
        "the root's vtable lies before the file",
        in_parent(lambda data: wire.root(data).position, "i", 1 << 24),
    ),
    (
        "vtable_size_odd",
        "the root's vtable has an odd size",
        in_parent(lambda data: wire.root(data).vtable, "H", 7),
    ),
    (
        "table_offset_zero",
        "the subgraph's offset is 0: it refers to itself",
        in_parent(lambda data: wire.root(data).vector(wire.MODEL_SUBGRAPHS).item(0), "I", 0),
    ),
    (
        "vector_count_huge",
        "2**32 - 1 operators",
        in_parent(lambda data: graph(data).vector(wire.GRAPH_OPERATORS).position, "I", 0xFFFFFFFF),
    ),
    (
        "string_unterminated",
        "no zero byte after the description",
        in_parent(description_terminator, "B", ord("!")),
    ),
    (
        "offsets_amplified",
        "eight billion numbers in 24 kB: 2,000 subgraphs at one offset, each of 2,000 tensors at one offset",
        shared_offsets,
    ),
    (
        "tensor_buffer_index_out_of_range",
        "the weights are in buffer 999",
        in_parent(lambda data: tensor(data, 1).field(wire.TENSOR_BUFFER), "I", FAR_INDEX),
    ),
    (
        "operator_input_index_out_of_range",
        "the operator reads tensor 999",
        in_parent(lambda data: operator(data).vector(wire.OPERATOR_INPUTS).item(0), "i", FAR_INDEX),
    ),
    (
        "operator_input_index_negative",
        "the operator reads tensor -2 (only -1 means absent)",
        in_parent(lambda data: operator(data).vector(wire.OPERATOR_INPUTS).item(2), "i", -2),
    ),
    (
        "opcode_index_out_of_range",
        "the operator has code 999",
        in_parent(lambda data: operator(data).field(wire.OPERATOR_CODE), "I", FAR_INDEX),
    ),
    (
        "subgraph_index_out_of_range",
        "the condition of a WHILE is subgraph 999",
        while_condition_out_of_range,
    ),
    (
        "signature_tensor_index_out_of_range",
        "the signature's input is tensor 999",
        in_parent(
            lambda data: (
                wire.root(data)
                .vector(wire.MODEL_SIGNATURES)
                .table(0)
                .vector(wire.SIGNATURE_INPUTS)
                .table(0)
                .field(wire.TENSOR_MAP_INDEX)
            ),
            "I",
            FAR_INDEX,
        ),
    ),
    (
        "buffer_smaller_than_shape",
        "the weights' buffer is four bytes short",
        with_objects(shorten_weights),
    ),
    (
        "negative_shape",
        "the weights have -40 columns",
        in_parent(lambda data: tensor(data, 1).vector(wire.TENSOR_SHAPE).item(1), "i", -WIDTH),
    ),
    (
        "shape_product_overflows",
        "the weights have 2**31 - 1 rows",
        in_parent(lambda data: tensor(data, 1).vector(wire.TENSOR_SHAPE).item(0), "i", (1 << 31) - 1),
    ),
    (
        "quantized_dimension_out_of_range",
        "a matrix is quantized along axis 2",
        with_objects(set_quantized_dimension, int8_model),
    ),
    (
        "scale_zero_point_count_mismatch",
        "32 scales, 3 zero points",
        with_objects(drop_zero_points, int8_model),
    ),
    ("zero_subgraphs", "no subgraph", with_objects(drop_subgraphs)),
    (
        "union_without_type",
        "options are present, their type is NONE",
        in_parent(lambda data: operator(data).field(wire.OPERATOR_OPTIONS_TYPE), "B", 0),
    ),
    ("offset_buffer_past_end", "a buffer outside the FlatBuffer ends past the file", offset_buffer_past_end),
    (
        "buffer_in_two_places",
        "the weights are in the buffer and at a file offset",
        with_objects(bytes_in_two_places),
    ),
    ("constant_without_bytes", "the weights' vector of bytes is empty", with_objects(empty_weights)),
    ("buffers_missing", "not even the empty buffer is there", with_objects(no_buffers)),
    ("signature_without_key", "the signature has no key", with_objects(no_signature_key)),
    (
        "unexplained_trailing_bytes",
        "64 bytes after the FlatBuffer that nothing refers to",
        lambda _: parent() + b"\xa5" * 64,
    ),
]

# What an editor of models may leave behind: nothing of it stops a runtime, and each tripped a rewrite once.
ODD = [
    (
        "zip_central_directory_offset_wrong",
        "the appended ZIP counts from its own start",
        zip_offset_wrong,
    ),
    (
        "zip_offsets_count_from_elsewhere",
        "the appended ZIP counts from 16 bytes after the start of the file",
        zip_offset_from_elsewhere,
    ),
    (
        "metadata_shares_weights",
        "min_runtime_version is in the weights' buffer",
        with_objects(metadata_in_weights),
    ),
    ("options_of_another_operator", "a FULLY_CONNECTED has MulOptions", with_objects(options_of_mul)),
    (
        "large_custom_options_without_size",
        "custom options lie at offset 16 and have no bytes",
        with_objects(options_outside_without_size),
    ),
    (
        "float16_bias_shape_wrong",
        "a bias has five times the elements it is made of",
        half_bias_of_another_shape,
    ),
]

UNSUPPORTED = [
    (
        "schema_version_2",
        "Model.version is 2",
        in_parent(lambda data: wire.root(data).field(wire.MODEL_VERSION), "I", 2),
    ),
    ("unknown_field_newer_schema", f"the Model table has a field in slot {UNKNOWN_SLOT}", unknown_field),
    (
        "union_type_unknown",
        "options of type 250",
        in_parent(lambda data: operator(data).field(wire.OPERATOR_OPTIONS_TYPE), "B", 250),
    ),
]

UNRUNNABLE = [
    ("dispatch_op_custom", "DISPATCH_OP addresses bytecode after the FlatBuffer", dispatch_op),
    (
        "custom_unknown_op",
        "a custom operator that no runtime has",
        lambda _: custom_model("NobodyHasThisOperator", {"answer": 42}).pack(),
    ),
]

MALFORMATIONS = [
    Malformation(name, kind, wrong, make)
    for kind, rows in (
        ("damaged", DAMAGED),
        ("odd", ODD),
        ("unsupported", UNSUPPORTED),
        ("unrunnable", UNRUNNABLE),
    )
    for name, wrong, make in rows
]


def make_all(out: Path) -> None:
    """Writes every malformed file."""
    folder = out / "malformed"
    folder.mkdir(parents=True, exist_ok=True)
    for malformation in MALFORMATIONS:
        (folder / f"{malformation.name}.tflite").write_bytes(malformation.make(out))
