"""Bytes that no offset of a model reaches, and what else in its file may lead to them.

An old converter left tables that it did not use, a packer something behind the model. Such bytes may go with
a rewrite unless something finds them by their position, which the rewrite would move: the options of custom
operators (compiled code for an accelerator is addressed so) and metadata of unknown meaning are bytes that
only their owner understands, so a number in them that lies within such a range counts as an address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tfl_rewrite.files.container import Container
from tfl_rewrite.model import customs
from tfl_rewrite.model.ir import Model

Ranges = Sequence[tuple[int, int]]

_SMALL_FILE = 1 << 16
_MOST_NBYTES = 1 << 20
"""Of bytes that are searched for addresses; what is longer counts as if it held one."""
_METADATA = frozenset(
    {
        "TFLITE_METADATA",
        "min_runtime_version",
        "CONVERSION_METADATA",
        "OfflineMemoryAllocation",
        "COMPRESSION_METADATA",
        "reduced_precision_support",
    }
)
"""Entries whose content is known: no positions in the file."""
_CONTENT = ((b"PK\x03\x04", "a ZIP archive"), (b"PK\x05\x06", "a ZIP archive"), (b"TFL3", "another model"))


def who_needs(model: Model, container: Container, ranges: Ranges) -> tuple[str | None, str] | None:
    """Returns why bytes that no offset reaches cannot go, or None where they can.

    Args:
        model: The model of the file.
        container: The file.
        ranges: The bytes, as ``(start, end)``.

    Returns:
        The place of what may address them (None where that is not it), and the reason.
    """
    for start, stop in ranges:
        for magic, what in _CONTENT:
            if _find(container, magic, start, stop):
                return None, f"they hold what looks like {what}"
    for place, holder, data in _opaque(model):
        if len(data) > _MOST_NBYTES or customs.DISPATCH in holder:
            return place, f"{holder} may address them by their position"
        number = _address(bytes(data), ranges, container.nbytes)
        if number is not None:
            return place, f"{holder} holds the number {number}, which may address them by their position"
    return None


def _find(container: Container, magic: bytes, start: int, stop: int) -> bool:
    step = 1 << 20
    return any(
        magic in bytes(container.data[at : min(at + step + len(magic), stop)])
        for at in range(start, stop, step)
    )


def _opaque(model: Model) -> Iterator[tuple[str, str, memoryview]]:
    """Yields what only its owner understands: the place, what it is in words, and its bytes."""
    seen: set[int] = set()
    for index, subgraph in enumerate(model.subgraphs):
        for position, operator in enumerate(subgraph.operators):
            place = model.place_of(operator, f"subgraphs[{index}].operators[{position}]")
            name = operator.code.custom
            if name is None or name in customs.KNOWN_CUSTOM or name.startswith("Flex"):
                continue
            options = operator.rest.get("custom_options")
            if options is not None and id(options) not in seen:
                seen.add(id(options))
                yield place, f"the options of custom operator {name}", memoryview(options.raw)
            if operator.large_custom is not None:
                yield place, f"the options of custom operator {name}", operator.large_custom.view()
    for entry in model.metadata:
        if entry.name not in _METADATA and entry.buffer.blob is not None:
            yield f"metadata {entry.name or '(unnamed)'}", "its content", entry.buffer.blob.view()


def _address(data: bytes, ranges: Ranges, nbytes: int) -> int | None:
    """Returns a number in some bytes that lies in a range: 4 bytes or digits, in small files 2 bytes."""
    low, high = min(start for start, _ in ranges), max(stop for _, stop in ranges)
    for width in (4, 2) if nbytes <= _SMALL_FILE else (4,):
        for at in range(len(data) - width + 1):
            number = int.from_bytes(data[at : at + width], "little")
            if low <= number < high and _within(number, ranges):
                return number
    for digits in re.findall(rb"\d{2,12}", data):
        if _within(int(digits), ranges):
            return int(digits)
    return None


def _within(number: int, ranges: Ranges) -> bool:
    return any(start <= number < stop for start, stop in ranges)
