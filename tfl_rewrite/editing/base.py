"""What a pass is, what it reports, and how several run in a row.

A pass reports each change as data; "does not apply" is a :class:`Skip` with a reason, neither an exception
nor silence. After every pass the invariants of the model are checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from tfl_rewrite.errors import InvariantError
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed, shown


class Change(Protocol):
    """One thing that a pass did."""

    @property
    def where(self) -> str:
        """The tensor, operator or field that it did it to."""

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""


@dataclass(frozen=True, slots=True)
class Edit(JsonData):
    """A change that a few words tell.

    Attributes:
        where: The tensor, operator or field.
        what: What was done to it.
        saved: Bytes of content that are gone; 0 where only bytes of structure went.
        data: Further facts.
    """

    where: str
    what: str
    saved: int = 0
    data: dict[str, Any] = field(default_factory=dict, metadata=shown(merged=True))


@dataclass(frozen=True, slots=True)
class Skip(JsonData):
    """One thing that a pass looked at and left alone.

    Attributes:
        where: The tensor, operator or field.
        reason: Why, in words.
        rule: A short stable name of the reason, for programs.
        data: Further facts.
    """

    where: str = field(metadata=shown("tensor"))
    reason: str
    rule: str
    data: dict[str, Any] = field(default_factory=dict, metadata=shown(merged=True))

    @property
    @computed(after="where")
    def outcome(self) -> str:
        """As that of a change says what was done."""
        return "kept"


@dataclass(frozen=True, slots=True)
class PassResult(JsonData):
    """What one pass did.

    Attributes:
        name: Of the pass.
        changes: What it changed.
        skips: What it left alone, and why.
        notes: Further lines for the user.
        packing: How the file is to be laid out, where that is what the pass is about.
        grows: Whether what it did is worth a larger file.
        idle: Where it changed nothing: why, and what does something instead.
    """

    name: str = field(metadata=shown("pass"))
    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    packing: Packing | None = field(default=None, metadata=LEFT_OUT)
    grows: bool = field(default=False, metadata=LEFT_OUT)
    idle: str = ""

    @property
    def modified(self) -> bool:
        """Whether anything changed."""
        return bool(self.changes)


class Pass(Protocol):
    """A rewrite of a model in place.

    Attributes:
        name: Its name on the command line.
        lossy: Whether outputs may differ after it; if not, they must be equal to the bit.
        grows: Whether its result may be larger than its input.
    """

    name: ClassVar[str]
    lossy: ClassVar[bool]
    grows: ClassVar[bool]

    def run(self, model: Model) -> PassResult:
        """Rewrites the model and says what it did."""


class Refines(Protocol):
    """A pass that can store single constants finer, where the outputs lose too much by what was asked for.

    Attributes:
        finer: What each level stands for, from the next finer form (level 1) to the constant as it was.
    """

    @property
    def finer(self) -> tuple[str, ...]:
        """See above; at least one."""

    def refined(self, levels: Mapping[int, int]) -> Pass:
        """Returns the pass with some constants at another level; never coarser than what was asked for.

        Args:
            levels: By position of the buffer in the model that the pass gets; 0 is what was asked for.
        """


class ChangesInterface:
    """Marks a pass after which the model takes or gives other tensors, as it was asked to.

    What it gives then cannot be compared with what the original gives, so the judge compares with the
    original rewritten by the passes so marked alone.
    """

    __slots__ = ()


class Heals:
    """Marks a pass after which a model may run, or be read right, that did not before.

    The original is no measure then where it does not run; the judge at least runs the result.
    """

    __slots__ = ()

    @property
    def undefined(self) -> str:
        """How :meth:`expected` reads the original, where its own reading is undefined; else empty.

        Outputs are compared within the tolerance then: another kernel computes them.
        """
        return ""

    def expected(self, model: Model) -> bool:
        """Turns the original into a model that computes what the result must compute.

        Returns:
            False, with the model unchanged, where the original computes that itself.
        """
        return False


def run_passes(model: Model, passes: Sequence[Pass]) -> list[PassResult]:
    """Runs passes in order and checks the model after each.

    Args:
        model: Changed in place.
        passes: In order.

    Raises:
        InvariantError: A pass broke a rule that held before it; names the pass and those before it.
    """
    known = len(broken(model))
    results = []
    with model.remembering():
        for index, item in enumerate(passes):
            results.append(item.run(model))
            found = broken(model)
            if len(found) > known:
                before = ", ".join(other.name for other in passes[:index]) or "none"
                raise InvariantError(f"pass {item.name} (after: {before}) broke the model: {found[-1]}")
            known = len(found)
    return results
