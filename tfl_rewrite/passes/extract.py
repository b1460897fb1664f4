"""extract: the subgraph of one signature as the model.

It becomes the main one, with the inputs and outputs that the signature names, a tensor inside among them; the
other signatures go, and what only they needed is left to ``remove-dead``. Descriptions of its inputs and
outputs in ``TFLITE_METADATA`` stay. Refused is a signature that leaves out an input, takes a tensor inside or
gives nothing, and one that reads variables which a part that goes may change. Outputs are equal to the bit. A
second run finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Edit, Pass, PassResult
from tfl_rewrite.editing.descriptions import keep_subgraph
from tfl_rewrite.editing.effects import Effects
from tfl_rewrite.editing.metadata import interface_changed
from tfl_rewrite.editing.names import arguments_of, signature_named
from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.counterparts import Argument, Counterpart
from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.ir import Model, Signature, SubGraph
from tfl_rewrite.options.option import naming


class Extract(Pass):
    """The pass; see the module.

    Args:
        key: Of the signature.
    """

    name: ClassVar[str] = "extract"

    def __init__(self, key: str) -> None:
        self.key = key

    def run(self, model: Model, context: Context) -> PassResult:
        """Makes the subgraph the main one.

        Raises:
            UsageError: There is no such signature, it leaves out inputs, takes others or gives nothing, or
                what goes changes variables that it reads.
        """
        with naming(f"--extract {self.key}:"):
            signature = signature_named(model, self.key)
        graph = signature.subgraph
        names = [
            {id(tensor): name for name, tensor in arguments_of(signature, side)}
            for side in ("inputs", "outputs")
        ]
        _refuse_other_inputs(signature)
        place = next(index for index, item in enumerate(model.subgraphs) if item is graph)
        shown = set(map(id, graph.outputs))
        inner = {id(item): item for _, item in arguments_of(signature, "outputs") if id(item) not in shown}
        outputs = [*(item for item in graph.outputs if id(item) in names[1]), *inner.values()]
        if not outputs:
            raise UsageError(f"signature {self.key!r} gives nothing")
        whole = list(map(id, outputs)) == list(map(id, graph.outputs))
        if place == 0 and len(model.signatures) == 1 and whole:
            return PassResult(self.name, idle=f"{self.key!r} is the only signature, of the main subgraph")
        if id(graph) in model.called and not whole:
            raise UsageError(f"an operator runs the subgraph of {self.key!r} with all of its outputs")
        _refuse_shared_state(model, signature)
        before, after = (graph.inputs, graph.outputs), (graph.inputs, outputs)
        notes = interface_changed(model, before, after, place) + keep_subgraph(model, place)
        graph.outputs = outputs
        model.subgraphs = [graph, *(item for item in model.subgraphs if item is not graph)]
        changes = [Edit(f"signature {self.key}", "its subgraph is the model now")]
        changes += [
            Edit(f"signature {item.key or '(unnamed)'}", "removed")
            for item in model.signatures
            if item is not signature
        ]
        model.signatures = [signature]
        sides = zip((graph.inputs, outputs), names, strict=True)
        inputs, given = (
            tuple[Argument, ...]((item.name, known[id(item)]) for item in tensors) for tensors, known in sides
        )
        primary = Counterpart(key=None, original=self.key, inputs=inputs, outputs=given)
        inputs, given = (
            tuple[Argument, ...]((name, name) for name in dict(arguments_of(signature, side)))
            for side in ("inputs", "outputs")
        )
        same = Counterpart(key=self.key, original=self.key, inputs=inputs, outputs=given)
        return PassResult(
            self.name, tuple(changes), (), tuple(notes), grows=True, counterparts=(same, primary)
        )


def _refuse_other_inputs(signature: Signature) -> None:
    """Refuses a signature that does not take what its subgraph takes.

    Raises:
        UsageError: It names an input.
    """
    inputs = signature.subgraph.inputs
    taken = {id(tensor) for _, tensor in arguments_of(signature, "inputs")}
    left = [item for item in inputs if id(item) not in taken]
    if left:
        raise UsageError(f"signature {signature.key!r} leaves out the input {left[0].name!r}")
    known = set(map(id, inputs))
    more = [item for _, item in arguments_of(signature, "inputs") if id(item) not in known]
    if more:
        raise UsageError(
            f"signature {signature.key!r} takes {more[0].name!r}, which is no input of its subgraph"
        )


def _refuse_shared_state(model: Model, signature: Signature) -> None:
    """Refuses to keep what reads variables that a part which goes changes.

    Raises:
        UsageError: It names both.
    """
    effects = Effects()
    kept = _reached([signature.subgraph])
    rest = [item.subgraph for item in model.signatures if id(item.subgraph) not in kept]
    gone = {**_reached([model.subgraphs[0]]), **_reached(rest)}

    def stateful(graphs: dict[int, SubGraph], *, changes: bool) -> list[str]:
        return [
            operator.code.name
            for graph in graphs.values()
            for operator in graph.operators
            if effects.of(operator)[0] is SideEffect.STATE
            and not any(True for _ in operator.subgraphs())
            and not any(item is not None and item.is_variable for item in operator.inputs)
            and not (row_of(operator).only_reads if changes else row_of(operator).handle)
        ]

    changing = stateful({key: item for key, item in gone.items() if key not in kept}, changes=True)
    reading = stateful(kept, changes=False)
    if changing and reading:
        raise UsageError(
            f"signature {signature.key!r} keeps state ({reading[0]}) that others may change ({changing[0]})",
            remedy="keep them together",
        )


def _reached(graphs: Sequence[SubGraph]) -> dict[int, SubGraph]:
    found: dict[int, SubGraph] = {}
    waiting = list(graphs)
    while waiting:
        graph = waiting.pop()
        if id(graph) not in found:
            found[id(graph)] = graph
            waiting += [inner for operator in graph.operators for inner in operator.subgraphs()]
    return found


__all__ = ["Extract"]
