"""Which shapes inputs are to have, as it is asked for and as it fits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfl_rewrite.editing.axes import Shape
from tfl_rewrite.editing.sizes import Asked
from tfl_rewrite.errors import UsageError, near_names
from tfl_rewrite.model.ir import Model, SubGraph, Tensor
from tfl_rewrite.options.option import check_options, naming, option

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
        with naming(f"--input {text}:"):
            name, sizes = _parsed(text)
            if name is None and len({id(item) for item in entered[0].inputs}) != 1:
                known = ", ".join(repr(item) for item in names)
                raise UsageError("which input is not said", remedy=f"name one of {known}")
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
                if (other := made.setdefault(id(item), sizes)) != sizes:
                    raise UsageError(
                        f"{item.name!r} is to have the shape {list(other)}, too",
                        remedy="give each input one shape",
                    )
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
            f"{sizes!r} is not a shape",
            remedy="give sizes of 1 or more, such as image=1,320,320,3; --dynamic-batch frees the first",
        )
    return (name if found else None), made
