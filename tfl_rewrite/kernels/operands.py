"""Whether operators have the operands that their kernels need.

The facts are :data:`tfl_rewrite.kernels.operators.OPERANDS`.
"""

from __future__ import annotations

from tfl_rewrite.kernels import operators
from tfl_rewrite.kernels.operators import MANY
from tfl_rewrite.kernels.reads import input_of
from tfl_rewrite.model.ir import Operator, Tensor


def wrong_operands(operator: Operator) -> str | None:
    """Returns what is wrong with the number or the presence of a builtin operator's operands, or None."""
    row = operators.OPERANDS.get(operator.code.name)
    if row is None or operator.code.custom is not None:
        return None
    for what, items, allowed in (
        ("input", operator.inputs, row.inputs),
        ("output", operator.outputs, row.outputs),
    ):
        if len(items) not in allowed:
            count = f"{len(items) or 'no'} {what}{'' if len(items) == 1 else 's'}"
            return f"has {count}; its kernel takes {_said(allowed)}"
        absent = [
            position
            for position, tensor in enumerate(items)
            if tensor is None and (what == "output" or position not in row.optional)
        ]
        if absent:
            return f"{what} {absent[0]} is absent (-1); its kernel needs it"
    return None


def lacks_shape(operator: Operator) -> bool:
    """Whether neither an input nor an option tells a RESHAPE its shape, and one element is not all there is.

    Its kernel takes a vector of int32 as the second input, else ``new_shape``; without either it makes a
    scalar (``tflite/kernels/reshape.cc``).
    """
    if operator.code.name != "RESHAPE" or operator.code.custom is not None:
        return False
    source, shape = input_of(operator, 0), input_of(operator, 1)
    if shape is not None and shape.dtype_name == "INT32" and len(shape.shape or ()) == 1:
        return False
    if operator.option("new_shape"):
        return False
    known = source is not None and source.shape is not None and -1 not in (source.signature or ())
    return not (known and source is not None and source.elements == 1)


def recorded_shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    """Returns the shape that a file records for a tensor, with one -1 for a length that is not known.

    None where it is not recorded, or more than one length is unknown.
    """
    if tensor is None or tensor.shape is None:
        return None
    shape = tensor.signature if tensor.signature is not None else tensor.shape
    if sum(size == -1 for size in shape) > 1 or any(size < -1 or size == 0 for size in shape):
        return None
    return tuple(shape)


def _said(allowed: range | tuple[int, ...]) -> str:
    if isinstance(allowed, tuple):
        return f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"
    if allowed.stop == MANY:
        return f"{allowed.start} or more"
    if len(allowed) == 1:
        return str(allowed.start)
    return f"{allowed.start} to {allowed[-1]}"
