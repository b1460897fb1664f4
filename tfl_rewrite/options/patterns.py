r"""Regular expressions that users give, searched in names that a file gives: in bounded time.

The engine is RE2, which never backtracks: a search takes time that grows with the length of the name, times
the size of the pattern. What only backtracking can do (lookahead, lookbehind, back-references) it does not
know. Where a pattern is large and names are many and long, even that is too much; so all patterns of a call
share a budget of time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import field
from typing import Any

from tfl_rewrite.errors import UsageError
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.options.option import TEXTS

MOST_CHARACTERS = 10_000
MOST_STEPS = 2_000_000_000
"""Of one search at worst: size of the compiled pattern times bytes of the name. About five seconds."""
_OPERATORS = frozenset("^$.|?*+()[]{}")
GRACE_SECONDS = 10.0
SECONDS_EACH = 50e-6
"""For each search on average, beside the grace; a plain one takes a tenth of it."""


@slotted
class Budget:
    """The time that some patterns have taken together."""

    seconds: float = 0.0
    searches: int = 0

    def spend(self, started: float) -> None:
        """Adds the time of this thread since then.

        Raises:
            UsageError: It is too much.
        """
        self.seconds += time.thread_time() - started
        self.searches += 1
        if self.seconds > GRACE_SECONDS + SECONDS_EACH * self.searches:
            raise UsageError(
                f"the regular expressions take too long: {self.seconds:.0f} s for {self.searches:,} names",
                remedy="write simpler ones, or fewer",
            )


@frozen
class Plain:
    """What a pattern without any operator but ``^`` and ``$`` is: a text, and where it must stand.

    Most patterns are, and asking for them takes a tenth of the time.
    """

    text: str
    first: bool
    last: bool

    def is_in(self, name: str) -> bool:
        """Whether the text stands there in a name."""
        if self.first and self.last:
            return name == self.text
        if self.first or self.last:
            return name.startswith(self.text) if self.first else name.endswith(self.text)
        return self.text in name


@frozen
class Pattern:
    """A compiled pattern.

    Attributes:
        pattern: As it was given.
    """

    pattern: str
    _compiled: Any = field(repr=False, compare=False)
    _plain: Plain | None = field(repr=False, compare=False)
    _budget: Budget = field(repr=False, compare=False)

    @classmethod
    def compile(cls, text: str, budget: Budget | None = None) -> Pattern:
        """Compiles a pattern.

        Args:
            text: The pattern, in the syntax of RE2.
            budget: Shared with others; by default one of its own.

        Raises:
            UsageError: It is none, or too long.
        """
        import re2

        if len(text) > MOST_CHARACTERS:
            raise UsageError(
                f"{text[:40]!r}... is a regular expression of {len(text):,} characters",
                remedy=f"give {MOST_CHARACTERS:,} at most",
            )
        budget = Budget() if budget is None else budget
        started = time.thread_time()
        options = re2.Options()
        options.log_errors = False
        # Whether it matches is all that is asked; to say where costs a slower engine.
        options.never_capture = True
        if not _is_unicode(text):
            options.encoding = re2.Options.Encoding.LATIN1
        try:
            compiled = re2.compile(_bytes(text), options)
        except re2.error as error:
            reason = error.args[0] if error.args else ""
            reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
            raise UsageError(
                f"{text!r} is not a regular expression: {reason}", remedy=_remedy(text, reason)
            ) from None
        made = cls(text, compiled, _plain(text), budget)
        budget.spend(started)
        return made

    def search(self, name: str) -> bool:
        """Whether it matches somewhere in a name.

        Raises:
            UsageError: That takes too long.
        """
        if self._plain is not None:
            return self._plain.is_in(name)
        started = time.thread_time()
        data = _bytes(name)
        if self._compiled.programsize * len(data) > MOST_STEPS:
            raise UsageError(
                f"{self.pattern[:80]!r} is too large to be searched in a name of {len(data):,} bytes",
                remedy="write a simpler one",
            )
        found = self._compiled.search(data) is not None
        self._budget.spend(started)
        return found


def compile_all(texts: Iterable[str]) -> tuple[Pattern, ...]:
    """Compiles patterns that share a budget.

    Raises:
        UsageError: One is none.
    """
    budget = Budget()
    return tuple(Pattern.compile(text, budget) for text in texts)


REGEXES = TEXTS.checked_by(compile_all)
"""The kind of an option that holds regular expressions."""


def exact(name: str) -> str:
    """Returns the pattern that matches just this name; what is not printable stands there by its number."""
    return f"^{''.join(map(_literal, name))}$"


def _plain(text: str) -> Plain | None:
    """Returns what a pattern says, if it has no operator but ``^`` first and ``$`` last."""
    body = text.removeprefix("^")
    first, last = body != text, body.endswith("$") and not body.endswith("\\$")
    rest, found = iter(body[:-1] if last else body), ""
    for char in rest:
        if char == "\\":
            char = next(rest, "")
            if not char or char.isalnum() or not char.isascii():
                return None
        elif char in _OPERATORS:
            return None
        found += char
    return Plain(found, first, last)


def _literal(char: str) -> str:
    if not char.isprintable() and not 0xD800 <= ord(char) <= 0xDFFF:
        return f"\\x{{{ord(char):x}}}"
    return f"\\{char}" if char.isascii() and not char.isalnum() and char not in "_/ " else char


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in text)


def _bytes(text: str) -> bytes:
    """The bytes of a name, those that are no UTF-8 among them."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _remedy(text: str, reason: str) -> str:
    if any(sign in text for sign in ("(?=", "(?!", "(?<=", "(?<!")):
        return (
            "lookahead and lookbehind are not known; name what stays with --exclude, or in a rule before it"
        )
    if reason.startswith("invalid perl operator"):
        return "what RE2 does not know, such as references to groups and comments, has to be left out"
    if reason.startswith("invalid escape sequence"):
        return "back-references are not known, and the end of a name is $; escape special characters with \\"
    if "too large" in reason:
        return "write a simpler one"
    return "escape special characters with \\"
