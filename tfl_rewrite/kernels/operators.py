"""How many operands the kernel of a builtin operator takes, and which version each of its features needs.

Data and nothing else, as :mod:`tfl_rewrite.kernels.hybrid`; :mod:`tfl_rewrite.kernels.operands` and
:mod:`tfl_rewrite.kernels.versions` read it on operators of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MANY = 1 << 20
"""No upper bound."""


@dataclass(frozen=True, slots=True)
class Operands:
    """What the kernel of an operator checks when it is prepared, or reads without a check.

    Attributes:
        operator: Name in ``BuiltinOperator``.
        inputs: The numbers of inputs that it takes.
        outputs: The numbers of outputs.
        optional: Positions of inputs that may be absent (-1).
    """

    operator: str
    inputs: range | tuple[int, ...]
    outputs: range
    optional: frozenset[int] = frozenset()


# Numbers of inputs and of outputs, and the operators. Read from ``Prepare`` of tflite/kernels/*.cc; a kernel
# that checks nothing reads past the list, or the operand as nothing.
_OPERANDS_TABLE = """\
0 1 HASHTABLE VAR_HANDLE
0 0 CALL_ONCE
1+ 0+ IF
1 1 ABS AVERAGE_POOL_2D BITCAST BUCKETIZE CAST CEIL COMPLEX_ABS COS DENSIFY DEPTH_TO_SPACE DEQUANTIZE ELU EXP
1 1 FAKE_QUANT FLOOR GELU HARD_SWISH HASHTABLE_SIZE IMAG L2_NORMALIZATION L2_POOL_2D LEAKY_RELU
1 1 LOCAL_RESPONSE_NORMALIZATION LOG LOGICAL_NOT LOGISTIC LOG_SOFTMAX MATRIX_DIAG MAX_POOL_2D NEG QUANTIZE
1 1 RANDOM_STANDARD_NORMAL RANDOM_UNIFORM RANK READ_VARIABLE REAL RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 ROUND
1 1 RSQRT SHAPE SIGN SIN SKIP_GRAM SOFTMAX SPACE_TO_DEPTH SQRT SQUARE SQUEEZE TANH WHERE ZEROS_LIKE
1 1+ UNPACK
1 2 UNIQUE
1-2 1 RESHAPE
1+ 1 CONCATENATION PACK
2 0 ASSIGN_VARIABLE
2 1 ADD ARG_MAX ARG_MIN ATAN2 BATCH_MATMUL BITWISE_XOR BROADCAST_ARGS BROADCAST_TO CUMSUM DIV
2 1 EMBEDDING_LOOKUP EQUAL EXPAND_DIMS FILL FLOOR_DIV FLOOR_MOD GATHER GATHER_ND GREATER GREATER_EQUAL
2 1 LESS LESS_EQUAL LOGICAL_AND LOGICAL_OR MATRIX_SET_DIAG MAXIMUM MEAN MINIMUM MIRROR_PAD MUL
2 1 MULTINOMIAL NOT_EQUAL POW PRELU REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD
2 1 RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_SEQUENCE REVERSE_V2 RFFT2D RIGHT_SHIFT SEGMENT_SUM
2 1 SQUARED_DIFFERENCE SUB SUM TILE TRANSPOSE
2 1+ SPLIT
2 2 TOPK_V2
2-3 1 CONV_2D CONV_3D DEPTHWISE_CONV_2D FULLY_CONNECTED LSH_PROJECTION PAD PADV2
2+ 1 ADD_N
3 0 HASHTABLE_IMPORT
3 1 BATCH_TO_SPACE_ND DILATE DYNAMIC_UPDATE_SLICE HASHTABLE_FIND RANGE SCATTER_ND SELECT SELECT_V2 SLICE
3 1 SPACE_TO_BATCH_ND UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_MIN UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM
3 1+ SPLIT_V
3 2 HASHTABLE_LOOKUP
3-4 1 CONV_3D_TRANSPOSE TRANSPOSE_CONV
4 1 ONE_HOT SPARSE_TO_DENSE STRIDED_SLICE
5 1 EMBEDDING_LOOKUP_SPARSE RNN SVDF UNIDIRECTIONAL_SEQUENCE_RNN
5 2 NON_MAX_SUPPRESSION_V4
6 3 NON_MAX_SUPPRESSION_V5
5,20,24 1+ LSTM
20,24 1 UNIDIRECTIONAL_SEQUENCE_LSTM
12 1-2 BIDIRECTIONAL_SEQUENCE_RNN
48 1-2 BIDIRECTIONAL_SEQUENCE_LSTM
"""

_LSTM = (1, 5, 9, 10, 11, 12, 16, 17, 20, 21, 22, 23)
_OPTIONAL: Mapping[str, tuple[int, ...]] = {
    "CONV_2D": (2,),
    "CONV_3D": (2,),
    "CONV_3D_TRANSPOSE": (3,),
    "DEPTHWISE_CONV_2D": (2,),
    "FULLY_CONNECTED": (2,),
    "LSH_PROJECTION": (2,),
    "PAD": (2,),
    "PADV2": (2,),
    "SVDF": (3,),
    "TRANSPOSE_CONV": (3,),
    "LSTM": _LSTM,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _LSTM,
    "BIDIRECTIONAL_SEQUENCE_RNN": (9, 10, 11),
    "BIDIRECTIONAL_SEQUENCE_LSTM": (
        *(1, 5, 9, 10, 11, 12, 16, 17, 18, 22, 26, 27, 28, 29, 33, 34),
        *range(39, 48),
    ),
}


def _numbers(text: str) -> range | tuple[int, ...]:
    if "," in text:
        return tuple(map(int, text.split(",")))
    if text.endswith("+"):
        return range(int(text[:-1]), MANY)
    low, _, high = text.partition("-")
    return range(int(low), int(high or low) + 1)


def _read_operands(table: str) -> dict[str, Operands]:
    found: dict[str, Operands] = {}
    for line in table.splitlines():
        inputs, outputs, *names = line.split()
        given = _numbers(outputs)
        assert isinstance(given, range)
        for name in names:
            found[name] = Operands(name, _numbers(inputs), given, frozenset(_OPTIONAL.get(name, ())))
    return found


OPERANDS: Mapping[str, Operands] = MappingProxyType(_read_operands(_OPERANDS_TABLE))
"""By operator. Operators that are not in it are not judged."""

# What needs which version. A line: operators, then ``version=TERM&TERM``; a version may have several.
# A term: ``0:INT8|UINT8`` (the type of input 0; ``out`` and ``out1`` are outputs, ``any`` is any operand),
# ``0:rank>4``, ``1:channels`` (it has more scales than one), ``1:sparse``, ``0:unquantized`` (no quantization
# table), ``3:present``; ``=name`` (that option is not what the schema has by default), or a word of
# ``tfl_rewrite.kernels.versions``. ``!`` negates. What no line tells is version 1.
# Read from tflite/converter/tools/versioning/op_version.cc, where the first match decides; here the highest
# of all that match is needed, so nothing is below what that file says. Deviations, all upwards: int16
# activations count whatever the weights are (there they count with int16 weights only); DIV, SUM, GATHER_ND,
# LEAKY_RELU and EMBEDDING_LOOKUP in int8; CONV_2D and FULLY_CONNECTED with packed weights beside floats; ADD
# and SUB in int16 with scales that are powers of two; absent biases.
_VERSIONS_TABLE = """\
ABS 2=0:INT8|UINT8 3=0:INT16 4=0:INT16&0:unquantized 5=0:INT32
ADD 2=0:INT8 3=0:INT16&out:INT16 4=0:INT64 5=0:INT16&0:unquantized 6=0:FLOAT16
ARG_MAX,ARG_MIN 2=0:INT8 3=0:BOOL
AVERAGE_POOL_2D,MAX_POOL_2D 2=0:INT8 3=0:INT16
BATCH_MATMUL 2=0:INT8 3=0:INT16 4=0:FLOAT32&1:INT8&=asymmetric_quantize_inputs 4=0:FLOAT32&1:channels
BATCH_TO_SPACE_ND,SPACE_TO_BATCH_ND 2=0:INT8 3=!0:rank=4 4=0:INT16
BIDIRECTIONAL_SEQUENCE_LSTM 2=out:FLOAT32&1:INT8|UINT8 2=out:FLOAT32&2:INT8|UINT8
BIDIRECTIONAL_SEQUENCE_LSTM 3=2:INT8&=asymmetric_quantize_inputs
BIDIRECTIONAL_SEQUENCE_RNN,RNN,UNIDIRECTIONAL_SEQUENCE_RNN 2=out:FLOAT32&1:INT8|UINT8
BIDIRECTIONAL_SEQUENCE_RNN,RNN,UNIDIRECTIONAL_SEQUENCE_RNN 3=1:INT8&=asymmetric_quantize_inputs
BROADCAST_TO 2=always 3=0:INT8|INT16 4=0:FLOAT8_E4M3FN|FLOAT8_E5M2
CAST 2=any:UINT32 3=any:INT8 4=any:UINT16 5=any:FLOAT64|FLOAT16 6=0:INT4 7=any:BFLOAT16 8=any:INT2|UINT4
CAST 9=any:FLOAT8_E4M3FN|FLOAT8_E5M2
CONCATENATION 2=any:INT8 3=any:INT16 4=any:UINT32 5=any:INT4 6=any:FLOAT16 7=any:FLOAT8_E4M3FN|FLOAT8_E5M2
CONV_2D 2=0:FLOAT32&1:INT8 3=0:INT8 4=0:INT16 5=0:FLOAT32&1:INT8&1:channels 6=grouped 7=0:INT8&1:INT4
CONV_2D 8=0:FLOAT32&1:INT4 8=0:INT16&=quantized_bias_type
COS,SIN 2=0:FLOAT16
DEPTHWISE_CONV_2D 2==dilation_w_factor 2==dilation_h_factor 3=0:INT8 4=0:FLOAT32&1:INT8 5=0:INT16
DEPTHWISE_CONV_2D 6=0:FLOAT32&1:INT8&1:channels 7=0:INT8&1:INT4
DEPTH_TO_SPACE,GREATER,LESS_EQUAL,LOG_SOFTMAX,SPACE_TO_DEPTH 2=0:INT8
DEQUANTIZE 2=0:INT8 3=0:INT16|FLOAT16 5=0:INT8&0:channels 6=0:INT4 7=0:INT2 8=0:UINT4
DEQUANTIZE 9=0:FLOAT8_E4M3FN|FLOAT8_E5M2
DIV 2=broadcast&any:rank>4 2=0:INT8|INT16
DYNAMIC_UPDATE_SLICE 2=2:INT64 3=0:FLOAT16 4=0:INT16 5=0:INT4 6=0:BFLOAT16
EMBEDDING_LOOKUP 3=1:INT8|UINT8 4=1:INT4 4=1:INT8&1:channels 5=1:INT2
EQUAL 2=0:INT8 3=0:STRING 5=0:INT16
EXP,LOG,REDUCE_PROD,SQRT 2=0:INT8|INT16
FAKE_QUANT 2==narrow_range
FILL 2=1:BOOL|STRING 3=1:INT8|INT16 4=1:FLOAT16 5=1:FLOAT8_E4M3FN|FLOAT8_E5M2
FLOOR_DIV 2=0:FLOAT32 3=0:INT16|INT8
FLOOR_MOD 2=0:INT16|INT8
FULLY_CONNECTED 2==weights_format 3=0:FLOAT32&1:INT8|UINT8 4=0:INT8&1:INT8 5==keep_num_dims 6=!2:present
FULLY_CONNECTED 7=0:INT16 8=1:sparse 9=0:FLOAT32&1:INT8&=asymmetric_quantize_inputs 10=0:INT8|FLOAT32&1:INT4
FULLY_CONNECTED 11=0:INT16&=quantized_bias_type 12=0:FLOAT32&1:INT8&1:channels 13=0:INT16&1:INT4 14=1:INT2
GATHER 2=0:INT8 3=0:BOOL 4=0:INT16 5==batch_dims 6=1:INT16 7=0:INT4 8=0:FLOAT8_E4M3FN|FLOAT8_E5M2
GATHER_ND 2=0:STRING|INT8 3=0:INT16 4=1:INT16 5=0:BOOL 6=0:FLOAT8_E4M3FN|FLOAT8_E5M2
GELU 2=0:INT8|UINT8|INT16 3=0:FLOAT16
GREATER_EQUAL,LESS 2=0:INT8 3=0:INT16
L2_NORMALIZATION 2=out:INT8
LEAKY_RELU 2=0:INT8|INT16
LOGISTIC,TANH 2=0:INT8 3=0:INT16
LSTM 2==kernel_type 3=0:FLOAT32&2:INT8|UINT8 4=0:FLOAT32&2:INT8&=asymmetric_quantize_inputs 5=0:INT16
MAXIMUM,MINIMUM 2=0:INT8 3=broadcast&any:rank>4 4=0:INT16
MEAN,MIRROR_PAD,REDUCE_MAX,REDUCE_MIN,RELU6,RSQRT 2=0:INT8 3=0:INT16
MUL 2=0:INT8 3=rescaled 4=0:INT16 5=0:INT64 6=0:COMPLEX64 7=0:INT16&0:unquantized 7=0:UINT32 8=0:FLOAT16
NOT_EQUAL 2=0:INT8 3=0:STRING 4=0:INT16
PACK 2=0:INT8 3=0:INT16 4=0:UINT32 5=0:FLOAT8_E4M3FN|FLOAT8_E5M2
PAD,PADV2 2=0:INT8 3=0:INT16 4=0:rank>4 5=0:BOOL 6=0:FLOAT8_E4M3FN|FLOAT8_E5M2
QUANTIZE 2=out:INT16 3=out:channels 4=any:INT4 5=any:UINT4
RANGE 2=0:INT64
RELU 2=0:INT8|UINT8 3=0:INT16
RESIZE_BILINEAR 2=0:INT8 3==half_pixel_centers 4=0:INT16
RESIZE_NEAREST_NEIGHBOR 2=0:INT8 3==half_pixel_centers 3==align_corners 4=0:INT16
REVERSE_V2 2=0:BOOL 3=0:INT8|INT16 4=0:FLOAT8_E4M3FN|FLOAT8_E5M2
SELECT 2=0:INT8 2=1:INT8 3=any:rank>4 4=0:UINT32 4=1:UINT32
SELECT_V2 2=0:UINT32 2=1:UINT32
SIGN 2=0:INT32
SLICE 2=0:INT8 3=0:STRING 4=0:INT16 5=0:rank>4 6=0:UINT32 7=0:INT4 8=0:FLOAT16
SOFTMAX 2=0:INT8 3=0:INT16 4=0:FLOAT16
SPARSE_TO_DENSE 2=2:INT64 3=2:INT8|UINT8
SPLIT 2=1:INT8 3=1:INT32 4=1:INT16 5=1:FLOAT8_E4M3FN|FLOAT8_E5M2
SPLIT_V 2=0:INT8|INT16 3=0:FLOAT8_E4M3FN|FLOAT8_E5M2
SQUARED_DIFFERENCE 2=0:INT8
SQUEEZE 2=0:STRING
STRIDED_SLICE 2=0:INT8|INT16 3=0:BOOL 4=0:rank>4 5=0:STRING 6==ellipsis_mask 6==new_axis_mask 7=0:UINT32
STRIDED_SLICE 8==offset
SUB 2=0:INT8 3=broadcast&any:rank>4 4=0:INT64 5=0:INT16
SUM 2=0:INT8|INT16
SVDF 2=0:FLOAT32&1:INT8|UINT8 3=0:INT8 4=0:FLOAT32&1:INT8&=asymmetric_quantize_inputs
TILE 2=0:STRING 3=0:INT8|INT16
TOPK_V2 2=0:INT8 3=0:INT16 3=1:INT16 3=out1:INT16
TRANSPOSE 2=0:INT8 3=0:BOOL 4=0:rank>4 5=0:INT16 6=0:rank>5 7=0:INT4 8=0:rank>6 8=0:BFLOAT16 9=0:FLOAT16
TRANSPOSE_CONV 2=1:INT8 3=3:present 4==fused_activation_function 5==quantized_bias_type
UNIDIRECTIONAL_SEQUENCE_LSTM 2=0:FLOAT32&2:INT8|UINT8 3=0:FLOAT32&2:INT8&=asymmetric_quantize_inputs
UNIDIRECTIONAL_SEQUENCE_LSTM 4==diagonal_recurrent_tensors 5=0:INT16
UNPACK 2=0:INT8|UINT8 3=0:BOOL 4=0:INT16 5=0:FLOAT16|BFLOAT16 6=0:FLOAT8_E4M3FN|FLOAT8_E5M2
WHERE 2=!0:BOOL
"""


@dataclass(frozen=True, slots=True)
class VersionRule:
    """One feature of an operator and the version that it came with.

    Attributes:
        version: The version.
        terms: All of them must hold; see the table.
    """

    version: int
    terms: tuple[str, ...]


def _read_versions(table: str) -> dict[str, tuple[VersionRule, ...]]:
    found: dict[str, tuple[VersionRule, ...]] = {}
    for line in table.splitlines():
        names, *rules = line.split()
        for name in names.split(","):
            for rule in rules:
                version, _, terms = rule.partition("=")
                made = VersionRule(int(version), tuple(terms.split("&")))
                found[name] = (*found.get(name, ()), made)
    return found


VERSION_RULES: Mapping[str, tuple[VersionRule, ...]] = MappingProxyType(_read_versions(_VERSIONS_TABLE))
"""By operator. Operators that are not in it have version 1 only."""
