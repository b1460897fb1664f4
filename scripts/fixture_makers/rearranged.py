"""Trained models stored in another way: old schema, offset buffers, external weights, an appended ZIP."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from .object_api import BLOB_ALIGNMENT, buffer_of, pack, read, unpack

OFFSET_BUFFER_MIN_NBYTES = 1024
EXTERNAL_ALIGNMENT = 64
EXTERNAL_ID_BIT = 1 << 31
WEIGHT_INPUT = 1
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def make_mtcnn_rnet_old_schema(out: Path) -> None:
    """Keeps the operator in `deprecated_builtin_code` only and drops what the old schema had not."""
    model = read(out / "mtcnn_rnet.tflite")
    for code in model.operatorCodes:
        code.builtinCode = 0  # the default, hence absent from the file
    model.signatureDefs = None
    model.metadata = None
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.hasRank = False
    (out / "mtcnn_rnet_old_schema.tflite").write_bytes(pack(model))


def aligned(position: int, alignment: int) -> int:
    """The first multiple of `alignment` at or after `position`."""
    return -(-position // alignment) * alignment


def with_offset_buffers(model: schema.ModelT) -> bytes:
    """Lays large buffers out after the FlatBuffer, as files above 2 GiB have to (schema version 3c)."""
    moved = []
    for buffer in model.buffers:
        if buffer.data is not None and len(buffer.data) >= OFFSET_BUFFER_MIN_NBYTES:
            moved.append((buffer, bytes(buffer.data)))
            buffer.data = None
            buffer.offset = buffer.size = EXTERNAL_ID_BIT  # present, so that packing again keeps the length
    position = aligned(len(pack(model)), BLOB_ALIGNMENT)
    for buffer, data in moved:
        buffer.offset, buffer.size = position, len(data)
        position = aligned(position + len(data), BLOB_ALIGNMENT)
    file = bytearray(pack(model))
    for buffer, data in moved:
        file += bytes(buffer.offset - len(file)) + data
    return bytes(file)


def make_offset_buffers(out: Path) -> None:
    """The digits net with every buffer of 1 KiB and more outside the FlatBuffer."""
    (out / "offset_buffers.tflite").write_bytes(with_offset_buffers(read(out / "digits_cnn.tflite")))


def make_external_buffers(out: Path) -> None:
    """The digits net with its weights in two files beside it (schema version 3d)."""
    model = read(out / "digits_cnn.tflite")
    names = ["", "weights_0.bin", "weights_1.bin"]  # the first group is a placeholder by convention
    model.externalBufferGroups, model.externalBuffers = [], []
    for name in names:
        group = schema.ExternalBufferGroupT()
        group.name = name
        model.externalBufferGroups.append(group)

    (graph,) = model.subgraphs
    constants = [graph.tensors[operator.inputs[WEIGHT_INPUT]] for operator in graph.operators[:4]]
    constants.append(graph.tensors[graph.operators[-2].inputs[WEIGHT_INPUT]])
    files = {name: bytearray() for name in names[1:]}
    for number, tensor in enumerate(constants):
        group = 1 + (number == len(constants) - 1)
        file = files[names[group]]
        file += bytes(aligned(len(file), EXTERNAL_ALIGNMENT) - len(file))
        data = bytes(model.buffers[tensor.buffer].data)
        entry = schema.ExternalBufferT()
        entry.id, entry.group = EXTERNAL_ID_BIT | number, group
        entry.offset, entry.length, entry.packing = len(file), len(data), "unpacked"
        model.externalBuffers.append(entry)
        file += data
        model.buffers[tensor.buffer].data = None
        tensor.buffer, tensor.externalBuffer = 0, entry.id

    folder = out / "external_buffers"
    folder.mkdir(exist_ok=True)
    (folder / "model.tflite").write_bytes(pack(model))
    for name, content in files.items():
        (folder / name).write_bytes(content)


def label_metadata() -> bytes:
    """A ModelMetadata FlatBuffer that names labels.txt as the labels of the only output.

    Slots as in metadata_schema.fbs: ModelMetadata name 0, subgraph_metadata 3, min_parser_version 7;
    SubGraphMetadata input_tensor_metadata 2, output_tensor_metadata 3; TensorMetadata name 0,
    associated_files 6; AssociatedFile name 0, type 2 (TENSOR_AXIS_LABELS = 2).
    """
    builder = flatbuffers.Builder(256)

    def table(slots: int, offsets: dict[int, int], byte: tuple[int, int] | None = None) -> int:
        builder.StartObject(slots)
        for slot, offset in offsets.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        if byte is not None:
            builder.PrependInt8Slot(*byte, 0)
        return int(builder.EndObject())

    def vector(*tables: int) -> int:
        builder.StartVector(4, len(tables), 4)
        for offset in reversed(tables):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    labels = table(5, {0: builder.CreateString("labels.txt")}, (2, 2))
    output = table(7, {0: builder.CreateString("digit"), 6: vector(labels)})
    image = table(7, {0: builder.CreateString("image")})
    graph = table(11, {2: vector(image), 3: vector(output)})
    model = table(
        8,
        {0: builder.CreateString("digits"), 3: vector(graph), 7: builder.CreateString("1.0.0")},
    )
    builder.Finish(model, b"M001")
    return bytes(builder.Output())


def stored_zip(prefix: bytes, members: dict[str, bytes]) -> bytes:
    """Appends an uncompressed ZIP whose offsets count from the start of `prefix`."""
    file = io.BytesIO(prefix)
    file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, ZIP_EPOCH), content)
    return file.getvalue()


def with_label_metadata(data: bytes) -> bytes:
    """Adds a TFLITE_METADATA entry to a model, which moves every offset in it."""
    model = unpack(data)
    model.buffers.append(buffer_of(label_metadata()))
    entry = schema.MetadataT()
    entry.name = "TFLITE_METADATA"
    entry.buffer = len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    return pack(model)


def labels_text() -> bytes:
    """One label a line, as classifiers ship them."""
    return "\n".join(DIGIT_NAMES).encode()


def make_metadata_label_zip(out: Path) -> None:
    """The digits net with metadata and its labels.txt in a ZIP after the FlatBuffer."""
    model = with_label_metadata((out / "digits_cnn.tflite").read_bytes())
    (out / "metadata_label_zip.tflite").write_bytes(stored_zip(model, {"labels.txt": labels_text()}))
