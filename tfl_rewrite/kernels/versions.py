"""Which version of an operator the features in use need.

The facts are :data:`tfl_rewrite.kernels.operators.VERSION_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tfl_rewrite.kernels import needs, runtimes
from tfl_rewrite.kernels.operators import VERSION_RULES
from tfl_rewrite.kernels.reads import is_blockwise, operators_of, scales_of, weight_reads
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Operator, OperatorCode, Tensor


@dataclass(frozen=True, slots=True)
class TooHigh:
    """An operator code whose version keeps runtimes away that have all that its operators use.

    Attributes:
        places: Of its operators.
        needed: The version that they need.
    """

    code: OperatorCode
    operators: tuple[Operator, ...]
    places: tuple[str, ...]
    needed: int


def needed_version(operator: Operator) -> int | None:
    """Returns the lowest version whose contract covers what a builtin operator uses, or None if unknown.

    Of a weight that a hybrid kernel reads, :class:`~tfl_rewrite.kernels.reads.WeightRead` knows more.
    """
    name = operator.code.name
    if operator.code.custom is not None or any(
        tensor is not None and is_blockwise(tensor) for tensor in operator.inputs
    ):
        # Blocks have no version of their own (BLOCKWISE_VERSION), so what a file says of them stays.
        return None
    rules = VERSION_RULES.get(name, ())
    met = [rule.version for rule in rules if all(_holds(term, operator) for term in rule.terms)]
    return max(met, default=1)


def too_high(model: Model) -> Iterator[TooHigh]:
    """Yields operator codes of a higher version than any of their operators needs.

    A code that one operator needs is right for all that share it: converters write one for each kind.
    """
    weights: dict[int, int] = {}
    for read in weight_reads(model):
        key = id(read.operator)
        weights[key] = max(weights.get(key, 1), read.needed_version())
    groups: dict[int, list[tuple[Operator, str]]] = {}
    for _, operator, place in operators_of(model):
        groups.setdefault(id(operator.code), []).append((operator, place))
    for group in groups.values():
        code = group[0][0].code
        each = [needed_version(operator) for operator, _ in group] if code.version > 1 else [None]
        if None in each:
            continue
        known = [weights.get(id(operator), 1) for operator, _ in group]
        needed = max(*(item for item in each if item is not None), *known)
        if needed < code.version and _is_later(code.name, code.version, needed):
            yield TooHigh(
                code, tuple(operator for operator, _ in group), tuple(place for _, place in group), needed
            )


_OLDEST = (1, 14)
"""Runtimes up to this one count as one: nobody meets an older one."""


def _is_later(name: str, version: int, than: int) -> bool:
    """Whether a version came with a later runtime than another; one that no runtime has came after all."""
    first = runtimes.version_text(name, than)
    if first is None:
        return False
    found = runtimes.version_text(name, version)
    if found is None:
        return version > runtimes.max_version(name, runtimes.NEWEST_RUNTIME)
    return runtimes.runtime_of(found) > max(_OLDEST, runtimes.runtime_of(first))


def _holds(term: str, operator: Operator) -> bool:
    if term.startswith("!"):
        return not _holds(term[1:], operator)
    if term.startswith("="):
        return _is_set(operator, term[1:])
    subject, colon, test = term.partition(":")
    if not colon:
        return WORDS[term](operator)
    return any(_passes(tensor, test) for tensor in _operands(operator, subject))


def _operands(operator: Operator, subject: str) -> list[Tensor | None]:
    if subject == "any":
        return [*operator.inputs, *operator.outputs]
    items = operator.outputs if subject.startswith("out") else operator.inputs
    position = int(subject.removeprefix("out") or 0)
    return items[position : position + 1]


def _passes(tensor: Tensor | None, test: str) -> bool:
    if tensor is None:
        return False
    word, sign, number = test.partition(">") if ">" in test else test.partition("=")
    if word == "rank":
        rank = len(tensor.shape or ())
        return rank > int(number) if sign == ">" else rank == int(number)
    if test in TESTS:
        return TESTS[test](tensor)
    return tensor.dtype_name in test.split("|")


def _is_set(operator: Operator, name: str) -> bool:
    """Whether an option is not what it is by default."""
    options = operator.options
    if options is None or name not in options.spec.by_name:
        return False
    value: Any = options.get(name)
    return bool(value != options.spec.by_name[name].default)


def _broadcasts(operator: Operator) -> bool:
    return len(operator.inputs) > 1 and _shape(operator.inputs[0]) != _shape(operator.inputs[1])


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tensor.shape


def _rescaled(operator: Operator) -> bool:
    """Whether a product of scales is not below the scale of the output."""
    tensors = [*operator.inputs[:2], *operator.outputs[:1]]
    scales = [scales_of(tensor)[:1] if tensor is not None else [] for tensor in tensors]
    if len(scales) < 3 or not all(scales) or not all(scale[0] for scale in scales):
        return False
    return scales[0][0] * scales[1][0] / scales[2][0] >= 1


TESTS: dict[str, Callable[[Tensor], bool]] = {
    "channels": lambda tensor: len(scales_of(tensor)) > 1,
    "present": lambda tensor: True,
    "sparse": lambda tensor: tensor.is_sparse,
    "unquantized": lambda tensor: tensor.quantization is None,
}
WORDS: dict[str, Callable[[Operator], bool]] = {
    "always": lambda operator: True,
    "broadcast": _broadcasts,
    "grouped": needs.grouped,
    "rescaled": _rescaled,
}
TYPES = frozenset(dtypes.BY_NAME)
