"""No index of the schema is forgotten, and each still points at its object when others come or go."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import check, load, save
from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source
from tfl_rewrite.flatbuf.record import INT32, Kind, Record, ScalarVector
from tfl_rewrite.model import lift
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.invariants import problems
from tfl_rewrite.model.ir import Buffer, Model, OperatorCode, SubGraph, Tensor, schema
from tfl_rewrite.model.lift import MAX_RANK, REFERENCES, Into
from tfl_rewrite.model.lower import lower

from .helpers import Shift, essential, lowered, plain, written

# Integer fields that are no index into the model, by reason. `Table.*` is every field of the table.
NO_INDEX: dict[str, set[str]] = {
    "sizes, counts and strides": {
        *("*.stride_w", "*.stride_h", "*.stride_d", "*.dilation_w_factor", "*.dilation_h_factor"),
        *("*.dilation_d_factor", "*.filter_width", "*.filter_height", "*.new_height", "*.new_width"),
        *("*.block_size", "*.num_splits", "*.depth_multiplier", "SVDFOptions.rank", "*.window_strides"),
        *("UnpackOptions.num", "PackOptions.values_count", "SkipGramOptions.ngram_size"),
        *("SkipGramOptions.max_skip_size", "ConcatEmbeddingsOptions.*", "FakeQuantOptions.num_bits"),
        *("LocalResponseNormalizationOptions.radius", "ReshapeOptions.new_shape", "Tensor.shape"),
        *("Tensor.shape_signature", "VariantSubType.shape", "BlockwiseQuantization.block_shape"),
        *("DimensionMetadata.dense_size", "*.window_dimensions", "*.slice_sizes", "*.strides"),
        *("Buffer.size", "Operator.large_custom_options_size", "ExternalBuffer.length"),
        *("*.feature_group_count", "*.batch_group_count", "*.base_dilations", "*.window_dilations"),
        *("*.lhs_dilation", "*.rhs_dilation", "*.padding", "*.edge_padding_low", "*.edge_padding_high"),
        *("*.interior_padding",),
    },
    "positions inside of a tensor": {
        *("*.axis", "*.batch_dim", "*.batch_dims", "*.seq_dim", "*.squeeze_dims", "*.quantized_dimension"),
        *("*.quantized_dimensions", "*.dimension", "*.dimensions", "*.permutation", "*.iota_dimension"),
        *("*.broadcast_dimensions", "*.start_indices", "*.limit_indices", "*.begin_mask", "*.end_mask"),
        *("*.ellipsis_mask", "*.new_axis_mask", "*.shrink_axis_mask", "SparsityParameters.traversal_order"),
        *("SparsityParameters.block_map", "*.offset_dims", "*.collapsed_slice_dims", "*.start_index_map"),
        *("*.index_vector_dim", "*.update_window_dims", "*.inserted_window_dims"),
        *("*.scatter_dims_to_operand_dims", "*.lhs_batching_dimensions", "*.rhs_batching_dimensions"),
        *("*.lhs_contracting_dimensions", "*.rhs_contracting_dimensions", "*.input_batch_dimension"),
        *("*.input_feature_dimension", "*.input_spatial_dimensions", "*.kernel_input_feature_dimension"),
        *("*.kernel_output_feature_dimension", "*.kernel_spatial_dimensions", "*.output_batch_dimension"),
        *("*.output_feature_dimension", "*.output_spatial_dimensions"),
        *("Int32Vector.values", "Uint16Vector.values", "Uint8Vector.values"),
    },
    "content": {
        *("Buffer.data", "Operator.custom_options", "CustomQuantization.custom", "*.composite_attributes"),
        *("*.custom_attributes", "FullyConnectedOptions.quant_spec", "QuantizationParameters.zero_point"),
        *("RandomOptions.seed", "RandomOptions.seed2"),
    },
    "numbers of a kind or version": {"*.version", "*.api_version", "OperatorCode.deprecated_builtin_code"},
    "names that happen to be numbers": {"HashtableOptions.table_id", "ExternalBuffer.id"},
    "positions in another file": {"ExternalBuffer.offset"},
}


def integer_fields() -> set[tuple[str, str]]:
    """Every number field of the schema that is neither a float, a truth value nor a named constant."""
    return {
        (table.name, field.name)
        for table in schema().tables.values()
        for field in table.fields
        if field.kind in (Kind.SCALAR, Kind.SCALARS)
        and field.scalar is not None
        and field.scalar.code in "bBhHiIqQ"
        and field.enum is None
    }


def explained(table: str, field: str) -> list[str]:
    return [
        reason
        for reason, names in NO_INDEX.items()
        if names & {f"{table}.{field}", f"*.{field}", f"{table}.*"}
    ]


def test_every_integer_field_is_a_reference_or_has_a_reason_not_to_be() -> None:
    references = {(row.table, row.field) for row in REFERENCES}
    fields = integer_fields()
    assert len(fields) > 150
    open_questions = {pair for pair in fields - references if not explained(*pair)}
    assert open_questions == set()
    assert references <= fields, "every row names a field of the schema"
    assert {pair for pair in references if explained(*pair)} == set(), "one or the other"


def test_fields_that_sound_like_references_are_in_the_table() -> None:
    references = {(row.table, row.field) for row in REFERENCES}
    sounding = {
        (table, field)
        for table, field in integer_fields()
        if any(
            word in field
            for word in ("subgraph", "tensor_index", "opcode", "_buffer", "computation", "branch")
        )
    }
    assert sounding and sounding <= references


def test_reasons_name_fields_of_the_schema() -> None:
    fields = integer_fields()
    names = {f"{table}.{field}" for table, field in fields}
    names |= {f"*.{field}" for _, field in fields} | {f"{table}.*" for table, _ in fields}
    assert set().union(*NO_INDEX.values()) <= names


def test_rows_are_unique_and_absent_values_are_negative_or_unused() -> None:
    pairs = [(row.table, row.field) for row in REFERENCES]
    assert len(set(pairs)) == len(pairs)
    for row in REFERENCES:
        assert row.absent in (None, -1, 0)
        if row.absent == 0:
            assert row.into in (Into.EXTERNAL_BUFFER, Into.FILE)


def test_dimensions_and_parts_have_limits() -> None:
    def read(rank: int, least: int = 0) -> Model:
        tensor = make("Tensor", shape=ints(*[1] * (rank - 1), least))
        root = make("Model", version=3, subgraphs=[make("SubGraph", tensors=[tensor])])
        return Source(Container.of_bytes(written(root))).model()

    assert len(read(MAX_RANK).subgraphs[0].tensors[0].shape or ()) == MAX_RANK
    with pytest.raises(FormatError, match=f"{MAX_RANK + 1} dimensions, more than {MAX_RANK}"):
        read(MAX_RANK + 1)
    assert read(1, -1).subgraphs[0].tensors[0].shape == (-1,)
    with pytest.raises(FormatError, match="negative dimension"):
        read(1, -2)
    source = Source(Container.of_bytes(written(make("Model", version=3, subgraphs=[make("SubGraph")]))))
    lifter = lift._Lifter(source.root, source.container)
    left = lifter.parts_left
    assert lifter._shape(ints(1, 2, 3), "shape", source.root) == (1, 2, 3)
    assert lifter.parts_left == left - 3
    lifter.spend(lifter.parts_left, "everything", source.root)
    with pytest.raises(FormatError, match="shared so often"):
        lifter.spend(1, "one more", source.root)


# -- A model with every reference ----------------------------------------------------------------------------


def make(table: str, /, **values: object) -> Record:
    return Record(schema().tables[table], dict(values))


def union(name: str, member: str) -> int:
    return schema().enums[name].values[member]


def ints(*values: int) -> ScalarVector:
    return ScalarVector.of(INT32, values)


def options_with_subgraphs() -> list[Record]:
    """An operator for each options table that names subgraphs; every name is subgraph 1 or 2."""
    rows = []
    for table in sorted({row.table for row in REFERENCES if row.into is Into.SUBGRAPH} - {"SignatureDef"}):
        values: dict[str, Any] = {}
        for row in REFERENCES:
            if row.table == table:
                many = schema().tables[table].by_name[row.field].kind is Kind.SCALARS
                values[row.field] = ints(2, 0, 1) if many else 1 + len(values) % 2
        slot = "builtin_options"
        if table not in schema().enums["BuiltinOptions"].values:
            slot = "builtin_options_2"
        enum = "BuiltinOptions" if slot == "builtin_options" else "BuiltinOptions2"
        rows.append(make("Operator", **{f"{slot}_type": union(enum, table), slot: make(table, **values)}))
    return rows


def every_reference() -> Record:
    blockwise = make(
        "QuantizationParameters",
        details_type=union("QuantizationDetails", "BlockwiseQuantization"),
        details=make("BlockwiseQuantization", scales=2, zero_points=-1, block_size=32),
    )
    several = make(
        "QuantizationParameters",
        details_type=union("QuantizationDetails", "MultiAxisQuantization"),
        details=make("MultiAxisQuantization", scales=1, zero_points=2, block_size=0),
    )
    tensors = [
        make("Tensor", name="a"),
        make("Tensor", name="b", buffer=2, quantization=several),
        make("Tensor", name="c", buffer=1, quantization=blockwise),
        make("Tensor", name="d", external_buffer=(1 << 31) | 7),
    ]
    operator = make(
        "Operator",
        opcode_index=1,
        inputs=ints(-1, 0, 2),
        outputs=ints(1, -1),
        intermediates=ints(3, -1),
        debug_metadata_index=1,
    )
    graph = make(
        "SubGraph",
        tensors=tensors,
        inputs=ints(0, 3),
        outputs=ints(1),
        operators=[operator, *options_with_subgraphs()],
        debug_metadata_index=0,
    )
    signature = make(
        "SignatureDef",
        signature_key="k",
        subgraph_index=2,
        inputs=[make("TensorMap", name="x", tensor_index=3)],
        outputs=[make("TensorMap", name="y", tensor_index=1), make("TensorMap", name="z")],
    )
    external = make("ExternalBuffer", id=(1 << 31) | 7, group=1, offset=64, length=4)
    return make(
        "Model",
        version=3,
        operator_codes=[make("OperatorCode", builtin_code=9), make("OperatorCode", builtin_code=18)],
        subgraphs=[
            graph,
            make("SubGraph", tensors=tensors, inputs=ints(2)),
            make("SubGraph", tensors=tensors),
        ],
        buffers=[make("Buffer"), *(make("Buffer", data=OwnedBlob(bytes([n]) * 20)) for n in (1, 2))],
        metadata=[make("Metadata", name="m", buffer=2)],
        metadata_buffer=ints(1, 2),
        signature_defs=[signature],
        external_buffer_groups=[make("ExternalBufferGroup"), make("ExternalBufferGroup", name="w.bin")],
        external_buffers=[external],
    )


def insert(model: Model) -> None:
    """Something unused before everything else that may come first."""
    code = OperatorCode(0)
    model.operator_codes.insert(0, code)
    model.buffers.insert(1, Buffer(OwnedBlob(b"unused")))
    for subgraph in model.subgraphs:
        subgraph.tensors.insert(0, Tensor("unused", (1,), 0, model.buffers[0]))
    tensor = Tensor("through", (1,), 0, model.buffers[0])
    model.subgraphs.insert(1, SubGraph([tensor], [tensor], [tensor], [], "unused"))


def remove(model: Model) -> None:
    """Takes what :func:`insert` put there."""
    del model.operator_codes[0], model.buffers[1], model.subgraphs[1]
    for subgraph in model.subgraphs:
        del subgraph.tensors[0]


def after_the_first(index: int) -> int:
    return index + 1 if index > 0 else index


def after_all(index: int) -> int:
    return index + 1


INSERTED: Shift = {
    Into.TENSOR: after_all,
    Into.SIGNATURE_TENSOR: after_all,
    Into.OPERATOR_CODE: after_all,
    Into.BUFFER: after_the_first,
    Into.SUBGRAPH: after_the_first,
}


def without_inserted(root: Record) -> Record:
    """The records less what :func:`insert` adds, so that what refers can be compared."""
    graphs = [
        graph.replace(tensors=graph["tensors"][1:]) if graph.get("tensors") else graph
        for index, graph in enumerate(root["subgraphs"])
        if index != 1
    ]
    return root.replace(
        operator_codes=root["operator_codes"][1:],
        buffers=[row for index, row in enumerate(root["buffers"]) if index != 1],
        subgraphs=graphs,
    )


def test_each_reference_is_in_the_model_that_has_them_all() -> None:
    found: set[tuple[str, str]] = set()

    def walk(value: Any) -> None:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Record):
                found.update((item.spec.name, name) for name in item.values)
                for below in item.values.values():
                    walk(below)

    walk(every_reference())
    in_file = {("Buffer", "offset"), ("Operator", "large_custom_options_offset")}
    assert {(row.table, row.field) for row in REFERENCES} - found == in_file


def assert_references_follow(model: Model) -> None:
    before = lowered(model)
    insert(model)
    assert without_inserted(lowered(model)) == plain(before, INSERTED)
    again = Source(Container.of_bytes(written(lower(model)))).model()
    assert lowered(again) == lowered(model)
    remove(again)
    assert essential(lowered(again)) == essential(before), "and back"


def test_references_follow_what_they_refer_to() -> None:
    assert_references_follow(Source(Container.of_bytes(written(every_reference()))).model())


def test_references_of_fixtures_follow(sound: Path) -> None:
    assert_references_follow(load(sound))


def test_references_of_public_models_follow(public: Path) -> None:
    try:
        model = load(public)
    except (FormatError, UnsupportedError) as error:
        pytest.skip(f"not readable: {error.what}")
    assert_references_follow(model)


OUT_OF_RANGE = [row for row in REFERENCES if row.into not in (Into.FILE, Into.DEBUG)]


@pytest.mark.parametrize("row", OUT_OF_RANGE, ids=lambda row: f"{row.table}.{row.field}")
@pytest.mark.parametrize("number", [99, -3])
def test_each_reference_is_checked_when_read(row: Any, number: int) -> None:
    field = schema().tables[row.table].by_name[row.field]
    if field.scalar.code in "IQ":
        number = abs(number) + 50

    def spoiled(value: Any) -> Any:
        if isinstance(value, list):
            return [spoiled(item) for item in value]
        if not isinstance(value, Record):
            return value
        values = {name: spoiled(item) for name, item in value.values.items()}
        if value.spec.name == row.table and row.field in values:
            values[row.field] = (
                number if field.kind is Kind.SCALAR else ScalarVector.of(field.scalar, [number])
            )
        return Record(value.spec, values)

    with pytest.raises(FormatError, match=r"out of range|no external buffer"):
        Source(Container.of_bytes(written(spoiled(every_reference())))).model()


# -- The interpreter is the judge ----------------------------------------------------------------------------

INPUTS = {
    "mtcnn_rnet_old_schema": "mtcnn_rnet",
    "digits_cnn": "digits_eval",
    "digits_cnn_float16": "digits_eval",
    "digits_cnn_dynamic_range": "digits_eval",
    "metadata_label_zip": "digits_eval",
    "offset_buffers": "digits_eval",
}
CANNOT_RUN = {"conv_without_bias"}


def run(jobs: list[tuple[Path, Path]], folder: Path) -> dict[str, np.ndarray]:
    target = folder / "outputs.npz"
    subprocess.run(
        [sys.executable, Path(__file__).with_name("run_models.py"), target],
        input=json.dumps([[str(model), str(inputs)] for model, inputs in jobs]),
        text=True,
        check=True,
        capture_output=True,
        timeout=120,
    )
    with np.load(target) as arrays:
        return dict(arrays)


def outputs_of(outputs: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(f"{number}."): value
        for name, value in outputs.items()
        if name.startswith(f"{number}.")
    }


@pytest.mark.runtime
def test_insertions_do_not_change_any_output(fixtures: Path, tmp_path: Path) -> None:
    jobs, names = [], []
    for path in sorted(fixtures.glob("*.tflite")):
        if path.stem in CANNOT_RUN:
            continue
        model = load(path)
        insert(model)
        assert problems(model) == []
        save(model, tmp_path / path.name)
        inputs = fixtures / "inputs" / f"{INPUTS.get(path.stem, path.stem)}.npz"
        jobs += [(path, inputs), (tmp_path / path.name, inputs)]
        names.append(path.stem)
    outputs = run(jobs, tmp_path)
    for number, name in enumerate(names):
        before, after = outputs_of(outputs, 2 * number), outputs_of(outputs, 2 * number + 1)
        assert before and "error" not in before, (name, before)
        assert before.keys() == after.keys(), (name, after)
        for key, value in before.items():
            assert (value.dtype, value.tobytes()) == (after[key].dtype, after[key].tobytes()), name


@pytest.mark.runtime
def test_what_the_interpreter_refuses_is_refused_or_listed(fixtures: Path, tmp_path: Path) -> None:
    paths = sorted((fixtures / "malformed").iterdir())
    outputs = run([(path, fixtures / "inputs" / "dense.npz") for path in paths], tmp_path)
    refused = 0
    for number, path in enumerate(paths):
        error = str(outputs_of(outputs, number).get("error", ""))
        if not error or "unresolved custom op" in error or "not a file in the archive" in error:
            continue
        refused += 1
        try:
            assert check(path) != [], f"{path.stem}: {error}"
        except (FormatError, UnsupportedError):
            pass
    assert refused > 20
