"""Hypothesis strategies: records of any table of a schema, and damage to the bytes of a file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tfl_rewrite.flatbuf.record import FieldSpec, Kind, Record, Scalar, ScalarVector, Schema, TableSpec

DEEPEST = 4
LONG = 1500  # bytes; more than the writer keeps among the tables

# -- Records -------------------------------------------------------------------------------------------------

# Text as it comes from a file: whatever the bytes, undecodable ones as surrogate escapes.
texts = st.one_of(
    st.sampled_from(["", "x", "serving_default", "ü\U0001f600\0z"]),
    st.text(max_size=12),
    st.binary(max_size=12).map(lambda data: data.decode("utf-8", "surrogateescape")),
)


def scalars(scalar: Scalar) -> SearchStrategy[int | float | bool]:
    """Any bit pattern of a number, as Python reads it."""

    def number(raw: bytes) -> Any:
        return struct.unpack("<" + scalar.code, raw)[0]

    if scalar.code == "?":
        return st.booleans()
    raw = st.binary(min_size=scalar.nbytes, max_size=scalar.nbytes)
    if scalar.code in "fd":
        plain: SearchStrategy[Any] = st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 1.5])
    else:
        bits = 8 * scalar.nbytes
        least = 0 if scalar.code.isupper() else -(1 << (bits - 1))
        plain = st.sampled_from([0, 1, least, least + (1 << bits) - 1])
    return st.one_of(plain, raw.map(number))


def vectors(field: FieldSpec) -> SearchStrategy[ScalarVector]:
    """Vectors of numbers by their bytes; some of them long enough to be laid out apart."""
    scalar = field.scalar
    assert scalar is not None
    raw = st.lists(st.binary(min_size=scalar.nbytes, max_size=scalar.nbytes), max_size=4).map(b"".join)
    if scalar.code == "?":
        raw = st.lists(st.sampled_from([b"\0", b"\1"]), max_size=4).map(b"".join)
    elif scalar.nbytes == 1:
        raw = st.one_of(raw, st.integers(0, 255).map(lambda value: bytes([value]) * LONG))
    return raw.map(lambda data: ScalarVector(scalar, data))


@st.composite
def records(draw: DrawFn, spec: TableSpec) -> Record:
    """A record of ``spec`` with any of its fields, some records being used from several places."""
    return _record(draw, spec, {}, 0)


def _record(draw: DrawFn, spec: TableSpec, made: dict[str, list[Record]], depth: int) -> Record:
    earlier = made.get(spec.name, [])
    if earlier and draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(earlier))
    values: dict[str, Any] = {}
    if spec.fields and depth < DEEPEST:
        chosen = draw(st.sets(st.sampled_from(range(len(spec.fields))), max_size=5))
        for slot in sorted(chosen):
            field = spec.fields[slot]
            if field.kind is Kind.UNION:
                # A union is two fields; its number is meant by the member's table.
                assert field.enum is not None
                number = draw(st.sampled_from(sorted(field.enum.members)))
                values[f"{field.name}_type"] = number
                values[field.name] = _record(draw, field.enum.members[number], made, depth + 1)
            else:
                values[field.name] = _value(draw, field, made, depth)
    record = Record(spec, values)
    made.setdefault(spec.name, []).append(record)
    return record


def _value(draw: DrawFn, field: FieldSpec, made: dict[str, list[Record]], depth: int) -> Any:
    if field.kind is Kind.SCALAR:
        assert field.scalar is not None
        return draw(st.one_of(st.just(field.default), scalars(field.scalar)))
    if field.kind is Kind.STRING:
        return draw(texts)
    if field.kind is Kind.STRINGS:
        return draw(st.lists(texts, max_size=3))
    if field.kind is Kind.SCALARS:
        return draw(vectors(field))
    assert field.table is not None
    if field.kind is Kind.TABLE:
        return _record(draw, field.table, made, depth + 1)
    return [_record(draw, field.table, made, depth + 1) for _ in range(draw(st.integers(0, 3)))]


def full_record(spec: TableSpec, *, defaults: bool, depth: int = 0) -> Record:
    """A record with every field present: as the schema's defaults say, or each with a value of its own."""
    values: dict[str, Any] = {}
    for field in spec.fields:
        text = f"{spec.name}.{field.name}"
        if field.kind is Kind.SCALAR:
            assert field.scalar is not None
            other = True if field.scalar.code == "?" else field.slot % 100 + 1
            values[field.name] = field.default if defaults else type(field.default)(other)
        elif field.kind is Kind.STRING:
            values[field.name] = "" if defaults else text
        elif field.kind is Kind.STRINGS:
            values[field.name] = [] if defaults else [text, "", text]
        elif field.kind is Kind.SCALARS:
            assert field.scalar is not None
            count = 0 if defaults else 3
            values[field.name] = ScalarVector(field.scalar, b"\1" * count * field.scalar.nbytes)
        elif field.kind is Kind.UNION:
            assert field.enum is not None
            number, member = sorted(field.enum.members.items())[field.slot % len(field.enum.members)]
            values[f"{field.name}_type"] = number
            values[field.name] = full_record(member, defaults=defaults, depth=depth + 1)
        else:
            assert field.table is not None
            below = full_record(field.table, defaults=defaults, depth=depth + 1)
            values[field.name] = below if field.kind is Kind.TABLE else ([] if defaults else [below, below])
    return Record(spec, values)


def rooted(schema: Schema, root: TableSpec) -> Schema:
    """The same schema with another root table."""
    return Schema(schema.tables, schema.enums, root, schema.identifier)


# -- Damage --------------------------------------------------------------------------------------------------

# What numbers of a hostile file are made of: signs, overflows, and steps of one.
_WORDS = [0, 1, 2, 3, 4, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]

Edit = Callable[[bytes], bytes]


@st.composite
def edits(draw: DrawFn, nbytes: int) -> Edit:
    """A few changes to a file of ``nbytes`` bytes, mostly near its ends where the tables are."""
    position = st.one_of(
        st.integers(0, min(64, nbytes - 1)),
        st.integers(max(0, nbytes - 1200), nbytes - 1),
        st.integers(0, nbytes - 1),
    )
    steps = draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("byte"), position, st.integers(0, 255)),
                st.tuples(st.just("word"), position, st.sampled_from(_WORDS)),
                st.tuples(st.just("step"), position, st.sampled_from([-8, -4, -1, 1, 4, 8])),
                st.tuples(st.just("cut"), position, st.integers(1, 64)),
                st.tuples(st.just("insert"), position, st.integers(1, 64)),
                st.tuples(st.just("end"), position, st.just(0)),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def apply(data: bytes) -> bytes:
        result = bytearray(data)
        for kind, at, number in steps:
            word = at - at % 4
            if kind == "byte" and at < len(result):
                result[at] = number
            elif kind == "word":
                result[word : word + 4] = struct.pack("<I", number)
            elif kind == "step" and word + 4 <= len(result):
                value = struct.unpack_from("<I", result, word)[0]
                struct.pack_into("<I", result, word, (value + number) & 0xFFFFFFFF)
            elif kind == "cut":
                del result[at : at + number]
            elif kind == "insert":
                result[at:at] = bytes(number)
            elif kind == "end":
                del result[at:]
        return bytes(result)

    return apply
