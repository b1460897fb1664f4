"""Runs a model on the user's inputs, for whoever rounds its weights for what they meet."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from tfl_rewrite.calibration.holdout import interface_of
from tfl_rewrite.calibration.probe import Array, Call, Place, Probe, Runner
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.source import Source, is_changed, origin_of, save
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.interpreter.worker import ModelFailed
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.products import activation_of
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics.moments import Moments, memory_rounds
from tfl_rewrite.numerics.products import Product
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.samples.inputs import real_inputs
from tfl_rewrite.samples.made import Step
from tfl_rewrite.weights.rounders import Simulate
from tfl_rewrite.work import Progress, Stage, one_blas_thread

OUT_OF_TIME = "there was no time left"
COLLECTING = "collecting activations"
_NOT_RUN = "the model could not be run for its activations: {}"
NOT_ENTERED = "no sample to fit to enters their subgraph"

MEMORY_NBYTES = 96 << 20
"""Of moments at a time; the model is run again for those that do not fit."""

AHEAD_NBYTES = 32 << 20
"""Of activations that are held for weights that follow; larger ones are seen one by one."""

HELD_NBYTES = 256 << 20
"""Of what was found, in memory; more goes to temporary files."""

Found = TypeVar("Found")
Number = TypeVar("Number", bound=np.generic)


class Remembered(Generic[Found]):
    """What was found step by step, each behind those before it; for whoever goes the same way again.

    Args:
        most: Bytes of what is kept; nothing is by default.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._known: dict[tuple[int, Hashable], tuple[int, Found]] = {}
        self._nbytes = 0

    def get(self, before: int, step: Hashable) -> tuple[int, Found] | None:
        """Returns what a step was found to be, and its number; None where it was not taken there yet.

        Args:
            before: Number of the step before it; 0 for none.
            step: What tells it from others there.
        """
        return self._known.get((before, step))

    def put(self, before: int, step: Hashable, found: Found, nbytes: int) -> int:
        """Keeps what a step was found to be; returns its number, -1 where no more is kept.

        Args:
            before, step: See :meth:`get`.
            found: It.
            nbytes: Memory that it takes.
        """
        self._nbytes += max(1, nbytes)
        if before < 0 or self._nbytes > self._most:
            return -1
        self._known[before, step] = len(self._known) + 1, found
        return len(self._known)


class Observer(Generic[Found]):
    """Looks at what weights meet. What was found of one is kept, so that asking again costs nothing.

    Args:
        judging: Has the inputs, and what runs the model: the first of its runtimes.
        progress: Called with what is going on, and how many of how many bytes are done.
        beside: A judge with the same runtime and limits, whose processes are used while it has no work.

    Attributes:
        found: By the key of a weight.
        reasons: Why nothing was found, likewise.
        active: Keys of the weights that were asked for last.
        steps: The calls that the inputs make, once they are read.
        in_sequence: Whether calls are one sequence, as for the judge, or each meets variables as in the file.
    """

    in_sequence = False

    def __init__(
        self, judging: Judging, progress: Progress | None = None, *, beside: Judge | None = None
    ) -> None:
        self.judging = judging
        self.progress = progress
        self._beside = beside
        self.found: dict[Hashable, Found] = {}
        self.reasons: dict[Hashable, str] = {}
        self.active: list[Hashable] = []
        self.steps: list[Step] = []
        self._held = 0
        self._files: list[Any] = []

    def is_known(self, key: Hashable) -> bool:
        """Whether a weight was looked at, or cannot be."""
        return key in self.found or key in self.reasons

    def observe(
        self,
        model: Model,
        keys: Sequence[Hashable],
        look: Callable[[Source, Callable[[Simulate | None], Probe]], None],
    ) -> None:
        """Makes a file of a model, reads the inputs, and has somebody look.

        Args:
            model: As it is; not changed.
            keys: Of the weights; where the model does not run, the reason is noted of each.
            look: Is given the file, and what opens probes of it; of one that rounds its activations, where it
                is told how.
        """
        judging = self.judging
        watch = MemoryWatch(default_limit() if judging.memory_limit is None else judging.memory_limit)
        choice = RuntimeChoice.parse(judging.runtime[0])
        try:
            # A signal to end unwinds, so that processes and files are not left behind.
            with TerminationGuard(), Scratch() as scratch, one_blas_thread(), ExitStack() as stack:
                beside = self._beside
                source = file_of(model, scratch.folder() if beside is None else beside.lend(0)[1])
                if self.progress is not None:
                    self.progress(COLLECTING, 0, 0)
                self.steps = self.steps or steps_of(model, judging)
                numbers = itertools.count()

                def probe(simulate: Simulate | None) -> Probe:
                    lent = None if beside is None else beside.lend(next(numbers))
                    runner = Runner(
                        choice,
                        timeout=judging.timeout,
                        watch=watch,
                        lent=lent,
                        in_sequence=self.in_sequence and not judging.independent,
                    )
                    return Probe(source, stack.enter_context(runner), simulate)

                look(source, probe)
        except (ModelFailed, UnsupportedError) as error:
            for key in keys:
                if key not in self.found:
                    self.reasons[key] = _NOT_RUN.format(error)

    def kept(self, array: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """Moves an array to a file where too many are held."""
        if self._held + array.nbytes <= HELD_NBYTES:
            self._held += array.nbytes
            return array
        # The map lives as long as this object, and the nameless file as long as the map.
        file = tempfile.TemporaryFile(prefix="tfl-rewrite-")  # noqa: SIM115
        file.write(np.ascontiguousarray(array).data)
        file.flush()
        self._files.append(file)
        return np.memmap(file, array.dtype, "r", shape=array.shape)

    def failures(self) -> list[str]:
        """Returns why weights that were asked for last were not looked at, where a reason is said."""
        counts = Counter(reason for key in self.active if (reason := self.reasons.get(key)))
        return [f"{count} weight(s) rounded without activations: {why}" for why, count in counts.items()]


def file_of(model: Model, folder: Path) -> Source:
    """Returns a file that holds the model as it is: its own where nothing was changed yet."""
    origin = origin_of(model)
    if origin is not None and origin.file is not None and not is_changed(model):
        return origin
    path = folder / "float.tflite"
    save(model, path)
    return Source.open(path)


def steps_of(model: Model, judging: Judging) -> list[Step]:
    """Returns the calls that the user's inputs make; made samples are not among them.

    Args:
        model: That they are for.
        judging: Has the inputs.

    Raises:
        UsageError: The files do not fit the model.
    """
    return list(real_inputs(interface_of(model), judging.inputs).steps)


@frozen
class Wanted:
    """One weight whose moments are asked for: of the operator at a place, at one of its inputs."""

    place: Place
    position: int
    product: Product


def collect(
    probe: Probe,
    wanted: Sequence[Wanted],
    calls: Sequence[Call],
    *,
    enough: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Moments | str]]:
    """Runs a model and yields, for each wanted operator, its moments or why there are none.

    Moments take memory until the caller lets go of them; the model is run again for each memoryful.

    Args:
        probe: The model.
        wanted: Operators.
        calls: What to run.
        enough: Called before each run of the model; once it says so, there is none any more.
        progress: Called with what is going on, and how many of how many bytes of inputs were run.

    Yields:
        Positions in ``wanted`` with what was found.
    """
    entered = Counter[int]()
    for call in calls:
        entered[call.subgraph] += _nbytes(call)
    rounds = []
    for number in sorted({item.place.subgraph for item in wanted}):
        mine = [position for position, item in enumerate(wanted) if item.place.subgraph == number]
        if number not in entered:
            yield from ((position, NOT_ENTERED) for position in mine)
            continue
        groups = memory_rounds([wanted[position].product for position in mine], MEMORY_NBYTES)
        rounds += [(number, [mine[index] for index in group]) for group in groups]
    stage = Stage(COLLECTING, sum(entered[number] for number, _ in rounds), progress)
    for _, group in rounds:
        if enough():
            yield from ((position, OUT_OF_TIME) for position in group)
            continue
        yield from _collect(probe, wanted, group, calls, stage)


def _nbytes(call: Call) -> int:
    """Returns what a call counts for; at least a byte, for one of nothing is a call too."""
    return max(1, sum(array.nbytes for array in call.values))


def _collect(
    probe: Probe, wanted: Sequence[Wanted], group: list[int], calls: Sequence[Call], stage: Stage
) -> Iterator[tuple[int, Moments | str]]:
    found: dict[int, Moments | str] = {position: Moments(wanted[position].product) for position in group}
    try:
        weights = [(wanted[position].place, wanted[position].position) for position in group]
        for number, activations in probe.activations(weights, calls):
            half = calls[number].half
            for position, activation in zip(group, activations, strict=True):
                held = found[position]
                if isinstance(held, Moments):
                    try:
                        seed = wanted[position].place.seed(number)
                        held.add(activation, np.random.default_rng(seed), half)
                    except ValueError as error:
                        found[position] = str(error)
            stage.tick(_nbytes(calls[number]))
    except ModelFailed as error:
        found = dict.fromkeys(group, _NOT_RUN.format(error))
    for position in group:
        yield position, found.pop(position)


class Ahead:
    """What weights meet in the float model, which does not change: as many are seen in one run as fit.

    Args:
        probe: The float model.
        wanted: The weights, in the order in which they are asked for, each once.
        calls: What to run.
    """

    def __init__(self, probe: Probe, wanted: Sequence[Wanted], calls: Sequence[Call]) -> None:
        self._probe = probe
        self._wanted = wanted
        self._calls = calls
        self._position = 0
        self._known: dict[int, list[tuple[int, Array]]] = {}
        self._is_told_right = True

    def of(self, wanted: Wanted) -> Iterator[tuple[int, Array]]:
        """Yields the numbers of the calls and what a weight meets in each; see :meth:`Probe.activations`.

        Raises:
            ModelFailed: The part does not run.
        """
        while self._wanted[self._position] is not wanted:
            self._known.pop(self._position, None)
            self._position += 1
        if self._position not in self._known:
            self._look(self._fitting())
        known = self._known.pop(self._position, None)
        if known is not None:
            yield from known
            return
        for number, (array,) in self._probe.activations([(wanted.place, wanted.position)], self._calls):
            yield number, array

    def _fitting(self) -> range:
        """Returns the positions of the next weights whose activations are held at a time."""
        first, nbytes = self._wanted[self._position], 0
        for position in range(self._position, len(self._wanted)):
            item = self._wanted[position]
            tensor = activation_of(self._probe.operator(item.place), item.position)
            entering = sum(call.subgraph == item.place.subgraph for call in self._calls)
            nbytes += 4 * entering * (tensor.elements if tensor is not None else 0)
            if nbytes > AHEAD_NBYTES or item.place.subgraph != first.place.subgraph:
                return range(self._position, position)
        return range(self._position, len(self._wanted))

    def _look(self, positions: range) -> None:
        if len(positions) < 2 or not self._is_told_right:
            # Nothing is won by holding what is used at once.
            return
        weights = [(self._wanted[at].place, self._wanted[at].position) for at in positions]
        found: dict[int, list[tuple[int, Array]]] = {at: [] for at in positions}
        nbytes = 0
        try:
            for number, arrays in self._probe.activations(weights, self._calls):
                nbytes += sum(array.nbytes for array in arrays)
                if nbytes > AHEAD_NBYTES:
                    # The shapes in the file are smaller than those of the samples.
                    self._is_told_right = False
                    return
                for at, array in zip(positions, arrays, strict=True):
                    found[at].append((number, array))
        except ModelFailed:
            # The part that ends in one of them may run all the same.
            return
        self._known.update(found)
