"""How constants are to be stored: encodings, and mixed precision by hand.

Rules say which constants are stored how, as text or as a TOML file.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

from tfl_rewrite.errors import UsageError, near_names, whole_number
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics.blocks import FITTING
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.patterns import Budget, Pattern
from tfl_rewrite.weights.candidates import UNNAMED, Candidate, Selection, unmatched
from tfl_rewrite.weights.storage import StorageForm, forms

BLOCKS = (32, 64, 128, 256)
"""Elements of a block that may be asked for; XNNPACK's own kernel wants a multiple of 32."""

VERSION = 1
"""Of the TOML form."""

_GIVEN = ", ".join(("block", *(f"block:{size}" for size in BLOCKS)))
_NAMES = "|".join(forms())
# A rule ends where an encoding ends and a comma or the text follows; the expression may hold both signs.
_RULE = re.compile(rf"(?P<match>.+?)=(?P<encoding>(?:{_NAMES})(?::[a-z0-9]+)*)\s*(?:,\s*|$)", re.DOTALL)
_NEAR = 5
_LONGEST_SHOWN = 80


class Scheme(str, enum.Enum):
    """How operators get at the weights."""

    AUTO = "auto"
    HYBRID = "hybrid"
    DEQUANTIZE = "dequantize"


@frozen
class Encoding:
    """How a constant is to be stored. Written as ``int4:block:32``, ``int8:channel:dequantize``, ``float16``.

    ``int4:block`` is in blocks whose length is chosen for each constant.

    Attributes:
        form: How its elements are stored; ``float32`` keeps the constant as it is.
        granularity: How many scales; without a meaning for float types.
        block: Elements that share a scale, for the granularity ``block``, or :data:`FITTING`; None otherwise.
        scheme: How operators get at it; ``auto`` leaves it to the pass.
    """

    form: StorageForm = field(default_factory=lambda: forms()["int8"])
    granularity: Granularity = Granularity.CHANNEL
    block: int | None = None
    scheme: Scheme = Scheme.AUTO

    def __post_init__(self) -> None:
        if (self.granularity is Granularity.BLOCK) != (self.block is not None):
            raise UsageError(
                f"granularity {self.granularity.value} with block {self.block}",
                remedy=f"give one of {_GIVEN}",
            )
        if self.block is not None and self.block not in (FITTING, *BLOCKS):
            raise UsageError(f"block {self.block}", remedy=f"use one of {_GIVEN}")
        if self.scheme is Scheme.HYBRID and not self.form.is_plain:
            raise UsageError(f"no kernel reads {self.form.name} weights itself", remedy="leave out hybrid")

    @classmethod
    def of(cls, dtype: str, granularity: str) -> Encoding:
        """Makes one from the name of a type, and ``channel``, ``tensor`` or ``block:N`` for integers.

        Raises:
            UsageError: There is no such type or granularity.
        """
        form = forms()[dtype]
        if not form.is_integer:
            return cls(form)
        words = granularity.split(":")
        if granularity == "block":
            return cls(form, Granularity.BLOCK, FITTING)
        if words[0] == "block" and len(words) == 2 and (size := whole_number(words[1])):
            return cls(form, Granularity.BLOCK, size)
        if granularity not in ("channel", "tensor"):
            raise UsageError(
                f"granularity {granularity!r} is unknown", remedy=f"use one of channel, tensor, {_GIVEN}"
            )
        return cls(form, Granularity(granularity))

    @classmethod
    def parse(cls, text: str, *, default: Encoding | None = None) -> Encoding:
        """Reads ``DTYPE[:channel|:tensor|:block[:N]][:auto|:hybrid|:dequantize]``.

        Args:
            text: The encoding as text.
            default: Gives the granularity and scheme where the text names none.

        Raises:
            UsageError: The text is not of this form.
        """
        base = default if default is not None else cls()
        words = text.strip().split(":")
        form = forms().get(words[0])
        if form is None:
            raise UsageError(
                f"encoding {text!r}: no type {words[0]!r}", remedy=f"use one of {', '.join(forms())}"
            )
        granularity, block, scheme = base.granularity, base.block, base.scheme
        rest = words[1:]
        if rest and rest[0] == Granularity.BLOCK.value and form.is_integer:
            block, granularity, rest = FITTING, Granularity.BLOCK, rest[1:]
            if rest and rest[0] not in [item.value for item in Scheme]:
                block = whole_number(rest[0])
                if not block:
                    raise UsageError(f"encoding {text!r}: how large a block", remedy="write block:32")
                rest = rest[1:]
        elif rest and rest[0] in ("channel", "tensor") and form.is_integer:
            granularity, block, rest = Granularity(rest[0]), None, rest[1:]
        if rest and rest[0] in [item.value for item in Scheme]:
            scheme, rest = Scheme(rest[0]), rest[1:]
        if rest:
            raise UsageError(
                f"encoding {text!r}: {':'.join(rest)!r} has no place in it",
                remedy="write such as int8:channel, int4:block:32, int8:tensor:dequantize, float16",
            )
        if not form.is_integer:
            granularity, block = Granularity.CHANNEL, None
            scheme = scheme if scheme is not Scheme.HYBRID or ":hybrid" in text else Scheme.AUTO
        return cls(form, granularity, block, scheme)

    def as_int8(self) -> Encoding:
        """Returns int8 in its place: one scale for each channel, or for the tensor where that has one."""
        one = self.granularity is Granularity.TENSOR
        return Encoding(
            forms()["int8"], Granularity.TENSOR if one else Granularity.CHANNEL, None, self.scheme
        )

    @property
    def runs_each_call(self) -> bool:
        """Whether MUL or ADD put its parts together behind DEQUANTIZE, at each call anew."""
        return self.scheme is Scheme.DEQUANTIZE and (self.block is not None or len(self.form.parts) > 1)

    @property
    def text(self) -> str:
        """The encoding as :meth:`parse` reads it."""
        words = [self.form.name]
        if self.form.is_integer:
            words.append(self.granularity.value)
            words += [str(self.block)] if self.block else []
        words += [self.scheme.value] if self.scheme is not Scheme.AUTO else []
        return ":".join(words)

    def __str__(self) -> str:
        return self.text


_FEW_BITS = 4
"""With more, nothing is lost that 8 bits would save at next to no cost."""

_LEAST_COUNTED = 1024
"""Smaller constants do not count where it is asked how large one is on average."""


def finer_where_few(items: Sequence[Candidate], encodings: Mapping[int, Encoding]) -> dict[int, Encoding]:
    """Returns encodings in which constants of few elements take int8 instead of fewer bits.

    What each constant's rounding does to the outputs is about the same whatever its size, so that bits are
    best spent where there are few elements: each half as many take half a bit more (reverse water-filling).
    int8 is nearer to that than ``b`` bits from ``2^(8 - b)`` times fewer than the mean on; all of those
    together are a small part of the file. A depthwise filter in int4 costs as much as a layer of its own.
    What was asked for more than 4 bits is left alone.

    Args:
        items: All constants, whether or not they will change.
        encodings: How each is to be stored, by its id.
    """
    counted = [item.elements for item in items if item.elements >= _LEAST_COUNTED]
    mean = sum(counted) / max(1, len(counted))
    found = {}
    for item in items:
        wanted = encodings[id(item)]
        bits, finer = wanted.form.bits, wanted.as_int8()
        if (
            wanted.form.is_integer
            and bits <= _FEW_BITS
            and item.elements * 2 ** (finer.form.bits - bits) <= mean
        ):
            found[id(item)] = finer
    return found


@frozen
class Rule:
    """Constants whose name, or the type of an operator that reads them, matches are stored so."""

    match: Pattern
    encoding: Encoding

    @classmethod
    def of(cls, match: str, encoding: str, default: Encoding, budget: Budget | None = None) -> Rule:
        """Makes a rule from text.

        Args:
            match: The expression.
            encoding: As text.
            default: Gives the granularity and scheme where the encoding names none.
            budget: Of all rules together.

        Raises:
            UsageError: The expression or the encoding is not one.
        """
        return cls(Pattern.compile(match, budget), Encoding.parse(encoding, default=default))


@frozen
class Recipe:
    """Rules in order; the first that matches a constant says how it is stored.

    Attributes:
        rules: In order.
    """

    rules: tuple[Rule, ...]

    @classmethod
    def parse(cls, text: str, *, default: Encoding | None = None) -> Recipe:
        """Reads ``REGEX=ENCODING,REGEX=ENCODING,...``, or the TOML file of that name (``*.toml``).

        Args:
            text: The rules, or a path.
            default: Gives the granularity and scheme where an encoding names none.

        Raises:
            UsageError: The text, an expression or an encoding is not of the form.
            FileAccessError, FormatError: The file cannot be read, or is not TOML.
        """
        if text.endswith(".toml"):
            return cls.load(text, default=default)
        rules, position, budget = [], 0, Budget()
        text = text.strip()
        while position < len(text):
            found = _RULE.match(text, position)
            if found is None:
                raise UsageError(
                    f"rule {text[position:][:80]!r} is not REGEX=ENCODING",
                    remedy="write such as 'conv.*=int4:block:32,logits=float32'",
                )
            rules.append(Rule.of(found["match"], found["encoding"], default or Encoding(), budget))
            position = found.end()
        return cls(_some(rules, "the map"))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, default: Encoding | None = None) -> Recipe:
        """Reads a TOML file: ``version = 1`` and ``[[rule]]`` tables with ``match`` and ``encoding``.

        Raises:
            UsageError: The file is not of this form, or no TOML.
            FileAccessError: It cannot be read.
        """
        from tfl_rewrite.options.json_data import read_toml

        content = read_toml(path)
        if content.get("version") != VERSION:
            raise UsageError(
                f"says version {content.get('version')!r}",
                file=str(path),
                remedy=f"write version = {VERSION}",
            )
        unknown = [key for key in content if key not in ("version", "rule")]
        if unknown:
            raise UsageError(f"{unknown[0]!r} is no key of a recipe", file=str(path), remedy=_TOML_FORM)
        base = default or Encoding()
        rows = content.get("rule", [])
        if not isinstance(rows, list) or not all(_is_rule(row) for row in rows):
            raise UsageError("a rule is not of the form", file=str(path), remedy=_TOML_FORM)
        budget = Budget()
        rules = [Rule.of(row["match"], row["encoding"], base, budget) for row in rows]
        return cls(_some(rules, str(path)))

    def __call__(self, item: Candidate) -> Encoding | None:
        """Returns what the first rule that matches says; None where none does."""
        rule = next((rule for rule in self.rules if _matches(rule, _words(item))), None)
        return rule.encoding if rule is not None else None

    def check(self, model: Model, items: Sequence[Candidate]) -> None:
        """Checks that every rule matches something in a model.

        What is stored in integers already counts: a second run changes nothing and is no error.

        Args:
            model: The model.
            items: The constants that may change.

        Raises:
            UsageError: A rule matches no tensor; names those that are spelled alike.
        """
        operators = {operator.code.name for _, operator in model.operators()}
        names = {tensor.name for _, tensor in model.tensors()}
        for rule in self.rules:
            if not _matches(rule, [*names, *operators]):
                known = sorted({word for item in items for word in _words(item) if word})
                raise UsageError(
                    f"--map: rule {rule.match.pattern!r} matches no tensor and no operator type",
                    remedy=_near(rule.match.pattern, known),
                )


def unmatched_notes(selection: Selection, model: Model, graph: Graph) -> list[str]:
    """Names the patterns of a selection that match no constant: a slip would go unseen otherwise.

    No error: what is given for many models need not match in each.
    """
    return [
        f"{name} {item.pattern[:_LONGEST_SHOWN]!r} matches no constant; {_near(item.pattern, known)}"
        for name, item, known in unmatched(selection, model, graph)
    ]


def fallback_notes(fallbacks: Mapping[Candidate, str | None]) -> list[str]:
    """Says where another encoding is used than was asked for; constants of a kind are one note."""
    kinds: dict[str, list[str]] = {}
    for item, kind in fallbacks.items():
        if kind is not None:
            kinds.setdefault(kind, []).append(item.value.name or UNNAMED)
    return [
        f"{kind}: {', '.join(names[:_NEAR])}" + (f" and {len(names) - _NEAR} more" if names[_NEAR:] else "")
        for kind, names in kinds.items()
    ]


_TOML_FORM = "write version = 1, and [[rule]] tables with match = 'REGEX' and encoding = 'int4:block:32'"


def _is_rule(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and row.keys() == {"match", "encoding"}
        and all(isinstance(value, str) for value in row.values())
    )


def _some(rules: list[Rule], where: str) -> tuple[Rule, ...]:
    if not rules:
        raise UsageError(f"{where} holds no rule", remedy="write such as 'conv.*=int4:block:32'")
    return tuple(rules)


def _words(item: Candidate) -> list[str]:
    return [item.value.name, item.stored.name, *item.readers]


def _matches(rule: Rule, words: Iterable[str]) -> bool:
    return any(rule.match.search(word) for word in words)


def _near(pattern: str, known: Sequence[str]) -> str:
    plain = re.sub(r"[\\^$*+?{}()|\[\]]|\.\*", "", pattern)
    found = near_names(plain, known, cutoff=0.4)
    if not found:
        found = [word for word in known if plain and plain.lower() in word.lower()][:_NEAR] or list(
            known[:_NEAR]
        )
    return f"near it are {', '.join(found)}" if found else "the model has no float constant"
