"""What becomes of a model whose operators are to compute in integers, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.integers.convert import (
    LARGEST_BIAS,
    LEAST_MULTIPLIER,
    LEAST_STEP,
    Conversion,
    IntegerWeight,
    Site,
    WeightOf,
)
from tfl_rewrite.integers.groups import LEAST_SCALE, Grid, Groups, needed_ranges
from tfl_rewrite.integers.modes import Modes, Range, decide, float_inputs, float_outputs, kernel_of
from tfl_rewrite.integers.recipe import Recipe
from tfl_rewrite.integers.recurrent import form_of, narrow_weights
from tfl_rewrite.integers.trials import operators_by_place
from tfl_rewrite.kernels.integer import CLAMPED, FUSED_BOUNDS, OUTPUT, Caveat, Limit, Scales, Target
from tfl_rewrite.kernels.operands import constant_values, input_of
from tfl_rewrite.kernels.operators import Squash
from tfl_rewrite.kernels.reads import micro_obstacles
from tfl_rewrite.kernels.table import MEAN, row_of
from tfl_rewrite.model.graph import Graph, Use
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.numerics.symmetric import Channels, Float32, Int8, Integers, Levels
from tfl_rewrite.weights.rounders import Rounder, Work

Wanted = Callable[[Operator], int | None]
"""The bits of activations that an operator should have; None for floats."""


class IntegerPlan:
    """Which operators compute in integers, and on which grids their tensors lie.

    Args:
        model: With float weights; not changed.
        wanted: Bits of operators. What has no kernel of so many bits has another one, or stays float.
        ranges: By id, of float tensors and constants; those that no sample reached are missing.
        recipe: How much wider than those grids are; the fixed one where there is none.
        target: What computes the file.
    """

    def __init__(
        self,
        model: Model,
        wanted: Wanted,
        ranges: Mapping[int, Range],
        recipe: Recipe | None = None,
        *,
        target: Target = Target.LITERT,
    ) -> None:
        self._target = target
        self._recipe = recipe or Recipe()
        self._model = model
        self._wanted = wanted
        self._ranges = ranges
        self._graph = Graph.of(model)
        called = model.called
        self.subgraphs = [
            subgraph
            for subgraph in model.subgraphs
            if id(subgraph) not in called and any(id(tensor) in ranges for tensor in _activations(subgraph))
        ]
        deviations, parts = self._recipe.deviations, self._recipe.parts
        self.modes = decide(
            model, self._graph, self.subgraphs, wanted, ranges, deviations, target, parts=parts
        )
        self._groups = self._settled()

    def groups_of(self, subgraph: SubGraph) -> Groups:
        """Returns the scale groups of one of its subgraphs."""
        return self._groups[id(subgraph)]

    def grids(self) -> tuple[tuple[int, tuple[Grid, ...]], ...]:
        """Returns which operators compute in integers, by place, and on which grids: all that it decides."""
        return tuple(
            (position, tuple(grid for _, grid in self._groups[id(subgraph)].forms_of(operator)))
            for subgraph in self.subgraphs
            for position, operator in enumerate(subgraph.operators)
            if self.modes.width(operator)
        )

    def works(self) -> dict[Site, Work]:
        """Returns the weights that become integers, in order of execution.

        Returns:
            By operator and position; one for all that read the same bytes along the same axis.
        """
        positions = {id(buffer): position for position, buffer in enumerate(self._model.buffers)}
        holders = self._model.holders()
        found: dict[Site, Work] = {}
        known: dict[tuple[int, tuple[int, ...], int | None], Work] = {}
        for operator, position, axis in self._weighted():
            tensor = operator.inputs[position]
            assert tensor is not None
            key = id(tensor.buffer), tensor.shape or (), axis
            if key not in known:
                held = holders[id(tensor.buffer)]
                uses = tuple(use for item in held for use in self._graph.uses_of(item))
                known[key] = _work(tensor, axis, positions[id(tensor.buffer)], uses)
            found[id(operator), position] = known[key]
        return found

    def weights(self, rounder: Rounder) -> WeightOf:
        """Rounds the weights and returns what gives them out, by operator."""
        works = self.works()
        rounder.prepare(self._model, list({id(work): work for work in works.values()}.values()))
        changes = {id(item.operator): item.change for item in rounder.corrections()}
        made: dict[int, tuple[Int8, Float32]] = {}

        def weight_of(operator: Operator, position: int) -> IntegerWeight:
            work = works[id(operator), position]
            if id(work) not in made:
                made[id(work)] = _rounded(work, rounder)
            integers, scale = made[id(work)]
            return IntegerWeight(integers, scale, work.axis, changes.get(id(operator)))

        return weight_of

    def convert(self, editor: Editor, weight_of: WeightOf) -> int:
        """Makes the operators compute in integers; returns how many conversions were put between them."""
        return self._run(editor, weight_of)

    def simulate(self, copy: Model) -> dict[tuple[int, int], Operator]:
        """Makes a copy of the model round activations as the integer kernels do, with weights as they are.

        Returns:
            The operators of the copy by where they were: positions of the subgraph and in it.
        """
        ranges = {
            id(theirs): self._ranges[id(mine)]
            for one, other in zip(self._model.subgraphs, copy.subgraphs, strict=True)
            for mine, theirs in zip(one.tensors, other.tensors, strict=True)
            if id(mine) in self._ranges
        }
        before = operators_by_place(copy)
        widths = {
            id(theirs): self._wanted(mine)
            for one, other in zip(self._model.subgraphs, copy.subgraphs, strict=True)
            for mine, theirs in zip(one.operators, other.operators, strict=True)
        }
        wanted: Wanted = lambda operator: widths[id(operator)]  # noqa: E731
        plan = IntegerPlan(copy, wanted, ranges, self._recipe, target=self._target)
        plan._run(Editor(copy), None)
        return before

    def _run(self, editor: Editor, weight_of: WeightOf | None) -> int:
        return sum(
            Conversion(subgraph, self._graph, self.modes, self._groups[id(subgraph)], weight_of, editor).run()
            for subgraph in self.subgraphs
        )

    def _weighted(self) -> Iterator[tuple[Operator, int, int | None]]:
        """Yields the operators with weights, with the position of each, and its axis; None for one scale."""
        for subgraph in self.subgraphs:
            for operator in subgraph.operators:
                if self.modes.width(operator) and kernel_of(operator).scales is Scales.WEIGHTS:
                    row = row_of(operator)
                    tensor = operator.inputs[row.weights[0]]
                    assert tensor is not None
                    axis = row.output_axis(row.weights[0], len(tensor.shape or ()))
                    assert axis is not None
                    yield operator, row.weights[0], None if self._has_one_scale(operator) else axis
                elif self.modes.width(operator):
                    yield from ((operator, position, None) for position in narrow_weights(operator))

    def _has_one_scale(self, operator: Operator) -> bool:
        """Whether all channels of a weight must have the same scale."""
        (output,) = operator.outputs[:1]
        is_flat = output is not None and len(output.shape or ()) == 2
        return (
            self.modes.target is Target.OLD
            and Caveat.OLD_FLAT_CHANNELS in kernel_of(operator).caveats
            and not is_flat
        )

    def _settled(self) -> dict[int, Groups]:
        """Returns the groups, once no operator is left that cannot compute on its grids."""
        while True:
            found = {id(subgraph): self._grouped(subgraph) for subgraph in self.subgraphs}
            unfit = {
                id(operator): (operator, why)
                for subgraph in self.subgraphs
                for operator in subgraph.operators
                if (why := misfit(operator, self.modes, found[id(subgraph)]))
            }
            if not unfit:
                return found
            for operator, why in unfit.values():
                self.modes.keep_float(operator, why)

    def _grouped(self, subgraph: SubGraph) -> Groups:
        margins = self._margins()

        def margin(tensor: Tensor, width: int) -> float:
            return max(self._recipe.margin(width), margins.get(id(tensor), 1.0))

        needs = needed_ranges(subgraph.operators, self._graph, self.modes, self._ranges, margin)
        return Groups(subgraph.operators, self.modes, self._ranges, margin, needs)

    def _margins(self) -> dict[int, float]:
        """Returns those of what is told apart by what it is for, whether or not that computes in integers."""
        margins: dict[int, float] = {}
        for subgraph in self.subgraphs:
            for tensor in subgraph.outputs:
                margins.update((key, self._recipe.outputs) for key in self._forms(tensor))
            for operator in subgraph.operators:
                if _pools(operator):
                    margins.update((id(tensor), self._recipe.pooled) for tensor in float_outputs(operator))
                if row_of(operator).squashes is Squash.ROWS:
                    for _, tensor in float_inputs(operator):
                        margins.update((key, self._recipe.softmax) for key in self._forms(tensor))
        return margins

    def _forms(self, tensor: Tensor | None) -> Iterator[int]:
        """Yields a tensor and what it is in other shapes, by id."""
        while tensor is not None:
            yield id(tensor)
            maker = self._graph.maker_of(tensor)
            tensor = maker.inputs[0] if maker is not None and row_of(maker).reshapes else None


def _activations(subgraph: SubGraph) -> Iterator[Tensor | None]:
    """Yields what a sample that runs a subgraph gives values to."""
    yield from subgraph.inputs
    for operator in subgraph.operators:
        yield from operator.outputs


def _pools(operator: Operator) -> bool:
    """Whether an operator gives means over positions, one for each channel."""
    if row_of(operator) is not MEAN:
        return False
    read, made = operator.inputs[0], operator.outputs[0]
    return read is not None and made is not None and (read.shape or ())[-1:] == (made.shape or ())[-1:] != ()


def _work(tensor: Tensor, axis: int | None, position: int, uses: tuple[Use, ...]) -> Work:
    shape, blob = tensor.shape or (), tensor.buffer.blob
    values = constant_values(tensor, "FLOAT32")
    assert values is not None and blob is not None
    channels = Channels.along(shape, axis)
    cut = np.abs(values.reshape(channels.outer, channels.channels, channels.inner))
    return Work(
        tensor.name,
        position,
        shape,
        8,
        axis,
        None,
        channels,
        # XNNPACK takes -128 too, the quantization specification does not.
        Levels.narrow(8),
        uses,
        ("integer",) * len(uses),
        cut.max(axis=(0, 2)).astype(np.float32),
        blob,
        tensor.dtype,
    )


def _rounded(work: Work, rounder: Rounder) -> tuple[Int8, Float32]:
    scale = rounder.scales(work)
    integers = np.empty(work.channels.elements, np.int8)

    def keep(start: int, part: Integers) -> None:
        integers[start : start + part.size] = part

    rounder.round(work, scale, keep)
    return integers.reshape(work.shape), scale


LARGEST_SUM = 2.0**30
"""In steps of the output: what is more overflows int32 before it is cut off."""

LARGEST_MULTIPLIER = 2.0**7
"""XNNPACK refuses the whole file from 256 on; half of that leaves room for scales that rounding changes."""

LARGEST_SCALE = 2.0**100
"""Of weights, made coarser for their bias; a float32 holds 2^28 times as much."""


def misfit(operator: Operator, modes: Modes, groups: Groups) -> str:
    """Returns why the kernel of an operator would be wrong on its grids; empty where it works.

    Args:
        operator: Of any kind.
        modes: Of its model.
        groups: Of its subgraph.
    """
    width = modes.width(operator)
    if width is None:
        return ""
    kernel, fused = kernel_of(operator), operator.option("fused_activation_function")
    limits: tuple[Limit, ...] = (*kernel.limits, *(CLAMPED if fused in FUSED_BOUNDS else ()))
    for limit in limits:
        known = modes.target is Target.MICRO or not limit.micro
        if known and not limit.holds(_quotient(operator, limit, groups), width):
            return limit.reason
    weighted = kernel.scales is Scales.WEIGHTS and _overflows(operator, groups)
    if weighted or (kernel.memory is not None and form_of(operator, groups).overflows()):
        return "what it sums is too many steps of its output for its integer kernel"
    return ""


def _overflows(operator: Operator, groups: Groups) -> bool:
    """Whether sums, before an activation function cuts them off, or multipliers are too large."""
    row = row_of(operator)
    weight, bias = input_of(operator, row.weights[0]), input_of(operator, row.biases[0])
    assert weight is not None and row.activation is not None
    shape = weight.shape or ()
    axis = row.output_axis(row.weights[0], len(shape))
    values = constant_values(weight, "FLOAT32")
    made = groups.made(next(float_outputs(operator)))
    assert axis is not None and values is not None and made is not None
    given = groups.given(operator, row.activation)
    sizes = np.abs(values.reshape(shape))
    over = tuple(at for at in range(len(shape)) if at != axis)
    sums = sizes.sum(axis=over, dtype=np.float64) * max(map(abs, given.range))
    floats = None if bias is None else constant_values(bias, "FLOAT32")
    coarsest = LEAST_MULTIPLIER * made.scale
    if floats is not None:
        sizes_of_bias = np.abs(floats.astype(np.float64))
        sums = sums + sizes_of_bias
        coarsest = max(coarsest, float(sizes_of_bias.max()) / LARGEST_BIAS[made.width])
    scale = max(float(sizes.max()) / 127, LEAST_SCALE)
    multiplier = max(scale * given.scale, LEAST_STEP) / made.scale
    fits = float(sums.max()) / made.scale <= LARGEST_SUM and multiplier <= LARGEST_MULTIPLIER
    return not (fits and coarsest / given.scale <= LARGEST_SCALE)


def _quotient(operator: Operator, limit: Limit, groups: Groups) -> float:
    quotient = float(operator.option(limit.option) or 0.0) if limit.option else 1.0
    return quotient * _product(operator, limit.over, groups) / _product(operator, limit.under, groups)


def _product(operator: Operator, positions: Sequence[int], groups: Groups) -> float:
    read, product = dict(float_inputs(operator)), 1.0
    for position in positions:
        if position == OUTPUT:
            made = [groups.made(tensor) for tensor in float_outputs(operator)]
            product *= made[0].scale if made and made[0] is not None else 1.0
        elif position in read:
            product *= groups.given(operator, position).scale
    return product


_NAMED = 5
"""Kinds of obstacles in a message."""


def check_target(model: Model, target: Target, *, typed: bool = True) -> None:
    """Checks that a runtime has kernels of all operators, whatever they compute in.

    Args:
        model: Not changed.
        target: LiteRT and its forebears have kernels of all that they ran before.
        typed: Whether all has the types that it is to have.

    Raises:
        UnsupportedError: Operators have none; names them.
    """
    places: dict[str, list[str]] = {}
    for item in micro_obstacles(model, typed=typed) if target is Target.MICRO else ():
        places.setdefault(item.reason, []).append(item.place)
    if not places:
        return
    told = [f"{why} ({at[0]}{f' and {len(at) - 1} more' * (len(at) > 1)})" for why, at in places.items()]
    more = f"; and {len(told) - _NAMED} other kinds" if len(told) > _NAMED else ""
    raise UnsupportedError(
        f"the file cannot run on {target.spoken}: {'; '.join(told[:_NAMED])}{more}",
        remedy="make the model without them, or leave --target out",
    )
