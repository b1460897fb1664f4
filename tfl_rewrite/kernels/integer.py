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
from dataclasses import KW_ONLY, field
from types import MappingProxyType

from tfl_rewrite.kernels.runtimes import NEWEST_RUNTIME, OLDEST_MEASURED_RUNTIME, Runtime
from tfl_rewrite.options.frozen import frozen


class Scales(enum.Enum):
    """How the scales of an operator's tensors hang together; the value is its description."""

    OWN = "each input and each output has its own"
    SAME = "all inputs and outputs have the same scale and zero point"
    FIXED = "the output's is fixed"
    WEIGHTS = "weights per channel, a bias of the product of scales, an output of its own"
    STATE = "one scale for each weight and state, biases of the product of scales, an output of its own"


class Caveat(enum.Enum):
    """What goes wrong with an integer kernel, although it runs; the value is its description."""

    REFERENCE_WRONG = "the reference kernel computes something else"
    COPIES_ONE = "the built-in kernel copies integers where all that it reduces is of length 1"
    REFERENCE_ABSENT = "the reference resolver has no such kernel"
    NARROW_RANGE = "right only where the largest input is at most a thousand times the smallest"
    ALPHA_8_BITS = "beside int16 the slopes must be int8: int16 ones are read wrong without a check"
    NEGATES = "the kernel negates the integers: wrong for -128, and for other zero points than 0"
    UNSIGNED_RESCALES = "the uint8 kernel converts inputs to the output's scale; that of int8 does not"
    OLD_FLAT_CHANNELS = "runtime 2.14 takes axis 1 of the output for the channels that have their own scales"
    DIVIDES = "fails when it runs where a divisor rounds to 0"


OUTPUT = -1
"""Stands for the output among the positions of a :class:`Limit`."""


@frozen
class Limit:
    """Bounds of a quotient of scales, outside of which a kernel is wrong or ends the process.

    Attributes:
        reason: What is the matter outside of them.
        over: Positions of the operands whose scales are multiplied.
        under: Positions of those that this is divided by.
        least: By width; nothing for no bound.
        most: By width; from there on it is too much.
        option: A number among the operator's options that is one more factor.
        micro: Whether it is one of the kernel of TFLite Micro alone.
    """

    reason: str
    over: tuple[int, ...]
    under: tuple[int, ...] = ()
    _: KW_ONLY
    least: Mapping[int, float] = field(default_factory=dict)
    most: Mapping[int, float] = field(default_factory=dict)
    option: str = ""
    micro: bool = False

    def holds(self, quotient: float, width: int) -> bool:
        """Whether a quotient is within the bounds for activations of 8 or 16 bits."""
        return self.least.get(width, 0.0) <= quotient < self.most.get(width, math.inf)


@frozen
class Gate:
    """Positions of the operands of one gate of an LSTM.

    Attributes:
        inputs: Its weights for what comes in.
        outputs: Those for what was given out a step before.
        cell: Those for the cell state; None where it never sees that.
        bias: Its bias.
        norm: What its sums are multiplied with where they are normalized.
    """

    inputs: int
    outputs: int
    cell: int | None
    bias: int
    norm: int


HIDDEN = -2
"""Stands among positions for what an LSTM projects, which is no operand."""


@frozen
class Memory:
    """The operands of a kernel that keeps a state, beside its activation.

    Attributes:
        state: Position of the state that it computes in 16 bits, symmetric.
        weights: By position of a constant, the largest integer; symmetric, with one scale.
        shapes: By position of a constant, a letter for each side: the same for equal ones, ``i`` for the last
            one of the activation.
        sums: By position of a bias of int32, the positions whose scales are multiplied for its own.
        fused: The only activation function that the kernel computes, as a number.
        gates: Of an LSTM: input (which may be absent), forget, cell, output.
        last: Position of the state that holds what was given out last, on the grid of the output.
        projection: Position of the weights between the cell and the output.
        intermediates: How many tensors for what is between it wants to be named.
        clip: The option that bounds what is projected, about another zero point: the range must do it.
        leaves_cut: Whether it leaves its activation function to the lower end of the output's range.
    """

    state: int
    weights: Mapping[int, int]
    shapes: Mapping[int, str]
    sums: Mapping[int, tuple[int, int]]
    fused: int
    _: KW_ONLY
    gates: tuple[Gate, ...] = ()
    last: int | None = None
    projection: int | None = None
    intermediates: int = 0
    clip: str = ""
    leaves_cut: bool = False


Fixed = Mapping[int, tuple[float, int]]
"""By width, the scale and the zero point of an output."""


Bends = Mapping[int, tuple[float, float]]
"""By width, a least and a greatest value."""


@frozen
class IntegerKernel:
    """How one operator computes in integers.

    Attributes:
        scales: Which of its tensors share a scale.
        version8: The version to stamp for int8 activations; never lower than the file's.
        version16: Likewise for int16; 0 where there is no such kernel.
        old: The widths that runtime 2.14 computes right.
        fixed: Scales and zero points of the output.
        limits: Bounds of its scales.
        general16: An option that must be false beside int16, or the kernel may take scales for powers of two.
        caveats: What else must be looked at.
        memory: Its operands beside the activation, where it keeps a state.
        bends: By width, the range of input 0 outside of which it gives what it gives at the end of that, to a
            quarter of a step.
        blends: Whether it gives other numbers than those that it reads, on their scale.
    """

    scales: Scales
    version8: int
    version16: int = 0
    _: KW_ONLY
    old: tuple[int, ...] = (8, 16)
    fixed: Fixed = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    general16: str = ""
    caveats: tuple[Caveat, ...] = ()
    memory: Memory | None = None
    bends: Bends = field(default_factory=dict)
    blends: bool = False

    def version(self, width: int) -> int:
        """Returns the version to stamp for activations of 8 or 16 bits; 0 where there is no kernel."""
        return self.version8 if width == 8 else self.version16


class Target(str, enum.Enum):
    """The runtime that is to compute a file."""

    LITERT = "litert"
    OLD = "2.14"
    MICRO = "tflm"

    @property
    def spoken(self) -> str:
        """Its name in a sentence."""
        return {Target.LITERT: "LiteRT", Target.OLD: "runtime 2.14", Target.MICRO: "TFLite Micro"}[self]

    @property
    def runtime(self) -> Runtime:
        """Its version; TFLite Micro looks at none."""
        return OLDEST_MEASURED_RUNTIME if self is Target.OLD else NEWEST_RUNTIME

    def changes(self, given: str, made: str) -> bool:
        """Whether it has one operator that makes a type of another one; names as in ``TensorType``."""
        known = TYPE_CHANGES.get((given, made))
        if known is None or self is Target.LITERT:
            return known is not None
        return known.old if self is Target.OLD else known.micro

    def between(self, given: str, made: str) -> str | None:
        """Returns the type by way of which it makes one of another that it does not make at once.

        None where there is no such type. Eight bits first: what they hold, floats do not hold better.
        """
        if (given, made) not in TYPE_CHANGES:
            return None
        kinds = ("INT8", "FLOAT32")
        return next((kind for kind in kinds if self.changes(given, kind) and self.changes(kind, made)), None)


BETWEEN_0_AND_1: Fixed = MappingProxyType({8: (1 / 256, -128), 16: (1 / 32768, 0)})
BETWEEN_1_AND_1: Fixed = MappingProxyType({8: (1 / 128, 0), 16: (1 / 32768, 0)})

BENDS_OF_LOGISTIC: Bends = MappingProxyType({8: (-7.0, 7.0), 16: (-12.0, 12.0)})
BENDS_OF_TANH: Bends = MappingProxyType({8: (-3.5, 3.5), 16: (-6.5, 6.5)})
"""Beyond them the function is nearer to its limit than a quarter of a step of the output."""


def bends_between(low: float, high: float) -> Bends:
    """Returns the range of what is cut off outside of it, whatever the width."""
    return MappingProxyType({8: (low, high), 16: (low, high)})


def _at(bound: float, *widths: int) -> Mapping[int, float]:
    return MappingProxyType(dict.fromkeys(widths or (8, 16), bound))


_FAR_APART = "the scales of its operands are too far apart for its integer kernel"

SUMMANDS = (
    *(Limit(_FAR_APART, (at,), (OUTPUT,), most={**_at(2.0**6, 8), **_at(2.0**12, 16)}) for at in (0, 1)),
    *(Limit(_FAR_APART, (at,), (1 - at,), most={**_at(2.0**17, 8), **_at(2.0**12, 16)}) for at in (0, 1)),
)
"""The kernel of ADD shifts by 20 or 15 bits, and ends the process where a multiplier is 1 or more; that of 8
bits holds sums in 16 bits, too few from 128 steps of the output for one of an input on (measured: 0.5 dB)."""

FACTORS = (
    Limit(
        "its product has far smaller steps than what it multiplies",
        (0, 1),
        (OUTPUT,),
        most=_at(1.0),
    ),
)
"""The optimized kernel of MUL overflows where the product of scales is much more than the output's; XNNPACK
then ends the process for BATCH_MATMUL. Below 1 version 2 of MUL will do as well."""

DIFFERENCES = (
    *(Limit(_FAR_APART, (at, at), (OUTPUT,), most=_at(2.0**4, 8)) for at in (0, 1)),
    *(Limit(_FAR_APART, (at,), (1 - at,), most=_at(2.0**4, 8)) for at in (0, 1)),
)
"""The kernel of SQUARED_DIFFERENCE shifts by 7 bits: it ends the process where the square of an input's scale
is 2^12 times the output's, and has few bits left for small differences (measured: 7 steps off at 2^10)."""

RESCALED = (
    Limit("what it gives has far smaller steps than what it reads", (0,), (OUTPUT,), most=_at(2.0**12)),
)
"""RELU and its kind overflow where this is 2^22 and more beside int8 (measured: -3 dB)."""

UNIT = (
    Limit(
        "what it reads is so small that the float kernel adds to it, or too large to be squared",
        (0,),
        least=_at(2.0**-10, 8),
        most=_at(2.0**40, 8),
    ),
)
"""The float kernel of L2_NORMALIZATION divides by the root of 1e-6 at least, the integer one by what there is
(measured: -34 dB)."""

CLAMPED = (
    Limit(
        "its bounds are too many steps of its output for its integer kernel",
        (OUTPUT,),
        least=_at(2.0**-27),
    ),
)
"""6 or 1 over the scale must fit into int32 (``tflite/kernels/kernel_util.cc``): a fused function is refused
otherwise, and RELU_N1_TO_1 is wrong (measured: -13 dB)."""

FUSED_BOUNDS = (2, 3)
"""The fused activation functions to which :data:`CLAMPED` applies: RELU_N1_TO_1 and RELU6."""

_TOO_WIDE = "what it reads spans too much for its integer kernel"
CURVE = (
    Limit(
        "what it reads is too small or too large for its integer kernel",
        (0,),
        least=_at(2.0**-24, 16),
        most={**_at(2.0**20, 8), **_at(2.0, 16)},
    ),
    Limit(
        "what it reads is too small or too large for the integer kernel of TFLite Micro",
        (0,),
        least=_at(2.0**-27, 8),
        most=_at(2.0**3, 8),
        micro=True,
    ),
)
"""The 16-bit kernels of LOGISTIC and TANH multiply by the scale times 12288 in int32, and shift by 31 bits at
most (``tflite/kernels/activations.cc``; measured: 4 dB above, less than 0 below). XNNPACK gives the least for
the largest beside 8 bits where numbers are beyond all measure (2^91). The 8-bit kernels of TFLite Micro count
up to which step they do not saturate: none from 8 on, so that 0 becomes the least, and below 2^-28 all is the
least or the largest (``integer_ops/tanh.h``; measured at 23 and 2^-32)."""

TABLE = (
    Limit(
        "what it reads is too small or too large for its integer kernel",
        (0,),
        least=_at(2.0**-24, 16),
        most=_at(2.0**-9, 16),
    ),
)
"""The 16-bit kernels of EXP and GELU are straight lines of 128 steps each (GELU at 1.3: -2 dB)."""

AVERAGED = (
    Limit("what it averages has far larger steps than what it gives", (0,), (OUTPUT,), most=_at(2.0**6)),
)
"""XNNPACK is wrong where they are (measured once, 127 steps off)."""

SWISH = (
    Limit(
        "what it reads is too small or too large for its integer kernel",
        (0,),
        least=_at(2.0**-16, 8),
        most=_at(2.0**8, 8),
    ),
    Limit("what it gives has far smaller steps than what it reads", (0,), (OUTPUT,), most=_at(2.0**6, 8)),
)
"""HARD_SWISH shifts 16-bit numbers by what their scale is beside 3 / 2^15 (measured: 6 dB at 2^93), and is
refused where the output has 128 times as many steps."""

COMPARED = tuple(
    Limit(
        "its integer kernel compares multiples of 1/256 below 256, and what it reads is smaller or larger",
        (at,),
        least=_at(2.0**-8, 8),
        most=_at(1.0, 8),
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

LOG_SCORES = (
    Limit(
        "what it reads is too small or too large for its integer kernel",
        (0,),
        least=_at(2.0**-25, 8),
        most=_at(2.0**5, 8),
    ),
)
"""LOG_SOFTMAX shifts as SOFTMAX does, into 31 bits (measured: 0 dB at 2^18)."""

SCORES = (
    Limit(
        "what it reads, times its beta, is too small or too large for its integer kernel",
        (0,),
        least=_at(2.0**-25, 8),
        most=_at(2.0, 16),
        option="beta",
    ),
)
"""The 8-bit kernel of SOFTMAX shifts scale times beta by 26 bits, and ends the process below 1; the one of 16
bits multiplies by 6553 times as much in int32 (measured: 2 dB)."""


_GATES = tuple(Gate(1 + at, 5 + at, cell, 12 + at, 20 + at) for at, cell in enumerate((9, 10, None, 11)))
LSTM_MEMORY = Memory(
    state=19,
    weights=MappingProxyType(
        {
            **dict.fromkeys((*range(1, 9), 16), (1 << 7) - 1),
            **dict.fromkeys((*range(9, 12), *range(20, 24)), (1 << 15) - 1),
        }
    ),
    shapes=MappingProxyType(
        {
            **{gate.inputs: "ui" for gate in _GATES},
            **{gate.outputs: "uo" for gate in _GATES},
            **dict.fromkeys((*range(9, 16), *range(20, 24)), "u"),
            16: "ou",
            17: "o",
        }
    ),
    sums=MappingProxyType({**{gate.bias: (0, gate.inputs) for gate in _GATES}, 17: (HIDDEN, 16)}),
    fused=4,
    gates=_GATES,
    last=18,
    projection=16,
    clip="proj_clip",
    intermediates=5,
)
"""``tflite/kernels/lstm_eval.cc`` (``EvalInteger8x8_16``): gates in 16 bits, steps of 2^-12, and TANH of the
cell whatever the options say."""
CELL_SCALES = (2.0**-15, 2.0**-9)
"""Powers of two of the cell state for which ``ApplyTanh`` of the kernel has a case."""
GATE_STEP = 2.0**-12
"""Of the sums of a gate, and of what its normalization gives."""
NORM_STEP = 2.0**-10
"""Of the bias behind a normalization, times the scale of what it multiplies with."""

SVDF_MEMORY = Memory(
    state=4,
    weights=MappingProxyType({1: (1 << 7) - 1, 2: (1 << 9) - 1}),
    shapes=MappingProxyType({1: "fi", 2: "fs", 3: "u"}),
    sums=MappingProxyType({3: (4, 2)}),
    fused=1,
    leaves_cut=True,
)
"""``EvalIntegerSVDF`` sums products in int32: 10 bits must do for weights over time. It asks for RELU, and
cuts off nothing but what int8 does not hold."""


@frozen
class TypeChange:
    """How an operator turns a tensor of one type into the same real values in another.

    Attributes:
        version: To stamp, of DEQUANTIZE where it gives floats, else of QUANTIZE.
        old: Whether runtime 2.14 computes it.
        micro: Whether TFLite Micro does (``micro/kernels/quantize_common.cc``).
    """

    version: int
    old: bool = True
    micro: bool = True


_EIGHT = ("INT8", "UINT8")
TYPE_CHANGES: Mapping[tuple[str, str], TypeChange] = MappingProxyType(
    {
        ("FLOAT32", "INT8"): TypeChange(1),
        ("FLOAT32", "UINT8"): TypeChange(1, micro=False),
        **{(one, other): TypeChange(1) for one in _EIGHT for other in _EIGHT},
        ("UINT8", "UINT8"): TypeChange(1, micro=False),
        ("INT8", "INT16"): TypeChange(2, old=False),
        ("UINT8", "INT16"): TypeChange(2, old=False, micro=False),
        ("FLOAT32", "INT16"): TypeChange(2),
        ("INT16", "INT16"): TypeChange(2),
        ("INT16", "INT8"): TypeChange(1),
        ("UINT8", "FLOAT32"): TypeChange(1),
        ("INT8", "FLOAT32"): TypeChange(2),
        ("INT16", "FLOAT32"): TypeChange(3),
    }
)
"""By the types read and given. No kernel gives UINT8 of INT16 (tflite/kernels/quantize.cc)."""
