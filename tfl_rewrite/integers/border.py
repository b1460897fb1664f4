"""The types of a model's inputs and outputs: conversions at the border taken away, or put there.

A float input that a QUANTIZE reads becomes what that gives, and the QUANTIZE goes; where the asked type is
another than that of the operators inside, a conversion stands behind the input. Outputs likewise. Everything
between computes the same integers as before. Tensors keep their objects, so that names, order and signatures
stay; only their types change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

import numpy as np

from tfl_rewrite.editing.base import Edit, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.integers.convert import type_change
from tfl_rewrite.integers.groups import Grid
from tfl_rewrite.integers.modes import Range
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.integers.recipe import Recipe
from tfl_rewrite.kernels.integer import Scales, Target
from tfl_rewrite.kernels.operands import wrong_operands
from tfl_rewrite.kernels.table import DEQUANTIZE, QUANTIZE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, Quantization, SubGraph, Tensor
from tfl_rewrite.options.frozen import frozen, slotted

TYPES = {"float": "FLOAT32", "int8": "INT8", "uint8": "UINT8", "int16": "INT16"}
"""What an input or an output can be asked to be, and its name in ``TensorType``."""

_WIDER, _NARROWER = 128, 256
"""Steps of int16 in one of 8 bits that is to be held exactly (255 of them fit), and in one that holds all."""


@frozen
class Form:
    """How a tensor holds real values: as floats, or as integers that mean ``(integer - zero_point) * scale``.

    Attributes:
        kind: Name in ``TensorType``.
    """

    kind: str
    scale: float = 0.0
    zero_point: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> Form | None:
        """Returns that of a tensor; None where it holds no real values, or several scales."""
        if tensor.dtype_name == FLOATS.kind:
            return FLOATS
        details = tensor.quantization
        if tensor.dtype_name not in TYPES.values() or details is None or details.scale is None:
            return None
        zeros = list(details.zero_point or (0,))
        if len(details.scale) != 1 or len(zeros) != 1 or not details.scale[0] > 0:
            return None
        return cls(tensor.dtype_name, float(details.scale[0]), int(zeros[0]))

    def nested(self, kind: str) -> Form:
        """Returns integers of another type that hold the same values, or of 8 bits for 16 the same range."""
        least = {name: int(np.iinfo(dtypes.BY_NAME[name].numpy).min) for name in (self.kind, kind)}
        if _bits(self.kind) == _bits(kind):
            return Form(kind, self.scale, self.zero_point - least[self.kind] + least[kind])
        if _bits(kind) == 16:
            return Form(kind, self.scale / _WIDER)
        return Form(kind, float(np.float32(self.scale * _NARROWER)), least[kind] + 128)

    def is_within(self, other: Form) -> bool:
        """Whether each value of it is one that other integers hold, and integer kernels find exactly."""
        if _bits(self.kind) == _bits(other.kind):
            return self.nested(other.kind) == other
        return _bits(other.kind) == 16 and self.scale in (other.scale * _WIDER, other.scale * _NARROWER)

    def give(self, tensor: Tensor) -> None:
        """Makes a tensor hold its values so."""
        tensor.dtype = dtypes.BY_NAME[self.kind].value
        tensor.quantization = None if self == FLOATS else Quantization.single(self.scale, self.zero_point)

    def told(self) -> str:
        """Says what its values mean."""
        kind = self.kind.lower()
        if self == FLOATS:
            return kind
        zero = f"integer {'-' if self.zero_point > 0 else '+'} {abs(self.zero_point)}"
        return f"{kind}, real value = {self.scale:.9g} * {f'({zero})' if self.zero_point else 'integer'}"


FLOATS = Form("FLOAT32")


@slotted
class Retyped:
    """What became of the border.

    Attributes:
        edits: A tensor each.
        skips: What keeps its type although another was asked for.
        exact: Whether all integers inside are what they were, for the same real inputs, and so are outputs.
    """

    edits: list[Edit] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    exact: bool = True

    @property
    def notes(self) -> list[str]:
        """Lines for the user: who asked for a type wants to know what does not have it."""
        return [f"{skip.where} keeps its type: {skip.reason}" for skip in self.skips]


def computed_kinds(model: Model) -> set[str]:
    """Returns the integer types of real values that operators of a model compute in, and not only move."""
    forms = (
        Form.of(tensor)
        for _, operator in model.operators()
        if (kernel := row_of(operator).integer) is not None and kernel.scales is not Scales.SAME
        for tensor in operator.outputs
        if tensor is not None
    )
    return {form.kind for form in forms if form not in (None, FLOATS)}


def retype(
    model: Model,
    editor: Editor,
    given: str | None,
    gives: str | None,
    ranges: Mapping[int, Range] | None = None,
    recipe: Recipe | None = None,
    target: Target = Target.LITERT,
) -> Retyped:
    """Gives the inputs and outputs of a model other types; those that hold no real values keep theirs.

    Args:
        model: Changed in place.
        editor: Of it; to be finished by the caller.
        given: What inputs become, a key of `TYPES`; None leaves them as they are.
        gives: Likewise of outputs.
        ranges: By id, of float tensors; for those that no integers inside stand for.
        recipe: By how much ranges are widened.
        target: Of the file.

    Raises:
        UnsupportedError: The range of one is not known, or no kernel converts the types.
    """
    found = Retyped()
    called = model.called
    entered = [*model.subgraphs[:1], *(item.subgraph for item in model.signatures)]
    for subgraph in {id(item): item for item in entered}.values():
        side = _Border(subgraph, Graph.of(model), editor, ranges or {}, recipe or Recipe(), found, target)
        for role, tensors, kind in (("input", subgraph.inputs, given), ("output", subgraph.outputs, gives)):
            for tensor in {id(item): item for item in tensors}.values():
                if kind is not None and tensor.dtype_name != TYPES[kind]:
                    side.retype(role, tensor, TYPES[kind], called=id(subgraph) in called)
    return found


def border_grids(
    model: Model,
    given: str | None,
    gives: str | None,
    recipe: Recipe,
    plan: IntegerPlan,
    ranges: Mapping[int, Range],
) -> dict[int, Grid]:
    """Returns on which grids inputs and outputs are rounded at the border, by id; inside they are finer.

    Args:
        model: Before it is converted.
        given: What inputs become; see :func:`retype`.
        gives: Likewise of outputs.
        recipe: By how much ranges are widened.
        plan: Of what is inside.
        ranges: By id, of float tensors.
    """
    graph, found = Graph.of(model), dict[int, Grid]()
    for subgraph in plan.subgraphs:
        groups, read = plan.groups_of(subgraph), dict[int, list[Grid]]()
        for operator in subgraph.operators:
            for form, grid in groups.forms_of(operator) if plan.modes.width(operator) else ():
                read.setdefault(id(form.tensor), []).append(grid)
        for kind, tensors in ((given, subgraph.inputs), (gives, subgraph.outputs)):
            bits = 0 if kind in (None, "float") else _bits(TYPES[kind])
            for tensor in tensors if bits else ():
                maker, seen = graph.maker_of(tensor), ranges.get(id(tensor))
                width = None if maker is None else plan.modes.width(maker)
                if tensor.dtype_name != FLOATS.kind or seen is None or (width is not None and width <= bits):
                    continue
                # Where something reads an input on such integers, they are what it becomes.
                inner = [] if maker is not None else read.get(id(tensor), [])
                own = next((one for one in inner if one.width <= bits), _grid(maker, seen, bits, recipe))
                found |= {} if own is None else {id(tensor): own}
    return found


def _grid(maker: Operator | None, seen: Range | None, bits: int, recipe: Recipe) -> Grid | None:
    """Returns the grid of an input or output where no integers inside say it; None where nothing does.

    Args:
        maker: What computes an output.
    """
    kernel = None if maker is None else row_of(maker).integer
    if kernel is not None and bits in kernel.fixed:
        return Grid(bits, *kernel.fixed[bits])
    margin = 1.0 if maker is None else recipe.outputs
    return None if seen is None else Grid.over(seen[0] * margin, seen[1] * margin, bits)


class _Border:
    """The border of one subgraph.

    Args:
        graph: Of the model, as it was: tells what callers know.
        ranges: Of float tensors, by id.
        recipe: By how much they are widened.
        found: What is done is told there.
        target: Of the file.
    """

    def __init__(
        self,
        subgraph: SubGraph,
        graph: Graph,
        editor: Editor,
        ranges: Mapping[int, Range],
        recipe: Recipe,
        found: Retyped,
        target: Target,
    ) -> None:
        self._subgraph = subgraph
        self._exposed = graph.exposed
        self._editor = editor
        self._ranges = ranges
        self._recipe = recipe
        self._found = found
        self._target = target

    def retype(self, role: str, tensor: Tensor, kind: str, *, called: bool) -> None:
        """Gives an input or an output another type.

        Args:
            called: Whether an operator runs the subgraph, too.
        """
        before, where = Form.of(tensor), f"{role} {tensor.name!r}"
        if before is None or (why := self._obstacle(role, tensor, called)):
            why = why if before else f"no single scale tells what its {tensor.dtype_name.lower()} values mean"
            self._found.skips.append(Skip(where, why, "keeps-type"))
            return
        change = self._retype_input if role == "input" else self._retype_output
        after = before
        while (inner := self._inner(role, tensor, after, kind)) is not None:
            after = change(tensor, after, inner.kind, where)
        if role == "input":
            # Values between two steps of what is inside: kernels round a half one way or the other.
            self._found.exact &= min(_bits(before.kind), _bits(kind)) <= _bits(after.kind)
        if after.kind != kind:
            after = change(tensor, after, kind, where)
        numbers = {} if after == FLOATS else {"scale": after.scale, "zero_point": after.zero_point}
        told = f"{before.kind.lower()} is now {after.told()}"
        self._found.edits.append(Edit(where, told, data={"type": kind.lower(), **numbers}))

    def _obstacle(self, role: str, tensor: Tensor, called: bool) -> str:
        """Returns why a tensor keeps its type; empty where it need not."""
        both = {id(item) for item in self._subgraph.inputs} & {id(item) for item in self._subgraph.outputs}
        if id(tensor) in both:
            return "it is an input and an output at once"
        if called:
            return "an operator runs its subgraph, too"
        if role == "output" and self._maker(tensor) is None:
            return "no operator computes it"
        return "" if role == "output" or self._readers(tensor) else "no operator reads it"

    def _inner(self, role: str, tensor: Tensor, form: Form, kind: str) -> Form | None:
        """Returns the integers behind a conversion at the border that can go, those asked for first."""
        maker = self._maker(tensor)
        if form.kind == kind:
            return None
        if role == "input":
            near = [_output(item) for item in self._readers(tensor) if _converted_to(item) is not None]
        else:
            near = [item for item in maker.inputs if item] if maker and _converted_to(maker) else []
        found = [Form.of(item) for item in near]
        fitting = [
            inner
            for item, inner in zip(near, found, strict=True)
            if inner is not None and self._can_go(item, inner, form, inner.kind) and inner.kind != form.kind
        ]
        return min(fitting, key=lambda inner: inner.kind != kind, default=None)

    def _retype_input(self, tensor: Tensor, before: Form, kind: str, where: str) -> Form:
        readers = self._readers(tensor)
        given = {id(item): form for item in readers if (form := _converted_to(item)) is not None}
        conversions = [item for item in readers if id(item) in given]
        gone = [item for item in conversions if self._can_go(_output(item), given[id(item)], before, kind)]
        if gone:
            after = given[id(gone[0])]
            gone = [item for item in gone if given[id(item)] == after]
        else:
            bases = [before] if before != FLOATS else [form for form in given.values() if form != FLOATS]
            after = self._form(tensor, kind, bases, where)
        old = self._like(tensor, before)
        after.give(tensor)
        for operator in readers:
            target = given.get(id(operator), FLOATS)
            if any(operator is item for item in gone):
                self._subgraph.operators.remove(operator)
                self._take_place(_output(operator), tensor)
            elif before == FLOATS and target != FLOATS:
                # From integers to integers, without floats between them.
                self._put(self._at(operator), tensor, _output(operator), where)
                self._subgraph.operators.remove(operator)
                self._found.exact &= after.is_within(target)
            else:
                _rewire(operator, tensor, old)
        if self._readers(old):
            # Built-in kernels and others make floats that differ in the last bit.
            known = after == FLOATS or before.is_within(after) or after.is_within(before)
            self._found.exact &= before != FLOATS and known
            self._put(self._editor.first_reader(self._subgraph, old), tensor, old, where)
        else:
            self._editor.drop_unread(self._subgraph, old)
        return after

    def _retype_output(self, tensor: Tensor, before: Form, kind: str, where: str) -> Form:
        maker, old = self._maker(tensor), self._like(tensor, before)
        assert maker is not None
        for operator in self._readers(tensor):
            _rewire(operator, tensor, old)
        _replace(maker.outputs, tensor, old)
        source = maker.inputs[0] if _converted_to(maker) is not None else None
        inside = None if source is None else Form.of(source)
        producer = None if source is None else self._maker(source)
        if source is not None and producer is not None and self._can_go(source, inside, before, kind):
            assert inside is not None
            inside.give(tensor)
            self._drop_unread(maker, old)
            self._take_place(source, tensor)
            return inside
        direct = source if before == FLOATS and inside not in (None, FLOATS) else None
        bases = [form for form in (before, inside) if form is not None and form != FLOATS]
        after = self._form(tensor, kind, bases, where, producer if direct else maker)
        after.give(tensor)
        self._put(len(self._subgraph.operators), direct or old, tensor, where)
        self._drop_unread(maker, old)
        self._found.exact &= bool(bases) and (after == FLOATS or bases[0].is_within(after))
        return after

    def _form(
        self,
        tensor: Tensor,
        kind: str,
        bases: list[Form],
        where: str,
        maker: Operator | None = None,
    ) -> Form:
        """Returns what a tensor becomes where no conversion goes.

        Args:
            bases: The integers that stand for its values now, those that count first.
            maker: What computes an output.
        """
        if kind == FLOATS.kind:
            return FLOATS
        if bases and _bits(bases[0].kind) <= _bits(kind):
            return bases[0].nested(kind)
        grid = _grid(maker, self._ranges.get(id(tensor)), _bits(kind), self._recipe)
        if grid is not None:
            return Form(grid.dtype, grid.scale, grid.zero_point).nested(kind)
        if bases:
            return bases[0].nested(kind)
        side = where.split(" ", 1)[0]
        raise UnsupportedError(
            f"{where} is float inside, and nothing says its range",
            remedy=f"leave it float: --io-{side} float",
        )

    def _can_go(self, tensor: Tensor, form: Form | None, before: Form, kind: str) -> bool:
        """Whether an integer tensor behind a conversion is what the border is to become, and only there."""
        if form is None or form == FLOATS or form.kind != kind or id(tensor) in self._exposed:
            return False
        return before == FLOATS or form.is_within(before)

    def _take_place(self, gone: Tensor, kept: Tensor) -> None:
        """Puts a tensor in the place of another."""
        for operator in self._subgraph.operators:
            _rewire(operator, gone, kept)
            _replace(operator.outputs, gone, kept)
        self._editor.drop_unread(self._subgraph, gone)
        self._editor.removed()

    def _drop_unread(self, maker: Operator, old: Tensor) -> None:
        """Takes a conversion away where nothing reads what it gives any more."""
        if _converted_to(maker) is not None and not self._readers(old):
            self._editor.remove_operator(self._subgraph, maker, old)
            self._editor.removed()

    def _put(self, at: int, source: Tensor, made: Tensor, where: str) -> None:
        """Puts a conversion at a place among the operators.

        Raises:
            UnsupportedError: There is none of these types.
        """
        pair = source.dtype_name, made.dtype_name
        between = None if self._target.changes(*pair) else self._target.between(*pair)
        if between is not None:
            form = next(item for item in (Form.of(source), Form.of(made)) if item not in (None, FLOATS))
            assert form is not None
            middle = self._like(made, FLOATS if between == FLOATS.kind else form.nested(between))
            self._subgraph.operators.insert(at, type_change(self._editor, middle, made))
            made = middle
        elif not self._target.changes(*pair):
            side = where.split(" ", 1)[0]
            pairs = {
                kind: (TYPES[kind], pair[1]) if side == "input" else (pair[0], TYPES[kind]) for kind in TYPES
            }
            others = ", ".join(
                kind
                for kind, other in pairs.items()
                if self._target.changes(*other) or self._target.between(*other)
            )
            raise UnsupportedError(
                f"{where}: no kernel turns {pair[0].lower()} into {pair[1].lower()}",
                remedy=f"--io-{side} with one of {others}",
            )
        self._subgraph.operators.insert(at, type_change(self._editor, source, made))

    def _like(self, tensor: Tensor, form: Form) -> Tensor:
        suffix = "float" if form == FLOATS else ""
        made = self._editor.add_like(self._subgraph, tensor, form.kind, suffix=suffix)
        form.give(made)
        return made

    def _readers(self, tensor: Tensor) -> list[Operator]:
        return [item for item in self._subgraph.operators if any(one is tensor for one in item.inputs)]

    def _maker(self, tensor: Tensor) -> Operator | None:
        operators = self._subgraph.operators
        return next((item for item in operators if any(one is tensor for one in item.outputs)), None)

    def _at(self, operator: Operator) -> int:
        return next(at for at, item in enumerate(self._subgraph.operators) if item is operator)


def _bits(kind: str) -> int:
    return dtypes.BY_NAME[kind].bits


def _output(operator: Operator) -> Tensor:
    """Returns what a conversion gives."""
    (made,) = operator.outputs
    assert made is not None
    return made


def _converted_to(operator: Operator) -> Form | None:
    """Returns what a QUANTIZE or DEQUANTIZE gives; None of other operators, and of what no kernel takes."""
    is_one = row_of(operator) in (QUANTIZE, DEQUANTIZE) and not wrong_operands(operator)
    return Form.of(_output(operator)) if is_one else None


def _rewire(operator: Operator, old: Tensor, new: Tensor) -> None:
    _replace(operator.inputs, old, new)


def _replace(tensors: list[Tensor | None], old: Tensor, new: Tensor) -> None:
    tensors[:] = [new if item is old else item for item in tensors]
