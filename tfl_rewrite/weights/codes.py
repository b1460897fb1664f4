"""Integers that are chosen for what they cost in a download: a step for each constant, and who makes them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics.codecs import Sized
from tfl_rewrite.numerics.symmetric import Error, Float32
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.weights.biases import Correction
from tfl_rewrite.weights.encoding import Encoding, Scheme
from tfl_rewrite.weights.forms.integers import BYTES, NIBBLES
from tfl_rewrite.weights.grids import Constant
from tfl_rewrite.weights.rounders import Emit, Rounder, Work, emitted
from tfl_rewrite.weights.storage import StorageForm, forms

Codes = npt.NDArray[Any]


@frozen
class Code:
    """Integers behind DEQUANTIZE for one constant.

    Attributes:
        step: For a channel of mean strength.
        form: Name of the form that holds the integers.
        axis: Along which channels have steps of their own; None for one step.
        head: Octaves by which the first rows of a table are finer: the integers of all others are multiples.
    """

    step: float
    form: str
    axis: int | None = None
    head: int = 0

    @property
    def storage(self) -> StorageForm:
        """The form."""
        return code_forms()[self.form]

    @property
    def encoding(self) -> Encoding:
        """How the integers are stored."""
        granularity = Granularity.TENSOR if self.axis is None else Granularity.CHANNEL
        return Encoding(self.storage, granularity, None, Scheme.DEQUANTIZE)

    @property
    def text(self) -> str:
        """The encoding."""
        return self.encoding.text


@functools.cache
def code_forms() -> dict[str, StorageForm]:
    """Returns the forms that integers are tried in, the widest first, by name."""
    known = {**forms(), NIBBLES.name: NIBBLES, BYTES.name: BYTES}
    names = (BYTES.name, "int12", "int10", "int8", NIBBLES.name, "int6", "int4")
    return {name: known[name] for name in names}


class Coding(Protocol):
    """Makes integers of constants, which are told apart by the positions of their buffers."""

    def prepare(self, model: Model, items: Sequence[Constant]) -> None:
        """Looks at what constants meet.

        Args:
            model: As it was before any of them is changed; not changed.
            items: The constants.
        """

    def scales(self, position: int, code: Code) -> Float32:
        """Returns the steps of a constant, ``[channels]``."""

    def integers(self, position: int, code: Code) -> Codes:
        """Returns its integers, flat; the same for the same code."""

    def floats(self, position: int, code: Code) -> memoryview:
        """Returns what DEQUANTIZE makes of them, as bytes."""

    def takes(self, position: int) -> bool:
        """Whether floats of a constant can stand in the file in the place of those that it holds."""

    def first_step(self, position: int, snr: float) -> float:
        """Returns the step whose noise is expected at so many dB below what the constant gives."""

    def bits(self, position: int, step: float) -> float:
        """Returns about how many bits a constant takes with a step."""

    def best(self, position: int, step: float, names: Sequence[str], sized: Sized) -> Code | None:
        """Returns the form that takes the fewest bytes for what it errs; None where none is fine enough.

        Args:
            position: Of the constant.
            step: Its step.
            names: Of forms.
            sized: The size that a codec makes of some bytes.
        """


class Coded(Rounder):
    """Gives constants the steps that were chosen, and leaves all others to another rounder.

    Args:
        coding: Makes the integers.
        codes: By position of the buffer.
        others: Rounds what is not among them.
    """

    def __init__(self, coding: Coding, codes: Mapping[int, Code], others: Rounder) -> None:
        self._coding = coding
        self._codes = codes
        self._others = others

    def prepare(self, model: Model, works: Sequence[Work]) -> None:
        """Tells the other of the rest."""
        self._others.prepare(model, [work for work in works if work.position not in self._codes])

    def scales(self, work: Work) -> Float32:
        """Returns the steps."""
        code = self._codes.get(work.position)
        if code is None:
            return self._others.scales(work)
        return self._coding.scales(work.position, code)

    def round(self, work: Work, scale: Float32, emit: Emit) -> Error:
        """Gives out the integers."""
        code = self._codes.get(work.position)
        if code is None:
            return self._others.round(work, scale, emit)
        return emitted(self._coding.integers(work.position, code), work, scale, emit)

    def corrections(self) -> Sequence[Correction]:
        """Those of the other."""
        return self._others.corrections()

    def gains(self, work: Work) -> dict[str, float] | None:
        """Those of the other."""
        return None if work.position in self._codes else self._others.gains(work)

    def notes(self) -> Sequence[str]:
        """Those of the other."""
        return self._others.notes()
