"""Channels of a weight that held numbers and are all zero once it is rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.symmetric import Channels

Array = npt.NDArray[Any]
_LONG = 64


class Silenced:
    """Watches new values while they are made, block by block.

    With one scale for many channels, one that is much weaker than the strongest may keep nothing; the error
    of the whole weight does not show that.

    Args:
        rows: How the weight falls into channels.
        zero: The number that stands for zero.
    """

    def __init__(self, rows: Channels, zero: float = 0.0) -> None:
        self._rows = rows
        self._zero = zero
        self._alive = np.zeros(rows.channels, bool)

    def watch(self, start: int, block: Array) -> None:
        """Notes which channels hold a number.

        Args:
            start: Position of the block's first element in the flat weight.
            block: Flat new values.
        """
        if self._alive.all():
            return
        inner, channels = self._rows.inner, self._rows.channels
        block = block.reshape(-1)
        if inner < _LONG:
            found = (np.flatnonzero(block != self._zero) + start) // inner % channels
            self._alive[found] = True
            return
        for row in range(start // inner, -(-(start + block.size) // inner)):
            if not self._alive[row % channels]:
                part = block[max(0, row * inner - start) : (row + 1) * inner - start]
                self._alive[row % channels] = bool((part != self._zero).any())

    def beside(self, emit: Callable[[int, Array], None]) -> Callable[[int, Array], None]:
        """Returns a function that hands blocks on and watches them."""

        def both(start: int, block: Array) -> None:
            self.watch(start, block)
            emit(start, block)

        return both

    def among(self, values: Array) -> tuple[int, ...]:
        """Returns the channels that hold nothing but zeros now and did not before.

        Args:
            values: The flat weight as it was.
        """
        before = values.reshape(self._rows.outer, self._rows.channels, self._rows.inner)
        silent = np.flatnonzero(~self._alive)
        return tuple(int(channel) for channel in silent if (before[:, channel] != self._zero).any())
