"""Integer and float16 weights made float32 constants again, in the whole model or where a runtime needs it.

Scales per channel of a FULLY_CONNECTED, blocks and packed integers came late; older runtimes refuse them, or
load the file and read zeros. :func:`renew` makes such weights the floats that they stand for, to be quantized
for the runtime like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import field, replace

import numpy as np

from tfl_rewrite.editing.base import Edit, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels import operands
from tfl_rewrite.kernels.operators import Need, OperatorRow
from tfl_rewrite.kernels.reads import needed_version
from tfl_rewrite.kernels.runtimes import Runtime, runtime_text
from tfl_rewrite.kernels.table import ADD, DEQUANTIZE, EXPANDING, MUL, RESHAPE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph, Use
from tfl_rewrite.model.ir import Buffer, Model, Operator, SubGraph, Tensor
from tfl_rewrite.numerics.symmetric import Floats, product_of, sum_of
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.weights.candidates import UNNAMED, expanded, with_partners
from tfl_rewrite.weights.state import late_forms
from tfl_rewrite.weights.storage import forms


@frozen
class Expanded:
    """What became of constants.

    Attributes:
        edits: Those that are float32 now.
        skips: Why others are not.
        notes: What else is to be said.
    """

    edits: tuple[Edit, ...]
    skips: tuple[Skip, ...]
    notes: tuple[str, ...]


def expand_constants(model: Model, only: Callable[[Tensor], bool] | None = None) -> Expanded:
    """Makes integer and float16 constants float32; the floats are made when the file is written.

    Args:
        model: Changed in place.
        only: If given, only constants that pass.
    """
    found = _Search(model, only)
    found.look()
    edits, notes = _Expansion(model, found).apply()
    return Expanded(tuple(edits), tuple(found.skips), tuple(notes))


@slotted(eq=False)
class _Weight:
    """A constant that can become float32, with the uses that change.

    Attributes:
        expanded: DEQUANTIZE operators over it.
        read: Uses by hybrid kernels.
        looked_up: Lookups in it, each with the DEQUANTIZE of what it finds.
    """

    subgraph: SubGraph
    tensor: Tensor
    floats: Floats
    expanded: list[Operator] = field(default_factory=list)
    read: list[Use] = field(default_factory=list)
    looked_up: list[tuple[Operator, Operator]] = field(default_factory=list)


class _Search:
    """Finds the weights, and why others stay."""

    def __init__(self, model: Model, only: Callable[[Tensor], bool] | None) -> None:
        self.model = model
        self.only = only
        self.graph = Graph.of(model)
        self.weights: list[_Weight] = []
        self.skips: list[Skip] = []

    def look(self) -> None:
        """Looks through the whole model."""
        # Unsigned integers are never stored, but read.
        types = {"UINT8"} | {part for form in forms().values() if not form.keeps for part in form.parts}
        for subgraph, tensor in self.model.tensors():
            wanted = self.only is None or self.only(tensor)
            if wanted and tensor.is_constant and tensor.dtype_name in types:
                self._look_at(subgraph, tensor)
        self._keep_together()

    def _look_at(self, subgraph: SubGraph, tensor: Tensor) -> None:
        if tensor.dtype_name != "FLOAT16" and (
            tensor.quantization is None or not tensor.quantization.is_quantized
        ):
            return
        if id(tensor) in self.graph.given and id(tensor) not in self.graph.exposed:
            return  # The scales of another constant; they go with it.
        reason = self._fixed(tensor)
        floats = _floats(tensor) if reason is None else None
        if floats is None:
            self._skip(tensor, reason or ("form", "its quantization is of an unknown form"))
            return
        weight = _Weight(subgraph, tensor, floats)
        for use in self.graph.uses_of(tensor):
            reason = self._sort(weight, use)
            if reason is not None:
                self._skip(tensor, reason)
                return
        self.weights.append(weight)

    def _fixed(self, tensor: Tensor) -> tuple[str, str] | None:
        if tensor.external is not None:
            return "external", "its bytes are in a file beside the model"
        if tensor.is_sparse:
            return "sparse", "its bytes are in a compressed sparse form"
        need = dtypes.BY_VALUE[tensor.dtype].nbytes(tensor.elements)
        if tensor.buffer.nbytes != need:
            return "damaged", f"its buffer holds {tensor.buffer.nbytes} bytes, its shape takes {need}"
        if id(tensor) in self.graph.exposed:
            return "interface", "it is an input or output"
        if not self.graph.uses_of(tensor):
            return "unused", "no operator reads it"
        return None

    def _sort(self, weight: _Weight, use: Use) -> tuple[str, str] | None:
        """Notes how a use changes, or returns why it cannot."""
        operator, name, row = use.operator, use.operator.code.name, row_of(use.operator)
        output = operator.outputs[0] if operator.outputs else None
        if row is DEQUANTIZE:
            if output is None or output.dtype != dtypes.FLOAT32.value or id(output) in self.graph.exposed:
                return "interface", "what DEQUANTIZE makes of it is an output"
            if output.elements != weight.tensor.elements:
                return "damaged", f"what DEQUANTIZE makes of it is said to have {output.elements} elements"
            weight.expanded.append(operator)
            return None
        if use.position in row.weights:
            integer = _integer(operator, row)
            if integer is not None:
                return "integer", integer
            weight.read.append(use)
            return None
        if row.table == use.position and output is not None:
            readers = self.graph.uses_of(output)
            makes = readers[0].operator if len(readers) == 1 else None
            if makes is None or row_of(makes) is not DEQUANTIZE or id(output) in self.graph.exposed:
                return "integer", f"{name} gives integers to others"
            weight.looked_up.append((operator, makes))
            return None
        return "integer", f"{name} reads it as {weight.tensor.dtype_name}"

    def _keep_together(self) -> None:
        """Drops weights of operators that take all weights as integers or none, where another one stays."""
        while True:
            going = {id(weight.tensor) for weight in self.weights}
            stuck = [weight for weight in self.weights if any(_mixes(use, going) for use in weight.read)]
            if not stuck:
                return
            for weight in stuck:
                self._skip(weight.tensor, ("together", "another weight of its operator stays as it is"))
            self.weights = [weight for weight in self.weights if weight not in stuck]

    def _skip(self, tensor: Tensor, reason: tuple[str, str]) -> None:
        rule, text = reason
        data = {"type": tensor.dtype_name, "shape": list(tensor.shape or ())}
        self.skips.append(Skip(tensor.name or UNNAMED, text, rule, data))


def _mixes(use: Use, going: set[int]) -> bool:
    if Need.ALL_OR_NOTHING not in row_of(use.operator).needs:
        return False
    weights = operands.weights_of(use.operator)
    return any(item.is_constant and id(item) not in going for item in weights)


def _integer(operator: Operator, row: OperatorRow) -> str | None:
    """Returns why an operator is no float operator, or None if it is one."""
    need = Need.FLOAT_OUTPUT if row.activation is None else Need.FLOAT_INPUT_OUTPUT
    unmet = operands.unmet(need, operator, lambda _: True)
    return f"{operator.code.name} computes in integers" if unmet is not None else None


def _floats(tensor: Tensor) -> Floats | None:
    """Returns what a constant means, or None where it is stored in no form that is known."""
    means = (form.read(tensor) for form in forms().values())
    return next((found for found in means if found is not None), None)


class _Expansion:
    """Carries it out."""

    def __init__(self, model: Model, found: _Search) -> None:
        self._model = model
        self._found = found
        self._editor = Editor(model)
        self._buffers: dict[object, Buffer] = {}
        # By the id of a tensor that is a constant now: its values.
        self._known: dict[int, Floats] = {}
        self._gone: set[int] = set()
        self._loose: dict[int, Tensor] = {}
        self._float: list[Operator] = []

    def apply(self) -> tuple[list[Edit], list[str]]:
        """Changes the model; returns the edits and notes."""
        edits = []
        old = [weight.tensor.buffer for weight in self._found.weights]
        for weight in self._found.weights:
            before, kind = weight.tensor.buffer.nbytes, weight.tensor.dtype_name.lower()
            after = 4 * weight.tensor.elements
            name = weight.tensor.name or UNNAMED
            edits.append(Edit(name, f"{kind} -> float32", before - after, {"readers": _readers(weight)}))
            self._loosen(weight.tensor)
            for operator in weight.expanded:
                self._become(operator, weight.floats)
            # Where there is the float tensor of a DEQUANTIZE, all read that: it has the weight's own name.
            floats = weight.expanded[0].outputs[0] if weight.expanded else weight.tensor
            assert floats is not None
            for use in weight.read:
                use.operator.inputs[use.position] = floats
                self._read(use)
            for operator, after_it in weight.looked_up:
                operator.inputs[0] = floats
                self._look_up(operator, after_it)
            if floats is weight.tensor:
                self._store(weight.tensor, weight.floats)
        self._fold()
        self._settle(old)
        for operator in self._float:
            version = needed_version(operator)
            if version is not None and version < operator.code.version:
                self._editor.stamp(operator, version, exact=True)
        self._editor.finish()
        return edits, self._editor.notes

    def _become(self, operator: Operator, floats: Floats) -> None:
        """Takes an operator away whose output is known."""
        output = operator.outputs[0]
        assert output is not None
        self._known[id(output)] = floats
        self._gone.add(id(operator))
        self._loosen(output)
        for tensor in operator.inputs:
            if tensor is not None:
                self._loosen(tensor)

    def _loosen(self, tensor: Tensor) -> None:
        self._loose[id(tensor)] = tensor
        details = tensor.quantization
        for item in (details.scales_tensor, details.zero_points_tensor) if details is not None else ():
            if item is not None:
                self._loose[id(item)] = item

    def _read(self, use: Use) -> None:
        """Makes the operator its float form."""
        if use.operator.option("asymmetric_quantize_inputs"):
            self._editor.set_option(use.operator, "asymmetric_quantize_inputs", False)
        self._float.append(use.operator)

    def _look_up(self, operator: Operator, after_it: Operator) -> None:
        found = operator.outputs[0]
        assert found is not None
        self._loosen(found)
        operator.outputs[0] = after_it.outputs[0]
        self._gone.add(id(after_it))
        self._float.append(operator)

    def _fold(self) -> None:
        """Computes the products, the sums and the new shapes of constants that are known now."""
        for _, operator in self._model.operators():
            row, output = row_of(operator), operator.outputs[0] if operator.outputs else None
            if output is None or row not in EXPANDING or id(output) in self._found.graph.exposed:
                continue
            known = [self._known.get(id(tensor)) for tensor in operator.inputs if tensor is not None]
            made: Floats | None = None
            if row is RESHAPE and known and known[0] is not None and not output.signature:
                fits = output.shape is not None and output.elements == int(np.prod(known[0].shape))
                made = replace(known[0], shape=output.shape or ()) if fits else None
            elif len(known) == 2 and not operator.option("fused_activation_function"):
                one, two = known
                if one is not None and two is not None:
                    same = row is ADD and one.shape == two.shape
                    made = product_of(one, two) if row is MUL else sum_of(one, two) if same else None
                if made is not None and made.shape != output.shape:
                    made = None
            if made is not None:
                self._become(operator, made)

    def _store(self, tensor: Tensor, floats: Floats) -> None:
        buffer = self._buffers.get(floats.key)
        if buffer is None:
            buffer = self._buffers[floats.key] = self._editor.add_buffer(None)
            buffer.blob = floats.blob()
        self._editor.store(tensor, "FLOAT32", buffer, None)

    def _settle(self, old: list[Buffer]) -> None:
        """Removes operators and tensors that are not needed, and gives the others their bytes.

        Args:
            old: Buffers that may be empty then.
        """
        for subgraph in self._model.subgraphs:
            operators = [item for item in subgraph.operators if id(item) not in self._gone]
            if len(operators) != len(subgraph.operators):
                subgraph.operators = operators
            used = {id(tensor) for item in operators for tensor in (*item.inputs, *item.outputs)}
            used |= self._found.graph.exposed
            named = [tensor.quantization for tensor in subgraph.tensors if id(tensor) in used]
            used |= {id(item.scales_tensor) for item in named if item is not None}
            used |= {id(item.zero_points_tensor) for item in named if item is not None}
            for tensor in subgraph.tensors:
                if id(tensor) in self._known and id(tensor) in used:
                    self._store(tensor, self._known[id(tensor)])
                elif id(tensor) in self._loose and id(tensor) not in used:
                    old.append(tensor.buffer)
            subgraph.tensors = [
                tensor for tensor in subgraph.tensors if id(tensor) in used or id(tensor) not in self._loose
            ]
        self._editor.release(*old)
        if self._gone:
            self._editor.removed()


def _readers(weight: _Weight) -> list[str]:
    names = [use.operator.code.name for use in weight.read]
    names += [operator.code.name for operator in weight.expanded]
    names += [operator.code.name for operator, _ in weight.looked_up]
    return list(dict.fromkeys(names))


def renew(
    model: Model, runtime: Runtime, wanted: Callable[[Tensor, Graph], bool]
) -> tuple[dict[str, int], list[str]]:
    """Turns weights whose form a runtime does not know into float32.

    Args:
        model: Changed in place.
        runtime: The oldest one that must compute the model.
        wanted: Whether a weight may be changed.

    Returns:
        What each took in bytes, by the name of the tensor; and what is to be said.
    """
    found = list(late_forms(model, runtime))
    if not found:
        return {}, []
    graph = Graph.of(model)
    late = {id(item.tensor): item for item in found if wanted(item.tensor, graph)}
    before = {id(item.tensor): item.tensor.buffer.nbytes for item in late.values()}
    # Of those behind DEQUANTIZE another tensor is the constant then; both parts of an int6 become one.
    names = {key: [one.name for one in expanded(item.tensor, graph)] for key, item in late.items()}
    result = expand_with_partners(model, set(late))
    left = {id(item.tensor) for item in late_forms(model, runtime)}
    done = [item for key, item in late.items() if key not in left]
    if not done:
        return {}, list(result.notes)
    listed = ", ".join(
        [*(repr(item.tensor.name or UNNAMED) for item in done[:3]), *(["..."] if done[3:] else [])]
    )
    forms = ", ".join(dict.fromkeys(f"{item.form} of {item.operator}" for item in done))
    why = f"runtime {runtime_text(runtime)} does not know their form ({forms})"
    taken: Counter[str] = Counter()
    for item in done:
        taken.update(dict.fromkeys(names[id(item.tensor)], before[id(item.tensor)]))
    note = f"{len(done)} weight(s) stored anew, since {why}: {listed}"
    return dict(taken), [note, *result.notes]


def expand_with_partners(model: Model, constants: set[int]) -> Expanded:
    """Makes constants, by their ids, float32, and what they are multiplied with behind DEQUANTIZE."""
    parts = with_partners(constants, model, Graph.of(model))
    return expand_constants(model, lambda tensor: id(tensor) in parts)
