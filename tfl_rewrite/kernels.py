"""What the runtimes' kernels accept, as rows.

A float constant can become int8 in three ways: the operator has a *hybrid* kernel that takes int8 weights
beside float activations; a DEQUANTIZE operator turns the int8 constant back into floats before a kernel
that knows floats only; or, for a table that is only looked up, the operator works on the int8 table and the
floats are made from what it found. Which of them a file may use depends on the operator, on the runtime
that will load it, and on details of the operator at hand. This module holds those answers and nothing else:
no model classes, no array code. A pass reads the rows and evaluates their :class:`Need` conditions on its
own model.

Every row names its source: a kernel file of LiteRT (``tflite/kernels/...``), or a measurement. "2.14" and
"2.3" in a source are the two runtimes that were measured, tflite-runtime 2.14.0 and ai-edge-litert 2.3.0,
each with XNNPACK, without it, and with the reference kernels. The tests of this module repeat the
measurements and fail when a row stops being true.

How runtime versions are counted: an operator version names the first TensorFlow release whose kernel
accepts it (:data:`FIRST_RUNTIME`). LiteRT numbers its own releases anew from 1.0 on, but its table goes on
counting in TensorFlow's numbers, so each LiteRT release has a place in that count: see
:data:`LITERT_RUNTIME`. ``Runtime`` always means that count.

What to stamp: the maximum of the version that the operator has in the file and the version of the form, for
every feature that the operator used before (a fused bias, ``keep_num_dims``, groups) is still used.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

Runtime = tuple[int, int]

LITERT_RUNTIME: Mapping[str, Runtime] = MappingProxyType(
    {
        "1.1.0": (2, 19),
        "2.0.2": (2, 20),
        "2.1.3": (2, 21),
        "2.1.6": (2, 22),
        "2.2.0": (2, 23),
        "2.3.0": (2, 23),
    }
)
"""First LiteRT release that registers everything the table lists up to a runtime; those between inherit.

Read from ``tflite/core/kernels/register.cc`` at each release tag; for 2.3.0 measured by offering the
interpreter every operator in every version. Two entries of the table stay behind in all of them:
STABLEHLO_CBRT is registered nowhere, and TRANSPOSE version 7, listed for 2.14.4, came with LiteRT 1.2.0.
"""

NEWEST_RUNTIME: Runtime = LITERT_RUNTIME["2.3.0"]
"""The newest measured runtime, ai-edge-litert 2.3.0."""

OLDEST_MEASURED_RUNTIME: Runtime = (2, 14)
"""The oldest runtime on which the rows were measured, tflite-runtime 2.14.0."""

SMALLEST_SCALE = 2.0**-126
"""The smallest normal float32: the least scale that XNNPACK takes (:attr:`Need.NORMAL_SCALES`)."""


class Granularity(str, enum.Enum):
    """How many scales a quantized tensor has."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    BLOCK = "block"


class Need(enum.Enum):
    """A condition that the operator at hand must meet; the value is its description."""

    FLOAT_BIAS = (
        "input 2 must be present and a float32 bias: CONV_2D fails in Prepare without one, DEPTHWISE_CONV_2D "
        "takes the process down (their float kernels do too); where it is absent, add one of zeros"
    )
    FLOAT_INPUT_OUTPUT = "the activation inputs and the outputs must be float32"
    FLOAT_OUTPUT = "the output must be float32"
    NO_SPARSITY = "the constant must not be stored sparse"
    NOT_SUBGRAPH_OUTPUT = (
        "the constant must not be an output of its subgraph: int8 would change the output's type, and for a "
        "DEQUANTIZE output that is a subgraph output XNNPACK returns garbage or fails"
    )
    ZERO_POINT_ZERO = "every zero point must be 0"
    NORMAL_SCALES = (
        "every scale must be finite and at least SMALLEST_SCALE: XNNPACK refuses a FULLY_CONNECTED with a "
        "zero or subnormal scale; an all-zero channel gets scale 1"
    )
    SAME_CHANNEL_AXIS = (
        "all operators that read the constant as a hybrid weight must agree on its channel axis, per-tensor "
        "scales included: XNNPACK's FULLY_CONNECTED spreads a single scale over axis 0 in place, and a "
        "BATCH_MATMUL on the same tensor then refuses it"
    )
    ALL_OR_NOTHING = (
        "all weight inputs of the operator must become int8 together, however small some are: a mixture "
        "fails in Prepare, or (UNIDIRECTIONAL_SEQUENCE_LSTM, SVDF) runs and returns garbage"
    )
    LSTM_KERNEL_FULL = "LSTMOptions.kernel_type must be FULL: the BASIC kernel takes no int8 weights"
    NO_DIAGONAL_RECURRENT = "the recurrent weights must be matrices, not diagonals stored as vectors"
    RIGHT_SIDE_CONSTANT = "the int8 operand must be the right one, and the left one a float activation"
    ONE_BATCH_AXIS = (
        "of the batch axes (all but the last two) at most one of the left operand and at most one of the "
        "right may be longer than 1, an unknown length counting as longer: with more, every resolver but "
        "XNNPACK mixes up the scales of the batches"
    )
    DEFAULT_WEIGHTS_FORMAT = "FullyConnectedOptions.weights_format must be DEFAULT, not SHUFFLED4x16INT8"
    INPUT_RANK_RECORDED = (
        "the file must record a shape of rank 1 or more for the activation input: the delegate is applied "
        "before shapes are known, and XNNPACK refuses the whole file for a rank of 0"
    )
    UNGROUPED = (
        "the filter must have as many input channels as the input: grouped filters need per-channel scales"
    )
    SCALES_DIFFER = (
        "unless the convolution is grouped or has one channel, two scales must differ: if all are equal, "
        "2.14 takes its per-tensor path, reads scale 0 and returns zeros; write that one scale per tensor"
    )

    @property
    def description(self) -> str:
        """The condition in words."""
        return self.value


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which a hybrid kernel takes int8 weights.

    Attributes:
        granularity: One scale for the tensor, or one for each index along the row's channel axis.
        version: The operator version to stamp, or the file's own if that is higher.
        first_runtime: The oldest runtime that computes this form correctly.
        by_default: Whether the form may be used without being asked for by name.
        source: Where this is known from.
        asymmetric_inputs: What to set ``asymmetric_quantize_inputs`` to; None where the options table of
            the operator has no such field. XNNPACK quantizes inputs asymmetrically whatever it says.
        note: What else is worth knowing before choosing it.
        needs: Conditions of this form, on top of those of its row.
        version_tells: Whether the stamped version keeps the file away from runtimes older than
            ``first_runtime``. Where it does not, an older runtime loads the file and goes wrong.
    """

    granularity: Granularity
    version: int
    first_runtime: Runtime
    by_default: bool
    source: str
    asymmetric_inputs: bool | None = None
    note: str = ""
    needs: tuple[Need, ...] = ()
    version_tells: bool = True


@dataclass(frozen=True, slots=True)
class HybridRow:
    """The hybrid kernel of one operator.

    Attributes:
        operator: Name in ``BuiltinOperator``.
        inputs: Positions of the inputs that may become int8. Absent optional ones are skipped.
        channel_axis: Axis of per-channel scales, from the front or (negative) from the back; for
            BATCH_MATMUL a mapping from ``adj_y`` to it; None where the kernel takes per-tensor scales only.
        forms: The forms, best first.
        needs: Conditions on the operator at hand, whatever the form.
        source: The kernel.
        note: What else is worth knowing.
        activation: Position of the float activation input; None where there is none.
    """

    operator: str
    inputs: tuple[int, ...]
    channel_axis: int | Mapping[bool, int] | None
    forms: tuple[Form, ...]
    needs: tuple[Need, ...]
    source: str
    note: str = ""
    activation: int | None = 0

    def axis(self, *, adj_y: bool = False) -> int | None:
        """Returns the channel axis, given the operator's ``adj_y`` option where it has one."""
        if isinstance(self.channel_axis, Mapping):
            return self.channel_axis[adj_y]
        return self.channel_axis

    def forms_for(self, runtime: Runtime, *, by_default: bool = True) -> tuple[Form, ...]:
        """Returns the forms that a runtime takes, best first; the caller drops those whose needs fail.

        Args:
            runtime: The oldest runtime that must load the file.
            by_default: Leave out the forms that must be asked for by name.
        """
        return tuple(
            form
            for form in self.forms
            if form.first_runtime <= runtime and (form.by_default or not by_default)
        )

    def best_form(self, runtime: Runtime, *, by_default: bool = True) -> Form | None:
        """Returns the first of :meth:`forms_for`, or None."""
        return next(iter(self.forms_for(runtime, by_default=by_default)), None)


_TENSOR = Granularity.TENSOR
_CHANNEL = Granularity.CHANNEL
_CONSTANT_NEEDS = (Need.NO_SPARSITY, Need.NOT_SUBGRAPH_OUTPUT, Need.ZERO_POINT_ZERO, Need.NORMAL_SCALES)
_HYBRID_NEEDS = (Need.FLOAT_INPUT_OUTPUT, Need.SAME_CHANNEL_AXIS, *_CONSTANT_NEEDS)
_VERSIONS = "tflite/converter/tools/versioning/op_version.cc"
_BOTH = f"{_VERSIONS}; measured on 2.14 and 2.3"
_NEW = f"{_VERSIONS}; measured on 2.3"


def _recurrent(symmetric: Form, asymmetric: Form) -> tuple[Form, ...]:
    """Asymmetric inputs first: over 27 measured variants up to 8 dB better, never more than 2 dB worse."""
    return (asymmetric, symmetric)


HYBRID: tuple[HybridRow, ...] = (
    HybridRow(
        "CONV_2D",
        (1,),
        0,
        (
            Form(_CHANNEL, 5, (2, 4), True, _BOTH, needs=(Need.SCALES_DIFFER,)),
            Form(_TENSOR, 2, (1, 14), True, _BOTH, needs=(Need.UNGROUPED,)),
        ),
        (Need.FLOAT_BIAS, *_HYBRID_NEEDS),
        "tflite/kernels/conv.cc",
        "Right for any batch, stride, dilation, fused activation and dynamic dimension that was measured. A "
        "grouped convolution has version 6 already, which stays.",
    ),
    HybridRow(
        "DEPTHWISE_CONV_2D",
        (1,),
        3,
        (Form(_CHANNEL, 6, (2, 3), True, _BOTH),),
        (Need.FLOAT_BIAS, *_HYBRID_NEEDS),
        "tflite/kernels/depthwise_conv.cc",
        "There is no per-tensor form: with one scale, or with quantized_dimension other than 3, the kernel "
        "reads past its scales (measured: garbage, NaN, different from run to run).",
    ),
    HybridRow(
        "FULLY_CONNECTED",
        (1,),
        0,
        (
            Form(
                _CHANNEL,
                12,
                (2, 17),
                True,
                _NEW,
                True,
                "2.14 refuses version 12; stamped lower it reads scale 0 there and returns zeros.",
            ),
            Form(_TENSOR, 9, (2, 3), True, _BOTH, True),
            Form(
                _TENSOR,
                3,
                (1, 14),
                False,
                _BOTH,
                False,
                "Symmetric inputs: as good with XNNPACK, up to 6 dB worse without it.",
            ),
        ),
        (Need.DEFAULT_WEIGHTS_FORMAT, Need.INPUT_RANK_RECORDED, *_HYBRID_NEEDS),
        "tflite/kernels/fully_connected.cc; tflite/delegates/xnnpack/xnnpack_delegate.cc",
        "The bias may be absent, the last axis odd, and keep_num_dims set.",
    ),
    HybridRow(
        "BATCH_MATMUL",
        (1,),
        MappingProxyType({False: -1, True: -2}),
        (
            Form(
                _TENSOR,
                4,
                (2, 5),
                True,
                _BOTH,
                True,
                "The reference kernels of 2.14 stop at version 3.",
            ),
            Form(
                _CHANNEL,
                4,
                (2, 19),
                False,
                "tflite/kernels/batch_matmul.cc at LiteRT 1.1.0; measured on TensorFlow 2.21 and 2.3",
                True,
                "2.14 loads the file and returns zeros.",
                version_tells=False,
            ),
            Form(
                _TENSOR,
                1,
                (2, 3),
                False,
                _BOTH,
                False,
                "Symmetric inputs: as good with XNNPACK, 1 to 6 dB worse without it.",
            ),
        ),
        (Need.RIGHT_SIDE_CONSTANT, Need.ONE_BATCH_AXIS, *_HYBRID_NEEDS),
        "tflite/kernels/batch_matmul.cc; tflite/kernels/internal/reference/batch_matmul.h",
    ),
    HybridRow(
        "TRANSPOSE_CONV",
        (1,),
        0,
        tuple(
            Form(
                granularity,
                2,
                (2, 19),
                False,
                "tflite/kernels/transpose_conv.cc at LiteRT 1.1.0; measured on TensorFlow 2.21 and 2.3",
                None,
                "2.14 loads the file and fails in Prepare. With a bias the file has version 3 already.",
                version_tells=False,
            )
            for granularity in (_CHANNEL, _TENSOR)
        ),
        _HYBRID_NEEDS,
        "tflite/kernels/transpose_conv.cc",
        activation=2,
    ),
    HybridRow(
        "EMBEDDING_LOOKUP",
        (1,),
        0,
        (
            Form(_CHANNEL, 4, (2, 18), True, _NEW),
            Form(_TENSOR, 3, (1, 14), True, _BOTH),
        ),
        (Need.FLOAT_OUTPUT, Need.SAME_CHANNEL_AXIS, *_CONSTANT_NEEDS),
        "tflite/kernels/embedding_lookup.cc",
        "Exact: the rows that are looked up are dequantized, nothing else is rounded.",
        activation=None,
    ),
    HybridRow(
        "LSTM",
        (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16),
        None,
        _recurrent(
            Form(_TENSOR, 3, (1, 14), True, _BOTH, False), Form(_TENSOR, 4, (2, 3), True, _BOTH, True)
        ),
        (Need.LSTM_KERNEL_FULL, Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/lstm.cc",
        "Biases, states and layer normalization coefficients stay float.",
    ),
    HybridRow(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16),
        None,
        _recurrent(
            Form(_TENSOR, 2, (1, 14), True, _BOTH, False), Form(_TENSOR, 3, (2, 3), True, _BOTH, True)
        ),
        (Need.NO_DIAGONAL_RECURRENT, Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/unidirectional_sequence_lstm.cc",
        "Biases, states and layer normalization coefficients stay float.",
    ),
    HybridRow(
        "BIDIRECTIONAL_SEQUENCE_LSTM",
        (*range(1, 12), 16, *range(18, 29), 33, *range(40, 48)),
        None,
        _recurrent(
            Form(_TENSOR, 2, (1, 14), True, _BOTH, False), Form(_TENSOR, 3, (1, 14), True, _BOTH, True)
        ),
        (Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/bidirectional_sequence_lstm.cc",
        "The auxiliary weights (40 to 47) count as weights where they are present.",
    ),
    HybridRow(
        "RNN",
        (1, 2),
        None,
        _recurrent(
            Form(_TENSOR, 2, (1, 14), True, _BOTH, False), Form(_TENSOR, 3, (2, 3), True, _BOTH, True)
        ),
        (Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/basic_rnn.cc",
    ),
    HybridRow(
        "UNIDIRECTIONAL_SEQUENCE_RNN",
        (1, 2),
        None,
        _recurrent(
            Form(_TENSOR, 2, (1, 14), True, _BOTH, False), Form(_TENSOR, 3, (2, 3), True, _BOTH, True)
        ),
        (Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/unidirectional_sequence_rnn.cc",
    ),
    HybridRow(
        "SVDF",
        (1, 2),
        None,
        _recurrent(
            Form(_TENSOR, 2, (1, 14), True, _BOTH, False), Form(_TENSOR, 4, (2, 3), True, _BOTH, True)
        ),
        (Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/svdf.cc",
        "The kernel dequantizes the time weights (input 2) once and keeps the floats.",
    ),
)


@dataclass(frozen=True, slots=True)
class NoHybrid:
    """An operator with weights whose kernel must not be given int8 ones.

    Attributes:
        operator: Name in ``BuiltinOperator``.
        reason: What happens otherwise.
        source: Where this is known from.
    """

    operator: str
    reason: str
    source: str


NO_HYBRID: tuple[NoHybrid, ...] = (
    NoHybrid(
        "BIDIRECTIONAL_SEQUENCE_RNN",
        "its hybrid kernel returns wrong values (5 to 9 dB) or takes the process down",
        "tflite/kernels/bidirectional_sequence_rnn.cc; measured on 2.14 and 2.3",
    ),
    NoHybrid("CONV_3D", "its kernel takes float filters only", "tflite/kernels/conv3d.cc"),
    NoHybrid(
        "CONV_3D_TRANSPOSE", "its kernel takes float filters only", "tflite/kernels/conv3d_transpose.cc"
    ),
)


@dataclass(frozen=True, slots=True)
class DequantizeForm:
    """One dtype of constant that DEQUANTIZE turns into float32.

    Attributes:
        dtype: Name in ``TensorType``.
        granularity: None for a dtype without scales. Any axis may carry the scales.
        version: The operator version to stamp.
        first_runtime: The oldest runtime that computes this form correctly.
        source: Where this is known from.
        note: What else is worth knowing.
    """

    dtype: str
    granularity: Granularity | None
    version: int
    first_runtime: Runtime
    source: str
    note: str = ""


DEQUANTIZE: tuple[DequantizeForm, ...] = (
    DequantizeForm(
        "INT8",
        _CHANNEL,
        5,
        (2, 7),
        f"{_VERSIONS}; measured on 2.14 and 2.3: exact",
        "The reference kernels of 2.14 stop at version 4 and refuse the file; its other resolvers take it.",
    ),
    DequantizeForm("INT8", _TENSOR, 2, (1, 14), "measured on 2.14 and 2.3: exact"),
    DequantizeForm("FLOAT16", None, 3, (1, 15), "measured on 2.14 and 2.3: exact"),
    DequantizeForm("INT4", _CHANNEL, 6, (2, 18), "measured: 2.14 refuses, 2.3 exact"),
    DequantizeForm("INT4", _TENSOR, 6, (2, 18), "measured: 2.14 refuses, 2.3 exact"),
    DequantizeForm("INT2", _CHANNEL, 7, (2, 21), "measured: 2.14 refuses, 2.3 exact"),
    DequantizeForm("INT2", _TENSOR, 7, (2, 21), "measured: 2.14 refuses, 2.3 exact"),
)

DEQUANTIZE_NEEDS: tuple[Need, ...] = (Need.NO_SPARSITY, Need.NOT_SUBGRAPH_OUTPUT)
"""Conditions on a constant that is to come out of DEQUANTIZE, whoever reads it."""


@dataclass(frozen=True, slots=True)
class ConstantInput:
    """An input whose float constant must stay a constant in the file.

    Attributes:
        operator: Name in ``BuiltinOperator``, or the custom code of a custom operator.
        input: Position of the input.
        reason: What goes wrong when the value comes from another operator.
        source: Where this is known from.
    """

    operator: str
    input: int
    reason: str
    source: str


# Short for a reason: some 90 consumers were measured with a float operand that comes out of DEQUANTIZE (all
# that the tests list, control flow, variables, composites and the custom operators Convolution2DTransposeBias
# and TFLite_Detection_PostProcess among them), and each was right with every resolver. Shapes, axes and
# paddings that kernels want constant are integers, which are never quantized.
MUST_STAY_CONSTANT: tuple[ConstantInput, ...] = (
    ConstantInput(
        "DENSIFY",
        0,
        "the kernel demands a constant, and a sparse one must not be touched anyway",
        "tflite/kernels/densify.cc",
    ),
)


BIASES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "CONV_2D": (2,),
        "CONV_3D": (2,),
        "CONV_3D_TRANSPOSE": (3,),
        "DEPTHWISE_CONV_2D": (2,),
        "FULLY_CONNECTED": (2,),
        "TRANSPOSE_CONV": (3,),
        "LSTM": (12, 13, 14, 15, 17),
        "UNIDIRECTIONAL_SEQUENCE_LSTM": (12, 13, 14, 15, 17),
        "BIDIRECTIONAL_SEQUENCE_LSTM": (12, 13, 14, 15, 17, 29, 30, 31, 32, 34),
        "RNN": (3,),
        "UNIDIRECTIONAL_SEQUENCE_RNN": (3,),
        "BIDIRECTIONAL_SEQUENCE_RNN": (3, 6),
        "SVDF": (3,),
    }
)
"""Positions of biases (``tflite/converter/ir/tfl_ops.td``): added once
per output, so their error is not averaged away."""

FLOAT32_BIAS_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operators whose bias, beside an int8 filter, must not come out of a DEQUANTIZE of float16 constants.

XNNPACK keeps such a bias in float16 if only these operators read it (``xnnpack_delegate.cc``, "skipped"
DEQUANTIZE nodes), and then cannot define the hybrid operator: the whole file is refused. Measured on 2.3
with CONV_2D. A DEQUANTIZE of int8 is not affected.
"""


def is_bias(operator: str, position: int) -> bool:
    """Whether an input of an operator is its bias."""
    return position in BIASES.get(operator, ())


BUILT_IN_CUSTOM = (
    "NumericVerify",
    "Mfcc",
    "AudioSpectrogram",
    "TFLite_Detection_PostProcess",
    "aeq.hadamard_rotation",
)
"""Custom operators that the runtime registers itself (``tflite/core/kernels/register.cc``)."""
DELEGATE_CUSTOM = ("Convolution2DTransposeBias", "MaxPoolingWithArgmax2D", "MaxUnpooling2D")
"""Custom operators that only XNNPACK takes (``xnnpack_delegate.cc``)."""
KNOWN_CUSTOM = frozenset((*BUILT_IN_CUSTOM, *DELEGATE_CUSTOM, "edgetpu-custom-op"))
"""Custom operators whose options are known to hold no position in the file."""
DISPATCH = "DISPATCH_OP"
"""The custom operator that addresses compiled code by its position in the file (LiteRT, ``litert/core``)."""


@dataclass(frozen=True, slots=True)
class TableLookup:
    """An operator that moves int8 values unchanged, so that the floats can be made from what it found.

    Attributes:
        operator: Name in ``BuiltinOperator``.
        input: Position of the table.
        granularity: TENSOR: DEQUANTIZE the output. CHANNEL: one scale for each row; see ``note``.
        version: The operator version to stamp for an int8 table, or the file's own if that is higher.
        first_runtime: The oldest runtime that computes this form correctly.
        source: Where this is known from.
        note: How to build it.
    """

    operator: str
    input: int
    granularity: Granularity
    version: int
    first_runtime: Runtime
    source: str
    note: str = ""


_ONE_SCALE = (
    "Table and output carry the same scale and zero point; DEQUANTIZE version 2 follows. Per-channel scales "
    "would have to follow the rows that are looked up, which no tensor can say."
)

TABLE_LOOKUP: tuple[TableLookup, ...] = (
    TableLookup(
        "GATHER",
        0,
        _TENSOR,
        2,
        (1, 14),
        "tflite/kernels/gather.cc; measured on 2.14 and 2.3: exact",
        _ONE_SCALE,
    ),
    TableLookup(
        "GATHER",
        0,
        _CHANNEL,
        2,
        (2, 8),
        "measured on 2.14 and 2.3: exact",
        "For axis 0 without batch dimensions: GATHER the int8 rows (no quantization parameters), CAST them "
        "to float32 (version 3), GATHER the scales [rows, 1, ...] with the same positions, MUL the two.",
    ),
    TableLookup(
        "GATHER_ND",
        0,
        _TENSOR,
        2,
        (2, 3),
        "tflite/kernels/gather_nd.cc; measured on 2.14 and 2.3: exact",
        _ONE_SCALE,
    ),
)


# Facts of tflite/converter/tools/versioning/runtime_version.cc: operator, then version:first runtime.
# The table says which release *listed* a version; where a kernel was late, the rows above know better.
_FIRST_RUNTIME_TABLE = """\
ABS 1:1.13 2:2.4 3:2.5 4:2.6 5:2.12
ADD 1:1.5 2:1.14 3:2.4 4:2.6 5:2.13 6:2.23
ADD_N 1:1.14
ARG_MAX 1:1.9 2:1.14 3:2.9
ARG_MIN 1:1.9 2:1.14 3:2.9
ASSIGN_VARIABLE 1:2.6
ATAN2 1:2.10
AVERAGE_POOL_2D 1:1.5 2:1.14 3:2.3
BATCH_MATMUL 1:2.3 2:2.3 3:2.4 4:2.5
BATCH_TO_SPACE_ND 1:1.6 2:1.14 3:2.3 4:2.12
BIDIRECTIONAL_SEQUENCE_LSTM 1:1.14 2:1.14 3:1.14
BIDIRECTIONAL_SEQUENCE_RNN 1:1.14 2:1.14 3:2.3
BITCAST 1:2.13
BITWISE_XOR 1:2.13
BROADCAST_ARGS 1:2.6
BROADCAST_TO 2:2.5 3:2.5 4:2.23
BUCKETIZE 1:2.8
CALL_ONCE 1:2.5
CAST 1:1.5 2:2.7 3:2.8 4:2.9 5:2.12 6:2.15 7:2.17 8:2.21 9:2.23
CEIL 1:1.14
COMPLEX_ABS 1:2.5
CONCATENATION 1:1.5 2:1.14 3:2.3 4:2.14 5:2.21 6:2.23 7:2.23
CONV_2D 1:1.5 2:1.14 3:1.14 4:2.3 5:2.4 6:2.9 7:2.11 8:2.15
CONV_3D 1:2.5
CONV_3D_TRANSPOSE 1:2.6
COS 1:1.14 2:2.23
CUMSUM 1:2.4
DENSIFY 1:2.2
DEPTHWISE_CONV_2D 1:1.5 2:1.12 3:1.14 4:2.2 5:2.3 6:2.3 7:2.11
DEPTH_TO_SPACE 1:2.1 2:2.5
DEQUANTIZE 1:1.13.1 2:1.14 3:1.15 4:2.2 5:2.7 6:2.18 7:2.21 8:2.22 9:2.23
DILATE 1:2.15
DIV 1:1.6 2:2.3
DYNAMIC_UPDATE_SLICE 1:2.9 2:2.17 3:2.19 4:2.20 5:2.21 6:2.22
ELU 1:1.14
EMBEDDING_LOOKUP 1:1.13 2:1.14 3:1.14 4:2.18 5:2.21
EMBEDDING_LOOKUP_SPARSE 1:1.5
EQUAL 1:1.14 2:1.14 3:2.3 4:2.13 5:2.21
EXP 1:1.7 2:2.12
EXPAND_DIMS 1:1.10
FAKE_QUANT 1:1.5 2:1.10
FILL 1:1.13 2:2.3 3:2.5 4:2.12 5:2.23
FLOOR 1:1.9
FLOOR_DIV 1:1.14 2:1.14 3:2.13
FLOOR_MOD 1:1.13 2:2.13
FULLY_CONNECTED 1:1.5 2:1.10 3:1.14 4:1.14 5:2.0 6:2.1 7:2.3 8:2.3 9:2.3 10:2.11 11:2.15 12:2.17 13:2.18 \
14:2.21
GATHER 1:1.6 2:1.14 3:1.15 4:2.4 5:2.5 6:2.13 7:2.15 8:2.23
GATHER_ND 1:1.14 2:2.3 3:2.5 4:2.13 5:2.16 6:2.23
GELU 1:2.9 2:2.9 3:2.23
GREATER 1:1.14 2:1.14
GREATER_EQUAL 1:1.14 2:1.14 3:2.13
HARD_SWISH 1:1.15
HASHTABLE 1:2.5
HASHTABLE_FIND 1:2.5
HASHTABLE_IMPORT 1:2.5
HASHTABLE_LOOKUP 1:1.5
HASHTABLE_SIZE 1:2.5
IF 1:1.15
IMAG 1:2.5
L2_NORMALIZATION 1:1.5 2:1.14
L2_POOL_2D 1:1.5
LEAKY_RELU 1:1.13.1 2:2.3
LESS 1:1.14 2:1.14 3:2.13
LESS_EQUAL 1:1.14 2:1.14
LOCAL_RESPONSE_NORMALIZATION 1:1.5
LOG 1:1.14 2:2.15
LOGICAL_AND 1:1.11
LOGICAL_NOT 1:1.11
LOGICAL_OR 1:1.11
LOGISTIC 1:1.14 2:1.14 3:2.3
LOG_SOFTMAX 1:1.14 2:1.14
LSH_PROJECTION 1:1.5
LSTM 1:1.7 2:1.10 3:1.14 4:2.3
MATRIX_DIAG 1:1.14
MATRIX_SET_DIAG 1:1.14
MAXIMUM 1:1.14 2:1.14 3:2.3 4:2.3
MAX_POOL_2D 1:1.5 2:1.14 3:2.3
MEAN 1:1.6 2:1.14 3:2.4
MINIMUM 1:1.14 2:1.14 3:2.3 4:2.3
MIRROR_PAD 1:1.13.1 2:2.3 3:2.12
MUL 1:1.5 2:1.14 3:1.15 4:2.3 5:2.6 6:2.11 7:2.13 8:2.23
MULTINOMIAL 1:2.8
NEG 1:1.9
NON_MAX_SUPPRESSION_V4 1:2.1
NON_MAX_SUPPRESSION_V5 1:2.1
NOT_EQUAL 1:1.14 2:1.14 3:2.3 4:2.21
ONE_HOT 1:1.11
PACK 1:1.11 2:1.14 3:2.3 4:2.13 5:2.23
PAD 1:1.5 2:1.14 3:2.4 4:2.6 5:2.20 6:2.23
PADV2 1:1.9 2:1.14 3:2.4 4:2.6 5:2.20 6:2.23
POW 1:1.10
PRELU 1:1.8
QUANTIZE 1:1.14 2:1.15 3:2.7 4:2.21 5:2.21 6:2.21
RANDOM_STANDARD_NORMAL 1:2.8
RANDOM_UNIFORM 1:2.8
RANGE 1:1.13 2:2.14
RANK 1:1.14
READ_VARIABLE 1:2.6
REAL 1:2.5
REDUCE_ALL 1:2.6
REDUCE_ANY 1:1.11
REDUCE_MAX 1:1.11 2:1.14 3:2.5
REDUCE_MIN 1:1.11 2:1.14 3:2.5
REDUCE_PROD 1:1.11 2:2.6
REDUCE_WINDOW 1:2.15
RELU 1:1.5 2:2.1 3:2.5
RELU6 1:1.5 2:1.14 3:2.5
RELU_0_TO_1 1:2.10
RELU_N1_TO_1 1:1.5
RESHAPE 1:1.5
RESIZE_BILINEAR 1:1.7 2:1.14 3:2.2 4:2.5
RESIZE_NEAREST_NEIGHBOR 1:1.13.1 2:1.14 3:2.3 4:2.4
REVERSE_SEQUENCE 1:1.14
REVERSE_V2 1:1.14 2:2.2 3:2.5 4:2.23
RFFT2D 1:2.5
RIGHT_SHIFT 1:2.13
RNN 1:1.5 2:1.14 3:2.3
ROUND 1:1.14
RSQRT 1:1.10 2:2.5 3:2.15
SCATTER_ND 1:2.1
SEGMENT_SUM 1:2.2
SELECT 1:1.14 2:1.14 3:2.12 4:2.12
SELECT_V2 1:2.2 2:2.12
SHAPE 1:1.10
SIGN 1:2.11 2:2.12
SIN 1:1.9 2:2.23
SKIP_GRAM 1:1.5
SLICE 1:1.14 2:1.14 3:1.14 4:2.4 5:2.5 6:2.14 7:2.21 8:2.23
SOFTMAX 1:1.5 2:1.14 3:2.3 4:2.23
SPACE_TO_BATCH_ND 1:1.6 2:1.14 3:2.3 4:2.12
SPACE_TO_DEPTH 1:1.5 2:1.14
SPARSE_TO_DENSE 1:1.9 2:1.14 3:1.15
SPLIT 1:1.5 2:1.14 3:1.14 4:2.3 5:2.23
SPLIT_V 1:1.13.1 2:2.3 3:2.23
SQRT 1:1.10 2:2.21
SQUARE 1:1.12
SQUARED_DIFFERENCE 1:1.13.1 2:2.5
SQUEEZE 1:1.6 2:2.5
STABLEHLO_ADD 1:2.16
STABLEHLO_AND 1:2.17
STABLEHLO_CASE 1:2.17
STABLEHLO_CBRT 1:2.17
STABLEHLO_COMPOSITE 1:2.17
STABLEHLO_GATHER 1:2.16
STABLEHLO_MAXIMUM 1:2.16
STABLEHLO_MINIMUM 1:2.16
STABLEHLO_MULTIPLY 1:2.16
STABLEHLO_PAD 1:2.16
STABLEHLO_REDUCE_WINDOW 1:2.16
STABLEHLO_RNG_BIT_GENERATOR 1:2.15
STABLEHLO_SCATTER 1:2.15
STABLEHLO_SHIFT_LEFT 1:2.17
STRIDED_SLICE 1:1.6 2:1.14 3:2.1 4:2.2 5:2.5 6:2.6 7:2.14 8:2.14
SUB 1:1.6 2:1.14 3:2.3 4:2.4 5:2.4
SUM 1:1.10 2:1.15
SVDF 1:1.5 2:1.14 3:2.2 4:2.3
TANH 1:1.14 2:1.14 3:2.3
TILE 1:1.10.1 2:2.2 3:2.8
TOPK_V2 1:1.7 2:1.14 3:2.13
TRANSPOSE 1:1.6 2:1.14 3:1.15 4:2.3 5:2.4 6:2.12 7:2.14.4 8:2.22 9:2.23
TRANSPOSE_CONV 1:1.9 2:2.2 3:2.3 4:2.13 5:2.15
UNIDIRECTIONAL_SEQUENCE_LSTM 1:1.13.1 2:1.14 3:2.3 4:2.12
UNIDIRECTIONAL_SEQUENCE_RNN 1:1.14 2:1.14 3:2.3
UNIQUE 1:1.14
UNPACK 1:1.11 2:1.14 3:2.2 4:2.3 5:2.22 6:2.23
UNSORTED_SEGMENT_MAX 1:2.10
UNSORTED_SEGMENT_MIN 1:2.11
UNSORTED_SEGMENT_PROD 1:2.10
UNSORTED_SEGMENT_SUM 1:2.10
VAR_HANDLE 1:2.6
WHERE 1:1.14 2:2.8
WHILE 1:1.15
ZEROS_LIKE 1:1.12
"""


def _read_first_runtime(table: str) -> dict[tuple[str, int], str]:
    found = {}
    for line in table.splitlines():
        operator, *versions = line.split()
        for entry in versions:
            version, first = entry.split(":")
            found[operator, int(version)] = first if first.count(".") == 2 else f"{first}.0"
    return found


FIRST_RUNTIME: Mapping[tuple[str, int], str] = MappingProxyType(_read_first_runtime(_FIRST_RUNTIME_TABLE))
"""(operator, version) -> the first runtime whose kernels register it, such as ``"2.14.4"``."""

_HYBRID_BY_OPERATOR = {row.operator: row for row in HYBRID}
_NO_HYBRID_BY_OPERATOR = {row.operator: row for row in NO_HYBRID}
_LOOKUP_BY_FORM = {(row.operator, row.granularity): row for row in TABLE_LOOKUP}
_CONSTANT_BY_INPUT = {(row.operator, row.input): row for row in MUST_STAY_CONSTANT}


def hybrid_row(operator: str) -> HybridRow | None:
    """Returns the hybrid kernel of an operator, or None where it has none that may be used."""
    return _HYBRID_BY_OPERATOR.get(operator)


def no_hybrid(operator: str) -> NoHybrid | None:
    """Returns why an operator with weights has no hybrid row, or None."""
    return _NO_HYBRID_BY_OPERATOR.get(operator)


def table_lookup(operator: str, granularity: Granularity = Granularity.TENSOR) -> TableLookup | None:
    """Returns how an operator looks up an int8 table, or None."""
    return _LOOKUP_BY_FORM.get((operator, granularity))


def must_stay_constant(operator: str, position: int) -> ConstantInput | None:
    """Returns the row that forbids a DEQUANTIZE before this input, or None."""
    return _CONSTANT_BY_INPUT.get((operator, position))


def dequantize_form(
    dtype: str, granularity: Granularity | None, runtime: Runtime = NEWEST_RUNTIME
) -> DequantizeForm | None:
    """Returns how DEQUANTIZE takes a constant of this kind on a runtime, or None where it does not.

    Args:
        dtype: Name in ``TensorType``.
        granularity: None for a dtype without scales.
        runtime: The oldest runtime that must load the file.
    """
    for form in DEQUANTIZE:
        if (form.dtype, form.granularity) == (dtype, granularity) and form.first_runtime <= runtime:
            return form
    return None


def version_text(operator: str, version: int) -> str | None:
    """Returns the first runtime of an operator version as text such as ``2.14.4``, or None if unlisted."""
    return FIRST_RUNTIME.get((operator, version))


def _parts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def runtime_of(text: str) -> Runtime:
    """Returns major and minor number of a version as :func:`version_text` gives it."""
    major, minor, *_ = _parts(text)
    return major, minor


def min_runtime_text(pairs: Iterable[tuple[str, int]]) -> str:
    """Returns what the ``min_runtime_version`` metadata of a file must say: three numbers with dots.

    Args:
        pairs: (operator name, version) of every operator code in use. Those that the table does not list,
            custom operators among them, do not count.

    Returns:
        The highest of their first runtimes; the empty string if none is listed.
    """
    listed = [text for pair in pairs if (text := FIRST_RUNTIME.get(pair)) is not None]
    return max(listed, key=_parts, default="")


def min_runtime(pairs: Iterable[tuple[str, int]]) -> Runtime:
    """Returns major and minor number of :func:`min_runtime_text`; ``(0, 0)`` if no pair is listed."""
    text = min_runtime_text(pairs)
    if not text:
        return (0, 0)
    major, minor, *_ = _parts(text)
    return (major, minor)


def max_version(operator: str, runtime: Runtime) -> int:
    """Returns the highest version of an operator that a runtime takes, 0 if it knows none.

    Args:
        operator: Name in ``BuiltinOperator``.
        runtime: For :data:`OLDEST_MEASURED_RUNTIME` the answer was compared with what its interpreter
            registers: equal for every operator but TRANSPOSE, whose version 7 it refuses.
    """
    return max(
        (
            version
            for (name, version), text in FIRST_RUNTIME.items()
            if name == operator and _parts(text)[:2] <= runtime
        ),
        default=0,
    )
