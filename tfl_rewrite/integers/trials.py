"""Copies of a model that round some tensors and weights, whose outputs tell what that does to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.integers.convert import IntegerWeight, Site, type_change
from tfl_rewrite.integers.groups import Grid
from tfl_rewrite.kernels.operands import constant_values, input_of
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.weights.rounders import Simulate

Places = Mapping[tuple[int, int], Operator]


def rounding(model: Model, grids: Mapping[int, Grid], readers: Collection[int]) -> Simulate:
    """Returns what makes a copy of a model round some tensors, and nothing else.

    Args:
        model: As it is; copies are equal to it.
        grids: By id of a tensor.
        readers: Ids of the operators that read tensors on these grids which no operator in integers makes.
    """

    def simulate(copy: Model) -> Places:
        before, editor = operators_by_place(copy), Editor(copy)
        for one, other in zip(model.subgraphs, copy.subgraphs, strict=True):
            mine = {
                id(theirs): grids[id(tensor)]
                for tensor, theirs in zip(one.tensors, other.tensors, strict=True)
                if id(tensor) in grids
            }
            read = {
                id(theirs)
                for operator, theirs in zip(one.operators, other.operators, strict=True)
                if id(operator) in readers
            }
            if mine:
                _round(other, mine, read, editor)
        editor.finish()
        return before

    return simulate


def operators_by_place(model: Model) -> dict[tuple[int, int], Operator]:
    """Returns the operators by positions of the subgraph and in it."""
    return {
        (number, position): operator
        for number, subgraph in enumerate(model.subgraphs)
        for position, operator in enumerate(subgraph.operators)
    }


def _round(subgraph: SubGraph, grids: Mapping[int, Grid], readers: Collection[int], editor: Editor) -> None:
    operators: list[Operator] = []
    known: dict[int, Tensor] = {}

    def converted(source: Tensor, made: Tensor | None, grid: Grid) -> Tensor:
        integers = editor.add_like(subgraph, source, grid.dtype, grid.quantization)
        floats = editor.add_like(subgraph, source, "FLOAT32") if made is None else made
        operators.append(type_change(editor, source, integers))
        operators.append(type_change(editor, integers, floats))
        return floats

    made = {id(tensor) for operator in subgraph.operators for tensor in operator.outputs}
    for operator in subgraph.operators:
        for position, tensor in enumerate(operator.inputs):
            if tensor is None or id(tensor) not in grids or id(tensor) in made or id(operator) not in readers:
                continue
            if id(tensor) not in known:
                known[id(tensor)] = converted(tensor, None, grids[id(tensor)])
            operator.inputs[position] = known[id(tensor)]
        operators.append(operator)
        for position, tensor in enumerate(operator.outputs):
            if tensor is not None and id(tensor) in grids:
                # All who read it, and who know it by its name, read what is rounded.
                raw = editor.add_like(subgraph, tensor, "FLOAT32")
                operator.outputs[position] = raw
                converted(raw, tensor, grids[id(tensor)])
    subgraph.operators[:] = operators


def bordered(model: Model, grids: Mapping[int, Grid], then: Simulate) -> Simulate:
    """Returns what makes a copy round inputs and outputs besides, before and behind all else.

    Args:
        model: As it is; copies are equal to it.
        grids: By id of an input or output.
        then: What else is done to the copy.
    """

    def simulate(copy: Model) -> Places:
        places, editor = then(copy), Editor(copy)
        for one, other in zip(model.subgraphs, copy.subgraphs, strict=True):
            sides = zip((*one.inputs, *one.outputs), (*other.inputs, *other.outputs), strict=True)
            mine = {id(theirs): grids[id(tensor)] for tensor, theirs in sides if id(tensor) in grids}
            if mine:
                _round(other, mine, set(map(id, other.operators)), editor)
        editor.finish()
        return places

    return simulate


def weighing(model: Model, weights: Mapping[Site, IntegerWeight], then: Simulate) -> Simulate:
    """Returns what makes a copy of a model compute with the numbers that integer weights stand for.

    Args:
        model: As it is; copies are equal to it.
        weights: By operator and position.
        then: What else is done to the copy.
    """

    def simulate(copy: Model) -> Places:
        places, editor = then(copy), Editor(copy)
        for number, subgraph in enumerate(model.subgraphs):
            for position, operator in enumerate(subgraph.operators):
                for at in range(len(operator.inputs)):
                    weight = weights.get((id(operator), at))
                    if weight is not None:
                        _weigh(copy.subgraphs[number], places[number, position], at, weight, editor)
        editor.finish()
        return places

    return simulate


def _weigh(
    subgraph: SubGraph, operator: Operator, position: int, weight: IntegerWeight, editor: Editor
) -> None:
    row = row_of(operator)
    operator.inputs[position] = _constant(subgraph, weight.floats, editor)
    if weight.bias is not None:
        bias = input_of(operator, row.biases[0])
        old = None if bias is None else constant_values(bias, "FLOAT32")
        while len(operator.inputs) <= row.biases[0]:
            operator.inputs.append(None)
        made = weight.bias if old is None else weight.bias + old
        operator.inputs[row.biases[0]] = _constant(subgraph, made, editor)


def _constant(subgraph: SubGraph, values: npt.NDArray[np.floating], editor: Editor) -> Tensor:
    buffer = editor.constant(np.ascontiguousarray(values, "<f4").tobytes())
    made = Tensor("rounded", values.shape, dtypes.FLOAT32.value, buffer)
    return editor.add_tensor(subgraph, made)
