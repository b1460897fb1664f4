"""What a pass is, what it reports, and how several run in a row.

A pass reports each change as data; "does not apply" is a :class:`Skip` with a reason, neither an exception
nor silence. After every pass the invariants of the model are checked.
"""

from __future__ import annotations

import enum
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, ClassVar, Protocol

from tfl_rewrite.errors import InvariantError, UsageError
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.judge.counterparts import Counterparts
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed, shown
from tfl_rewrite.options.option import check_options
from tfl_rewrite.work import Work, current


class Change(Protocol):
    """One thing that a pass did."""

    @property
    def where(self) -> str:
        """The tensor, operator or field that it did it to."""

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""


@frozen
class Edit(JsonData):
    """A change that a few words tell.

    Attributes:
        where: The tensor, operator or field.
        what: What was done to it.
        saved: Bytes of content that are gone; 0 where only bytes of structure went.
        data: Further facts.

    Example:
        >>> from tfl_rewrite.editing import Edit
        >>> Edit("logits", "rounded to 8 bits", saved=512).to_dict()
        {'where': 'logits', 'what': 'rounded to 8 bits', 'saved': 512}
    """

    where: str
    what: str
    saved: int = 0
    data: dict[str, Any] = field(default_factory=dict, metadata=shown(merged=True))


@frozen
class Skip(JsonData):
    """One thing that a pass looked at and left alone.

    Attributes:
        where: The tensor, operator or field.
        reason: Why, in words.
        rule: A short stable name of the reason, for programs.
        data: Further facts.

    Example:
        >>> from tfl_rewrite.editing import Skip
        >>> Skip("logits", "a bias is not rounded", "bias").rule
        'bias'
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


@frozen
class PassResult(JsonData):
    """What one pass did.

    Attributes:
        name: Of the pass.
        changes: What it changed.
        skips: What it left alone, and why.
        notes: Further lines for the user.
        packing: How the file is to be laid out, where that is what the pass is about.
        grows: Whether what it did is worth a larger file.
        files: What else is to be written if the file gets its name: paths and bytes.
        reading: How the original is to be read to compare with (:meth:`Pass.define`), where what it computes
            is undefined; else empty. Another kernel computes the outputs then, so they need not be equal.
        otherwise: How the original is to be read (:meth:`Pass.define`) where outputs differ too much from its
            own, since its kernels lose as much themselves; else empty.
        retyped: Whether inputs or outputs have other types now, as was asked for; real values are
            compared then.
        counterparts: Where entry points have other names now, or there are others: which one of the model
            that the pass got computes the same as each that there is now
            (:mod:`tfl_rewrite.judge.counterparts`). The judge compares by that.
        exact: Whether what it did changes no number, although the pass may; outputs must be equal then. So
            they must be where it changed nothing.
        idle: Where it changed nothing: why, and what does something instead.
        milder: What to ask for instead where outputs differ too much, if :attr:`Pass.milder` says nothing of
            this model.
        strictest: Whether :meth:`Pass.stricter` has nothing left that would lose less.

    Example:
        >>> from tfl_rewrite.editing import Edit, PassResult
        >>> PassResult("clean", (Edit("subgraphs[0]", "name removed"),)).modified
        True
        >>> PassResult("clean", idle="there is nothing to remove").modified
        False
    """

    name: str = field(metadata=shown("pass"))
    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    packing: Packing | None = field(default=None, metadata=LEFT_OUT)
    grows: bool = field(default=False, metadata=LEFT_OUT)
    files: tuple[tuple[str | os.PathLike[str], bytes], ...] = field(default=(), metadata=LEFT_OUT)
    reading: str = field(default="", metadata=LEFT_OUT)
    otherwise: str = field(default="", metadata=LEFT_OUT)
    retyped: bool = field(default=False, metadata=LEFT_OUT)
    counterparts: Counterparts = field(default=(), metadata=LEFT_OUT)
    exact: bool = field(default=False, metadata=LEFT_OUT)
    idle: str = ""
    milder: str = field(default="", metadata=LEFT_OUT)
    strictest: bool = field(default=False, metadata=LEFT_OUT)

    @property
    def modified(self) -> bool:
        """Whether anything changed."""
        return bool(self.changes)


class Effect(enum.Enum):
    """How a pass may change what a model computes, which is how its result is judged.

    ``EXACT``: outputs are equal to the bit. ``TOLERANCE``: they may differ within the tolerance.

    ``FOLDING``: they are the same in real numbers, and computed in another order: what rounding leaves is
    judged (:data:`tfl_rewrite.judge.settings.FOLDED`), whatever the tolerance is. Where a lossy pass runs,
    too, that is within its tolerance; where nothing was folded, outputs must be equal to the bit.

    ``INTERFACE``: the model takes or gives other tensors, as it was asked to. What it gives then cannot be
    compared with what the original gives, so the judge compares with the original rewritten by such passes
    alone.

    ``REPAIR``: the model may run, or be read right, where it did not before. The original is no measure then
    where it does not run; the judge at least runs the result.

    Example:
        >>> from tfl_rewrite.editing import Effect
        >>> from tfl_rewrite.passes import QuantizeWeights
        >>> QuantizeWeights.effect is Effect.TOLERANCE
        True
    """

    EXACT = "exact"
    FOLDING = "folding"
    TOLERANCE = "tolerance"
    INTERFACE = "interface"
    REPAIR = "repair"


@frozen(kw_only=True)
class Context:
    """What a pass needs beside the model.

    Attributes:
        activations: Tells what weights meet on real inputs; a pass that asks for it says by which protocol,
            such as :class:`tfl_rewrite.weights.rounders.Activations`. None where there are no inputs.
        number: Of the pass among those that run; what was found for one is not for another.
        work: Threads, and the hook for progress.
        unfit: Why nothing can be fitted to the inputs that there are; empty where there are none, or it can.

    Example:
        >>> from tfl_rewrite.editing import Context
        >>> Context().activations is None
        True
    """

    activations: object | None = None
    number: int = 0
    work: Work = field(default_factory=current)
    unfit: str = ""


class Pass(ABC):
    """A rewrite of a model in place.

    A subclass says what it is by its docstring, whose first line is its help, and by the class variables; its
    fields made by :func:`tfl_rewrite.options.option.option` are its options; and it rewrites in :meth:`run`.
    The other members have neutral defaults.

    Attributes:
        name: Its name on the command line.
        effect: How it may change what the model computes.
        place: Why it stands where it stands in the catalogue.
        command: Whether it is a command of its own, too.
        for_download: Whether what gets smaller is the deflated file rather than the file itself.
        resolvers: Which kernels judge what it makes where nobody says: each that the original runs with. They
            compute integers differently, and have to agree.
        calibrated: Whether what it makes is right only for inputs like those that it was calibrated on, so
            that what made ones show is nothing against it.

    Example:
        >>> from tfl_rewrite.editing import Edit, Pass, PassResult, option
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, kw_only=True, slots=True)
        ... class Describe(Pass):
        ...     '''Sets the description of the model.'''
        ...
        ...     name = "describe"
        ...     text: str = option("", "what it says", metavar="TEXT")
        ...
        ...     def run(self, model, context):
        ...         if model.description == self.text:
        ...             return PassResult(self.name)
        ...         model.description = self.text
        ...         return PassResult(self.name, (Edit("description", "set"),))
        >>> model = tfl_rewrite.load("model.tflite")
        >>> tfl_rewrite.run(model, [Describe(text="digits")])[0].modified
        True
    """

    __slots__ = ()

    name: ClassVar[str]
    effect: ClassVar[Effect] = Effect.EXACT
    place: ClassVar[str] = ""
    command: ClassVar[bool] = True
    for_download: ClassVar[bool] = False
    resolvers: ClassVar[tuple[str, ...]] = ()
    calibrated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Brings the options into form.

        Raises:
            UsageError: A value is of another kind, out of bounds, or none of the choices.
        """
        check_options(self)

    @abstractmethod
    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model and says what it did."""

    def parts(self) -> Sequence[Pass]:
        """Returns the passes that it consists of, in order; most are one."""
        return (self,)

    @property
    def is_fitted(self) -> bool:
        """Whether it looks at the user's inputs, or something did for it, so that others must judge it."""
        return False

    @property
    def is_searched(self) -> bool:
        """Whether a search is still to find what it does."""
        return False

    @property
    def finer(self) -> tuple[str, ...]:
        """The forms that single constants can take where the outputs lose too much by what was asked for.

        From the next finer form (level 1) to the constant as it was; empty if it changes none.
        """
        return ()

    def refined(self, levels: Mapping[int, int]) -> Pass:
        """Returns the pass with some constants at another level of :attr:`finer`.

        Never coarser than what was asked for.

        Args:
            levels: By position of the buffer in the model that the pass gets; 0 is what was asked for.
        """
        return self

    def stricter(self, _short_db: float) -> Pass | None:
        """Returns the pass told to lose less; None where it knows no such thing, or was told enough.

        Args:
            _short_db: By so much outputs miss the tolerance; infinite where that is no matter of degree.
        """
        return None

    @property
    def widened(self) -> Pass | None:
        """The pass told to hold what the samples hold, too, that have judged it; None where it holds none."""
        return None

    @property
    def expanding(self) -> str:
        """The option that asks for the next finer form of all constants, such as ``--scheme dequantize``."""
        return ""

    @property
    def release(self) -> str:
        """The release of tflite-runtime that what it makes is for, such as ``2.14``; empty for none."""
        return ""

    @property
    def elsewhere(self) -> str:
        """The runtime that is to run what it makes and that need not run the original, such as ``tflm``.

        A name that :meth:`tfl_rewrite.kernels.platforms.Platform.parse` takes; empty for none.
        """
        return ""

    @property
    def milder(self) -> str:
        """What to ask for instead where outputs differ too much and nothing can be stored finer."""
        return ""

    @property
    def excluding(self) -> str:
        """The option that leaves single constants as they are, such as ``--exclude``."""
        return ""

    def define(self, model: Model, context: Context) -> None:  # noqa: B027 - most have nothing to do
        """Turns the original into a model that computes what the result must compute.

        Called where the pass said how (:attr:`PassResult.reading`), since the original leaves it undefined.
        """


def effects_of(passes: Sequence[Pass], results: Sequence[PassResult]) -> set[Effect]:
    """Returns the effects of the passes that changed something, and not only what is exact."""
    pairs = zip(passes, results, strict=True)
    return {item.effect for item, result in pairs if result.modified and not result.exact}


def last_packing(results: Sequence[PassResult]) -> Packing | None:
    """Returns how the file is to be laid out, as the last pass that is about that asks for."""
    return next((result.packing for result in reversed(results) if result.packing is not None), None)


def with_packing(results: Sequence[PassResult], saved: int) -> list[PassResult]:
    """Adds what the new layout did to the result of the pass that asked for it."""
    known = sum(getattr(change, "saved", 0) for result in results for change in result.changes)
    index = max(index for index, result in enumerate(results) if result.packing is not None)
    what = "what is equal is stored once" if saved >= known else "constants start where --align says"
    edit = Edit("the file", f"laid out anew: {what}", saved - known)
    changed = list(results)
    changed[index] = replace(results[index], changes=(*results[index].changes, edit))
    return changed


def expanded(passes: Iterable[Pass]) -> list[Pass]:
    """Returns the passes with those that consist of others in parts; UsageError where something is none."""
    given: list[Any] = [*passes] if isinstance(passes, Iterable) else [None]
    if not all(isinstance(item, Pass) for item in given):
        raise UsageError(f"{passes!r:.60} are no passes", remedy="give such as passes=[QuantizeWeights()]")
    return [part for item in given for part in item.parts()]


def run_passes(model: Model, passes: Sequence[Pass], context: Context | None = None) -> list[PassResult]:
    """Runs passes in order and checks the model after each.

    Args:
        model: Changed in place.
        passes: In order.
        context: What they may use beside the model; by default, no activations.

    Raises:
        InvariantError: A pass broke a rule that held before it; names the pass and those before it.

    Example:
        >>> from tfl_rewrite.passes import QuantizeWeights, RemoveDead
        >>> model = tfl_rewrite.load("model.tflite")
        >>> results = tfl_rewrite.run(model, [RemoveDead(), QuantizeWeights()])
        >>> [(result.name, result.modified) for result in results]
        [('remove-dead', False), ('quantize-weights', True)]
    """
    context = context or Context()
    passes = expanded(passes)
    known = len(broken(model))
    results = []
    with model.remembering():
        for index, item in enumerate(passes):
            results.append(item.run(model, replace(context, number=index)))
            found = broken(model)
            if len(found) > known:
                before = ", ".join(other.name for other in passes[:index]) or "none"
                raise InvariantError(f"pass {item.name} (after: {before}) broke the model: {found[-1]}")
            known = len(found)
    return results
