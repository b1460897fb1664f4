"""fuse: operators that are parts of one become that one.

Goes: operators that together compute what one operator computes, where nobody else reads what lies between
them; the constants that nothing reads then. Each kind is a pattern and a maker
(:mod:`tfl_rewrite.editing.replacements`): layers with what surrounds them, and activation functions that
frameworks spell out, in the forms that converters leave: Keras' PReLU, ``0.5 * (x - |x|)``, the two forms of
GELU, the stable softmax. Stays: names, types and shapes of inputs, outputs and arguments of signatures;
operators that keep state, draw random numbers, run subgraphs or are custom, but for a FlexErf inside of a
GELU; integers, but for padding. Sizes of inputs are those that the file states: padding, means and products
fit them, and a caller who gives an input another size than that may get other numbers, or another shape. May
differ, by the last bits: what an activation function, a mean or a product gives that was spelled out. Refuses
when metadata refers to what would move (:mod:`tfl_rewrite.editing.metadata`). A second run finds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from tfl_rewrite.editing.base import Change, Context, Edit, Effect, Pass, PassResult
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.layer_fusions import LAYER_FUSIONS
from tfl_rewrite.editing.metadata import positions_moved
from tfl_rewrite.editing.patterns import INTEGERS, Constant, Either, Match, Op, Part, Value, op
from tfl_rewrite.editing.replacements import Fusion, Making, Refused, fuse, stamped
from tfl_rewrite.kernels.operands import ACTIVATIONS, fused_clamp
from tfl_rewrite.kernels.operators import OperatorRow
from tfl_rewrite.kernels.table import (
    ABS,
    ADD,
    CLAMPS,
    DIV,
    EXP,
    FUSING,
    GELU,
    LEAKY_RELU,
    MAXIMUM,
    MINIMUM,
    MUL,
    NEG,
    POW,
    PRELU,
    REDUCE_MAX,
    RELU,
    SOFTMAX,
    SQUARE,
    SUB,
    SUM,
    TANH,
    row_named,
    row_of,
)
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Operator, Tensor
from tfl_rewrite.options.option import option

_X = Value("x")


def _one(row: OperatorRow, match: Match, editor: Editor, **options: object) -> list[Operator]:
    """Returns one operator that makes of ``x``, element by element, what the match gives out."""
    make = partial(editor.builtin, row, 1) if row.options else partial(editor.plain, row, 1)
    return [stamped(make([match.tensors["x"]], match.output, **options), editor)]


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
    return Fusion(
        kind="activation", patterns=tuple(patterns), make=partial(_one, row), within="x", exact=True
    )


def _absorb(match: Match, editor: Editor) -> Sequence[Operator] | None:
    """Has an operator do the work of the clamp behind it, on top of that of its own one."""
    host, clamp = match.nodes["host"], row_of(match.operators[-1]).clamp
    own = fused_clamp(host)
    assert clamp is not None
    if own is None:
        return None
    both = max(own[0], clamp[0]), min(own[1], clamp[1])
    number = next((ACTIVATIONS.get(row.name) for row in CLAMPS if row.clamp == both), None)
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
        within="x",
    )


def _prelu(match: Match, editor: Editor, *, factor: float, most: float = math.inf) -> Making:
    """PRELU, or LEAKY_RELU where all channels share a factor.

    Args:
        factor: What the captured constant is multiplied with.
        most: The largest factor with which it is the same.
    """
    x, alpha = match.tensors["x"], match.arrays["alpha"] * np.float32(factor)
    if not np.isfinite(alpha).all() or alpha.max(initial=-math.inf) > most:
        return None
    if alpha.size == 1:
        return _one(LEAKY_RELU, match, editor, alpha=float(alpha.flat[0]))
    rank = len(match.shapes[x] or ())
    if rank > _PRELU_RANK:
        return Refused(f"PRELU takes at most {_PRELU_RANK} axes on older runtimes", "axes")
    if alpha.size != alpha.shape[-1]:
        return Refused("it has more slopes than one for each channel, as PRELU has them", "slopes")
    # As converters write it, and as other delegates want it: without the axis of batches.
    shape = (*(1,) * max(rank - 2, 0), alpha.size)
    name = f"{match.tensors['alpha'].name}_slopes"
    slopes = Tensor(name, shape, dtypes.FLOAT32.value, editor.constant(alpha.astype("<f4").tobytes()))
    editor.add_tensor(match.subgraph, slopes)
    return [stamped(editor.plain(PRELU, 1, [x, slopes], match.output), editor)]


_PRELU_RANK = 4
"""Runtime 2.14 ends the process with more (measured); 2.3 takes any."""
_ALPHA, _ZERO, _NEGATED = Constant("alpha"), Constant(near=0.0), op(NEG, _X)
_ABOVE = Either((op(RELU, _X), op(MAXIMUM, _X, _ZERO)))
_BELOW = Either((op(NEG, op(RELU, _NEGATED)), op(MINIMUM, _X, _ZERO)))
_TWICE_BELOW = op(SUB, _X, op(ABS, _X))
_SLOPED = (
    # By what the constant is to be multiplied, and the forms.
    (1.0, op(ADD, _ABOVE, op(MUL, _ALPHA, _BELOW))),
    (-1.0, op(ADD, _ABOVE, op(MUL, _ALPHA, op(RELU, _NEGATED)))),
    (1.0, op(SUB, _ABOVE, op(MUL, _ALPHA, op(RELU, _NEGATED)))),
    (1.0, op(ADD, _ABOVE, op(NEG, op(MUL, _ALPHA, op(RELU, _NEGATED))))),
    (1.0, op(ADD, _ABOVE, product(_HALF, _ALPHA, _TWICE_BELOW))),
    (2.0, op(ADD, _ABOVE, op(MUL, _ALPHA, _TWICE_BELOW))),
)


def _softmax(match: Match, editor: Editor) -> Making:
    """SOFTMAX over the last axis, which is the only one that it has."""
    shape = match.shapes[match.tensors["x"]]
    last = {-1} if shape is None else {-1, len(shape) - 1}
    axes = match.arrays["axis"], match.arrays["axes"]
    if any(item.size != 1 or int(item.flat[0]) not in last for item in axes):
        return Refused("its sum is not known to go over the last axis", "axis")
    return _one(SOFTMAX, match, editor, beta=1.0)


_LARGEST = op(REDUCE_MAX, _X, Constant("axis", types=INTEGERS), options={"keep_dims": True})
_EXPONENTIAL = op(EXP, op(SUB, _X, _LARGEST), name="exp")
_TOTAL = op(SUM, _EXPONENTIAL, Constant("axes", types=INTEGERS), options={"keep_dims": True})

FUSIONS: tuple[Fusion, ...] = (
    *(
        Fusion(kind="prelu", patterns=(pattern,), make=partial(_prelu, factor=factor), within="x")
        for factor, pattern in _SLOPED
    ),
    Fusion(
        kind="prelu",
        patterns=(op(MAXIMUM, _X, op(MUL, _X, _ALPHA)),),
        make=partial(_prelu, factor=1.0, most=1.0),
        within="x",
        exact=True,
    ),
    Fusion(
        kind="softmax",
        patterns=(op(DIV, _EXPONENTIAL, _TOTAL),),
        make=_softmax,
        within="x",
    ),
    _gelu(op(TANH, _TANH_OF), approximate=True),
    _gelu(op(_ERF, _SHRUNK), approximate=False),
    *LAYER_FUSIONS,
    *map(_spelled, sorted((row for row in CLAMPS if row.name in ACTIVATIONS), key=_width)),
    _BEHIND,
)
"""All of them, in the order of preference: what an activation was spelled out in is not fused apart."""

KINDS = tuple(dict.fromkeys(item.kind for item in FUSIONS))
"""What users call them."""


_KNOWN_TO_XNNPACK = (
    "{count} of {all} changes win no time where XNNPACK computes, which does the same when it loads a file; "
    "other delegates, TFLite Micro and the kernels without a delegate gain"
)
_UNKNOWN_TO_MICRO = "TFLite Micro has no {names}, but all of what became it; fuse --skip {kinds} leaves that"


def xnnpack_notes(changes: Sequence[Change]) -> list[str]:
    """Says how many of some changes win nothing where XNNPACK computes, and who gains; nothing for none."""
    known = sum(isinstance(item, Edit) and bool(item.data.get("known_to_xnnpack")) for item in changes)
    return [_KNOWN_TO_XNNPACK.format(count=known, all=len(changes))] if known else []


def micro_notes(changes: Sequence[Change]) -> list[str]:
    """Says which operators TFLite Micro lacks that were made of such as it has; nothing for none."""
    lost: dict[str, str] = {}
    for item in changes:
        data = item.data if isinstance(item, Edit) else {}
        if all(row_named(name).micro for name in data.get("before", ())):
            lost |= {name: data["kind"] for name in data.get("after", ()) if not row_named(name).micro}
    if not lost:
        return []
    kinds = " --skip ".join(dict.fromkeys(lost.values()))
    return [_UNKNOWN_TO_MICRO.format(names=" and no ".join(lost), kinds=kinds)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fuse(Pass):
    """Makes one operator of several that compute what it computes.

    Activation functions that were spelled out become the operator (PRELU, SOFTMAX, GELU), and so do a mean
    and a product with a constant matrix. Activations and padding go into the layer beside them. What is only
    moved stays equal to the bit; what is computed in another order stays within 120 dB.

    Example:
        >>> from tfl_rewrite.passes import Fuse
        >>> report = tfl_rewrite.rewrite("model.tflite", "fused.tflite", [Fuse()])
        >>> report.outcome
        'unchanged'
    """

    name: ClassVar[str] = "fuse"
    effect: ClassVar[Effect] = Effect.FOLDING
    place: ClassVar[str] = "before constants are merged and rounded, so that what is read by one is seen"

    only: tuple[str, ...] = option((), "fuse this kind alone; repeatable", metavar="KIND", choices=KINDS)
    skip: tuple[str, ...] = option((), "leave this kind; repeatable", metavar="KIND", choices=KINDS)

    def run(self, model: Model, context: Context) -> PassResult:
        """Fuses what can be fused.

        Raises:
            UnsupportedError: Metadata refers to what would move.
        """
        wanted = set(self.only or KINDS) - set(self.skip)
        editor = Editor(model)
        done = fuse(model, [item for item in FUSIONS if item.kind in wanted], editor)
        notes = positions_moved(model) if done.changes else []
        editor.finish()
        notes += editor.notes
        notes += [*xnnpack_notes(done.changes), *micro_notes(done.changes)]
        return PassResult(
            self.name,
            tuple(done.changes),
            tuple(done.skips),
            tuple(notes),
            grows=bool(done.changes),
            exact=done.exact,
            idle="" if done.changes else "no operators compute together what one can",
        )


__all__ = ["Fuse"]
