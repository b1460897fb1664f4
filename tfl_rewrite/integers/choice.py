"""What each operator is to compute in, as the user says by its type and by the names of its outputs."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tfl_rewrite.errors import UsageError, near_names
from tfl_rewrite.model.ir import Model, Operator
from tfl_rewrite.options.patterns import Budget, Pattern, compile_all

_NAMED = 5
"""Names beside the slip."""


class Computes(str, enum.Enum):
    """What an operator computes in: activations of so many bits, integer weights alone, or floats."""

    INT8 = "int8"
    INT16 = "int16"
    HYBRID = "hybrid"
    FLOAT = "float"

    @property
    def width(self) -> int | None:
        """Bits of activations; None where they stay float."""
        return {Computes.INT8: 8, Computes.INT16: 16}.get(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """Operators that match compute so."""

    match: Pattern
    computes: Computes


def parse_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Reads rules of the form ``REGEX=int8|int16|hybrid|float``; the expression may hold the sign, too.

    Raises:
        UsageError: One is not of that form, or holds no expression.
    """
    budget, rules = Budget(), list[Rule]()
    known = [item.value for item in Computes]
    for text in texts:
        match, sign, word = text.rpartition("=")
        if not sign or not match or word not in known:
            raise UsageError(
                f"rule {text[:80]!r} is not REGEX={'|'.join(known)}", remedy="write such as 'CONV.*=int16'"
            )
        rules.append(Rule(Pattern.compile(match, budget), Computes(word)))
    return tuple(rules)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user wants.

    Attributes:
        default: Of what no rule says anything about.
        rules: In order; the last that matches decides.
        include: If there are any, what matches none stays float.
        exclude: What matches one stays float, whatever else is said.
    """

    default: Computes
    rules: tuple[Rule, ...] = ()
    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()

    @classmethod
    def parse(
        cls, default: Computes, rules: Sequence[str], include: Sequence[str], exclude: Sequence[str]
    ) -> Choice:
        """Makes one of texts.

        Raises:
            UsageError: One is no rule, or no regular expression.
        """
        return cls(default, parse_rules(rules), compile_all(include), compile_all(exclude))

    def of(self, operator: Operator) -> Computes:
        """Returns what an operator is to compute in."""
        words = _words(operator)
        if _found(words, self.exclude) or (self.include and not _found(words, self.include)):
            return Computes.FLOAT
        return self.ruled(operator) or self.default

    def width(self, operator: Operator) -> int | None:
        """Returns the bits of activations that an operator should have; None for floats."""
        return self.of(operator).width

    def ruled(self, operator: Operator) -> Computes | None:
        """Returns what the last rule says that matches an operator; None where none does."""
        words = _words(operator)
        rules = reversed(self.rules)
        return next((rule.computes for rule in rules if _found(words, [rule.match])), None)

    def check(self, model: Model) -> None:
        """Checks that every rule matches something.

        Raises:
            UsageError: One does not; names what is spelled alike.
        """
        words = sorted({word for _, operator in model.operators() for word in _words(operator) if word})
        for rule in self.rules:
            if not _found(words, [rule.match]):
                near = near_names(rule.match.pattern, words, cutoff=0.4) or words[:_NAMED]
                raise UsageError(
                    f"rule {rule.match.pattern!r} matches no operator type and no name of an output",
                    remedy=f"near it are {', '.join(near[:_NAMED])}",
                )


def _words(operator: Operator) -> list[str]:
    return [operator.code.name, *(tensor.name for tensor in operator.outputs if tensor is not None)]


def _found(words: Sequence[str], patterns: Iterable[Pattern]) -> bool:
    return any(pattern.search(word) for pattern in patterns for word in words)
