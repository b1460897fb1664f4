"""What weights meet on the user's inputs, for passes that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tfl_rewrite.calibration.fitter import Fitter
from tfl_rewrite.calibration.rounder import EFFORTS, Calibrated, Settings
from tfl_rewrite.weights.rounders import Effort


class InputActivations:
    """Runs the model on the user's inputs; see :class:`tfl_rewrite.weights.rounders.Activations`.

    Args:
        settings: The inputs, and what runs the model.
        progress: Called with what is going on, and how many of how many bytes are done.
    """

    def __init__(self, settings: Settings, progress: Callable[[str, int, int], None] | None = None) -> None:
        self._settings = settings
        self._progress = progress
        self._rounders: dict[int, Calibrated] = {}
        self._fitters: dict[int, Fitter] = {}

    def rounder(self, number: int, effort: Effort, *, correct_bias: bool) -> Calibrated:
        """Returns the rounder of a pass."""
        if number not in self._rounders:
            settings = replace(
                self._settings,
                effort=EFFORTS[effort],
                in_order=effort is Effort.BEST,
                correct_bias=correct_bias,
            )
            self._rounders[number] = Calibrated(settings, self._progress)
        return self._rounders[number]

    def fitting(self, number: int) -> Fitter:
        """Returns the fitter of a pass."""
        if number not in self._fitters:
            self._fitters[number] = Fitter(self._settings, self._progress)
        return self._fitters[number]
