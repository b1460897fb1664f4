"""The integer kernels of operators: which of their tensors share a scale, and which runtimes compute right.

Measured with one-operator files on tflite-runtime 2.14 and ai-edge-litert 2.3, each with XNNPACK, without it
and with the reference kernels; the tests of the rows repeat the measurements. Activations are int8
(asymmetric, one scale) or int16 (symmetric, zero point 0). Every float32 operand becomes integers: there is
no operator that takes some of them as floats.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType


class Scales(enum.Enum):
    """How the scales of an operator's tensors hang together; the value is its description."""

    OWN = "each input and each output has its own"
    SAME = "all inputs and outputs have the same scale and zero point"
    FIXED = "the output's is fixed"
    WEIGHTS = "weights per channel, a bias of the product of scales, an output of its own"


class Caveat(enum.Enum):
    """What goes wrong with an integer kernel, although it runs; the value is its description."""

    REFERENCE_WRONG = "the reference kernel computes something else"
    REFERENCE_ABSENT = "the reference resolver has no such kernel"
    NARROW_RANGE = "right only where the largest input is at most a thousand times the smallest"
    ALPHA_8_BITS = "beside int16 the slopes must be int8: int16 ones are read wrong without a check"
    ZERO_POINT_ZERO = "right only where the zero point is 0: the kernel negates the integers"
    UNSIGNED_RESCALES = "the uint8 kernel converts inputs to the output's scale; that of int8 does not"
    DIVIDES = "fails when it runs where a divisor rounds to 0"


OUTPUT = -1
"""Stands for the output among the positions of a :class:`Limit`."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Bounds of a quotient of scales, outside of which a kernel is wrong or ends the process.

    Attributes:
        reason: What is the matter outside of them.
        over: Positions of the operands whose scales are multiplied.
        under: Positions of those that this is divided by.
        least: By width; nothing for no bound.
        most: By width; from there on it is too much.
        option: A number among the operator's options that is one more factor.
    """

    reason: str
    over: tuple[int, ...]
    under: tuple[int, ...] = ()
    _: KW_ONLY
    least: Mapping[int, float] = field(default_factory=dict)
    most: Mapping[int, float] = field(default_factory=dict)
    option: str = ""

    def holds(self, quotient: float, width: int) -> bool:
        """Whether a quotient is within the bounds for activations of 8 or 16 bits."""
        return self.least.get(width, 0.0) <= quotient < self.most.get(width, math.inf)


Fixed = Mapping[int, tuple[float, int]]
"""By width, the scale and the zero point of an output."""


@dataclass(frozen=True, slots=True)
class IntegerKernel:
    """How one operator computes in integers.

    Attributes:
        scales: Which of its tensors share a scale.
        version8: The version to stamp for int8 activations; never lower than the file's.
        version16: Likewise for int16; 0 where there is no such kernel.
        old: The widths that runtime 2.14 computes right.
        micro: The widths that TFLite Micro has kernels for.
        fixed: Scales and zero points of the output.
        limits: Bounds of its scales.
        caveats: What else must be looked at.
    """

    scales: Scales
    version8: int
    version16: int = 0
    _: KW_ONLY
    old: tuple[int, ...] = (8, 16)
    micro: tuple[int, ...] = (8, 16)
    fixed: Fixed = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    caveats: tuple[Caveat, ...] = ()

    def version(self, width: int) -> int:
        """Returns the version to stamp for activations of 8 or 16 bits; 0 where there is no kernel."""
        return self.version8 if width == 8 else self.version16


BETWEEN_0_AND_1: Fixed = MappingProxyType({8: (1 / 256, -128), 16: (1 / 32768, 0)})
BETWEEN_1_AND_1: Fixed = MappingProxyType({8: (1 / 128, 0), 16: (1 / 32768, 0)})

_FAR_APART = "the scales of what it adds are too far apart for its integer kernel"
_FARTHEST: Mapping[int, float] = MappingProxyType({8: 2.0**17, 16: 2.0**12})

SUMMANDS = (
    *(Limit(_FAR_APART, (at,), (OUTPUT,), most=_FARTHEST) for at in (0, 1)),
    *(Limit(_FAR_APART, (at,), (1 - at,), most=_FARTHEST) for at in (0, 1)),
)
"""The kernel of ADD shifts by 20 or 15 bits, and ends the process where a multiplier is 1 or more."""

COMPARED = tuple(
    Limit(
        "its integer kernel compares multiples of 1/256 below 256, and what it reads is smaller or larger",
        (at,),
        least=MappingProxyType({8: 2.0**-8}),
        most=MappingProxyType({8: 1.0}),
    )
    for at in (0, 1)
)
"""``tflite/kernels/comparisons.cc`` shifts by 8 bits. Measured: 0 dB at a hundredth of the least scale, 3 dB
from 1 on."""

QUOTIENT = (
    Limit(
        "the steps of its quotient are too coarse for its integer kernel",
        (0,),
        (1, OUTPUT),
        least=MappingProxyType({8: 2.0**5, 16: 2.0**12}),
    ),
)
"""``tflite/kernels/internal/reference/div.h`` shifts small dividends by 32 bits and more below. Measured:
2 dB."""

SCORES = (
    Limit(
        "what it reads, times its beta, is too small",
        (0,),
        least=MappingProxyType({8: 2.0**-25}),
        option="beta",
    ),
)
"""The int8 kernel of SOFTMAX shifts scale times beta by 26 bits, and ends the process below 1."""
