"""Which subgraph and which tensor of one model is which of another."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tfl_rewrite.model.ir import Model, SubGraph, Tensor

_MOST_ALIGNED = 4000
"""So many tensors without names are aligned at most: the time grows with the square of their number."""


def subgraph_pairs(one: Model, two: Model) -> Iterator[tuple[SubGraph | None, SubGraph | None]]:
    """Yields what belongs together, and what is on one side only.

    The main subgraphs are a pair, then those of the same name, then the rest in order.
    """
    pairs: list[tuple[SubGraph | None, SubGraph | None]] = [(one.subgraphs[0], two.subgraphs[0])]
    names = [_own_names(model) for model in (one, two)]
    pairs += [(names[0][name], names[1][name]) for name in names[0] if name in names[1]]
    paired = {id(graph) for pair in pairs for graph in pair}
    rest = [[graph for graph in model.subgraphs if id(graph) not in paired] for model in (one, two)]
    yield from pairs
    yield from itertools.zip_longest(rest[0], rest[1])


def _own_names(model: Model) -> dict[str, SubGraph]:
    count = Counter(graph.name for graph in model.subgraphs)
    return {graph.name: graph for graph in model.subgraphs[1:] if graph.name and count[graph.name] == 1}


def tensor_labels(one: SubGraph, two: SubGraph) -> tuple[Mapping[int, str], Mapping[int, str]]:
    """Returns a label for each tensor of both sides, by id; equal labels mean the same tensor.

    A label is the tensor's name where no other of its subgraph has it, else the name with its position, as
    ``name[3]``, on the first side where both have the tensor.
    """
    labels = _labels(one), _labels(two)
    known = set(labels[0].values()) & set(labels[1].values()) - _placed(one) - _placed(two)
    rest = [
        [tensor for tensor in graph.tensors if table[id(tensor)] not in known]
        for graph, table in zip((one, two), labels, strict=True)
    ]
    named = [
        {id(t) for t in side if not _is_placed(t, table)} for side, table in zip(rest, labels, strict=True)
    ]
    used = known | {labels[0][id(tensor)] for tensor in rest[0]}
    for left, right in _aligned(*rest):
        # Two names of their own say that these are two tensors.
        if id(left) not in named[0] or id(right) not in named[1]:
            labels[1][id(right)] = labels[0][id(left)]
            rest[1] = [item for item in rest[1] if item is not right]
    for tensor in rest[1]:
        if labels[1][id(tensor)] in used:
            labels[1][id(tensor)] += " (new)"
    return labels


def _labels(graph: SubGraph) -> dict[int, str]:
    count = Counter(tensor.name for tensor in graph.tensors)
    own = {name for name in count if name and count[name] == 1}
    labels = {}
    for position, tensor in enumerate(graph.tensors):
        label = tensor.name if tensor.name in own else f"{tensor.name}[{position}]"
        while label in own and tensor.name not in own:
            label += "'"
        labels[id(tensor)] = label
    return labels


def _is_placed(tensor: Tensor, labels: Mapping[int, str]) -> bool:
    return labels[id(tensor)] != tensor.name


def _placed(graph: SubGraph) -> set[str]:
    labels = _labels(graph)
    return {labels[id(tensor)] for tensor in graph.tensors if _is_placed(tensor, labels)}


def _aligned(one: Sequence[Tensor], two: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    if len(one) == len(two):
        yield from zip(one, two, strict=True)
    elif max(len(one), len(two)) <= _MOST_ALIGNED:
        left, right = ([_likeness(tensor) for tensor in side] for side in (one, two))
        for block in difflib.SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
            for step in range(block.size):
                yield one[block.a + step], two[block.b + step]


def _likeness(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape or (), tensor.is_constant, tensor.is_variable


__all__ = ["subgraph_pairs", "tensor_labels"]
