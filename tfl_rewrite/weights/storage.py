"""How one constant is stored: the forms that do it, and what is decided of each.

A form is one object: how many bytes it takes, how the bytes are made, what readers are given, and how it is
read from a file. The modules of :mod:`tfl_rewrite.weights.forms` hold them, and nothing else names them:
encodings, decisions, reports and recipes, the search and the command line are made from what lies there.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels.operands import weights_of
from tfl_rewrite.kernels.operators import Form, Granularity, Need, Reading
from tfl_rewrite.kernels.runtimes import Runtime
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Buffer, Model, Operator, Quantization, Tensor
from tfl_rewrite.model.values import packed_nbytes
from tfl_rewrite.numerics.symmetric import Channels, Floats, Int8, Integers, Levels
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.weights.candidates import Candidate
from tfl_rewrite.weights.payloads import Payload
from tfl_rewrite.weights.rounders import Rounder, Work

# What a rewrite adds to the file beside the elements, in bytes: upper estimates, so that "smaller" holds.
QUANTIZATION_NBYTES = 64
TENSOR_NBYTES = 96
OPERATOR_NBYTES = 56
BUFFER_NBYTES = 32
COMPACT = 0.5
"""Of these, what they take in a compact file: 0.35 to 0.68, measured on five models with one scale, in
float16 and in blocks of 32."""

_ZERO_POINT_NBYTES = 8
_SCALE_NBYTES = 4

_OLDEST = ("INT8", "FLOAT32")


@frozen
class Part:
    """One of the tensors whose sum are the integers of a constant.

    Attributes:
        kind: Its type.
        step: What one of its integers counts.
        take: Takes its integers from whole ones; None where they are these.
    """

    kind: str
    step: int = 1
    take: Callable[[Integers], Int8] | None = None


@frozen
class StorageForm(ABC):
    """One way to store the elements of a constant.

    Attributes:
        name: The first word of an encoding, such as ``int4``.
        parts: Types of the tensors that hold the elements, as in ``TensorType``; integers in several parts
            are their sum, each part in steps that the next one divides.
        full_range: Whether readers take the lowest integer, which has no positive counterpart.
        tried: Encodings of it that a search tries, where the file is to be small.
        tried_in_kernels: Those that it tries besides, where memory or time count, for kernels that read them.
    """

    name: str
    parts: tuple[str, ...]
    full_range: bool = True
    tried: tuple[str, ...] = ()
    tried_in_kernels: tuple[str, ...] = ()

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return sum(dtypes.BY_NAME[part].bits for part in self.parts)

    @property
    def is_integer(self) -> bool:
        """Whether it needs scales."""
        return self.parts[0].startswith("INT")

    def divided(self) -> tuple[Part, ...]:
        """Returns the tensors that hold the integers."""
        return (Part(self.parts[0]),)

    @property
    def is_plain(self) -> bool:
        """Whether one tensor of integers holds it, so that kernels and lookups may read it themselves."""
        return self.is_integer and len(self.parts) == 1

    @property
    def is_int8(self) -> bool:
        """Whether the oldest kernels and lookups read it, and the default asks for it."""
        return self.parts == ("INT8",)

    @property
    def keeps(self) -> bool:
        """Whether it leaves a float32 constant as it is."""
        return self.parts == ("FLOAT32",)

    @property
    def levels(self) -> Levels:
        """The integers that DEQUANTIZE and lookups read right; ``(0, 0)`` for floats."""
        low, high = 0, 0
        for part in self.parts if self.is_integer else ():
            bits = dtypes.BY_NAME[part].bits
            own = Levels.full(bits) if self.full_range else Levels.narrow(bits)
            low, high = low * 2**bits + own.low, high * 2**bits + own.high
        return Levels(low, high)

    @property
    def block(self) -> int | None:
        """Elements of a block that shares a scale; None where scales are not by block."""
        return None

    @property
    def is_sparse(self) -> bool:
        """Whether only what is not zero is stored."""
        return False

    @property
    def native(self) -> bool:
        """Whether a kernel reads scales that lie in a tensor of their own."""
        return False

    @property
    def first_runtime(self) -> Runtime:
        """The oldest runtime that expands it; what all runtimes read in some way is as old as they are."""
        late = [part for part in self.parts if part not in _OLDEST]
        first = [min(row.first_runtime for row in DEQUANTIZE.forms if row.dtype == part) for part in late]
        return max(first, default=(0, 0))

    def channels(self, shape: Sequence[int], axis: int | None) -> Channels:
        """Returns how a constant falls into groups with a scale each."""
        return Channels.along(shape, axis)

    def granularity(self, _axis: int | None) -> str:
        """Returns which elements share a scale: ``tensor``, ``channel``, ``block``; ``none`` for floats."""
        return "none"

    def text(self, _axis: int | None) -> str:
        """Returns it as an encoding is written."""
        return self.name

    def data_nbytes(self, elements: int) -> int:
        """Returns the bytes of elements alone."""
        return sum(packed_nbytes(elements, dtypes.BY_NAME[part].bits) for part in self.parts)

    def scales_nbytes(self, count: int) -> int:
        """Returns the bytes of so many scales, without zero points."""
        return _SCALE_NBYTES * count * len(self.parts)

    def nbytes(self, made: Decision) -> int:
        """Returns the bytes of the new elements and their scales."""
        return self.data_nbytes(made.item.elements)

    def zero_points_nbytes(self, _made: Decision) -> int:
        """Returns the bytes of zero points, as far as it does not share them with other constants."""
        return 0

    def overhead(self, made: Decision) -> int:
        """Returns the bytes of tensors and operators that readers need beside the elements and scales."""
        return QUANTIZATION_NBYTES + made.dequantize_nbytes

    @abstractmethod
    def store(self, editor: Editor, made: Decision, work: Work, rounder: Rounder, buffer: Buffer) -> Stored:
        """Gives a buffer the new bytes; adds the buffers of what belongs to them.

        Args:
            editor: Of the model.
            made: The decision.
            work: The constant as it was.
            rounder: Makes integers.
            buffer: Takes the elements.
        """

    def quantization(self, _made: Decision, _stored: Stored) -> Quantization | None:
        """Returns what the tensor says of its scales; None where it says nothing or they are not its own."""
        return None

    @abstractmethod
    def rewire(
        self, editor: Editor, made: Decision, stored: Stored, quantization: Quantization | None
    ) -> None:
        """Gives the tensor its new type, and each reader what it takes.

        Args:
            editor: Of the model.
            made: The decision.
            stored: Where the new bytes are.
            quantization: Scales of the tensor; equal ones are one object, so that they are written once.
        """

    @abstractmethod
    def read(self, tensor: Tensor) -> Floats | None:
        """Returns what a constant of a file means, if it is stored so; else None."""


@functools.cache
def forms() -> Mapping[str, StorageForm]:
    """Returns the forms that an encoding can name: the ``FORMS`` of the modules of ``weights/forms``."""
    folder = Path(__file__).parent / "forms"
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]))
    modules = [importlib.import_module(f"{__package__}.forms.{name}") for name in names]
    found: list[StorageForm] = [form for module in modules for form in module.FORMS]
    # Integers first, those of many bits before those of few; then floats from the smallest on.
    found.sort(key=lambda form: (-form.bits if form.is_integer else form.bits, form.name))
    return {form.name: form for form in found}


@slotted
class Stored:
    """Where the new bytes of a constant are.

    Attributes:
        payload: Makes them.
        buffers: The elements, then what belongs to them: a second part, or scales.
    """

    payload: Payload
    buffers: tuple[Buffer, ...]


def zero_points_nbytes(count: int, sharing: int = 1) -> int:
    """Returns the bytes of one tensor's zero points: all are 0, and the file holds equal vectors once.

    Args:
        count: How many scales.
        sharing: Among how many constants with as many scales they are divided.
    """
    return -(-_ZERO_POINT_NBYTES * count // max(1, sharing))


@slotted(eq=False)
class Decision:
    """What is to become of one candidate.

    Attributes:
        item: The constant.
        readings: How each use gets at it, in the order of ``item.uses``.
        kernels: What each use that reads integers takes, and last what DEQUANTIZE does, if any use needs it.
        axis: Channel axis of the scales; None for one scale, for blocks and for floats.
        form: How the elements are stored.
        sharing: How many constants are likely to have as many scales, and so the same zero points.
    """

    item: Candidate
    readings: list[Reading]
    kernels: list[Form]
    axis: int | None
    form: StorageForm
    sharing: int = 1
    stored_dtype: int = field(init=False)
    """Number of the type that the constant has in the input; rewiring changes the tensor's."""

    def __post_init__(self) -> None:
        self.stored_dtype = self.item.stored.dtype

    @property
    def channels(self) -> Channels:
        """How it falls into channels, each with a scale."""
        return self.form.channels(self.item.shape, self.axis)

    @property
    def levels(self) -> Levels:
        """The integers that all of its readers read right."""
        full = all(form.full_range for form in self.kernels if form.reading is Reading.HYBRID)
        return self.form.levels if full else Levels.narrow(self.form.bits)

    @property
    def kinds(self) -> tuple[Reading, ...]:
        """The readings, each once."""
        return tuple(dict.fromkeys(self.readings))

    @property
    def content(self) -> tuple[StorageForm, Channels | None, Levels]:
        """Equal for decisions of one constant that can share the new bytes."""
        return self.form, self.channels if self.form.is_integer else None, self.levels

    @property
    def nbytes(self) -> int:
        """Bytes of the new elements and their scales."""
        return self.form.nbytes(self)

    @property
    def overhead(self) -> int:
        """Bytes beside elements and scales."""
        return self.form.overhead(self)

    @property
    def dequantize_nbytes(self) -> int:
        """Bytes of a DEQUANTIZE, if any reader needs one; where there is one already, of another version."""
        if Reading.DEQUANTIZE not in self.readings:
            return 0
        return OPERATOR_NBYTES + (self.tensor_nbytes if self.item.expand is None else 0)

    @property
    def tensor_nbytes(self) -> int:
        """Bytes of one tensor more, whose name is made from its own."""
        return TENSOR_NBYTES + len(self.item.value.name)

    @property
    def rows(self) -> bool:
        """Whether it is looked up with one scale per row."""
        return any(
            form.reading is Reading.LOOKUP and form.granularity is Granularity.CHANNEL
            for form in self.kernels
        )


def together(made: Decision) -> bool:
    """Whether its size is judged with the other weights of its operator."""
    return made.item.together > 0 and Reading.HYBRID in made.readings


def group_nbytes(group: Sequence[Decision], share: float) -> int:
    """Returns the bytes of the decisions of one buffer, with a share of what is beside the elements."""
    distinct = {made.content: made.nbytes for made in group}
    return sum(distinct.values()) + int(share * sum(made.overhead for made in group))


def block_useless(
    model: Model, decisions: Sequence[Decision], blocked: dict[int, tuple[str, str]], share: float
) -> None:
    """Blocks constants whose bytes would have to stay, or whose new form is not smaller.

    Args:
        model: Whose constants they are.
        decisions: What is to become of them.
        blocked: Id of each candidate that stays, with ``(rule, reason)``; added to.
        share: Of what tensors and operators take at most, that counts.
    """
    sharing, pinned = model.holders(), model.pinned
    groups: dict[int, list[Decision]] = {}
    for made in decisions:
        groups.setdefault(id(made.item.stored.buffer), []).append(made)
    for key, group in groups.items():
        changing = {id(made.item.stored) for made in group if id(made.item) not in blocked}
        other = next((item for item in sharing[key] if id(item) not in changing), None)
        reason: tuple[str, str] | None = None
        if other is not None:
            reason = ("shared", f"shares its bytes with {other.name!r}, which stays {other.dtype_name}")
        elif key in pinned:
            reason = ("shared", "metadata refers to its bytes")
        elif not any(map(together, group)):
            saved = group[0].item.nbytes - group_nbytes(group, share)
            if saved <= 0:
                kind = group[0].form.name
                reason = ("not-smaller", f"{kind} with its scales and operators takes {-saved} bytes more")
        if reason is not None:
            for made in group:
                blocked.setdefault(id(made.item), reason)
    _block_together(groups, blocked, share)


def _block_together(
    groups: dict[int, list[Decision]], blocked: dict[int, tuple[str, str]], share: float
) -> None:
    """Blocks the weights of operators that take all or none, where all of them are not smaller."""
    operators: dict[int, dict[int, list[Decision]]] = {}
    for key, group in groups.items():
        for made in group:
            if together(made) and id(made.item) not in blocked:
                for use in made.item.uses:
                    operators.setdefault(id(use.operator), {})[key] = group
    for buffers in operators.values():
        saved = sum(group[0].item.nbytes - group_nbytes(group, share) for group in buffers.values())
        if saved <= 0:
            reason = ("not-smaller", f"int8 takes {-saved} bytes more for all weights of its operator")
            for made in (made for group in buffers.values() for made in group):
                blocked.setdefault(id(made.item), reason)


def block_hybrid_biases(decisions: Sequence[Decision], blocked: dict[int, tuple[str, str]]) -> None:
    """Blocks biases of layers whose kernels read integer weights themselves.

    XNNPACK would keep such a bias in float16, and then refuse the whole file (``xnnpack_delegate.cc``).
    """
    hybrid = {
        id(use.operator)
        for made in decisions
        for use, reading in zip(made.item.uses, made.readings, strict=True)
        if reading is Reading.HYBRID
    }
    reason = "hybrid", "kernels that read integer weights want it in float32"
    for made in decisions:
        readers = [use.operator for use in made.item.uses] if made.item.is_bias else []
        stored = (tensor.dtype_name for operator in readers for tensor in weights_of(operator))
        if any(id(operator) in hybrid for operator in readers) or not all("FLOAT" in kind for kind in stored):
            blocked.setdefault(id(made.item), reason)


def fit(editor: Editor, made: Decision, operator: Operator, form: Form) -> None:
    """Gives an operator what its hybrid kernel needs."""
    row = row_of(operator)
    if Need.FLOAT_BIAS in row.needs:
        editor.ensure_bias(made.item.subgraph, operator, made.item.shape[row.scales_axis() or 0])
    if form.asymmetric_inputs is not None:
        editor.set_option(operator, "asymmetric_quantize_inputs", form.asymmetric_inputs)
