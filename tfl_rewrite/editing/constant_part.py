"""What the runtime computes of constants alone: a small model of that part, run once in the child."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.files.source import save
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model.ir import Buffer, Model, Operator, SubGraph, Tensor

Array = npt.NDArray[Any]

_TIMEOUT = 60.0
"""Seconds for a part: each of its operators runs once."""


class NotComputedError(Exception):
    """A part cannot be computed here; the text says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """Operators that need nothing but constants.

    Attributes:
        operators: In order of execution.
        outputs: What is wanted of them.
    """

    operators: Sequence[Operator]
    outputs: Sequence[Tensor]

    def model(self, whole: Model) -> Model:
        """Returns a model of the part alone, without inputs; it shares objects with the whole one."""
        operands = [
            tensor
            for operator in self.operators
            for tensor in (*operator.inputs, *operator.outputs)
            if tensor is not None
        ]
        tensors = list({id(tensor): tensor for tensor in operands}.values())
        codes = list({id(item.code): item.code for item in self.operators}.values())
        first = whole.buffers[0] if whole.buffers else Buffer()
        buffers = {id(item): item for item in (first, *(tensor.buffer for tensor in tensors))}
        graph = SubGraph(tensors, [], list(self.outputs), list(self.operators))
        return Model(codes, [graph], list(buffers.values()))


def computed(whole: Model, part: Part) -> list[Array]:
    """Returns what a part gives out, as all kernels of the runtime compute it.

    Args:
        whole: The model.
        part: Of it.

    Returns:
        An array for each output, in its shape.

    Raises:
        NotComputedError: There is no runtime here, it fails, or its kernels do not agree to the bit.
    """
    # Loaded late: most models have no such part.
    from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
    from tfl_rewrite.interpreter.process import RuntimeChoice
    from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
    from tfl_rewrite.interpreter.worker import ModelFailed, Worker

    found: list[list[Array]] = []
    failed = ""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(TerminationGuard())
            scratch = stack.enter_context(Scratch())
            folder = scratch.folder()
            path = folder / "part.tflite"
            save(part.model(whole), path)
            watch = MemoryWatch(default_limit())
            worker = Worker(
                RuntimeChoice.parse("litert"), scratch, watch, timeout=_TIMEOUT, readable=[folder]
            )
            stack.callback(worker.kill)
            for resolver in _resolvers(part):
                try:
                    found.append(_run(worker, path, resolver, len(part.outputs)))
                except ModelFailed as error:
                    failed = failed or str(error)
        except TflRewriteError as error:
            raise NotComputedError(str(error)) from error
    if not found:
        raise NotComputedError(failed or "no kernel computes it")
    for other in found[1:]:
        if any(_raw(one) != _raw(two) for one, two in zip(found[0], other, strict=True)):
            raise NotComputedError("the kernels of the runtime do not agree on it")
    return found[0]


def _resolvers(part: Part) -> tuple[str, ...]:
    """Returns the kernels to ask.

    XNNPACK gives garbage for what DEQUANTIZE makes of a constant where that is an output.
    """
    expands = any(row_of(operator) is DEQUANTIZE for operator in part.operators)
    return ("builtin", "reference") if expands else ("default", "builtin", "reference")


def _run(worker: Any, path: Path, resolver: str, count: int) -> list[Array]:
    from tfl_rewrite.interpreter.worker import ModelFailed

    interface, _ = worker.open("open", path, resolver, 1)
    wanted = [facts.index for facts in interface.primary.outputs]
    worker.call(0, None, [])
    worker.ended()
    with worker.get(0, list(dict.fromkeys(wanted))) as found:
        for index in wanted:
            if index in found.unreadable:
                raise ModelFailed(found.unreadable[index])
        made = [np.array(found.tensor(index)) for index in wanted]
    if len(made) != count:
        raise ModelFailed("it gives another number of outputs")
    return made


def _raw(array: Array) -> tuple[tuple[int, ...], bytes]:
    return array.shape, array.tobytes()
