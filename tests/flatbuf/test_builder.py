"""What is built is byte for byte what FlatBuffers' own builder makes."""

from __future__ import annotations

import struct

import flatbuffers

from tfl_rewrite.flatbuf.builder import Builder
from tfl_rewrite.flatbuf.record import FLOAT64, INT16


def vector(builder: flatbuffers.Builder, width: int, align: int, items: list[bytes]) -> int:
    builder.StartVector(width, len(items), align)
    for item in reversed(items):
        builder.head -= width
        builder.Bytes[builder.head : builder.head + width] = item
    return int(builder.EndVector())


def test_tables_vectors_and_strings_lie_as_flatbuffers_has_them() -> None:
    theirs, ours = flatbuffers.Builder(16), Builder()
    doubles, shorts = struct.pack("<3d", 1, 2, 3), struct.pack("<3h", 4, 5, 6)
    text = theirs.CreateString("a b\xe9".encode())
    wide = vector(theirs, 8, 16, [doubles[at : at + 8] for at in (0, 8, 16)])
    narrow = vector(theirs, 2, 4, [shorts[at : at + 2] for at in (0, 2, 4)])
    tables = []
    for number in (7, 9):
        theirs.StartObject(4)
        theirs.PrependUint64(number)
        theirs.Slot(2)
        theirs.PrependUOffsetTRelative(text)
        theirs.Slot(1)
        theirs.PrependUint8(number)
        theirs.Slot(3)
        tables.append(theirs.EndObject())
    theirs.StartVector(4, 2, 4)
    for item in reversed(tables):
        theirs.PrependUOffsetTRelative(item)
    both = theirs.EndVector()
    theirs.StartObject(5)
    for slot, item in ((0, both), (3, wide), (4, narrow)):
        theirs.PrependUOffsetTRelative(item)
        theirs.Slot(slot)
    theirs.Finish(theirs.EndObject(), b"TFL3")

    string = ours.string("a b\xe9")
    found = [ours.scalars(FLOAT64, doubles, 16), ours.scalars(INT16, shorts, 4)]
    made = [
        ours.table([(-4, 1, string), (-8, 2, struct.pack("<Q", number)), (-1, 3, bytes([number]))])
        for number in (7, 9)
    ]
    root = ours.table([(-4, 0, ours.offsets(made)), (-4, 3, found[0]), (-4, 4, found[1])])
    assert ours.finish(root, b"TFL3") == theirs.Output()


def test_what_is_equal_is_written_once() -> None:
    builder = Builder()
    first = builder.string("x"), builder.scalars(INT16, b"abcd", 4), builder.offsets([8])
    nbytes = builder.nbytes
    assert first == (builder.string("x"), builder.scalars(INT16, b"abcd", 4), builder.offsets([8]))
    assert builder.nbytes == nbytes
    # Two numbers are not the same as four bytes.
    assert builder.scalars(INT16, b"abcd", 8) != first[1]


def test_a_field_that_is_not_known_yet_is_zero_and_said() -> None:
    builder = Builder()
    root = builder.table([(-4, 0, "later"), (-8, 1, "much later")])
    made = builder.finish(root, b"")
    assert sorted(value for _, value in builder.unset) == ["later", "much later"]  # type: ignore[type-var]
    for offset, value in builder.unset:
        width = 8 if value == "much later" else 4
        assert made[len(made) - offset :][:width] == bytes(width) and offset % width == 0
