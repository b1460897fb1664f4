"""How one constant is stored: its type, how many scales it has, and how operators get at it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tfl_rewrite.errors import UsageError, whole_number
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.numerics.symmetric import Levels

BLOCKS = (32, 64, 128)
"""Elements of a block that may be asked for; XNNPACK's own kernel wants a multiple of 32."""


class Dtype(str, enum.Enum):
    """What the elements of a constant become."""

    INT8 = "int8"
    INT6 = "int6"
    INT4 = "int4"
    INT2 = "int2"
    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return _BITS[self]

    @property
    def parts(self) -> tuple[Dtype, ...]:
        """The types that it is stored as: itself, or for ``int6`` an int4 and an int2 that add up."""
        return (Dtype.INT4, Dtype.INT2) if self is Dtype.INT6 else (self,)

    @property
    def tensor_type(self) -> str:
        """Its name in ``TensorType``; of the first part."""
        return self.parts[0].value.upper()

    @property
    def levels(self) -> Levels:
        """All that it can hold, or the sum of its parts."""
        low, high = 0, 0
        for part in self.parts:
            own = Levels.full(part.bits)
            # Each part counts in steps that the next one divides.
            low, high = low * 2**part.bits + own.low, high * 2**part.bits + own.high
        return Levels(low, high)

    @property
    def is_integer(self) -> bool:
        """Whether it needs scales."""
        return self.value.startswith("int")


_BITS = {
    Dtype.INT8: 8,
    Dtype.INT6: 6,
    Dtype.INT4: 4,
    Dtype.INT2: 2,
    Dtype.FLOAT16: 16,
    Dtype.FLOAT32: 32,
}


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
