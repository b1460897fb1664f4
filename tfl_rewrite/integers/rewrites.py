"""Rewrites of a float model that make room for better integers, exact but for rounding.

And which of its stored weights must be floats first: others stay in the form that their operators read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.kernels.operands import uncomputed_memory, wrong_operands
from tfl_rewrite.kernels.reads import micro_obstacle
from tfl_rewrite.kernels.table import AVERAGE_POOL, DEQUANTIZE, MEAN, MUL, NEG, SELECT, SELECT_V2, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.weights.expansion import Expanded, expand_constants
from tfl_rewrite.weights.sparse import make_dense


@frozen
class Prepared:
    """What was done to a model before anything of it was measured.

    Attributes:
        dense: How many sparse constants were made dense.
        expanded: Which constants became floats.
        replaced: Operators, and what stands in place of each, by what is told of them.
    """

    dense: int
    expanded: Expanded
    replaced: Mapping[str, list[tuple[Operator, Operator]]]

    @property
    def modified(self) -> bool:
        """Whether anything is another than it was."""
        return bool(self.dense or self.expanded.edits or any(self.replaced.values()))

    def notes(self) -> list[str]:
        """What to tell the user."""
        counted = {
            "sparse constant(s) made dense": self.dense,
            **{what: len(made) for what, made in self.replaced.items()},
        }
        return [*(f"{count} {what}" for what, count in counted.items() if count), *self.expanded.notes]


def prepare(
    model: Model, wanted: Callable[[Operator], bool], keeps: Callable[[Operator], bool], target: Target
) -> Prepared:
    """Gives a model the float weights and the operators of which integers are made.

    Args:
        model: Changed in place.
        wanted: Whether an operator should compute in something else than floats.
        keeps: Whether an operator is to stay what it is.
        target: Of the file.
    """
    dense = make_dense(model)
    expanded = expand_constants(model, read_by_integers(model, wanted, target))
    replaced = {
        "pool(s) over a whole plane became MEAN": pools_to_means(model, keeps),
        "NEG became MUL by -1": negations_to_products(model, keeps),
    }
    if target is Target.MICRO:
        replaced["SELECT became SELECT_V2"] = selects_to_broadcasts(model)
    return Prepared(dense, expanded, replaced)


def pools_to_means(model: Model, keeps: Callable[[Operator], bool]) -> list[tuple[Operator, Operator]]:
    """Makes each AVERAGE_POOL_2D over a whole plane a MEAN, whose output has a scale of its own.

    The integer kernels of a pool give what they average on the scale of the input, and averages are small:
    this was 57 % of the noise of a ResNet (measured).

    Args:
        model: Changed in place.
        keeps: Whether an operator is to stay as it is.

    Returns:
        What was there, and what stands in its place.
    """

    def mean(editor: Editor, subgraph: SubGraph, operator: Operator) -> Operator | None:
        if row_of(operator) is not AVERAGE_POOL or keeps(operator) or not _is_over_plane(operator):
            return None
        source, made = operator.inputs[0], operator.outputs[0]
        assert source is not None and made is not None
        data = np.array([1, 2], "<i4").tobytes()
        axes = Tensor(f"{made.name}_axes", (2,), dtypes.BY_NAME["INT32"].value, editor.constant(data))
        editor.add_tensor(subgraph, axes)
        return editor.builtin(MEAN, 1, [source, axes], made, keep_dims=True)

    return _replaced(model, mean)


def negations_to_products(model: Model, keeps: Callable[[Operator], bool]) -> list[tuple[Operator, Operator]]:
    """Makes each NEG a MUL by -1, which is exact.

    The integer kernel of NEG negates the lowest integer to itself, so that what is below the range that was
    seen comes out below it again; and runtime 2.14 has none.

    Args:
        model: Changed in place.
        keeps: Whether an operator is to stay as it is.

    Returns:
        What was there, and what stands in its place.
    """
    floats = dtypes.FLOAT32.value

    def product(editor: Editor, subgraph: SubGraph, operator: Operator) -> Operator | None:
        if row_of(operator) is not NEG or keeps(operator) or wrong_operands(operator):
            return None
        source, made = operator.inputs[0], operator.outputs[0]
        if source is None or made is None or source.dtype != floats or made.dtype != floats:
            return None
        data = np.array([-1.0], "<f4").tobytes()
        minus = Tensor(f"{made.name}_minus", (), floats, editor.constant(data))
        editor.add_tensor(subgraph, minus)
        return editor.builtin(MUL, 1, [source, minus], made)

    return _replaced(model, product)


def selects_to_broadcasts(model: Model) -> list[tuple[Operator, Operator]]:
    """Makes each SELECT whose operands are of one shape a SELECT_V2, which TFLite Micro has of some types.

    With a condition of fewer axes they are two things: the older one chooses rows.

    Args:
        model: Changed in place.

    Returns:
        What was there, and what stands in its place.
    """

    def broadcast(editor: Editor, subgraph: SubGraph, operator: Operator) -> Operator | None:
        if row_of(operator) is not SELECT or wrong_operands(operator):
            return None
        shapes = {item.shape for item in (*operator.inputs, *operator.outputs) if item is not None}
        made, kernel = operator.outputs[0], SELECT_V2.micro
        if len(shapes) > 1 or made is None or kernel is None or not kernel.takes(made.dtype_name):
            return None
        return editor.plain(SELECT_V2, 1, operator.inputs, made)

    return _replaced(model, broadcast)


def _replaced(
    model: Model, make: Callable[[Editor, SubGraph, Operator], Operator | None]
) -> list[tuple[Operator, Operator]]:
    """Puts what is made of operators in their place; None leaves one. Returns what was there with what is."""
    editor, made_of = Editor(model), list[tuple[Operator, Operator]]()
    for subgraph in model.subgraphs:
        for position, operator in enumerate(subgraph.operators):
            made = make(editor, subgraph, operator)
            if made is not None:
                subgraph.operators[position] = made
                made_of.append((operator, made))
    if made_of:
        editor.removed()
        editor.finish()
    return made_of


def _is_over_plane(operator: Operator) -> bool:
    if wrong_operands(operator) or operator.option("fused_activation_function"):
        return False
    source, made = operator.inputs[0], operator.outputs[0]
    assert source is not None and made is not None
    shape, result = source.signature or source.shape or (), made.signature or made.shape or ()
    if len(shape) != 4 or len(result) != 4:
        return False
    window = operator.option("filter_height"), operator.option("filter_width")
    return window == tuple(shape[1:3]) and tuple(result[1:3]) == (1, 1)


def read_by_integers(
    model: Model, wanted: Callable[[Operator], bool], target: Target = Target.LITERT
) -> Callable[[Tensor], bool]:
    """Returns what tells of a constant whether an operator reads it that may compute in integers.

    Others, such as hybrid weights of a recurrent operator or float16 ones in the body of a loop, would only
    grow if they were made floats: their operators stay float. TFLite Micro has no kernels that read most of
    those forms, and they are told of, too.

    Args:
        model: With weights in any form.
        wanted: Whether an operator should compute in something else than floats.
        target: Of the file.
    """
    graph = Graph.of(model)
    called = model.called

    def is_read(tensor: Tensor) -> bool:
        for use in graph.uses_of(tensor):
            row = row_of(use.operator)
            if target is Target.MICRO and micro_obstacle(use.operator):
                return True
            if row is DEQUANTIZE:
                if any(made is not None and is_read(made) for made in use.operator.outputs):
                    return True
            elif row.integer is None or uncomputed_memory(use.operator):
                continue
            elif id(use.subgraph) not in called and wanted(use.operator):
                return True
        return False

    return is_read
