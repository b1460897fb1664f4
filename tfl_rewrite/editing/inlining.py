"""Composites written out: the operators of the subgraph that one stands for, in the place of the call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels.table import COMPOSITE, row_of
from tfl_rewrite.model.invariants import read_early
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor


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
