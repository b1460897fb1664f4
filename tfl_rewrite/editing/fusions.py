"""The fusions of the pass ``fuse``: what is written as several operators and is one.

Each is a pattern and a maker (:mod:`tfl_rewrite.editing.replacements`). Activation functions that frameworks
spell out, in the forms that converters leave: Keras' PReLU, ``0.5 * (x - |x|)``, the two forms of GELU, the
stable softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.patterns import Constant, Either, Match, Op, Part, Value, op
from tfl_rewrite.editing.replacements import Fusion
from tfl_rewrite.kernels.operators import OperatorRow
from tfl_rewrite.kernels.reads import needed_version
from tfl_rewrite.kernels.table import (
    ADD,
    CLAMPS,
    DIV,
    FUSING,
    GELU,
    MAXIMUM,
    MINIMUM,
    MUL,
    POW,
    RELU,
    SQUARE,
    TANH,
    row_named,
    row_of,
)
from tfl_rewrite.model.ir import Operator, schema

_X = Value("x")
_ACTIVATIONS = schema().enums["ActivationFunctionType"].values
_NAMES = {number: name for name, number in _ACTIVATIONS.items()}
_UNBOUNDED = -math.inf, math.inf


def _one(row: OperatorRow, match: Match, editor: Editor, **options: object) -> list[Operator]:
    """Returns one operator that makes of ``x`` what the match gives out."""
    make = partial(editor.builtin, row, 1) if row.options else partial(editor.plain, row, 1)
    return [stamped(make([match.tensors["x"]], match.output, **options), editor)]


def stamped(operator: Operator, editor: Editor) -> Operator:
    """Asks for the version that an operator needs; never a lower one than it has."""
    editor.stamp(operator, needed_version(operator) or 1)
    return operator


def product(*factors: Part) -> Either:
    """Returns the product of two or three factors, whatever is multiplied first."""
    if len(factors) == 2:
        return Either((op(MUL, *factors),))
    one, two, three = factors
    orders = ((one, two, three), (two, one, three), (three, one, two))
    return Either(tuple(op(MUL, first, op(MUL, *rest)) for first, *rest in orders))


def _roots(part: Either) -> tuple[Op, ...]:
    return tuple(item for item in part.choices if isinstance(item, Op))


# -- Activations behind what can do them as well -------------------------------------------------------------


def _width(row: OperatorRow) -> float:
    """Returns how much a clamp lets through: what has two bounds is not to be taken for one with one."""
    assert row.clamp is not None
    return row.clamp[1] - row.clamp[0]


def _spelled(row: OperatorRow) -> Fusion:
    """Makes a clamp of MAXIMUM and MINIMUM."""
    assert row.clamp is not None
    low, high = (Constant(near=bound) for bound in row.clamp)
    if row.clamp[1] == math.inf:
        patterns = [op(MAXIMUM, _X, low)]
    else:
        patterns = [op(MINIMUM, op(MAXIMUM, _X, low), high), op(MAXIMUM, op(MINIMUM, _X, high), low)]
        if row.clamp[0] == 0:
            patterns.append(op(MINIMUM, op(RELU, _X), high))
    return Fusion(kind="activation", patterns=tuple(patterns), make=partial(_one, row), exact=True)


def _absorb(match: Match, editor: Editor) -> Sequence[Operator] | None:
    """Has an operator do the work of the clamp behind it, on top of that of its own one."""
    host, clamp = match.nodes["host"], row_of(match.operators[-1]).clamp
    name = _NAMES.get(host.option("fused_activation_function") or 0, "")
    own = _UNBOUNDED if name == "NONE" else row_named(name).clamp
    assert clamp is not None
    if own is None:
        return None
    both = max(own[0], clamp[0]), min(own[1], clamp[1])
    number = next((_ACTIVATIONS.get(row.name) for row in CLAMPS if row.clamp == both), None)
    if number is None:
        return None
    editor.set_option(host, "fused_activation_function", number)
    host.outputs = [match.output]
    return [stamped(host, editor)]


_HOST = Op(FUSING, (), name="host", activates=True, more=True)
_BEHIND = Fusion(
    kind="activation",
    patterns=(Op(CLAMPS, (_HOST,)),),
    make=_absorb,
    exact=True,
    known_to_xnnpack=True,
)

# -- Activation functions that were spelled out --------------------------------------------------------------

_HALF, _UNIT = Constant(near=0.5), Constant(near=1.0)
_SQUARED = Either((op(MUL, _X, _X), op(SQUARE, _X)))
_CUBED = Either((*_roots(product(_X, _X, _X)), *_roots(product(_X, _SQUARED)), op(POW, _X, Constant(near=3))))
_CUBIC = Constant(near=0.044715)
_STRETCH = Constant(near=math.sqrt(2 / math.pi))
_TANH_OF = Either(
    (
        # x + 0.044715 x^3, and the same with x taken out.
        op(
            MUL,
            _STRETCH,
            op(ADD, _X, Either((*_roots(product(_CUBIC, _CUBED)), *_roots(product(_CUBIC, _X, _SQUARED))))),
        ),
        *_roots(product(_STRETCH, _X, op(ADD, _UNIT, op(MUL, _CUBIC, _SQUARED)))),
    )
)
_ERF = "FlexErf"
_SHRUNK = Either((op(MUL, _X, Constant(near=math.sqrt(0.5))), op(DIV, _X, Constant(near=math.sqrt(2)))))


def _gelu(step: Op, *, approximate: bool) -> Fusion:
    """GELU: half of ``x``, times one more than a step from -1 to 1."""
    return Fusion(
        kind="gelu",
        patterns=_roots(product(_HALF, _X, op(ADD, _UNIT, step))),
        make=partial(_one, GELU, approximate=approximate),
    )


FUSIONS: tuple[Fusion, ...] = (
    _gelu(op(TANH, _TANH_OF), approximate=True),
    _gelu(op(_ERF, _SHRUNK), approximate=False),
    *map(_spelled, sorted((row for row in CLAMPS if row.name in _ACTIVATIONS), key=_width)),
    _BEHIND,
)
"""All of them, in the order of preference: what an activation was spelled out in is not fused apart."""

KINDS = tuple(dict.fromkeys(item.kind for item in FUSIONS))
"""What users call them."""
