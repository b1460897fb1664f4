"""Damaged bytes raise FormatError or UnsupportedError, quickly, and nothing else."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfl_rewrite import check, inspect, load, save
from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source, is_changed, layout
from tfl_rewrite.flatbuf.reader import read
from tfl_rewrite.flatbuf.record import INT32, FieldSpec, Kind, Record, ScalarVector, Schema, TableSpec
from tfl_rewrite.flatbuf.writer import plan
from tfl_rewrite.model.blob import MemorySink
from tfl_rewrite.model.invariants import problems
from tfl_rewrite.model.ir import schema
from tfl_rewrite.work import Work

from ..strategies import Edit, edits

REFUSED = (FormatError, UnsupportedError)

# What load() says, and where.
NOT_READ = {
    "empty": "empty",
    "text": "bytes of text",
    "truncated_header": "too few",
    "truncated_middle": "leads out of the file",
    "wrong_identifier": "TFL9",
    "root_offset_out_of_range": "leads out of the file",
    "vtable_out_of_range": "vtable",
    "vtable_size_odd": "vtable of 7 bytes",
    "table_offset_zero": "subgraphs\\[0\\].*offset 0",
    "vector_count_huge": "4294967295 elements",
    "string_unterminated": "description.*terminating zero",
    "offsets_amplified": "more than 64",
    "tensor_buffer_index_out_of_range": "tensors\\[1\\].buffer.*999",
    "operator_input_index_out_of_range": "operators\\[0\\].inputs.*999",
    "operator_input_index_negative": "operators\\[0\\].inputs.*-2",
    "opcode_index_out_of_range": "opcode_index.*999",
    "subgraph_index_out_of_range": "cond_subgraph_index.*999",
    "signature_tensor_index_out_of_range": "signature_defs\\[0\\].inputs.*999",
    "negative_shape": "negative dimension",
    "zero_subgraphs": "no subgraph",
    "union_without_type": "union has a value but no type",
    "offset_buffer_past_end": "past the end of the file",
    "buffer_in_two_places": "5120 in the buffer, 16 at file offset 64",
}
# What check() lists.
LISTED = {
    "buffer_smaller_than_shape": "buffer holds 5116 bytes.*takes 5120",
    "shape_product_overflows": "takes 343597383520",
    "quantized_dimension_out_of_range": "quantized_dimension 2 is out of range for 2 dimensions",
    "scale_zero_point_count_mismatch": "32 scales but 3 zero points",
    "constant_without_bytes": "an empty vector of constant bytes",
    "buffers_missing": "there are none",
    "signature_without_key": "has no key",
}
# Of another schema, or not to be moved: what load() says, or save() after a change.
OTHER_SCHEMA = {"schema_version_2": "schema version 2"}
NOT_CHANGED = {
    "unknown_field_newer_schema": "slot 15 of Model",
    "union_type_unknown": "builtin_options is newer",
    "dispatch_op_custom": "no offset of the model reaches 1,020 bytes",
}
# A ZIP whose offsets count from its own start is kept as it is, from elsewhere it is set right; a custom
# operator is data like any other; and what is odd elsewhere matters to those passes only that touch it.
KEPT = {
    *("zip_central_directory_offset_wrong", "zip_offsets_count_from_elsewhere", "custom_unknown_op"),
    *("metadata_shares_weights", "options_of_another_operator", "large_custom_options_without_size"),
    *("float16_bias_shape_wrong", "unexplained_trailing_bytes"),
}


# -- The committed files -------------------------------------------------------------------------------------


def test_every_malformed_file_has_an_expectation(fixtures: Path) -> None:
    names = {path.stem for path in (fixtures / "malformed").iterdir()}
    assert names == {*NOT_READ, *LISTED, *OTHER_SCHEMA, *NOT_CHANGED, *KEPT}


def test_malformed_file_is_refused_for_its_reason(malformed: Path, tmp_path: Path) -> None:
    name, target = malformed.stem, tmp_path / "out.tflite"
    if name in NOT_READ:
        with pytest.raises(FormatError, match=f"(?s){NOT_READ[name]}") as failure:
            load(malformed)
        assert failure.value.file == str(malformed)
        return
    if name in OTHER_SCHEMA:
        with pytest.raises(UnsupportedError, match=OTHER_SCHEMA[name]):
            load(malformed)
        return
    if name in LISTED:
        (line,) = check(malformed)
        with pytest.raises(AssertionError, match=LISTED[name]):
            raise AssertionError(line)
    else:
        assert check(malformed) == []
    model = load(malformed)
    assert save(model, target) == len(malformed.read_bytes())
    assert target.read_bytes() == malformed.read_bytes(), "unchanged: byte for byte"
    model.description = "changed"
    if name in NOT_CHANGED:
        with pytest.raises(UnsupportedError, match=NOT_CHANGED[name]) as refusal:
            save(model, target, force=True)
        assert refusal.value.remedy and refusal.value.file == str(malformed)
        assert target.read_bytes() == malformed.read_bytes(), "and still is"
    else:
        save(model, target, force=True)
        assert load(target).description == "changed"


# -- Random damage -------------------------------------------------------------------------------------------


def use(data: bytes) -> None:
    """Does with a file whatever does not need a disk; only the two refusals may come out."""
    try:
        model = Source(Container.of_bytes(data)).model()
    except REFUSED as error:
        assert str(error)
        return
    problems(model)
    assert not is_changed(model)
    model.description = "changed"
    try:
        made = layout(model)
    except UnsupportedError:
        return
    sink = MemorySink(made.nbytes)
    made.write_to(sink, Work(wanted_threads=1))
    assert Source(Container.of_bytes(bytes(sink.data))).model().description == "changed"


DAMAGED = [
    "dense_defaults_present",
    "while_loop",
    "blockwise_int4",
    "metadata_label_zip",
    "offset_buffers",
    "two_signatures_shared_weights",
    "external_buffers/model",
]


@pytest.mark.parametrize("name", DAMAGED)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_file_is_refused_or_read(fixtures: Path, name: str, data: st.DataObject) -> None:
    whole = (fixtures / f"{name}.tflite").read_bytes()
    edit: Edit = data.draw(edits(len(whole)))
    damaged = edit(whole)
    if damaged:
        use(damaged)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_noise_after_the_identifier_is_refused_or_read(noise: bytes) -> None:
    use(struct.pack("<I", 8) + b"TFL3" + noise)


@pytest.mark.parametrize("name", ["dense", "already_int4"])
def test_no_prefix_of_a_file_is_taken_for_the_file(fixtures: Path, name: str) -> None:
    whole = (fixtures / f"{name}.tflite").read_bytes()
    for length in [*range(1, 64), *range(64, len(whole), 61)]:
        with pytest.raises(REFUSED):
            Source(Container.of_bytes(whole[:length])).model()


def test_every_word_of_the_tables_may_be_wrong(fixtures: Path) -> None:
    whole = (fixtures / "already_int8.tflite").read_bytes()
    words = [*range(0, 128, 4), *range((len(whole) - 900) // 4 * 4, len(whole) - 3, 4)]
    for at in words:
        for value in (0, 1, 0xFFFFFFFF):
            use(whole[:at] + struct.pack("<I", value) + whole[at + 4 :])


def test_damage_that_loads_can_be_inspected(fixtures: Path, tmp_path: Path) -> None:
    whole = (fixtures / "digits_cnn.tflite").read_bytes()
    target, read_ones = tmp_path / "damaged.tflite", 0
    for at in range(len(whole) - 4000, len(whole) - 4, 52):
        target.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        try:
            json.dumps(inspect(target).to_dict())
            read_ones += 1
        except REFUSED:
            pass
    assert read_ones


# -- A small file must not cost much -------------------------------------------------------------------------


def file_of(root: Record) -> bytes:
    made = plan(root, schema())
    sink = MemorySink(made.nbytes)
    made.write_to(sink)
    return bytes(sink.data)


def make(table: str, **values: object) -> Record:
    return Record(schema().tables[table], dict(values))


def model_of(*subgraphs: Record, **values: object) -> Record:
    code = make("OperatorCode", builtin_code=0)
    return make("Model", version=3, operator_codes=[code], subgraphs=list(subgraphs), **values)


def test_amplified_offsets_cost_little(fixtures: Path) -> None:
    data = (fixtures / "malformed" / "offsets_amplified.tflite").read_bytes()
    tracemalloc.start()
    try:
        started = time.process_time()
        with pytest.raises(FormatError):
            Source(Container.of_bytes(data)).model()
        assert time.process_time() - started < 3
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def amplified(kind: str) -> Record:
    """5,000 references to one thing that holds 5,000 references: 25 million of them in 40 kB."""
    many = 5000
    tensor = make("Tensor", name="t")
    if kind == "plain":
        return make("SubGraph", tensors=[make("Tensor", name=str(index)) for index in range(100)])
    if kind == "tensors":
        return model_of(*[make("SubGraph", tensors=[tensor] * many)] * many)
    if kind == "operators":
        return model_of(*[make("SubGraph", tensors=[tensor], operators=[make("Operator")] * many)] * many)
    inputs = ScalarVector.of(INT32, [0] * many)
    if kind == "operands":
        graph = make("SubGraph", tensors=[tensor], operators=[make("Operator", inputs=inputs)] * many)
        return model_of(graph)
    if kind == "arguments":
        row = make("SignatureDef", inputs=[make("TensorMap")] * many)
        return model_of(make("SubGraph", tensors=[tensor]), signature_defs=[row] * many)
    assert kind == "options"
    number = schema().enums["BuiltinOptions2"].values["StablehloCaseOptions"]
    options = make("StablehloCaseOptions", branch_subgraph_indices=inputs)
    operator = make("Operator", builtin_options_2_type=number, builtin_options_2=options)
    return model_of(make("SubGraph", tensors=[tensor], operators=[operator] * many))


@pytest.mark.parametrize("kind", ["tensors", "operators", "operands", "arguments", "options"])
def test_shared_tables_are_not_multiplied_without_end(kind: str) -> None:
    data = file_of(amplified(kind))
    assert len(data) < 45_000
    started = time.process_time()
    with pytest.raises(FormatError, match="shared so often"):
        Source(Container.of_bytes(data)).model()
    assert time.process_time() - started < 5


def test_equal_subgraphs_are_stored_once_and_read_again(tmp_path: Path) -> None:
    """What the writer shares is not mistaken for an attack, small as the file may become."""
    graph = amplified("plain")
    data = file_of(model_of(*[graph] * 60))
    model = Source(Container.of_bytes(data)).model()
    assert sum(len(item.tensors) for item in model.subgraphs) * 4 > len(data)
    model.description = "changed"
    save(model, tmp_path / "out.tflite")
    assert len(load(tmp_path / "out.tflite").subgraphs) == 60


def test_overlapping_objects_are_bounded_by_the_size_of_the_file() -> None:
    """Each string is valid, but one starts inside of the other: together they are the square of the file."""
    spec = TableSpec("Names", lambda: [FieldSpec("names", 0, Kind.STRINGS)])
    count = 1000

    def names(length: int, step: int) -> bytes:
        # Root offset, vtable, table, vector of offsets, then lengths at every word and a zero at every end.
        data = struct.pack("<IHHHxxiII", 12, 6, 8, 4, 8, 4, count)
        start = len(data) + 4 * count
        for number in range(count):
            data += struct.pack("<I", start + step * number - len(data))
        return data + struct.pack("<I", length) * (2 * count) + bytes(length + 8)

    one = Schema({"Names": spec}, {}, spec, b"")
    # A length of 2 << 16 reads as bytes 0, 0, 2, 0: a zero terminates at most positions.
    assert len(read(memoryview(names(0, 8)), one).root["names"]) == count
    with pytest.raises(FormatError, match="objects overlap"):
        read(memoryview(names(2 << 16, 4)), one)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFA12345])
def test_a_nan_keeps_its_bits(bits: int, tmp_path: Path) -> None:
    """0x7F800001 is a signalling one, which a conversion to 64 bits and back makes quiet."""
    number = schema().enums["BuiltinOptions"].values["SoftmaxOptions"]
    options = make("SoftmaxOptions", beta=1.5)
    operator = make("Operator", builtin_options_type=number, builtin_options=options)
    data = file_of(model_of(make("SubGraph", operators=[operator]), buffers=[make("Buffer")]))
    assert data.count(struct.pack("<f", 1.5)) == 1
    data = data.replace(struct.pack("<f", 1.5), struct.pack("<I", bits))
    model = Source(Container.of_bytes(data)).model()
    assert not is_changed(model)
    model.description = "changed"
    save(model, tmp_path / "out.tflite")
    assert tmp_path.joinpath("out.tflite").read_bytes().count(struct.pack("<I", bits)) == 1
    one, two = (read(memoryview(item), schema()).root for item in (data, data))
    assert one == two
    other = data.replace(struct.pack("<I", bits), struct.pack("<I", bits ^ 1))
    assert one != read(memoryview(other), schema()).root, "another NaN is another value"
