"""Bytes of a model: which they are, where they are written, and when their pages are given back."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tfl_rewrite.model import blob as module
from tfl_rewrite.model import likeness
from tfl_rewrite.model.blob import ComputedBlob, MappedBlob, MemorySink, OwnedBlob
from tfl_rewrite.model.likeness import equal_items, pieces, same_bytes

TEXT = b"0123456789abcdefghij"


@dataclass
class Mapped:
    """What a mapped blob lies in; tells which pages were given back."""

    data: memoryview = field(default_factory=lambda: memoryview(TEXT))
    released: list[tuple[int, int]] = field(default_factory=list)

    def release(self, offset: int, nbytes: int) -> None:
        self.released.append((offset, nbytes))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 4)
    monkeypatch.setattr(likeness, "_PIECE", 4)
    monkeypatch.setattr(likeness, "_TASTE", 2)


def test_a_range_is_written_piece_by_piece() -> None:
    source, sink = Mapped(), MemorySink(16)
    MappedBlob(source, 3, 10).write_to(sink, 5)
    assert bytes(sink.data) == bytes(5) + TEXT[3:13] + bytes(1)
    assert source.released == [(3, 4), (7, 4), (11, 2)]


def test_pages_of_a_range() -> None:
    source = Mapped()
    found = MappedBlob(source, 3, 10)
    assert bytes(found.view()) == TEXT[3:13]
    found.release()
    found.release(4)
    found.release(4, 2)
    assert source.released == [(3, 10), (7, 6), (7, 2)]


def test_what_is_looked_at_is_given_back() -> None:
    source = Mapped()
    assert [bytes(piece) for piece in pieces(MappedBlob(source, 3, 6))] == [b"3456", b"78"]
    assert source.released == [(3, 4), (7, 2)]
    source.released.clear()
    assert same_bytes(MappedBlob(source, 3, 6), OwnedBlob(TEXT[3:9]))
    assert source.released == [(3, 4), (7, 2)]


def test_who_looks_different_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, middle and end tell most apart; each is given back at once."""
    source = Mapped()
    blobs = [MappedBlob(source, 0, 8), MappedBlob(source, 8, 8)]
    monkeypatch.setattr(likeness, "same_bytes", None)
    assert list(equal_items(blobs, lambda item: item)) == []
    assert source.released == [(0, 8), (8, 8)]


def test_computed_bytes() -> None:
    made = ComputedBlob(3, lambda sink, offset: sink.write_at(b"xyz", offset))
    sink = MemorySink(5)
    made.write_to(sink, 1)
    assert bytes(made.view()) == b"xyz" and bytes(sink.data) == b"\0xyz\0"
    assert made.identity != ComputedBlob(3, made.compute).identity and made.identity == made.identity


def test_which_bytes_are_the_same_by_construction() -> None:
    source = Mapped()
    one = MappedBlob(source, 2, 4)
    assert one.identity == MappedBlob(source, 2, 4).identity
    others = (MappedBlob(source, 2, 5), MappedBlob(source, 1, 4), MappedBlob(Mapped(), 2, 4))
    assert all(one.identity != other.identity for other in others)
    assert OwnedBlob(b"a").identity == OwnedBlob(b"a").identity != OwnedBlob(b"b").identity
