"""Every fixture by name, with what it shows and who makes it: the one list that the README repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import converted, handmade, malformed, rearranged, recurrent, trained

TRAINED = "trained and converted with TensorFlow"
CONVERTED = "converted with TensorFlow, random weights"
HANDMADE = "assembled with the object API, random weights"
REARRANGED = "rearranged with the object API"


@dataclass(frozen=True)
class Fixture:
    """One committed model.

    Attributes:
        name: path below the fixtures folder, without `.tflite`.
        shows: what a test finds in it.
        how: how it came about.
        make: writes it (and its siblings and inputs) into the fixtures folder.
    """

    name: str
    shows: str
    how: str
    make: Callable[[Path], None]


FIXTURES = [
    Fixture(
        "mtcnn_rnet",
        "MTCNN's refinement net: CONV_2D, PRELU, MAX_POOL_2D, FULLY_CONNECTED, two outputs",
        TRAINED,
        trained.make_mtcnn_rnet,
    ),
    Fixture(
        "mtcnn_rnet_old_schema",
        "the same net, operators in `deprecated_builtin_code` only, no metadata, no signature",
        f"mtcnn_rnet, {REARRANGED}",
        rearranged.make_mtcnn_rnet_old_schema,
    ),
    Fixture(
        "digits_cnn",
        "a depthwise-separable classifier of 8x8 digits, 99 % accurate on held-out images; "
        "its first kernel (288 elements) is small",
        TRAINED,
        trained.make_digits_cnn,
    ),
    Fixture(
        "digits_cnn_float16",
        "the same net, FLOAT16 constants behind DEQUANTIZE",
        TRAINED,
        trained.make_digits_cnn,
    ),
    Fixture(
        "digits_cnn_dynamic_range",
        "the same net, int8 weights and float activations as the converter makes them",
        TRAINED,
        trained.make_digits_cnn,
    ),
    Fixture(
        "digits_cnn_full_int8",
        "the same net, int8 from input to output",
        TRAINED,
        trained.make_digits_cnn,
    ),
    Fixture(
        "lstm",
        "UNIDIRECTIONAL_SEQUENCE_LSTM with variable state tensors; reads digits row by row",
        "trained with TensorFlow, assembled with the object API, compared with the trained layer",
        trained.make_lstm,
    ),
    Fixture(
        "bidirectional_lstm",
        "BIDIRECTIONAL_SEQUENCE_LSTM, 48 inputs of which many are absent",
        HANDMADE,
        recurrent.make_bidirectional_lstm,
    ),
    Fixture("rnn", "UNIDIRECTIONAL_SEQUENCE_RNN and RNN", HANDMADE, recurrent.make_rnn),
    Fixture("svdf", "SVDF, whose memory is a variable tensor", HANDMADE, recurrent.make_svdf),
    Fixture(
        "text_embedding",
        "int32 word ids, an embedding table of 1000x16 read by GATHER, mean, two dense layers",
        TRAINED,
        trained.make_text_embedding,
    ),
    Fixture(
        "two_signatures_shared_weights",
        "signatures `encode` and `score` in two subgraphs, one weight buffer used by both",
        CONVERTED,
        converted.make_two_signatures_shared_weights,
    ),
    Fixture(
        "while_loop",
        "WHILE whose body holds a weight of 1,600 elements",
        CONVERTED,
        converted.make_while_loop,
    ),
    Fixture("if_branches", "IF with a weight in each branch", HANDMADE, handmade.make_if_branches),
    Fixture(
        "resource_variables",
        "CALL_ONCE, VAR_HANDLE, ASSIGN_VARIABLE: the output depends on earlier runs",
        CONVERTED,
        converted.make_resource_variables,
    ),
    Fixture(
        "batch_matmul", "BATCH_MATMUL with a constant right side", CONVERTED, converted.make_batch_matmul
    ),
    Fixture("transpose_conv", "TRANSPOSE_CONV without bias", CONVERTED, converted.make_transpose_conv),
    Fixture(
        "dynamic_shapes",
        "`shape_signature` [-1, -1, 40]: batch and length unknown",
        CONVERTED,
        converted.make_dynamic_shapes,
    ),
    Fixture("dense", "one FULLY_CONNECTED with a signature", HANDMADE, handmade.make_dense),
    Fixture(
        "dense_defaults_present",
        "the same, every scalar field present although it equals its default",
        HANDMADE,
        handmade.make_dense_defaults_present,
    ),
    Fixture(
        "shared_constant_two_ops",
        "one constant read by FULLY_CONNECTED and by MUL",
        HANDMADE,
        handmade.make_shared_constant_two_ops,
    ),
    Fixture(
        "conv_without_bias",
        "CONV_2D with two inputs: well formed, but no kernel of the runtime prepares it",
        HANDMADE,
        handmade.make_conv_without_bias,
    ),
    Fixture(
        "string_input",
        "a string input and a string output through builtin kernels, beside a dense layer",
        HANDMADE,
        handmade.make_string_input,
    ),
    Fixture(
        "composite",
        "STABLEHLO_COMPOSITE whose decomposition subgraph holds the weight",
        HANDMADE,
        handmade.make_composite,
    ),
    Fixture(
        "already_int8",
        "FULLY_CONNECTED over int8 weights, a scale per channel",
        HANDMADE,
        handmade.make_already_int8,
    ),
    Fixture(
        "already_int4",
        "FULLY_CONNECTED over packed int4 weights, a scale per channel",
        HANDMADE,
        handmade.make_already_int4,
    ),
    Fixture(
        "blockwise_int4",
        "int4 weights whose float16 scales, one per 32 inputs, are a tensor named by its index",
        HANDMADE,
        handmade.make_blockwise_int4,
    ),
    Fixture(
        "sparse",
        "weights with a sparsity table (CSR): the buffer holds non-zero elements only",
        HANDMADE,
        handmade.make_sparse,
    ),
    Fixture(
        "metadata_label_zip",
        "TFLITE_METADATA naming labels.txt, and a ZIP with that file after the FlatBuffer",
        f"digits_cnn, {REARRANGED}",
        rearranged.make_metadata_label_zip,
    ),
    Fixture(
        "offset_buffers",
        "buffers of 1 KiB and more outside the FlatBuffer (`Buffer.offset`, schema 3c)",
        f"digits_cnn, {REARRANGED}",
        rearranged.make_offset_buffers,
    ),
    Fixture(
        "external_buffers/model",
        "weights in two files beside the model (`ExternalBuffer`, schema 3d); CompiledModel runs it, "
        "the Interpreter does not know",
        f"digits_cnn, {REARRANGED}",
        rearranged.make_external_buffers,
    ),
    *(
        Fixture(
            f"malformed/{row.name}",
            f"{row.kind}: {row.wrong}",
            "bytes patched or assembled",
            malformed.make_all,
        )
        for row in malformed.MALFORMATIONS
    ),
]
