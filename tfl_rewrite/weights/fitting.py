"""What somebody who looks at activations does for the rounding of constants to grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics.grids import Array, Float64
from tfl_rewrite.weights.grids import Constant


class Fitting(Protocol):
    """Chooses values on grids by what they are multiplied with."""

    def prepare(self, model: Model, items: Sequence[Constant]) -> None:
        """Looks at what constants meet.

        Args:
            model: As it was before any of them is changed; not changed.
            items: The constants.
        """

    def fit(self, item: Constant, values: Array, steps: Float64) -> Float64 | None:
        """Returns values of a constant on the grids of its channels.

        Args:
            item: The constant.
            values: Its numbers as they were, flat.
            steps: ``[channels]``, or one for all.

        Returns:
            Flat, row-major; every one a multiple of its step, and none further out than a step beyond what
            rounding to the nearest gives the channel. None where nothing is known of it.
        """

    def notes(self) -> Sequence[str]:
        """Returns what to tell the user of the last preparation."""
