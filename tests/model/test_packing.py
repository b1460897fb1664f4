"""Packed integers come back, however they are cut, and lie as the runtime reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfl_rewrite.model.blob import MemorySink
from tfl_rewrite.model.values import Packer, pack, unpack


def test_low_bits_come_first() -> None:
    assert pack(np.array([1, -1, 7], np.int8), 4).tolist() == [0xF1, 0x07]
    assert pack(np.array([1, -2, -1, 0, 1], np.int8), 2).tolist() == [0b00111001, 0b00000001]
    assert pack(np.array([-127, 127], np.int8), 8).tolist() == [0x81, 0x7F]


@pytest.mark.parametrize("bits", [8, 4, 2])
@given(data=st.data())
def test_pieces_of_any_size(bits: int, data: st.DataObject) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = np.array(data.draw(st.lists(st.integers(low, high), max_size=60)), np.int8)
    whole = pack(values, bits)
    assert whole.size == -(-values.size * bits // 8)
    assert np.array_equal(unpack(whole, bits, values.size), values)
    cuts = sorted(data.draw(st.lists(st.integers(0, values.size), max_size=5)))
    sink = MemorySink(whole.size)
    packer = Packer(bits, lambda start, piece: sink.write_at(piece, start))
    for start, stop in zip([0, *cuts], [*cuts, values.size], strict=True):
        packer(start, values[start:stop].copy())
    packer.finish()
    assert bytes(sink.data) == whole.tobytes()


def test_a_gap_is_refused() -> None:
    packer = Packer(4, lambda _start, _piece: None)
    packer(0, np.array([1, 2, 3], np.int8))
    with pytest.raises(ValueError, match="after 3"):
        packer(4, np.array([1], np.int8))
