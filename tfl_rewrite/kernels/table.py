"""What the runtimes' kernels accept: one row an operator.

Rows name their source: a kernel file of LiteRT (``tflite/kernels/...``), or a measurement. "2.14" and "2.3"
in a source are tflite-runtime 2.14.0 and ai-edge-litert 2.3.0, each with XNNPACK, without it, and with the
reference kernels; "1.0" is ai-edge-litert 1.0.1 (which registers what TensorFlow 2.18 does), "2.0" is 2.0.2
(2.20), "2.1" is 2.1.3 (2.21) and 2.1.6 (2.22). Up to 2.0 the reference kernels have none of the versions of
int4 and int2, and refuse the files. The tests of these rows repeat the measurements and fail when a row stops
being true. Numbers of operands are read from ``Prepare`` of ``tflite/kernels/*.cc``.

What to stamp: the maximum of the version that the operator has in the file and the version of the form, for
every feature that the operator used before (a fused bias, ``keep_num_dims``, groups) is still used. Which
version a feature needs, and which runtime came with a version, stands in ``versions.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from tfl_rewrite.kernels import copies, shapes
from tfl_rewrite.kernels.integer import (
    AVERAGED,
    BENDS_OF_LOGISTIC,
    BENDS_OF_TANH,
    BETWEEN_0_AND_1,
    BETWEEN_1_AND_1,
    CLAMPED,
    COMPARED,
    CURVE,
    DIFFERENCES,
    FACTORS,
    LOG_SCORES,
    LSTM_MEMORY,
    QUOTIENT,
    RESCALED,
    SCORES,
    SUMMANDS,
    SVDF_MEMORY,
    SWISH,
    TABLE,
    UNIT,
    Caveat,
    IntegerKernel,
    Scales,
    bends_between,
)
from tfl_rewrite.kernels.operators import (
    Form,
    Granularity,
    Need,
    OperatorRow,
    ProductKind,
    Reading,
    Shape,
    SideEffect,
    Squash,
    Steep,
)
from tfl_rewrite.kernels.runtimes import NEWEST_RUNTIME, Runtime
from tfl_rewrite.model.ir import Operator
from tfl_rewrite.model.lift import DELEGATE_CUSTOM

_HYBRID, _LOOKUP, _DEQUANTIZE = Reading.HYBRID, Reading.LOOKUP, Reading.DEQUANTIZE
_TENSOR, _CHANNEL, _BLOCK = Granularity.TENSOR, Granularity.CHANNEL, Granularity.BLOCK
_OWN, _SAME, _FIXED, _WEIGHTS = Scales.OWN, Scales.SAME, Scales.FIXED, Scales.WEIGHTS
_BOUNDED = (*RESCALED, *CLAMPED)
_FROM_1_TO_1 = -1.0, 1.0
_FROM_0_TO_1 = 0.0, 1.0
_FROM_0_TO_6 = 0.0, 6.0
_ABOVE_0 = 0.0, math.inf
_COMPARISON = IntegerKernel(_OWN, 2, old=(8,), limits=COMPARED)
_GATED = IntegerKernel(Scales.STATE, 2, old=(8,), memory=LSTM_MEMORY)
"""Version 2 as TensorFlow's quantizer says (``converter/tools/optimize/operator_property.cc``)."""
_ABSENT = (Caveat.REFERENCE_ABSENT,)
_STATE, _RANDOM, _UNKNOWN = SideEffect.STATE, SideEffect.RANDOM, SideEffect.UNKNOWN
_CONSTANT_NEEDS = (Need.NO_SPARSITY, Need.NOT_SUBGRAPH_OUTPUT, Need.ZERO_POINT_ZERO, Need.NORMAL_SCALES)
_HYBRID_NEEDS = (Need.FLOAT_INPUT_OUTPUT, Need.SAME_CHANNEL_AXIS, *_CONSTANT_NEEDS)
_VERSIONS = "tflite/converter/tools/versioning/op_version.cc"
_BOTH = f"{_VERSIONS}; measured on 2.14 and 2.3"
_NEW = f"{_VERSIONS}; measured on 2.3"
_DENSE = "tflite/kernels/fully_connected.cc; measured on"
_CONV = "tflite/kernels/conv.cc; measured on"
_EMBEDDING = "tflite/kernels/embedding_lookup.cc; measured on"
_LATE = "at LiteRT 1.1.0; measured on TensorFlow 2.21 and 2.3"
_FLOATS_STAY = "Biases, states and layer normalization coefficients stay float."
_FLOAT_FILTERS = "its kernel takes float filters only"
_ONE_SCALE = (
    "Table and output carry the same scale and zero point; DEQUANTIZE version 2 follows. Per-channel scales "
    "would have to follow the rows that are looked up, which no tensor can say."
)
_LSTM_OPTIONAL = (1, 5, 9, 10, 11, 12, 16, 17, 20, 21, 22, 23)
_LSTM_WEIGHTS = (*range(1, 12), 16)
_LSTM_BIASES = (12, 13, 14, 15, 17)


def _recurrent(symmetric: int, asymmetric: int, first: Runtime = (2, 3)) -> tuple[Form, ...]:
    """Asymmetric inputs first: over 27 measured variants up to 8 dB better, never more than 2 dB worse."""
    return (
        Form(_HYBRID, "INT8", _TENSOR, asymmetric, first, _BOTH, asymmetric_inputs=True),
        Form(_HYBRID, "INT8", _TENSOR, symmetric, (1, 14), _BOTH, asymmetric_inputs=False),
    )


_ROWS = (
    OperatorRow(
        "CONV_2D",
        "2-3",
        "1",
        fuses=True,
        optional=(2,),
        options="Conv2DOptions",
        weights=(1,),
        channel_axis=0,
        product=ProductKind.CONVOLUTION,
        summed=(1,),
        biases=(2,),
        forms=(
            Form(_HYBRID, "INT8", _CHANNEL, 5, (2, 4), _BOTH, needs=(Need.SCALES_DIFFER,)),
            Form(_HYBRID, "INT8", _TENSOR, 2, (1, 14), _BOTH, needs=(Need.UNGROUPED,)),
            Form(
                *(_HYBRID, "INT4", _CHANNEL, 8, (2, 20), f"{_CONV} 2.0 and 2.3"),
                needs=(Need.SCALES_DIFFER,),
                note="Known from version 7 on, but 2.14 returns NaN and 1.0 takes the process down; version "
                "8 keeps 2.14 away, and nothing keeps 1.0 away.",
            ),
            Form(_HYBRID, "INT4", _TENSOR, 8, (2, 20), f"{_CONV} 2.0 and 2.3", needs=(Need.UNGROUPED,)),
        ),
        needs=(Need.FLOAT_BIAS, *_HYBRID_NEEDS),
        source="tflite/kernels/conv.cc",
        note="Right for any batch, stride, dilation, fused activation and dynamic dimension that was "
        "measured. A grouped convolution has version 6 already, which stays. op_version.cc gives int4 "
        "version 7, which 2.14 takes and returns garbage for float activations, or crashes (measured).",
        stamps={"INT4": 8},
        external_weight=True,
        integer=IntegerKernel(_WEIGHTS, 3, 4),
        shape=shapes.convolution,
    ),
    OperatorRow(
        "DEPTHWISE_CONV_2D",
        "2-3",
        "1",
        fuses=True,
        optional=(2,),
        options="DepthwiseConv2DOptions",
        weights=(1,),
        channel_axis=3,
        product=ProductKind.DEPTHWISE,
        summed=(1,),
        biases=(2,),
        forms=(Form(_HYBRID, "INT8", _CHANNEL, 6, (2, 3), _BOTH),),
        needs=(Need.FLOAT_BIAS, *_HYBRID_NEEDS),
        source="tflite/kernels/depthwise_conv.cc",
        note="There is no per-tensor form: with one scale, or with quantized_dimension other than 3, the "
        "kernel reads past its scales (measured: garbage, NaN, different from run to run).",
        refused=("INT4", "INT2"),
        external_weight=True,
        integer=IntegerKernel(_WEIGHTS, 3, 5),
        shape=shapes.depthwise,
    ),
    OperatorRow(
        "FULLY_CONNECTED",
        "2-3",
        "1",
        fuses=True,
        optional=(2,),
        options="FullyConnectedOptions",
        weights=(1,),
        channel_axis=0,
        product=ProductKind.DENSE,
        summed=(1,),
        biases=(2,),
        forms=(
            Form(
                *(_HYBRID, "INT8", _CHANNEL, 12, (2, 17), _NEW),
                asymmetric_inputs=True,
                note="2.14 refuses version 12; stamped lower it reads scale 0 there and returns zeros.",
            ),
            Form(_HYBRID, "INT8", _TENSOR, 9, (2, 3), _BOTH, asymmetric_inputs=True),
            Form(
                *(_HYBRID, "INT8", _TENSOR, 3, (1, 14), _BOTH),
                by_default=False,
                asymmetric_inputs=False,
                note="Symmetric inputs: as good with XNNPACK, up to 6 dB worse without it.",
            ),
            Form(
                *(_HYBRID, "INT4", _CHANNEL, 12, (2, 18)),
                f"{_DENSE} 1.0, 2.0 and 2.3; 2.14 refuses version 12",
                asymmetric_inputs=True,
                note="Stamped 10, 2.14 loads it and is wrong where rows are odd or not of 32 columns. With "
                "-8 the kernel without XNNPACK overflows (measured: 0 dB).",
            ),
            Form(
                *(_HYBRID, "INT4", _TENSOR, 12, (2, 20)),
                "measured on 2.0 and 2.3; XNNPACK of 1.0 refuses the whole file",
                asymmetric_inputs=True,
            ),
            Form(
                *(_HYBRID, "INT2", _CHANNEL, 14, (2, 21), f"{_DENSE} 2.3"),
                full_range=True,
                asymmetric_inputs=True,
            ),
            Form(
                *(_HYBRID, "INT2", _TENSOR, 14, (2, 21), f"{_DENSE} 2.3"),
                full_range=True,
                asymmetric_inputs=True,
                note="XNNPACK leaves it to the other kernel.",
            ),
            Form(
                *(_HYBRID, "INT4", _BLOCK, 14, (2, 21)),
                "tflite/kernels/fully_connected.cc (EvalBlockwise4Bit); measured on 2.1 and 2.3",
                by_default=False,
                shape=Shape.WHOLE_BLOCKS,
                asymmetric_inputs=True,
                note="Right with XNNPACK only: the reference kernel takes it for one scale and is wrong, and "
                "so is the other one below 4 outputs; 25 times slower there. With XNNPACK 13 times faster "
                "than float at batch 1. Known from version 13 on, but XNNPACK of 2.0 is wrong; version 14 "
                "keeps it away.",
            ),
        ),
        needs=(Need.DEFAULT_WEIGHTS_FORMAT, Need.INPUT_RANK_RECORDED, *_HYBRID_NEEDS),
        source="tflite/kernels/fully_connected.cc; tflite/delegates/xnnpack/xnnpack_delegate.cc",
        note="The bias may be absent, the last axis odd, and keep_num_dims set. op_version.cc has no version "
        "for blocks: 2.14 takes them stamped 5 or 6 and returns zeros, and refuses 12; 2.3 computes the same "
        "whatever the stamp (measured). Smaller int4 matrices than of 4 rows and 32 columns miss the 4-bit "
        "kernel (Prepare), and 2.14 reads their per-channel scales as 0 (measured).",
        stamps={"INT4": 10, "INT2": 14},
        blockwise_stamp=12,
        four_bit_from=(4, 32),
        external_weight=True,
        integer=IntegerKernel(_WEIGHTS, 4, 7, caveats=(Caveat.OLD_FLAT_CHANNELS,)),
        shape=shapes.fully_connected,
    ),
    OperatorRow(
        "BATCH_MATMUL",
        "2",
        "1",
        options="BatchMatMulOptions",
        weights=(1,),
        channel_axis=MappingProxyType({False: -1, True: -2}),
        product=ProductKind.MATMUL,
        forms=(
            Form(
                *(_HYBRID, "INT8", _TENSOR, 4, (2, 5), _BOTH),
                asymmetric_inputs=True,
                note="The reference kernels of 2.14 stop at version 3.",
            ),
            Form(
                *(_HYBRID, "INT8", _CHANNEL, 4, (2, 19), f"tflite/kernels/batch_matmul.cc {_LATE}"),
                by_default=False,
                asymmetric_inputs=True,
                note="2.14 loads the file and returns zeros.",
                version_tells=False,
            ),
            Form(
                *(_HYBRID, "INT8", _TENSOR, 1, (2, 3), _BOTH),
                by_default=False,
                asymmetric_inputs=False,
                note="Symmetric inputs: as good with XNNPACK, 1 to 6 dB worse without it.",
            ),
        ),
        needs=(Need.RIGHT_SIDE_CONSTANT, Need.ONE_BATCH_AXIS, *_HYBRID_NEEDS),
        source="tflite/kernels/batch_matmul.cc; tflite/kernels/internal/reference/batch_matmul.h",
        integer=IntegerKernel(_OWN, 2, 3, limits=FACTORS),
        shape=shapes.batch_matmul,
    ),
    OperatorRow(
        "TRANSPOSE_CONV",
        "3-4",
        "1",
        optional=(3,),
        options="TransposeConvOptions",
        activation=2,
        weights=(1,),
        channel_axis=0,
        product=ProductKind.TRANSPOSED,
        summed=(1,),
        biases=(3,),
        forms=tuple(
            Form(
                *(_HYBRID, "INT8", granularity, 2, (2, 19), f"tflite/kernels/transpose_conv.cc {_LATE}"),
                by_default=False,
                note="2.14 loads the file and fails in Prepare. With a bias the file has version 3 already.",
                version_tells=False,
            )
            for granularity in (_CHANNEL, _TENSOR)
        ),
        needs=_HYBRID_NEEDS,
        source="tflite/kernels/transpose_conv.cc",
        note="Its first input is the shape of the output.",
        integer=IntegerKernel(_WEIGHTS, 3, 3),
        shape=shapes.stated(0),
    ),
    OperatorRow(
        "CONV_3D",
        "2-3",
        "1",
        options="Conv3DOptions",
        fuses=True,
        optional=(2,),
        channel_axis=4,
        summed=(1,),
        biases=(2,),
        source="tflite/kernels/conv3d.cc",
        refusal=_FLOAT_FILTERS,
        shape=shapes.convolution_3d,
    ),
    OperatorRow(
        "CONV_3D_TRANSPOSE",
        "3-4",
        "1",
        optional=(3,),
        biases=(3,),
        source="tflite/kernels/conv3d_transpose.cc",
        refusal=_FLOAT_FILTERS,
        shape=shapes.stated(0),
    ),
    OperatorRow(
        "EMBEDDING_LOOKUP",
        "2",
        "1",
        activation=None,
        weights=(1,),
        channel_axis=0,
        looks_up_rows=True,
        forms=(
            Form(_HYBRID, "INT8", _CHANNEL, 4, (2, 18), _NEW),
            Form(_HYBRID, "INT8", _TENSOR, 3, (1, 14), _BOTH),
            *(
                Form(
                    *(_HYBRID, dtype, granularity, version, first, f"{_EMBEDDING} {measured}: exact"),
                    full_range=True,
                    shape=Shape.WHOLE_BYTES,
                )
                for dtype, version, first, measured in (
                    ("INT4", 4, (2, 18), "1.0, 2.0 and 2.3"),
                    ("INT2", 5, (2, 21), "2.3"),
                )
                for granularity in (_CHANNEL, _TENSOR)
            ),
            Form(
                *(_HYBRID, "INT4", _BLOCK, 5, (2, 21)),
                "tflite/kernels/embedding_lookup.cc (EvalBlockwise); measured on 2.3: exact",
                full_range=True,
                shape=Shape.WHOLE_BLOCKS,
                note="Known from version 4 on, but 1.0 returns zeros; version 5 keeps it away.",
            ),
            Form(
                *(_HYBRID, "INT2", _BLOCK, 5, (2, 22)),
                "tflite/kernels/embedding_lookup.cc (EvalBlockwise); measured on 2.1.6 and 2.3: exact",
                full_range=True,
                shape=Shape.WHOLE_BLOCKS,
                note="2.1.3 loads it and fails when it runs.",
            ),
        ),
        needs=(Need.FLOAT_OUTPUT, Need.SAME_CHANNEL_AXIS, *_CONSTANT_NEEDS),
        source="tflite/kernels/embedding_lookup.cc",
        note="Exact: the rows that are looked up are dequantized, nothing else is rounded.",
        stamps={"INT4": 4, "INT2": 5},
        external_weight=True,
        shape=shapes.embedding_lookup,
    ),
    OperatorRow(
        "LSTM",
        "5,20,24",
        "1+",
        optional=_LSTM_OPTIONAL,
        options="LSTMOptions",
        weights=_LSTM_WEIGHTS,
        channel_axis=0,
        product=ProductKind.RECURRENT,
        summed=tuple(range(1, 9)),
        recurrent=(5, 6, 7, 8),
        biases=_LSTM_BIASES,
        forms=_recurrent(3, 4),
        needs=(Need.LSTM_KERNEL_FULL, Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        source="tflite/kernels/lstm.cc",
        note=_FLOATS_STAY,
        integer=_GATED,
        shape=shapes.lstm,
    ),
    OperatorRow(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        "20,24",
        "1",
        optional=_LSTM_OPTIONAL,
        options="UnidirectionalSequenceLSTMOptions",
        weights=_LSTM_WEIGHTS,
        channel_axis=0,
        product=ProductKind.RECURRENT,
        summed=tuple(range(1, 9)),
        recurrent=(5, 6, 7, 8),
        biases=_LSTM_BIASES,
        forms=_recurrent(2, 3),
        needs=(Need.NO_DIAGONAL_RECURRENT, Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        source="tflite/kernels/unidirectional_sequence_lstm.cc",
        note=_FLOATS_STAY,
        integer=_GATED,
        shape=shapes.lstm,
    ),
    OperatorRow(
        "BIDIRECTIONAL_SEQUENCE_LSTM",
        "48",
        "1-2",
        optional=(*(1, 5, 9, 10, 11, 12, 16, 17, 18, 22, 26, 27, 28, 29, 33, 34), *range(39, 48)),
        options="BidirectionalSequenceLSTMOptions",
        weights=(*range(1, 12), 16, *range(18, 29), 33, *range(40, 48)),
        channel_axis=0,
        summed=(*range(1, 9), *range(18, 26)),
        biases=(*_LSTM_BIASES, 29, 30, 31, 32, 34),
        forms=_recurrent(2, 3, (1, 14)),
        needs=(Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        source="tflite/kernels/bidirectional_sequence_lstm.cc",
        note="The auxiliary weights (40 to 47) count as weights where they are present.",
        one_sample="computes samples behind the first wrong (measured on 2.14 and 2.3)",
    ),
    OperatorRow(
        "RNN",
        "5",
        "1",
        options="RNNOptions",
        weights=(1, 2),
        channel_axis=0,
        product=ProductKind.RECURRENT,
        summed=(1, 2),
        recurrent=(2,),
        biases=(3,),
        forms=_recurrent(2, 3),
        needs=(Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        source="tflite/kernels/basic_rnn.cc",
        shape=shapes.rnn,
    ),
    OperatorRow(
        "UNIDIRECTIONAL_SEQUENCE_RNN",
        "5",
        "1",
        options="SequenceRNNOptions",
        weights=(1, 2),
        channel_axis=0,
        product=ProductKind.RECURRENT,
        summed=(1, 2),
        recurrent=(2,),
        biases=(3,),
        forms=_recurrent(2, 3),
        needs=(Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        source="tflite/kernels/unidirectional_sequence_rnn.cc",
        shape=shapes.rnn,
    ),
    OperatorRow(
        "BIDIRECTIONAL_SEQUENCE_RNN",
        "12",
        "1-2",
        optional=(9, 10, 11),
        options="BidirectionalSequenceRNNOptions",
        biases=(3, 6),
        source="tflite/kernels/bidirectional_sequence_rnn.cc; measured on 2.14 and 2.3",
        refusal="its hybrid kernel returns wrong values (5 to 9 dB) or takes the process down",
    ),
    OperatorRow(
        "SVDF",
        "5",
        "1",
        optional=(3,),
        options="SVDFOptions",
        weights=(1, 2),
        channel_axis=0,
        summed=(1, 2),
        biases=(3,),
        forms=_recurrent(2, 4),
        needs=(Need.ALL_OR_NOTHING, *_HYBRID_NEEDS),
        source="tflite/kernels/svdf.cc",
        note="The kernel dequantizes the time weights (input 2) once and keeps the floats.",
        integer=IntegerKernel(Scales.STATE, 3, old=(8,), memory=SVDF_MEMORY),
        shape=shapes.svdf,
    ),
    OperatorRow(
        "GATHER",
        "2",
        "1",
        table=0,
        looks_up_rows=True,
        forms=(
            Form(
                *(_LOOKUP, "INT8", _TENSOR, 2, (1, 14)),
                "tflite/kernels/gather.cc; measured on 2.14 and 2.3: exact",
                note=_ONE_SCALE,
            ),
            Form(
                *(_LOOKUP, "INT8", _CHANNEL, 2, (2, 8), "measured on 2.14 and 2.3: exact"),
                note="For axis 0 without batch dimensions: GATHER the int8 rows (no quantization "
                "parameters), CAST them to float32 (version 3), GATHER the scales [rows, 1, ...] with the "
                "same positions, MUL the two.",
            ),
        ),
        source="tflite/kernels/gather.cc",
        integer=IntegerKernel(_SAME, 2, 4),
        shape=shapes.gather,
    ),
    OperatorRow(
        "GATHER_ND",
        "2",
        "1",
        table=0,
        forms=(
            Form(
                *(_LOOKUP, "INT8", _TENSOR, 2, (2, 3)),
                "tflite/kernels/gather_nd.cc; measured on 2.14 and 2.3: exact",
                note=_ONE_SCALE,
            ),
        ),
        source="tflite/kernels/gather_nd.cc",
        integer=IntegerKernel(_SAME, 3, 3),
        shape=shapes.gather_nd,
    ),
    # DEQUANTIZE of a constant needs Need.NO_SPARSITY and Need.NOT_SUBGRAPH_OUTPUT, whoever reads it.
    OperatorRow(
        "DEQUANTIZE",
        "1",
        "1",
        options="DequantizeOptions",
        forms=(
            Form(
                *(_DEQUANTIZE, "INT8", _CHANNEL, 5, (2, 7)),
                f"{_VERSIONS}; measured on 2.14 and 2.3: exact",
                note="The reference kernels of 2.14 stop at version 4 and refuse the file; its other "
                "resolvers take it.",
            ),
            Form(_DEQUANTIZE, "INT8", _TENSOR, 2, (1, 14), "measured on 2.14 and 2.3: exact"),
            Form(_DEQUANTIZE, "FLOAT16", None, 3, (1, 15), "measured on 2.14 and 2.3: exact"),
            Form(_DEQUANTIZE, "INT4", _CHANNEL, 6, (2, 18), "measured: 2.14 refuses, 2.3 exact"),
            Form(_DEQUANTIZE, "INT4", _TENSOR, 6, (2, 18), "measured: 2.14 refuses, 2.3 exact"),
            Form(_DEQUANTIZE, "INT2", _CHANNEL, 7, (2, 21), "measured: 2.14 refuses, 2.3 exact"),
            Form(_DEQUANTIZE, "INT2", _TENSOR, 7, (2, 21), "measured: 2.14 refuses, 2.3 exact"),
        ),
        needs=(Need.NO_SPARSITY, Need.NOT_SUBGRAPH_OUTPUT),
        source="tflite/kernels/dequantize.cc",
        shape=shapes.same,
    ),
    # Of some 90 consumers that were measured with a float operand that comes out of DEQUANTIZE (all that the
    # tests list, control flow, variables, composites and the custom operators Convolution2DTransposeBias and
    # TFLite_Detection_PostProcess among them), each other was right with every resolver. Shapes, axes and
    # paddings that kernels want constant are integers, which are never quantized.
    OperatorRow(
        "DENSIFY",
        "1",
        "1",
        constant_inputs={0: "the kernel demands a constant, and a sparse one must not be touched anyway"},
        source="tflite/kernels/densify.cc",
        shape=shapes.same,
    ),
    OperatorRow("ABS", "1", "1", integer=IntegerKernel(_OWN, 2, 3, limits=RESCALED), shape=shapes.same),
    OperatorRow(
        "ADD",
        "2",
        "1",
        commutes=True,
        fuses=True,
        options="AddOptions",
        elementwise=True,
        integer=IntegerKernel(_OWN, 2, 3, limits=SUMMANDS, general16="pot_scale_int16"),
        shape=shapes.broadcast,
        copies=copies.neutral(-0.0, left=True),
    ),
    OperatorRow("ADD_N", "2+", "1", shape=shapes.same),
    OperatorRow(
        "ARG_MAX",
        "2",
        "1",
        options="ArgMaxOptions",
        integer=IntegerKernel(_OWN, 2, old=(8,)),
        shape=shapes.arg_reduction,
    ),
    OperatorRow("ARG_MIN", "2", "1", shape=shapes.arg_reduction),
    OperatorRow("ASSIGN_VARIABLE", "2", "0", effect=_STATE, effect_reason="changes a resource variable"),
    OperatorRow("ATAN2", "2", "1", shape=shapes.broadcast),
    OperatorRow(
        "AVERAGE_POOL_2D",
        "1",
        "1",
        options="Pool2DOptions",
        fuses=True,
        homogeneous=True,
        integer=IntegerKernel(_SAME, 2, 3, blends=True),
        shape=shapes.pool,
    ),
    OperatorRow(
        "BATCH_TO_SPACE_ND", "3", "1", integer=IntegerKernel(_SAME, 2, 4), shape=shapes.batch_to_space
    ),
    OperatorRow("BITCAST", "1", "1"),
    OperatorRow("BITWISE_XOR", "2", "1", shape=shapes.broadcast),
    OperatorRow("BROADCAST_ARGS", "2", "1", shape=shapes.broadcast_args),
    OperatorRow(
        "BROADCAST_TO",
        "2",
        "1",
        integer=IntegerKernel(_SAME, 3, 3),
        shape=shapes.stated(1),
        copies=copies.broadcast_to,
    ),
    OperatorRow("BUCKETIZE", "1", "1", shape=shapes.same),
    OperatorRow("CALL", calls=True, shape=shapes.Calls.ONCE),
    OperatorRow(
        "CALL_ONCE", "0", "0", effect=_STATE, effect_reason="runs a subgraph that initialises resources"
    ),
    OperatorRow("CAST", "1", "1", options="CastOptions", shape=shapes.same, copies=copies.always),
    OperatorRow("CEIL", "1", "1", shape=shapes.same),
    OperatorRow("COMPLEX_ABS", "1", "1", shape=shapes.same),
    OperatorRow(
        "CONCATENATION",
        "1+",
        "1",
        options="ConcatenationOptions",
        integer=IntegerKernel(_SAME, 2, 3, caveats=(Caveat.UNSIGNED_RESCALES,)),
        shape=shapes.concatenation,
        copies=copies.only_input,
    ),
    OperatorRow("COS", "1", "1", shape=shapes.same),
    OperatorRow("CUMSUM", "2", "1", shape=shapes.same),
    OperatorRow("CUSTOM", effect=_UNKNOWN, effect_reason="its kernel is not part of the runtime"),
    OperatorRow("DELEGATE", effect=_UNKNOWN, effect_reason="what it runs is not in the file"),
    OperatorRow(
        "DEPTH_TO_SPACE",
        "1",
        "1",
        integer=IntegerKernel(_SAME, 2, old=(8,), caveats=_ABSENT),
        shape=shapes.depth_to_space,
    ),
    OperatorRow("DILATE", "3", "1"),
    OperatorRow(
        "DIV",
        "2",
        "1",
        options="DivOptions",
        fuses=True,
        elementwise=True,
        steep=Steep.DIVISION,
        integer=IntegerKernel(_OWN, 2, 2, old=(), limits=QUOTIENT, caveats=(Caveat.DIVIDES,)),
        shape=shapes.broadcast,
        copies=copies.neutral(1),
    ),
    OperatorRow("DYNAMIC_UPDATE_SLICE", "3", "1", shape=shapes.same),
    OperatorRow(
        "ELU", "1", "1", integer=IntegerKernel(_OWN, 1, old=(8,), caveats=_ABSENT), shape=shapes.same
    ),
    OperatorRow("EMBEDDING_LOOKUP_SPARSE", "5", "1"),
    OperatorRow("EQUAL", "2", "1", integer=_COMPARISON, shape=shapes.broadcast),
    OperatorRow("EXP", "1", "1", integer=IntegerKernel(_OWN, 2, 2, limits=TABLE), shape=shapes.same),
    OperatorRow(
        "EXPAND_DIMS",
        "2",
        "1",
        reshapes=True,
        integer=IntegerKernel(_SAME, 1, 1),
        shape=shapes.expand_dims,
        copies=copies.in_order,
    ),
    OperatorRow("FAKE_QUANT", "1", "1", shape=shapes.same),
    OperatorRow("FILL", "2", "1", shape=shapes.stated(0)),
    OperatorRow("FLOOR", "1", "1", shape=shapes.same),
    OperatorRow("FLOOR_DIV", "2", "1", steep=Steep.DIVISION, shape=shapes.broadcast),
    OperatorRow("FLOOR_MOD", "2", "1", steep=Steep.DIVISION, shape=shapes.broadcast),
    OperatorRow(
        "GELU",
        "1",
        "1",
        options="GeluOptions",
        integer=IntegerKernel(_OWN, 2, 2, old=(8,), limits=TABLE),
        shape=shapes.same,
    ),
    OperatorRow("GREATER", "2", "1", integer=_COMPARISON, shape=shapes.broadcast),
    OperatorRow("GREATER_EQUAL", "2", "1", integer=_COMPARISON, shape=shapes.broadcast),
    OperatorRow(
        "HARD_SWISH",
        "1",
        "1",
        integer=IntegerKernel(_OWN, 1, old=(8,), limits=SWISH, bends=bends_between(-3.0, math.inf)),
        shape=shapes.same,
    ),
    OperatorRow(
        "HASHTABLE",
        "0",
        "1",
        effect=_STATE,
        effect_reason="makes a table resource when it first runs",
        only_reads=True,
        handle=("table_id", "key_dtype", "value_dtype"),
    ),
    OperatorRow(
        "HASHTABLE_FIND",
        "3",
        "1",
        effect=_STATE,
        effect_reason="reads a table resource, which others fill",
        only_reads=True,
    ),
    OperatorRow("HASHTABLE_IMPORT", "3", "0", effect=_STATE, effect_reason="fills a table resource"),
    OperatorRow("HASHTABLE_LOOKUP", "3", "2"),
    OperatorRow(
        "HASHTABLE_SIZE",
        "1",
        "1",
        effect=_STATE,
        effect_reason="reads a table resource, which others fill",
        only_reads=True,
    ),
    OperatorRow("IF", "1+", "0+", calls=True, shape=shapes.Calls.ONCE),
    OperatorRow("IMAG", "1", "1", shape=shapes.same),
    OperatorRow(
        "L2_NORMALIZATION",
        "1",
        "1",
        integer=IntegerKernel(_FIXED, 2, old=(8,), fixed=MappingProxyType({8: (1 / 128, 0)}), limits=UNIT),
        shape=shapes.same,
    ),
    OperatorRow(
        "L2_POOL_2D",
        "1",
        "1",
        options="Pool2DOptions",
        fuses=True,
        shape=shapes.pool,
    ),
    OperatorRow(
        "LEAKY_RELU",
        "1",
        "1",
        options="LeakyReluOptions",
        homogeneous=True,
        integer=IntegerKernel(_OWN, 2, 2, limits=RESCALED),
        shape=shapes.same,
    ),
    OperatorRow("LESS", "2", "1", integer=_COMPARISON, shape=shapes.broadcast),
    OperatorRow("LESS_EQUAL", "2", "1", integer=_COMPARISON, shape=shapes.broadcast),
    OperatorRow("LOCAL_RESPONSE_NORMALIZATION", "1", "1", shape=shapes.same),
    OperatorRow(
        "LOG",
        "1",
        "1",
        steep=Steep.ALWAYS,
        integer=IntegerKernel(_OWN, 2, 2, old=(), caveats=(Caveat.NARROW_RANGE,)),
        shape=shapes.same,
    ),
    OperatorRow("LOGICAL_AND", "2", "1", shape=shapes.broadcast),
    OperatorRow("LOGICAL_NOT", "1", "1", shape=shapes.same),
    OperatorRow("LOGICAL_OR", "2", "1", shape=shapes.broadcast),
    OperatorRow(
        "LOGISTIC",
        "1",
        "1",
        squashes=Squash.ELEMENTS,
        integer=IntegerKernel(_FIXED, 2, 3, fixed=BETWEEN_0_AND_1, limits=CURVE, bends=BENDS_OF_LOGISTIC),
        shape=shapes.same,
    ),
    OperatorRow(
        "LOG_SOFTMAX",
        "1",
        "1",
        integer=IntegerKernel(
            _FIXED, 2, old=(8,), fixed=MappingProxyType({8: (16 / 256, 127)}), limits=LOG_SCORES
        ),
        shape=shapes.same,
    ),
    OperatorRow("LSH_PROJECTION", "2-3", "1", optional=(2,)),
    OperatorRow("MATRIX_DIAG", "1", "1"),
    OperatorRow("MATRIX_SET_DIAG", "2", "1"),
    OperatorRow(
        "MAXIMUM",
        "2",
        "1",
        commutes=True,
        elementwise=True,
        integer=IntegerKernel(_SAME, 2, 4),
        shape=shapes.broadcast,
    ),
    OperatorRow(
        "MAX_POOL_2D",
        "1",
        "1",
        options="Pool2DOptions",
        fuses=True,
        homogeneous=True,
        integer=IntegerKernel(_SAME, 2, 3),
        shape=shapes.pool,
    ),
    OperatorRow(
        "MEAN",
        "2",
        "1",
        options="ReducerOptions",
        integer=IntegerKernel(_OWN, 2, 3, limits=AVERAGED),
        shape=shapes.reduction,
    ),
    OperatorRow(
        "MINIMUM",
        "2",
        "1",
        commutes=True,
        elementwise=True,
        integer=IntegerKernel(_SAME, 2, 4),
        shape=shapes.broadcast,
    ),
    OperatorRow(
        "MIRROR_PAD", "2", "1", integer=IntegerKernel(_SAME, 2, 3), shape=shapes.pad, copies=copies.pad
    ),
    OperatorRow(
        "MUL",
        "2",
        "1",
        commutes=True,
        fuses=True,
        options="MulOptions",
        elementwise=True,
        integer=IntegerKernel(_OWN, 2, 4, limits=FACTORS),
        shape=shapes.broadcast,
        copies=copies.neutral(1, left=True),
    ),
    OperatorRow("MULTINOMIAL", "2", "1", effect=_RANDOM, effect_reason="draws random numbers"),
    OperatorRow(
        "NEG",
        "1",
        "1",
        integer=IntegerKernel(_SAME, 1, 1, old=(), caveats=(Caveat.NEGATES,)),
        shape=shapes.same,
    ),
    OperatorRow("NON_MAX_SUPPRESSION_V4", "5", "2"),
    OperatorRow("NON_MAX_SUPPRESSION_V5", "6", "3"),
    OperatorRow("NOT_EQUAL", "2", "1", integer=_COMPARISON, shape=shapes.broadcast),
    OperatorRow("ONE_HOT", "4", "1", shape=shapes.one_hot),
    OperatorRow(
        "PACK",
        "1+",
        "1",
        options="PackOptions",
        integer=IntegerKernel(_SAME, 2, 3),
        shape=shapes.pack,
        copies=copies.pack,
    ),
    OperatorRow(
        "PAD",
        "2-3",
        "1",
        optional=(2,),
        homogeneous=True,
        integer=IntegerKernel(_SAME, 2, 3),
        shape=shapes.pad,
        copies=copies.pad,
    ),
    OperatorRow(
        "PADV2",
        "2-3",
        "1",
        optional=(2,),
        integer=IntegerKernel(_SAME, 2, 3),
        shape=shapes.pad,
        copies=copies.pad,
    ),
    OperatorRow(
        "PLACEHOLDER_FOR_GREATER_OP_CODES",
        effect=_UNKNOWN,
        effect_reason="stands for an operator that is not named",
    ),
    OperatorRow("POW", "2", "1", steep=Steep.POWER, shape=shapes.broadcast, copies=copies.neutral(1)),
    OperatorRow(
        "PRELU",
        "2",
        "1",
        homogeneous=True,
        integer=IntegerKernel(_OWN, 1, 1, old=(8,), limits=RESCALED, caveats=(Caveat.ALPHA_8_BITS,)),
        shape=shapes.broadcast,
    ),
    OperatorRow("QUANTIZE", "1", "1", shape=shapes.same, copies=copies.always),
    OperatorRow(
        "RANDOM_STANDARD_NORMAL",
        "1",
        "1",
        effect=_RANDOM,
        effect_reason="draws random numbers",
        shape=shapes.stated(0),
    ),
    OperatorRow(
        "RANDOM_UNIFORM",
        "1",
        "1",
        effect=_RANDOM,
        effect_reason="draws random numbers",
        shape=shapes.stated(0),
    ),
    OperatorRow("RANGE", "3", "1", shape=shapes.range_),
    OperatorRow("RANK", "1", "1", shape=shapes.scalar),
    OperatorRow(
        "READ_VARIABLE",
        "1",
        "1",
        effect=_STATE,
        effect_reason="reads a resource variable, which others change",
        only_reads=True,
    ),
    OperatorRow("REAL", "1", "1", shape=shapes.same),
    OperatorRow("REDUCE_ALL", "2", "1", shape=shapes.reduction),
    OperatorRow("REDUCE_ANY", "2", "1", shape=shapes.reduction),
    OperatorRow(
        "REDUCE_MAX",
        "2",
        "1",
        options="ReducerOptions",
        integer=IntegerKernel(_SAME, 2, 3),
        shape=shapes.reduction,
    ),
    OperatorRow("REDUCE_MIN", "2", "1", integer=IntegerKernel(_SAME, 2, 3), shape=shapes.reduction),
    OperatorRow(
        "REDUCE_PROD",
        "2",
        "1",
        integer=IntegerKernel(_OWN, 2, 2, caveats=(Caveat.COPIES_ONE,)),
        shape=shapes.reduction,
    ),
    OperatorRow(
        "RELU",
        "1",
        "1",
        clamp=_ABOVE_0,
        homogeneous=True,
        integer=IntegerKernel(_OWN, 2, 3, limits=RESCALED, bends=bends_between(*_ABOVE_0)),
        shape=shapes.same,
        clamps=(0.0, math.inf),
    ),
    OperatorRow(
        "RELU6",
        "1",
        "1",
        clamp=_FROM_0_TO_6,
        integer=IntegerKernel(_OWN, 2, 3, limits=_BOUNDED, bends=bends_between(*_FROM_0_TO_6)),
        shape=shapes.same,
        clamps=(0.0, 6.0),
    ),
    OperatorRow(
        "RELU_0_TO_1",
        "1",
        "1",
        clamp=_FROM_0_TO_1,
        integer=IntegerKernel(_OWN, 1, old=(8,), limits=_BOUNDED, bends=bends_between(*_FROM_0_TO_1)),
        shape=shapes.same,
        clamps=(0.0, 1.0),
    ),
    OperatorRow(
        "RELU_N1_TO_1",
        "1",
        "1",
        clamp=_FROM_1_TO_1,
        integer=IntegerKernel(_OWN, 1, old=(8,), limits=_BOUNDED, bends=bends_between(*_FROM_1_TO_1)),
        shape=shapes.same,
        clamps=(-1.0, 1.0),
    ),
    OperatorRow(
        "RESHAPE",
        "1-2",
        "1",
        options="ReshapeOptions",
        reshapes=True,
        integer=IntegerKernel(_SAME, 1, 1),
        shape=shapes.reshape,
        copies=copies.in_order,
    ),
    OperatorRow(
        "RESIZE_BILINEAR",
        "2",
        "1",
        options="ResizeBilinearOptions",
        same_scales=True,
        integer=IntegerKernel(_SAME, 2, 4, blends=True),
        shape=shapes.resize,
        copies=copies.resize,
    ),
    OperatorRow(
        "RESIZE_NEAREST_NEIGHBOR",
        "2",
        "1",
        integer=IntegerKernel(_SAME, 2, 4),
        shape=shapes.resize,
        copies=copies.resize,
    ),
    OperatorRow("REVERSE_SEQUENCE", "2", "1", shape=shapes.same),
    OperatorRow("REVERSE_V2", "2", "1", integer=IntegerKernel(_SAME, 3, 3), shape=shapes.same),
    OperatorRow("RFFT2D", "2", "1"),
    OperatorRow("RIGHT_SHIFT", "2", "1", shape=shapes.broadcast),
    OperatorRow("ROUND", "1", "1", shape=shapes.same),
    OperatorRow(
        "RSQRT",
        "1",
        "1",
        steep=Steep.ALWAYS,
        integer=IntegerKernel(_OWN, 2, 3, old=(8,), caveats=(Caveat.NARROW_RANGE,)),
        shape=shapes.same,
    ),
    OperatorRow("SCATTER_ND", "3", "1", shape=shapes.stated(2)),
    OperatorRow("SEGMENT_SUM", "2", "1"),
    OperatorRow("SELECT", "3", "1", integer=IntegerKernel(_SAME, 2, 2), shape=shapes.select),
    OperatorRow("SELECT_V2", "3", "1", integer=IntegerKernel(_SAME, 1, 1), shape=shapes.broadcast),
    OperatorRow("SHAPE", "1", "1", shape=shapes.shape_of),
    OperatorRow("SIGN", "1", "1", shape=shapes.same),
    OperatorRow("SIN", "1", "1", shape=shapes.same),
    OperatorRow("SKIP_GRAM", "1", "1"),
    OperatorRow(
        "SLICE",
        "3",
        "1",
        integer=IntegerKernel(_SAME, 2, 4),
        declared=True,
        shape=shapes.slice_,
        copies=copies.slice_,
    ),
    OperatorRow(
        "SOFTMAX",
        "1",
        "1",
        options="SoftmaxOptions",
        squashes=Squash.ROWS,
        integer=IntegerKernel(_FIXED, 2, 3, fixed=BETWEEN_0_AND_1, limits=SCORES),
        shape=shapes.same,
    ),
    OperatorRow(
        "SPACE_TO_BATCH_ND", "3", "1", integer=IntegerKernel(_SAME, 2, 4), shape=shapes.space_to_batch
    ),
    OperatorRow(
        "SPACE_TO_DEPTH", "1", "1", integer=IntegerKernel(_SAME, 2, old=(8,)), shape=shapes.space_to_depth
    ),
    OperatorRow("SPARSE_TO_DENSE", "4", "1", shape=shapes.stated(1)),
    OperatorRow(
        "SPLIT", "2", "1+", integer=IntegerKernel(_SAME, 2, 4), shape=shapes.split, copies=copies.only_part(1)
    ),
    OperatorRow(
        "SPLIT_V",
        "3",
        "1+",
        integer=IntegerKernel(_SAME, 2, 2),
        shape=shapes.split_v,
        copies=copies.only_part(0),
    ),
    OperatorRow(
        "SQRT",
        "1",
        "1",
        steep=Steep.ALWAYS,
        integer=IntegerKernel(_OWN, 2, 2, old=(), caveats=(Caveat.NARROW_RANGE,)),
        note="Its kernel fails when it runs on a negative integer, as rounding makes of numbers near 0.",
        shape=shapes.same,
    ),
    OperatorRow("SQUARE", "1", "1", shape=shapes.same),
    OperatorRow(
        "SQUARED_DIFFERENCE",
        "2",
        "1",
        commutes=True,
        elementwise=True,
        integer=IntegerKernel(_OWN, 2, old=(8,), limits=DIFFERENCES),
        shape=shapes.broadcast,
    ),
    OperatorRow(
        "SQUEEZE",
        "1",
        "1",
        reshapes=True,
        integer=IntegerKernel(_SAME, 1, 1),
        shape=shapes.squeeze,
        copies=copies.in_order,
    ),
    OperatorRow("STABLEHLO_ADD", "2", "1", same_as="ADD"),
    OperatorRow("STABLEHLO_CASE", calls=True),
    OperatorRow("STABLEHLO_CBRT", steep=Steep.ALWAYS),
    OperatorRow("STABLEHLO_COMPOSITE", calls=True, shape=shapes.Calls.ONCE),
    OperatorRow("STABLEHLO_CUSTOM_CALL", effect=_UNKNOWN, effect_reason="what it calls is not in the file"),
    OperatorRow("STABLEHLO_DIVIDE", steep=Steep.DIVISION),
    OperatorRow("STABLEHLO_LOG", steep=Steep.ALWAYS),
    OperatorRow("STABLEHLO_MAXIMUM", "2", "1", same_as="MAXIMUM"),
    OperatorRow("STABLEHLO_MINIMUM", "2", "1", same_as="MINIMUM"),
    OperatorRow("STABLEHLO_MULTIPLY", "2", "1", same_as="MUL"),
    OperatorRow("STABLEHLO_PAD", "2", "1"),
    OperatorRow("STABLEHLO_POWER", steep=Steep.POWER),
    OperatorRow("STABLEHLO_REDUCE", calls=True),
    OperatorRow("STABLEHLO_REDUCE_WINDOW", calls=True),
    OperatorRow("STABLEHLO_REMAINDER", steep=Steep.DIVISION),
    OperatorRow("STABLEHLO_RSQRT", steep=Steep.ALWAYS),
    OperatorRow("STABLEHLO_SCATTER", calls=True),
    OperatorRow("STABLEHLO_SORT", calls=True),
    OperatorRow("STABLEHLO_WHILE", calls=True),
    OperatorRow(
        "STRIDED_SLICE",
        "4",
        "1",
        options="StridedSliceOptions",
        integer=IntegerKernel(_SAME, 2, 2),
        shape=shapes.strided_slice,
        copies=copies.strided_slice,
    ),
    OperatorRow(
        "SUB",
        "2",
        "1",
        fuses=True,
        options="SubOptions",
        elementwise=True,
        integer=IntegerKernel(_OWN, 2, 5, limits=SUMMANDS, general16="pot_scale_int16"),
        shape=shapes.broadcast,
        copies=copies.neutral(0.0),
    ),
    OperatorRow(
        "SUM",
        "2",
        "1",
        integer=IntegerKernel(_OWN, 2, old=(8,), caveats=(Caveat.REFERENCE_WRONG,)),
        shape=shapes.reduction,
    ),
    OperatorRow(
        "TANH",
        "1",
        "1",
        squashes=Squash.ELEMENTS,
        integer=IntegerKernel(_FIXED, 2, 3, fixed=BETWEEN_1_AND_1, limits=CURVE, bends=BENDS_OF_TANH),
        shape=shapes.same,
    ),
    OperatorRow(
        "TILE",
        "2",
        "1",
        integer=IntegerKernel(_SAME, 3, 3, old=(8,), caveats=_ABSENT),
        shape=shapes.tile,
        copies=copies.tile,
    ),
    OperatorRow("TOPK_V2", "2", "2", options="TopKV2Options", shape=shapes.top_k),
    OperatorRow(
        "TRANSPOSE",
        "2",
        "1",
        integer=IntegerKernel(_SAME, 2, 5),
        shape=shapes.transpose,
        copies=copies.transpose,
    ),
    OperatorRow("UNIQUE", "1", "2", shape=shapes.unique),
    OperatorRow(
        "UNPACK",
        "1",
        "1+",
        options="UnpackOptions",
        integer=IntegerKernel(_SAME, 2, 4),
        shape=shapes.unpack,
        copies=copies.unpack,
    ),
    OperatorRow("UNSORTED_SEGMENT_MAX", "3", "1"),
    OperatorRow("UNSORTED_SEGMENT_MIN", "3", "1"),
    OperatorRow("UNSORTED_SEGMENT_PROD", "3", "1"),
    OperatorRow("UNSORTED_SEGMENT_SUM", "3", "1"),
    OperatorRow(
        "VAR_HANDLE",
        "0",
        "1",
        effect=_STATE,
        effect_reason="makes a resource variable when it first runs",
        only_reads=True,
        handle=("container", "shared_name"),
    ),
    OperatorRow("WHERE", "1", "1", shape=shapes.where),
    OperatorRow("WHILE", calls=True, shape=shapes.Calls.AGAIN),
    OperatorRow("ZEROS_LIKE", "1", "1", shape=shapes.same),
)

ROWS: Mapping[str, OperatorRow] = MappingProxyType({row.name: row for row in _ROWS})
"""By the name of the operator."""

# Operators that passes make or look for, by themselves or in a chain. Others are asked for by what they do.
ADD, CAST, MEAN, MUL, PRELU, RESHAPE, SUB = map(
    ROWS.__getitem__, ("ADD", "CAST", "MEAN", "MUL", "PRELU", "RESHAPE", "SUB")
)
AVERAGE_POOL, NEG = ROWS["AVERAGE_POOL_2D"], ROWS["NEG"]
COMPOSITE = ROWS["STABLEHLO_COMPOSITE"]
SELECT, SELECT_V2 = ROWS["SELECT"], ROWS["SELECT_V2"]
ASSIGN_VARIABLE, READ_VARIABLE, VAR_HANDLE = map(
    ROWS.__getitem__, ("ASSIGN_VARIABLE", "READ_VARIABLE", "VAR_HANDLE")
)
DENSIFY, DEQUANTIZE, DIV = map(ROWS.__getitem__, ("DENSIFY", "DEQUANTIZE", "DIV"))
BROADCAST_TO, FILL, SLICE, STRIDED_SLICE, TRANSPOSE_CONV = map(
    ROWS.__getitem__, ("BROADCAST_TO", "FILL", "SLICE", "STRIDED_SLICE", "TRANSPOSE_CONV")
)
WHILE = ROWS["WHILE"]
POOLS = (AVERAGE_POOL, ROWS["MAX_POOL_2D"], ROWS["L2_POOL_2D"])
RESIZES = (ROWS["RESIZE_BILINEAR"], ROWS["RESIZE_NEAREST_NEIGHBOR"])
EMBEDDING_LOOKUP, GATHER, QUANTIZE = ROWS["EMBEDDING_LOOKUP"], ROWS["GATHER"], ROWS["QUANTIZE"]
CONCATENATION, FULLY_CONNECTED, PACK, SPLIT, TRANSPOSE, UNPACK = map(
    ROWS.__getitem__, ("CONCATENATION", "FULLY_CONNECTED", "PACK", "SPLIT", "TRANSPOSE", "UNPACK")
)
ARG_MAX, RESIZE_BILINEAR, TOPK_V2 = ROWS["ARG_MAX"], ROWS["RESIZE_BILINEAR"], ROWS["TOPK_V2"]
JOINING = (CONCATENATION, PACK)
"""What puts tensors beside each other, none of which it repeats."""
SHAPE_READERS = (ROWS["SHAPE"], ROWS["RANK"])
"""What reads the shape of a tensor alone: integers do as well as floats."""
NORM_APPLICATION = (ROWS["ADD"], ROWS["SUB"], ROWS["MUL"])
"""What applies a mean and a deviation, after the RSQRT of a layer norm."""
NORM_STATISTICS = (*NORM_APPLICATION, ROWS["MEAN"], ROWS["SQUARED_DIFFERENCE"], ROWS["SQUARE"])
"""What computes a variance, before the RSQRT of a layer norm."""
NORM_DEVIATION = ROWS["RSQRT"]
"""What makes the reciprocal deviation of a layer norm of a variance."""
RESIDUAL = ROWS["ADD"]
RELU, RELU6 = ROWS["RELU"], ROWS["RELU6"]
GELU, LEAKY_RELU, SOFTMAX = ROWS["GELU"], ROWS["LEAKY_RELU"], ROWS["SOFTMAX"]
ABS, DIV, EXP, POW, SQUARE, TANH = map(ROWS.__getitem__, ("ABS", "DIV", "EXP", "POW", "SQUARE", "TANH"))
MAXIMUM, MINIMUM, REDUCE_MAX, SUM = map(ROWS.__getitem__, ("MAXIMUM", "MINIMUM", "REDUCE_MAX", "SUM"))
BATCH_MATMUL, FULLY_CONNECTED = ROWS["BATCH_MATMUL"], ROWS["FULLY_CONNECTED"]
MAX_POOL, PAD, PADV2 = ROWS["MAX_POOL_2D"], ROWS["PAD"], ROWS["PADV2"]
CLAMPS = tuple(row for row in ROWS.values() if row.clamp)
"""What cuts numbers to a range and does nothing else."""
FUSING = tuple(row for row in ROWS.values() if row.fuses)
"""What does the work of such an operator behind it, too."""
FLOAT_CUSTOM = frozenset(("TFLite_Detection_PostProcess",))
"""Custom operators that read floats as well as uint8 (``detection_postprocess.cc``; measured)."""

MAIN_ONLY = tuple(ROWS[name] for name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "MIRROR_PAD"))
"""What ends TFLite Micro while it prepares a subgraph that the main one does not run (measured)."""

CONVERSIONS = (QUANTIZE, DEQUANTIZE)
"""What gives the same values in another type: no operator of a model that somebody misses in integers."""


def _rows(words: str) -> tuple[OperatorRow, ...]:
    return tuple(map(ROWS.__getitem__, words.split()))


# What a runtime may not have, and what can stand for it (editing/substitutes.py).
ABS, DIV, EQUAL, EXP = _rows("ABS DIV EQUAL EXP")
GREATER, LESS, MAXIMUM, MINIMUM, PADV2 = _rows("GREATER LESS MAXIMUM MINIMUM PADV2")
REDUCE_MAX, RSQRT, SQRT, TANH = _rows("REDUCE_MAX RSQRT SQRT TANH")
EXPAND_DIMS, GELU, ONE_HOT, POW = _rows("EXPAND_DIMS GELU ONE_HOT POW")
FLOOR_DIV, FLOOR_MOD = _rows("FLOOR_DIV FLOOR_MOD")
REDUCE_ANY, REDUCE_PROD, RELU_0_TO_1, RELU_N1_TO_1, SIGN = _rows(
    "REDUCE_ANY REDUCE_PROD RELU_0_TO_1 RELU_N1_TO_1 SIGN"
)
SQUEEZE, STABLEHLO_PAD, TILE = _rows("SQUEEZE STABLEHLO_PAD TILE")
DYNAMIC_UPDATE_SLICE, SEQUENCE_LSTM = _rows("DYNAMIC_UPDATE_SLICE UNIDIRECTIONAL_SEQUENCE_LSTM")
READ_INDICES = _rows("GATHER GATHER_ND MEAN SUM REDUCE_MAX REDUCE_MIN ARG_MAX ARG_MIN")
"""What reads indices or axes as its second operand."""
MOVE_BOOLS = _rows("PAD PADV2 GATHER GATHER_ND PACK UNPACK SPLIT TRANSPOSE TILE")
"""What only moves elements, and came to move bools late or never."""
COMPARE = _rows("EQUAL NOT_EQUAL GREATER_EQUAL LESS LESS_EQUAL GREATER")
"""What compares numbers."""

EXPANDING = (MUL, ADD, RESHAPE)
"""What makes floats of blocks of integers, and of the two parts of int6, behind DEQUANTIZE."""

DENSIFY_IS_EXPANDED: Runtime = (2, 23)
"""First runtime that was found to compute what reads a DEQUANTIZE of what a DENSIFY of int8 gives.

Measured with convolutions, FULLY_CONNECTED, BATCH_MATMUL and MUL: LiteRT 2.3 is exact with every resolver, in
branches, too; XNNPACK of 2.14 gives wrong values for BATCH_MATMUL. Those between were not measured.
"""

BLOCKS_IN_CALLED_SUBGRAPHS: Runtime = (2, 20)
"""First runtime that computes expanded blocks (DEQUANTIZE, MUL, RESHAPE) in the body of an IF or the like.

Measured with if_branches: XNNPACK of 2.14 gives wrong values when a branch is run again after the other one,
that of 1.0 fails then; right on 2.0, 2.1 and 2.3, and without XNNPACK on all; in a main subgraph on all.
"""

_NOTHING = OperatorRow("")
DELEGATED: Mapping[str, OperatorRow] = MappingProxyType(
    {name: OperatorRow(name, declared=True, shape=shapes.delegated) for name in DELEGATE_CUSTOM}
)
"""Custom operators that XNNPACK takes (``xnnpack_delegate.cc``), with sizes from the file; by name."""
(DETECTION_POSTPROCESS,) = (OperatorRow(name, shape=shapes.detections) for name in FLOAT_CUSTOM)
_CUSTOM = {**DELEGATED, DETECTION_POSTPROCESS.name: DETECTION_POSTPROCESS}


def row_of(operator: Operator) -> OperatorRow:
    """Returns the row of an operator; one that promises nothing for an unknown one, or most custom ones."""
    custom = operator.code.custom
    return row_named(operator.code.name) if custom is None else _CUSTOM.get(custom, _NOTHING)


def row_named(name: str) -> OperatorRow:
    """Returns the row of a builtin operator by its name; one that promises nothing where there is none."""
    return ROWS.get(name, _NOTHING)


def dequantize_form(
    dtype: str, granularity: Granularity | None, runtime: Runtime = NEWEST_RUNTIME
) -> Form | None:
    """Returns how DEQUANTIZE takes a constant of this kind on a runtime, or None where it does not.

    Args:
        dtype: Name in ``TensorType``.
        granularity: None for a dtype without scales.
        runtime: The oldest runtime that must load the file.
    """
    return DEQUANTIZE.form(dtype, granularity, runtime)
