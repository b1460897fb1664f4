"""Each committed model still is what its name says, read with the runtime's generated classes only."""

from __future__ import annotations

import functools
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from flatbuffers.table import Table

from .helpers import FIXTURES

MAX_TOTAL_NBYTES = 5_000_000
LARGE = 1024  # elements; the converter's threshold for quantizing a weight
MIN_ACCURACY = 0.95

OPERATOR_NAMES = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}
INPUTS_OF = {
    "mtcnn_rnet_old_schema": "mtcnn_rnet",
    "digits_cnn": "digits_eval",
    "digits_cnn_float16": "digits_eval",
    "digits_cnn_dynamic_range": "digits_eval",
    "metadata_label_zip": "digits_eval",
    "offset_buffers": "digits_eval",
}
SOUND = sorted(path.stem for path in FIXTURES.glob("*.tflite"))
CANNOT_RUN = {"conv_without_bias"}
# The converter aligns buffer data to 4 bytes only, whatever the schema demands; what the object API packed
# for these fixtures is aligned to 16.
AS_CONVERTED = {
    *("batch_matmul", "dynamic_shapes", "mtcnn_rnet", "resource_variables", "text_embedding"),
    *("digits_cnn", "digits_cnn_dynamic_range", "digits_cnn_float16", "digits_cnn_full_int8"),
    *("transpose_conv", "two_signatures_shared_weights", "while_loop"),
}


# -- Reading -------------------------------------------------------------------------------------------------


def path_of(name: str) -> Path:
    return FIXTURES / f"{name}.tflite"


@functools.cache
def model_of(name: str) -> schema.ModelT:
    return schema.ModelT.InitFromPackedBuf(path_of(name).read_bytes(), 0)


def operator_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    return OPERATOR_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]


def operators(name: str, kind: str, *, graph: int = 0) -> list[schema.OperatorT]:
    model = model_of(name)
    return [
        operator for operator in model.subgraphs[graph].operators if operator_name(model, operator) == kind
    ]


def only_operator(name: str, kind: str, *, graph: int = 0) -> schema.OperatorT:
    (operator,) = operators(name, kind, graph=graph)
    return operator


def input_tensor(name: str, operator: schema.OperatorT, position: int, *, graph: int = 0) -> schema.TensorT:
    return model_of(name).subgraphs[graph].tensors[operator.inputs[position]]


def data_of(name: str, tensor: schema.TensorT) -> bytes:
    data = model_of(name).buffers[tensor.buffer].data
    return b"" if data is None else bytes(data)


def is_large_constant(name: str, tensor: schema.TensorT) -> bool:
    return int(np.prod(tensor.shape)) >= LARGE and len(data_of(name, tensor)) > 0


# -- Running -------------------------------------------------------------------------------------------------


@functools.cache
def inputs_of(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "inputs" / f"{INPUTS_OF.get(name, name)}.npz") as arrays:
        return dict(arrays)


def run(name: str, count: int | None = None) -> list[list[np.ndarray]]:
    """Outputs of the first `count` stored samples (all by default), one list a sample."""
    interpreter = Interpreter(str(path_of(name)))
    arrays = inputs_of(name)
    details = interpreter.get_input_details()
    total = min(len(arrays[detail["name"]]) for detail in details)
    results = []
    for index in range(total if count is None else min(count, total)):
        feeds = {detail["index"]: arrays[detail["name"]][index][None] for detail in details}
        if index == 0:
            for position, value in feeds.items():
                interpreter.resize_tensor_input(position, value.shape)
            interpreter.allocate_tensors()
        for position, value in feeds.items():
            interpreter.set_tensor(position, value)
        interpreter.invoke()
        results.append(
            [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
        )
    return results


def assert_same_outputs(first: list[list[np.ndarray]], second: list[list[np.ndarray]]) -> None:
    for left, right in zip(first, second, strict=True):
        for one, other in zip(left, right, strict=True):
            np.testing.assert_array_equal(one, other)


# -- The collection ------------------------------------------------------------------------------------------


def test_all_fixtures_together_are_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < MAX_TOTAL_NBYTES


def test_the_readme_lists_every_model_with_its_size() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \|.*\| ([\d,]+) \|$", (FIXTURES / "README.md").read_text(), re.MULTILINE
    )
    models = list(FIXTURES.rglob("*.tflite"))
    expected = {
        path.relative_to(FIXTURES).with_suffix("").as_posix(): sum(
            file.stat().st_size for file in (path, *path.parent.glob("*.bin"))
        )
        for path in models
    }
    assert {name: int(nbytes.replace(",", "")) for name, nbytes in rows} == expected


@pytest.mark.runtime
@pytest.mark.parametrize("name", [name for name in SOUND if name not in CANNOT_RUN])
def test_it_runs_and_its_outputs_depend_on_its_inputs(name: str) -> None:
    samples = run(name, count=2)
    assert len(samples) == 2
    for first, second in zip(*samples, strict=True):
        if first.dtype.kind in "fi":
            assert np.isfinite(first).all() and np.isfinite(second).all()
        assert first.shape != second.shape or (first != second).any()


@pytest.mark.parametrize("name", SOUND)
def test_buffers_are_aligned_to_16_only_where_the_converter_did_not_write_them(name: str) -> None:
    root = schema.Model.GetRootAs(path_of(name).read_bytes(), 0)
    tables = [root.Buffers(index)._tab for index in range(root.BuffersLength())]
    starts = [table.Vector(table.Offset(4)) for table in tables if table.Offset(4)]
    assert starts and all(start % 4 == 0 for start in starts)
    assert all(start % 16 == 0 for start in starts) == (name not in AS_CONVERTED)


# -- Trained nets --------------------------------------------------------------------------------------------


def test_mtcnn_rnet_has_the_refinement_net_s_layers() -> None:
    model = model_of("mtcnn_rnet")
    kinds = [operator_name(model, operator) for operator in model.subgraphs[0].operators]
    assert [kinds.count(kind) for kind in ("CONV_2D", "PRELU", "MAX_POOL_2D", "FULLY_CONNECTED")] == [
        3,
        4,
        2,
        3,
    ]
    kernels = [
        list(input_tensor("mtcnn_rnet", operator, 1).shape) for operator in operators("mtcnn_rnet", "CONV_2D")
    ]
    assert kernels == [[28, 3, 3, 3], [48, 3, 3, 28], [64, 2, 2, 48]]
    (image,) = inputs_of("mtcnn_rnet").values()
    assert image.shape[1:] == (24, 24, 3)


@pytest.mark.runtime
def test_mtcnn_rnet_tells_faces_from_clutter() -> None:
    faces = [next(output for output in outputs if output.shape == (1, 2)) for outputs in run("mtcnn_rnet")]
    expected = np.arange(len(faces)) % 2
    assert np.mean(np.concatenate(faces).argmax(1) == expected) >= 0.8


def test_old_schema_has_the_operator_in_the_deprecated_field_only() -> None:
    file = path_of("mtcnn_rnet_old_schema").read_bytes()
    root = schema.Model.GetRootAs(file, 0)
    codes = [root.OperatorCodes(index) for index in range(root.OperatorCodesLength())]
    assert all(code._tab.Offset(10) == 0 for code in codes), "builtin_code is absent"
    assert all(code.DeprecatedBuiltinCode() != 0 for code in codes)
    assert root.MetadataLength() == root.SignatureDefsLength() == 0


@pytest.mark.runtime
def test_old_schema_computes_what_the_new_one_computes() -> None:
    assert_same_outputs(run("mtcnn_rnet_old_schema", 4), run("mtcnn_rnet", 4))


@pytest.mark.runtime
@pytest.mark.parametrize(
    "name", ["digits_cnn", "digits_cnn_float16", "digits_cnn_dynamic_range", "digits_cnn_full_int8"]
)
def test_digits_nets_are_accurate_on_held_out_images(name: str) -> None:
    with np.load(FIXTURES / "labels" / "digits_eval.npz") as arrays:
        labels = arrays["labels"]
    predicted = np.concatenate([outputs[0].argmax(1) for outputs in run(name)])
    assert len(predicted) == len(labels) == 450
    assert np.mean(predicted == labels) >= MIN_ACCURACY


def test_digits_calibration_and_evaluation_do_not_overlap() -> None:
    held_out, calibration = (
        {array.tobytes() for array in next(iter(inputs_of(name).values()))}
        for name in ("digits_eval", "digits_calib")
    )
    assert held_out and calibration and not held_out & calibration


def test_digits_cnn_has_large_weights_of_three_kinds_and_one_small() -> None:
    weights = {
        kind: [int(np.prod(input_tensor("digits_cnn", operator, 1).shape)) for operator in found]
        for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        if (found := operators("digits_cnn", kind))
    }
    assert weights == {"CONV_2D": [288, 4096, 8192], "DEPTHWISE_CONV_2D": [1152], "FULLY_CONNECTED": [10240]}


def test_float16_dequantizes_float16_constants() -> None:
    name = "digits_cnn_float16"
    found = operators(name, "DEQUANTIZE")
    assert len(found) == 10
    for operator in found:
        tensor = input_tensor(name, operator, 0)
        assert tensor.type == schema.TensorType.FLOAT16
        assert len(data_of(name, tensor)) == 2 * np.prod(tensor.shape)


def test_dynamic_range_has_int8_weights_between_float_activations() -> None:
    name = "digits_cnn_dynamic_range"
    (depthwise,) = operators(name, "DEPTHWISE_CONV_2D")
    assert input_tensor(name, depthwise, 0).type == schema.TensorType.FLOAT32
    assert input_tensor(name, depthwise, 1).type == schema.TensorType.INT8
    assert input_tensor(name, depthwise, 1).quantization.quantizedDimension == 3


def test_full_int8_has_no_float_tensor() -> None:
    types = {tensor.type for tensor in model_of("digits_cnn_full_int8").subgraphs[0].tensors}
    assert types == {schema.TensorType.INT8, schema.TensorType.INT32}


def test_text_embedding_gathers_rows_of_a_table() -> None:
    gather = only_operator("text_embedding", "GATHER")
    table = input_tensor("text_embedding", gather, 0)
    assert list(table.shape) == [1000, 16] and is_large_constant("text_embedding", table)
    (ids,) = inputs_of("text_embedding").values()
    assert ids.dtype == np.int32 and ids.max() < 1000


# -- Recurrent operators -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "weights", "states"),
    [
        ("lstm", "UNIDIRECTIONAL_SEQUENCE_LSTM", range(1, 9), (18, 19)),
        (
            "bidirectional_lstm",
            "BIDIRECTIONAL_SEQUENCE_LSTM",
            [*range(1, 9), *range(18, 26)],
            (35, 36, 37, 38),
        ),
        ("rnn", "UNIDIRECTIONAL_SEQUENCE_RNN", (1, 2), (4,)),
        ("rnn", "RNN", (1, 2), (4,)),
        ("svdf", "SVDF", (1, 2), (4,)),
    ],
)
def test_recurrent_operators_have_large_weights_and_variable_state(
    name: str, kind: str, weights: range, states: tuple[int, ...]
) -> None:
    operator = only_operator(name, kind)
    assert all(is_large_constant(name, input_tensor(name, operator, position)) for position in weights)
    variables = [
        position
        for position, index in enumerate(operator.inputs)
        if index >= 0 and input_tensor(name, operator, position).isVariable
    ]
    assert variables == list(states)


# -- Several subgraphs ---------------------------------------------------------------------------------------


def test_two_signatures_share_a_weight_buffer() -> None:
    name = "two_signatures_shared_weights"
    model = model_of(name)
    assert {entry.signatureKey: entry.subgraphIndex for entry in model.signatureDefs} == {
        b"encode": 0,
        b"score": 1,
    }
    large = [
        {tensor.buffer for tensor in graph.tensors if is_large_constant(name, tensor)}
        for graph in model.subgraphs
    ]
    assert large[0] & large[1]


@pytest.mark.runtime
def test_both_signatures_run_on_their_stored_inputs() -> None:
    name = "two_signatures_shared_weights"
    interpreter = Interpreter(str(path_of(name)))
    for key, result in (("encode", "code"), ("score", "scores")):
        runner = interpreter.get_signature_runner(key)
        outputs = [runner(x=sample[None])[result] for sample in inputs_of(name)[f"{key}_x:0"][:2]]
        assert (outputs[0] != outputs[1]).any()


def test_while_body_holds_a_large_weight() -> None:
    options = only_operator("while_loop", "WHILE").builtinOptions
    dense = only_operator("while_loop", "FULLY_CONNECTED", graph=options.bodySubgraphIndex)
    assert is_large_constant(
        "while_loop", input_tensor("while_loop", dense, 1, graph=options.bodySubgraphIndex)
    )


def test_if_branches_hold_different_large_weights() -> None:
    options = only_operator("if_branches", "IF").builtinOptions
    weights = []
    for graph in (options.thenSubgraphIndex, options.elseSubgraphIndex):
        dense = only_operator("if_branches", "FULLY_CONNECTED", graph=graph)
        tensor = input_tensor("if_branches", dense, 1, graph=graph)
        assert is_large_constant("if_branches", tensor)
        weights.append(data_of("if_branches", tensor))
    assert weights[0] != weights[1]


def test_if_branches_inputs_take_both_branches() -> None:
    signs = np.sign(inputs_of("if_branches")["x"].sum(axis=1))
    assert {-1.0, 1.0} <= set(signs)


@pytest.mark.runtime
def test_resource_variables_are_initialized_once_and_remembered() -> None:
    call = only_operator("resource_variables", "CALL_ONCE")
    initializer = call.builtinOptions.initSubgraphIndex
    assert operators("resource_variables", "ASSIGN_VARIABLE", graph=initializer)
    assert operators("resource_variables", "ASSIGN_VARIABLE")
    interpreter = Interpreter(str(path_of("resource_variables")))
    interpreter.allocate_tensors()
    (detail,) = interpreter.get_input_details()
    (output,) = interpreter.get_output_details()
    results = []
    for _ in range(2):
        interpreter.set_tensor(detail["index"], inputs_of("resource_variables")[detail["name"]][0][None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(output["index"]))
    assert (results[0] != results[1]).any()


def test_composite_decomposes_into_a_subgraph_with_a_weight() -> None:
    composite = only_operator("composite", "STABLEHLO_COMPOSITE")
    body = composite.builtinOptions2.decompositionSubgraphIndex
    dense = only_operator("composite", "FULLY_CONNECTED", graph=body)
    assert body == 1
    assert is_large_constant("composite", input_tensor("composite", dense, 1, graph=body))


# -- One peculiarity each ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, kind", [("batch_matmul", "BATCH_MATMUL"), ("transpose_conv", "TRANSPOSE_CONV")]
)
def test_second_input_is_a_large_constant(name: str, kind: str) -> None:
    assert is_large_constant(name, input_tensor(name, only_operator(name, kind), 1))


def test_dynamic_shapes_keep_minus_one() -> None:
    graph = model_of("dynamic_shapes").subgraphs[0]
    assert list(graph.tensors[graph.inputs[0]].shapeSignature) == [-1, -1, 40]


@pytest.mark.runtime
def test_dense_defaults_present_differs_from_dense_in_presence_only() -> None:
    present = {}
    for name in ("dense", "dense_defaults_present"):
        root = schema.Model.GetRootAs(path_of(name).read_bytes(), 0)
        table = root.Subgraphs(0).Tensors(0)  # the input: FLOAT32 (0), buffer 0, no variable
        assert (table.Type(), table.Buffer(), table.IsVariable()) == (0, 0, False)
        present[name] = [table._tab.Offset(slot) != 0 for slot in (6, 8, 14)]
    assert present == {"dense": [False] * 3, "dense_defaults_present": [True] * 3}
    assert_same_outputs(run("dense"), run("dense_defaults_present"))


def test_shared_constant_has_two_consumers() -> None:
    name = "shared_constant_two_ops"
    dense, product = only_operator(name, "FULLY_CONNECTED"), only_operator(name, "MUL")
    assert dense.inputs[1] == product.inputs[1]
    assert is_large_constant(name, input_tensor(name, dense, 1))


@pytest.mark.runtime
def test_conv_without_bias_has_two_inputs_and_cannot_be_prepared() -> None:
    operator = only_operator("conv_without_bias", "CONV_2D")
    assert len(operator.inputs) == 2
    with pytest.raises(RuntimeError, match="has_bias"):
        Interpreter(str(path_of("conv_without_bias"))).allocate_tensors()


@pytest.mark.runtime
def test_strings_go_in_and_come_out_reversed() -> None:
    for index, outputs in enumerate(run("string_input")):
        words = inputs_of("string_input")["words"][index]
        assert outputs[0].tolist() == words[::-1].tolist()


def test_already_int8_has_a_scale_per_channel() -> None:
    weights = input_tensor("already_int8", only_operator("already_int8", "FULLY_CONNECTED"), 1)
    assert weights.type == schema.TensorType.INT8
    assert len(weights.quantization.scale) == weights.shape[0]


@pytest.mark.parametrize("name", ["already_int4", "blockwise_int4"])
def test_int4_weights_are_packed_two_a_byte(name: str) -> None:
    weights = input_tensor(name, only_operator(name, "FULLY_CONNECTED"), 1)
    assert weights.type == schema.TensorType.INT4
    assert 2 * len(data_of(name, weights)) == np.prod(weights.shape)


def test_blockwise_scales_are_a_tensor_named_by_index() -> None:
    name = "blockwise_int4"
    weights = input_tensor(name, only_operator(name, "FULLY_CONNECTED"), 1)
    assert weights.quantization.detailsType == schema.QuantizationDetails.BlockwiseQuantization
    details = weights.quantization.details
    scales = model_of(name).subgraphs[0].tensors[details.scales]
    assert scales.type == schema.TensorType.FLOAT16
    assert list(scales.shape) == [weights.shape[0], weights.shape[1] // details.blockSize]


def test_sparse_weights_store_non_zero_elements_only() -> None:
    weights = input_tensor("sparse", only_operator("sparse", "FULLY_CONNECTED"), 1)
    formats = [entry.format for entry in weights.sparsity.dimMetadata]
    assert formats == [schema.DimensionType.DENSE, schema.DimensionType.SPARSE_CSR]
    stored = len(data_of("sparse", weights)) // 4
    assert 0 < stored < np.prod(weights.shape) / 2
    assert len(weights.sparsity.dimMetadata[1].arrayIndices.values) == stored


# -- Bytes in other places -----------------------------------------------------------------------------------


def test_metadata_zip_opens_and_counts_from_the_start_of_the_file() -> None:
    file = path_of("metadata_label_zip").read_bytes()
    (directory,) = struct.unpack_from("<I", file, file.rindex(b"PK\x05\x06") + 16)
    assert file[directory : directory + 4] == b"PK\x01\x02"
    with zipfile.ZipFile(path_of("metadata_label_zip")) as archive:
        (member,) = archive.infolist()
        assert (member.filename, member.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        assert file[member.header_offset : member.header_offset + 4] == b"PK\x03\x04"
        assert archive.read(member).decode().split("\n")[:2] == ["zero", "one"]
        assert len(archive.read(member).decode().split("\n")) == 10


def test_metadata_names_labels_txt_as_the_output_s_labels() -> None:
    model = model_of("metadata_label_zip")
    (entry,) = (entry for entry in model.metadata if entry.name == b"TFLITE_METADATA")
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"

    def element(table: Table, slot: int) -> Table:
        start = table.Vector(table.Offset(4 + 2 * slot))
        return Table(data, table.Indirect(start))

    root = Table(data, struct.unpack_from("<I", data)[0])
    output = element(element(root, 3), 3)
    labels = element(output, 6)
    assert labels.String(labels.Pos + labels.Offset(4)) == b"labels.txt"


def test_offset_buffers_lie_aligned_outside_the_flatbuffer() -> None:
    file, buffers = path_of("offset_buffers").read_bytes(), model_of("offset_buffers").buffers
    outside = [buffer for buffer in buffers if buffer.offset > 1]
    assert len(outside) == 5
    assert all(buffer.data is None and buffer.offset % 16 == 0 and buffer.size >= LARGE for buffer in outside)
    assert max(buffer.offset + buffer.size for buffer in outside) == len(file)
    originals = {bytes(buffer.data) for buffer in model_of("digits_cnn").buffers if buffer.data is not None}
    assert {file[buffer.offset : buffer.offset + buffer.size] for buffer in outside} <= originals


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["offset_buffers", "metadata_label_zip"])
def test_rearranged_digits_net_computes_the_same(name: str) -> None:
    assert_same_outputs(run(name, 8), run("digits_cnn", 8))


def test_external_buffers_name_slices_of_two_files() -> None:
    name = "external_buffers/model"
    model = model_of(name)
    assert [group.name for group in model.externalBufferGroups] == [b"", b"weights_0.bin", b"weights_1.bin"]
    entries = {entry.id: entry for entry in model.externalBuffers}
    external = [tensor for tensor in model.subgraphs[0].tensors if tensor.externalBuffer]
    assert len(external) == len(entries) == 5
    for tensor in external:
        entry = entries[tensor.externalBuffer]
        file = path_of(name).parent / model.externalBufferGroups[entry.group].name.decode()
        assert tensor.buffer == 0 and entry.id >> 31 == 1
        assert entry.length == 4 * np.prod(tensor.shape) and entry.offset % 64 == 0
        assert entry.offset + entry.length <= file.stat().st_size


@pytest.mark.runtime
def test_external_buffers_compute_what_the_whole_model_computes() -> None:
    from ai_edge_litert.compiled_model import CompiledModel

    (images,) = inputs_of("digits_cnn").values()
    outputs = []
    for name in ("digits_cnn", "external_buffers/model"):
        model = CompiledModel.from_file(str(path_of(name)))
        (source,), (target,) = model.create_input_buffers(0), model.create_output_buffers(0)
        for image in images[:4]:
            source.write(image.reshape(-1))
            model.run_by_index(0, [source], [target])
            outputs.append(np.array(target.read(10, np.float32)))
    np.testing.assert_array_equal(outputs[:4], outputs[4:])
    assert len({output.argmax() for output in outputs}) > 1
