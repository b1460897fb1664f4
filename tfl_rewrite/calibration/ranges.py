"""The least and the greatest value of every float tensor on real inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tfl_rewrite.calibration.collect import steps_of
from tfl_rewrite.calibration.probe import Call, Probe, Runner
from tfl_rewrite.calibration.rounder import file_of
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.interpreter.worker import ModelFailed
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.operands import constant_values
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, SubGraph, Tensor

Range = tuple[float, float]

HELD_NBYTES = 256 << 20
"""Of tensors that one run of the model keeps; it is run again for the rest."""


def ranges_of(
    model: Model, judging: Judging, progress: Callable[[str, int, int], None] | None = None
) -> list[dict[int, Range]]:
    """Runs a model and returns the ranges of its float tensors, constants among them.

    Args:
        model: With float weights.
        judging: Has the real inputs, and what runs the model: the first of its runtimes.
        progress: Called with what is going on.

    Returns:
        For each subgraph, by the position of the tensor. Those that no sample reaches are missing.

    Raises:
        UnsupportedError: The model does not run.
    """
    found = [_constants(subgraph) for subgraph in model.subgraphs]
    watch = MemoryWatch(default_limit() if judging.memory_limit is None else judging.memory_limit)
    choice = RuntimeChoice.parse(judging.runtime[0])
    try:
        with TerminationGuard(), Scratch() as scratch:
            path = file_of(model, scratch.folder())
            steps = steps_of(
                path,
                judging.inputs,
                runtime=judging.runtime[0],
                timeout=judging.timeout,
                memory_limit=judging.memory_limit,
                progress=progress,
            )
            with Runner(choice, timeout=judging.timeout, watch=watch) as runner:
                probe = Probe(path, runner)
                calls = probe.calls(steps)
                for number in sorted({call.subgraph for call in calls}):
                    found[number].update(_seen(probe, number, calls))
    except ModelFailed as error:
        raise UnsupportedError(
            f"the model could not be run for the ranges of its tensors: {error}",
            remedy="check --inputs; 'tfl-rewrite doctor' tells what is wrong with a model",
        ) from error
    return found


def _constants(subgraph: SubGraph) -> dict[int, Range]:
    found: dict[int, Range] = {}
    for at, tensor in enumerate(subgraph.tensors):
        values = constant_values(tensor, "FLOAT32") if tensor.is_constant else None
        if values is not None and values.size:
            found[at] = float(values.min()), float(values.max())
    return found


def _seen(probe: Probe, number: int, calls: Sequence[Call]) -> dict[int, Range]:
    subgraph = probe.model.subgraphs[number]
    wanted = {
        id(tensor) for operator in subgraph.operators for tensor in operator.outputs if tensor is not None
    }
    wanted |= set(map(id, subgraph.inputs))
    tensors = [
        (at, tensor)
        for at, tensor in enumerate(subgraph.tensors)
        if id(tensor) in wanted and tensor.dtype == dtypes.FLOAT32.value and not tensor.is_variable
    ]
    found: dict[int, Range] = {}
    for part in _memoryfuls(tensors):
        for _, values in probe.values_of(number, [tensor for _, tensor in part], calls):
            for (at, _), array in zip(part, values, strict=True):
                if not array.size:
                    continue
                low, high = found.get(at, (math.inf, -math.inf))
                found[at] = min(low, float(np.min(array))), max(high, float(np.max(array)))
    return found


def _memoryfuls(tensors: Sequence[tuple[int, Tensor]]) -> list[list[tuple[int, Tensor]]]:
    parts: list[list[tuple[int, Tensor]]] = []
    held = HELD_NBYTES + 1
    for item in tensors:
        nbytes = 4 * item[1].elements
        if held + nbytes > HELD_NBYTES:
            parts.append([])
            held = 0
        parts[-1].append(item)
        held += nbytes
    return parts
