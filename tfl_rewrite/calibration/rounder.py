"""A rounder that knows what each weight is multiplied with."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from statistics import median

import numpy as np

from tfl_rewrite.calibration.collect import (
    MEMORY_NBYTES,
    NOT_ENTERED,
    OUT_OF_TIME,
    Ahead,
    Observer,
    Remembered,
    Wanted,
    collect,
)
from tfl_rewrite.calibration.probe import Call, Place, Probe, places_of
from tfl_rewrite.calibration.trials import kept_db
from tfl_rewrite.files.source import Source
from tfl_rewrite.interpreter.worker import ModelFailed
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.products import before_steep, product_of
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics import symmetric
from tfl_rewrite.numerics.gptq import GptqEffort
from tfl_rewrite.numerics.layer import (
    Fit,
    Layer,
    LayerRounding,
    Metrics,
    Plan,
    Run,
    Trial,
    rounding_nbytes,
)
from tfl_rewrite.numerics.moments import Drift, Moments
from tfl_rewrite.numerics.symmetric import Error, Float32
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.weights.biases import Correction, takes_bias
from tfl_rewrite.weights.rounders import Clipped, Effort, Emit, Rounder, Simulate, Work, emitted
from tfl_rewrite.work import Progress, Stage, current

EFFORTS = {
    Effort.FAST: GptqEffort(rounds=0),
    Effort.BALANCED: GptqEffort(),
    Effort.BEST: GptqEffort(shares=(0.85, 0.92, 1.0, 1.08, 1.15), rounds=4),
}
"""Work that each effort is."""

LARGEST_ELEMENTS = 1 << 27
"""Of a weight that is calibrated: a few float32 copies of it are held, 512 MB each."""

IN_ORDER_NBYTES = 256 << 20
"""Of a model whose weights are rounded one after the other: a part of it is written for each."""

AT_ONCE_NBYTES = 256 << 20
"""Of weights that are rounded at a time, with all that belongs to them; one that takes more is alone."""

METRICS_NBYTES = 32 << 20
"""Of what follows from the inputs alone, for a search that asks for other encodings of the same weights."""

ONE_SAMPLE = "a single sample meets them, so that nothing could judge what was fitted to it"

_HALF_DIGITS = 11


@frozen
class _Job:
    """One weight that can be calibrated."""

    work: Work
    wanted: Wanted
    plan: Plan

    def weight(self) -> Float32:
        """Returns the float weight in its shape, a copy."""
        values = np.array(self.work.values(), np.float32).reshape(self.work.shape)
        self.work.release()
        return values


_Outcome = tuple[_Job, Trial | str, Layer | None]
"""What became of a weight: what was tried, or why nothing; and its integers, unless they are the nearest."""


Ordered = Remembered[tuple[Trial | str, Layer | None]]
"""What rounding in order came to, for one model and its inputs."""


class Calibrated(Observer[Trial], Clipped):
    """Rounds weights for the real activations that they meet, others as :class:`Clipped` does.

    So does it with those that fitting did not make better on samples that were not fitted to.

    Args:
        judging: See :class:`Observer`.
        effort: How much work each weight is worth.
        ordered: Where weight after weight is rounded, each for what it meets behind those before it: what
            that came to before with the same arguments, for the same model. None where each is rounded alone.
        simulate: Makes a copy of the model round its activations, too: what weights meet is seen there.
        correct_bias: Whether biases take mean errors back.
        progress: See :class:`Observer`.
        time_is_up: Called before each weight; once it says so, the rest is rounded without activations.
        beside: See :class:`Observer`.

    Attributes:
        keeps: Bytes of what weights meet that is kept from now on, for other encodings of them.
    """

    keeps = 0

    def __init__(
        self,
        judging: Judging,
        *,
        effort: Effort = Effort.BALANCED,
        ordered: Ordered | None = None,
        simulate: Simulate | None = None,
        correct_bias: bool = True,
        progress: Progress | None = None,
        time_is_up: Callable[[], bool] = lambda: False,
        beside: Judge | None = None,
    ) -> None:
        super().__init__(judging, progress, beside=beside)
        self._metrics: dict[Wanted, Metrics] = {}
        self._effort = EFFORTS[effort]
        self._memory = ordered
        self._simulate = simulate
        self._correct_bias = correct_bias
        self._time_is_up = time_is_up
        self._layers: dict[Hashable, Layer] = {}
        # Of layers whose integers were given out.
        self._errors: dict[Hashable, Error] = {}
        self._works: list[Work] = []
        self._places: dict[int, Place] = {}
        self._ordered = False
        self._weighed = ""

    def prepare(self, model: Model, works: Sequence[Work]) -> None:
        """Runs the model for what it is not known yet, and rounds."""
        self._works, self.active = list(works), [_key(work) for work in works]
        jobs = self._jobs(model, [work for work in works if not self.is_known(_key(work))])
        if not jobs:
            return
        total = sum(job.work.channels.elements for job in jobs)
        self._stage = Stage("calibrating", 4 * total, self.progress)

        def look(source: Source, probe: Callable[[Simulate | None], Probe]) -> None:
            first = probe(None)
            calls = first.calls(self.steps)
            if self._memory is not None and source.nbytes <= IN_ORDER_NBYTES:
                self._ordered = True
                with ThreadPoolExecutor(current().threads) as pool:
                    rounded = probe(self._simulate)
                    known = self._memory, _digest(source)
                    self._in_turn(first, rounded, jobs, calls, pool.map, known)
            else:
                self._at_once(first, jobs, calls)

        self.observe(model, [_key(job.work) for job in jobs], look)

    def scales(self, work: Work) -> Float32:
        """Returns the scales that belong to the integers."""
        layer = self._layers.get(_key(work))
        return layer.scale if layer is not None else super().scales(work)

    def round(self, work: Work, scale: Float32, emit: Emit) -> Error:
        """Gives out the integers; the nearest ones where the file holds other scales than theirs."""
        key = _key(work)
        layer = self._layers.get(key)
        if layer is None or not np.array_equal(layer.scale, scale):
            return super().round(work, scale, emit)
        known = self._errors.get(key)
        error = self._errors[key] = emitted(layer.integers.reshape(-1), work, scale, emit, known)
        return error

    def corrections(self) -> list[Correction]:
        """Returns what the biases of the weights prepared last are to take back."""
        found = []
        for work in self._works:
            layer = self._layers.get(_key(work))
            if layer is not None and layer.bias is not None:
                use = work.uses[0]
                found.append(Correction(use.subgraph, use.operator, layer.bias))
        return found

    @property
    def ran_out_of_time(self) -> bool:
        """Whether some of the weights prepared last were left to the nearest integers, for want of time."""
        return any(self.reasons.get(key) == OUT_OF_TIME for key in self.active)

    def gains(self, work: Work) -> dict[str, float] | None:
        """Returns what each way won, in dB on samples not fitted to; None for a weight not calibrated."""
        trial = self.found.get(_key(work))
        return None if trial is None else trial.decibels()

    def notes(self) -> list[str]:
        """Returns how many weights were calibrated, what that won, and why others were not."""
        trials = [self.found[key] for key in self.active if key in self.found]
        lines = []
        if trials and self._weighed:
            lines.append(
                f"{len(trials)} weight(s) rounded to the nearest, not for what they meet: {self._weighed}"
            )
        elif trials:
            found = Counter(trial.best for trial in trials)
            told = {Fit.ROUNDING: "rounded", Fit.BIAS: "rounded with the bias", Fit.NEAREST: "to the nearest"}
            parts = ", ".join(f"{found[fit]} {text}" for fit, text in told.items() if found[fit])
            # Adding zero makes a zero of a negative one.
            won = round(median(max(0.0, *trial.decibels().values()) for trial in trials), 1) + 0.0
            how = ", each behind those before it" if self._ordered else ""
            lines.append(
                f"calibrated {len(trials)} weight(s) on {len(self.steps)} sample(s){how}: {parts},"
                " whichever errs least on the half of the samples that it was not fitted to; median gain"
                f" there {won:.1f} dB"
            )
        return [*lines, *self.failures()]

    def _jobs(self, model: Model, works: Sequence[Work]) -> list[_Job]:
        places = self._places = places_of(model)
        jobs = []
        steep = before_steep(model) if self._correct_bias else set()
        for work in works:
            product = product_of(work.uses[0].operator, work.uses[0].position) if work.uses else None
            if len(work.uses) != 1:
                self.reasons[_key(work)] = "several operators read them"
            elif work.channels.elements > LARGEST_ELEMENTS:
                self.reasons[_key(work)] = f"more than {LARGEST_ELEMENTS} elements, too many to be held"
            elif product is None:
                self.reasons[_key(work)] = f"read by {work.uses[0].operator.code.name}"
            else:
                use = work.uses[0]
                may = self._correct_bias and id(use.operator) not in steep
                plan = _plan(work, may_correct=may)
                jobs.append(_Job(work, Wanted(places[id(use.operator)], use.position, product), plan))
        return sorted(jobs, key=lambda job: job.wanted.place)

    def _at_once(self, probe: Probe, jobs: Sequence[_Job], calls: Sequence[Call]) -> None:
        # The same weight in several encodings meets the same activations.
        groups: dict[Wanted, list[_Job]] = {}
        for job in {_key(job.work): job for job in jobs}.values():
            groups.setdefault(job.wanted, []).append(job)
        known = [group for wanted, group in groups.items() if wanted in self._metrics]
        places = [group for wanted, group in groups.items() if wanted not in self._metrics]
        threads = current().threads
        waiting: deque[tuple[Future[list[_Outcome]], int]] = deque()

        def make_room(nbytes: int) -> None:
            # In the order of the layers, whichever is done first.
            while waiting and (
                len(waiting) > threads or nbytes + sum(each for _, each in waiting) > AT_ONCE_NBYTES
            ):
                self._keep(waiting.popleft()[0].result())

        def enough() -> bool:
            # What is collected next lies beside what is rounded meanwhile.
            make_room(MEMORY_NBYTES)
            return self._time_is_up()

        def begin(group: list[_Job], metrics: Metrics | str) -> None:
            elements = group[0].work.channels.elements
            nbytes = rounding_nbytes(group[0].wanted.product, elements, keep=len(group) > 1)
            make_room(nbytes)
            waiting.append((pool.submit(self._rounded, group, metrics), nbytes))

        with ThreadPoolExecutor(threads) as pool:
            try:
                for group in known:
                    begin(group, self._metrics[group[0].wanted])
                wanted = [group[0].wanted for group in places]
                found = collect(probe, wanted, calls, enough=enough, progress=self.progress)
                for position, moments in found:
                    begin(places[position], self._metrics_of(places[position], moments))
                make_room(AT_ONCE_NBYTES)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _metrics_of(self, group: Sequence[_Job], moments: Moments | str) -> Metrics | str:
        """Returns what follows from what a weight meets; keeps it for later where there is room."""
        if isinstance(moments, str):
            return moments
        nbytes = Metrics.nbytes_of(moments)
        if nbytes > self.keeps:
            return Metrics(moments, keep=len(group) > 1)
        self.keeps -= nbytes
        made = self._metrics[group[0].wanted] = Metrics(moments, keep=True)
        return made

    def _rounded(self, group: Sequence[_Job], metrics: Metrics | str) -> list[_Outcome]:
        """Rounds one weight in all of its encodings; several weights at a time, each in a thread."""
        found = []
        for job in group:
            if self._time_is_up():
                metrics = OUT_OF_TIME
            found.append(self._outcome(job, metrics))
        return found

    def _keep(self, outcomes: Sequence[_Outcome]) -> None:
        for job, found, layer in outcomes:
            self._take(job, found, layer)
            self._stage.tick(4 * job.work.channels.elements)

    def _in_turn(
        self,
        probe: Probe,
        rounded: Probe,
        jobs: Sequence[_Job],
        calls: Sequence[Call],
        run: Run,
        known_of: tuple[Ordered, bytes],
    ) -> None:
        entered = {call.subgraph for call in calls}
        calibrated = {_key(job.work) for job in jobs}
        rest = [work for work in self._works if _key(work) not in calibrated and work.uses]
        for work in rest:
            self._put(rounded, self._places[id(work.uses[0].operator)], work, self)
        # Nothing behind a weight decides what it is rounded to.
        (memory, source), nothing = known_of, ("", None)
        step: Hashable = source, *map(_key, rest)
        at, _ = memory.get(0, step) or (memory.put(0, step, nothing, 0), nothing)
        floats = Ahead(probe, [job.wanted for job in jobs if job.wanted.place.subgraph in entered], calls)
        for number, job in enumerate(jobs):
            if number:
                self._stage.tick(4 * jobs[number - 1].work.channels.elements)
            place = job.wanted.place
            if place.subgraph not in entered:
                self.reasons[_key(job.work)] = NOT_ENTERED
                continue
            step = _key(job.work), job.plan
            known = memory.get(at, step)
            if known is None:
                in_time = not self._time_is_up()
                moments = _drift(floats, rounded, job, calls) if in_time else OUT_OF_TIME
                metrics = moments if isinstance(moments, str) else Metrics(moments)
                found = self._outcome(job, metrics, run=run)[1:]
                nbytes = job.work.channels.elements
                known = (memory.put(at, step, found, nbytes) if in_time else -1), found
            at = known[0]
            layer = self._take(job, *known[1])
            if layer is None:
                self._put(rounded, place, job.work, self)
                continue
            scale = job.work.channels.by_element(layer.scale).reshape(job.work.shape)
            rounded.put(place, job.wanted.position, layer.integers * scale)
            if layer.bias is not None:
                rounded.add(place, 2, layer.bias)
        if self._simulate is not None:
            self._weigh(probe, rounded, jobs, calls)

    def _weigh(self, probe: Probe, rounded: Probe, jobs: Sequence[_Job], calls: Sequence[Call]) -> None:
        """Rounds all weights to the nearest where the whole model keeps more of its outputs then.

        Errors of layers may shrink and add up to more. The samples are those that weights were fitted to,
        which can only flatter what was fitted: what loses even there is not worth its risk.
        """
        mine = [job for job in jobs if _key(job.work) in self._layers]
        if not mine:
            return
        fitted = kept_db(probe, rounded, calls)
        plain, nearest = rounded.again(self._simulate), Clipped()
        for work in self._works:
            if work.uses:
                self._put(plain, self._places[id(work.uses[0].operator)], work, nearest)
        reached = kept_db(probe, plain, calls)
        if reached > fitted:
            self._weighed = f"{reached:.1f} dB of the outputs are kept then, {fitted:.1f} otherwise"
            for job in mine:
                del self._layers[_key(job.work)]

    def _put(self, rounded: Probe, place: Place, work: Work, rounder: Rounder) -> None:
        """Makes the model under way read a weight as a rounder rounds it."""
        scale = rounder.scales(work)
        integers = np.empty(work.channels.elements, work.levels.dtype)

        def keep(start: int, part: symmetric.Integers) -> None:
            integers[start : start + part.size] = part

        rounder.round(work, scale, keep)
        values = integers * work.channels.by_element(scale)
        rounded.put(place, work.uses[0].position, values.reshape(work.shape))

    def _outcome(self, job: _Job, metrics: Metrics | str, run: Run = map) -> _Outcome:
        """Rounds one weight in the way that errs least on samples that it was not fitted to."""
        if isinstance(metrics, Metrics) and not metrics.moments.halved:
            metrics = ONE_SAMPLE
        if isinstance(metrics, str):
            return job, metrics, None
        with symmetric.short_loops():
            rounding = LayerRounding(job.weight(), job.plan, metrics.moments, self._effort, metrics)
            trial = rounding.tried(super().scales(job.work), run)
            if trial.best is Fit.NEAREST:
                return job, trial, None
            return job, trial, rounding.layer(bias=trial.best is Fit.BIAS)

    def _take(self, job: _Job, found: Trial | str, layer: Layer | None) -> Layer | None:
        """Keeps an outcome."""
        key = _key(job.work)
        if isinstance(found, str):
            self.reasons[key] = found
            return None
        self.found[key] = found
        if layer is not None:
            layer = self._layers[key] = replace(layer, integers=self.kept(layer.integers))
            self._errors.pop(key, None)
        return layer


def _drift(floats: Ahead, rounded: Probe, job: _Job, calls: Sequence[Call]) -> Moments | str:
    """Returns what a weight meets in the model rounded so far, and what it would meet in the float model."""
    place = job.wanted.place
    moments = Drift(job.wanted.product)
    met = rounded.activations([(place, job.wanted.position)], calls)
    try:
        for (number, (values,)), (_, wanted) in zip(met, floats.of(job.wanted), strict=True):
            moments.add_pair(values, wanted, place.seed(number), calls[number].half)
    except (ValueError, ModelFailed) as error:
        return str(error)
    return moments


def _digest(source: Source) -> bytes:
    found = hashlib.sha256()
    for piece in source.container.pieces():
        found.update(piece)
    return found.digest()


def _plan(work: Work, *, may_correct: bool) -> Plan:
    use = work.uses[0]
    shape = work.shape
    outputs = shape[row_of(use.operator).output_axis(use.position, len(shape)) or 0]
    nbytes = work.channels.elements * work.bits // 8
    centred = may_correct and takes_bias(use.subgraph, use.operator, weight_nbytes=nbytes, outputs=outputs)
    digits = _HALF_DIGITS if work.block is not None else 24
    return Plan(shape, work.channels, work.levels, centred, digits)


def _key(work: Work) -> Hashable:
    return (work.position, work.channels, work.bits, work.levels)
