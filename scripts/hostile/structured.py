"""Damage to what a model says: valid FlatBuffers whose numbers, shapes, types, unions and lists are wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random
from typing import Any

from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.flatbuf.reader import read
from tfl_rewrite.flatbuf.record import FieldSpec, Kind, Record, Scalar, ScalarVector
from tfl_rewrite.flatbuf.writer import plan
from tfl_rewrite.model.blob import MemorySink
from tfl_rewrite.model.ir import schema

NAMES = (
    "",
    "same",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m",
    "\u202eevil\u202c\u2066x\u2069\u200f\u061c",
    "line\nbreak\r\u2028\u2029\x85",
    "\x00nul\x7f\x9b",
    "\udcff\udc80\udced\udca0\udc80",
    "\u200b\ufeff\u2060\U000e0041",
    "serving_default",
    "DISPATCH_OP",
    "min_runtime_version",
    "TFLITE_METADATA",
    "n" * 5000,
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan"))
_MOST_ITEMS = 4096


def mutated_fields(data: bytes, random: Random) -> bytes:
    """Returns a FlatBuffer of the same records, some fields of which are wrong.

    What the writer cannot write, such as a model of a newer schema, comes back as it is.

    Args:
        data: A model.
        random: Decides everything.
    """
    try:
        root = read(memoryview(data), schema()).root
    except TflRewriteError:
        return data
    records = list(_records(root))
    # Weights are many and dull: one record of a kind is as likely as one of another.
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record.spec.name, []).append(record)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        chosen = random.choice(by_kind[random.choice(sorted(by_kind))])
        _spoil(chosen, random, by_kind)
    try:
        made = plan(root, schema())
    except (TflRewriteError, RecursionError):
        return data
    sink = MemorySink(made.nbytes)
    made.write_to(sink)
    tail = data[_end(root, data) :] if random.random() < 0.9 else b""
    return bytes(sink.data) + tail


def _end(root: Record, data: bytes) -> int:
    """Where a ZIP at the end starts, so that it stays; its offsets do not fit any more, as is meant."""
    found = data.find(b"PK\x03\x04", max(0, len(data) - 4096))
    return found if found >= 0 and data.rfind(b"PK\x05\x06") > found else len(data)


def _records(root: Record) -> Iterator[Record]:
    seen, waiting = {id(root)}, [root]
    while waiting:
        record = waiting.pop()
        yield record
        for value in record.values.values():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, Record) and id(item) not in seen:
                    seen.add(id(item))
                    waiting.append(item)


def _spoil(record: Record, random: Random, by_kind: dict[str, list[Record]]) -> None:
    fields = [field for field in record.spec.fields if field.name in record.values]
    if not fields or random.random() < 0.15:
        # A field that was not there.
        field = random.choice(record.spec.fields) if record.spec.fields else None
        if field is not None:
            _add(record, field, random, by_kind)
        return
    field = random.choice(fields)
    if random.random() < 0.1:
        del record.values[field.name]
        return
    value = _other(field, record.values[field.name], random, by_kind)
    if value is not None:
        record.values[field.name] = value


def _add(record: Record, field: FieldSpec, random: Random, by_kind: dict[str, list[Record]]) -> None:
    value: Any = None
    if field.kind is Kind.SCALAR and field.scalar is not None:
        value = number(field.scalar, field.default, random)
    elif field.kind is Kind.STRING:
        value = random.choice(NAMES)
    elif field.kind is Kind.SCALARS and field.scalar is not None:
        count = random.choice((0, 1, 2, 4, 9, 100))
        value = ScalarVector.of(field.scalar, [number(field.scalar, 0, random) for _ in range(count)])
    elif field.table is not None:
        found = by_kind.get(field.table.name) or [Record(field.table)]
        item = random.choice(found)
        value = item if field.kind is Kind.TABLE else [item] * random.choice((1, 2, 50))
    elif field.kind is Kind.UNION and field.enum is not None:
        chosen, member = random.choice(sorted(field.enum.members.items()))
        record.values[f"{field.name}_type"] = chosen
        value = random.choice(by_kind.get(member.name) or [Record(member)])
    # No loops: a record may not lie inside of itself.
    if value is not None and not _reaches(value, record):
        record.values[field.name] = value


def _other(field: FieldSpec, old: Any, random: Random, by_kind: dict[str, list[Record]]) -> Any:
    if field.kind is Kind.SCALAR and field.scalar is not None:
        return number(field.scalar, old, random)
    if field.kind is Kind.STRING:
        return random.choice((*NAMES, old[: len(old) // 2], old + "\0x"))
    if field.kind is Kind.SCALARS and field.scalar is not None:
        return _vector(field, field.scalar, old, random)
    if field.kind in (Kind.TABLES, Kind.STRINGS):
        return _list(list(old), random)
    if isinstance(old, Record):
        return random.choice(by_kind.get(old.spec.name) or [Record(old.spec)])
    return None


def number(scalar: Scalar, old: Any, random: Random) -> Any:
    """Returns another number of a type: near the old one, at the ends of the range, or small."""
    if scalar.code == "?":
        return not old
    if scalar.code in "fd":
        value = random.choice((*FLOATS, old * 2, -old))
        try:
            struct.pack("<" + scalar.code, value)
        except OverflowError:
            value = float("inf")
        return value
    bits = 8 * scalar.nbytes
    least = 0 if scalar.code.isupper() else -(1 << (bits - 1))
    most = least + (1 << bits) - 1
    near = (old + 1, old - 1, old * 2, random.randrange(300))
    ends = (least, most, most - 1, 1 << 31, (1 << 31) - 1, 1 << 16)
    value = random.choice((0, 1, -1, 2, 3, 17, *ends, *near))
    return min(max(int(value), least), most)


def _vector(field: FieldSpec, scalar: Scalar, old: ScalarVector, random: Random) -> ScalarVector:
    raw = bytearray(old.raw)
    width = scalar.nbytes
    kind = random.randrange(6)
    if kind == 0:
        del raw[random.randrange(len(raw) // width + 1) * width :]
    elif kind == 1 and len(raw) < 1 << 20:
        raw += bytes(raw[:width] or bytes(width)) * random.choice((1, 1, 2, 7, 64))
    elif kind == 2:
        raw.clear()
    elif kind == 3 and width == 1 and raw:
        raw[random.randrange(len(raw))] = random.randrange(256)
    elif raw:
        at = random.randrange(len(raw) // width) * width
        value = struct.unpack_from("<" + scalar.code, raw, at)[0]
        struct.pack_into("<" + scalar.code, raw, at, number(scalar, value, random))
    return ScalarVector(scalar, bytes(raw))


def _list(items: list[Any], random: Random) -> list[Any]:
    kind = random.randrange(6)
    if kind == 0 or not items:
        return []
    at = random.randrange(len(items))
    if kind == 1:
        del items[at]
    elif kind == 2:
        items.append(items[at])
    elif kind == 3:
        items[at], items[0] = items[0], items[at]
    elif kind == 4:
        items[at:at] = [items[at]] * random.choice((1, 3, 100))
    else:
        items.reverse()
    return items[:_MOST_ITEMS]


def _reaches(value: Any, target: Record) -> bool:
    return any(
        record is target
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, Record)
        for record in _records(item)
    )
