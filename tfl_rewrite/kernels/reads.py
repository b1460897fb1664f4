"""How operators read integer weights beside float activations, and what each way of reading asks for.

Read by the pass that repairs files and by whoever reports on them, so that both mean the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tfl_rewrite.kernels import hybrid, runtimes
from tfl_rewrite.kernels.hybrid import Granularity, HybridRow, Need
from tfl_rewrite.kernels.packed import PACKED
from tfl_rewrite.kernels.runtimes import Runtime
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor

EQUAL_SCALES_FROM: Runtime = (2, 15)
"""Runtimes before it may read per-channel scales that are all equal as 0: 2.14 does
(:attr:`Need.SCALES_DIFFER`, measured), 2.3 does not; none between was measured."""

INTEGER_WEIGHTS = ("INT8", "UINT8", "INT4", "INT2")
"""Types that a hybrid kernel may meet as a weight."""

BLOCKWISE_VERSION = 12
"""What a FULLY_CONNECTED with blockwise int4 weights is stamped with at least.

``op_version.cc`` has no version for it. Measured: 2.14 takes such an operator stamped 5 or 6 and returns
zeros; version 12 it refuses, and 2.3 computes the same whatever the stamp.
"""

_PACKED_VERSION = {
    ("CONV_2D", "INT4"): 8,
    ("FULLY_CONNECTED", "INT4"): 10,
    ("FULLY_CONNECTED", "INT2"): 14,
    ("EMBEDDING_LOOKUP", "INT4"): 4,
    ("EMBEDDING_LOOKUP", "INT2"): 5,
}
"""The version that a packed weight asks for by itself (``op_version.cc``), but for CONV_2D: version 7, which
``op_version.cc`` gives int4, 2.14 takes and returns garbage for float activations, or crashes (measured)."""

NO_PACKED_HYBRID = (("DEPTHWISE_CONV_2D", "INT4"), ("DEPTHWISE_CONV_2D", "INT2"))
"""Packed weights that the kernel refuses beside float activations (measured on 2.14 and 2.3)."""

_PACKED_ROWS, _PACKED_COLUMNS = 4, 32
"""FULLY_CONNECTED knows per-channel scales of int4 weights of at least this size since int4 itself: they take
the 4-bit kernel (``fully_connected.cc``, Prepare; measured on 2.14). Smaller ones read them as 0 there."""


@dataclass(frozen=True, slots=True)
class WeightRead:
    """One integer constant that a hybrid kernel reads.

    Attributes:
        place: ``subgraphs[i].operators[j]``.
    """

    subgraph: SubGraph
    operator: Operator
    position: int
    weight: Tensor
    row: HybridRow
    place: str

    @property
    def name(self) -> str:
        """The operator's type."""
        return self.operator.code.name

    @property
    def blockwise(self) -> bool:
        """Whether the scales are a tensor, one scale for each block of a row."""
        return is_blockwise(self.weight)

    @property
    def scales(self) -> list[float]:
        """The scales; none for a blockwise weight."""
        return scales_of(self.weight)

    @property
    def granularity(self) -> Granularity:
        """One scale, or one for each channel."""
        return Granularity.CHANNEL if len(self.scales) > 1 else Granularity.TENSOR

    @property
    def four_bit_kernel(self) -> bool:
        """Whether it is a matrix that FULLY_CONNECTED has read right since it knows int4."""
        shape = self.weight.shape or ()
        if (self.name, self.weight.dtype_name) != ("FULLY_CONNECTED", "INT4") or self.blockwise:
            return False
        large = len(shape) == 2 and shape[0] >= _PACKED_ROWS and shape[1] >= _PACKED_COLUMNS
        return large and shape[1] % 2 == 0

    def needed_version(self) -> int:
        """Returns the least operator version that keeps runtimes away which would misread the weight.

        0 where the rows know no form of this kind.
        """
        packed = _PACKED_VERSION.get((self.name, self.weight.dtype_name), 0)
        if self.blockwise:
            return BLOCKWISE_VERSION if self.name == "FULLY_CONNECTED" else 0
        if self.four_bit_kernel:
            return packed
        if self.weight.dtype_name == "UINT8":
            # From before int8: its kernels had versions of their own.
            return 0
        # Whether inputs are rounded asymmetrically changes the version too, but nothing is misread for it.
        forms = [form for form in self.row.forms if form.granularity is self.granularity]
        return max(packed, min((form.version for form in forms), default=0))

    @property
    def form(self) -> str:
        """The form of the weight in words."""
        kind = "blockwise" if self.blockwise else f"per-{self.granularity.value}"
        return f"{kind} {self.weight.dtype_name.lower()} weight"

    def first_runtime(self) -> Runtime:
        """Returns the first runtime whose kernel computes this form right; ``(0, 0)`` if unknown."""
        if self.weight.dtype_name == "UINT8":
            return (0, 0)
        if self.weight.dtype_name == "INT8" and not self.blockwise:
            forms = [form for form in self.row.forms if form.granularity is self.granularity]
            first = min((form.first_runtime for form in forms), default=(0, 0))
            return max(first, EQUAL_SCALES_FROM) if scales_equal(self) else first
        if self.four_bit_kernel:
            text = runtimes.version_text(self.name, self.needed_version())
            return runtimes.runtime_of(text) if text is not None else (0, 0)
        granularity = Granularity.BLOCK if self.blockwise else self.granularity
        packed = [
            form
            for form in PACKED.get(self.name, ())
            if (form.dtype, form.granularity) == (self.weight.dtype_name, granularity)
        ]
        return min((form.first_runtime for form in packed), default=(0, 0))


def is_blockwise(tensor: Tensor) -> bool:
    """Whether the scales of a tensor are another tensor, one for each block of a row."""
    details = tensor.quantization
    if details is None or details.scales_tensor is None:
        return False
    table = details.rest.get("details")
    return table is None or table.spec.name == "BlockwiseQuantization"


def scales_of(tensor: Tensor) -> list[float]:
    """Returns the scales of a tensor, none where it has none of its own."""
    details = tensor.quantization
    if details is None or not details.scale:
        return []
    raw = bytes(details.scale.raw)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def zero_points_of(tensor: Tensor) -> list[int]:
    """Returns the zero points of a tensor."""
    details = tensor.quantization
    if details is None or not details.zero_point:
        return []
    return [int(value) for value in details.zero_point]


def operators_of(model: Model) -> Iterator[tuple[SubGraph, Operator, str]]:
    """Yields every operator with its subgraph and its place in the file that was read."""
    for index, subgraph in enumerate(model.subgraphs):
        for position, operator in enumerate(subgraph.operators):
            place = model.place_of(operator, f"subgraphs[{index}].operators[{position}]")
            yield subgraph, operator, place


def input_of(operator: Operator, position: int | None) -> Tensor | None:
    """Returns an input, or None where it is absent."""
    if position is None or position >= len(operator.inputs):
        return None
    return operator.inputs[position]


def weight_reads(model: Model) -> Iterator[WeightRead]:
    """Yields every integer constant that an operator reads as a weight beside float activations."""
    for subgraph, operator, place in operators_of(model):
        row = hybrid.hybrid_row(operator.code.name) if operator.code.custom is None else None
        if row is None or not _computes_in_float(operator, row):
            continue
        for position in row.inputs:
            weight = input_of(operator, position)
            if weight is not None and weight.is_constant and weight.dtype_name in INTEGER_WEIGHTS:
                yield WeightRead(subgraph, operator, position, weight, row, place)


def lacks_bias(operator: Operator) -> bool:
    """Whether a convolution in floats has no bias, which its kernel demands (:attr:`Need.FLOAT_BIAS`)."""
    row = hybrid.hybrid_row(operator.code.name) if operator.code.custom is None else None
    if row is None or Need.FLOAT_BIAS not in row.needs or not _computes_in_float(operator, row):
        return False
    return input_of(operator, 2) is None


def scales_equal(read: WeightRead) -> bool:
    """Whether per-channel scales break :attr:`Need.SCALES_DIFFER`."""
    if not any(Need.SCALES_DIFFER in form.needs for form in read.row.forms):
        return False
    scales = read.scales
    activation = input_of(read.operator, read.row.activation)
    deep = activation is not None and activation.shape and read.weight.shape
    grouped = bool(deep and activation.shape[-1] != read.weight.shape[-1])  # type: ignore[union-attr,index]
    return len(scales) > 1 and len(set(scales)) == 1 and not grouped


def _computes_in_float(operator: Operator, row: HybridRow) -> bool:
    activation = input_of(operator, row.activation)
    if row.activation is not None and (activation is None or activation.dtype != dtypes.FLOAT32.value):
        return False
    return bool(operator.outputs) and all(
        tensor is not None and tensor.dtype == dtypes.FLOAT32.value for tensor in operator.outputs
    )
