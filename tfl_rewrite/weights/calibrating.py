"""What a rounder that looks at activations does beside rounding: it prepares, and it corrects biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tfl_rewrite.model.ir import Model
from tfl_rewrite.weights.biases import Correction
from tfl_rewrite.weights.rounders import Rounder, Work


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
