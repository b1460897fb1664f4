"""Which operators do more than compute their outputs from their inputs.

Sources: the kernels (``tflite/kernels/*.cc``) and the effects that the converter declares for its dialect
(``converter/ir/tfl_ops.td``).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tfl_rewrite.model.ir import Model, Operator, schema


class SideEffect(enum.Enum):
    """What an operator does beside computing its outputs."""

    NONE = "none"
    RANDOM = "gives other numbers from call to call; nothing else notices it"
    STATE = "reads or changes what outlives the call"
    UNKNOWN = "only its kernel knows"


@dataclass(frozen=True, slots=True)
class Row:
    """A builtin operator that does more than compute."""

    operator: str
    effect: SideEffect
    reason: str


ROWS: tuple[Row, ...] = (
    Row("ASSIGN_VARIABLE", SideEffect.STATE, "changes a resource variable"),
    Row("READ_VARIABLE", SideEffect.STATE, "reads a resource variable, which others change"),
    Row("VAR_HANDLE", SideEffect.STATE, "makes a resource variable when it first runs"),
    Row("HASHTABLE", SideEffect.STATE, "makes a table resource when it first runs"),
    Row("HASHTABLE_FIND", SideEffect.STATE, "reads a table resource, which others fill"),
    Row("HASHTABLE_IMPORT", SideEffect.STATE, "fills a table resource"),
    Row("HASHTABLE_SIZE", SideEffect.STATE, "reads a table resource, which others fill"),
    Row("CALL_ONCE", SideEffect.STATE, "runs a subgraph that initialises resources"),
    Row("RANDOM_UNIFORM", SideEffect.RANDOM, "draws random numbers"),
    Row("RANDOM_STANDARD_NORMAL", SideEffect.RANDOM, "draws random numbers"),
    Row("MULTINOMIAL", SideEffect.RANDOM, "draws random numbers"),
    Row("CUSTOM", SideEffect.UNKNOWN, "its kernel is not part of the runtime"),
    Row("DELEGATE", SideEffect.UNKNOWN, "what it runs is not in the file"),
    Row("PLACEHOLDER_FOR_GREATER_OP_CODES", SideEffect.UNKNOWN, "stands for an operator that is not named"),
    Row("STABLEHLO_CUSTOM_CALL", SideEffect.UNKNOWN, "what it calls is not in the file"),
)
BY_NAME = {row.operator: row for row in ROWS}

# They run subgraphs, and do what those do.
_CALLERS = frozenset(
    {
        "CALL",
        "IF",
        "WHILE",
        "STABLEHLO_CASE",
        "STABLEHLO_COMPOSITE",
        "STABLEHLO_REDUCE",
        "STABLEHLO_REDUCE_WINDOW",
        "STABLEHLO_SCATTER",
        "STABLEHLO_SORT",
        "STABLEHLO_WHILE",
    }
)


class Effects:
    """Tells the effect of the operators of one model.

    Args:
        pure_custom: Names of custom operators that do nothing but compute; the user's word.
    """

    def __init__(self, pure_custom: Collection[str] = ()) -> None:
        self.pure_custom = frozenset(pure_custom)
        self._known: dict[int, tuple[SideEffect, str]] = {}
        self._open: set[int] = set()

    def of(self, operator: Operator) -> tuple[SideEffect, str]:
        """Returns what an operator does, and the reason in words."""
        known = self._known.get(id(operator))
        if known is None:
            known = self._known[id(operator)] = self._find(operator)
        return known

    def _find(self, operator: Operator) -> tuple[SideEffect, str]:
        name = operator.code.name
        for tensor in [*operator.inputs, *operator.outputs, *operator.intermediates]:
            if tensor is not None and tensor.is_variable:
                return SideEffect.STATE, f"keeps state in the variable tensor {tensor.name!r}"
        mutating = operator.rest.get("mutating_variable_inputs")
        if mutating is not None and any(mutating):
            return SideEffect.STATE, "declares inputs that it changes"
        if operator.code.custom is not None:
            if name in self.pure_custom:
                return SideEffect.NONE, ""
            return SideEffect.UNKNOWN, "custom operator; name it with --pure-custom if it only computes"
        if name not in schema().enums["BuiltinOperator"].values:
            return SideEffect.UNKNOWN, "newer than this program's schema"
        row = BY_NAME.get(name)
        if row is not None:
            return row.effect, row.reason
        if name in _CALLERS:
            return self._of_subgraphs(operator)
        if any(True for _ in operator.subgraphs()):
            return SideEffect.UNKNOWN, "runs a subgraph"
        return SideEffect.NONE, ""

    def _of_subgraphs(self, operator: Operator) -> tuple[SideEffect, str]:
        if id(operator) in self._open:
            return SideEffect.UNKNOWN, "runs itself"
        subgraphs = list(operator.subgraphs())
        if not subgraphs:
            return SideEffect.UNKNOWN, "the subgraph that it runs is not in the file"
        found = SideEffect.NONE, ""
        self._open.add(id(operator))
        try:
            for inner in (item for subgraph in subgraphs for item in subgraph.operators):
                effect, reason = self.of(inner)
                if effect in (SideEffect.STATE, SideEffect.UNKNOWN):
                    return effect, f"runs {inner.code.name}, which {reason}"
                if effect is SideEffect.RANDOM:
                    found = effect, reason
        finally:
            self._open.discard(id(operator))
        return found


def not_there(model: Model, pure_custom: Iterable[str]) -> list[str]:
    """Returns a note for each name that no custom operator of the model has."""
    known = sorted({code.custom for code in model.operator_codes if code.custom is not None})
    has = f"it has {', '.join(known)}" if known else "it has none"
    return [f"no custom operator is named {name!r}: {has}" for name in sorted(set(pure_custom) - set(known))]
