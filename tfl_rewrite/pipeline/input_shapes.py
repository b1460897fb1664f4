"""Other input shapes for a model: asks the runtime what follows, and changes what stands against it.

Shapes come from the runtime itself, which resizes inputs and prepares its kernels in the sandboxed process;
which constants have to follow is found by :mod:`tfl_rewrite.editing.sizes`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tfl_rewrite.editing.axes import Shape, changes
from tfl_rewrite.editing.base import Edit
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.metadata import COMPRESSION
from tfl_rewrite.editing.shapes import Shapes
from tfl_rewrite.editing.size_rules import RULES
from tfl_rewrite.editing.sizes import Refusal, Walk
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.source import save
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.interpreter.worker import ModelFailed, Worker
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.ir import Model, SubGraph
from tfl_rewrite.pipeline.targets import Reshaping, Target, targets_of

_AT = re.compile(r"Node number (\d+) \(([^)]*)\) failed to (prepare|invoke)")
_PLAIN, _DELEGATES = "builtin", "default"
_UNRESOLVED = "unresolved custom op"
"""What the runtime says of an operator that a delegate may have."""
_MOST_ROUNDS = 400


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the runtime makes of input shapes.

    Attributes:
        shapes: Of all tensors, by id; behind an operator that refuses, as declared.
        refusals: By position of the subgraph.
    """

    shapes: Mapping[int, Shape]
    refusals: Mapping[int, Refusal]


class Preparing:
    """Asks the runtime for shapes; a context manager.

    Args:
        judging: Which runtime, its memory and its time.

    Raises:
        UnsupportedError: The runtime died of the model, or does not open it.
    """

    def __init__(self, judging: Judging) -> None:
        self._judging = judging
        self._stack = contextlib.ExitStack()
        self.resolver = _PLAIN

    def __enter__(self) -> Preparing:
        limit = self._judging.memory_limit
        self._stack.enter_context(TerminationGuard())
        self._scratch = self._stack.enter_context(Scratch())
        self._folder = self._scratch.folder()
        self._worker = Worker(
            RuntimeChoice.parse(self._judging.runtime[0]),
            self._scratch,
            MemoryWatch(default_limit() if limit is None else limit),
            timeout=self._judging.timeout,
            readable=[self._folder],
        )
        self._stack.callback(self._worker.kill)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def shapes(self, model: Model, targets: Sequence[Target], *, runs: bool) -> Prepared:
        """Returns the shapes of all tensors where inputs have those of the targets."""
        path = self._folder / "model.tflite"
        save(model, path, force=True)
        limit = self._judging.memory_limit
        request = {
            "do": "shapes",
            "model": str(path),
            "resolver": self.resolver,
            "threads": 1,
            "memory": default_limit() if limit is None else limit,
            "run": runs,
            "resized": [_resized(subgraph, targets) for subgraph in model.subgraphs],
        }
        try:
            with self._worker.ask(request) as execution:
                found = execution.answer["shapes"]
                refused = execution.answer["refused"]
        except ModelFailed as error:
            large = error.failure is not None and error.failure.kind in ("memory", "timeout")
            remedy = "choose smaller sizes" if large else "'tfl-rewrite doctor' may say why"
            raise UnsupportedError(str(error), remedy=remedy) from error
        shapes = {
            id(tensor): tuple(tensor.shape or () if sizes is None else sizes)
            for subgraph, own in zip(model.subgraphs, found, strict=True)
            for tensor, sizes in zip(subgraph.tensors, own, strict=False)
        }
        refusals = {int(key): _refusal(text) for key, text in refused.items()}
        if self.resolver == _DELEGATES:
            # What a delegate computes inside, the runtime does not tell the shapes of, nor where it refuses.
            shapes |= _followed_shapes(model, targets)
            refusals = {key: Refusal((), refusal.text) for key, refusal in refusals.items()}
        return Prepared(shapes, refusals)


def _followed_shapes(model: Model, targets: Sequence[Target]) -> dict[int, Shape]:
    """Shapes as the rules of operators tell them, of all tensors that they reach, but for outputs."""
    stated = [(tensor, tensor.shape, tensor.signature) for item in targets for tensor in item.subgraph.inputs]
    try:
        for target in targets:
            for tensor in target.subgraph.inputs:
                tensor.shape, tensor.signature = target.shapes[id(tensor)], None
        known = Shapes.of(model)
        found = {id(tensor): known.full(tensor) for _, tensor in model.tensors()}
    finally:
        for tensor, shape, signature in stated:
            tensor.shape, tensor.signature = shape, signature
    return {key: shape for key, shape in found.items() if shape is not None}


def _are_told(model: Model, targets: Sequence[Target], shapes: Mapping[int, Shape]) -> bool:
    """Whether the rules of operators give the same shapes, so that none of them waits for a run."""
    known = _followed_shapes(model, targets)
    made = (tensor for item in targets for operator in item.subgraph.operators for tensor in operator.outputs)
    return all(tensor is None or known.get(id(tensor)) == shapes.get(id(tensor)) for tensor in made)


def _resized(subgraph: SubGraph, targets: Sequence[Target]) -> list[tuple[int, list[int]]] | None:
    target = next((item for item in targets if item.subgraph is subgraph), None)
    if target is None:
        return None
    numbers = {id(tensor): number for number, tensor in enumerate(subgraph.tensors)}
    return [(numbers[key], list(shape)) for key, shape in target.shapes.items()]


def _refusal(text: str) -> Refusal:
    found = _AT.findall(text)
    # The innermost operator says it first.
    return Refusal(tuple(int(number) for number, *_ in reversed(found)), " ".join(text.split()))


# -- the model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reshaped:
    """What was made of a model, for whoever verifies it.

    Attributes:
        edits: What was changed, beside declared shapes.
        before: Shapes of all tensors with the old inputs.
        walks: Of each target, the last walk, which tells where sizes went.
    """

    edits: tuple[Edit, ...]
    before: Mapping[int, Shape]
    targets: tuple[Target, ...]
    walks: tuple[Walk, ...]


def reshape_model(model: Model, wish: Reshaping, judging: Judging) -> Reshaped:
    """Gives a model other input shapes, in place; it is not verified.

    Raises:
        UsageError: An input does not exist, or a shape does not fit it.
        UnsupportedError: An operator does not take the shapes.
    """
    targets = targets_of(model, wish)
    if model.metadata_named(COMPRESSION) is not None:
        raise UnsupportedError(
            f"metadata {COMPRESSION} says how constants are to be decoded",
            remedy="give the model its shapes before it is compressed",
        )
    editor = Editor(model)
    with Preparing(judging) as preparing:
        same = [
            replace(item, shapes={id(t): tuple(t.shape or ()) for t in item.subgraph.inputs})
            for item in targets
        ]
        before, runs = _as_it_was(preparing, model, same)
        edits, walks = _followed(preparing, editor, targets, before, runs)
        final = same if wish.dynamic_batch else targets
        after = preparing.shapes(model, final, runs=False).shapes
        if not _are_told(model, final, after):
            after = preparing.shapes(model, final, runs=runs).shapes
    for target, walk in zip(targets, walks, strict=True):
        _declare(target, walk, after, wish)
    _declare_called(model, targets, after)
    editor.removed()
    editor.finish()
    return Reshaped(tuple(edits), before, tuple(targets), tuple(walks))


def _as_it_was(
    preparing: Preparing, model: Model, targets: Sequence[Target]
) -> tuple[dict[int, Shape], bool]:
    """Shapes with the old inputs, and whether a run on zeros may tell those that show in a run alone."""
    allocated = preparing.shapes(model, targets, runs=False)
    if any(_UNRESOLVED in refusal.text for refusal in allocated.refusals.values()):
        preparing.resolver = _DELEGATES
        allocated = preparing.shapes(model, targets, runs=False)
    if allocated.refusals:
        text = next(iter(allocated.refusals.values())).text
        raise UnsupportedError(
            f"the runtime does not take the model as it is: {text}", remedy="'tfl-rewrite doctor' may say why"
        )
    if _are_told(model, targets, allocated.shapes):
        return dict(allocated.shapes), True
    ran = preparing.shapes(model, targets, runs=True)
    if ran.refusals:
        return dict(allocated.shapes), False
    return dict(ran.shapes), True


def _followed(
    preparing: Preparing, editor: Editor, targets: Sequence[Target], before: Mapping[int, Shape], runs: bool
) -> tuple[list[Edit], list[Walk]]:
    """Changes constants until all shapes are right."""
    edits, done = list[Edit](), set[int]()
    seen = set[frozenset[tuple[int, str]]]()
    for _ in range(_MOST_ROUNDS):
        found, walks, failed = _round(preparing, editor, targets, before, done, runs=False)
        edits += found
        if not found and runs and not _are_told(editor.model, targets, walks[0].after):
            # Some shapes are known in a run alone.
            found, walks, failed = _round(preparing, editor, targets, before, done, runs=True)
            edits += found
        if failed is not None and not found:
            raise failed
        if not found:
            return edits, walks
        told = frozenset(item for walk in walks for item in walk.told)
        if told in seen:
            # Such as in a damaged file, whose kernels never read what is written.
            what = f"{found[0].where} does not follow: {found[0].what}"
            raise UnsupportedError(what, remedy="choose other sizes")
        seen.add(told)
    raise UnsupportedError(f"shapes do not settle in {_MOST_ROUNDS} rounds", remedy="choose other sizes")


def _round(
    preparing: Preparing,
    editor: Editor,
    targets: Sequence[Target],
    before: Mapping[int, Shape],
    done: set[int],
    *,
    runs: bool,
) -> tuple[list[Edit], list[Walk], UnsupportedError | None]:
    """One walk over each subgraph: what was changed, and what does not follow."""
    prepared = preparing.shapes(editor.model, targets, runs=runs)
    walks, failed = [], None
    for target in targets:
        position = editor.model.subgraphs.index(target.subgraph)
        refusal = prepared.refusals.get(position)
        walk = Walk(editor, target.subgraph, before, prepared.shapes, target.asked, RULES, refusal, done=done)
        try:
            walk.run()
        except UnsupportedError as error:
            failed = failed or error
        walks.append(walk)
    return [edit for walk in walks for edit in walk.edits], walks, failed


def _declare_called(model: Model, targets: Sequence[Target], after: Mapping[int, Shape]) -> None:
    """Writes the shapes in subgraphs that operators run, where they are the same in every call."""
    entered = {id(item.subgraph) for item in targets}
    for subgraph, tensor in model.tensors():
        shape = after.get(id(tensor), ())
        if id(subgraph) in entered or tensor.is_constant or -1 in (tensor.signature or ()):
            continue
        if tensor.shape and len(tensor.shape) == len(shape):
            tensor.shape = shape


def _declare(target: Target, walk: Walk, after: Mapping[int, Shape], wish: Reshaping) -> None:
    """Writes the shapes of all tensors that are computed, and which sizes are free."""
    known = {id(tensor) for tensor in target.subgraph.tensors if walk.graph.is_constant(tensor)}
    is_free = any(map(target.leaves_free, target.subgraph.inputs))
    for tensor in target.subgraph.tensors:
        if id(tensor) in known or id(tensor) not in after:
            continue
        shape = after[id(tensor)]
        if not tensor.shape and shape:
            # It was declared as unknown, which some delegates leave alone.
            continue
        axes = walk.axes.get(id(tensor))
        moving = (
            [changes(axis) for axis in axes] if axes and len(axes) == len(shape) else [False] * len(shape)
        )
        free = [is_free and size == -1 for size in tensor.signature or shape]
        if id(tensor) in target.given or len(free) != len(shape):
            free = [False] * len(shape)
        signature = tuple(
            -1 if (wish.dynamic_batch if moves else open_ended) else size
            for moves, open_ended, size in zip(moving, free, shape, strict=True)
        )
        if tensor.shape is not None:
            tensor.shape = shape
        tensor.signature = signature if -1 in signature else None
