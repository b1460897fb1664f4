"""Which float constants of a model could be stored smaller, and which cannot, with the reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import field

from tfl_rewrite.editing.base import Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels.operands import weights_of
from tfl_rewrite.kernels.operators import Need
from tfl_rewrite.kernels.table import ADD, CAST, DEQUANTIZE, EXPANDING, GATHER, MUL, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.graph import Graph, Use
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.options.patterns import Pattern
from tfl_rewrite.weights.sparse import DenseBlob, densify_of, indices_nbytes, is_sound, leave_out

# The converter's own threshold (``kWeightsMinNumElementsDefault`` of ``quantize_weights.cc``).
_CONVERTER_ELEMENTS = 1024
LEAST_ELEMENTS = 64
"""Smaller constants stay: a DEQUANTIZE of their own would cost more than they."""
UNNAMED = "(unnamed)"
_WEIGHT_TYPES = ("FLOAT32", "FLOAT16", "INT8", "INT4", "INT2")

_LONGEST_EXPANSION = 4
_LONGEST_SUM = 3
"""Operators on the way from a constant to what it is multiplied with: DEQUANTIZE, ADD, MUL."""

_INTEGERS = ("INT8", "UINT8", "INT4", "INT2")
_FLOATS = ("FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64")


@slotted(eq=False)
class Candidate:
    """A float constant as the operators see it.

    Attributes:
        subgraph: Where it lies.
        stored: The constant tensor in the file.
        value: The float32 tensor that operators read: ``stored`` itself, or the output of the
            DEQUANTIZE that expands a float16 constant.
        expand: That DEQUANTIZE, or None.
        uses: Where the value is read.
        together: Elements of all weights of an operator that reads this one and takes all as int8 or none.
        densify: The DENSIFY that makes a sparse constant dense, or None.
        dense: The dense bytes of such a constant.
    """

    subgraph: SubGraph
    stored: Tensor
    value: Tensor
    expand: Operator | None
    uses: list[Use] = field(default_factory=list)
    together: int = 0
    densify: Operator | None = None
    dense: DenseBlob | None = None

    @property
    def blob(self) -> Blob:
        """Its bytes, one element after the other."""
        held = self.dense or self.stored.buffer.blob
        assert held is not None
        return held

    @property
    def nbytes(self) -> int:
        """What its elements take in the file."""
        details = self.stored.rest.get("sparsity")
        return self.stored.buffer.nbytes + (indices_nbytes(details) if details is not None else 0)

    def make_dense(self, editor: Editor) -> None:
        """Lets a sparse constant be a dense one in the same buffer, whose bytes are left to the caller."""
        if self.densify is not None:
            self.stored = leave_out(editor, self.subgraph, self.stored, self.densify)
            self.densify = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return self.stored.shape or ()

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.stored.elements

    @property
    def is_weight(self) -> bool:
        """Whether every reader has a hybrid kernel that takes it as its weight."""
        return bool(self.uses) and all(use.position in row_of(use.operator).weights for use in self.uses)

    @property
    def is_bias(self) -> bool:
        """Whether every reader adds it to what its layer gives."""
        return bool(self.uses) and all(use.position in row_of(use.operator).biases for use in self.uses)

    @property
    def readers(self) -> list[str]:
        """Types of the operators that read it, each once."""
        return list(dict.fromkeys(use.operator.code.name for use in self.uses))


BIAS = "bias", "a bias; in int8 it would cost more accuracy than it saves bytes"
"""Rule and reason why one is no integer."""

INCLUDE = "rewrite only constants whose name, or the type of an operator that reads them, matches; repeatable"
EXCLUDE = "keep constants whose name or reader's type matches; wins over --include; repeatable"
"""Help of options of several passes."""


@frozen
class Selection:
    """Which constants a user wants changed.

    Attributes:
        min_elements: Smaller constants stay. None: the converter's 1,024, and in a small model fewer for
            weights that a hybrid kernel reads: a four-hundredth of all its constant elements, at least 64.
        include: If any, only constants whose name, or the type of an operator that reads them, matches one.
        exclude: Constants whose name or reader matches one stay, whatever ``include`` says.
        keep_first_last: Keep those of the first and the last operator with a large weight.
    """

    min_elements: int | None = None
    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    keep_first_last: bool = False

    def least(self, model: Model, scales: Collection[int] = ()) -> tuple[int, int]:
        """Returns how many elements a constant must have, and how many a hybrid kernel's weight must.

        Args:
            model: The model.
            scales: Ids of constants that do not count, for they are the scales of others.
        """
        if self.min_elements is not None:
            return self.min_elements, self.min_elements
        # Counted in elements, which rewriting does not change, so a second run decides the same.
        elements = {
            id(tensor.buffer): tensor.elements
            for _, tensor in model.tensors()
            if tensor.is_constant and tensor.dtype_name in _WEIGHT_TYPES and id(tensor) not in scales
        }
        part = sum(elements.values()) // 400
        return _CONVERTER_ELEMENTS, max(LEAST_ELEMENTS, min(_CONVERTER_ELEMENTS, part))

    def unwanted(self, words: Sequence[str]) -> tuple[str, str] | None:
        """Returns ``(rule, reason)`` if the patterns leave out a constant of these names and readers."""
        for pattern in self.exclude:
            if any(pattern.search(word) for word in words):
                return "excluded", f"excluded by {pattern.pattern!r}"
        if self.include and not any(p.search(word) for p in self.include for word in words):
            return "not-included", "matches no --include"
        return None

    def refuses(self, item: Candidate, least: tuple[int, int], ends: set[int]) -> tuple[str, str] | None:
        """Returns ``(rule, reason)`` if the constant is to stay, else None."""
        unwanted = self.unwanted([item.value.name, item.stored.name, *item.readers])
        if unwanted is not None:
            return unwanted
        needed = least[1] if item.is_weight else least[0]
        if max(item.elements, item.together) < needed:
            return "small", f"{item.elements} elements, fewer than {needed}"
        if any(id(use.operator) in ends for use in item.uses):
            return "first-or-last", "belongs to the first or the last weighted operator"
        return None


def find_candidates(model: Model, graph: Graph) -> tuple[list[Candidate], list[Skip]]:
    """Finds the float constants of a model.

    Returns:
        Those that can be rewritten, in file order, and a reason for each other float constant.
    """
    found: list[Candidate] = []
    skips: list[Skip] = []
    for subgraph, tensor in model.tensors():
        if tensor.dtype_name not in _FLOATS or not tensor.is_constant:
            continue
        item = _candidate(subgraph, tensor, graph)
        reason = _fixed(item, graph)
        if reason is None:
            found.append(item)
        else:
            skips.append(skip(item, *reason))
    return found, skips


def stored_already(model: Model, graph: Graph) -> Iterator[tuple[Candidate, Skip]]:
    """Yields the constants that are integers with scales already, each with the reason why it stays."""
    for subgraph, tensor in model.tensors():
        details = tensor.quantization
        if tensor.dtype_name not in _INTEGERS or details is None or not details.is_quantized:
            continue
        if tensor.is_constant and id(tensor) not in graph.given:
            item = Candidate(subgraph, tensor, tensor, None, graph.uses_of(tensor))
            kind = tensor.dtype_name.lower()
            reason = f"it is {kind} already; 'dequantize' would make it float32"
            yield item, skip(item, "quantized", reason)


def unmatched(selection: Selection, model: Model, graph: Graph) -> list[tuple[str, Pattern, list[str]]]:
    """Returns the patterns of a selection that match no constant at all, whatever becomes of it.

    Returns:
        ``include`` or ``exclude``, the pattern, and the names and types that it was searched in.
    """
    asked = [("include", item) for item in selection.include]
    asked += [("exclude", item) for item in selection.exclude]
    if not asked:
        return []
    words = {
        word: None for _, tensor in model.tensors() if tensor.is_constant for word in _words_of(tensor, graph)
    }
    known = sorted(words)
    return [(name, item, known) for name, item in asked if not any(map(item.search, known))]


def _words_of(tensor: Tensor, graph: Graph) -> Iterator[str]:
    """Yields the names of a constant, and the types of the operators that read it."""
    for one in expanded(tensor, graph):
        yield from [one.name] if one.name else []
        yield from (use.operator.code.name for use in graph.uses_of(one))


def expanded(tensor: Tensor, graph: Graph, steps: int = _LONGEST_EXPANSION) -> Iterator[Tensor]:
    """Yields a constant, and what it becomes behind DEQUANTIZE: there is the name that it had as floats."""
    yield tensor
    for use in graph.uses_of(tensor) if steps else ():
        row = row_of(use.operator)
        if row is DEQUANTIZE or (steps < _LONGEST_EXPANSION and row in EXPANDING):
            for output in use.operator.outputs:
                if output is not None:
                    yield from expanded(output, graph, steps - 1)


def with_partners(parts: set[int], model: Model, graph: Graph) -> set[int]:
    """Adds what others are multiplied with or added to behind DEQUANTIZE: scales, and the halves of int6."""
    found = set(parts)
    groups = []
    for _, operator in model.operators():
        if row_of(operator) in (MUL, ADD) and operator.outputs:
            behind = _constants_behind(operator.outputs[0], graph, _LONGEST_SUM)
            groups += [behind] if behind is not None else []
    while True:
        more = {key for group in groups if group & found for key in group} - found
        if not more:
            return found
        found |= more


def _constants_behind(tensor: Tensor | None, graph: Graph, steps: int) -> set[int] | None:
    """Returns the ids of what a tensor is computed from; None where that is not constants alone."""
    maker = graph.maker_of(tensor) if tensor is not None and steps else None
    row = row_of(maker) if maker is not None else None
    if maker is None or not maker.inputs or row not in (DEQUANTIZE, MUL, ADD):
        return None
    if row is DEQUANTIZE:
        stored = maker.inputs[0]
        return {id(stored)} if stored is not None and stored.is_constant else None
    found = [_constants_behind(item, graph, steps - 1) for item in maker.inputs]
    known = [item for item in found if item is not None]
    return set().union(*known) if len(known) == len(found) else None


def skip(item: Candidate, rule: str, reason: str) -> Skip:
    """Makes the report of a candidate that stays."""
    return stays(item.stored, item.value.name, item.readers, rule, reason)


def stays(tensor: Tensor, name: str, readers: Sequence[str], rule: str, reason: str) -> Skip:
    """Makes the report of a constant that stays."""
    data = {
        "dtype": tensor.dtype_name,
        "shape": list(tensor.shape or ()),
        "nbytes": tensor.buffer.nbytes,
        "readers": list(readers),
    }
    return Skip(name or UNNAMED, reason, rule, data)


def first_and_last(items: Sequence[Candidate], least: tuple[int, int]) -> set[int]:
    """Returns the ids of the first and last operator of each main or signature subgraph with a weight."""
    ends: set[int] = set()
    for subgraph in {id(item.subgraph): item.subgraph for item in items}.values():
        weighted = {
            id(use.operator)
            for item in items
            if item.subgraph is subgraph and item.elements >= least[1]
            for use in item.uses
            if row_of(use.operator).weights
        }
        order = [id(operator) for operator in subgraph.operators if id(operator) in weighted]
        ends.update(order[:1] + order[-1:])
    return ends


def _factor_of(tensor: Tensor, graph: Graph) -> Operator | None:
    """Returns what makes the other factor, where a product alone reads a tensor."""
    readers = graph.uses_of(tensor)
    if len(readers) != 1 or row_of(readers[0].operator) is not MUL:
        return None
    others = [item for item in readers[0].operator.inputs if item is not None and item is not tensor]
    return graph.maker_of(others[0]) if len(others) == 1 else None


def _scales_rows(use: Use, graph: Graph) -> bool:
    """Whether a lookup reads scales: its output multiplies int8 rows that were cast to floats."""
    found = use.operator.outputs[0] if use.operator.outputs else None
    if row_of(use.operator) is not GATHER or use.position != 0 or found is None:
        return False
    cast = _factor_of(found, graph)
    rows = cast.inputs[0] if cast is not None and row_of(cast) is CAST and cast.inputs else None
    return rows is not None and rows.dtype == dtypes.INT8.value


def scale_constants(graph: Graph, model: Model) -> set[int]:
    """Returns the ids of the float16 constants that are the scales of blocks of integers.

    Those that a blockwise quantization names, and those that are expanded to multiply what comes out of a
    DEQUANTIZE of integers, one for each row.
    """
    return {
        id(tensor)
        for _, tensor in model.tensors()
        if tensor.dtype == dtypes.FLOAT16.value
        and tensor.is_constant
        and (id(tensor) in graph.given or _scales_blocks(tensor, graph))
    }


def _scales_blocks(tensor: Tensor, graph: Graph) -> bool:
    uses = graph.uses_of(tensor)
    shape = tensor.shape or ()
    columns = len(shape) >= 2 and all(size == 1 for size in shape[1:])
    if not columns or len(uses) != 1 or row_of(uses[0].operator) is not DEQUANTIZE:
        return False
    output = uses[0].operator.outputs[0] if uses[0].operator.outputs else None
    maker = _factor_of(output, graph) if output is not None else None
    if maker is not None and row_of(maker) is ADD:
        # Integers in two parts.
        first = maker.inputs[0] if maker.inputs else None
        maker = graph.maker_of(first) if first is not None else None
    stored = maker.inputs[0] if maker is not None and row_of(maker) is DEQUANTIZE else None
    return stored is not None and stored.is_constant and stored.dtype_name in ("INT8", "INT4", "INT2")


def _together(uses: Sequence[Use]) -> int:
    rows = [(use, row_of(use.operator)) for use in uses]
    return max(
        (
            sum(tensor.elements for tensor in weights_of(use.operator))
            for use, row in rows
            if Need.ALL_OR_NOTHING in row.needs and use.position in row.weights
        ),
        default=0,
    )


def _candidate(subgraph: SubGraph, tensor: Tensor, graph: Graph) -> Candidate:
    densify = densify_of(tensor, graph) if tensor.is_sparse else None
    value = densify.outputs[0] if densify is not None else tensor
    assert value is not None
    expand, uses = None, graph.uses_of(value)
    if tensor.dtype == dtypes.FLOAT16.value and uses and len({id(use.operator) for use in uses}) == 1:
        operator = uses[0].operator
        output = operator.outputs[0] if operator.outputs else None
        if row_of(operator) is DEQUANTIZE and output is not None:
            value, expand, uses = output, operator, graph.uses_of(output)
    item = Candidate(subgraph, tensor, value, expand, uses, _together(uses), densify)
    if densify is not None and is_sound(tensor):
        item.dense = DenseBlob(tensor)
    return item


def _fixed(item: Candidate, graph: Graph) -> tuple[str, str] | None:
    """Returns why a constant cannot be rewritten, or None."""
    stored = item.stored
    if stored.external is not None:
        name = stored.external.group.name or "another file"
        return "external", f"its bytes are in {name!r}, beside the model"
    if stored.is_sparse and item.dense is None:
        return "sparse", "its bytes are in a compressed sparse form that no DENSIFY alone reads, or unsound"
    need = dtypes.BY_VALUE[stored.dtype].nbytes(item.elements)
    if item.dense is None and stored.buffer.nbytes != need:
        return "damaged", f"its buffer holds {stored.buffer.nbytes} bytes, its shape takes {need}"
    if id(stored) in graph.given:
        return "interface", "it is an input, or holds the scales of another tensor"
    if id(stored) in graph.exposed or id(item.value) in graph.exposed:
        # Need.NOT_SUBGRAPH_OUTPUT: XNNPACK returns garbage for it.
        return "interface", "it is an output of its subgraph or of a signature"
    if not item.uses:
        return "unused", "no operator reads it"
    if graph.maker_of(stored) is not None:
        return "computed", "an operator writes to it"
    if stored.dtype == dtypes.FLOAT16.value:
        if item.expand is None:
            return "float16", "operators read it as float16"
        if item.value.dtype != dtypes.FLOAT32.value:
            return "float16", "its DEQUANTIZE is of an unusual form"
    elif stored.dtype != dtypes.FLOAT32.value:
        return "dtype", f"it is {stored.dtype_name}"
    if all(_scales_rows(use, graph) for use in item.uses):
        return "scales", "it holds the scales of an int8 table"
    if _scales_blocks(stored, graph):
        return "scales", "it holds the scales of blocks of integers"
    for use in item.uses:
        name = use.operator.code.name
        if use.operator.code.custom is not None:
            return "custom", f"the custom operator {name} may need it as a constant"
        reason = row_of(use.operator).constant_inputs.get(use.position)
        if reason is not None:
            return "constant", reason
        if use.operator.options is not None and "quant_spec" in use.operator.options:
            return "own-quantization", f"{name} has a quantization of its own"
    return None
