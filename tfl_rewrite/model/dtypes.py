"""One row per tensor type: its number in the file, bits per element, and numpy type.

Source: ``TensorType`` of the schema, and ``TfLiteTypeGetSizeBits`` (``tflite/core/c/common.cc``).
Sub-byte types are packed low bits first, padded to a whole byte at the end of the tensor.
"""

from __future__ import annotations

from tfl_rewrite.options.frozen import frozen


@frozen
class DType:
    """A tensor type. ``bits`` is 0 where elements have no fixed size; ``numpy`` is empty where none fits."""

    value: int
    name: str
    bits: int
    numpy: str = ""

    def nbytes(self, elements: int) -> int:
        """Returns the bytes of a dense tensor of so many elements."""
        return (elements * self.bits + 7) // 8


_ROWS = (
    DType(0, "FLOAT32", 32, "<f4"),
    DType(1, "FLOAT16", 16, "<f2"),
    DType(2, "INT32", 32, "<i4"),
    DType(3, "UINT8", 8, "|u1"),
    DType(4, "INT64", 64, "<i8"),
    DType(5, "STRING", 0),
    DType(6, "BOOL", 8, "|b1"),
    DType(7, "INT16", 16, "<i2"),
    DType(8, "COMPLEX64", 64, "<c8"),
    DType(9, "INT8", 8, "|i1"),
    DType(10, "FLOAT64", 64, "<f8"),
    DType(11, "COMPLEX128", 128, "<c16"),
    DType(12, "UINT64", 64, "<u8"),
    DType(13, "RESOURCE", 0),
    DType(14, "VARIANT", 0),
    DType(15, "UINT32", 32, "<u4"),
    DType(16, "UINT16", 16, "<u2"),
    DType(17, "INT4", 4),
    DType(18, "BFLOAT16", 16),
    DType(19, "INT2", 2),
    DType(20, "UINT4", 4),
    DType(21, "FLOAT8_E4M3FN", 8),
    DType(22, "FLOAT8_E5M2", 8),
)
BY_VALUE = {row.value: row for row in _ROWS}
BY_NAME = {row.name: row for row in _ROWS}

FLOAT32 = BY_NAME["FLOAT32"]
FLOAT16 = BY_NAME["FLOAT16"]
INT8 = BY_NAME["INT8"]
INT32 = BY_NAME["INT32"]
