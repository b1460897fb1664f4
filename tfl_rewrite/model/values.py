"""The bytes of a constant as an array, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.errors import UnsupportedError, UsageError
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.packing import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    try:
        array = np.asarray(values, None if isinstance(values, (np.ndarray, np.generic)) else kind)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"no array of {kind}: {error}") from error
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


def _row(dtype: int) -> dtypes.DType:
    row = dtypes.BY_VALUE.get(dtype)
    if row is None or not (row.numpy or row.name in _UNPACKED):
        name = row.name if row is not None else str(dtype)
        raise UnsupportedError(f"numpy has no type for {name}", remedy="look at tensor.buffer.blob.view()")
    return row
