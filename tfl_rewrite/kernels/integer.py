"""The integer kernels of operators: which of their tensors share a scale, and which runtimes compute right.

Measured with one-operator files on tflite-runtime 2.14 and ai-edge-litert 2.3, each with XNNPACK, without it
and with the reference kernels; the tests of the rows repeat the measurements on 2.3. Activations are int8
(asymmetric, one scale) or int16 (symmetric, zero point 0). Every float32 operand becomes integers: there is
no operator that takes some of them as floats.
"""

from __future__ import annotations

import enum
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
    SPREAD = "the process ends where an input's scale is 2^19 times the output's"


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
        caveats: What else must be looked at.
    """

    scales: Scales
    version8: int
    version16: int = 0
    _: KW_ONLY
    old: tuple[int, ...] = (8, 16)
    micro: tuple[int, ...] = (8, 16)
    fixed: Fixed = field(default_factory=dict)
    caveats: tuple[Caveat, ...] = ()

    def version(self, width: int) -> int:
        """Returns the version to stamp for activations of 8 or 16 bits; 0 where there is no kernel."""
        return self.version8 if width == 8 else self.version16


BETWEEN_0_AND_1: Fixed = MappingProxyType({8: (1 / 256, -128), 16: (1 / 32768, 0)})
BETWEEN_1_AND_1: Fixed = MappingProxyType({8: (1 / 128, 0), 16: (1 / 32768, 0)})
