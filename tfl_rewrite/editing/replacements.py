"""What takes the place of what a pattern matches, as data, and how such replacements are carried out.

A :class:`Fusion` is a pattern (:mod:`tfl_rewrite.editing.patterns`) and a short maker; :func:`fuse` goes
through a model, again and again until nothing matches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tfl_rewrite.editing.base import Edit, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.patterns import Match, Matcher, Op
from tfl_rewrite.kernels.reads import needed_version
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a match stays as it is.

    Attributes:
        reason: In words.
        rule: A short stable name of it.
    """

    reason: str
    rule: str


Making = Sequence[Operator] | Refused | None
"""The operators that take the place of a match, in order, the last of which gives out what it did; operators
of the match may be among them. A reason where it stays; None where there is nothing to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """What takes the place of what.

    Attributes:
        kind: What users call it.
        patterns: What it matches: the first that does.
        make: Makes what takes the place.
        within: The value whose shape what is made gives out, by its name: no number of the match may have
            given it more axes or larger ones. Empty where what is made has a shape of its own.
        exact: Whether no number changes.
        known_to_xnnpack: Whether XNNPACK does the same by itself when it loads a file, so that no time is won
            where it computes.
    """

    kind: str
    patterns: tuple[Op, ...]
    make: Callable[[Match, Editor], Making]
    within: str = ""
    exact: bool = False
    known_to_xnnpack: bool = False


@dataclass(slots=True)
class Fused:
    """What :func:`fuse` did.

    Attributes:
        changes: One for each match that was replaced.
        skips: One for each that was not, with the reason.
        exact: Whether no number changed.
    """

    changes: list[Edit] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    exact: bool = True


def stamped(operator: Operator, editor: Editor) -> Operator:
    """Asks for the version that an operator needs; never a lower one than it has."""
    editor.stamp(operator, needed_version(operator) or 1)
    return operator


def fuse(model: Model, fusions: Sequence[Fusion], editor: Editor) -> Fused:
    """Replaces what fusions match, until nothing does; earlier ones have the first choice.

    Args:
        model: Changed in place.
        fusions: In order of preference.
        editor: Of the model; the caller calls :meth:`Editor.finish`.
    """
    done = Fused()
    while True:
        before = len(done.changes)
        done.skips.clear()
        matcher = Matcher(model)
        for subgraph in model.subgraphs:
            _Round(matcher, subgraph, editor, done).run(fusions)
        if len(done.changes) == before:
            return done


class _Round:
    """One search through a subgraph; what matches in it has no operator in common."""

    def __init__(self, matcher: Matcher, subgraph: SubGraph, editor: Editor, done: Fused) -> None:
        self.matcher, self.subgraph, self.editor, self.done = matcher, subgraph, editor, done
        self.touched: set[int] = set()
        self.made: dict[int, Sequence[Operator]] = {}
        self.replaced: list[Tensor] = []

    def run(self, fusions: Sequence[Fusion]) -> None:
        for fusion in fusions:
            for operator in self.subgraph.operators:
                if id(operator) not in self.touched:
                    self._try(fusion, operator)
        if not self.made:
            return
        operators = []
        for operator in self.subgraph.operators:
            if id(operator) not in self.touched:
                operators.append(operator)
            operators += self.made.get(id(operator), ())
        self.subgraph.operators = operators
        self._drop_unread()

    def _try(self, fusion: Fusion, operator: Operator) -> None:
        for pattern in fusion.patterns:
            match = self.matcher.match(pattern, self.subgraph, operator)
            if match is None or any(id(item) in self.touched for item in match.operators):
                continue
            if fusion.within and not _is_within(match, fusion.within):
                continue
            names = [item.code.name for item in match.operators]
            where = f"{operator.code.name} -> {match.output.name or '(unnamed)'}"
            operands = [item for each in match.operators for item in (*each.inputs, *each.outputs)]
            made = fusion.make(match, self.editor)
            if made is None:
                continue
            if isinstance(made, Refused):
                self.done.skips.append(Skip(where, made.reason, made.rule))
                continue
            self.touched.update(map(id, match.operators))
            self.made[id(operator)] = made
            self.replaced += [item for item in operands if item is not None]
            self.done.exact &= fusion.exact
            data = {
                "kind": fusion.kind,
                "before": names,
                "after": [item.code.name for item in made],
                "known_to_xnnpack": fusion.known_to_xnnpack,
            }
            self.done.changes.append(Edit(where, _told(match, made), data=data))
            return

    def _drop_unread(self) -> None:
        """Removes what lost its last reader: tensors, and what expands a float16 constant."""
        graph = self.matcher.graph
        kept = graph.exposed | graph.given
        while True:
            read = {id(item) for each in self.subgraph.operators for item in each.inputs}
            unread = {id(item) for item in self.replaced if id(item) not in read and id(item) not in kept}
            dead = {
                id(each)
                for each in self.subgraph.operators
                if row_of(each) is DEQUANTIZE and all(id(item) in unread for item in each.outputs)
            }
            if not dead:
                break
            self.replaced += [
                item for each in self.subgraph.operators if id(each) in dead for item in each.inputs if item
            ]
            self.subgraph.operators = [each for each in self.subgraph.operators if id(each) not in dead]
        self.editor.drop_unused(self.subgraph, self.replaced, kept)


def _is_within(match: Match, name: str) -> bool:
    """Whether the constants of a match leave the shape of a value as it is where they meet it."""
    shape = match.shapes[match.tensors[name]]
    return all(
        number.ndim == 0
        or (
            shape is not None
            and number.ndim <= len(shape)
            and all(size in (1, own) for size, own in zip(number.shape[::-1], shape[::-1], strict=False))
        )
        for number in match.numbers
    )


def _told(match: Match, made: Sequence[Operator]) -> str:
    stay = set(map(id, made))
    gone = ", ".join(item.code.name for item in match.operators if id(item) not in stay)
    hosts = [item.code.name for item in made if any(item is each for each in match.operators)]
    if hosts:
        return f"{gone} went into {', '.join(hosts)}"
    return f"{gone} became {', '.join(item.code.name for item in made)}"
