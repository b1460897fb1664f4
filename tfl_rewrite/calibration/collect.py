"""Collects the moments of a model's weighted operators."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfl_rewrite.calibration.probe import Call, Place, Probe
from tfl_rewrite.interpreter.worker import ModelFailed
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.numerics.moments import Moments, memory_rounds
from tfl_rewrite.numerics.products import Product
from tfl_rewrite.numerics.symmetric import Float32
from tfl_rewrite.samples.inputs import real_inputs
from tfl_rewrite.samples.made import Step
from tfl_rewrite.work import Progress, Stage

OUT_OF_TIME = "there was no time left"
COLLECTING = "collecting activations"
NOT_ENTERED = "no sample to fit to enters their subgraph"

MEMORY_NBYTES = 512 << 20
"""Of moments at a time; the model is run again for those that do not fit."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One weight whose moments are asked for: of the operator at a place, at one of its inputs."""

    place: Place
    position: int
    product: Product


def steps_of(
    path: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]],
    *,
    runtime: str,
    timeout: float,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> list[Step]:
    """Returns the calls that the user's inputs make; made samples are not among them.

    Args:
        path: The model.
        inputs: Of the user.
        runtime: That runs it.
        timeout: Seconds for each request to it.
        memory_limit: Bytes that it may take; None for what :func:`memory.default_limit` says.
        progress: Told that this begins; nobody knows when it ends.

    Raises:
        ModelFailed: The model does not run.
        UsageError: The files do not fit the model, or the runtime is not there.
    """
    if progress is not None:
        progress(COLLECTING, 0, 0)
    judging = Judging(inputs=tuple(inputs), runtime=(runtime,), timeout=timeout, memory_limit=memory_limit)
    ran = run_model(path, judging)
    if ran.failure is not None or ran.interface is None:
        raise ModelFailed(ran.failure.message if ran.failure else "the model does not run")
    return list(real_inputs(ran.interface, inputs).steps)


def collect(
    probe: Probe,
    wanted: Sequence[Wanted],
    calls: Sequence[Call],
    *,
    seed: int = 0,
    enough: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Moments | str]]:
    """Runs a model and yields, for each wanted operator, its moments or why there are none.

    Moments take memory until the caller lets go of them; the model is run again for each memoryful.

    Args:
        probe: The model.
        wanted: Operators.
        calls: What to run.
        seed: Of the drawing from large activations.
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
        yield from _collect(probe, wanted, group, calls, seed, stage)


def _nbytes(call: Call) -> int:
    """Returns what a call counts for; at least a byte, for one of nothing is a call too."""
    return max(1, sum(array.nbytes for array in call.values))


def _collect(
    probe: Probe, wanted: Sequence[Wanted], group: list[int], calls: Sequence[Call], seed: int, stage: Stage
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
                        stream = stream_of(seed, wanted[position].place, number)
                        held.add(as_floats(activation), stream, half)
                    except ValueError as error:
                        found[position] = str(error)
            stage.tick(_nbytes(calls[number]))
    except ModelFailed as error:
        found = dict.fromkeys(group, str(error))
    for position in group:
        yield position, found.pop(position)


def as_floats(activation: npt.NDArray[np.generic]) -> Float32:
    """Returns an activation as it is.

    Raises:
        ValueError: It is not float32.
    """
    if activation.dtype != np.float32:
        raise ValueError(f"its activation is {activation.dtype}")
    return np.asarray(activation, np.float32)


def stream_of(seed: int, place: Place, number: int) -> np.random.Generator:
    """Returns the stream that vectors of an operator's activation in a call are drawn with."""
    return np.random.default_rng([seed, place.subgraph, place.operator, number])
