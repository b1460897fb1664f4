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
from tfl_rewrite.editing.sizes import Asked, Refusal, Walk
from tfl_rewrite.errors import UnsupportedError, UsageError, near_names
from tfl_rewrite.files.source import save
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.interpreter.worker import ModelFailed, Worker
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.ir import Model, SubGraph, Tensor
from tfl_rewrite.options.option import check_options, option

_AT = re.compile(r"Node number (\d+) \(([^)]*)\) failed to (prepare|invoke)")
_PLAIN, _DELEGATES = "builtin", "default"
_UNRESOLVED = "unresolved custom op"
"""What the runtime says of an operator that a delegate may have."""
_MOST_ROUNDS = 400
_MOST_SIZE = (1 << 31) - 1
TRIAL = 3
"""A number of samples to find out with what follows from a free one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshaping:
    """Which shapes inputs are to have.

    Attributes:
        input: Texts such as ``image=1,320,320,3``; without a name where there is one input.
        batch: Samples that the model takes at once.
        dynamic_batch: Whether that is to be free at run time.

    Raises:
        UsageError: A value is of another kind or out of bounds, or nothing is asked for.

    Example:
        >>> tfl_rewrite.Reshaping(batch=8).batch
        8
    """

    input: tuple[str, ...] = option(
        (),
        "the new shape of an input, such as image=1,320,320,3; the name may be left out where there is one "
        "input; repeatable",
        metavar="[NAME=]SHAPE",
    )
    batch: int | None = option(
        None,
        "samples at once: the first axis of every input that has one for them",
        metavar="N",
        bounds=(1, _MOST_SIZE),
    )
    dynamic_batch: bool = option(False, "leave the number of samples open: any number fits at run time")

    def __post_init__(self) -> None:
        """Refuses what does not fit together."""
        check_options(self)
        if self.batch is not None and self.dynamic_batch:
            raise UsageError("a fixed and a free batch", remedy="give --batch or --dynamic-batch")
        if not self.input and self.batch is None and not self.dynamic_batch:
            raise UsageError("no shape to change", remedy="give --input, --batch or --dynamic-batch")


@dataclass(frozen=True, slots=True)
class Target:
    """The new shapes of the inputs of one subgraph.

    Attributes:
        shapes: By id of the input.
        batched: Ids of the inputs whose first axis is that of the samples.
        given: Ids of the inputs whose whole shape was given, so that nothing of it is free.
    """

    subgraph: SubGraph
    shapes: Mapping[int, Shape]
    asked: Asked
    batched: frozenset[int] = frozenset()
    given: frozenset[int] = frozenset()

    def leaves_free(self, tensor: Tensor) -> bool:
        """Whether an input has sizes that stay free."""
        free = tensor.signature or ()
        return id(tensor) not in self.given and -1 in (free[1:] if id(tensor) in self.batched else free)


def targets_of(model: Model, wish: Reshaping) -> list[Target]:
    """Returns the new shapes of the inputs of each subgraph that can be entered.

    Raises:
        UsageError: An input does not exist, or a shape does not fit it.
    """
    entered = list(
        {id(item): item for item in [model.subgraphs[0], *(s.subgraph for s in model.signatures)]}.values()
    )
    given = _given(model, entered, wish.input)
    made = []
    for subgraph in entered:
        old = {id(item): tuple(item.shape or ()) for item in subgraph.inputs}
        new = {key: given.get(key, shape) for key, shape in old.items()}
        batched = frozenset[int]()
        if wish.batch is not None or wish.dynamic_batch:
            batched = _batched(subgraph)
            wanted = TRIAL if wish.batch is None else wish.batch
            if wish.dynamic_batch and any(old[key][0] == wanted for key in batched):
                wanted += 1
            new = {key: (wanted, *shape[1:]) if key in batched else shape for key, shape in new.items()}
        made.append(
            Target(subgraph, new, _asked(old, new, wish), batched or _moved(old, new), frozenset(given))
        )
    if (wish.batch is not None or wish.dynamic_batch) and not any(item.batched for item in made):
        raise UsageError(
            "no input has an axis for the samples of a batch", remedy="give the shapes with --input"
        )
    return made


def _moved(old: Mapping[int, Shape], new: Mapping[int, Shape]) -> frozenset[int]:
    return frozenset(key for key in old if old[key][:1] != new[key][:1])


def _asked(old: Mapping[int, Shape], new: Mapping[int, Shape], wish: Reshaping) -> Asked:
    """Whether the number of samples alone changes, and from what to what."""
    pairs = {(was[0], now[0]) for key, was in old.items() if was != (now := new[key])}
    rest = all(was[1:] == new[key][1:] for key, was in old.items())
    return Asked(next(iter(pairs)) if len(pairs) == 1 and rest else None, wish.dynamic_batch)


def _batched(subgraph: SubGraph) -> frozenset[int]:
    """Ids of the inputs whose first axis counts samples: as many as that of the first that has other axes."""
    inputs = [item for item in subgraph.inputs if item.shape]
    rows = [item for item in inputs if len(item.shape or ()) > 1] or inputs
    if not rows:
        return frozenset()
    first = (rows[0].shape or (0,))[0]
    return frozenset(id(item) for item in rows if (item.shape or (0,))[0] == first)


def _given(model: Model, entered: Sequence[SubGraph], texts: Sequence[str]) -> dict[int, Shape]:
    inputs = [item for subgraph in entered for item in subgraph.inputs]
    names: dict[str, list[Tensor]] = {}
    for item in inputs:
        names.setdefault(item.name, []).append(item)
    for signature in model.signatures:
        for entry, item in signature.inputs:
            names.setdefault(str(entry.get("name") or ""), []).append(item)
    made: dict[int, Shape] = {}
    for text in texts:
        name, sizes = _parsed(text)
        if name is None and len({id(item) for item in entered[0].inputs}) != 1:
            known = ", ".join(repr(item) for item in names)
            raise UsageError(f"--input {text}: which input is not said", remedy=f"name one of {known}")
        found = entered[0].inputs if name is None else names.get(name, [])
        if not found:
            near = near_names(name or "", names)
            known = ", ".join(repr(item) for item in names) or "none"
            raise UsageError(
                f"no input is named {name!r}",
                remedy=f"did you mean {near[0]!r}?" if near else f"the model has {known}",
            )
        for item in found:
            _check_fit(item, sizes)
            made[id(item)] = sizes
    return made


def _check_fit(tensor: Tensor, sizes: Shape) -> None:
    shape = tensor.shape or ()
    if len(sizes) != len(shape):
        raise UsageError(
            f"input {tensor.name!r} has {len(shape)} axes, {list(shape)}, and {list(sizes)} has {len(sizes)}",
            remedy="give as many sizes, with commas between them",
        )


def _parsed(text: str) -> tuple[str | None, Shape]:
    name, found, sizes = text.rpartition("=")
    try:
        made = tuple(int(size) for size in sizes.split(",")) if sizes.strip() else ()
    except ValueError:
        made = (0,)
    if not all(1 <= size <= _MOST_SIZE for size in made):
        raise UsageError(
            f"--input {text}: {sizes!r} is no shape",
            remedy="give sizes of 1 or more, such as image=1,320,320,3; --dynamic-batch frees the first",
        )
    return (name if found else None), made


# -- the runtime -------------------------------------------------------------------------------------------


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
