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
from tfl_rewrite.flatbuf import reader
from tfl_rewrite.flatbuf.reader import read
from tfl_rewrite.flatbuf.record import (
    INT32,
    SCALARS,
    FieldSpec,
    Kind,
    Record,
    ScalarVector,
    Schema,
    TableSpec,
)
from tfl_rewrite.flatbuf.writer import plan
from tfl_rewrite.model import lift
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
def test_shared_tables_are_not_multiplied_without_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind != "arguments":
        # That takes longest, and tells what the limit costs; here it is about what counts.
        monkeypatch.setattr(lift, "MAX_SHARED", 1 << 14)
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


# -- Each bound, just within and just beyond -----------------------------------------------------------------

# A table at 16 with a number, a text, a vector and a table; its vtable at 4. The inner one has no fields.
SMALL = struct.pack(
    "<IHHHHHHiIIIII2s2xIQiHH",
    *(16, 12, 20, 4, 8, 12, 16, 12, 7, 12, 16, 24, 1, b"x", 1, 9, -4, 4, 4),
)


def small_schema() -> Schema:
    spec = TableSpec(
        "T",
        lambda: [
            FieldSpec("number", 0, Kind.SCALAR, SCALARS["uint"], 0),
            FieldSpec("text", 1, Kind.STRING),
            FieldSpec("vector", 2, Kind.SCALARS, SCALARS["ulong"]),
            FieldSpec("inner", 3, Kind.TABLE, table=spec),
        ],
    )
    return Schema({"T": spec}, {}, spec, b"")


def test_what_offsets_reach() -> None:
    found = read(memoryview(SMALL + b"more"), small_schema())
    inner = Record(small_schema().root, {})
    values = {"number": 7, "text": "x", "vector": ScalarVector.of(SCALARS["ulong"], [9]), "inner": inner}
    assert found.root == Record(small_schema().root, values)
    assert found.spans == [(0, 4), (4, 16), (16, 36), (36, 42), (44, 56), (56, 60), (60, 64)]
    assert (found.vtables, found.unknown) == ({4: (12, 20), 60: (4, 4)}, [])
    assert (found.root.offset, found.root["inner"].offset, found.root["vector"].offset) == (16, 56, 48)


@pytest.mark.parametrize(
    ("at", "code", "value", "said"),
    [
        (0, "I", 0, "root.*offset 0 leads out"),
        (0, "I", 60, "vtable is misaligned or outside"),
        (0, "I", 61, "root.*offset 61 leads out"),
        (0, "I", 1 << 31, "leads out of the file"),
        (0, "I", 58, "table is misaligned"),
        *((16, "i", distance, "vtable is misaligned or outside") for distance in (17, 13, 11, -45, -46)),
        (16, "i", 16, "vtable gives its table 0 bytes"),
        (16, "i", -44, None),
        *((4, "H", length, f"vtable of {length} bytes is invalid") for length in (0, 2, 3, 11, 13, 62)),
        *((4, "H", length, None) for length in (4, 10, 12, 60)),
        (6, "H", 3, "vtable gives its table 3 bytes"),
        (6, "H", 4, "T.number lies outside of its table \\(4 \\+ 4 > 4\\)"),
        (6, "H", 19, "T.inner lies outside"),
        (6, "H", 48, None),
        (6, "H", 49, "table of 49 bytes is cut off"),
        (8, "H", 0, None),
        (8, "H", 3, "T.number lies outside"),
        (8, "H", 5, "number is misaligned"),
        (10, "H", 9, "text.*offset is misaligned"),
        (14, "H", 17, "T.inner lies outside"),
        (24, "I", 13, "vector is misaligned"),
        (36, "I", 2, None),
        (36, "I", 23, None),
        (36, "I", 24, "text.*string has no terminating zero"),
        (36, "I", 25, "vector of 25 elements of 1 bytes does not fit"),
        (41, "B", 1, "text.*string has no terminating zero"),
        (44, "I", 2, None),
        (44, "I", 3, "vector.*vector of 3 elements of 8 bytes does not fit"),
        (32, "I", 26, "inner.*table is misaligned"),
    ],
)
def test_bounds_of_each_number(at: int, code: str, value: int, said: str | None) -> None:
    data = bytearray(SMALL)
    struct.pack_into("<" + code, data, at, value)
    if said is None:
        read(memoryview(data), small_schema())
    else:
        with pytest.raises(FormatError, match=said):
            read(memoryview(data), small_schema())


def test_slots_and_members_of_a_newer_schema_are_named() -> None:
    data = bytearray(SMALL)
    struct.pack_into("<H", data, 60, 4)
    spec = TableSpec("T", lambda: small_schema().root.fields[:2])
    found = read(memoryview(data), Schema({"T": spec}, {}, spec, b""))
    assert found.unknown == ["root: slot 2 of T", "root: slot 3 of T"]
    assert found.root.unknown == ("slot 2 of T", "slot 3 of T")


def chain(length: int) -> bytes:
    """Tables each of which has the next as ``inner``."""
    start = 4 + 12 + 4
    data = struct.pack("<IHHHHHHHH", start, 12, 8, 0, 0, 0, 4, 4, 4)
    for number in range(length - 1):
        data += struct.pack("<iI", start + 8 * number - 4, 4)
    return data + struct.pack("<i", len(data) - 16)


def test_levels_and_tables_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    read(memoryview(chain(reader.MAX_DEPTH)), small_schema())
    with pytest.raises(FormatError, match="nest deeper than 64") as failure:
        read(memoryview(chain(reader.MAX_DEPTH + 1)), small_schema())
    assert failure.value.where == ".".join(["inner"] * 64)
    monkeypatch.setattr(reader, "MAX_TABLES", 3)
    read(memoryview(chain(3)), small_schema())
    with pytest.raises(FormatError, match="more than 3 tables"):
        read(memoryview(chain(4)), small_schema())


@pytest.mark.parametrize(("nbytes", "after", "calls"), [(8, 1, 1), (8, 2, 0), (9, 1, 0)])
def test_pages_of_long_vectors_are_given_back(
    nbytes: int, after: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_LONG_NBYTES", nbytes)
    monkeypatch.setattr(reader, "_RELEASE_AFTER", after)
    told: list[bool] = []
    read(memoryview(SMALL), small_schema(), release=lambda: told.append(True))
    assert len(told) == calls


def test_vectors_that_lie_where_the_format_does_not_want_them() -> None:
    """By the size of their numbers; each once, in the order of the file."""

    def vector(offset: int, count: int = 1) -> ScalarVector:
        return ScalarVector(SCALARS["ulong"], bytes(8 * count), offset)

    spec = small_schema().root
    shared = vector(44)
    inner = Record(spec, {"vector": vector(20), "text": "x"})
    root = Record(spec, {"vector": shared, "inner": inner})
    assert reader.misaligned(root) == [("inner.vector", 20), ("vector", 44)]
    for one in (vector(48), vector(-1), vector(4, 0)):
        assert reader.misaligned(Record(spec, {"vector": one})) == []
    # However often it is referred to, and whatever lies in a list.
    rows = [Record(spec, {"vector": item}) for item in (vector(48), shared, shared)]
    (place, offset) = reader.misaligned(Record(spec, {"inner": [], "text": ["x"], "vector": rows}))[0]
    assert (place[:7], offset) == ("vector[", 44)


def test_objects_may_overlap_up_to_twice_the_file() -> None:
    one = reader._Reader(memoryview(bytes(100)), None)
    one.span(0, 2 * 100 + 4096, "root")
    with pytest.raises(FormatError, match="objects overlap"):
        one.span(0, 1, "root")


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
