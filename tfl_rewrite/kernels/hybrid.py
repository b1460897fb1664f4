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

What to stamp: the maximum of the version that the operator has in the file and the version of the form, for
every feature that the operator used before (a fused bias, ``keep_num_dims``, groups) is still used.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tfl_rewrite.kernels.runtimes import NEWEST_RUNTIME, Runtime

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
