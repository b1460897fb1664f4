"""Parts of a model whose outputs are the activations that somebody wants to see."""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.effects import Effects
from tfl_rewrite.files.source import load, save
from tfl_rewrite.interpreter.child import save_array
from tfl_rewrite.interpreter.memory import MemoryWatch
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.interpreter.worker import ModelFailed, Worker
from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.kernels.products import activation_of
from tfl_rewrite.kernels.table import DENSIFY, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.model.lift import DELEGATE_CUSTOM
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.samples.made import Step
from tfl_rewrite.weights.rounders import Simulate
from tfl_rewrite.weights.sparse import DenseBlob

Array = npt.NDArray[Any]

CUT_NBYTES = 16 << 20
"""Of what all calls hold where one part of a model ends, so that the next can begin there."""

CUTS = 8
"""At so many places about do copies of a model begin where they first differ from it: each is one more part
to be written and run."""


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


@frozen
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


@frozen
class Cut:
    """What a subgraph holds between two of its operators in some calls: a part can begin there.

    Attributes:
        begin: The position of the operator behind it; 0 for the inputs.
        tensors: What is made before it and read from there on, but for what constants alone decide.
        held: By the id of a call: the call, and what these tensors hold in it.
    """

    begin: int
    tensors: Sequence[Tensor]
    held: dict[int, tuple[Call, Sequence[Array]]]

    @property
    def nbytes(self) -> int:
        """Memory that the values take."""
        return sum(value.nbytes for _, values in self.held.values() for value in values)

    def holds(self, calls: Iterable[Call]) -> bool:
        """Whether it tells of all these calls, one at least."""
        found = [id(call) in self.held for call in calls]
        return bool(found) and all(found)


class _Unchanged:
    """A subgraph as it was read, to tell how far a copy of it was left alone.

    Attributes:
        tensors: In the order of the file.
    """

    def __init__(self, subgraph: SubGraph) -> None:
        self.tensors = list(subgraph.tensors)
        self._fields = {id(tensor): _fields(tensor) for tensor in self.tensors}
        self._operators = [(item, _operands(item)) for item in subgraph.operators]

    def count(self, subgraph: SubGraph) -> int:
        """Returns how many operators, from the first on, compute what they did; those with bodies do not."""
        same = 0
        for (known, operands), operator in zip(self._operators, subgraph.operators, strict=False):
            read = [tensor for tensor in (*operator.inputs, *operator.outputs) if tensor is not None]
            if operator is not known or any(True for _ in operator.subgraphs()):
                break
            if _operands(operator) != operands or any(
                _fields(tensor) != self._fields[id(tensor)] for tensor in read
            ):
                break
            same += 1
        return same


def _fields(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.quantization, tensor.buffer, tensor.buffer.blob


def _operands(operator: Operator) -> tuple[object, ...]:
    return operator.code, operator.options, *operator.inputs, None, *operator.outputs


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
        self._inputs = 0
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
            self._inputs += 1
            stem = str(self.folder / f"input{self._inputs}")
            save_array(Path(stem), value)
            # The array is held, so that no other gets its id.
            known = self._stored[id(value)] = (value, stem)
        return known[1]

    def forget(self, values: Sequence[Array]) -> None:
        """Removes inputs that are not asked for again."""
        for value in values:
            _, stem = self._stored.pop(id(value), (None, ""))
            if stem:
                Path(f"{stem}.npy").unlink(missing_ok=True)


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
        self._origin: Probe | None = None
        self._unchanged = [] if simulate is None else [_Unchanged(item) for item in self.model.subgraphs]
        self._places = None if simulate is None else simulate(self.model)
        self._path, self._runner = path, runner
        self.in_sequence = runner.in_sequence
        self._own: set[int] = set()
        self._is_changed = False
        self._cuts: dict[int, Cut] = {}
        # Subgraphs of which parts run from the inputs on.
        self._uncut: set[int] = set()
        self._decided: dict[int, set[int]] = {}
        self._advanced: dict[int, int] = {}

    def again(self, simulate: Simulate | None) -> Probe:
        """Returns another probe of the same file and with the same runner: only one of them can be run.

        What it computes as this one does, up to its first change, may be run by this one for many of them.
        """
        made = Probe(self._path, self._runner, simulate)
        if self._places is None and not self._is_changed:
            made._origin = self
        return made

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
        self._changes(place.subgraph, tensor)
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
            self._changes(place.subgraph, tensor)
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
        mine = [(number, call) for number, call in enumerate(calls) if call.subgraph == entered]
        start = self._start(entered, tensors, mine)
        given = {id(tensor): position for position, tensor in enumerate(start.tensors)}
        outputs = list({id(tensor): tensor for tensor in tensors if id(tensor) not in given}.values())
        end = self._end(entered, start, outputs, len(mine)) if outputs else None
        kept = [] if end is None else [tensor for tensor in end.tensors if id(tensor) not in given]
        asked = len(outputs)
        outputs = list({id(tensor): tensor for tensor in (*outputs, *kept)}.values())
        where = {id(tensor): position for position, tensor in enumerate(outputs)}
        if outputs and mine:
            first = start.held[id(mine[0][1])][1]
            try:
                is_cut = start.begin > 0 or len(outputs) > asked
                self._open(entered, start, outputs, lambda: self._runner.run(first), is_cut=is_cut)
            except ModelFailed:
                if not is_cut:
                    raise
                self._forget(entered)
                self._uncut.add(entered)
                yield from self.values_of(entered, tensors, calls)
                return
        for turn, (number, call) in enumerate(mine):
            values, made = start.held[id(call)][1], list[Array]()
            if outputs:
                if turn:
                    self._runner.run(values, carries_over=self.in_sequence)
                made = self._runner.outputs(len(outputs))

            def of(tensor: Tensor, values: Sequence[Array] = values, made: list[Array] = made) -> Array:
                at = given.get(id(tensor))
                return made[where[id(tensor)]] if at is None else values[at]

            if end is not None:
                end.held[id(call)] = call, [of(tensor) for tensor in end.tensors]
                if end.nbytes > CUT_NBYTES:
                    # The shapes in the file are smaller than those of the samples.
                    self._uncut.add(entered)
                    end = None
            yield number, [of(tensor) for tensor in tensors]
        if end is not None and mine:
            self._forget(entered)
            self._cuts[entered] = end

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
            start = self._start(entered, outputs, [])
            self._open(entered, start, outputs, lambda: self._runner.step(values))
        else:
            self._runner.step(values)
        return self._runner.outputs(len(outputs))

    def _start(self, entered: int, tensors: Sequence[Tensor], mine: Sequence[tuple[int, Call]]) -> Cut:
        """Returns where a part begins that is to give some tensors: the last cut, or the inputs."""
        subgraph, cut = self.model.subgraphs[entered], self._cuts.get(entered)
        if cut is None and self._origin is not None and self._unchanged and entered not in self._uncut:
            cut = self._shared(self._origin, entered, [call for _, call in mine])
        if cut is not None and cut.holds(call for _, call in mine):
            behind = (out for operator in subgraph.operators[cut.begin :] for out in operator.outputs)
            known = {id(tensor) for tensor in (*cut.tensors, *behind)}
            if all(id(tensor) in known for tensor in tensors):
                return cut
        return Cut(0, subgraph.inputs, {id(call): (call, call.values) for _, call in mine})

    def _shared(self, origin: Probe, entered: int, calls: Sequence[Call]) -> Cut | None:
        """Returns a cut of the probe that this is a copy of, before all that differs, if it has one."""
        known = self._unchanged[entered]
        cut = origin._cut_before(entered, known.count(self.model.subgraphs[entered]), calls)
        if cut is None:
            return None
        self._decides(entered)
        own = dict(zip(map(id, origin.model.subgraphs[entered].tensors), known.tensors, strict=True))
        return replace(cut, tensors=[own[id(tensor)] for tensor in cut.tensors])

    def _cut_before(self, entered: int, most: int, calls: Sequence[Call]) -> Cut | None:
        """Returns a cut behind so many operators at most that holds what some calls give there.

        Runs them as far as that where it is much further than the last cut.
        """
        operators = self.model.subgraphs[entered].operators
        cut = self._cuts.get(entered)
        begin = cut.begin if cut is not None and cut.begin <= most and cut.holds(calls) else 0
        if entered in self._uncut or not calls:
            return None
        if most - max(begin, self._advanced.get(entered, 0)) >= max(1, len(operators) // CUTS):
            self._advanced[entered] = most
            made = [tensor for tensor in operators[most - 1].outputs if tensor is not None]
            try:
                for _ in self.values_of(entered, made, calls):
                    pass
            except ModelFailed:
                # What ends there does not run: that says nothing about the copies.
                self._uncut.add(entered)
                return None
            cut = self._cuts.get(entered)
        return cut if cut is not None and cut.begin <= most and cut.holds(calls) else None

    def _decides(self, entered: int) -> None:
        """Finds out what constants alone decide, and whether parts may begin inside."""
        if entered not in self._decided:
            operators = self.model.subgraphs[entered].operators
            self._decided[entered] = _decided(operators)
            if not _only_compute(operators):
                self._uncut.add(entered)

    def _end(self, entered: int, start: Cut, outputs: Sequence[Tensor], calls: int) -> Cut | None:
        """Returns the last place, in a part that gives some tensors, of which all that is held can be kept.

        None where a part must not begin inside, since what came before it would be missed; and of a copy
        that is measured once.
        """
        operators = self.model.subgraphs[entered].operators
        self._decides(entered)
        if entered in self._uncut or self._origin is not None:
            return None
        wanted, decided = set(map(id, outputs)), self._decided[entered]
        made = {id(tensor): (tensor, start.begin) for tensor in start.tensors}
        last = start.begin
        for position, operator in enumerate(operators[start.begin :], start.begin):
            if wanted & {*map(id, operator.outputs)}:
                last = position
            if id(operator) not in decided:
                given = [tensor for tensor in operator.outputs if tensor is not None]
                made |= {id(tensor): (tensor, position + 1) for tensor in given}
        until = {
            id(tensor): position for position, operator in enumerate(operators) for tensor in operator.inputs
        }
        # Who asks for the outputs gets all of them, whichever are made before.
        until |= {id(tensor): len(operators) for tensor in self.model.subgraphs[entered].outputs}
        nbytes = [0] * (len(operators) + 2)
        for key, (tensor, first) in made.items():
            if until.get(key, -1) >= first:
                nbytes[first] += calls * _nbytes(tensor)
                nbytes[until[key] + 1] -= calls * _nbytes(tensor)
        at = [place for place, held in enumerate(itertools.accumulate(nbytes)) if 0 < held <= CUT_NBYTES]
        end = min(last + 1, len(operators) - 1)
        begin = max((place for place in at if start.begin < place <= end), default=None)
        if begin is None:
            return None
        kept = [tensor for key, (tensor, first) in made.items() if first <= begin <= until.get(key, -1)]
        return Cut(begin, kept, {})

    def _changes(self, entered: int, tensor: Tensor) -> None:
        """Forgets what was kept where it follows from a constant that changes."""
        self._is_changed = True
        cut = self._cuts.get(entered)
        if cut is None:
            return
        changed = {id(tensor)}
        for operator in self.model.subgraphs[entered].operators[: cut.begin]:
            if changed & {*map(id, operator.inputs)}:
                if id(operator) not in self._decided[entered]:
                    self._forget(entered)
                    return
                changed |= {*map(id, operator.outputs)}

    def _forget(self, entered: int) -> None:
        cut = self._cuts.pop(entered, None)
        for call, values in () if cut is None else cut.held.values():
            inputs = {*map(id, call.values)}
            self._runner.forget([value for value in values if id(value) not in inputs])

    def _open(
        self,
        entered: int,
        start: Cut,
        outputs: list[Tensor],
        run: Callable[[], None],
        *,
        is_cut: bool = False,
    ) -> None:
        """Opens the part from a cut on that ends in some tensors, and runs it; a cut one in one way only.

        Without delegates where they do not take it, and with all that follows where the part alone does not
        run: XNNPACK crashes where nothing reads what a MaxPoolingWithArgmax2D gives out.
        """
        path = self._runner.next_path()
        try:
            ways = ((False, True), (False, False), (True, True))[: 1 if is_cut else 3]
            for last_try, (whole, delegates) in enumerate(ways, 1 - len(ways)):
                if delegates:
                    self._save(path, entered, start, outputs, whole=whole)
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

    def _save(self, path: Path, entered: int, start: Cut, outputs: list[Tensor], *, whole: bool) -> None:
        model, subgraph = self.model, self.model.subgraphs[entered]
        last = max(
            position
            for position, operator in enumerate(subgraph.operators)
            if whole or any(tensor is output for tensor in operator.outputs for output in outputs)
        )
        decided = self._decided[entered] if start.begin else set()
        operators = [item for item in subgraph.operators[: start.begin] if id(item) in decided]
        operators += subgraph.operators[start.begin : last + 1]
        rest = [tensor for tensor in subgraph.outputs if whole and all(tensor is not own for own in outputs)]
        read = {id(tensor) for operator in operators for tensor in operator.inputs}
        made = (tensor for operator in operators for tensor in (*operator.outputs, *operator.intermediates))
        held = read.union(map(id, (*start.tensors, *outputs, *rest, *made)))
        kept = subgraph.operators, subgraph.outputs, subgraph.tensors, subgraph.inputs
        others = model.signatures, model.subgraphs, model.metadata, model.buffers, model.metadata_buffers
        # What the part does not hold is not written, and constants that it does not read neither.
        subgraph.operators, subgraph.outputs = operators, [*outputs, *rest]
        subgraph.inputs = [*start.tensors]
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
            subgraph.operators, subgraph.outputs, subgraph.tensors, subgraph.inputs = kept
            (
                model.signatures,
                model.subgraphs,
                model.metadata,
                model.buffers,
                model.metadata_buffers,
            ) = others

    def _constant(self, place: Place, position: int) -> Tensor:
        """Returns the constant at an input; where a DENSIFY makes it, one in the place of what that gives."""
        subgraph, tensor = self.model.subgraphs[place.subgraph], self.operator(place).inputs[position]
        while tensor is not None and not tensor.is_constant:
            maker = next(item for item in subgraph.operators if any(out is tensor for out in item.outputs))
            if row_of(maker) is DENSIFY and maker.inputs[0] is not None:
                buffer = self.model.add_buffer(DenseBlob(maker.inputs[0]))
                made = Tensor(tensor.name, tensor.shape, tensor.dtype, buffer, tensor.quantization)
                subgraph.tensors.append(made)
                for operator in subgraph.operators:
                    operator.inputs = [made if item is tensor else item for item in operator.inputs]
                return made
            tensor = maker.inputs[0]
        assert tensor is not None
        return tensor

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


def _only_compute(operators: Sequence[Operator]) -> bool:
    """Whether each does nothing but compute what it gives from what it reads."""
    effects = Effects(DELEGATE_CUSTOM)
    return all(effects.of(operator)[0] is SideEffect.NONE for operator in operators)


def _decided(operators: Sequence[Operator]) -> set[int]:
    """Returns the operators, by id, whose outputs follow from constants alone."""
    found: set[int] = set()
    known: set[int] = set()
    for operator in operators:
        read = [tensor for tensor in operator.inputs if tensor is not None]
        if read and all(tensor.is_constant or id(tensor) in known for tensor in read):
            found.add(id(operator))
            known |= {*map(id, operator.outputs)}
    return found


def _nbytes(tensor: Tensor) -> int:
    """Returns what a tensor holds in memory; more than is ever kept, where it may not begin a part."""
    row = dtypes.BY_VALUE.get(tensor.dtype)
    if row is None or not row.numpy or not tensor.shape or min(tensor.shape) < 1 or tensor.is_variable:
        return CUT_NBYTES + 1
    return tensor.elements * np.dtype(row.numpy).itemsize
