"""Values on given grids, and weights that become zero, chosen for the real activations that they meet.

The grids are decided elsewhere; here each column of a weight makes up for the errors of those before it
(:func:`tfl_rewrite.numerics.gptq.feedback`), so that the products are off by less at the same grid. Biases
are left alone: what their correction won on inputs at hand was as often lost on others. Without it, what was
fitted is hardly ever worse on other inputs (0.3 dB at most on 14 models), so nothing is tried on halves here.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.calibration.collect import Observer, Wanted, collect
from tfl_rewrite.calibration.probe import Probe, places_of
from tfl_rewrite.calibration.ranges import Ranges, hull
from tfl_rewrite.calibration.rounder import Calibrated, Ordered
from tfl_rewrite.calibration.trials import Noises, Trials
from tfl_rewrite.integers.modes import Range
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.products import product_of
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics import pruning
from tfl_rewrite.numerics.gptq import feedback, pruned
from tfl_rewrite.numerics.grids import Array, Float64
from tfl_rewrite.numerics.metric import Metric
from tfl_rewrite.numerics.moments import Moments, joined, parts_for, split
from tfl_rewrite.numerics.products import Product
from tfl_rewrite.numerics.symmetric import Error, Levels
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.weights.grids import Constant
from tfl_rewrite.weights.rounders import Effort, Measure, Simulate, Simulated
from tfl_rewrite.work import Progress, one_blas_thread

LARGEST_FACTOR_NBYTES = 256 << 20
"""Of what is kept of the activations of one weight; one that would take more is rounded without them."""

TOTAL_FACTOR_NBYTES = 4 << 30
"""Of all of them; most may be in temporary files."""

REMEMBERED_NBYTES = 128 << 20
"""Of the values that were asked for last: they are asked for again, to be written and to be told of."""

_PENDING = 256 << 20
"""Of sums over what weights of several operators meet."""

_SLICE_ELEMENTS = 1 << 22
"""Rounded at a time: 32 MB an array of float64, of which about six are held."""

_ANY = Levels(-(1 << 40), 1 << 40)


@frozen
class Known:
    """What is kept of the activations that one weight meets.

    Attributes:
        order, factor: See :class:`tfl_rewrite.numerics.gptq.Metric`.
        trial: What pruning it for half of the samples was worth on the other half, where that was tried.
    """

    product: Product
    order: npt.NDArray[np.int64]
    factor: npt.NDArray[np.float32]
    trial: pruning.Trial | None = None

    @property
    def parts(self) -> int:
        """Into how many parts each vector was cut."""
        return self.product.inner // int(self.order.shape[1])

    @property
    def strength(self) -> Float64:
        """``[groups, length]``: what a squared error of each column counts, in their order."""
        return np.asarray(np.square(np.einsum("gii->gi", self.factor)), np.float64)

    def moments(self) -> Float64:
        """Returns the moments that the factor is of, positive definite: ``[groups, length, length]``."""
        half = self.factor.astype(np.float64)
        # The columns are in the order in which they are rounded.
        back = np.argsort(self.order, axis=1)
        groups = np.arange(len(back))[:, None, None]
        return pruning.damped((half @ half.swapaxes(1, 2))[groups, back[:, :, None], back[:, None, :]])


class Fitter(Observer[Known]):
    """Looks at activations; see :class:`tfl_rewrite.weights.rounders.Fitting`.

    Args:
        judging, progress, beside: See :class:`Observer`.
        interrupt: Called before each run of the model and each weight that is looked at; it may raise.
    """

    def __init__(
        self,
        judging: Judging,
        progress: Progress | None = None,
        *,
        beside: Judge | None = None,
        interrupt: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(judging, progress, beside=beside)
        self._interrupt = interrupt
        self._nbytes = 0
        self._remembered: OrderedDict[Hashable, npt.NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, model: Model, items: Sequence[Constant], share: float | None = None) -> None:
        """Runs the model for what it is not known yet."""
        self.active = [_key(item) for item in items]
        jobs = self._jobs(model, [item for item in items if not self.is_known(_key(item))])
        tried = {_key(item): item for item in items} if share is not None else {}

        def trial(key: Hashable, moments: Moments) -> pruning.Trial | None:
            if share is None or not moments.halved:
                return None
            values = tried[key].values().astype(np.float64).reshape(tried[key].tensors[0].shape or ())
            return pruning.tried(moments.split(moments.product.matrix(values)), moments, share)

        if jobs:
            keys = [key for key, _ in jobs]
            self.observe(model, keys, lambda _, probe: self._collect(probe(None), jobs, trial))

    def known(self, item: Constant) -> Known | None:
        """Returns what is kept of the activations that a constant meets; None where nothing is."""
        return self.found.get(_key(item))

    def fit(self, item: Constant, values: Array, steps: Float64) -> Float64 | None:
        """Rounds one weight, columns that meet most first."""
        known = self.known(item)
        if known is None:
            return None
        asked = _key(item), steps.tobytes()
        made = self._remembered.get(asked)
        if made is None:
            with one_blas_thread():
                made = self._fit(item, values, steps, known).astype(np.float32)
            # Constants are written by several threads.
            with self._lock:
                self._remembered[asked] = made
                while sum(held.nbytes for held in self._remembered.values()) > REMEMBERED_NBYTES:
                    self._remembered.popitem(last=False)
        return made.astype(np.float64)

    def _fit(self, item: Constant, values: Array, steps: Float64, known: Known) -> Float64:
        rows, shape = item.rows, item.tensors[0].shape or ()
        cut = (rows.outer, rows.channels, rows.inner)
        found = item.profile()
        if steps.size == 1:
            found = found.merged()

        def matrix(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            whole = known.product.matrix(np.broadcast_to(values, cut).reshape(shape))
            return split(whole, known.parts)

        step = steps[None, :, None]
        limit = np.floor(item.kind.largest / step)
        lowest = np.maximum(np.rint(found.low[None, :, None] / step) - 1, -limit)
        highest = np.minimum(np.rint(found.high[None, :, None] / step) + 1, limit)
        weight = matrix(values.astype(np.float64).reshape(cut))
        zero = pruned(weight)
        wide, low, high = (matrix(values) for values in (step, lowest, highest))
        narrow = bool((wide == wide[:, :, :1]).all())
        made = np.empty(weight.shape)
        for part in _slices(weight.shape):
            of_part = np.ascontiguousarray(wide[:, part, :1] if narrow else wide[:, part])
            level = feedback(weight[:, part], of_part, known, _ANY, None if zero is None else zero[:, part])
            np.clip(level, low[:, part], high[:, part], out=level)
            made[:, part] = level * of_part
        whole = joined(made, known.parts)
        return np.ascontiguousarray(known.product.weight(whole), np.float64).reshape(-1)

    def costs(self, item: Constant, values: Array) -> Float64 | None:
        """Returns what losing each weight alone costs, as a share of what the constant gives."""
        known = self.known(item)
        if known is None:
            return None
        shape = item.tensors[0].shape or ()
        with one_blas_thread():
            weight = split(known.product.matrix(values.astype(np.float64).reshape(shape)), known.parts)
            found = pruning.costs(weight, known.moments())
        return found if known.trial is None else found * known.trial.doubt

    def prune(self, item: Constant, values: Array, share: float, block: int) -> tuple[Float64, Error] | None:
        """Makes weights of one constant zero, those that the others can make up for best."""
        known = self.known(item)
        if known is None or (block > 1 and not known.product.takes_blocks(block, known.parts)):
            return None
        if known.trial is not None and not known.trial.pays:
            return None
        with one_blas_thread():
            moments = known.moments()
            shape = item.tensors[0].shape or ()
            weight = split(known.product.matrix(values.astype(np.float64).reshape(shape)), known.parts)
            made, error = np.empty(weight.shape), Error()
            for part in _slices(weight.shape):
                mine = np.ascontiguousarray(weight[:, part])
                made[:, part] = pruning.prune(mine, moments, share, partial(pruning.kept, block=block))
                signal, noise = pruning.lost(mine, made[:, part], moments)
                error.signal += signal
                error.noise += noise
        whole = known.product.weight(joined(made, known.parts))
        return np.ascontiguousarray(whole, np.float64).reshape(-1), error

    def notes(self) -> list[str]:
        """Returns how many weights were looked at, and why others were not."""
        known = [self.found[key] for key in self.active if key in self.found]
        idle = sum(each.trial is not None and not each.trial.pays for each in known)
        count, seen = len(known) - idle, len(self.steps)
        said = [f"{count} weight(s) fitted to what they meet in {seen} sample(s)"] if count else []
        if idle:
            said.append(
                f"{idle} weight(s) pruned by size: half of {seen} sample(s) says too little of the other"
            )
        return [*said, *self.failures()]

    def _jobs(self, model: Model, items: Sequence[Constant]) -> list[tuple[Hashable, Wanted]]:
        """Returns which weights to look at; notes of the others why not (nothing, where none does)."""
        places = places_of(model)
        jobs = []
        nbytes = self._nbytes
        for item in items:
            key, products = _key(item), [product_of(use.operator, use.position) for use in item.uses]
            product = products[0] if products else None
            if product is None or item.kind.numpy == "|i1":
                self.reasons[key] = ""
            elif any(other != product for other in products):
                self.reasons[key] = "operators multiply them in different ways"
            elif any(tensor.is_sparse or tensor.shape != item.tensors[0].shape for tensor in item.tensors):
                self.reasons[key] = "they are sparse, or are read in several shapes"
            elif _nbytes_of(product) > LARGEST_FACTOR_NBYTES:
                self.reasons[key] = "they meet vectors too long to be looked at"
            elif nbytes + _nbytes_of(product) > TOTAL_FACTOR_NBYTES:
                self.reasons[key] = "the model has too many weights to look at all"
            else:
                nbytes += _nbytes_of(product)
                jobs += [(key, Wanted(places[id(use.operator)], use.position, product)) for use in item.uses]
        return jobs

    def _collect(
        self,
        probe: Probe,
        jobs: Sequence[tuple[Hashable, Wanted]],
        trial: Callable[[Hashable, Moments], pruning.Trial | None],
    ) -> None:
        wanted = [item for _, item in jobs]
        pending = Counter(key for key, _ in jobs)
        sums: dict[Hashable, Moments] = {}

        def enough() -> bool:
            self._interrupt()
            return False

        calls = probe.calls(self.steps)
        found = collect(probe, wanted, calls, enough=enough, progress=self.progress)
        for position, moments in found:
            self._interrupt()
            key = jobs[position][0]
            pending[key] -= 1
            if isinstance(moments, str):
                self.reasons.setdefault(key, moments)
            elif key in sums:
                sums[key].take(moments)
            elif key not in self.found:
                sums[key] = moments
            # Where too much would be held, one of the operators that read a weight speaks for all.
            if key in sums and (not pending[key] or sum(item.nbytes for item in sums.values()) > _PENDING):
                seen = sums.pop(key)
                metric = Metric.of(seen.covariance(centred=False))
                self.found[key] = Known(
                    wanted[position].product, metric.order, self.kept(metric.factor), trial(key, seen)
                )
                self._nbytes += _nbytes_of(wanted[position].product)
                self.reasons.pop(key, None)


class InputActivations:
    """Runs the model on the user's inputs; see :class:`tfl_rewrite.weights.rounders.Activations`.

    Args:
        judging: Has the inputs, and what runs the model: the first of its runtimes.
        progress: Called with what is going on, and how many of how many bytes are done.
        inside: Whether what goes into a last SOFTMAX counts as an output where noise is measured.
        time_is_up: Called before each weight; once it says so, the rest is rounded without activations.
    """

    def __init__(
        self,
        judging: Judging,
        progress: Progress | None = None,
        *,
        inside: bool = False,
        time_is_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self.judging = judging
        self._inside = inside
        self._time_is_up = time_is_up
        self._progress = progress
        self._rounders: dict[int, Calibrated] = {}
        self._fitters: dict[int, Fitter] = {}
        self._ranges: dict[int, Ranges] = {}
        self._noises: dict[int, Noises] = {}
        self._memories: dict[int, dict[str, Any]] = {}

    def rounder(self, number: int, effort: Effort, *, correct_bias: bool) -> Calibrated:
        """Returns the rounder of a pass."""
        made = Calibrated(
            self.judging,
            effort=effort,
            ordered=Ordered() if effort is Effort.BEST else None,
            correct_bias=correct_bias,
            progress=self._progress,
        )
        return self._rounders.setdefault(number, made)

    def ranges(self, number: int, model: Model, *, whole: bool = False) -> dict[int, Range]:
        """Returns the ranges of the float tensors of a model, which is run for them once."""
        found = self._ranges.setdefault(number, Ranges(self.judging, self._progress)).of(model)
        if not whole:
            return found
        beside = Ranges(self.judging.for_judges, self._progress).of(model)
        return {key: hull([each[key] for each in (found, beside) if key in each]) for key in found | beside}

    def measured(self, number: int, model: Model, use: Callable[[Measure], None]) -> None:
        """Gives somebody what measures a model whose activations are rounded."""
        ranges = self._ranges.setdefault(number, Ranges(self.judging, self._progress))
        Trials(self.judging, self._progress).of(model, ranges, use)

    def integer_rounder(
        self, number: int, effort: Effort, simulate: Simulate, *, correct_bias: bool
    ) -> Calibrated:
        """Returns what rounds weights behind quantized activations."""
        return Calibrated(
            self.judging,
            effort=effort,
            ordered=Ordered(),
            simulate=simulate,
            correct_bias=correct_bias,
            progress=self._progress,
            time_is_up=self._time_is_up,
        )

    @property
    def min_snr(self) -> float | None:
        """The ratio that files are judged by."""
        return self.judging.tolerance.min_snr

    def memory(self, number: int) -> dict[str, Any]:
        """Returns what a pass left there."""
        return self._memories.setdefault(number, {})

    def noises(
        self, number: int, model: Model, changes: Sequence[Simulated], *, apart: bool = True
    ) -> Float64:
        """Returns what changes of a model do to its outputs."""
        ranges = self._ranges.setdefault(number, Ranges(self.judging, self._progress))
        made = self._noises.setdefault(number, Noises(self.judging, self._progress, inside=self._inside))
        return made.of(model, ranges, changes, apart=apart)

    def fitting(self, number: int) -> Fitter:
        """Returns the fitter of a pass."""
        return self._fitters.setdefault(number, Fitter(self.judging, self._progress))


def _key(item: Constant) -> Hashable:
    return item.position, item.rows, item.kind.numpy


def _nbytes_of(product: Product) -> int:
    return 4 * product.groups * product.inner * (product.inner // parts_for(product))


def _slices(shape: tuple[int, ...]) -> list[slice]:
    groups, rows, length = shape
    step = max(1, _SLICE_ELEMENTS // max(1, groups * length))
    return [slice(begin, min(rows, begin + step)) for begin in range(0, rows, step)]
