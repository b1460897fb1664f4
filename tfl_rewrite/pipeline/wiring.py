"""The parts that a chain consists of, each a model of its own, and what feeds what."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tfl_rewrite.editing.base import Edit
from tfl_rewrite.editing.merge import Piece
from tfl_rewrite.editing.names import ends_named, places_named
from tfl_rewrite.editing.stages import Made, Stage, as_float, between, sign
from tfl_rewrite.errors import InvariantError, UnsupportedError, UsageError, near_names, whole_number
from tfl_rewrite.files.source import Source, save
from tfl_rewrite.judge.routes import Feed, Named
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.options.option import naming
from tfl_rewrite.reading.metadata import with_media

PathLike = str | os.PathLike[str]


_SHOWN = 8
"""Names in an error."""
_MADE = -1
"""In place of an index: of a tensor that no model has."""


@dataclass(slots=True)
class Part:
    """A model that is a part.

    Attributes:
        piece: The model, and what feeds it.
        path: The file that holds it.
        made: Of a stage, what it computes.
    """

    piece: Piece
    path: PathLike
    made: Made | None = None


@dataclass(slots=True, eq=False)
class End:
    """An input or an output of the whole.

    Attributes:
        tensor: As the model has it, or the stage that stands there now.
        feed: Where its value comes from.
        arguments: What signatures call it, each with its key.
        index: Of the tensor in its model, or `_MADE`.
        names: What it may be called.
        model: The number of the model that it is of, and ``place`` there.
        through: Names of the stages that its value goes through.
    """

    tensor: Tensor
    feed: Feed
    arguments: list[tuple[str | None, str]]
    index: int
    names: set[str]
    model: int = 0
    place: int = 0
    through: tuple[str, ...] = ()


def ends_of(model: Model, feeds: Sequence[Feed], *, outputs: bool, number: int = 0) -> list[End]:
    """Returns the inputs or the outputs of a model's main subgraph.

    Args:
        model: The model.
        feeds: Where their values come from.
        outputs: Whether it is the outputs.
        number: Of the model.

    Raises:
        UnsupportedError: A signature names another tensor.
    """
    main, side = model.subgraphs[0], "outputs" if outputs else "inputs"
    called = [
        (at, (item.key, name))
        for item in model.signatures
        if item.subgraph is main
        for name, at in places_named(item, side)
    ]
    made = []
    for place, (tensor, feed) in enumerate(zip(main.outputs if outputs else main.inputs, feeds, strict=True)):
        arguments = [argument for at, argument in called if at == place]
        names = {tensor.name, *(name for _, name in arguments)}
        index = next(at for at, item in enumerate(main.tensors) if item is tensor)
        made.append(End(tensor, feed, arguments, index, names - {""}, number, place))
    return made


def find(ends: Sequence[End], name: str | None, what: str) -> int:
    """Returns the place of the end of a name, or of the only one; the first of a tensor given several times.

    Args:
        ends: Those that there are.
        name: Of the tensor, or of an argument; or ``#INDEX`` of the tensor.
        what: Such as ``input``.

    Raises:
        UsageError: There is none, or several.
    """
    listed = ", ".join(repr(end.tensor.name) if end.names else f"#{end.index}" for end in ends[:_SHOWN])
    if name is None:
        if len(ends) == 1:
            return 0
        raise UsageError(f"there are {len(ends)} {what}s", remedy=f"name one: {listed or 'there is none'}")
    listed += f" and {len(ends) - _SHOWN} more" if len(ends) > _SHOWN else ""
    index = whole_number(name[1:]) if name.startswith("#") else None
    found = [place for place, end in enumerate(ends) if name in end.names or end.index == index]
    indices = {ends[place].index for place in found}
    if len(found) == 1 or (len(indices) == 1 and indices != {_MADE}):
        return found[0]
    if found:
        places = ", ".join(f"#{number}" for number in sorted(indices - {_MADE}))
        raise UsageError(
            f"more than one {what} is named {name!r}",
            remedy=f"name one: {places}" if places else "rename one first",
        )
    near = near_names(name, [known for end in ends for known in end.names], count=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"no {what} is named {name!r}", remedy=f"{meant}there is {listed or 'none'}")


@dataclass(slots=True)
class Wiring:
    """Parts, in the order in which they run.

    Attributes:
        folder: For the files of stages.
        edits: What was put where.
    """

    folder: Path
    parts: list[Part] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)

    def add(self, name: str, model: Model, path: PathLike, feeds: Sequence[Feed]) -> int:
        """Adds a model; returns its number."""
        self.parts.append(Part(Piece(name, model, tuple(feeds)), path))
        return len(self.parts) - 1

    def add_stage(self, made: Made, feed: Feed) -> int:
        """Adds a stage behind something; returns its number."""
        path = self.folder / f"{len(self.parts)}-{made.name}.tflite"
        save(made.model, path)
        self.parts.append(Part(Piece(made.name, made.model, (feed,), is_stage=True), path, made))
        return len(self.parts) - 1

    def before(self, end: End, stages: Sequence[Stage]) -> Feed:
        """Adds what stands before an input; returns where the model gets its value from.

        Raises:
            UsageError, UnsupportedError: A stage is not possible there.
        """
        if not stages:
            return end.feed
        wanted = like = as_float(end.tensor)
        end.through = tuple(stage.name for stage in stages)
        line: list[Made] = []
        for stage in reversed(stages):
            with naming(stage.asked):
                if wanted.dtype != like.dtype:
                    raise UsageError(
                        f"{stage.name} gives floats, and what follows takes {wanted.dtype_name.lower()}",
                        remedy="give cast first: values go through in the order that is given",
                    )
                line.insert(0, stage.make(wanted))
            wanted = line[0].model.subgraphs[0].inputs[0]
        last = between(line[-1].model.subgraphs[0].outputs[0], end.tensor)
        feed = end.feed
        for made in [*line, *([last] if last is not None else [])]:
            feed = (self.add_stage(made, feed), 0)
            # Not in its file, since runtimes sort the arguments of signatures.
            for key, argument in end.arguments:
                sign(made.model, key, [argument], [made.model.subgraphs[0].outputs[0].name])
            self.edits.append(Edit(end.tensor.name, f"{made.name} before it"))
        return feed

    def connected(self, given: End, taken: End) -> Feed:
        """Adds what converts between two models; returns where the second gets its value from.

        Raises:
            UnsupportedError: Types do not fit.
        """
        made = between(given.tensor, taken.tensor)
        self.edits.append(Edit(f"{given.tensor.name} -> {taken.tensor.name}", "connected"))
        if made is None:
            return given.feed
        self.edits.append(Edit(taken.tensor.name, f"{made.name} before it"))
        return (self.add_stage(made, given.feed), 0)

    def behind(self, ends: list[End], stages: Sequence[Stage], shaped: Callable[[End], Tensor]) -> list[End]:
        """Adds what stands behind outputs; returns the outputs of the whole.

        Args:
            ends: The outputs of the model.
            stages: In the order in which values go through them.
            shaped: Gives the output, for one that declares no shape, with the one that it has when it runs.

        Raises:
            UsageError, UnsupportedError: A stage is not possible there.
        """
        for stage in stages:
            with naming(stage.asked):
                place = find(ends, stage.tensor, "output")
                end = ends[place]
                if not end.tensor.shape and not end.through:
                    end.tensor = shaped(end)
                like = as_float(end.tensor)
                made = stage.make(like)
            first = between(end.tensor, like)
            feed = end.feed if first is None else (self.add_stage(first, end.feed), 0)
            outputs = made.model.subgraphs[0].outputs
            number = self.add_stage(made, feed)
            for key, argument in end.arguments:
                sign(made.model, key, [like.name], stage.names(argument))
            self.edits.append(Edit(end.tensor.name, f"{stage.name} behind it"))
            # The first of what it gives may still be called as before.
            ends[place : place + 1] = [
                End(
                    tensor,
                    (number, position),
                    [(key, stage.names(argument)[position]) for key, argument in end.arguments],
                    end.index if position == 0 else _MADE,
                    {tensor.name, *(end.names if position == 0 else ())},
                    end.model,
                    end.place,
                    (*end.through, stage.name),
                )
                for position, tensor in enumerate(outputs)
            ]
        return ends


def fits(given: Tensor, taken: Tensor, actual: Sequence[int] | None = None) -> bool:
    """Whether the shape of an output is one that an input takes.

    Args:
        given: The output.
        taken: The input; what it leaves open fits all.
        actual: What the output was when it was run, where what it declares does not fit.
    """
    one = actual if actual is not None else (given.signature or given.shape)
    other = taken.signature or taken.shape
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True)
    )


def shapes_in_a_run(sources: Sequence[Source], end: End, settings: Judging) -> Iterator[tuple[int, ...]]:
    """Yields the shapes of an output when its model runs: what files declare may be wrong."""
    from tfl_rewrite.judge.judge import run_model

    if settings.mode == "off":
        return
    source = sources[end.model]
    if end.model:
        # Real inputs are those of the whole.
        settings = replace(settings, inputs=(), holdout=())
    for call in run_model(source, with_media(settings, source)).outputs:
        for name, value in zip(call.names, call.values, strict=True):
            if name in end.names and value is not None:
                yield value.shape


def links_of(
    outputs: Sequence[End], inputs: Sequence[End], texts: Sequence[str], taken: Sequence[End] = ()
) -> dict[int, int]:
    """Returns for places of inputs of the second model those of the outputs of the first that feed them.

    Args:
        outputs: Of the first model.
        inputs: Of the second.
        texts: ``OUTPUT=INPUT``; without any, what is clear by itself.
        taken: Inputs of the first model, which both may take; their places follow those of the outputs.

    Raises:
        UsageError: A name is unknown, an input is fed twice, or it is not clear what feeds what.
    """
    if not texts:
        return _guessed(outputs, inputs)
    links: dict[int, int] = {}
    for text in texts:
        with naming(f"--connect {text}:"):
            # A name may have the sign in it.
            halves = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == "="]
            if not halves:
                raise UsageError("it has no =", remedy="write OUTPUT=INPUT, such as embedding=x")
            known = [
                pair
                for pair in halves
                if _is_known([*outputs, *taken], pair[0]) and _is_known(inputs, pair[1])
            ]
            one, other = (known or halves)[0]
            place = find(inputs, other, "input of the second model")
            if place in links:
                raise UsageError(f"two outputs are connected with {other!r}", remedy="connect one")
            if _is_known(taken, one) and not _is_known(outputs, one):
                links[place] = len(outputs) + find(taken, one, "input of the first model")
            else:
                links[place] = find(outputs, one, "output of the first model")
    return links


def _is_known(ends: Sequence[End], name: str) -> bool:
    return any(name in end.names or name == f"#{end.index}" for end in ends)


def _guessed(outputs: Sequence[End], inputs: Sequence[End]) -> dict[int, int]:
    """What is connected where nobody says: the only ones, equal names, or the only order that fits."""
    if len(outputs) == len(inputs) == 1:
        return {0: 0}
    named = {
        place: [at for at, output in enumerate(outputs) if output.names & end.names]
        for place, end in enumerate(inputs)
    }
    if inputs and all(len(found) == 1 for found in named.values()):
        return {place: found[0] for place, found in named.items()}
    fitting = {
        place: [at for at, output in enumerate(outputs) if _may_feed(output.tensor, end.tensor)]
        for place, end in enumerate(inputs)
    }
    if inputs and all(len(found) == 1 for found in fitting.values()):
        chosen = {place: found[0] for place, found in fitting.items()}
        if len(set(chosen.values())) == len(chosen):
            return chosen
    gives, takes = (", ".join(repr(end.tensor.name) for end in ends[:10]) for ends in (outputs, inputs))
    told = f"the first model gives {gives or 'nothing'}; the second takes {takes or 'nothing'}"
    raise UsageError("it is not clear what is connected", remedy=f"give --connect OUTPUT=INPUT: {told}")


def _may_feed(given: Tensor, taken: Tensor) -> bool:
    try:
        between(given, taken)
    except UnsupportedError:
        return False
    return fits(given, taken)


def names_of(files: Sequence[PathLike]) -> list[str]:
    """Returns what stands in front of names of each model that are taken."""
    names: list[str] = []
    for file in files:
        stem = Path(os.fspath(file)).stem or "model"
        names.append(stem if stem not in names else f"{stem}_{len(names) + 1}")
    return names


Signatures = Mapping[str | None, tuple[Named, Named]]
"""What those of a main subgraph call its inputs and outputs."""


def signatures_of(sources: Sequence[Source]) -> list[Signatures]:
    """Returns the signatures of each file.

    Raises:
        UnsupportedError: One names a tensor inside, which the whole could not give.
    """
    made: list[Signatures] = []
    for source in sources:
        try:
            made.append(ends_named(source.model()))
        except UnsupportedError as error:
            error.file = source.path
            raise
    return made


def check_kept(whole: Signatures, models: Sequence[Signatures], ends: Sequence[Sequence[End]]) -> None:
    """Compares the signatures of the whole with those of its models.

    Args:
        whole: Of the file that was made.
        models: Of each model.
        ends: The inputs and the outputs of the whole.

    Raises:
        InvariantError: A signature of the first model that has any is missing, or an argument of one.
    """
    leading = next(filter(None, models), {})
    lost = [f"signature {key!r}" for key in leading if key not in whole]
    lost += [
        f"{name!r} of signature {key!r}"
        for side, items in enumerate(ends)
        for end in items
        for key, name in end.arguments
        if key in whole and name not in dict(whole[key][side])
    ]
    if lost:
        raise InvariantError(f"merging lost {lost[0]}")
