"""Which operators of a model do more than compute their outputs from their inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.kernels.table import row_named
from tfl_rewrite.model.ir import Model, Operator, schema

PURE_CUSTOM = "a custom operator that only computes outputs from inputs, so that it may go; repeatable"
"""Help of an option of several passes."""


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
        row = row_named(name)
        if row.effect is not SideEffect.NONE:
            return row.effect, row.effect_reason
        if row.calls:
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
