"""What operators keep from call to call, and who changes what others read.

Resource variables and tables go by the options of the operator that makes their handle; variable tensors by
themselves.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from tfl_rewrite.editing.effects import Effects
from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.ir import Operator, SubGraph, Tensor


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


__all__ = ["lost_change"]
