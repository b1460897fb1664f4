"""What weight passes ask of whoever knows what weights are multiplied with on real inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tfl_rewrite.editing.base import Context
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics.grids import Array, Float64
from tfl_rewrite.weights.biases import Correction
from tfl_rewrite.weights.grids import Constant
from tfl_rewrite.weights.rounders import Effort, Rounder, Work


@runtime_checkable
class Calibrating(Rounder, Protocol):
    """A rounder that is told of all constants before any of them is changed."""

    def prepare(self, model: Model, works: Sequence[Work]) -> None:
        """Decides on the integers of constants.

        Args:
            model: As it was before the pass changes it; not changed.
            works: All constants that are to become integers, each once.
        """

    def corrections(self) -> Sequence[Correction]:
        """Returns what biases are to take back, for the constants that were prepared last."""

    def gains(self, work: Work) -> dict[str, float] | None:
        """Returns what each step won for one constant, in dB; None where it was not calibrated."""

    def notes(self) -> Sequence[str]:
        """Returns what to tell the user of the last preparation."""


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


@runtime_checkable
class Activations(Protocol):
    """Knows what weights meet.

    The same pass (:attr:`Context.number`) gets the same object each time, with what that has found.
    """

    def rounder(self, number: int, effort: Effort, *, correct_bias: bool) -> Calibrating:
        """Returns what rounds weights to integers for what they meet.

        Args:
            number: Of the pass.
            effort: How much work a weight is worth; ``best`` goes weight by weight.
            correct_bias: Whether biases take mean errors back.
        """

    def fitting(self, number: int) -> Fitting:
        """Returns what chooses values on grids for what they meet.

        Args:
            number: Of the pass.
        """


def activations_of(context: Context) -> Activations | None:
    """Returns what a pass was given, where it was."""
    found = context.activations
    return found if isinstance(found, Activations) else None
