"""What was decided of one constant, and what that costs in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tfl_rewrite.kernels import hybrid
from tfl_rewrite.kernels.packed import PackedForm
from tfl_rewrite.model.ir import Operator
from tfl_rewrite.numerics.levels import (
    Dtype,
    Levels,
    block_scales_nbytes,
    packed_nbytes,
    scales_nbytes,
    zero_points_nbytes,
)
from tfl_rewrite.numerics.symmetric import Channels
from tfl_rewrite.weights.candidates import Candidate
from tfl_rewrite.weights.payloads import Reading

# What a rewrite adds to the file beside the integers, in bytes: upper estimates, so that "smaller" holds.
_QUANTIZATION_NBYTES = 64
_TENSOR_NBYTES = 96
_OPERATOR_NBYTES = 56
# Blocks that are expanded: DEQUANTIZE twice, MUL and RESHAPE; and the tensors of them, with a shape.
_BLOCK_OPERATORS = 4
_BLOCK_TENSORS = 6
_BUFFER_NBYTES = 32
_ROW_SCALE_NBYTES = 4

HybridForm = hybrid.Form | PackedForm
AnyForm = HybridForm | hybrid.TableLookup | hybrid.DequantizeForm


@dataclass(slots=True, eq=False)
class Decision:
    """What is to become of one candidate.

    Attributes:
        item: The constant.
        readings: How each use gets at it, in the order of ``item.uses``.
        forms: What each use that reads integers takes, and last what DEQUANTIZE does, if any use needs it.
        axis: Channel axis of the scales; None for one scale, for blocks and for float16.
        dtype: What the elements become.
        block: Elements of a block; None where scales are not by block.
        native: Whether a kernel reads the blocks itself.
        sharing: How many constants are likely to have as many scales, and so the same zero points.
    """

    item: Candidate
    readings: list[Reading]
    forms: list[AnyForm]
    axis: int | None
    dtype: Dtype = Dtype.INT8
    block: int | None = None
    native: bool = False
    sharing: int = 1
    stored_dtype: int = field(init=False)
    """Number of the type that the constant has in the input; rewiring changes the tensor's."""

    def __post_init__(self) -> None:
        self.stored_dtype = self.item.stored.dtype

    @property
    def channels(self) -> Channels:
        """How it falls into channels, each with a scale."""
        if self.block is not None:
            return Channels(1, self.item.elements // self.block, self.block)
        return Channels.along(self.item.shape, self.axis)

    @property
    def levels(self) -> Levels:
        """The integers that all of its readers read right."""
        bits = self.dtype.bits
        if len(self.dtype.parts) > 1:
            return Levels.of(self.dtype)
        forms = [form for form in self.forms if isinstance(form, HybridForm)]
        full = all(isinstance(form, PackedForm) and form.full_range for form in forms)
        return Levels.full(bits) if self.dtype is not Dtype.INT8 and full else Levels.narrow(bits)

    @property
    def kinds(self) -> tuple[Reading, ...]:
        """The readings, each once."""
        return tuple(dict.fromkeys(self.readings))

    @property
    def content(self) -> tuple[Channels | None, Dtype, Levels | None, bool]:
        """Equal for decisions of one constant that can share the new bytes."""
        if not self.dtype.is_integer:
            return None, self.dtype, None, False
        return self.channels, self.dtype, self.levels, self.native

    @property
    def data_nbytes(self) -> int:
        """Bytes of the new elements."""
        return sum(packed_nbytes(self.item.elements, part.bits) for part in self.dtype.parts)

    @property
    def content_nbytes(self) -> int:
        """Bytes of the new elements and their scales."""
        if not self.dtype.is_integer:
            return self.data_nbytes
        count = self.channels.channels
        if self.block is not None:
            return self.data_nbytes + block_scales_nbytes(count)
        scales = scales_nbytes(count, len(self.dtype.parts)) + self.zero_points_nbytes
        if self.rows:
            # They lie in a constant that is looked up too; who else reads the integers has them beside those.
            scales = _ROW_SCALE_NBYTES * count + (scales if self.zero_points_nbytes else 0)
        return self.data_nbytes + scales

    @property
    def zero_points_nbytes(self) -> int:
        """Bytes of zero points, as far as it does not share them with other constants."""
        only_rows = self.rows and self.kinds == (Reading.LOOKUP,)
        if not self.dtype.is_integer or self.block is not None or only_rows:
            return 0
        return zero_points_nbytes(self.channels.channels, self.sharing)

    @property
    def overhead(self) -> int:
        """Bytes beside integers and scales."""
        total = _QUANTIZATION_NBYTES
        name = len(self.item.value.name)
        if self.block is not None:
            if self.native:
                return total + _TENSOR_NBYTES + _BUFFER_NBYTES + name
            shape = 4 * len(self.item.shape)
            return (
                total
                + shape
                + _BLOCK_OPERATORS * _OPERATOR_NBYTES
                + _BLOCK_TENSORS * (_TENSOR_NBYTES + name)
                + 2 * _BUFFER_NBYTES
            )
        # DEQUANTIZE and ADD of another part, and what they give; the constant itself, and its buffer.
        more = 2 * (_OPERATOR_NBYTES + _TENSOR_NBYTES + name) + _TENSOR_NBYTES + name + _BUFFER_NBYTES
        total += (len(self.dtype.parts) - 1) * (more + _QUANTIZATION_NBYTES)
        if Reading.DEQUANTIZE in self.kinds:
            # An operator more; where there is one for float16 already, one of another version.
            total += _OPERATOR_NBYTES + (_TENSOR_NBYTES + name if self.item.expand is None else 0)
        # A lookup by rows takes three operators with an output each, and the tensor of scales.
        each = 4 if self.rows else 1
        total += self.readings.count(Reading.LOOKUP) * each * (_OPERATOR_NBYTES + _TENSOR_NBYTES + name)
        return total

    @property
    def rows(self) -> bool:
        """Whether it is looked up with one scale per row."""
        return any(
            isinstance(form, hybrid.TableLookup) and form.granularity is hybrid.Granularity.CHANNEL
            for form in self.forms
        )


def together(made: Decision) -> bool:
    """Whether its size is judged with the other weights of its operator."""
    return made.item.together > 0 and Reading.HYBRID in made.readings


def group_nbytes(group: Sequence[Decision]) -> int:
    """Returns the bytes that the decisions of one buffer take."""
    distinct = {made.content: made.content_nbytes for made in group}
    return sum(distinct.values()) + sum(made.overhead for made in group)


# The axis of the scales (None for one scale), and the axis over which a kernel would spread a single one
# (None where it does not).
Scales = tuple[int | None, int | None]


def weight_axis(row: hybrid.HybridRow, operator: Operator, rank: int) -> int | None:
    """Returns the channel axis of an operator's weight, counted from the front."""
    axis = row.axis(adj_y=bool(operator.option("adj_y")))
    return axis + rank if axis is not None and axis < 0 else axis


def settle_scales(wanted: Sequence[Sequence[tuple[Scales, AnyForm]]]) -> Scales | None:
    """Chooses the scales with which most readers read the integers as they are; the better ones at a tie."""
    choices = list(dict.fromkeys(scales for forms in wanted for scales, _ in forms))
    if not choices:
        return None

    def readers(settled: Scales) -> int:
        return sum(any(agree(scales, settled) for scales, _ in forms) for forms in wanted)

    # max() keeps the first of equals; forms come best first, so finer scales stand before coarser ones.
    return max(sorted(choices, key=lambda scales: scales[0] is None), key=readers)


def agree(scales: Scales, settled: Scales | None) -> bool:
    """Whether a reader that wants some scales can read settled ones (hybrid.Need.SAME_CHANNEL_AXIS)."""
    if settled is None or scales[0] != settled[0]:
        return False
    return scales[1] == settled[1] or scales[1] is None or settled[1] is None


def scales_axis(form: AnyForm, operator: Operator, rank: int) -> Scales:
    """Returns the scales that a form wants."""
    row = hybrid.hybrid_row(operator.code.name)
    if isinstance(form, hybrid.TableLookup):
        return (0, 0) if form.granularity is hybrid.Granularity.CHANNEL else (None, None)
    if row is None:
        return None, None
    axis = weight_axis(row, operator, rank)
    return (axis if form.granularity is hybrid.Granularity.CHANNEL else None), axis
