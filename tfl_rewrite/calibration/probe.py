"""Parts of a model whose outputs are the activations that somebody wants to see."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.files.source import load, save
from tfl_rewrite.interpreter.child import save_array
from tfl_rewrite.interpreter.memory import MemoryWatch
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.interpreter.worker import ModelFailed, Worker
from tfl_rewrite.kernels.products import activation_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.samples.made import Step
from tfl_rewrite.weights.rounders import Simulate

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """One operator: positions of its subgraph and in it."""

    subgraph: int
    operator: int

    def seed(self, number: int) -> tuple[int, ...]:
        """Returns the seed that vectors of the operator's activation in a call are drawn with."""
        return 0, self.subgraph, self.operator, number


def places_of(model: Model) -> dict[int, Place]:
    """Returns the place of each operator, by its id."""
    return {
        id(operator): Place(number, position)
        for number, subgraph in enumerate(model.subgraphs)
        for position, operator in enumerate(subgraph.operators)
    }


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        subgraph: That it enters.
        values: Its inputs, in the order of the subgraph's.
        half: Of the samples, that it belongs to: what is fitted to one half is measured on the other.
    """

    subgraph: int
    values: tuple[Array, ...]
    half: int = 0


class Runner:
    """Runs one model at a time in a child process, started when first asked; a context manager.

    Args:
        runtime: Which interpreter.
        timeout: Seconds for each request.
        watch: Of its memory.
        lent: A process that somebody else ends, and a folder that it reads; instead of an own one.
        in_sequence: Whether the calls of :meth:`Probe.values_of` are one sequence, as for the judge: each
            meets variables as the one before left them.

    Attributes:
        folder: A temporary folder that lives as long as this; models in it may be opened.

    Raises:
        ModelFailed: From `open`, `run` and `outputs`: the model does not run.
    """

    def __init__(
        self,
        runtime: RuntimeChoice,
        *,
        timeout: float = 600.0,
        watch: MemoryWatch | None = None,
        lent: tuple[Worker, Path] | None = None,
        in_sequence: bool = False,
    ) -> None:
        self.in_sequence = in_sequence
        self._scratch: Scratch | None = None
        if lent is None:
            self._scratch = Scratch()
            self.folder = self._scratch.folder()
            self.worker = Worker(runtime, self._scratch, watch, timeout=timeout, readable=[self.folder])
        else:
            self.worker, self.folder = lent
            self.worker.runtime = runtime
        self._outputs: tuple[int, ...] = ()
        self._stored: dict[int, tuple[object, str]] = {}
        self._steps = 0
        self._number = 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._scratch is None:
            if self.worker.busy:
                self.worker.kill()
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self.worker.kill()
            self._scratch.close()

    def open(self, model: Path, *, delegates: bool = True) -> None:
        """Opens a model.

        Args:
            model: The file.
            delegates: Whether the default delegates may run it.
        """
        resolver = "default" if delegates else "builtin"
        interface, _ = self.worker.open("open", model, resolver, 1)
        self._outputs = tuple(facts.index for facts in interface.primary.outputs)

    def next_path(self) -> Path:
        """Returns where the next model may lie."""
        self._number += 1
        return self.folder / f"part{self._number}.tflite"

    def run(self, values: Sequence[Array], *, carries_over: bool = False) -> None:
        """Runs the primary subgraph on its inputs, in order; its variables are reset unless told."""
        stored = [("", self._store(value)) for value in values]
        self.worker.call(0, None, stored, carries_over=carries_over)
        self.worker.ended()

    def step(self, values: Sequence[Array]) -> None:
        """Runs the primary subgraph on inputs that come once; what it keeps in variables carries over."""
        self._steps += 1
        stems = [self.folder / f"step{self._steps}.{position}" for position in range(len(values))]
        try:
            for stem, value in zip(stems, values, strict=True):
                save_array(stem, value)
            self.worker.call(0, None, [("", str(stem)) for stem in stems], carries_over=True)
            self.worker.ended()
        finally:
            for path in self.folder.glob(f"step{self._steps}.*"):
                path.unlink(missing_ok=True)

    def outputs(self, count: int) -> list[Array]:
        """Returns the first outputs of the last run."""
        wanted = self._outputs[:count]
        with self.worker.get(0, list(dict.fromkeys(wanted))) as found:
            for index in wanted:
                if index in found.unreadable:
                    raise ModelFailed(found.unreadable[index])
            return [np.array(found.tensor(index)) for index in wanted]

    def _store(self, value: Array) -> str:
        known = self._stored.get(id(value))
        if known is None:
            stem = str(self.folder / f"input{len(self._stored)}")
            save_array(Path(stem), value)
            # The array is held, so that no other gets its id.
            known = self._stored[id(value)] = (value, stem)
        return known[1]


class Probe:
    """A copy of a model of which any part can be run, with other constants if need be.

    Args:
        path: The model.
        runner: Runs the parts.
        simulate: Changes the copy at once. Places stay those of the file.

    Attributes:
        in_sequence: As of the runner.
    """

    def __init__(
        self, path: str | os.PathLike[str], runner: Runner, simulate: Simulate | None = None
    ) -> None:
        self.model: Model = load(path)
        self._places = None if simulate is None else simulate(self.model)
        self._path, self._runner = path, runner
        self.in_sequence = runner.in_sequence
        self._own: set[int] = set()

    def again(self, simulate: Simulate | None) -> Probe:
        """Returns another probe of the same file and with the same runner: only one of them can be run."""
        return Probe(self._path, self._runner, simulate)

    def calls(self, steps: Sequence[Step]) -> list[Call]:
        """Returns the calls of some steps, in the order of the subgraphs' inputs.

        The first half of the calls of a subgraph is one half of the samples, the rest the other: samples that
        follow each other in time are alike.

        Raises:
            ModelFailed: A step does not give every input of its subgraph.
        """
        calls = [self._call(step) for step in steps]
        totals = Counter(call.subgraph for call in calls)
        numbers: Counter[int] = Counter()
        for position, call in enumerate(calls):
            numbers[call.subgraph] += 1
            if 2 * numbers[call.subgraph] > totals[call.subgraph] + 1:
                calls[position] = replace(call, half=1)
        return calls

    def operator(self, place: Place) -> Operator:
        """Returns the operator at a place."""
        if self._places is not None:
            return self._places[place.subgraph, place.operator]
        return self.model.subgraphs[place.subgraph].operators[place.operator]

    def put(self, place: Place, position: int, values: npt.NDArray[np.floating]) -> None:
        """Replaces a constant input of an operator: itself, or what its DEQUANTIZE expands.

        Args:
            place: The operator.
            position: Of the input.
            values: In the constant's shape; rounded to its type.
        """
        tensor = self._constant(place, position)
        dtype = dtypes.BY_VALUE[tensor.dtype].numpy
        if id(tensor.buffer) not in self._own:
            tensor.buffer = self.model.add_buffer()
            self._own.add(id(tensor.buffer))
        tensor.buffer.blob = OwnedBlob(np.ascontiguousarray(values, dtype).tobytes())

    def add(self, place: Place, position: int, change: npt.NDArray[np.floating]) -> None:
        """Adds to a constant input of an operator; where it has none, the change becomes it."""
        operator = self.operator(place)
        if len(operator.inputs) <= position or operator.inputs[position] is None:
            buffer = self.model.add_buffer(OwnedBlob(np.asarray(change, np.float32).tobytes()))
            tensor = Tensor("bias", change.shape, dtypes.FLOAT32.value, buffer)
            self.model.subgraphs[place.subgraph].tensors.append(tensor)
            operator.inputs[position:] = [tensor]
            return
        tensor = self._constant(place, position)
        assert tensor.buffer.blob is not None
        old = np.frombuffer(tensor.buffer.blob.view(), dtypes.BY_VALUE[tensor.dtype].numpy)
        self.put(place, position, old.astype(np.float64) + change)

    def activations(
        self, weights: Sequence[tuple[Place, int]], calls: Sequence[Call]
    ) -> Iterator[tuple[int, list[Array]]]:
        """Runs the calls that enter the subgraph of some operators and yields what their weights meet.

        Args:
            weights: Operators of one subgraph, and at which input of each the weight is.
            calls: Those that enter other subgraphs are passed over.

        Yields:
            The number of the call and the activations, one for each weight.

        Raises:
            ModelFailed: The part does not run.
        """
        entered = weights[0][0].subgraph
        tensors = [activation_of(self.operator(place), at) for place, at in weights]
        assert all(tensor is not None for tensor in tensors)
        yield from self.values_of(entered, [tensor for tensor in tensors if tensor is not None], calls)

    def values_of(
        self, entered: int, tensors: Sequence[Tensor], calls: Sequence[Call]
    ) -> Iterator[tuple[int, list[Array]]]:
        """Runs the calls that enter a subgraph and yields what some of its tensors hold.

        Args:
            entered: Position of the subgraph.
            tensors: Inputs of it, or outputs of its operators.
            calls: Those that enter other subgraphs are passed over.

        Yields:
            The number of the call and the values, one array for each tensor.

        Raises:
            ModelFailed: The part does not run.
        """
        subgraph = self.model.subgraphs[entered]
        given = {id(tensor): position for position, tensor in enumerate(subgraph.inputs)}
        outputs: list[Tensor] = []
        known: set[int] = set()
        for tensor in tensors:
            if id(tensor) not in given and id(tensor) not in known:
                known.add(id(tensor))
                outputs.append(tensor)
        where = {id(tensor): position for position, tensor in enumerate(outputs)}
        mine = [(number, call) for number, call in enumerate(calls) if call.subgraph == entered]
        if outputs and mine:
            self._open(subgraph, outputs, lambda: self._runner.run(mine[0][1].values))
        for turn, (number, call) in enumerate(mine):
            made: list[Array] = []
            if outputs:
                self._runner.run(call.values, carries_over=self.in_sequence and turn > 0)
                made = self._runner.outputs(len(outputs))
            yield (
                number,
                [
                    made[where[id(tensor)]] if (at := given.get(id(tensor))) is None else call.values[at]
                    for tensor in tensors
                ],
            )

    def step(
        self, entered: int, outputs: list[Tensor], values: Sequence[Array], *, first: bool
    ) -> list[Array]:
        """Runs the part that ends in some tensors once more; what it keeps in variables carries over.

        Args:
            entered: Position of the subgraph.
            outputs: Outputs of its operators; the same as before unless it is the first call.
            values: Inputs, in the order of the subgraph's.
            first: Whether the part is opened for it, as it is in the file.

        Returns:
            The values of ``outputs``, copies.

        Raises:
            ModelFailed: The part does not run.
        """
        if first:
            self._open(self.model.subgraphs[entered], outputs, lambda: self._runner.step(values))
        else:
            self._runner.step(values)
        return self._runner.outputs(len(outputs))

    def _open(self, subgraph: SubGraph, outputs: list[Tensor], run: Callable[[], None]) -> None:
        """Opens the part that ends in some tensors, and runs it.

        Without delegates where they do not take it, and with all that follows where the part alone does not
        run: XNNPACK crashes where nothing reads what a MaxPoolingWithArgmax2D gives out.
        """
        path = self._runner.next_path()
        try:
            for last_try, (whole, delegates) in enumerate(((False, True), (False, False), (True, True)), -2):
                if delegates:
                    self._save(path, subgraph, outputs, whole=whole)
                try:
                    self._runner.open(path, delegates=delegates)
                    run()
                    return
                except ModelFailed:
                    if not last_try:
                        raise
        finally:
            # An open interpreter keeps what it has mapped.
            path.unlink(missing_ok=True)

    def _save(self, path: Path, subgraph: SubGraph, outputs: list[Tensor], *, whole: bool) -> None:
        model = self.model
        last = max(
            position
            for position, operator in enumerate(subgraph.operators)
            if whole or any(tensor is output for tensor in operator.outputs for output in outputs)
        )
        operators = subgraph.operators[: last + 1]
        rest = [tensor for tensor in subgraph.outputs if whole and all(tensor is not own for own in outputs)]
        read = {id(tensor) for operator in operators for tensor in operator.inputs}
        made = (tensor for operator in operators for tensor in (*operator.outputs, *operator.intermediates))
        held = read.union(map(id, (*subgraph.inputs, *outputs, *rest, *made)))
        kept = subgraph.operators, subgraph.outputs, subgraph.tensors
        others = model.signatures, model.subgraphs, model.metadata, model.buffers, model.metadata_buffers
        # What the part does not hold is not written, and constants that it does not read neither.
        subgraph.operators, subgraph.outputs = operators, [*outputs, *rest]
        subgraph.tensors = [tensor for tensor in kept[2] if id(tensor) in held]
        # The part is the main subgraph, so that it can be called by position.
        model.signatures, model.metadata, model.metadata_buffers = [], [], []
        model.subgraphs = [subgraph, *(other for other in others[1] if other is not subgraph)]
        buffers = {id(tensor.buffer) for _, tensor in model.tensors()}
        model.buffers = [item for item in others[3] if item is others[3][0] or id(item) in buffers]
        needed = {
            id(tensor.buffer)
            for graph, tensor in model.tensors()
            if graph is not subgraph or id(tensor) in read
        }
        spared = [(buffer, buffer.blob) for buffer in model.buffers if id(buffer) not in needed]
        for buffer, _ in spared:
            buffer.blob = None
        try:
            save(model, path, force=True)
        finally:
            for buffer, blob in spared:
                buffer.blob = blob
            subgraph.operators, subgraph.outputs, subgraph.tensors = kept
            (
                model.signatures,
                model.subgraphs,
                model.metadata,
                model.buffers,
                model.metadata_buffers,
            ) = others

    def _constant(self, place: Place, position: int) -> Tensor:
        subgraph = self.model.subgraphs[place.subgraph]
        tensor = self.operator(place).inputs[position]
        assert tensor is not None
        if tensor.is_constant:
            return tensor
        maker = next(item for item in subgraph.operators if any(out is tensor for out in item.outputs))
        stored = maker.inputs[0]
        assert stored is not None and stored.is_constant
        return stored

    def _call(self, step: Step) -> Call:
        if step.signature is None:
            return Call(0, tuple(value for _, value in step.values))
        signature = next(item for item in self.model.signatures if item.key == step.signature)
        names = {record.get("name"): tensor for record, tensor in signature.inputs}
        values = {id(names[name]): value for name, value in step.values if name in names}
        try:
            ordered = tuple(values[id(tensor)] for tensor in signature.subgraph.inputs)
        except KeyError:
            raise ModelFailed(f"signature {step.signature!r} does not give all inputs") from None
        return Call(self.model.subgraphs.index(signature.subgraph), ordered)
