"""Values on given grids, chosen for the real activations that they meet.

The grids are decided elsewhere; here each column of a weight makes up for the errors of those before it
(:func:`tfl_rewrite.numerics.gptq.feedback`), so that the products are off by less at the same grid. Biases
are left alone: what their correction won on inputs at hand was as often lost on others. Without it, what was
fitted is hardly ever worse on other inputs (0.3 dB at most on 14 models), so nothing is tried on halves here.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.calibration.collect import Wanted, collect, steps_of
from tfl_rewrite.calibration.probe import Place, Probe, Runner
from tfl_rewrite.calibration.ranges import Range, ranges_of
from tfl_rewrite.calibration.rounder import Calibrated, file_of
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.interpreter.worker import ModelFailed
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.products import product_of
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics.gptq import Metric, feedback
from tfl_rewrite.numerics.grids import Array, Float64
from tfl_rewrite.numerics.moments import Moments, joined, parts_for, split
from tfl_rewrite.numerics.products import Product
from tfl_rewrite.numerics.symmetric import Levels
from tfl_rewrite.weights.grids import Constant
from tfl_rewrite.weights.rounders import Effort, Simulate
from tfl_rewrite.work import one_blas_thread

LARGEST_FACTOR_NBYTES = 256 << 20
"""Of what is kept of the activations of one weight; one that would take more is rounded without them."""

TOTAL_FACTOR_NBYTES = 4 << 30
"""Of all of them, in a temporary file but for :data:`HELD_NBYTES`."""

HELD_NBYTES = 256 << 20

REMEMBERED_NBYTES = 128 << 20
"""Of the values that were asked for last: they are asked for again, to be written and to be told of."""

_PENDING = 256 << 20
"""Of sums over what weights of several operators meet."""

_SLICE_ELEMENTS = 1 << 22
"""Rounded at a time: 32 MB an array of float64, of which about six are held."""

_ANY = Levels(-(1 << 40), 1 << 40)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is kept of the activations that one weight meets.

    Attributes:
        order, factor: See :class:`tfl_rewrite.numerics.gptq.Factored`; float32.
    """

    product: Product
    order: npt.NDArray[np.int64]
    factor: npt.NDArray[np.float32]


class Fitter:
    """Looks at activations; see :class:`tfl_rewrite.weights.rounders.Fitting`.

    Args:
        judging: Has the inputs, and what runs the model: the first of its runtimes.
        progress: Called with what is going on, and how many of how many bytes are done.
    """

    def __init__(self, judging: Judging, progress: Callable[[str, int, int], None] | None = None) -> None:
        self._judging = judging
        self._progress = progress or (lambda _what, _done, _total: None)
        self._known: dict[Hashable, _Known] = {}
        self._reasons: dict[Hashable, str] = {}
        self._active: list[Hashable] = []
        self._samples = 0
        self._nbytes = 0
        self._files: list[Any] = []
        self._remembered: OrderedDict[Hashable, npt.NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, model: Model, items: Sequence[Constant]) -> None:
        """Runs the model for what it is not known yet."""
        self._active = [_key(item) for item in items]
        jobs = self._jobs(model, [item for item in items if not self._seen(_key(item))])
        if not jobs:
            return
        try:
            # A signal to end unwinds, so that processes and files are not left behind.
            with TerminationGuard(), Scratch() as scratch, one_blas_thread():
                self._collect(file_of(model, scratch.folder()), jobs)
        except (ModelFailed, UnsupportedError) as error:
            for key, _ in jobs:
                if key not in self._known:
                    self._reasons[key] = f"the model could not be run for its activations: {error}"

    def fit(self, item: Constant, values: Array, steps: Float64) -> Float64 | None:
        """Rounds one weight, columns that meet most first."""
        known = self._known.get(_key(item))
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

    def _fit(self, item: Constant, values: Array, steps: Float64, known: _Known) -> Float64:
        rows, shape = item.rows, item.tensors[0].shape or ()
        cut = (rows.outer, rows.channels, rows.inner)
        found = item.profile()
        if steps.size == 1:
            found = found.merged()

        def matrix(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            whole = known.product.matrix(np.broadcast_to(values, cut).reshape(shape))
            return split(whole, known.product.inner // known.order.shape[1])

        step = steps[None, :, None]
        limit = np.floor(item.kind.largest / step)
        lowest = np.maximum(np.rint(found.low[None, :, None] / step) - 1, -limit)
        highest = np.minimum(np.rint(found.high[None, :, None] / step) + 1, limit)
        weight = matrix(values.astype(np.float64).reshape(cut))
        wide, low, high = (matrix(values) for values in (step, lowest, highest))
        narrow = bool((wide == wide[:, :, :1]).all())
        made = np.empty(weight.shape)
        for part in _slices(weight.shape):
            of_part = np.ascontiguousarray(wide[:, part, :1] if narrow else wide[:, part])
            level = feedback(weight[:, part], of_part, known, _ANY)
            np.clip(level, low[:, part], high[:, part], out=level)
            made[:, part] = level * of_part
        whole = joined(made, known.product.inner // known.order.shape[1])
        return np.ascontiguousarray(known.product.weight(whole), np.float64).reshape(-1)

    def notes(self) -> list[str]:
        """Returns how many weights were looked at, and why others were not."""
        count = sum(key in self._known for key in self._active)
        lines = []
        if count:
            lines.append(f"{count} weight(s) rounded for what they meet in {self._samples} sample(s)")
        why = Counter(self._reasons[key] for key in self._active if self._reasons.get(key))
        lines += [f"{number} weight(s) rounded without activations: {text}" for text, number in why.items()]
        return lines

    def _seen(self, key: Hashable) -> bool:
        return key in self._known or key in self._reasons

    def _jobs(self, model: Model, items: Sequence[Constant]) -> list[tuple[Hashable, Wanted]]:
        """Returns which weights to look at; notes of the others why not (nothing, where none does)."""
        places = {
            id(operator): Place(number, position)
            for number, subgraph in enumerate(model.subgraphs)
            for position, operator in enumerate(subgraph.operators)
        }
        jobs = []
        for item in items:
            key, products = _key(item), [product_of(use.operator, use.position) for use in item.uses]
            product = products[0] if products else None
            if product is None or item.kind.numpy == "|i1":
                self._reasons[key] = ""
            elif any(other != product for other in products):
                self._reasons[key] = "operators multiply them in different ways"
            elif any(tensor.is_sparse or tensor.shape != item.tensors[0].shape for tensor in item.tensors):
                self._reasons[key] = "they are sparse, or are read in several shapes"
            elif _nbytes_of(product) > LARGEST_FACTOR_NBYTES:
                self._reasons[key] = "they meet vectors too long to be looked at"
            elif self._nbytes + _nbytes_of(product) > TOTAL_FACTOR_NBYTES:
                self._reasons[key] = "the model has too many weights to look at all"
            else:
                self._nbytes += _nbytes_of(product)
                jobs += [(key, Wanted(places[id(use.operator)], use.position, product)) for use in item.uses]
        return jobs

    def _collect(self, path: Any, jobs: Sequence[tuple[Hashable, Wanted]]) -> None:
        judging = self._judging
        watch = MemoryWatch(default_limit() if judging.memory_limit is None else judging.memory_limit)
        steps = steps_of(
            path,
            judging.inputs,
            runtime=judging.runtime[0],
            timeout=judging.timeout,
            memory_limit=judging.memory_limit,
            progress=self._progress,
        )
        self._samples = len(steps)
        choice = RuntimeChoice.parse(judging.runtime[0])
        with Runner(choice, timeout=judging.timeout, watch=watch) as runner:
            probe = Probe(path, runner)
            wanted = [item for _, item in jobs]
            pending = Counter(key for key, _ in jobs)
            sums: dict[Hashable, Moments] = {}
            found = collect(probe, wanted, probe.calls(steps), progress=self._progress)
            for position, moments in found:
                key = jobs[position][0]
                pending[key] -= 1
                if isinstance(moments, str):
                    self._reasons.setdefault(key, moments)
                elif key in sums:
                    sums[key].take(moments)
                elif key not in self._known:
                    sums[key] = moments
                # Where too much would be held, one of the operators that read a weight speaks for all.
                if key in sums and (
                    not pending[key] or sum(item.nbytes for item in sums.values()) > _PENDING
                ):
                    self._known[key] = self._kept(wanted[position].product, sums.pop(key))
                    self._reasons.pop(key, None)

    def _kept(self, product: Product, moments: Moments) -> _Known:
        metric = Metric.of(moments.covariance(centred=False))
        factor = metric.factor.astype(np.float32)
        if sum(item.factor.nbytes for item in self._known.values()) + factor.nbytes <= HELD_NBYTES:
            return _Known(product, metric.order, factor)
        # The map lives as long as this object, and the nameless file as long as the map.
        file = tempfile.TemporaryFile(prefix="tfl-rewrite-")  # noqa: SIM115
        file.write(factor.data)
        file.flush()
        mapped: npt.NDArray[np.float32] = np.memmap(file, np.float32, "r", shape=factor.shape)
        self._files.append(file)
        return _Known(product, metric.order, mapped)


class InputActivations:
    """Runs the model on the user's inputs; see :class:`tfl_rewrite.weights.rounders.Activations`.

    Args:
        judging: Has the inputs, and what runs the model: the first of its runtimes.
        progress: Called with what is going on, and how many of how many bytes are done.
    """

    def __init__(self, judging: Judging, progress: Callable[[str, int, int], None] | None = None) -> None:
        self._judging = judging
        self._progress = progress
        self._rounders: dict[int, Calibrated] = {}
        self._fitters: dict[int, Fitter] = {}
        self._ranges: dict[int, list[dict[int, Range]]] = {}

    def rounder(self, number: int, effort: Effort, *, correct_bias: bool) -> Calibrated:
        """Returns the rounder of a pass."""
        if number not in self._rounders:
            self._rounders[number] = Calibrated(
                self._judging,
                effort=effort,
                in_order=effort is Effort.BEST,
                correct_bias=correct_bias,
                progress=self._progress,
            )
        return self._rounders[number]

    def ranges(self, number: int, model: Model) -> dict[int, Range]:
        """Returns the ranges of the float tensors of a model, which is run for them once."""
        if number not in self._ranges:
            self._ranges[number] = ranges_of(model, self._judging, self._progress)
        return {
            id(tensor): seen[at]
            for subgraph, seen in zip(model.subgraphs, self._ranges[number], strict=True)
            for at, tensor in enumerate(subgraph.tensors)
            if at in seen
        }

    def integer_rounder(
        self, number: int, effort: Effort, simulate: Simulate, *, correct_bias: bool
    ) -> Calibrated:
        """Returns what rounds weights behind quantized activations."""
        return Calibrated(
            self._judging,
            effort=effort,
            in_order=True,
            simulate=simulate,
            correct_bias=correct_bias,
            progress=self._progress,
        )

    def fitting(self, number: int) -> Fitter:
        """Returns the fitter of a pass."""
        if number not in self._fitters:
            self._fitters[number] = Fitter(self._judging, self._progress)
        return self._fitters[number]


def _key(item: Constant) -> Hashable:
    return item.position, item.rows, item.kind.numpy


def _nbytes_of(product: Product) -> int:
    return 4 * product.groups * product.inner * (product.inner // parts_for(product))


def _slices(shape: tuple[int, ...]) -> list[slice]:
    groups, rows, length = shape
    step = max(1, _SLICE_ELEMENTS // max(1, groups * length))
    return [slice(begin, min(rows, begin + step)) for begin in range(0, rows, step)]
