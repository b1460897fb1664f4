"""fold-batch-norms: arithmetic with constants beside a layer goes into its weights and its bias.

Goes: MUL, ADD, SUB and DIV by a constant that holds one number for each channel, or one for all, behind or
before a CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV or FULLY_CONNECTED, and chains of them; what is added to a
sum of layers goes into the bias of one of them, and a factor goes past the zeros of a PAD. The fused
activation of what goes behind a layer becomes that of the layer. Stays: what another operator, a caller or a
signature sees between the two; what stands on the other side of an activation; what is added before a layer
that pads its input, since zeros are padded after it; weights that are computed or sparse, and float16 ones
that would have to be rounded again (their bias takes what is added); hybrid weights with what stands before
them. Constants that others read are not changed. Whether a layer with SAME pads follows from the sizes of
inputs that the file states: a caller who gives an input another size may get what is added before such a
layer wrong along the border.

Outputs are the same in real numbers: factors and sums are computed in float64 and rounded once. A second run
finds nothing. The idea is that of ``fold_batch_norms`` of TensorFlow's graph_transforms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.layer_constants import (
    FLOAT32,
    LayerConstants,
    Refused,
    Step,
    float_values,
)
from tfl_rewrite.editing.metadata import positions_moved
from tfl_rewrite.editing.shapes import Shapes
from tfl_rewrite.kernels.operands import is_float_layer
from tfl_rewrite.kernels.products import SAME
from tfl_rewrite.kernels.reads import first_version_with, needed_version
from tfl_rewrite.kernels.shapes import Shape
from tfl_rewrite.kernels.table import ADD, DEQUANTIZE, DIV, MUL, PAD, SUB, row_of
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.numerics.products import same_padding
from tfl_rewrite.options.option import option

_ACTIVATION = "fused_activation_function"
_MOVABLE = (0, 1, 2, 3)
"""None, RELU, RELU_N1_TO_1 and RELU6: the activations that float kernels of layers take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldBatchNorms(Pass):
    """Folds MUL, ADD, SUB and DIV by constants into the weights and biases beside them.

    What stands before or behind a convolution or a FULLY_CONNECTED and uses one constant for each channel is
    left over from a batch norm, or normalizes the input. Outputs are the same in real numbers.

    Example:
        >>> from tfl_rewrite.passes import FoldBatchNorms
        >>> tfl_rewrite.rewrite("model.tflite", passes=[FoldBatchNorms()]).outcome
        'unchanged'
    """

    name: ClassVar[str] = "fold-batch-norms"
    effect: ClassVar[Effect] = Effect.FOLDING
    place: ClassVar[str] = "before quantization, so that what is rounded is what is multiplied"

    before: bool = option(
        True,
        "leave what stands before a layer: where a sum cancels most of the input, less is left of it in the "
        "bias than where it was",
    )

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place.

        Raises:
            UnsupportedError: Metadata refers to what would move.
        """
        editor = Editor(model)
        changes: list[Edit] = []
        skips: list[Skip] = []
        shapes = Shapes.of(model)
        for subgraph in model.subgraphs:
            folder = _Folder(model, subgraph, editor, shapes, self.before)
            changes += folder.run()
            skips += folder.skips
        notes: list[str] = []
        if changes:
            notes = positions_moved(model)
            editor.removed()
            editor.finish()
        idle = "" if changes else "no constant is multiplied or added beside a layer that could take it"
        return PassResult(
            self.name,
            tuple(changes),
            tuple(skips),
            (*notes, *editor.notes),
            grows=bool(changes),
            idle=idle,
        )

    def stricter(self, _short_db: float) -> Pass | None:
        """Returns the pass without what stands before layers, which alone can cancel; None where it is."""
        return replace(self, before=False) if self.before else None


class _Folder:
    """Folds in one subgraph, until nothing is left to fold."""

    def __init__(
        self, model: Model, subgraph: SubGraph, editor: Editor, shapes: Shapes, before: bool
    ) -> None:
        self.model = model
        self.subgraph = subgraph
        self.editor = editor
        self.before = before
        self.skips: list[Skip] = []
        self._graph = Graph.of(model)
        # Folding changes no shape.
        self._shapes = shapes
        self._layers: dict[int, LayerConstants] = {}
        self._dropped: list[Tensor] = []

    def run(self) -> list[Edit]:
        """Folds all that can be, and notes why the rest stays."""
        changes: list[Edit] = []
        found = True
        while found:
            found, self.skips = False, []
            for operator in list(self.subgraph.operators):
                made = self._fold(operator)
                if made is not None:
                    changes.append(made)
                    found = True
        for layer in self._layers.values():
            self._dropped += layer.store(self.editor, self.subgraph)
        if changes:
            self._drop()
        return changes

    def _drop(self) -> None:
        """Drops what nothing reads any more: constants, and the DEQUANTIZE that made some of float16 ones."""
        graph = Graph.of(self.model)
        for tensor in self._dropped:
            maker = graph.maker_of(tensor)
            if maker is None or row_of(maker) is not DEQUANTIZE or maker not in self.subgraph.operators:
                continue
            if not graph.uses_of(tensor) and id(tensor) not in graph.exposed:
                self.editor.drop_operator(self.subgraph, maker)
                self._dropped += [item for item in maker.inputs if item is not None]
        self.editor.drop_unused(self.subgraph, self._dropped, graph.exposed)

    def _fold(self, operator: Operator) -> Edit | None:
        step = _step_of(operator, self._graph)
        if step is None or not all(map(self._is_settled, (step.source, operator.outputs[0]))):
            return None
        for fold in (self._behind, self._into_reader):
            try:
                made = fold(step)
            except Refused as error:
                self.skips.append(Skip(_label(operator), error.reason, error.rule))
                continue
            if made is not None:
                self._remove(step)
                return made
        return None

    def _layer(self, operator: Operator) -> LayerConstants:
        known = self._layers.get(id(operator))
        if known is None:
            made = LayerConstants(operator, self._graph, self._shapes[operator.outputs[0]])
            known = self._layers[id(operator)] = made
        return known

    def _behind(self, step: Step) -> Edit | None:
        """Folds what reads the output of a layer, or of a sum of layers; None where it reads none."""
        maker = self._graph.maker_of(step.source)
        if maker is not None and is_float_layer(maker) and not self._is_seen_once(step.source):
            raise Refused("shared", "others read what the layer makes")
        found = list(self._hosts(step.source, step, 1))
        if maker is None or not found:
            return None
        if maker.option(_ACTIVATION):
            raise Refused("activation", "an activation stands between it and the layer")
        activation = step.operator.option(_ACTIVATION) or 0
        if activation:
            self._check_activation(maker, activation)
        failed: Refused | None = None
        for host, sign in found:
            try:
                self._layer(host).fold_behind(replace(step, term=sign * step.term))
            except Refused as error:
                failed = failed or error
                continue
            (maker.outputs[0],) = step.operator.outputs
            self._dropped += [step.source, *_constants(step)]
            if activation:
                self.editor.set_option(maker, _ACTIVATION, activation)
            self._stamp(host)
            return _edit(step, host, "behind")
        assert failed is not None
        raise failed

    def _hosts(self, tensor: Tensor, step: Step, sign: int) -> Iterator[tuple[Operator, int]]:
        """Yields the layers that a step may go into, each with the sign that what it adds gets."""
        maker = self._graph.maker_of(tensor)
        if maker is None or not self._is_seen_once(tensor):
            return
        if is_float_layer(maker):
            if tensor is step.source or not maker.option(_ACTIVATION):
                yield maker, sign
            return
        row = row_of(maker)
        # What is added to a sum may as well be added to one of its parts.
        if step.scales or row not in (ADD, SUB) or len(maker.inputs) != 2:
            return
        if tensor is not step.source and maker.option(_ACTIVATION):
            return
        for position, part in enumerate(maker.inputs):
            if part is not None and part.dtype == FLOAT32 and not self._graph.is_constant(part):
                yield from self._hosts(part, step, -sign if row is SUB and position else sign)

    def _check_activation(self, maker: Operator, activation: int) -> None:
        row = row_of(maker)
        first = first_version_with(row, _ACTIVATION)
        if activation not in _MOVABLE or (first is not None and maker.code.version < first):
            raise Refused("activation", f"{row.name} has no kernel with its activation")

    def _into_reader(self, step: Step) -> Edit | None:
        """Folds what makes the input of a layer; None where it makes none."""
        (output,) = step.operator.outputs
        assert output is not None
        pad = self._pad_of(output)
        padded = output if pad is None else pad.outputs[0]
        uses = [] if padded is None else self._graph.uses_of(padded)
        readers = [use for use in uses if is_float_layer(use.operator)]
        readers = [use for use in readers if use.position == row_of(use.operator).activation]
        if not readers or padded is None:
            return None
        if not (self._is_seen_once(output) and self._is_seen_once(padded)):
            raise Refused("shared", "others read what it makes")
        if not self.before:
            raise Refused("before", "it stands before the layer, and was asked to stay")
        if step.operator.option(_ACTIVATION):
            raise Refused("activation", "an activation stands between it and the layer")
        host, position = readers[0].operator, readers[0].position
        layer = self._layer(host)
        shape = self._shapes[step.source]
        if pad is not None and step.factor.size > 1:
            self._check_padded(step, shape, self._shapes[padded])
        layer.fold_before(step, shape, whole=pad is None and _is_whole(host, layer.shape, shape))
        if pad is None:
            host.inputs[position] = step.source
        else:
            pad.inputs[0] = step.source
        self._dropped += [output, *_constants(step)]
        self._stamp(host)
        return _edit(step, host, "before")

    def _pad_of(self, tensor: Tensor) -> Operator | None:
        """Returns what puts zeros around a tensor: a factor may as well stand behind it."""
        uses = [use for use in self._graph.uses_of(tensor) if row_of(use.operator) is PAD]
        return uses[0].operator if uses and not uses[0].position and uses[0].operator.outputs else None

    def _check_padded(self, step: Step, before: Shape | None, after: Shape | None) -> None:
        if max(step.shape[:-1], default=1) > 1 or not before or not after or before[-1] != after[-1]:
            raise Refused("channels", "zeros are padded along the axis on which its numbers differ")

    def _is_seen_once(self, tensor: Tensor) -> bool:
        """Whether one operator reads a computed tensor, and nobody else sees it."""
        return (
            len(self._graph.uses_of(tensor)) == 1
            and id(tensor) not in self._graph.exposed
            and self._is_settled(tensor)
            and not tensor.is_variable
        )

    def _is_settled(self, tensor: Tensor | None) -> bool:
        return tensor is not None and self._shapes.is_settled(tensor)

    def _stamp(self, host: Operator) -> None:
        needed = needed_version(host)
        if needed is not None:
            self.editor.stamp(host, needed)

    def _remove(self, step: Step) -> None:
        self.editor.drop_operator(self.subgraph, step.operator)
        self._graph = Graph.of(self.model)


def _step_of(operator: Operator, graph: Graph) -> Step | None:
    """Returns what an operator does with a constant; None where it is no such step."""
    row = row_of(operator)
    if row not in (ADD, SUB, MUL, DIV) or len(operator.inputs) != 2 or len(operator.outputs) != 1:
        return None
    left, right = operator.inputs
    output = operator.outputs[0]
    if left is None or right is None or output is None or output.dtype != FLOAT32:
        return None
    first, second = float_values(left, graph), float_values(right, graph)
    if (first is None) == (second is None):
        return None
    source, constant = (left, second) if first is None else (right, first)
    if source.dtype != FLOAT32 or source.is_variable or constant is None or not constant.size:
        return None
    one, zero = np.ones(()), np.zeros(())
    if row is ADD:
        return Step(operator, source, one, constant, constant.shape)
    if row is SUB:
        factor, term = (one, -constant) if first is None else (-one, constant)
        return Step(operator, source, factor, term, constant.shape)
    if row is MUL:
        return Step(operator, source, constant, zero, constant.shape)
    if first is not None or not constant.all():
        return None
    return Step(operator, source, 1 / constant, zero, constant.shape)


def _is_whole(host: Operator, weights: tuple[int, ...] | None, shape: Shape | None) -> bool:
    """Whether a layer meets no padding: what is added to its input is multiplied by all of its weights."""
    padding = host.option("padding")
    if padding is None or padding != SAME or weights is None:
        return padding is not None or len(weights or ()) == 2
    if weights[1:3] == (1, 1):
        return True
    if shape is None or len(shape) != 4:
        return False
    return all(
        size is not None and size > 0 and _padded(host, size, taps, side) == 0
        for size, taps, side in zip(shape[1:3], weights[1:3], "hw", strict=True)
    )


def _padded(host: Operator, size: int, taps: int, side: str) -> int:
    """Returns how many zeros SAME adds along an axis."""
    reach = (taps - 1) * (host.option(f"dilation_{side}_factor") or 1) + 1
    return sum(same_padding(size, reach, host.option(f"stride_{side}") or 1))


def _constants(step: Step) -> list[Tensor]:
    return [tensor for tensor in step.operator.inputs if tensor is not None and tensor is not step.source]


def _label(operator: Operator) -> str:
    output = operator.outputs[0] if operator.outputs else None
    return f"{operator.code.name} -> {(output.name if output is not None else '') or '(unnamed)'}"


def _edit(step: Step, host: Operator, where: str) -> Edit:
    parts = [what for what, is_met in (("weights", step.scales), ("bias", step.adds)) if is_met] or ["bias"]
    what = f"{step.operator.code.name} {where} it folded into its {' and '.join(parts)}"
    return Edit(_label(host), what, 0, {"folded": step.operator.code.name, "side": where})
