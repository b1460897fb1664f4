"""What two models have in common and where they differ: tensor by tensor, operator by operator, in bytes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from tfl_rewrite.files.source import ModelLike, Source
from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.model.likeness import subgraph_pairs, tensor_labels
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.json_data import JsonData
from tfl_rewrite.reading.inspect import byte_accounts, other_values
from tfl_rewrite.reading.metadata import zip_members


@frozen
class Difference:
    """One thing that is not the same.

    Attributes:
        kind: ``tensor``, ``operator``, ``subgraph``, ``signature``, ``metadata``, ``operator code``, ``zip``
            or ``model``.
        where: Its name, with its subgraph where there are several.
        what: ``added``, ``removed``, or what changed.
        nbytes_before: Constant bytes that it had. Those that several tensors share count for each; the
            balance counts them once.
        nbytes_after: Constant bytes that it has.
    """

    kind: str
    where: str
    what: str
    nbytes_before: int = 0
    nbytes_after: int = 0


@frozen
class Balance:
    """Bytes of one kind before and after."""

    name: str
    before: int
    after: int


@frozen
class Comparison(JsonData):
    """All differences of two files, and where their bytes went.

    Attributes:
        identical: Whether the files are equal byte for byte.
        balance: Bytes by what they are (:mod:`tfl_rewrite.reading.inspect`); sums to the sizes of the
            files.
    """

    schema: ClassVar[int] = 1
    before: str
    after: str
    nbytes_before: int
    nbytes_after: int
    identical: bool
    balance: tuple[Balance, ...]
    differences: tuple[Difference, ...]

    def __repr__(self) -> str:
        found = "identical" if self.identical else f"{len(self.differences)} differences"
        return f"<Comparison: {self.nbytes_before:,} -> {self.nbytes_after:,} bytes, {found}>"


def diff(before: ModelLike, after: ModelLike) -> Comparison:
    """Compares the contents of two files; nothing is run.

    Subgraphs are matched by name, else by position; tensors by name within their subgraph, and where a side
    has no name of its own by their order, types and shapes; operators by their type and what they make.
    What the runtime reads alike (absent and empty, equal constants stored once or twice) is no difference.

    Args:
        before: The first: a path, bytes, an open file or a model.
        after: The second.

    Raises:
        FormatError, FileAccessError, UnsupportedError: As for :func:`tfl_rewrite.files.source.load`.

    Example:
        >>> found = tfl_rewrite.diff("model.tflite", "new.tflite")
        >>> sum(row.nbytes_before - row.nbytes_after for row in found.differences) > 60_000
        True
    """
    origins = Source.of(before), Source.of(after)
    models = origins[0].model(), origins[1].model()
    data = origins[0].container.data, origins[1].container.data
    found = [
        *_model_differences(*models),
        *_zip_difference(*(origin.tail.data if origin.tail else memoryview(b"") for origin in origins)),
    ]
    return Comparison(
        origins[0].path,
        origins[1].path,
        len(data[0]),
        len(data[1]),
        len(data[0]) == len(data[1]) and data[0] == data[1],
        _balance(models),
        tuple(found),
    )


def _model_differences(one: Model, two: Model) -> Iterable[Difference]:
    if one.description != two.description:
        yield Difference("model", "description", f"{one.description!r} became {two.description!r}")
    yield from _codes(one, two)
    several = max(len(one.subgraphs), len(two.subgraphs)) > 1
    for left, right in subgraph_pairs(one, two):
        side, model = (left, one) if left is not None else (right, two)
        where = f"subgraphs[{next(i for i, item in enumerate(model.subgraphs) if item is side)}]"
        if right is None:
            assert left is not None
            yield Difference("subgraph", where, "removed", _constant_nbytes(left), 0)
        elif left is None:
            yield Difference("subgraph", where, "added", 0, _constant_nbytes(right))
        else:
            yield from _subgraph(left, right, f"{where}/" if several else "")
    yield from _signatures(one, two)
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
    names = tensor_labels(one, two)
    tensors = [
        {labels[id(tensor)]: tensor for tensor in graph.tensors}
        for graph, labels in zip((one, two), names, strict=True)
    ]
    nameless = 0
    for name, tensor in tensors[0].items():
        other = tensors[1].get(name)
        if other is None:
            yield Difference("tensor", prefix + name, "removed", tensor.buffer.nbytes, 0)
            continue
        changes = _tensor_changes(tensor, other, names)
        if tensor.name and not other.name:
            nameless += 1
        elif tensor.name != other.name:
            changes.append(f"name {tensor.name!r} became {other.name!r}")
        if changes:
            yield Difference(
                "tensor", prefix + name, "; ".join(changes), tensor.buffer.nbytes, other.buffer.nbytes
            )
    for name, tensor in tensors[1].items():
        if name not in tensors[0]:
            yield Difference(
                "tensor", prefix + name, f"added as {tensor.dtype_name}", 0, tensor.buffer.nbytes
            )
    if nameless:
        what = f"{nameless} lost {'its name' if nameless == 1 else 'their names'}"
        yield Difference("subgraph", f"{prefix}tensors", what)
    if (one.name or "") != (two.name or ""):
        yield Difference("subgraph", f"{prefix}name", f"{one.name!r} became {two.name!r}")
    for what, sides in (("inputs", (one.inputs, two.inputs)), ("outputs", (one.outputs, two.outputs))):
        labels = [[table[id(item)] for item in items] for items, table in zip(sides, names, strict=True)]
        if labels[0] != labels[1]:
            yield Difference("subgraph", f"{prefix}{what}", f"{labels[0]} became {labels[1]}")
    yield from _operators(one, two, names, prefix)


def _tensor_changes(one: Tensor, two: Tensor, labels: Sequence[Mapping[int, str]]) -> list[str]:
    changes = []
    if one.dtype != two.dtype:
        changes.append(f"{one.dtype_name} became {two.dtype_name}")
    if (one.shape or ()) != (two.shape or ()):
        changes.append(f"shape {one.shape} became {two.shape}")
    # An absent one stands for the shape.
    signs = [item.shape or () if item.signature is None else item.signature for item in (one, two)]
    if signs[0] != signs[1] and (one.signature, two.signature) != (None, None):
        changes.append(f"signature {signs[0]} became {signs[1]}")
    if one.is_variable != two.is_variable:
        changes.append("is a variable now" if two.is_variable else "is no variable now")
    if one.is_constant != two.is_constant:
        changes.append("is a constant now" if two.is_constant else "is computed now")
    elif one.dtype == two.dtype and (said := other_values(one, two)):
        changes.append(said)
    if _slice(one) != _slice(two):
        changes.append("another slice of a weight file")
    details = [_quantization(item, table) for item, table in zip((one, two), labels, strict=True)]
    if details[0] != details[1]:
        changes.append("other quantization")
    ranges = [
        [
            _said(item.quantization.rest, name) if item.quantization is not None else None
            for item in (one, two)
        ]
        for name in ("min", "max")
    ]
    if any(left != right for left, right in ranges):
        changes.append("other min and max")
    for name in ("sparsity", "has_rank", "variant_tensors"):
        if _said(one.rest, name) != _said(two.rest, name):
            changes.append(f"other {name}")
    return changes


def _said(record: Record, name: str) -> Any:
    """Returns a field, None where it is as good as absent."""
    value = record.get(name)
    return None if isinstance(value, (ScalarVector, list)) and not len(value) else value


def _slice(tensor: Tensor) -> object:
    row = tensor.external
    return None if row is None else (row.group.name, row.offset, row.nbytes)


def _quantization(tensor: Tensor, labels: Mapping[int, str]) -> object:
    details = tensor.quantization
    if details is None or not (details.is_quantized or details.zero_point):
        return None
    kind = details.rest.get("details")
    return (
        bytes(details.scale.raw) if details.scale else b"",
        bytes(details.zero_point.raw) if details.zero_point else b"",
        details.dimension,
        None if kind is None else {**kind.values, "scales": None, "zero_points": None},
        *(
            None if item is None else labels[id(item)]
            for item in (details.scales_tensor, details.zero_points_tensor)
        ),
    )


def _operators(
    one: SubGraph, two: SubGraph, names: Sequence[Mapping[int, str]], prefix: str
) -> Iterable[Difference]:
    def label(operator: Operator, table: Mapping[int, str]) -> str:
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
    orders = [
        [name for operator in graph.operators if (name := label(operator, table)) in others]
        for graph, table, others in zip((one, two), names, sides[::-1], strict=True)
    ]
    if orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]):
        yield Difference("subgraph", f"{prefix}operators", "run in another order")


def _operator_changes(one: Operator, two: Operator, names: Sequence[Mapping[int, str]]) -> list[str]:
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
    between = [
        [None if item is None else table[id(item)] for item in operator.intermediates]
        for operator, table in zip((one, two), names, strict=True)
    ]
    if between[0] != between[1]:
        changes.append(f"intermediates {between[0]} became {between[1]}")
    for what in ("options", "options2"):
        changes += _option_changes(getattr(one, what), getattr(two, what))
    if _custom_options(one) != _custom_options(two):
        changes.append("other custom options")
    if _said(one.rest, "mutating_variable_inputs") != _said(two.rest, "mutating_variable_inputs"):
        changes.append("other mutating_variable_inputs")
    return changes


def _custom_options(operator: Operator) -> bytes:
    if operator.large_custom is not None:
        return bytes(operator.large_custom.view())
    value = operator.rest.get("custom_options")
    return bytes(value.raw) if value is not None else b""


def _option_changes(one: Record | None, two: Record | None) -> list[str]:
    if one is None or two is None:
        return [] if one is two else ["other options"]
    if one.spec.name != two.spec.name:
        return [f"{one.spec.name} became {two.spec.name}"]
    changes = []
    for name in one.spec.by_name:
        left, right = one.get(name), two.get(name)
        if any(isinstance(item, SubGraph) for side in (left, right) for item in _items(side)):
            # Subgraphs are compared by themselves.
            continue
        if left != right:
            changes.append(f"{name} {left} became {right}")
    return changes


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _signatures(one: Model, two: Model) -> Iterable[Difference]:
    sides = [
        _numbered(
            [
                (
                    item.key or "",
                    [
                        [(row.get("name"), tensor.name) for row, tensor in rows]
                        for rows in (item.inputs, item.outputs)
                    ],
                )
                for item in model.signatures
            ]
        )
        for model in (one, two)
    ]
    for name in sides[0]:
        if name not in sides[1]:
            yield Difference("signature", name, "removed")
            continue
        for what, left, right in zip(("inputs", "outputs"), sides[0][name], sides[1][name], strict=True):
            if left != right:
                said = [
                    ", ".join(f"{known} = {tensor!r}" for known, tensor in side) for side in (left, right)
                ]
                yield Difference("signature", name, f"{what} ({said[0]}) became ({said[1]})")
    for name in sides[1]:
        if name not in sides[0]:
            yield Difference("signature", name, "added")


def _metadata(one: Model, two: Model) -> Iterable[Difference]:
    sides = [
        [
            (entry.name or "", bytes(entry.buffer.blob.view()) if entry.buffer.blob else b"")
            for entry in model.metadata
        ]
        for model in (one, two)
    ]
    yield from _named("metadata", *sides)


def _named(
    kind: str, one: Sequence[tuple[str, bytes]], two: Sequence[tuple[str, bytes]]
) -> Iterable[Difference]:
    left, right = _numbered(one), _numbered(two)
    for name, content in left.items():
        if name not in right:
            yield Difference(kind, name, "removed", len(content), 0)
        elif right[name] != content:
            yield Difference(kind, name, "changed", len(content), len(right[name]))
    for name, content in right.items():
        if name not in left:
            yield Difference(kind, name, "added", 0, len(content))


def _numbered(rows: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns them by name, the second of a name as ``name[1]``."""
    found: dict[str, Any] = {}
    count: Counter[str] = Counter()
    for name, content in rows:
        found[f"{name}[{count[name]}]" if count[name] else name] = content
        count[name] += 1
    return found


def _zip_difference(one: memoryview, two: memoryview) -> Iterable[Difference]:
    if bool(one) != bool(two):
        yield Difference("zip", "appended ZIP", "added" if two else "removed", len(one), len(two))
    elif _members(one) != _members(two):
        yield Difference("zip", "appended ZIP", "changed", len(one), len(two))


def _members(data: memoryview) -> object:
    """Returns what is in a ZIP. Its bytes are no measure: offsets in it count from the start of the file."""
    if not data:
        return ()
    try:
        return [(item.filename, item.file_size, item.CRC) for item in zip_members(bytes(data))]
    except ValueError:
        return bytes(data)


def _constant_nbytes(graph: SubGraph) -> int:
    return sum({id(tensor.buffer): tensor.buffer.nbytes for tensor in graph.tensors}.values())


def _balance(models: Sequence[Model]) -> tuple[Balance, ...]:
    columns = [byte_accounts(model) for model in models]
    names = sorted(columns[0].keys() | columns[1].keys(), key=lambda name: (-columns[0].get(name, 0), name))
    return tuple(Balance(name, columns[0].get(name, 0), columns[1].get(name, 0)) for name in names)
