"""What can stand for operators that a runtime does not have: one row each, and what makes it.

Each computes the same: to the bit, or (where the row says so) but for the rounding of floats. The rows of one
operator are tried in order, and what a row makes is looked up again: a TILE becomes a BROADCAST_TO, or where
that is missing too, a CONCATENATION. For a composite stand the operators of its subgraph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from tfl_rewrite.editing import makers
from tfl_rewrite.editing.drafts import Draft, Shape
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.shapes import Shapes
from tfl_rewrite.kernels import table
from tfl_rewrite.kernels.operands import wrong_operands
from tfl_rewrite.kernels.operators import OperatorRow
from tfl_rewrite.kernels.platforms import Platform
from tfl_rewrite.kernels.table import COMPOSITE, CONCATENATION, RESHAPE, ROWS, TRANSPOSE_CONV, row_of
from tfl_rewrite.model.invariants import read_early
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor

DECONVOLUTION = "Convolution2DTransposeBias"
"""A custom operator of MediaPipe that XNNPACK takes (``xnnpack_delegate.cc``)."""
_DEEPEST = 4
"""How often what stands for an operator may be replaced itself."""

Maker = Callable[[Draft], bool]
"""Fills a draft; returns False where an operator is not of the kind that it knows."""


@dataclass(frozen=True, slots=True)
class Substitute:
    """What can stand for an operator.

    Attributes:
        lacks: The operator, or the name of a custom one.
        what: What stands for it, in words.
        make: Makes it.
        exact: Whether it gives the same to the bit; else but for the rounding of floats. Infinite numbers
            are left out of that: without a delegate, kernels of ADD and MUL make the largest float of them.
    """

    lacks: OperatorRow | str
    what: str
    make: Maker
    exact: bool = True

    @property
    def name(self) -> str:
        """The name of the operator that it stands for."""
        return self.lacks if isinstance(self.lacks, str) else self.lacks.name


@dataclass(slots=True)
class Replaced:
    """What became of operators that a platform lacks.

    Attributes:
        done: The operator, what was missing, and what stands for it in words.
        exact: Whether all of it computes the same to the bit.
    """

    done: list[tuple[Operator, str, str]] = field(default_factory=list)
    exact: bool = True


def replace_missing(model: Model, platform: Platform, editor: Editor) -> Replaced:
    """Puts others in the place of operators that a platform lacks, where there is a row and it fits.

    Args:
        model: Changed in place.
        platform: What is to run it.
        editor: Of the model; :meth:`Editor.finish` is left to the caller.
    """
    made, shapes = Replaced(), Shapes.of(model)
    for subgraph in model.subgraphs:
        operators: list[Operator] = []
        # Each operator of a substitute would have the flaw anew.
        flawed = {id(operator) for _, operator, _ in read_early(subgraph)}
        for operator in subgraph.operators:
            reason = "" if id(operator) in flawed else platform.lacks(operator)
            found = _standing(operator, platform, shapes.full, _DEEPEST) if reason else None
            if found is None:
                operators.append(operator)
                continue
            drafts, said, exact = found
            made.done.append((operator, reason, said))
            made.exact = made.exact and exact
            for draft in drafts:
                operators += draft.accept(editor, subgraph)
        if len(operators) != len(subgraph.operators) or made.done:
            subgraph.operators = operators
    if made.done:
        editor.removed()
    return made


def waiting_for_sizes(model: Model, platform: Platform) -> list[str]:
    """Returns the names of operators that others could stand for if free sizes of inputs were as declared."""
    free = [(tensor, tensor.signature) for subgraph in model.subgraphs for tensor in subgraph.inputs]
    try:
        for tensor, _ in free:
            tensor.signature = None
        shapes = Shapes.of(model)
        return [
            operator.code.name
            for _, operator in model.operators()
            if platform.lacks(operator) and _standing(operator, platform, shapes.full, _DEEPEST)
        ]
    finally:
        for tensor, signature in free:
            tensor.signature = signature


def _standing(
    operator: Operator, platform: Platform, full: Callable[[Tensor | None], Shape | None], depth: int
) -> tuple[list[Draft], str, bool] | None:
    """Returns what can stand for an operator on a platform, what it is, and whether it is exact."""
    if not depth or wrong_operands(operator):
        return None
    for row in BY_NAME.get(operator.code.name, ()):
        draft = Draft(operator, full)
        if not _made(row, draft):
            continue
        found, said, exact = [draft], row.what, row.exact
        steps: list[Operator] = []
        for step in draft.steps:
            if not platform.lacks(step):
                steps.append(step)
                continue
            deeper = _standing(step, platform, draft.shape, depth - 1)
            if deeper is None:
                break
            drafts, also, equal = deeper
            said, exact = f"{said}, of which {step.code.name} is {also}", exact and equal
            for other in drafts:
                draft.tensors += other.tensors
                steps += other.steps
        else:
            draft.steps = steps
            return found, said, exact
    return None


def _made(row: Substitute, draft: Draft) -> bool:
    """Whether a row fits; operands that no kernel would take fit none."""
    try:
        return row.make(draft)
    except (IndexError, ValueError, TypeError, OverflowError):
        return False


def _through(rows: Sequence[OperatorRow], given: str, taken: str) -> list[Substitute]:
    words = f"itself in {taken.lower()} between CAST"
    return [
        Substitute(row, words, partial(makers.by_way_of, row=row, given=given, taken=taken)) for row in rows
    ]


SUBSTITUTES: tuple[Substitute, ...] = (
    *(
        Substitute(row, row.same_as, partial(makers.renamed, row=ROWS[row.same_as]))
        for row in ROWS.values()
        if row.same_as
    ),
    Substitute(table.STABLEHLO_PAD, table.PADV2.name, makers.pad_by_value),
    Substitute(table.SELECT, table.SELECT_V2.name, makers.select),
    Substitute(table.SELECT_V2, "products with 0 and 1", makers.select_numbers),
    Substitute(table.TILE, "BROADCAST_TO between RESHAPE", makers.tile_by_broadcast),
    Substitute(table.TILE, "CONCATENATION of itself", makers.tile_by_joining),
    Substitute(CONCATENATION, "CONCATENATION of groups", makers.join_in_groups),
    Substitute(table.BROADCAST_TO, "MUL by ones", makers.broadcast_by_ones),
    Substitute(table.RELU_N1_TO_1, "MAXIMUM and MINIMUM", partial(makers.clamp, low=-1.0, high=1.0)),
    Substitute(table.RELU_0_TO_1, "MAXIMUM and MINIMUM", partial(makers.clamp, low=0.0, high=1.0)),
    Substitute(table.SIGN, "GREATER less LESS, or NaN", makers.sign),
    Substitute(table.POW, "products, a root or a quotient", makers.power, exact=False),
    Substitute(table.GELU, "what it is made of", makers.gelu, exact=False),
    Substitute(table.REDUCE_ANY, "REDUCE_MAX of 0 and 1", makers.any_of),
    Substitute(table.REDUCE_PROD, "MUL of its parts", makers.product),
    Substitute(table.TOPK_V2, "ARG_MAX and REDUCE_MAX of what is left", makers.largest),
    Substitute(table.FULLY_CONNECTED, "itself and a RESHAPE", makers.rows_apart),
    Substitute(table.ONE_HOT, "EQUAL with 0, 1, 2 ...", makers.one_hot),
    Substitute(table.EXPAND_DIMS, RESHAPE.name, makers.as_reshape),
    Substitute(table.SQUEEZE, RESHAPE.name, makers.as_reshape),
    Substitute(table.TRANSPOSE, RESHAPE.name, makers.as_reshape),
    Substitute(table.DETECTION_POSTPROCESS, "itself behind DEQUANTIZE", makers.floats_first, exact=False),
    Substitute(DECONVOLUTION, TRANSPOSE_CONV.name, makers.deconvolution, exact=False),
    Substitute(table.SEQUENCE_LSTM, "itself with all 24 operands", makers.with_all_operands),
    *(
        Substitute(row, "itself with indices of 32 bits", partial(makers.narrow_indices, row=row))
        for row in table.READ_INDICES
    ),
    Substitute(
        table.DYNAMIC_UPDATE_SLICE,
        "itself with indices of 32 bits",
        partial(makers.narrow_indices, row=table.DYNAMIC_UPDATE_SLICE, first=2),
    ),
    Substitute(table.CAST, "DEQUANTIZE with a step of 1", makers.bytes_by_steps),
    Substitute(table.FLOOR_DIV, "DIV, less 1 where something below 0 is left", makers.floor),
    Substitute(table.FLOOR_MOD, "what DIV leaves over", partial(makers.floor, rest=True)),
    *_through(table.MOVE_BOOLS, "BOOL", "INT8"),
    *_through(table.COMPARE, "INT16", "INT32"),
)
"""In the order in which they are tried."""

BY_NAME: dict[str, list[Substitute]] = {}
for _row in SUBSTITUTES:
    BY_NAME.setdefault(_row.name, []).append(_row)


@dataclass(slots=True)
class Inlined:
    """What became of the composites of a model.

    Attributes:
        done: Name of the composite, its operator and what stands for it.
        reasons: Why others stay, by id of the operator.
    """

    done: list[tuple[str, Operator, list[Operator]]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)


def inline_composites(model: Model, editor: Editor) -> Inlined:
    """Puts what composites stand for in their place, those within it too.

    The kernel of a composite runs its subgraph, so numbers stay; a delegate that knows the composite by its
    name computes it otherwise. Subgraphs that nothing runs then are taken out.

    Args:
        model: Changed in place.
        editor: Of the model; :meth:`Editor.finish` is left to the caller.
    """
    made = Inlined()
    bodies = {id(operator): body for _, operator in model.operators() if (body := _body(operator))}
    for subgraph in list(model.subgraphs):
        _inline(subgraph, (subgraph,), editor, made)
    if made.done:
        _drop(model, list(bodies.values()))
        editor.removed()
    return made


def _inline(subgraph: SubGraph, open_: tuple[SubGraph, ...], editor: Editor, made: Inlined) -> None:
    """Writes out the composites of a subgraph; those of bodies come first, so that each is done once."""
    operators: list[Operator] = []
    for operator in subgraph.operators:
        if row_of(operator) is not COMPOSITE:
            operators.append(operator)
            continue
        body = _body(operator)
        why = "the subgraph that it stands for is not in the file"
        if body is not None:
            why = "it stands for itself" if body in open_ else _obstacle(operator, body)
        if body is None or why:
            made.reasons[id(operator)] = why
            operators.append(operator)
            continue
        _inline(body, (*open_, body), editor, made)
        copies = _copied(subgraph, operator, body, editor)
        made.done.append((_name(operator), operator, copies))
        operators += copies
    subgraph.operators = operators


def _body(operator: Operator) -> SubGraph | None:
    return next(operator.subgraphs(), None) if row_of(operator) is COMPOSITE else None


def _name(operator: Operator) -> str:
    return str((operator.options2.get("name") if operator.options2 is not None else None) or "composite")


def _obstacle(operator: Operator, body: SubGraph) -> str:
    """Returns why a body cannot stand where it is called; empty where it can."""
    given = set(map(id, body.inputs))
    if len(operator.inputs) != len(body.inputs) or len(operator.outputs) != len(body.outputs):
        return "its operands are not those of the subgraph that it stands for"
    if any(item is None for item in (*operator.inputs, *operator.outputs)):
        return "it has operands that are absent"
    if len({*map(id, body.outputs)}) < len(body.outputs) or len(given) < len(body.inputs):
        return "the subgraph that it stands for gives or takes a tensor twice"
    if any(id(item) in given or item.is_constant for item in body.outputs):
        return "the subgraph that it stands for gives out what it is given"
    if any(item.is_variable for item in body.tensors):
        return "the subgraph that it stands for keeps a state"
    if read_early(body):
        # Each copy would have the flaw anew.
        return "the subgraph that it stands for reads a tensor before it is made"
    return ""


def _copied(subgraph: SubGraph, operator: Operator, body: SubGraph, editor: Editor) -> list[Operator]:
    """Returns the operators of a body with tensors of their own, between the operands of the call."""
    known: dict[int, Tensor] = {}
    for inner, outer in zip(
        (*body.inputs, *body.outputs), (*operator.inputs, *operator.outputs), strict=True
    ):
        assert outer is not None
        known[id(inner)] = outer

    def own(tensor: Tensor) -> Tensor:
        made = known.get(id(tensor))
        if made is None:
            made = known[id(tensor)] = editor.add_tensor(subgraph, replace(tensor))
            details = tensor.quantization
            if details is not None and (details.scales_tensor or details.zero_points_tensor):
                scales, points = details.scales_tensor, details.zero_points_tensor
                made.quantization = replace(
                    details,
                    scales_tensor=None if scales is None else own(scales),
                    zero_points_tensor=None if points is None else own(points),
                )
        return made

    return [
        replace(
            item,
            inputs=[None if tensor is None else own(tensor) for tensor in item.inputs],
            outputs=[None if tensor is None else own(tensor) for tensor in item.outputs],
            intermediates=[None if tensor is None else own(tensor) for tensor in item.intermediates],
        )
        for item in body.operators
    ]


def _drop(model: Model, bodies: list[SubGraph]) -> None:
    """Takes bodies out that nothing runs or names any more, and those that only they ran."""
    mine = set(map(id, bodies))
    while True:
        kept = model.called | {id(model.subgraphs[0])} | {id(item.subgraph) for item in model.signatures}
        gone = {id(item) for item in model.subgraphs if id(item) in mine and id(item) not in kept}
        if not gone:
            return
        model.subgraphs = [item for item in model.subgraphs if id(item) not in gone]
