"""How one constant is stored: its type, how many scales it has, and how operators get at it."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tfl_rewrite.errors import UsageError, whole_number
from tfl_rewrite.kernels.hybrid import Granularity
from tfl_rewrite.numerics.levels import SCALE_NBYTES, Dtype, block_length, block_scales_nbytes, packed_nbytes

BLOCKS = (32, 64, 128)
"""Elements of a block that may be asked for; XNNPACK's own kernel wants a multiple of 32."""


class Scheme(str, enum.Enum):
    """How operators get at the weights."""

    AUTO = "auto"
    HYBRID = "hybrid"
    DEQUANTIZE = "dequantize"


class Effort(str, enum.Enum):
    """How much work rounding is worth."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a constant is to be stored. Written as ``int4:block:32``, ``int8:channel:dequantize``, ``float16``.

    Attributes:
        dtype: Type of the elements; ``float32`` keeps the constant as it is.
        granularity: How many scales; without a meaning for float types.
        block: Elements that share a scale, for the granularity ``block``; None otherwise.
        scheme: How operators get at it; ``auto`` leaves it to the pass.
    """

    dtype: Dtype = Dtype.INT8
    granularity: Granularity = Granularity.CHANNEL
    block: int | None = None
    scheme: Scheme = Scheme.AUTO

    def __post_init__(self) -> None:
        if (self.granularity is Granularity.BLOCK) != (self.block is not None):
            raise UsageError(
                f"granularity {self.granularity.value} with block {self.block}",
                remedy="give block:32, block:64 or block:128",
            )
        if self.block is not None and self.block not in BLOCKS:
            raise UsageError(
                f"block {self.block}", remedy=f"use one of {', '.join(f'block:{n}' for n in BLOCKS)}"
            )
        if self.block is not None and len(self.dtype.parts) > 1:
            raise UsageError(
                f"{self.dtype.value} in blocks", remedy=f"give {self.dtype.value}:channel, or int4:block:32"
            )
        if self.scheme is Scheme.HYBRID and (not self.dtype.is_integer or len(self.dtype.parts) > 1):
            raise UsageError(f"no kernel reads {self.dtype.value} weights itself", remedy="leave out hybrid")

    @classmethod
    def parse(cls, text: str, *, default: Encoding | None = None) -> Encoding:
        """Reads ``DTYPE[:channel|:tensor|:block:N][:auto|:hybrid|:dequantize]``.

        Args:
            text: The encoding as text.
            default: Gives the granularity and scheme where the text names none.

        Raises:
            UsageError: The text is not of this form.
        """
        base = default if default is not None else cls()
        words = text.strip().split(":")
        try:
            dtype = Dtype(words[0])
        except ValueError:
            raise UsageError(
                f"encoding {text!r}: no type {words[0]!r}",
                remedy=f"use one of {', '.join(item.value for item in Dtype)}",
            ) from None
        granularity, block, scheme = base.granularity, base.block, base.scheme
        rest = words[1:]
        if rest and rest[0] == Granularity.BLOCK.value and dtype.is_integer:
            block = whole_number(rest[1]) if len(rest) > 1 else None
            if block is None:
                raise UsageError(f"encoding {text!r}: how large a block", remedy="write block:32")
            granularity, rest = Granularity.BLOCK, rest[2:]
        elif rest and rest[0] in ("channel", "tensor") and dtype.is_integer:
            granularity, block, rest = Granularity(rest[0]), None, rest[1:]
        if rest and rest[0] in [item.value for item in Scheme]:
            scheme, rest = Scheme(rest[0]), rest[1:]
        if rest:
            raise UsageError(
                f"encoding {text!r}: {':'.join(rest)!r} has no place in it",
                remedy="write such as int8:channel, int4:block:32, int8:tensor:dequantize, float16",
            )
        if not dtype.is_integer:
            granularity, block = Granularity.CHANNEL, None
            scheme = scheme if scheme is not Scheme.HYBRID or ":hybrid" in text else Scheme.AUTO
        return cls(dtype, granularity, block, scheme)

    @property
    def text(self) -> str:
        """The encoding as :meth:`parse` reads it."""
        words = [self.dtype.value]
        if self.dtype.is_integer:
            words.append(self.granularity.value)
            words += [str(self.block)] if self.block is not None else []
        words += [self.scheme.value] if self.scheme is not Scheme.AUTO else []
        return ":".join(words)

    def __str__(self) -> str:
        return self.text

    def nbytes(self, shape: Sequence[int], axis: int | None = 0) -> int:
        """Returns the bytes of a constant in this encoding with its scales; operators do not count.

        Args:
            shape: Dimensions.
            axis: Channel axis, for the granularity ``channel``; None for one scale.
        """
        elements = math.prod(shape)
        data = packed_nbytes(elements, self.dtype.bits)
        if not self.dtype.is_integer:
            return data
        if self.block is not None:
            length = block_length(shape, self.block)
            if length is not None:
                return data + block_scales_nbytes(elements // length)
        channels = 1
        if self.granularity is not Granularity.TENSOR and axis is not None and shape:
            channels = shape[axis]
        return data + SCALE_NBYTES * channels * len(self.dtype.parts)
