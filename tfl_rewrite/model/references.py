"""Every field of the schema that is an index, and into what; and which custom operators refer to the file.

Lifting turns these into objects and lowering turns them back, so that a pass which adds, drops or moves
something cannot leave a number pointing at the wrong thing. A test compares the rows with all integer
fields of the schema.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Into(enum.Enum):
    """What a reference points into."""

    BUFFER = "Model.buffers"
    TENSOR = "SubGraph.tensors of the same subgraph"
    SIGNATURE_TENSOR = "SubGraph.tensors of the signature's subgraph"
    SUBGRAPH = "Model.subgraphs"
    OPERATOR_CODE = "Model.operator_codes"
    EXTERNAL_BUFFER = "Model.external_buffers, by id; 0 is none"
    EXTERNAL_GROUP = "Model.external_buffer_groups"
    FILE = "bytes of the file, from its start"
    DEBUG = "entries of the debug metadata buffer, which we carry unread"


@dataclass(frozen=True, slots=True)
class Reference:
    """A field that refers to something.

    Attributes:
        absent: The value that stands for nothing, or None if there is no such value.
    """

    table: str
    field: str
    into: Into
    absent: int | None = None


REFERENCES: tuple[Reference, ...] = (
    Reference("Tensor", "buffer", Into.BUFFER),
    Reference("Tensor", "external_buffer", Into.EXTERNAL_BUFFER, 0),
    Reference("BlockwiseQuantization", "scales", Into.TENSOR, -1),
    Reference("BlockwiseQuantization", "zero_points", Into.TENSOR, -1),
    Reference("MultiAxisQuantization", "scales", Into.TENSOR, -1),
    Reference("MultiAxisQuantization", "zero_points", Into.TENSOR, -1),
    Reference("SubGraph", "inputs", Into.TENSOR),
    Reference("SubGraph", "outputs", Into.TENSOR),
    Reference("SubGraph", "debug_metadata_index", Into.DEBUG, -1),
    Reference("Operator", "opcode_index", Into.OPERATOR_CODE),
    Reference("Operator", "inputs", Into.TENSOR, -1),
    Reference("Operator", "outputs", Into.TENSOR, -1),
    Reference("Operator", "intermediates", Into.TENSOR, -1),
    Reference("Operator", "debug_metadata_index", Into.DEBUG, -1),
    Reference("Operator", "large_custom_options_offset", Into.FILE, 0),
    Reference("Buffer", "offset", Into.FILE, 0),
    Reference("Metadata", "buffer", Into.BUFFER),
    Reference("Model", "metadata_buffer", Into.BUFFER),
    Reference("TensorMap", "tensor_index", Into.SIGNATURE_TENSOR),
    Reference("SignatureDef", "subgraph_index", Into.SUBGRAPH),
    Reference("ExternalBuffer", "group", Into.EXTERNAL_GROUP),
    Reference("CallOptions", "subgraph", Into.SUBGRAPH),
    Reference("CallOnceOptions", "init_subgraph_index", Into.SUBGRAPH),
    Reference("IfOptions", "then_subgraph_index", Into.SUBGRAPH),
    Reference("IfOptions", "else_subgraph_index", Into.SUBGRAPH),
    Reference("WhileOptions", "cond_subgraph_index", Into.SUBGRAPH),
    Reference("WhileOptions", "body_subgraph_index", Into.SUBGRAPH),
    Reference("StableHLOCompositeOptions", "decomposition_subgraph_index", Into.SUBGRAPH, -1),
    Reference("StablehloReduceOptions", "body_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloWhileOptions", "cond_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloWhileOptions", "body_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloSortOptions", "comparator_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloReduceWindowOptions", "body_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloScatterOptions", "update_computation_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloCustomCallOptions", "called_computations", Into.SUBGRAPH),
    Reference("StablehloCaseOptions", "branch_subgraph_indices", Into.SUBGRAPH),
)
BY_TABLE: dict[str, tuple[Reference, ...]] = {
    table: tuple(row for row in REFERENCES if row.table == table)
    for table in {row.table for row in REFERENCES}
}

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
