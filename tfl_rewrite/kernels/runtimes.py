"""Which runtime takes which version of an operator, and how runtimes are counted.

An operator version names the first TensorFlow release whose kernel accepts it (:data:`FIRST_RUNTIME`).
LiteRT numbers its own releases anew from 1.0 on, but its table goes on counting in TensorFlow's numbers, so
each LiteRT release has a place in that count: see :data:`LITERT_RUNTIME`. ``Runtime`` always means that
count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


# Facts of tflite/converter/tools/versioning/runtime_version.cc: operator, then version:first runtime.
# The table says which release *listed* a version; where a kernel was late, the rows of hybrid.py know better.
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
