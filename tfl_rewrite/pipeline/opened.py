"""Copies of a model that give out what goes into its last SOFTMAX, LOGISTIC or TANH.

Behind those, an output that is sure of itself hides nearly all noise on the inputs at hand; on others it
would not. So what a constant costs is measured before them.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.files.store import load, save
from tfl_rewrite.kernels.operators import Squash
from tfl_rewrite.kernels.table import MEAN, SUB, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Operator, SubGraph, Tensor

MANY_DECISIONS = 100
"""Made at each call, of which the outputs themselves tell how noise changes those that are not sure."""


def open_outputs(source: str | os.PathLike[str], target: Path, *, centred: bool = False) -> int:
    """Writes a copy that gives out what goes into its last SOFTMAX, LOGISTIC or TANH.

    Args:
        source: The model.
        target: Where the copy goes.
        centred: Whether it gives out, of what goes into a SOFTMAX, the differences from the mean: what all
            have in common makes no difference behind it, and as a large signal would hide noise.

    Returns:
        How many things each call decides in such an output, at least: rows of a SOFTMAX, elements of the
        others. 0 if there is none, and nothing is written.
    """
    model = load(source)
    graph = Graph.of(model)
    editor = Editor(model)
    swaps: dict[int, Tensor] = {}
    decisions = []
    for subgraph in [model.subgraphs[0], *(item.subgraph for item in model.signatures)]:
        for tensor in subgraph.outputs:
            maker = graph.maker_of(tensor)
            while maker is not None and row_of(maker).reshapes and maker.inputs[0] is not None:
                maker = graph.maker_of(maker.inputs[0])
            inside = maker.inputs[0] if maker is not None and maker.inputs else None
            if id(tensor) in swaps or maker is None or row_of(maker).squashes is None or inside is None:
                continue
            if graph.maker_of(inside) is not None and id(inside) not in graph.exposed:
                known = _centred(editor, subgraph, maker, inside) if centred else inside
                swaps[id(tensor)] = known
                shape = inside.shape or ()
                shape = shape[:-1] if row_of(maker).squashes is Squash.ROWS else shape
                decisions.append(max(1, math.prod(shape)))
    if not swaps:
        return 0
    for subgraph in model.subgraphs:
        subgraph.outputs = [swaps.get(id(tensor), tensor) for tensor in subgraph.outputs]
    for signature in model.signatures:
        signature.outputs = [(rest, swaps.get(id(tensor), tensor)) for rest, tensor in signature.outputs]
    editor.finish()
    save(model, target)
    return min(decisions)


def _centred(editor: Editor, subgraph: SubGraph, maker: Operator, inside: Tensor) -> Tensor:
    """Adds what takes the mean of the last axis off; returns the tensor itself where that means nothing."""
    shape = inside.shape
    alone = row_of(maker).squashes is not Squash.ROWS
    if alone or inside.dtype_name != "FLOAT32" or not shape or shape[-1] < 2:
        return inside
    last = np.array([len(shape) - 1], "<i4").tobytes()
    float32 = dtypes.FLOAT32.value

    def added(suffix: str, sizes: tuple[int, ...]) -> Tensor:
        return editor.add_tensor(
            subgraph, Tensor(f"{inside.name}_{suffix}", sizes, float32, editor.sentinel())
        )

    axis = Tensor(f"{inside.name}_axis", (1,), dtypes.INT32.value, editor.constant(last))
    mean, centred = added("mean", (*shape[:-1], 1)), added("centred", shape)
    inputs: list[Tensor | None] = [inside, editor.add_tensor(subgraph, axis)]
    subgraph.operators += [
        editor.builtin(MEAN, 1, inputs, mean, keep_dims=True),
        editor.builtin(SUB, 1, [inside, mean], centred),
    ]
    return centred
