"""Rounds constants to levels that compress well.

Promise: types, shapes, operators and the size of the file stay; float32 and float16 constants (and int8 ones,
when asked) take values of coarser grids, so that the file becomes smaller when a store or a server deflates
it. Zeros stay zeros, unless levels are chosen for real inputs: then each weight takes the level that is best
for what it is multiplied with. Outputs may differ within the tolerance of verification. Variables, inputs,
outputs, constants that hold NaN or infinities, and what lies in other files are left alone. A constant that
is on its grid already is not changed, so a second run changes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Effect, Pass, PassResult
from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.settings import SNR_BOUNDS
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics import grids
from tfl_rewrite.numerics.grids import EXACT_NBYTES, KINDS, deflated, estimated
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed, finite, shown, spread
from tfl_rewrite.options.option import Taken, option
from tfl_rewrite.weights.candidates import stays
from tfl_rewrite.weights.grids import Choice, Constant, find_constants
from tfl_rewrite.weights.payloads import GridPayload
from tfl_rewrite.weights.rounders import Effort, Fitting, fitting_of
from tfl_rewrite.weights.state import nothing_to_round

STEPS = 256
"""Steps of the range of a channel or tensor, where nothing else is asked for."""

LARGEST_STEPS = 1 << 14
"""Finer grids save next to nothing."""

FINER = 16
"""How many times as many steps a vector gets that nothing sums over. The errors of weights average out in
sums; that of a bias does not, and one large channel would make the steps of all others coarse. Of MobileNet
v1 0.25 (256 steps, real pictures) this takes the outputs from 9 to 17 dB and the deflated file from 35.8 to
36.0 % of the original's."""

LEAST_ELEMENTS = 16

# What is on some grid already is deflated both ways to see whether another one is worth it, up to this size.
_WEIGHED_NBYTES = 8 << 20

# Of each constant, where deflated sizes are estimated.
_SAMPLED_NBYTES = 1 << 17

# A step of its own is worth having for a channel of so many elements.
_LEAST_CHANNEL = 4


class Granularity(str, enum.Enum):
    """Which elements share a step."""

    AUTO = "auto"
    CHANNEL = "channel"
    TENSOR = "tensor"


def _about(data: memoryview) -> int:
    return estimated(data, _SAMPLED_NBYTES)


@dataclass(eq=False)
class RoundedChange(JsonData):
    """A constant whose values lie on a grid now.

    Attributes:
        where: Name of the tensor.
        buffer: Position in the model of its buffer.
        granularity: ``tensor`` or ``channel``.
        sampled: Whether deflated sizes are estimated, since there is much to deflate.
    """

    where: str = field(metadata=shown("tensor"))
    buffer: int = field(metadata=LEFT_OUT)
    dtype: str
    shape: tuple[int, ...]
    readers: tuple[str, ...]
    granularity: str
    nbytes: int
    payload: GridPayload = field(metadata=LEFT_OUT)
    sampled: bool = field(default=False, metadata=LEFT_OUT)

    @property
    @computed(after="where")
    def outcome(self) -> str:
        """What was done."""
        return "rounded"

    @property
    @computed(after="granularity", merged=True, made=spread("step_min", "step_max"))
    def steps(self) -> tuple[float, float]:
        """Finest and coarsest step."""
        return float(self.payload.steps.min()), float(self.payload.steps.max())

    @cached_property
    @computed(merged=True, made=spread("deflated_before", "deflated_after"))
    def deflated(self) -> tuple[int, int]:
        """Deflated size before and after, of this constant alone; computed when asked for."""
        measure = _about if self.sampled else deflated
        return self.payload.original(measure), measure(memoryview(self.payload.data()))

    @property
    @computed("snr_db", made=finite(2))
    def snr(self) -> float:
        """Signal-to-noise ratio of the constant itself in dB."""
        return self.payload.error().snr

    @property
    @computed(made=len, optional=True)
    def silenced(self) -> tuple[int, ...]:
        """Channels of its operator that held numbers and are all zero now."""
        self.payload.error()
        return self.payload.silenced


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundWeights(Pass):
    """Rounds float weights so that the file compresses well; same size, same speed.

    Rounds float constants to values that deflate well: the file keeps its size, its types and its speed,
    and the compressed download gets smaller. The model is run before and after. LOSSY: outputs change a
    little.

    Attributes:
        steps: How many steps the range of a channel or tensor has at most; that of a vector that nothing
            sums over, such as a bias, :data:`FINER` times as many.
        min_snr: What every output is to keep, in dB; ``steps`` is not used then. What it takes is found by
            :func:`tfl_rewrite.rewrite`, which runs the file, not by :meth:`run`.
        choices: If given, the grids by position of the buffer; what is not in it stays. ``steps`` is not
            used then.
        fitting: Chooses levels for what weights meet; see :class:`Fitting`.
        notes: Further lines for the report.
        levels: Constants that are rounded less, by position of the buffer; see :meth:`refined`.

    Example:
        >>> from tfl_rewrite.passes import RoundWeights
        >>> report = tfl_rewrite.rewrite("model.tflite", "steps.tflite", [RoundWeights(steps=64)])
        >>> before, after = report.deflated
        >>> after < before
        True
    """

    name: ClassVar[str] = "round-weights"
    effect: ClassVar[Effect] = Effect.TOLERANCE
    place: ClassVar[str] = "instead of quantize-weights, or for what that leaves float"
    for_download: ClassVar[bool] = True
    """What gets smaller is the deflated file."""

    steps: int = option(
        STEPS,
        "at most N steps between the smallest and the largest value of a channel or tensor, 16 N for "
        "vectors such as biases (default: 256, unless --min-snr is given)",
        metavar="N",
        bounds=(1, LARGEST_STEPS),
    )
    min_snr: float | None = option(
        None,
        "instead of --steps: search the coarsest rounding that keeps every output at this ratio or more, in "
        "dB; the file is run some hundred times",
        metavar="DB",
        bounds=SNR_BOUNDS,
    )
    granularity: Taken[Granularity, str] = option(
        Granularity.AUTO,
        "which values share a step. auto (default): those of a channel of weights that are summed, else "
        "of the tensor; a search decides by measurement",
        choices=Granularity,
    )
    effort: Taken[Effort, str] = option(
        Effort.BALANCED,
        "balanced (default): with --inputs, levels are chosen for what the weights are multiplied with. "
        "fast: by the weights alone",
        choices=(Effort.FAST, Effort.BALANCED),
    )
    int8: bool = option(False, "round int8 constants too: fewer different values, same type")
    min_elements: int = option(
        LEAST_ELEMENTS, "keep smaller constants as they are", metavar="N", bounds=(1, 1 << 40)
    )
    choices: Mapping[int, Choice] | None = None
    fitting: Fitting | None = field(default=None, compare=False, repr=False)
    notes: tuple[str, ...] = ()
    levels: Mapping[int, int] = field(default_factory=dict)

    @property
    def finer(self) -> tuple[str, ...]:
        """What becomes of a constant where the outputs lose too much, one after the other."""
        more = () if self.choices is not None else (f"{FINER} times as many steps",)
        return (*more, "as it is")

    @property
    def is_searched(self) -> bool:
        """Whether a search is still to find the grids."""
        return self.min_snr is not None and self.choices is None

    @property
    def is_fitted(self) -> bool:
        """Whether the user's inputs choose levels, or chose the grids."""
        return self.choices is not None or (self.effort is not Effort.FAST and self.fitting is None)

    def refined(self, levels: Mapping[int, int]) -> RoundWeights:
        """Returns the pass with some constants rounded less, at these levels of :attr:`finer`."""
        return replace(self, levels=dict(levels))

    def unrounded(self, model: Model) -> list[Constant]:
        """Returns what a search finds grids for: nothing, where this was done before."""
        items, _ = find_constants(model, int8=self.int8, min_elements=self.min_elements)
        sound = [item for item in items if item.profile().finite]
        floats = [item for item in sound if item.kind is not KINDS["INT8"]]
        integers = [item for item in sound if item.kind is KINDS["INT8"]]
        rest = [item for item in floats if not item.is_rounded]
        done = not rest if floats else any(item.is_rounded for item in integers)
        return [] if done else [*rest, *integers]

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place; the new values are made when the file is written.

        Raises:
            UsageError: A search is still to find the grids.
        """
        if self.is_searched:
            raise UsageError(
                "min_snr of round-weights is kept by a search, which has to run the file",
                remedy="rewrite a file, or give steps",
            )
        items, skips = find_constants(model, int8=self.int8, min_elements=self.min_elements)
        rounded: list[tuple[Constant, grids.Float64]] = []
        for item in items:
            reason, steps = self._steps(item)
            if steps is None:
                skips.append(stays(item.tensors[0], item.where, item.readers, *reason))
            else:
                rounded.append((item, steps))
        fitting = fitting_of(self.fitting, self.effort, context)
        if fitting is not None:
            fitting.prepare(model, [item for item, _ in rounded])
        changes = []
        sampled = sum(item.blob.nbytes for item, _ in rounded) > EXACT_NBYTES
        for item, steps in rounded:
            choice = None if self.choices is None else self.choices.get(item.position)
            if choice is None:
                made = GridPayload(item, steps, fitting=fitting)
            else:
                made = GridPayload.of(item, choice, fitting)
            first = item.tensors[0]
            changes.append(
                RoundedChange(
                    item.where,
                    item.position,
                    first.dtype_name,
                    first.shape or (),
                    item.readers,
                    "tensor" if steps.size == 1 else "channel",
                    item.blob.nbytes,
                    made,
                    sampled,
                )
            )
            item.hold(made.blob())
        told = tuple(fitting.notes()) if fitting is not None and changes else ()
        notes = (*told, *self.notes, *self._left_out(model))
        idle = "" if changes else nothing_to_round(model, integers=self.int8)
        return PassResult(self.name, tuple(changes), tuple(skips), notes, idle=idle)

    def _left_out(self, model: Model) -> tuple[str, ...]:
        """Says that int8 constants could be rounded too, where those are most of what there is."""
        if self.int8 or self.choices is not None:
            return ()
        found = find_constants(model, int8=True, min_elements=self.min_elements)[0]
        nbytes = sum(item.blob.nbytes for item in found if item.kind is KINDS["INT8"])
        if 2 * nbytes <= sum(item.blob.nbytes for item in found):
            return ()
        return (f"{nbytes:,} bytes of int8 constants stay: --int8 --steps 64 rounds them too",)

    def _steps(self, item: Constant) -> tuple[tuple[str, str], grids.Float64 | None]:
        """Returns the step of each channel, or why it stays."""
        found = item.profile()
        if not found.finite:
            return ("not-finite", "it holds NaN or infinite values"), None
        level = self.levels.get(item.position, 0)
        if level >= len(self.finer):
            return ("needed", "the outputs lose too much without it as it is"), None
        if self.choices is not None:
            choice = self.choices.get(item.position)
            if choice is None and not item.is_rounded:
                return ("needed", "the outputs need it as it is"), None
            if choice is None:
                return ("on-grid", "it is rounded already; to round further, start from the original"), None
            steps = item.steps(choice)
            if item.kind is KINDS["INT8"] and bool((steps <= 1).all()):
                return ("needed", "the outputs need all of its steps"), None
            return ("", ""), steps
        if not self._by_channel(item):
            found = found.merged()
        asked = max(self.steps, min(self.steps * FINER**level, LARGEST_STEPS))
        most = max(asked, min(asked * FINER, LARGEST_STEPS)) if item.is_vector else asked
        if grids.has_steps(found, most):
            return ("on-grid", f"it is already on a grid of {most} steps or fewer"), None
        steps = grids.steps_of_range(found, most, item.kind)
        if item.is_rounded and item.blob.nbytes <= _WEIGHED_NBYTES:
            # Of a few finer levels, these might be the worse ones.
            made = GridPayload(item, steps)
            if deflated(made.data()) >= made.original():
                return ("on-grid", "it is on a grid already and would deflate to no less on this one"), None
        return ("", ""), steps

    def _by_channel(self, item: Constant) -> bool:
        return (
            self.granularity is not Granularity.TENSOR
            and item.rows.channels > 1
            and (item.rows.each >= _LEAST_CHANNEL or self.granularity is Granularity.CHANNEL)
        )
