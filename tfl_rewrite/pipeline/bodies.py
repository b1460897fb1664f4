"""Subgraphs that only operators run: the branches of IF, the body of WHILE, what a composite stands for.

A judge that runs two files does not see which of them its samples entered. Here those are found whose content
changed, copies are made that tell whether anything depends on them, and each can be cut out as a model of its
own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tfl_rewrite.files.store import load, save
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Buffer, Model, SubGraph, Tensor
from tfl_rewrite.model.likeness import same_bytes
from tfl_rewrite.model.pairs import subgraph_pairs, tensor_labels

_NAN = {"FLOAT32": b"\x00\x00\xc0\x7f", "FLOAT16": b"\x00\x7e", "BFLOAT16": b"\xc0\x7f"}
_TURNED = ("INT8", "UINT8", "INT16", "INT4", "INT2")


@dataclass(frozen=True, slots=True)
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
    entered = {id(model.subgraphs[0]) for model in (one, two)}
    entered |= {id(item.subgraph) for model in (one, two) for item in model.signatures}
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
            tensor.buffer = Buffer(OwnedBlob(garbage))
            model.buffers.append(tensor.buffer)
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
