"""What a batch gives, told by runs of the original on each of its samples."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfl_rewrite.editing.axes import new_size
from tfl_rewrite.editing.effects import Effects
from tfl_rewrite.editing.sizes import Walk
from tfl_rewrite.interpreter.interface import Array
from tfl_rewrite.judge.routes import Going, Run
from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.model.ir import Model, Signature, Tensor
from tfl_rewrite.pipeline.input_shapes import Reshaped
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
