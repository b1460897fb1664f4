"""The bytes of a constant as an array, and the other way round.

Integers of less than a byte are packed low bits first over the flat row-major tensor.
``tflite/kernels/internal/reference/portable_tensor_utils.cc`` (``UnpackPackedIntToInt8``): two's complement,
no padding but at the end of the tensor, so a row of odd length begins in the middle of a byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.errors import UnsupportedError, UsageError
from tfl_rewrite.model import dtypes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]

_UNPACKED = {"INT4": np.int8, "INT2": np.int8, "UINT4": np.uint8}


def array_of(data: memoryview, dtype: int, shape: Sequence[int]) -> npt.NDArray[Any]:
    """Returns the elements that are stored; read-only, and not copied where they take whole bytes.

    Raises:
        UnsupportedError: The type has no array, or there are not as many bytes as the shape says.
    """
    row = _row(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    if row.nbytes(count) != len(data):
        raise UnsupportedError(f"{len(data)} bytes are no {row.name} of shape {list(shape)}")
    if row.name not in _UNPACKED:
        found = np.frombuffer(data, row.numpy)
    else:
        found = unpack(data, row.bits, count)
        if row.name == "UINT4":
            found = found.view(np.uint8) & np.uint8(15)
        found.flags.writeable = False
    return found.reshape(shape)


def bytes_of(values: npt.ArrayLike, dtype: int, shape: Sequence[int]) -> bytes:
    """Returns the bytes that store an array.

    Raises:
        UnsupportedError: The type has no array.
        UsageError: It is of another shape or type, or an element does not fit.
    """
    row = _row(dtype)
    kind = np.dtype(_UNPACKED.get(row.name, row.numpy or "V"))
    array = values if isinstance(values, (np.ndarray, np.generic)) else _converted(values, kind)
    if array.dtype != kind:
        raise UsageError(
            f"the values are {array.dtype}, the tensor stores {row.name}",
            remedy=f"round and convert them yourself, such as by .astype({kind.name!r})",
        )
    if array.shape != tuple(shape):
        raise UsageError(f"the values are of shape {list(array.shape)}, the tensor of {list(shape)}")
    flat = np.ascontiguousarray(array, kind).reshape(-1)
    if row.name not in _UNPACKED:
        return flat.tobytes()
    least = 0 if row.name == "UINT4" else -(1 << (row.bits - 1))
    most = least + (1 << row.bits) - 1
    if flat.size and not least <= int(flat.min()) <= int(flat.max()) <= most:
        raise UsageError(f"{row.name} holds {least} to {most}")
    return pack(flat.view(np.int8), row.bits).tobytes()


def _converted(values: npt.ArrayLike, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """Converts lists and numbers; none may become another number, but for how exact a float is."""
    try:
        given = np.asarray(values)
        with np.errstate(all="ignore"):
            array = given.astype(kind)
        fits = np.isfinite(array) == np.isfinite(given) if kind.kind in "fc" else array == given
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"no array of {kind}: {error}") from error
    if not np.all(fits):
        raise UsageError(f"no array of {kind}: {given[~fits].flat[0]} does not fit")
    return array


def _row(dtype: int) -> dtypes.DType:
    row = dtypes.BY_VALUE.get(dtype)
    if row is None or not (row.numpy or row.name in _UNPACKED):
        name = row.name if row is not None else str(dtype)
        raise UnsupportedError(f"numpy has no type for {name}", remedy="look at tensor.buffer.blob.view()")
    return row


def packed_nbytes(elements: int, bits: int) -> int:
    """Returns the bytes of densely packed elements."""
    return (elements * bits + 7) // 8


def pack(integers: Int8, bits: int) -> UInt8:
    """Packs flat integers; the bits after the last are zero.

    Args:
        integers: Int8 ``[elements]``, each within ``bits`` bits.
        bits: 8, 4 or 2.
    """
    if bits == 8:
        plain: UInt8 = integers.view(np.uint8)
        return plain
    each = 8 // bits
    padded: UInt8 = np.zeros(-(-integers.size // each) * each, np.uint8)
    np.bitwise_and(integers.view(np.uint8), (1 << bits) - 1, out=padded[: integers.size])
    columns = padded.reshape(-1, each)
    packed: UInt8 = columns[:, 0].copy()
    for column in range(1, each):
        packed |= columns[:, column] << np.uint8(bits * column)
    return packed


def unpack(data: bytes | memoryview | npt.NDArray[Any], bits: int, elements: int) -> Int8:
    """Returns the integers that :func:`pack` packed, sign-extended.

    Args:
        data: The packed bytes.
        bits: 8, 4 or 2.
        elements: How many integers they hold.
    """
    raw = np.frombuffer(data, np.uint8)
    if bits == 8:
        return raw[:elements].view(np.int8)
    each = 8 // bits
    wide = np.empty((raw.size, each), np.uint8)
    for column in range(each):
        # Up to the sign bit, and back with an arithmetic shift.
        np.left_shift(raw, np.uint8(8 - bits * (column + 1)), out=wide[:, column])
    made: Int8 = (wide.reshape(-1)[:elements].view(np.int8) >> np.int8(8 - bits)).astype(np.int8)
    return made


class Packer:
    """Takes integers block by block, in order, and writes them packed.

    Args:
        bits: 8, 4 or 2.
        write: Called with a position in bytes and the bytes that go there.
    """

    def __init__(self, bits: int, write: Callable[[int, memoryview], None]) -> None:
        self._bits = bits
        self._each = 8 // bits
        self._write = write
        self._left: Int8 = np.empty(0, np.int8)
        self._done = 0

    def __call__(self, start: int, integers: Int8) -> None:
        """Takes the integers from position ``start`` on.

        Raises:
            ValueError: They do not follow those before.
        """
        if self._bits == 8:
            self._write(start, integers.data)
            return
        if start != self._done + self._left.size:
            raise ValueError(f"integers from {start}, after {self._done + self._left.size}")
        if self._left.size:
            integers = np.concatenate([self._left, integers])
        whole = integers.size - integers.size % self._each
        if whole:
            self._write(self._done // self._each, pack(integers[:whole], self._bits).data)
        self._left = integers[whole:].copy()
        self._done += whole

    def finish(self) -> None:
        """Writes what does not fill a byte."""
        if self._left.size:
            self._write(self._done // self._each, pack(self._left, self._bits).data)
            self._done += self._left.size
            self._left = self._left[:0]
