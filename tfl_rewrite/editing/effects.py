"""Which operators of a model do more than compute their outputs from their inputs, and for whom.

Resource variables and tables go by the options of the operator that makes their handle; variable tensors by
themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence

from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.kernels.table import row_named, row_of
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor, schema

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


def lost_change(
    subgraph: SubGraph, removed: Sequence[Operator], outputs: Iterable[Tensor]
) -> tuple[Operator, Operator] | None:
    """Returns an operator that goes although it changes what one reads that stays, and that one.

    Args:
        subgraph: Still with the operators that are to go.
        removed: Those.
        outputs: What is to be computed; operators that these do not need do not count.
    """
    effects = Effects()
    makers = {
        id(tensor): item for item in subgraph.operators for tensor in item.outputs if tensor is not None
    }
    changed: list[tuple[Operator, set[Hashable] | None]] = []
    for operator in removed:
        if effects.of(operator)[0] is SideEffect.STATE and not row_of(operator).only_reads:
            changed.append((operator, _kept(operator, makers)))
    if not changed:
        return None
    for reader in _needed(makers, set(map(id, removed)), outputs):
        if effects.of(reader)[0] is not SideEffect.STATE or row_of(reader).handle:
            continue
        read = _kept(reader, makers)
        for operator, written in changed:
            if written is None or read is None or written & read:
                return operator, reader
    return None


def _needed(makers: dict[int, Operator], removed: set[int], outputs: Iterable[Tensor]) -> Iterable[Operator]:
    waiting, seen = list(outputs), set()
    while waiting:
        maker = makers.get(id(waiting.pop()))
        if maker is None or id(maker) in removed or id(maker) in seen:
            continue
        seen.add(id(maker))
        yield maker
        waiting += [tensor for tensor in maker.inputs if tensor is not None]


def _kept(operator: Operator, makers: dict[int, Operator]) -> set[Hashable] | None:
    """Returns what an operator's state goes by, or None if that cannot be told."""
    operands = [item for item in [*operator.inputs, *operator.outputs, *operator.intermediates] if item]
    found: set[Hashable] = {id(tensor) for tensor in operands if tensor.is_variable}
    if found:
        return found
    handle = operator.inputs[0] if operator.inputs else None
    maker = operator if row_of(operator).handle else makers.get(id(handle))
    names = row_of(maker).handle if maker is not None else ()
    if not names or maker is None or any(True for _ in operator.subgraphs()):
        return None
    return {(maker.code.name, *(str(maker.option(name) or "") for name in names))}
