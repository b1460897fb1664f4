"""Where a model is cut into parts: content decides, not position.

A large constant has parts of its own, which are the same in every file that holds the constant. What lies
between large constants (tables, small constants, padding) shares a few parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source
from tfl_rewrite.model.blob import MappedBlob
from tfl_rewrite.model.ir import Model

LARGE = 64 << 10
"""Constants from here on have parts of their own; a request for fewer bytes costs more than the bytes."""
_LARGE_SHARE = 16


def large_from(max_nbytes: int) -> int:
    """Size from which on a constant has parts of its own, where no part may be larger than ``max_nbytes``."""
    return min(LARGE, max_nbytes // _LARGE_SHARE)


@dataclass(frozen=True, slots=True)
class Cut:
    """One part to be: the slices of the file that it consists of, as ``(offset, nbytes)``."""

    slices: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """Size of the part."""
        return sum(nbytes for _, nbytes in self.slices)


def cut(container: Container, max_nbytes: int) -> tuple[list[Cut], list[str]]:
    """Cuts a whole file into parts; every byte is in exactly one.

    Args:
        container: The file; one that is no sound model is cut by size alone.
        max_nbytes: Of a part.

    Returns:
        The parts in order of their first byte, and what a reader should know.
    """
    notes = []
    try:
        model = Source(container).model()
        constants = constants_in(model)
        if any(group.name for group in model.external_groups):
            notes.append(
                "weights in files beside the model are not among the parts; 'tfl-rewrite join' makes one file"
            )
    except TflRewriteError as error:
        error.file = None
        constants = []
        notes.append(f"cut by size alone, the constants could not be told: {error}")
    large = [(offset, nbytes) for offset, nbytes in constants if nbytes >= large_from(max_nbytes)]
    cuts: list[Cut] = []
    for offset, nbytes in large:
        cuts += [Cut((piece,)) for piece in pieces_of(offset, nbytes, max_nbytes)]
    cuts += _packed(between(large, container.nbytes), constants, max_nbytes)
    return sorted(cuts, key=lambda item: item.slices[0]), notes


def constants_in(model: Model) -> list[tuple[int, int]]:
    """Returns the spans of constants in the file, ascending, without overlap."""
    spans = {
        (buffer.blob.offset, buffer.blob.nbytes)
        for buffer in model.buffers
        if isinstance(buffer.blob, MappedBlob) and buffer.nbytes
    }
    result: list[tuple[int, int]] = []
    end = 0
    # At one offset the longest counts; a span that begins inside of another does not.
    for offset, nbytes in sorted(spans, key=lambda span: (span[0], -span[1])):
        if offset >= end:
            result.append((offset, nbytes))
            end = offset + nbytes
    return result


def between(spans: list[tuple[int, int]], total: int) -> list[tuple[int, int]]:
    """Returns what lies between spans, and behind the last, of a file of ``total`` bytes."""
    gaps = []
    position = 0
    for offset, nbytes in [*spans, (total, 0)]:
        if offset > position:
            gaps.append((position, offset - position))
        position = offset + nbytes
    return gaps


def pieces_of(offset: int, nbytes: int, most: int) -> list[tuple[int, int]]:
    """Returns a span in pieces of at most ``most`` bytes."""
    return [(offset + start, min(most, nbytes - start)) for start in range(0, nbytes, most)]


def _packed(gaps: list[tuple[int, int]], constants: list[tuple[int, int]], most: int) -> list[Cut]:
    """Fills parts with the stretches between large constants; cuts a long one at small constants."""
    ends = {offset + nbytes for offset, nbytes in constants}
    cuts: list[Cut] = []
    held: list[tuple[int, int]] = []
    room = most
    for offset, nbytes in gaps:
        for piece in _at_ends(offset, nbytes, most, ends):
            if piece[1] > room and held:
                cuts.append(Cut(tuple(held)))
                held, room = [], most
            held.append(piece)
            room -= piece[1]
    return [*cuts, Cut(tuple(held))] if held else cuts


def _at_ends(offset: int, nbytes: int, most: int, ends: set[int]) -> list[tuple[int, int]]:
    """Cuts a stretch of over ``most`` bytes, after a constant where one ends in the later half."""
    pieces = []
    stop = offset + nbytes
    inner = sorted(end for end in ends if offset < end < stop) if nbytes > most else []
    while stop - offset > most:
        fitting = [end for end in inner if offset + most // 2 <= end <= offset + most]
        length = (fitting[-1] if fitting else offset + most) - offset
        pieces.append((offset, length))
        offset += length
    if stop > offset:
        pieces.append((offset, stop - offset))
    return pieces
