"""Copies of a model that a judge runs beside it, or instead of it.

Behind a last SOFTMAX, LOGISTIC or TANH, an output that is sure of itself hides nearly all noise on the inputs
at hand; on others it would not. So what a constant costs is measured before them, in a copy that gives out
what goes in (:func:`open_outputs`).

A judge that runs two files does not see which subgraphs its samples entered of those that only operators run:
the branches of IF, the body of WHILE, what a composite stands for. Those are found whose content changed
(:func:`changed_bodies`), copies tell whether anything depends on them (:func:`poisoned`), and each can be cut
out as a model of its own (:func:`cut_out`).

Of what every call computes, samples may show nothing, either: the side of a SELECT that none takes. Copies of
the original with one constant of the other file (:func:`with_constant`) tell so of those that became
something else (:func:`lost_constants`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.files.source import load, save
from tfl_rewrite.integers.convert import type_change
from tfl_rewrite.integers.reals import real_values
from tfl_rewrite.kernels.operands import constant_values
from tfl_rewrite.kernels.operators import Squash
from tfl_rewrite.kernels.table import DEQUANTIZE, MEAN, SUB, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.model.likeness import same_bytes, subgraph_pairs, tensor_labels
from tfl_rewrite.options.frozen import frozen

_LOST = 0.5
"""Of the power of a row: no rounding errs by as much where a row has a scale that suits it."""
_REPLACED = 10.0
"""Of the power of a vector: a bias that is corrected makes up for noise of weights, whatever its own size."""
_FAINT = 1 / 254
"""Rows that are this much fainter than most are next to nothing: half a step of int8, had all one scale.

Most, and not the largest: one number that is far from all others makes nothing of them.
"""

_NAN = {"FLOAT32": b"\x00\x00\xc0\x7f", "FLOAT16": b"\x00\x7e", "BFLOAT16": b"\xc0\x7f"}
_TURNED = ("INT8", "UINT8", "INT16", "INT4", "INT2")


def open_outputs(source: str | os.PathLike[str], target: Path, *, centred: bool = False) -> int:
    """Writes a copy that gives out what goes into its last SOFTMAX, LOGISTIC or TANH.

    Where that computes in integers behind a DEQUANTIZE, what goes in is given out in floats as well.

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
            while maker is not None and _passes_on(maker) and maker.inputs[0] is not None:
                maker = graph.maker_of(maker.inputs[0])
            inside = maker.inputs[0] if maker is not None and maker.inputs else None
            if id(tensor) in swaps or maker is None or row_of(maker).squashes is None or inside is None:
                continue
            if graph.maker_of(inside) is not None and id(inside) not in graph.exposed:
                shape = inside.shape or ()
                if tensor.dtype == dtypes.FLOAT32.value != inside.dtype:
                    inside = _in_floats(editor, subgraph, inside)
                known = _centred(editor, subgraph, maker, inside) if centred else inside
                swaps[id(tensor)] = known
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


def _passes_on(operator: Operator) -> bool:
    """Whether an operator gives out the numbers that it reads, of another shape or type."""
    row = row_of(operator)
    return row.reshapes or row is DEQUANTIZE


def _in_floats(editor: Editor, subgraph: SubGraph, integers: Tensor) -> Tensor:
    """Adds what makes floats of integers."""
    made = editor.add_like(subgraph, integers, "FLOAT32")
    subgraph.operators.append(type_change(editor, integers, made))
    return made


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


@frozen
class Body:
    """A subgraph that only operators run, and that differs between two files.

    Attributes:
        before: Its number in the original.
        after: Its number in the rewritten file.
        label: As a report names it, with who runs it.
        constants: Names of the constants that changed.
        positions: Their numbers among the tensors of the original's subgraph.
    """

    before: int
    after: int
    label: str
    constants: tuple[str, ...]
    positions: tuple[int, ...]


def changed_bodies(one: Model, two: Model) -> list[Body]:
    """Returns the bodies whose constants or operators are not the same in both files."""
    if len(one.subgraphs) == 1:
        return []
    entered = _entered(one, two)
    places = {id(graph): number for model in (one, two) for number, graph in enumerate(model.subgraphs)}
    found = []
    for left, right in subgraph_pairs(one, two):
        if left is None or right is None or id(left) in entered or id(right) in entered:
            continue
        changed = _changed(left, right)
        operators = [[operator.code.name for operator in graph.operators] for graph in (left, right)]
        if changed or operators[0] != operators[1]:
            names = tuple(tensor.name or f"tensor {left.tensors.index(tensor)}" for tensor in changed)
            positions = tuple(left.tensors.index(tensor) for tensor in changed)
            label = _label(one, left)
            found.append(Body(places[id(left)], places[id(right)], label, names, positions))
    return found


def _entered(*models: Model) -> set[int]:
    """The subgraphs that callers run, by id."""
    found = {id(model.subgraphs[0]) for model in models}
    return found | {id(item.subgraph) for model in models for item in model.signatures}


def _changed(one: SubGraph, two: SubGraph) -> list[Tensor]:
    """Constants of ``one`` that are not the same in ``two``."""
    labels = tensor_labels(one, two)
    others = {labels[1][id(tensor)]: tensor for tensor in two.tensors}
    return [
        tensor
        for tensor in one.tensors
        if tensor.is_constant and not _same(tensor, others.get(labels[0][id(tensor)]))
    ]


def _same(one: Tensor, two: Tensor | None) -> bool:
    if two is None or one.dtype != two.dtype or one.is_sparse != two.is_sparse:
        return False
    if (one.external is None) != (two.external is None) or not _same_scales(one, two):
        return False
    left, right = one.buffer.blob, two.buffer.blob
    if left is None or right is None:
        return left is right
    return same_bytes(left, right)


def _same_scales(one: Tensor, two: Tensor) -> bool:
    left, right = one.quantization, two.quantization
    if left is None or right is None:
        return (left is None or not left.is_quantized) and (right is None or not right.is_quantized)
    return (left.scale, left.zero_point) == (right.scale, right.zero_point)


@frozen
class Lost:
    """A constant of which a row holds something else in the other file.

    Attributes:
        subgraph: Its number in the original.
        position: Of the constant among the tensors of that subgraph.
        name: Of it.
        data: What the other file holds, as the original would store it.
    """

    subgraph: int
    position: int
    name: str
    data: bytes


def lost_constants(one: Model, two: Model) -> Iterator[Lost]:
    """Yields constants of which a row errs by more than half of its power, then vectors by ten times theirs.

    What is next to nothing beside other rows does not count. Those of bodies are left out: see
    :func:`changed_bodies`.
    """
    entered = _entered(one, two)
    for left, right in subgraph_pairs(one, two):
        if left is None or right is None or id(left) not in entered:
            continue
        labels = tensor_labels(left, right)
        others = {labels[1][id(tensor)]: tensor for tensor in right.tensors if tensor.is_constant}
        numbered = sorted(enumerate(left.tensors), key=lambda item: len(item[1].shape or ()) < 2)
        for position, tensor in numbered:
            other = others.get(labels[0][id(tensor)]) if tensor.is_constant else None
            if other is None or _same(tensor, other) or tensor.shape != other.shape:
                continue
            was, now = _reals(tensor), _reals(other)
            if was is None or now is None or not was.size:
                continue
            rows = [_rows(item) for item in (was, now)]
            error, power = (np.einsum("ij,ij->i", item, item) for item in (rows[1] - rows[0], rows[0]))
            most = np.maximum(_LOST * power, _FAINT**2 * np.median(power))
            if was.ndim < 2:
                most = np.where(power > 0, _REPLACED * power, np.inf)
            if not (error > most).any():
                continue
            data = _stored_like(tensor, other, now)
            if data is not None:
                name = tensor.name or f"tensor {position}"
                yield Lost(one.subgraphs.index(left), position, name, data)


def _rows(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.ndim < 2:
        return values.reshape(1, -1)
    # Filters of a depthwise layer are rows of the last axis.
    return values.reshape(len(values), -1) if len(values) > 1 else values.reshape(-1, values.shape[-1]).T


def _reals(tensor: Tensor) -> npt.NDArray[Any] | None:
    floats = constant_values(tensor, "FLOAT32", "FLOAT16")
    found = real_values(tensor) if floats is None else floats.reshape(tensor.shape or ())
    return None if found is None else found.astype(np.float32, copy=False)


def _stored_like(tensor: Tensor, other: Tensor, now: npt.NDArray[Any]) -> bytes | None:
    blob = other.buffer.blob
    if tensor.dtype == dtypes.FLOAT32.value:
        return now.astype("<f4").tobytes()
    return (
        bytes(blob.view()) if blob and tensor.dtype == other.dtype and _same_scales(tensor, other) else None
    )


def with_constant(source: str | os.PathLike[str], lost: Lost, target: Path) -> None:
    """Writes a copy of the original that holds one constant of the other file.

    Raises:
        TflRewriteError: The file cannot be written again.
    """
    model = load(source)
    model.subgraphs[lost.subgraph].tensors[lost.position].buffer = model.add_buffer(OwnedBlob(lost.data))
    save(model, target, force=True)


def _label(model: Model, graph: SubGraph) -> str:
    callers = [
        operator.code.name
        for _, operator in model.operators()
        if any(inner is graph for inner in operator.subgraphs())
    ]
    name = f"subgraph {model.subgraphs.index(graph)}" + (f" {graph.name!a}" if graph.name else "")
    return f"{name}, run by {', '.join(dict.fromkeys(callers))}" if callers else f"{name}, run by nothing"


def poisoned(source: str | os.PathLike[str], body: Body, target: Path) -> bool:
    """Writes a copy of the original in which the changed constants of a body hold garbage.

    If its outputs are those of the original, nothing that was run depends on them.

    Returns:
        False, and nothing is written, where there is no garbage that would be sure to show.

    Raises:
        TflRewriteError: The file cannot be written again.
    """
    model = load(source)
    graph = model.subgraphs[body.before]
    done = False
    for position in body.positions:
        tensor = graph.tensors[position]
        garbage = _garbage(tensor)
        if garbage is not None:
            # A buffer of its own: another subgraph may read the same bytes.
            tensor.buffer = model.add_buffer(OwnedBlob(garbage))
            done = True
    if done:
        save(model, target, force=True)
    return done


def _garbage(tensor: Tensor) -> bytes | None:
    blob, kind = tensor.buffer.blob, dtypes.BY_VALUE.get(tensor.dtype)
    if blob is None or kind is None or tensor.is_sparse:
        return None
    if kind.name in _NAN:
        pattern = _NAN[kind.name]
        return pattern * (blob.nbytes // len(pattern))
    return bytes(255 - byte for byte in bytes(blob.view())) if kind.name in _TURNED else None


def cut_out(source: str | os.PathLike[str], number: int, target: Path) -> None:
    """Writes a subgraph as a model of its own, with what it runs itself.

    Raises:
        TflRewriteError: The file cannot be written again.
    """
    model = load(source)
    kept = [model.subgraphs[number]]
    for graph in kept:
        for inner in (item for operator in graph.operators for item in operator.subgraphs()):
            if not any(inner is other for other in kept):
                kept.append(inner)
    model.subgraphs = kept
    model.signatures = []
    save(model, target, force=True)
