"""Small models that stand before an input of another model, or behind an output: pre- and post-processing.

Each is a stage: a model of one or two operators, and what it computes written in numpy, so that its kernels
are judged by something else than themselves. A stage gets what callers give and gives what the next one
takes, in floats; where a model takes or gives integers, `between` makes what converts.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.errors import UnsupportedError, UsageError
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.kernels.operators import OperatorRow
from tfl_rewrite.kernels.reads import needed_version
from tfl_rewrite.kernels.table import (
    ARG_MAX,
    CAST,
    DEQUANTIZE,
    MUL,
    QUANTIZE,
    RESIZE_BILINEAR,
    SOFTMAX,
    SUB,
    TOPK_V2,
)
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Buffer, Model, Quantization, Signature, SubGraph, Tensor, new_record
from tfl_rewrite.options.option import check_options, naming, option, options_of, read_options, unknown

Array = npt.NDArray[Any]
_REALS = ("FLOAT32",)
_INTEGERS = ("INT8", "UINT8", "INT16")
MOST_SIZE = 1 << 14
"""Rows or columns of a picture."""


@dataclass(frozen=True, slots=True)
class Made:
    """A stage for one tensor.

    Attributes:
        name: For people.
        model: What computes it; its subgraph has one input.
        expected: The same in numpy: takes the input, gives the outputs.
        min_snr: The least ratio to that, in dB.
    """

    name: str
    model: Model
    expected: Callable[[Array], list[Array]]
    min_snr: float = 100.0


class _Small:
    """A small model under construction."""

    def __init__(self, given: Tensor) -> None:
        self.graph = SubGraph([], [], [], [], None)
        self.model = Model([], [self.graph], [Buffer()])
        self.editor = Editor(self.model)
        given.buffer = self.editor.sentinel()
        self.given = self.editor.add_tensor(self.graph, given)
        self.graph.inputs = [given]

    def constant(self, name: str, values: Array) -> Tensor:
        kind = next(row.value for row in dtypes.BY_VALUE.values() if row.numpy == values.dtype.str)
        buffer = self.editor.constant(values.tobytes())
        return self.editor.add_tensor(self.graph, Tensor(name, values.shape, kind, buffer))

    def add(self, row: OperatorRow, inputs: list[Tensor], *outputs: Tensor, **options: object) -> Tensor:
        """Adds an operator; returns its first output."""
        for output in outputs:
            output.buffer = self.editor.sentinel()
            self.editor.add_tensor(self.graph, output)
        if row.options is None:
            operator = self.editor.plain(row, 1, inputs, outputs[0])
        else:
            operator = self.editor.builtin(row, 1, [*inputs], outputs[0], **options)
        operator.outputs[:] = outputs
        self.graph.operators.append(operator)
        self.editor.stamp(operator, needed_version(operator) or 1)
        return outputs[0]

    def done(self, *outputs: Tensor) -> Model:
        self.graph.outputs = list(outputs)
        self.editor.finish()
        return self.model


def _like(tensor: Tensor, name: str, kind: str = "FLOAT32") -> Tensor:
    """A tensor of the same shape, without bytes."""
    return Tensor(name, tensor.shape, dtypes.BY_NAME[kind].value, Buffer(), signature=tensor.signature)


def sign(model: Model, key: str | None, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Gives a stage a signature, so that arguments of the whole keep their names."""
    graph = model.subgraphs[0]

    def rows(names: Sequence[str], tensors: Sequence[Tensor]) -> list[tuple[Record, Tensor]]:
        return [
            (new_record("TensorMap").replace(name=name), tensor)
            for name, tensor in zip(names, tensors, strict=True)
        ]

    model.signatures.append(Signature(key, graph, rows(inputs, graph.inputs), rows(outputs, graph.outputs)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(ABC):
    """Something small before an input or behind an output.

    Attributes:
        name: What it is called.
        short: The option that may be given without its name.
        before: Whether it stands before an input.
        tensor: The input or output, by its name; None for the only one.
        asked: The option and its value that asked for it, with a colon, for messages.
    """

    name: ClassVar[str]
    short: ClassVar[str] = ""
    before: ClassVar[bool] = True

    tensor: str | None = option(None, "which input or output (default: the only one)", metavar="NAME")
    asked: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Brings the options into form.

        Raises:
            UsageError: A value does not fit.
        """
        check_options(self)

    @abstractmethod
    def make(self, like: Tensor) -> Made:
        """Makes the model.

        Args:
            like: What it must give, or what it gets where it stands behind an output; floats.

        Raises:
            UnsupportedError: It is not possible for such a tensor.
        """

    def names(self, argument: str) -> list[str]:
        """Returns what an argument of a signature is called behind it."""
        return [argument]


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalize(Stage):
    """Takes the mean off and divides by the standard deviation."""

    name: ClassVar[str] = "normalize"

    mean: tuple[str, ...] = option((), "what is taken off: one number, or one a channel", metavar="X+Y+Z")
    std: tuple[str, ...] = option((), "what is divided by: one number, or one a channel", metavar="X+Y+Z")

    def make(self, like: Tensor) -> Made:
        """See `Stage.make`."""
        mean, std = self._numbers("mean", like, 0.0), self._numbers("std", like, 1.0)
        if not std.all():
            raise UsageError("std of normalize is 0", remedy="give what the values are divided by")
        small = _Small(_like(like, like.name))
        factor = (1 / std.astype(np.float64)).astype(np.float32)
        result = small.given
        if mean.any():
            centred = _like(like, f"{like.name}_centred")
            inputs = [result, small.constant(f"{like.name}_mean", mean)]
            result = small.add(SUB, inputs, centred)
        made = _like(like, f"{like.name}_normalized")
        result = small.add(MUL, [result, small.constant(f"{like.name}_scale", factor)], made)

        def expected(values: Array) -> list[Array]:
            return [((values.astype(np.float64) - mean) / std).astype(np.float32)]

        return Made(self.name, small.done(result), expected)

    def _numbers(self, name: str, like: Tensor, default: float) -> Array:
        texts = getattr(self, name) or (str(default),)
        try:
            values = np.array([float(text) for text in texts], "<f4")
        except ValueError:
            raise UsageError(f"{name} of normalize is {'+'.join(texts)!a}, no number") from None
        channels = (like.shape or (0,))[-1]
        if not np.isfinite(values).all() or len(values) not in (1, channels):
            raise UsageError(
                f"{name} of normalize is {'+'.join(texts)!a}",
                remedy=f"give one number, or {channels}: one for each channel of {like.name!r}",
            )
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Cast(Stage):
    """Takes integers as they are: 200 becomes 200.0."""

    name: ClassVar[str] = "cast"
    short: ClassVar[str] = "type"

    type: str = option("uint8", "what is taken", choices=("uint8", "int8", "int16", "int32"))

    def make(self, like: Tensor) -> Made:
        """See `Stage.make`."""
        kind = dtypes.BY_NAME[self.type.upper()]
        small = _Small(_like(like, like.name, kind.name))
        made = _like(like, f"{like.name}_float")
        result = small.add(CAST, [small.given], made, in_data_type=kind.value, out_data_type=made.dtype)
        return Made(self.name, small.done(result), lambda x: [x.astype(np.float32)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Resize(Stage):
    """Resizes pictures (bilinear, half-pixel centres, as ``tf.image.resize`` does)."""

    name: ClassVar[str] = "resize"
    short: ClassVar[str] = "to"

    to: str | None = option(
        None, "rows and columns that the model takes, such as 224x224 (default: as it says)", metavar="HxW"
    )
    source: str | None = option(
        None, "rows and columns that are given, such as 480x640 (default: any)", metavar="HxW"
    )

    def make(self, like: Tensor) -> Made:
        """See `Stage.make`."""
        shape = like.shape or ()
        if len(shape) != 4:
            raise UnsupportedError(f"{like.name!r} has {len(shape)} axes: resize is for pictures, NHWC")
        sizes = (like.signature or shape)[1:3]
        wanted = (sizes[0], sizes[1]) if self.to is None else _size(self.to)
        if -1 in wanted:
            raise UsageError(f"{like.name!r} takes pictures of any size", remedy="give resize:HxW")
        if any(size not in (-1, given) for size, given in zip(sizes, wanted, strict=True)):
            raise UsageError(
                f"{like.name!r} takes pictures of {sizes[0]}x{sizes[1]}, not {wanted[0]}x{wanted[1]}",
                remedy=f"give resize:{sizes[0]}x{sizes[1]}, or resize:source=HxW for the size that is given",
            )
        given = (1, 1) if self.source is None else _size(self.source)
        free = (-1, -1) if self.source is None else given
        outer = Tensor(like.name, (shape[0], *given, shape[3]), like.dtype, Buffer())
        batch = (like.signature or shape)[0]
        if -1 in (batch, *free):
            outer.signature = (batch, *free, (like.signature or shape)[3])
        small = _Small(outer)
        made = Tensor(f"{like.name}_resized", (shape[0], *wanted, shape[3]), like.dtype, Buffer())
        made.signature = None if like.signature is None else (batch, *wanted, like.signature[3])
        target = small.constant(f"{like.name}_size", np.array(wanted, "<i4"))
        result = small.add(RESIZE_BILINEAR, [outer, target], made, half_pixel_centers=True)
        return Made(self.name, small.done(result), lambda x: [_resized(x, wanted)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Softmax(Stage):
    """Makes probabilities of scores, over the last axis."""

    name: ClassVar[str] = "softmax"
    before: ClassVar[bool] = False

    def make(self, like: Tensor) -> Made:
        """See `Stage.make`."""
        _check_rank(like, self.name)
        small = _Small(_like(like, like.name))
        result = small.add(SOFTMAX, [small.given], _like(like, f"{like.name}_softmax"), beta=1.0)
        return Made(self.name, small.done(result), _softmax)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArgMax(Stage):
    """Gives the number of the largest of the last axis, int32."""

    name: ClassVar[str] = "argmax"
    before: ClassVar[bool] = False

    def make(self, like: Tensor) -> Made:
        """See `Stage.make`."""
        _check_rank(like, self.name)
        small = _Small(_like(like, like.name))
        made = _without_last(like, f"{like.name}_argmax", "INT32")
        axis = small.constant(f"{like.name}_axis", np.array(-1, "<i4"))
        result = small.add(ARG_MAX, [small.given, axis], made, output_type=dtypes.INT32.value)
        return Made(self.name, small.done(result), lambda x: [x.argmax(axis=-1).astype(np.int32)])


@dataclass(frozen=True, kw_only=True, slots=True)
class TopK(Stage):
    """Gives the largest of the last axis, the largest first, and their numbers."""

    name: ClassVar[str] = "top-k"
    short: ClassVar[str] = "k"
    before: ClassVar[bool] = False

    k: int = option(5, "how many", metavar="K", bounds=(1, 1 << 20))

    def make(self, like: Tensor) -> Made:
        """See `Stage.make`."""
        _check_rank(like, self.name)
        last = (like.signature or like.shape or (0,))[-1]
        if 0 <= last < self.k:
            raise UsageError(
                f"{like.name!r} has {last} values a row, fewer than {self.k}", remedy=f"give top-k:{last}"
            )
        small = _Small(_like(like, like.name))
        made = [
            _without_last(like, f"{like.name}_{name}", kind, self.k)
            for name, kind in (("values", "FLOAT32"), ("indices", "INT32"))
        ]
        count = small.constant(f"{like.name}_k", np.array(self.k, "<i4"))
        small.add(TOPK_V2, [small.given, count], *made)
        return Made(self.name, small.done(*made), self._expected)

    def names(self, argument: str) -> list[str]:
        """See `Stage.names`."""
        return [f"{argument}_values", f"{argument}_indices"]

    def _expected(self, values: Array) -> list[Array]:
        # The first of equal ones comes first.
        order = np.argsort(-values, axis=-1, kind="stable")[..., : self.k]
        return [np.take_along_axis(values, order, axis=-1), order.astype(np.int32)]


STAGES: dict[str, type[Stage]] = {
    kind.name: kind for kind in (Normalize, Cast, Resize, Softmax, ArgMax, TopK)
}


def stage_of(text: str, *, before: bool) -> Stage:
    """Reads such as ``normalize:mean=127.5,std=127.5``, ``cast:uint8`` or ``top-k:5``.

    Args:
        text: A name, and options behind a colon; one may go without its name.
        before: Whether it is to stand before an input.

    Raises:
        UsageError: There is no such stage or option, or a value does not fit.
    """
    asked = f"--{'prepend' if before else 'append'} {text}:"
    with naming(asked):
        name, _, rest = text.partition(":")
        known = {key: kind for key, kind in STAGES.items() if kind.before is before}
        if name not in known:
            raise unknown("stage", name, known)
        kind = known[name]
        first, comma, more = rest.partition(",")
        if first and "=" not in first and kind.short:
            rest = f"{kind.short}={first}{comma}{more}"
        return kind(asked=asked, **read_options(rest, options_of(kind), name))


def between(given: Tensor, taken: Tensor) -> Made | None:
    """Makes what stands between two tensors of different types; None where they are of one.

    Raises:
        UnsupportedError: Nothing makes the one of the other.
    """
    if given.dtype == taken.dtype and _grid(given) == _grid(taken):
        return None
    if not all(_is_real(item) for item in (given, taken)):
        raise UnsupportedError(
            f"{given.name!r} is {_type(given)}, and {taken.name!r} takes {_type(taken)}",
            remedy="floats, and integers with one scale, are converted; nothing else is",
        )
    small = _Small(replace(_like(given, given.name, given.dtype_name), quantization=given.quantization))
    is_float = taken.dtype_name in _REALS
    made = Tensor(
        f"{given.name}_{taken.dtype_name.lower()}",
        given.shape,
        taken.dtype,
        Buffer(),
        None if is_float else taken.quantization,
        signature=given.signature,
    )
    result = small.add(DEQUANTIZE if is_float else QUANTIZE, [small.given], made)
    one, other, kind = _grid(given), None if is_float else _grid(taken), taken.dtype_name

    def expected(values: Array) -> list[Array]:
        return [_converted(values, one, other, kind)]

    # A value between two steps may go to either.
    least = 100.0 if is_float else 30.0
    return Made("dequantize" if is_float else "quantize", small.done(result), expected, least)


def as_float(tensor: Tensor) -> Tensor:
    """Returns what a tensor is in floats, for the stage beside it; itself where it is none of integers."""
    if tensor.dtype_name not in _REALS and _is_real(tensor):
        return _like(tensor, tensor.name)
    if tensor.dtype_name not in _REALS:
        raise UnsupportedError(
            f"{tensor.name!r} is {_type(tensor)}", remedy="stages are for floats, and integers with one scale"
        )
    return tensor


def _is_real(tensor: Tensor) -> bool:
    return tensor.dtype_name in _REALS or (tensor.dtype_name in _INTEGERS and _grid(tensor) is not None)


def _grid(tensor: Tensor) -> tuple[float, int] | None:
    """The scale and the zero point of all values; None where there are none."""
    details: Quantization | None = tensor.quantization
    if details is None or not details.is_quantized:
        return None
    if details.scale is None or len(details.scale) != 1:
        raise UnsupportedError(f"{tensor.name!r} has more than one scale")
    return float(details.scale[0]), int(details.zero_point[0]) if details.zero_point else 0


def _type(tensor: Tensor) -> str:
    grid = _grid(tensor)
    scale = "" if grid is None else f" with scale {grid[0]:g} and zero point {grid[1]}"
    return tensor.dtype_name.lower() + scale


def _converted(
    values: Array, one: tuple[float, int] | None, other: tuple[float, int] | None, kind: str
) -> Array:
    real = values.astype(np.float64)
    if one is not None:
        real = (real - one[1]) * one[0]
    if other is None:
        return real.astype(np.float32)
    limits = np.iinfo(kind.lower())
    steps = np.rint(real / other[0]) + other[1]
    return np.asarray(np.clip(steps, limits.min, limits.max).astype(kind.lower()))


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    sizes = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(1 <= size <= MOST_SIZE for size in sizes):
        raise UsageError(
            f"{text!a} is not a size of a picture", remedy="give rows and columns, such as 224x224"
        )
    return sizes


def _resized(values: Array, size: tuple[int, int]) -> Array:
    result = values.astype(np.float64)
    for axis, wanted in zip((1, 2), size, strict=True):
        count = result.shape[axis]
        # In float32, as the kernel has them: of large pictures that is another place (resize_bilinear.h).
        scale, half = np.float32(count) / np.float32(wanted), np.float32(0.5)
        places = (np.arange(wanted, dtype=np.float32) + half) * scale - half
        low = np.floor(places)
        share = (places - low).astype(np.float64).reshape([-1 if other == axis else 1 for other in range(4)])
        near, far = (np.clip(low + step, 0, count - 1).astype(int) for step in (0, 1))
        result = result.take(near, axis) * (1 - share) + result.take(far, axis) * share
    return result.astype(np.float32)


def _softmax(values: Array) -> list[Array]:
    real = values.astype(np.float64)
    powers = np.exp(real - real.max(axis=-1, keepdims=True))
    return [(powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)]


def _check_rank(like: Tensor, name: str) -> None:
    if not like.shape:
        raise UnsupportedError(
            f"{name} is for rows of values, and {like.name!r} declares no shape",
            remedy="where the model is run (--verify auto), the shape that it gives counts",
        )


def _without_last(like: Tensor, name: str, kind: str, *more: int) -> Tensor:
    shape, signature = like.shape or (), like.signature
    return Tensor(
        name,
        (*shape[:-1], *more),
        dtypes.BY_NAME[kind].value,
        Buffer(),
        signature=None if signature is None else (*signature[:-1], *more),
    )
