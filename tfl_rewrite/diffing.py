"""What two models have in common and where they differ: tensor by tensor, operator by operator, in bytes."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.model.likeness import same_bytes
from tfl_rewrite.storage import load, origin_of


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same.

    Attributes:
        kind: ``tensor``, ``operator``, ``subgraph``, ``signature``, ``metadata``, ``operator code``, ``zip``
            or ``model``.
        where: Its name, with its subgraph where there are several.
        what: ``added``, ``removed``, or what changed.
        nbytes_before: Constant bytes that it had.
        nbytes_after: Constant bytes that it has.
    """

    kind: str
    where: str
    what: str
    nbytes_before: int = 0
    nbytes_after: int = 0


@dataclass(frozen=True, slots=True)
class Balance:
    """Bytes of one kind before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences of two files, and where their bytes went.

    Attributes:
        identical: Whether the files are equal byte for byte.
        balance: Constants by type, tables and padding, ZIP; sums to the sizes of the files.
    """

    before: str
    after: str
    nbytes_before: int
    nbytes_after: int
    identical: bool
    balance: tuple[Balance, ...]
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return {"schema": 1, **asdict(self)}


def diff(before: str | os.PathLike[str], after: str | os.PathLike[str]) -> Comparison:
    """Compares the contents of two files; nothing is run.

    Tensors are matched by name within their subgraph, those without a name of their own by position;
    operators by their type and the names of what they make.

    Args:
        before: The first file.
        after: The second.

    Raises:
        FormatError, FileAccessError, UnsupportedError: As for :func:`tfl_rewrite.storage.load`.
    """
    models = load(before), load(after)
    origins = origin_of(models[0]), origin_of(models[1])
    assert origins[0] is not None and origins[1] is not None
    data = origins[0].container.data, origins[1].container.data
    found = [
        *_model_differences(*models),
        *_zip_difference(
            *(origin.tail.data if origin.tail else memoryview(b"") for origin in origins if origin)
        ),
    ]
    return Comparison(
        os.fspath(before),
        os.fspath(after),
        len(data[0]),
        len(data[1]),
        len(data[0]) == len(data[1]) and data[0] == data[1],
        _balance(models, (len(data[0]), len(data[1])), origins),
        tuple(found),
    )


def _model_differences(one: Model, two: Model) -> Iterable[Difference]:
    if one.description != two.description:
        yield Difference("model", "description", f"{one.description!r} became {two.description!r}")
    yield from _codes(one, two)
    for index in range(max(len(one.subgraphs), len(two.subgraphs))):
        where = f"subgraphs[{index}]"
        if index >= len(two.subgraphs):
            yield Difference("subgraph", where, "removed", _constant_nbytes(one.subgraphs[index]), 0)
        elif index >= len(one.subgraphs):
            yield Difference("subgraph", where, "added", 0, _constant_nbytes(two.subgraphs[index]))
        else:
            prefix = f"{where}/" if max(len(one.subgraphs), len(two.subgraphs)) > 1 else ""
            yield from _subgraph(one.subgraphs[index], two.subgraphs[index], prefix)
    yield from _named(
        "signature",
        [(item.key or "", _signature(item)) for item in one.signatures],
        [(item.key or "", _signature(item)) for item in two.signatures],
    )
    yield from _metadata(one, two)


def _codes(one: Model, two: Model) -> Iterable[Difference]:
    counts = [
        Counter(f"{code.name} version {code.version}" for code in model.operator_codes)
        for model in (one, two)
    ]
    for name in sorted(counts[0].keys() | counts[1].keys()):
        if counts[0][name] > counts[1][name]:
            yield Difference("operator code", name, "removed")
        elif counts[0][name] < counts[1][name]:
            yield Difference("operator code", name, "added")


def _subgraph(one: SubGraph, two: SubGraph, prefix: str) -> Iterable[Difference]:
    names = [_tensor_names(one), _tensor_names(two)]
    tensors = [
        {name: tensor for tensor, name in zip(graph.tensors, labels.values(), strict=True)}
        for graph, labels in zip((one, two), names, strict=True)
    ]
    for name, tensor in tensors[0].items():
        other = tensors[1].get(name)
        if other is None:
            yield Difference("tensor", prefix + name, "removed", tensor.buffer.nbytes, 0)
            continue
        changes = _tensor_changes(tensor, other)
        if changes:
            yield Difference(
                "tensor", prefix + name, "; ".join(changes), tensor.buffer.nbytes, other.buffer.nbytes
            )
    for name, tensor in tensors[1].items():
        if name not in tensors[0]:
            yield Difference(
                "tensor", prefix + name, f"added as {tensor.dtype_name}", 0, tensor.buffer.nbytes
            )
    for what, sides in (("inputs", (one.inputs, two.inputs)), ("outputs", (one.outputs, two.outputs))):
        labels = [[table[id(item)] for item in items] for items, table in zip(sides, names, strict=True)]
        if labels[0] != labels[1]:
            yield Difference("subgraph", f"{prefix}{what}", f"{labels[0]} became {labels[1]}")
    yield from _operators(one, two, names, prefix)


def _tensor_names(graph: SubGraph) -> dict[int, str]:
    """Returns a name for each tensor, by id: its own where it is the only one of that name."""
    count = Counter(tensor.name for tensor in graph.tensors)
    return {
        id(tensor): tensor.name if tensor.name and count[tensor.name] == 1 else f"{tensor.name}[{position}]"
        for position, tensor in enumerate(graph.tensors)
    }


def _tensor_changes(one: Tensor, two: Tensor) -> list[str]:
    changes = []
    if one.dtype != two.dtype:
        changes.append(f"{one.dtype_name} became {two.dtype_name}")
    for what in ("shape", "signature"):
        if getattr(one, what) != getattr(two, what):
            changes.append(f"{what} {getattr(one, what)} became {getattr(two, what)}")
    if one.is_variable != two.is_variable:
        changes.append("is a variable now" if two.is_variable else "is no variable now")
    if one.is_constant != two.is_constant:
        changes.append("is a constant now" if two.is_constant else "is computed now")
    elif one.dtype == two.dtype and not _same_bytes(one, two):
        changes.append("other values")
    if not _same_quantization(one, two):
        changes.append("other quantization")
    return changes


def _same_bytes(one: Tensor, two: Tensor) -> bool:
    if one.buffer.nbytes != two.buffer.nbytes:
        return False
    if one.buffer.blob is None or two.buffer.blob is None:
        return True
    return same_bytes(one.buffer.blob, two.buffer.blob)


def _same_quantization(one: Tensor, two: Tensor) -> bool:
    sides = [
        None
        if item.quantization is None
        else (
            bytes(item.quantization.scale.raw) if item.quantization.scale else b"",
            bytes(item.quantization.zero_point.raw) if item.quantization.zero_point else b"",
            item.quantization.dimension if item.quantization.scale else 0,
        )
        for item in (one, two)
    ]
    empty = (b"", b"", 0)
    return (sides[0] or empty) == (sides[1] or empty)


def _operators(
    one: SubGraph, two: SubGraph, names: Sequence[dict[int, str]], prefix: str
) -> Iterable[Difference]:
    def label(operator: Operator, table: dict[int, str]) -> str:
        made = ", ".join(table[id(item)] for item in operator.outputs if item is not None)
        return f"{operator.code.name} -> {made or '(nothing)'}"

    sides: list[dict[str, list[Operator]]] = [defaultdict(list), defaultdict(list)]
    for side, graph, table in zip(sides, (one, two), names, strict=True):
        for operator in graph.operators:
            side[label(operator, table)].append(operator)
    for name, items in sides[0].items():
        others = sides[1].get(name, [])
        for left, right in zip(items, others, strict=False):
            changes = _operator_changes(left, right, names)
            if changes:
                yield Difference("operator", prefix + name, "; ".join(changes))
        for _ in items[len(others) :]:
            yield Difference("operator", prefix + name, "removed")
    for name, items in sides[1].items():
        for _ in items[len(sides[0].get(name, [])) :]:
            yield Difference("operator", prefix + name, "added")


def _operator_changes(one: Operator, two: Operator, names: Sequence[dict[int, str]]) -> list[str]:
    changes = []
    if one.code.version != two.code.version:
        changes.append(f"version {one.code.version} became {two.code.version}")
    inputs = [
        [None if item is None else table[id(item)] for item in operator.inputs]
        for operator, table in zip((one, two), names, strict=True)
    ]
    for position in range(max(len(inputs[0]), len(inputs[1]))):
        left, right = (side[position] if position < len(side) else None for side in inputs)
        if left != right:
            changes.append(f"input {position} {left or '(absent)'} became {right or '(absent)'}")
    for what in ("options", "options2"):
        changes += _option_changes(getattr(one, what), getattr(two, what))
    return changes


def _option_changes(one: Record | None, two: Record | None) -> list[str]:
    if one is None or two is None:
        return [] if one is two else ["other options"]
    if one.spec.name != two.spec.name:
        return [f"{one.spec.name} became {two.spec.name}"]
    changes = []
    for name in one.spec.by_name:
        left, right = one.get(name), two.get(name)
        if isinstance(left, (SubGraph, list)) or isinstance(right, (SubGraph, list)):
            # Subgraphs are compared by themselves.
            continue
        if left != right:
            changes.append(f"{name} {left} became {right}")
    return changes


def _signature(item: Any) -> tuple[Any, ...]:
    return (
        tuple((row.get("name"), tensor.name) for row, tensor in item.inputs),
        tuple((row.get("name"), tensor.name) for row, tensor in item.outputs),
    )


def _metadata(one: Model, two: Model) -> Iterable[Difference]:
    sides = [
        [
            (entry.name or "", bytes(entry.buffer.blob.view()) if entry.buffer.blob else b"")
            for entry in model.metadata
        ]
        for model in (one, two)
    ]
    yield from _named("metadata", *sides)


def _named(kind: str, one: Sequence[tuple[str, Any]], two: Sequence[tuple[str, Any]]) -> Iterable[Difference]:
    left, right = dict(one), dict(two)
    for name, content in left.items():
        if name not in right:
            yield Difference(kind, name, "removed", _length(content), 0)
        elif right[name] != content:
            yield Difference(kind, name, "changed", _length(content), _length(right[name]))
    for name, content in right.items():
        if name not in left:
            yield Difference(kind, name, "added", 0, _length(content))


def _length(content: Any) -> int:
    return len(content) if isinstance(content, bytes) else 0


def _zip_difference(one: memoryview, two: memoryview) -> Iterable[Difference]:
    if bool(one) != bool(two):
        yield Difference("zip", "appended ZIP", "added" if two else "removed", len(one), len(two))
    elif len(one) != len(two):
        yield Difference("zip", "appended ZIP", "changed", len(one), len(two))


def _constant_nbytes(graph: SubGraph) -> int:
    return sum({id(tensor.buffer): tensor.buffer.nbytes for tensor in graph.tensors}.values())


def _balance(models: Sequence[Model], sizes: Sequence[int], origins: Sequence[Any]) -> tuple[Balance, ...]:
    columns = []
    for model, size, origin in zip(models, sizes, origins, strict=True):
        column: Counter[str] = Counter()
        seen: set[int] = set()
        for graph in model.subgraphs:
            for tensor in graph.tensors:
                if id(tensor.buffer) not in seen and tensor.buffer.nbytes:
                    seen.add(id(tensor.buffer))
                    column[f"{tensor.dtype_name} constants"] += tensor.buffer.nbytes
        other = sum(buffer.nbytes for buffer in model.buffers if id(buffer) not in seen)
        column["metadata and unused buffers"] = other
        column["ZIP"] = origin.tail.nbytes if origin.tail else 0
        column["tables and padding"] = size - sum(column.values())
        columns.append(column)
    names = sorted(columns[0].keys() | columns[1].keys(), key=lambda name: -columns[0][name])
    return tuple(
        Balance(name, columns[0][name], columns[1][name])
        for name in names
        if columns[0][name] or columns[1][name]
    )
