"""Which blobs, subgraphs and tensors are the same, and a hash of what a whole model computes.

Of the bytes of blobs, a few bytes propose, hashes sort, all bytes decide.

Everything is read in pieces whose pages are given back, so that memory stays flat whatever the size; blobs
that differ at their ends or in their middle are told apart without reading the rest.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.model.blob import Blob, MemorySink
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor

T = TypeVar("T")

_PIECE = 512 << 10
_TASTE = 1024
_COPY = 64 << 10
_MOST_ALIGNED = 4000
"""So many tensors without names are aligned at most: the time grows with the square of their number."""


def pieces(blob: Blob) -> Iterator[memoryview]:
    """Yields all bytes in pieces; each is given back when the next one is asked for."""
    view = blob.view()
    for start in range(0, blob.nbytes, _PIECE):
        part = view[start : start + _PIECE]
        yield part
        blob.release(start, len(part))


def digest(blob: Blob) -> bytes:
    """Returns a hash of all bytes (BLAKE2b, 16 bytes), which are read in pieces."""
    made = hashlib.blake2b(digest_size=16)
    for piece in pieces(blob):
        made.update(piece)
    return made.digest()


def same_bytes(one: Blob, two: Blob) -> bool:
    """Compares all bytes, up to the first difference."""
    if one.nbytes != two.nbytes:
        return False
    if one.identity == two.identity:
        return True
    return all(equal_pieces(left, right) for left, right in zip(pieces(one), pieces(two), strict=True))


def equal_pieces(left: bytes | memoryview, right: bytes | memoryview) -> bool:
    """Whether two stretches are equal.

    Copies that fit in a cache are compared: ``==`` of memoryviews goes element by element and takes twenty
    times as long.
    """
    return len(left) == len(right) and all(
        bytes(left[start : start + _COPY]) == bytes(right[start : start + _COPY])
        for start in range(0, len(left), _COPY)
    )


def equal_items(
    items: Sequence[T], blob_of: Callable[[T], Blob], tick: Callable[[int], None] | None = None
) -> Iterator[tuple[T, T]]:
    """Yields each item whose blob holds the same bytes as an earlier one's, with the first of those.

    Args:
        items: In the order that counts; those without bytes should not be among them.
        blob_of: Gives an item's blob.
        tick: Called with the bytes of blobs that are settled; they add up to those of all items.
    """
    told = tick or (lambda _nbytes: None)
    sizes: dict[int, list[T]] = {}
    for item in items:
        sizes.setdefault(blob_of(item).nbytes, []).append(item)
    for alike in sizes.values():
        groups: dict[Hashable, list[T]] = {}
        for item in alike:
            groups.setdefault(_taste(blob_of(item)) if len(alike) > 1 else None, []).append(item)
        for group in groups.values():
            yield from _equal_in_group(group, blob_of, told)


def _equal_in_group(
    group: list[T], blob_of: Callable[[T], Blob], tick: Callable[[int], None]
) -> Iterator[tuple[T, T]]:
    """Goes through items whose blobs look alike at first; most often they are equal or there is but one."""
    identities: dict[object, T] = {}
    first = group[0]
    hashes: dict[bytes, list[T]] | None = None
    for item in group:
        blob = blob_of(item)
        known = identities.get(blob.identity)
        if known is None and identities and same_bytes(blob_of(first), blob):
            known = first
        if known is None and identities:
            if hashes is None:
                # A second kind of bytes: from now on hashes say with which ones a comparison is worth it.
                hashes = {}
            alike = hashes.setdefault(digest(blob), [])
            known = next((other for other in alike if same_bytes(blob_of(other), blob)), None)
            if known is None:
                alike.append(item)
        identities.setdefault(blob.identity, item if known is None else known)
        tick(blob.nbytes)
        if known is not None and known is not item:
            yield known, item


def _taste(blob: Blob) -> Hashable:
    """Returns some bytes of the start, the middle and the end."""
    view = blob.view()
    nbytes = blob.nbytes
    if nbytes <= 3 * _TASTE:
        taste = bytes(view)
    else:
        middle = nbytes // 2
        taste = b"".join((view[:_TASTE], view[middle : middle + _TASTE], view[-_TASTE:]))
    blob.release()
    return hashlib.blake2b(taste, digest_size=16).digest()


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
        left, right = ([_traits(tensor) for tensor in side] for side in (one, two))
        for block in difflib.SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
            for step in range(block.size):
                yield one[block.a + step], two[block.b + step]


def _traits(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape or (), tensor.is_constant, tensor.is_variable


_MARK = "surrogatepass"

_OWN = ("custom_options", "mutating_variable_inputs")
"""Fields of an operator that are neither operands nor builtin options, which are typed."""


def fingerprint(model: Model) -> str:
    """Returns a hash of the graph and its constants (SHA-256, hex).

    Equal for two files that differ in metadata, in the order of buffers, in versions of operators or in what
    they are called; tensors and operators are at the same places in both, under the same names.

    Args:
        model: Not changed. All constants are read once.
    """
    places: dict[int, int] = {}
    for subgraph in model.subgraphs:
        places.update((id(tensor), at) for at, tensor in enumerate(subgraph.tensors))
    places.update((id(subgraph), at) for at, subgraph in enumerate(model.subgraphs))
    content: dict[int, str] = {}
    made = hashlib.sha256()
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            made.update(repr(_tensor(tensor, content)).encode("utf-8", _MARK))
        for operator in subgraph.operators:
            made.update(repr(_operator(operator, places)).encode("utf-8", _MARK))
        ends = [[places[id(item)] for item in side] for side in (subgraph.inputs, subgraph.outputs)]
        made.update(repr(ends).encode("ascii"))
    for signature in model.signatures:
        named = [
            [(record.get("name"), places.get(id(tensor))) for record, tensor in side]
            for side in (signature.inputs, signature.outputs)
        ]
        facts = signature.key, places.get(id(signature.subgraph)), named
        made.update(repr(facts).encode("utf-8", _MARK))
    return made.hexdigest()


def _tensor(tensor: Tensor, content: dict[int, str]) -> tuple[Any, ...]:
    blob, details = tensor.buffer.blob, tensor.quantization
    if blob is not None and id(tensor.buffer) not in content:
        content[id(tensor.buffer)] = digest(blob).hex()
    scales = None if details is None else (_told(details.scale, {}), _told(details.zero_point, {}))
    dimension = None if details is None else details.dimension
    held = content.get(id(tensor.buffer))
    facts = (
        tensor.name,
        tensor.dtype,
        tensor.shape,
        tensor.is_variable,
        _told(tensor.rest.get("sparsity"), {}),
    )
    return (*facts, scales, dimension, held)


def _operator(operator: Operator, places: Mapping[int, int]) -> tuple[Any, ...]:
    operands = [
        [None if tensor is None else places.get(id(tensor)) for tensor in side]
        for side in (operator.inputs, operator.outputs, operator.intermediates)
    ]
    custom = None if operator.large_custom is None else digest(operator.large_custom).hex()
    own = [operator.rest.get(name) for name in _OWN]
    told = [_told(item, places) for item in (operator.options, operator.options2, *own)]
    return operator.code.name, operands, told, custom


def _told(value: Any, places: Mapping[int, int]) -> object:
    """Returns a value of a record as something whose text says all of it."""
    if isinstance(value, Record):
        rows = sorted(value.values.items())
        return value.spec.name, [(name, _told(item, places)) for name, item in rows]
    if isinstance(value, ScalarVector):
        return value.scalar.name, bytes(value.raw)
    if isinstance(value, list):
        return [_told(item, places) for item in value]
    if isinstance(value, SubGraph):
        return "subgraph", places.get(id(value))
    if value is None or isinstance(value, (str, int, float)):
        return value
    sink = MemorySink(value.nbytes)
    value.write_to(sink, 0)
    return hashlib.sha256(sink.data).hexdigest()
