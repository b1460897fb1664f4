"""Whether what was decided of the constants makes the file smaller; what does not, stays."""

from __future__ import annotations

from collections.abc import Sequence

from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.weights.decisions import Decision, group_nbytes, together


def block_useless(model: Model, decisions: Sequence[Decision], blocked: dict[int, tuple[str, str]]) -> None:
    """Blocks constants whose bytes would have to stay, or whose new form is not smaller.

    Args:
        model: Whose constants they are.
        decisions: What is to become of them.
        blocked: Id of each candidate that stays, with ``(rule, reason)``; added to.
    """
    sharing: dict[int, list[Tensor]] = {}
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            sharing.setdefault(id(tensor.buffer), []).append(tensor)
    kept = {id(entry.buffer) for entry in model.metadata} | set(map(id, model.metadata_buffers))
    groups: dict[int, list[Decision]] = {}
    for made in decisions:
        groups.setdefault(id(made.item.stored.buffer), []).append(made)
    for key, group in groups.items():
        changing = {id(made.item.stored) for made in group if id(made.item) not in blocked}
        other = next((item for item in sharing[key] if id(item) not in changing), None)
        reason: tuple[str, str] | None = None
        if other is not None:
            reason = ("shared", f"shares its bytes with {other.name!r}, which stays {other.dtype_name}")
        elif key in kept:
            reason = ("shared", "metadata refers to its bytes")
        elif not any(map(together, group)):
            saved = group[0].item.stored.buffer.nbytes - group_nbytes(group)
            if saved <= 0:
                kind = group[0].dtype.value
                reason = ("not-smaller", f"{kind} with its scales and operators takes {-saved} bytes more")
        if reason is not None:
            for made in group:
                blocked.setdefault(id(made.item), reason)
    _block_together(groups, blocked)


def _block_together(groups: dict[int, list[Decision]], blocked: dict[int, tuple[str, str]]) -> None:
    """Blocks the weights of operators that take all or none, where all of them are not smaller."""
    operators: dict[int, dict[int, list[Decision]]] = {}
    for key, group in groups.items():
        for made in group:
            if together(made) and id(made.item) not in blocked:
                for use in made.item.uses:
                    operators.setdefault(id(use.operator), {})[key] = group
    for buffers in operators.values():
        saved = sum(group[0].item.stored.buffer.nbytes - group_nbytes(group) for group in buffers.values())
        if saved <= 0:
            reason = ("not-smaller", f"int8 takes {-saved} bytes more for all weights of its operator")
            for made in (made for group in buffers.values() for made in group):
                blocked.setdefault(id(made.item), reason)
