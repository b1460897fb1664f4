"""What the runtimes' kernels accept, as rows.

A float constant can become int8 in three ways: the operator has a *hybrid* kernel that takes int8 weights
beside float activations; a DEQUANTIZE operator turns the int8 constant back into floats before a kernel
that knows floats only; or, for a table that is only looked up, the operator works on the int8 table and a
DEQUANTIZE follows it. Which of them a file may use depends on the operator, on the runtime that will load
it, and on details of the operator at hand. This module holds those answers and nothing else: no model
classes, no array code. A pass reads the rows and evaluates their :class:`Need` conditions on its own model.

Every row names its source: a kernel file of LiteRT (``tflite/kernels/...``), or a measurement. "2.14" and
"2.3" in a source are the two runtimes that were measured, tflite-runtime 2.14.0 and ai-edge-litert 2.3.0;
the tests beside this module repeat the measurements and fail when a row stops being true.

How runtime versions are counted: an operator version names the first TensorFlow release whose kernel
accepts it (:data:`FIRST_RUNTIME`). LiteRT counts its own releases anew, from 1.0 on, but the table goes on
counting in TensorFlow's numbers, so a LiteRT release has a place in that count: see :data:`LITERT_RUNTIME`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

Runtime = tuple[int, int]

NEWEST_RUNTIME: Runtime = (2, 21)
"""The count that the newest measured runtime, ai-edge-litert 2.3.0, certainly reaches."""

OLDEST_MEASURED_RUNTIME: Runtime = (2, 14)
"""The oldest runtime on which the rows were measured, tflite-runtime 2.14.0."""

LITERT_RUNTIME: Mapping[str, Runtime] = MappingProxyType({"2.3": (2, 21)})
"""LiteRT release -> its place in TensorFlow's count, as far as measured."""


class Granularity(str, enum.Enum):
    """How many scales a quantized tensor has."""

    TENSOR = "tensor"
    CHANNEL = "channel"


class Need(enum.Enum):
    """A condition that the operator at hand must meet; the value is its description."""

    FLOAT_BIAS = "input 2 must be a float32 bias that is present; where it is absent, add one of zeros"
    FLOAT_INPUT_OUTPUT = "the activation input and the output must be float32"
    NO_SPARSITY = "the weight must not be stored sparse"
    ALL_OR_NOTHING = "all weight inputs of the operator must become int8 together"
    LSTM_KERNEL_FULL = "LSTMOptions.kernel_type must be FULL: the BASIC kernel takes no int8 weights"
    RIGHT_SIDE_CONSTANT = "the int8 operand must be the right one, and the left one a float activation"
    DEFAULT_WEIGHTS_FORMAT = "FullyConnectedOptions.weights_format must be DEFAULT, not SHUFFLED4x16INT8"
    ZERO_POINT_ZERO = "every zero point must be 0"

    @property
    def description(self) -> str:
        """The condition in words."""
        return self.value


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which a hybrid kernel takes int8 weights.

    Attributes:
        granularity: One scale for the tensor, or one for each index along the row's channel axis.
        version: The operator version to stamp; the file needs the maximum over all features it uses.
        first_runtime: The oldest runtime that computes this form correctly.
        by_default: Whether the form may be used without being asked for by name.
        source: Where this is known from.
        asymmetric_inputs: What to set ``asymmetric_quantize_inputs`` to; None where the options table of
            the operator has no such field.
        note: What else is worth knowing before choosing it.
    """

    granularity: Granularity
    version: int
    first_runtime: Runtime
    by_default: bool
    source: str
    asymmetric_inputs: bool | None = None
    note: str = ""


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
    """

    operator: str
    inputs: tuple[int, ...]
    channel_axis: int | Mapping[bool, int] | None
    forms: tuple[Form, ...]
    needs: tuple[Need, ...]
    source: str
    note: str = ""

    def axis(self, *, adj_y: bool = False) -> int | None:
        """Returns the channel axis, given the operator's ``adj_y`` option where it has one."""
        if isinstance(self.channel_axis, Mapping):
            return self.channel_axis[adj_y]
        return self.channel_axis

    def best_form(self, runtime: Runtime, *, by_default: bool = True) -> Form | None:
        """Returns the best form that the runtime takes, or None.

        Args:
            runtime: The oldest runtime that must load the file.
            by_default: Leave out the forms that must be asked for by name.
        """
        for form in self.forms:
            if form.first_runtime <= runtime and (form.by_default or not by_default):
                return form
        return None


_TENSOR = Granularity.TENSOR
_CHANNEL = Granularity.CHANNEL
_HYBRID_NEEDS = (Need.FLOAT_INPUT_OUTPUT, Need.NO_SPARSITY, Need.ZERO_POINT_ZERO)
_VERSIONS = "tflite/converter/tools/versioning/op_version.cc"

HYBRID: tuple[HybridRow, ...] = (
    HybridRow(
        "CONV_2D", (1,), 0,
        (
            Form(_CHANNEL, 5, (2, 4), True, f"{_VERSIONS}; measured on 2.14 and 2.3"),
            Form(_TENSOR, 2, (1, 14), True, f"{_VERSIONS}; measured on 2.14 and 2.3"),
        ),
        (Need.FLOAT_BIAS, *_HYBRID_NEEDS),
        "tflite/kernels/conv.cc",
    ),
    HybridRow(
        "DEPTHWISE_CONV_2D", (1,), 3,
        (Form(_CHANNEL, 6, (2, 3), True, f"{_VERSIONS}; measured on 2.14 and 2.3"),),
        _HYBRID_NEEDS,
        "tflite/kernels/depthwise_conv.cc",
        "There is no per-tensor form: with one scale, or with quantized_dimension other than 3, the kernel "
        "reads past its scales (measured: garbage, NaN, different from run to run).",
    ),
    HybridRow(
        "FULLY_CONNECTED", (1,), 0,
        (
            Form(
                _CHANNEL, 12, (2, 17), True, f"{_VERSIONS}; measured on 2.3", True,
                "2.14 refuses version 12; stamped lower it would read scale 0 and return zeros.",
            ),
            Form(_TENSOR, 9, (2, 3), True, f"{_VERSIONS}; measured on 2.14 and 2.3", True),
            Form(_TENSOR, 3, (1, 14), True, f"{_VERSIONS}; measured on 2.14 and 2.3", False),
        ),
        (Need.DEFAULT_WEIGHTS_FORMAT, *_HYBRID_NEEDS),
        "tflite/kernels/fully_connected.cc",
    ),
    HybridRow(
        "BATCH_MATMUL", (1,), MappingProxyType({False: -1, True: -2}),
        (
            Form(_TENSOR, 4, (2, 5), True, f"{_VERSIONS}; measured on 2.14 and 2.3", True),
            Form(
                _CHANNEL, 4, (2, 21), False, "measured on 2.3", True,
                "No version of its own: 2.14 loads the file and returns zeros.",
            ),
        ),
        (Need.RIGHT_SIDE_CONSTANT, *_HYBRID_NEEDS),
        "tflite/kernels/batch_matmul.cc",
    ),
    HybridRow(
        "TRANSPOSE_CONV", (1,), 0,
        (
            Form(
                _CHANNEL, 2, (2, 21), False, "measured on 2.3", None,
                "No version of its own: 2.14 loads the file and fails in Prepare.",
            ),
        ),
        _HYBRID_NEEDS,
        "tflite/kernels/transpose_conv.cc",
    ),
    HybridRow(
        "EMBEDDING_LOOKUP", (1,), 0,
        (
            Form(_CHANNEL, 4, (2, 18), True, f"{_VERSIONS}; measured on 2.3"),
            Form(_TENSOR, 3, (1, 14), True, f"{_VERSIONS}; measured on 2.14 and 2.3"),
        ),
        (Need.NO_SPARSITY, Need.ZERO_POINT_ZERO),
        "tflite/kernels/embedding_lookup.cc",
    ),
    HybridRow(
        "LSTM", (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16), None,
        (
            Form(_TENSOR, 3, (1, 14), True, f"{_VERSIONS}", False),
            Form(_TENSOR, 4, (2, 3), True, f"{_VERSIONS}", True),
        ),
        (Need.LSTM_KERNEL_FULL, Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/lstm.cc",
    ),
    HybridRow(
        "UNIDIRECTIONAL_SEQUENCE_LSTM", (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16), None,
        (
            Form(_TENSOR, 3, (2, 3), True, f"{_VERSIONS}; measured on 2.14 and 2.3", True),
            Form(_TENSOR, 2, (1, 14), True, f"{_VERSIONS}", False),
        ),
        (Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/unidirectional_sequence_lstm.cc",
    ),
    HybridRow(
        "BIDIRECTIONAL_SEQUENCE_LSTM",
        (*range(1, 12), 16, *range(18, 29), 33, *range(40, 48)), None,
        (
            Form(_TENSOR, 3, (1, 14), True, f"{_VERSIONS}", True),
            Form(_TENSOR, 2, (1, 14), True, f"{_VERSIONS}", False),
        ),
        (Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/bidirectional_sequence_lstm.cc",
    ),
    HybridRow(
        "RNN", (1, 2), None,
        (
            Form(_TENSOR, 3, (2, 3), True, f"{_VERSIONS}", True),
            Form(_TENSOR, 2, (1, 14), True, f"{_VERSIONS}", False),
        ),
        (Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/basic_rnn.cc",
    ),
    HybridRow(
        "UNIDIRECTIONAL_SEQUENCE_RNN", (1, 2), None,
        (
            Form(_TENSOR, 3, (2, 3), True, f"{_VERSIONS}", True),
            Form(_TENSOR, 2, (1, 14), True, f"{_VERSIONS}", False),
        ),
        (Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/unidirectional_sequence_rnn.cc",
    ),
    HybridRow(
        "SVDF", (1, 2), None,
        (
            Form(_TENSOR, 4, (2, 3), True, f"{_VERSIONS}", True),
            Form(_TENSOR, 2, (1, 14), True, f"{_VERSIONS}", False),
        ),
        (Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        "tflite/kernels/svdf.cc",
    ),
)


@dataclass(frozen=True, slots=True)
class DequantizeForm:
    """One dtype of constant that DEQUANTIZE turns into float32.

    Attributes:
        dtype: Name in ``TensorType``.
        granularity: None for a dtype without scales.
        version: The operator version to stamp.
        first_runtime: The oldest runtime that computes this form correctly.
        source: Where this is known from.
    """

    dtype: str
    granularity: Granularity | None
    version: int
    first_runtime: Runtime
    source: str


DEQUANTIZE: tuple[DequantizeForm, ...] = (
    DequantizeForm("INT8", _CHANNEL, 5, (2, 15), "measured: 2.14 refuses, 2.3 exact"),
    DequantizeForm("INT8", _TENSOR, 2, (1, 14), "measured on 2.14 and 2.3: exact"),
    DequantizeForm("FLOAT16", None, 3, (1, 15), "measured on 2.14 and 2.3: exact"),
    DequantizeForm("INT4", _CHANNEL, 6, (2, 18), "measured: 2.14 refuses, 2.3 exact"),
    DequantizeForm("INT4", _TENSOR, 6, (2, 18), "measured: 2.14 refuses, 2.3 exact"),
    DequantizeForm("INT2", _CHANNEL, 7, (2, 21), _VERSIONS),
    DequantizeForm("INT2", _TENSOR, 7, (2, 21), _VERSIONS),
)


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


MUST_STAY_CONSTANT: tuple[ConstantInput, ...] = ()


@dataclass(frozen=True, slots=True)
class TableLookup:
    """An operator that moves int8 values unchanged, so that DEQUANTIZE may follow it instead of feed it.

    Attributes:
        operator: Name in ``BuiltinOperator``.
        input: Position of the table.
        granularity: The granularity that survives the lookup.
        version: The operator version to stamp for an int8 table.
        first_runtime: The oldest runtime that computes this form correctly.
        source: Where this is known from.
        note: What else is worth knowing.
    """

    operator: str
    input: int
    granularity: Granularity
    version: int
    first_runtime: Runtime
    source: str
    note: str = ""


TABLE_LOOKUP: tuple[TableLookup, ...] = (
    TableLookup(
        "GATHER", 0, _TENSOR, 2, (1, 14), "tflite/kernels/gather.cc; measured on 2.14 and 2.3: exact",
        "Input and output must carry the same scale and zero point. Per-channel scales would have to follow "
        "the rows that are looked up, which no tensor can say.",
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
_LOOKUP_BY_OPERATOR = {row.operator: row for row in TABLE_LOOKUP}
_CONSTANT_BY_INPUT = {(row.operator, row.input): row for row in MUST_STAY_CONSTANT}


def hybrid_row(operator: str) -> HybridRow | None:
    """Returns the hybrid kernel of an operator, or None where it has none."""
    return _HYBRID_BY_OPERATOR.get(operator)


def table_lookup(operator: str) -> TableLookup | None:
    """Returns how an operator looks up an int8 table, or None."""
    return _LOOKUP_BY_OPERATOR.get(operator)


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
