"""Which version of an operator its float form needs.

Facts of ``tflite/converter/tools/versioning/op_version.cc``, for the operators that have a hybrid kernel.
"""

from __future__ import annotations

from tfl_rewrite.model.ir import Operator
from tfl_rewrite.passes import needs

_PLAIN = (
    "BATCH_MATMUL",
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "EMBEDDING_LOOKUP",
    "RNN",
    "SVDF",
    "UNIDIRECTIONAL_SEQUENCE_RNN",
)
_DIAGONAL = "diagonal_recurrent_tensors"


def float_version(operator: Operator) -> int | None:
    """Returns the version of an operator with float32 inputs and outputs, or None if it is not known."""
    name, biased = operator.code.name, len(operator.inputs) > 2 and operator.inputs[2] is not None
    if name in _PLAIN:
        return 1
    if name == "CONV_2D":
        return 6 if needs.grouped(operator) else 1
    if name == "DEPTHWISE_CONV_2D":
        factors = (operator.option("dilation_w_factor"), operator.option("dilation_h_factor"))
        return 2 if any(factor not in (None, 1) for factor in factors) else 1
    if name == "FULLY_CONNECTED":
        return max(1 if biased else 6, 5 if operator.option("keep_num_dims") else 1)
    if name == "LSTM":
        return 2 if operator.option("kernel_type") else 1
    if name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        return 4 if operator.option(_DIAGONAL) else 1
    if name == "TRANSPOSE_CONV":
        if operator.option("fused_activation_function"):
            return 4
        return 3 if len(operator.inputs) > 3 and operator.inputs[3] is not None else 1
    return None
