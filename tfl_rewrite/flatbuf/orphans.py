"""Tables that a builder wrote and then did not use.

Converters of 2018 wrote one operator code per operator and referred to the distinct ones only; the others
still lie in the file. They are recognised as what they are: every byte of the region must belong to a
table whose vtable is valid, or to such a vtable. Anything else stays unexplained.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

_MAX_TABLE_NBYTES = 256


def explain_orphans(
    data: memoryview, gaps: Iterable[tuple[int, int]], vtables: Mapping[int, tuple[int, int]]
) -> list[tuple[int, int]]:
    """Finds unused tables in regions that no offset reaches.

    Args:
        data: The file.
        gaps: The regions, as ``(start, end)``; bytes outside of them are not looked at, except vtables.
        vtables: Those in use: ``{offset: (length, nbytes of the table)}``.

    Returns:
        The spans of unused tables and their vtables, as ``(start, end)``.
    """
    regions = list(gaps)
    found: list[tuple[int, int]] = []
    for start, end in regions:
        position = -(-start // 4) * 4
        while position + 4 <= min(end + 3, len(data)):
            spans = _table(data, position, end, regions, vtables)
            found += spans
            # A region ends at its last byte that is not zero, which may lie inside of the table.
            position = spans[0][1] if spans else position + 4
            position = -(-position // 4) * 4
    return found


def _table(
    data: memoryview,
    position: int,
    end: int,
    regions: list[tuple[int, int]],
    vtables: Mapping[int, tuple[int, int]],
) -> list[tuple[int, int]]:
    """Returns the spans of the table at ``position`` and of its own vtable, or nothing."""
    vtable = position - struct.unpack_from("<i", data, position)[0]
    if vtable == position or vtable < 0 or vtable % 2:
        return []
    known = vtables.get(vtable)
    if known is not None:
        length, nbytes = known
        own = []
    elif any(a <= vtable < b for a, b in regions) and vtable + 4 <= len(data):
        length, nbytes = struct.unpack_from("<HH", data, vtable)
        if length < 4 or length % 2 or vtable + length > len(data) or nbytes > _MAX_TABLE_NBYTES:
            return []
        entries = struct.unpack_from(f"<{length // 2 - 2}H", data, vtable + 4)
        if any(entry and not 4 <= entry < nbytes for entry in entries):
            return []
        own = [(vtable, vtable + length)]
    else:
        return []
    stop = position + nbytes
    if nbytes < 4 or stop > end + 3 or stop > len(data):
        return []
    return [(position, stop), *own]
