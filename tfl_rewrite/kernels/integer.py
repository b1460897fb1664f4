"""The integer kernels of operators: which of their tensors share a scale, and which runtimes compute right.

Measured with one-operator files on tflite-runtime 2.14 and ai-edge-litert 2.3, each with XNNPACK, without it
and with the reference kernels; the tests of these rows repeat the measurements. Activations are int8
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


_OWN, _SAME, _FIXED, _WEIGHTS = Scales.OWN, Scales.SAME, Scales.FIXED, Scales.WEIGHTS
_ABSENT = (Caveat.REFERENCE_ABSENT,)
_BETWEEN_0_AND_1: Fixed = MappingProxyType({8: (1 / 256, -128), 16: (1 / 32768, 0)})
_BETWEEN_1_AND_1: Fixed = MappingProxyType({8: (1 / 128, 0), 16: (1 / 32768, 0)})

INTEGER_KERNELS: Mapping[str, IntegerKernel] = MappingProxyType(
    {
        "CONV_2D": IntegerKernel(_WEIGHTS, 3, 4),
        "DEPTHWISE_CONV_2D": IntegerKernel(_WEIGHTS, 3, 5),
        "FULLY_CONNECTED": IntegerKernel(_WEIGHTS, 4, 7),
        "TRANSPOSE_CONV": IntegerKernel(_WEIGHTS, 3, 3),
        "BATCH_MATMUL": IntegerKernel(_OWN, 2, 3),
        "ADD": IntegerKernel(_OWN, 2, 3, caveats=(Caveat.SPREAD,)),
        "SUB": IntegerKernel(_OWN, 2, 5, caveats=(Caveat.SPREAD,)),
        "MUL": IntegerKernel(_OWN, 2, 4),
        "DIV": IntegerKernel(_OWN, 2, 2, old=(), micro=(8,)),
        "SQUARED_DIFFERENCE": IntegerKernel(_OWN, 2, old=(8,)),
        "MAXIMUM": IntegerKernel(_SAME, 2, 4),
        "MINIMUM": IntegerKernel(_SAME, 2, 4),
        "PRELU": IntegerKernel(_OWN, 1, 1, old=(8,), caveats=(Caveat.ALPHA_8_BITS,)),
        "LEAKY_RELU": IntegerKernel(_OWN, 2, 2),
        "RELU": IntegerKernel(_OWN, 2, 3),
        "RELU6": IntegerKernel(_OWN, 2, 3),
        "RELU_N1_TO_1": IntegerKernel(_OWN, 1, old=(8,), micro=()),
        "RELU_0_TO_1": IntegerKernel(_OWN, 1, old=(8,), micro=()),
        "HARD_SWISH": IntegerKernel(_OWN, 1, old=(8,), micro=(8,)),
        "ELU": IntegerKernel(_OWN, 1, old=(8,), micro=(8,), caveats=_ABSENT),
        "GELU": IntegerKernel(_OWN, 2, 2, old=(8,), micro=()),
        "ABS": IntegerKernel(_OWN, 2, 3),
        "NEG": IntegerKernel(_SAME, 1, 1, old=(), micro=(8,)),
        "EXP": IntegerKernel(_OWN, 2, 2, micro=()),
        "SQRT": IntegerKernel(_OWN, 2, 2, old=(), micro=()),
        "LOG": IntegerKernel(_OWN, 2, 2, old=(), micro=()),
        "RSQRT": IntegerKernel(_OWN, 2, 3, old=(8,), micro=(8,), caveats=(Caveat.NARROW_RANGE,)),
        "MEAN": IntegerKernel(_OWN, 2, 3),
        "SUM": IntegerKernel(_OWN, 2, old=(8,), caveats=(Caveat.REFERENCE_WRONG,)),
        "REDUCE_PROD": IntegerKernel(_OWN, 2, 2, micro=()),
        "REDUCE_MAX": IntegerKernel(_SAME, 2, 3),
        "REDUCE_MIN": IntegerKernel(_SAME, 2, 3, micro=()),
        "AVERAGE_POOL_2D": IntegerKernel(_SAME, 2, 3),
        "MAX_POOL_2D": IntegerKernel(_SAME, 2, 3),
        "RESHAPE": IntegerKernel(_SAME, 1, 1),
        "SQUEEZE": IntegerKernel(_SAME, 1, 1),
        "EXPAND_DIMS": IntegerKernel(_SAME, 1, 1),
        "PAD": IntegerKernel(_SAME, 2, 3),
        "PADV2": IntegerKernel(_SAME, 2, 3),
        "MIRROR_PAD": IntegerKernel(_SAME, 2, 3, micro=(8,)),
        "TRANSPOSE": IntegerKernel(_SAME, 2, 5),
        "SLICE": IntegerKernel(_SAME, 2, 4),
        "STRIDED_SLICE": IntegerKernel(_SAME, 2, 2),
        "SPLIT": IntegerKernel(_SAME, 2, 4),
        "SPLIT_V": IntegerKernel(_SAME, 2, 2),
        "CONCATENATION": IntegerKernel(_SAME, 2, 3),
        "PACK": IntegerKernel(_SAME, 2, 3),
        "UNPACK": IntegerKernel(_SAME, 2, 4),
        "RESIZE_BILINEAR": IntegerKernel(_SAME, 2, 4, micro=(8,)),
        "RESIZE_NEAREST_NEIGHBOR": IntegerKernel(_SAME, 2, 4),
        "GATHER": IntegerKernel(_SAME, 2, 4, micro=(8,)),
        "GATHER_ND": IntegerKernel(_SAME, 3, 3, micro=(8,)),
        "DEPTH_TO_SPACE": IntegerKernel(_SAME, 2, old=(8,), micro=(8,), caveats=_ABSENT),
        "SPACE_TO_DEPTH": IntegerKernel(_SAME, 2, old=(8,), micro=(8,)),
        "SPACE_TO_BATCH_ND": IntegerKernel(_SAME, 2, 4, micro=(8,)),
        "BATCH_TO_SPACE_ND": IntegerKernel(_SAME, 2, 4, micro=(8,)),
        "TILE": IntegerKernel(_SAME, 3, 3, old=(8,), micro=(), caveats=_ABSENT),
        "BROADCAST_TO": IntegerKernel(_SAME, 3, 3),
        "REVERSE_V2": IntegerKernel(_SAME, 3, 3),
        "SELECT": IntegerKernel(_SAME, 2, 2),
        "SELECT_V2": IntegerKernel(_SAME, 1, 1),
        "SOFTMAX": IntegerKernel(_FIXED, 2, 3, fixed=_BETWEEN_0_AND_1),
        "LOGISTIC": IntegerKernel(_FIXED, 2, 3, fixed=_BETWEEN_0_AND_1),
        "TANH": IntegerKernel(_FIXED, 2, 3, fixed=_BETWEEN_1_AND_1),
        "LOG_SOFTMAX": IntegerKernel(_FIXED, 2, old=(8,), fixed=MappingProxyType({8: (16 / 256, 127)})),
        "L2_NORMALIZATION": IntegerKernel(_FIXED, 2, old=(8,), fixed=MappingProxyType({8: (1 / 128, 0)})),
        "ARG_MAX": IntegerKernel(_OWN, 2, old=(8,), micro=(8,)),
        "EQUAL": IntegerKernel(_OWN, 2, old=(8,), micro=(8,)),
        "NOT_EQUAL": IntegerKernel(_OWN, 2, old=(8,), micro=(8,)),
        "GREATER": IntegerKernel(_OWN, 2, old=(8,), micro=(8,)),
        "GREATER_EQUAL": IntegerKernel(_OWN, 2, old=(8,), micro=(8,)),
        "LESS": IntegerKernel(_OWN, 2, old=(8,), micro=(8,)),
        "LESS_EQUAL": IntegerKernel(_OWN, 2, old=(8,), micro=(8,)),
    }
)
"""By name in ``BuiltinOperator``; what is not listed has no integer kernel, and stays float."""
