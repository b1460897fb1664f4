"""Sizes as people write them."""

from __future__ import annotations

import re

from tfl_rewrite.errors import UsageError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}
LEAST_PART = 1 << 10
MAX_PART = 1 << 30
"""No part is larger, so that a manifest cannot ask for more at once."""


def parse_size(size: int | str) -> int:
    """Reads the largest size of a part: bytes, or text such as ``4MB`` (decimal) or ``4MiB`` (binary).

    Raises:
        UsageError: It is no size, or not between 1 KiB and 1 GiB.
    """
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)", str(size).strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise UsageError(f"{str(size)[:40]!r} is not a size", remedy="give bytes, or such as 4MB or 512KiB")
    nbytes = int(float(match[1]) * unit)
    if not LEAST_PART <= nbytes <= MAX_PART:
        raise UsageError(
            f"a part of {nbytes} bytes is out of range", remedy=f"give {LEAST_PART} to {MAX_PART} bytes"
        )
    return nbytes
