"""What a batch gives, told by runs of the original on each of its samples.

And which constants could say nothing else for another resolution.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfl_rewrite.editing.axes import new_size
from tfl_rewrite.editing.effects import Effects
from tfl_rewrite.editing.sizes import Walk
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.interpreter.interface import Array
from tfl_rewrite.judge.routes import Going, Run
from tfl_rewrite.kernels import table
from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, Operator, Signature, Tensor
from tfl_rewrite.pipeline.input_shapes import Preparing, Reshaped
from tfl_rewrite.pipeline.targets import Target
from tfl_rewrite.samples.made import Step


@dataclass(slots=True)
class Rows:
    """What a batch gives: each sample by a run of the original.

    Args:
        model: The original; :attr:`done` refers to the model that was reshaped, by position.
        done: What was done.
        path: Of the original.
        folder: For copies of it: what it keeps from call to call is of one sample each.
    """

    model: Model
    done: Reshaped
    path: Path
    folder: Path

    def route(self, step: Step) -> Going:
        """Runs the original on parts of a batch, and joins what it gives."""
        walk, target = self._entry(step.signature)
        inputs = self._operands(step.signature, target, [name for name, _ in step.values], given=True)
        batch = target.asked.batch or (1, 1)
        batched = [id(tensor) in target.batched for tensor in inputs]
        counts = [np.shape(value)[0] for split, (_, value) in zip(batched, step.values, strict=True) if split]
        old, new = batch[0], counts[0] if counts else batch[1]
        parts = []
        for start in range(0, new, old):
            rows = [row % new for row in range(start, start + old)]
            parts.append(
                [
                    np.asarray(value)[rows] if split else value
                    for split, (_, value) in zip(batched, step.values, strict=True)
                ]
            )
        ran = yield [
            Run(path=self._copy(number), values=values, signature=step.signature)
            for number, values in enumerate(parts)
        ]
        outputs = self._operands(step.signature, target, ran[0].names, given=False)
        return [
            _joined(walk, tensor, [run.values[place] for run in ran], batch, new)
            for place, tensor in enumerate(outputs)
        ]

    def grouped(
        self, key: str | None, names: Sequence[str], calls: Sequence[Sequence[Array]], *, alone: bool
    ) -> list[Array]:
        """Joins the samples of calls of the original to batches.

        Args:
            key: Of the signature; None for the primary subgraph.
            names: Of its inputs.
            calls: What each call was given.
            alone: Whether each is to be a batch of its own.

        Returns:
            For each input, batches behind each other along a new first axis.
        """
        _, target = self._entry(key)
        old, new = target.asked.batch or (1, 1)
        inputs = self._operands(key, target, names, given=True)
        size = 1 if alone else -(-new // old)
        groups = [
            [calls[at % len(calls)] for at in range(start, start + size)]
            for start in range(0, len(calls), size)
        ]
        return [
            np.stack(
                [
                    np.concatenate([given[place] for given in group])[: size * old if alone else new]
                    if id(tensor) in target.batched
                    else group[0][place]
                    for group in groups
                ]
            )
            for place, tensor in enumerate(inputs)
        ]

    def _copy(self, number: int) -> Path:
        if not self._keeps_state:
            return self.path
        path = self.folder / f"sample{number}.tflite"
        if not path.exists():
            shutil.copyfile(self.path, path)
        return path

    @property
    def _keeps_state(self) -> bool:
        effects = Effects()
        return any(effects.of(operator)[0] is SideEffect.STATE for _, operator in self.model.operators())

    def _entry(self, key: str | None) -> tuple[Walk, Target]:
        """The walk over the subgraph that is entered."""
        walks = list(zip(self.done.walks, self.done.targets, strict=True))
        if key is None:
            return walks[0]
        signature = self._signature(key)
        return next(pair for pair in walks if pair[1].subgraph is signature.subgraph)

    def _signature(self, key: str) -> Signature:
        model = self.done.walks[0].editor.model
        return next(item for item in model.signatures if item.key == key)

    def _operands(
        self, key: str | None, target: Target, names: Sequence[str], *, given: bool
    ) -> list[Tensor]:
        """What is taken or given, in order of the entry point."""
        if key is None:
            return target.subgraph.inputs if given else target.subgraph.outputs
        signature = self._signature(key)
        pairs = signature.inputs if given else signature.outputs
        known = {str(record.get("name") or ""): tensor for record, tensor in pairs}
        return [known[name] for name in names]


def _joined(
    walk: Walk, tensor: Tensor, parts: Sequence[Array | None], batch: tuple[int, int], count: int
) -> Array | None:
    """Joins what the parts of a batch gave, along the axis that its samples are on.

    Args:
        walk: Tells which that is.
        tensor: The output.
        parts: Of it.
        batch: The factor of the axes that stands for the samples.
        count: How many there are.
    """
    given = [part for part in parts if part is not None]
    axes = walk.axes.get(id(tensor))
    if len(given) < len(parts) or not given:
        return given[0] if given else None
    if axes is None:
        same = all(np.array_equal(part, given[0], equal_nan=part.dtype.kind == "f") for part in given[1:])
        # What differs from sample to sample has no room where there is one of it: that must not pass.
        return given[0] if same else np.stack(given)
    # Sizes that do not depend on the samples are those that came out: of a free one the file says none.
    found = np.shape(given[0])
    if len(found) != len(axes):
        found = tuple(new_size(axis) for axis in axes)
    split = [axis if batch in axis else ((size, size),) for axis, size in zip(axes, found, strict=True)]
    factors = [factor for axis in split for factor in axis]
    at = factors.index(batch)
    sizes = [old for old, _ in factors]
    whole = np.concatenate([np.asarray(part).reshape(sizes) for part in given], at)
    return np.take(whole, range(count), at).reshape(
        [new_size(axis) * count // batch[1] if batch in axis else new_size(axis) for axis in split]
    )


@dataclass(slots=True)
class Chosen:
    """Constants that were changed for another resolution, and that could say something else as well.

    Args:
        before: The original.
        done: What was done to it.
        made: The result, which is changed in trials.
        preparing: Tells whether the runtime takes a trial.
    """

    before: Model
    done: Reshaped
    made: Model
    preparing: Preparing

    def operators(self) -> Iterator[Operator]:
        """Yields the operators that have such a constant.

        No choice is the axis of a RESHAPE that alone has another size, a pool over the whole plane, a slice
        to the end, and a RESIZE of which the runtime takes no other size, since something of that size is
        added to what it gives, or joined with it.
        """
        whole = self.done.walks[0].editor.model
        for number, (old_graph, graph) in enumerate(zip(self.before.subgraphs, whole.subgraphs, strict=True)):
            walk = next((item for item in self.done.walks if item.subgraph is graph), None)
            for place, (old, new) in enumerate(zip(old_graph.operators, graph.operators, strict=True)):
                if not _is_same(old, new) and (
                    walk is None or not (_follows(walk, old, new) or self._is_held(walk, number, place, new))
                ):
                    yield new

    def _is_held(self, walk: Walk, number: int, place: int, operator: Operator) -> bool:
        """Whether the runtime refuses every size of a RESIZE that is one more or less."""
        sizes, source = walk.numbers(operator, 1), operator.inputs[0]
        if row_of(operator) not in table.RESIZES or sizes is None or source is None:
            return False
        graph, whole = self.made.subgraphs[number], self.done.walks[0].editor.model
        entered = [
            (target, self.made.subgraphs[whole.subgraphs.index(target.subgraph)])
            for target in self.done.targets
        ]
        targets = [
            replace(target, subgraph=own, shapes={id(item): tuple(item.shape or ()) for item in own.inputs})
            for target, own in entered
        ]
        trial = graph.operators[place]
        told = trial.inputs[1]
        assert told is not None
        try:
            for axis in range(len(sizes)):
                for step in (-1, 1):
                    values = np.array(sizes, told.values.dtype)
                    values[axis] += step
                    other = replace(told, buffer=self.made.add_buffer(OwnedBlob(values.tobytes())))
                    graph.tensors.append(other)
                    trial.inputs[1] = other
                    if not self.preparing.shapes(self.made, targets, runs=False).refusals:
                        return False
        except UnsupportedError:
            return False
        finally:
            trial.inputs[1] = told
        return True


def _is_same(old: Operator, new: Operator) -> bool:
    """Whether an operator says the same as before, in its options and in its constants."""
    if old.options != new.options or len(old.inputs) != len(new.inputs):
        return False
    for one, other in zip(old.inputs, new.inputs, strict=True):
        if one is not None and other is not None and one.is_constant:
            blobs = one.buffer.blob, other.buffer.blob
            if blobs[0] is None or blobs[1] is None or blobs[0].nbytes != blobs[1].nbytes:
                return False
            if blobs[0].view() != blobs[1].view():
                return False
    return True


def _follows(walk: Walk, old: Operator, new: Operator) -> bool:
    """Whether what an operator says now is what it said, of other sizes."""
    row, source, output = row_of(new), new.inputs[0], new.outputs[0]
    if source is None or output is None:
        return False
    before, now = walk.was(source), walk.now(source)
    if row in table.POOLS:
        sides = ((1, "filter_height"), (2, "filter_width"))
        return walk.now(output)[1:3] == (1, 1) and all(
            (old.option(name), new.option(name)) == (before[axis], now[axis]) for axis, name in sides
        )
    pairs = [
        (_said(old, position), _said(new, position))
        for position in range(1, len(new.inputs))
        if new.inputs[position] is not None
    ]
    if row is table.RESHAPE:
        one, other = pairs[0] if pairs else (old.option("new_shape"), new.option("new_shape"))
        differ = [first != second for first, second in zip(one or (), other or (), strict=False)]
        return one is not None and other is not None and len(one) == len(other) and sum(differ) == 1
    if row in (table.SLICE, table.STRIDED_SLICE):
        (starts, same), (stops, ends) = pairs[:2]
        if starts is None or starts != same or stops is None or ends is None:
            return False
        offsets = starts if row is table.SLICE else [0] * len(stops)
        return all(
            one == other or (one + at, other + at) == sizes
            for one, other, at, sizes in zip(
                stops, ends, offsets, zip(before, now, strict=True), strict=False
            )
        )
    return False


def _said(operator: Operator, position: int) -> list[int] | None:
    tensor = operator.inputs[position]
    if tensor is None or not tensor.is_constant:
        return None
    return [int(value) for value in tensor.values.reshape(-1)]
