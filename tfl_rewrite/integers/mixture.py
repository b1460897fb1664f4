"""Which scale groups have 16 bits, or stay float: what that costs, and what each adds to the noise otherwise.

The unit is the scale group, the tensors that are bound to one scale, not the operator: the integers of a
tensor are as fine as the narrowest operator that makes or reads it. Where a group has 16 bits, all operators
that make or read it compute with 16; where one of those reads or makes a group of 8 bits as well, a QUANTIZE
stands between. So it is with floats.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field

import numpy as np

from tfl_rewrite.errors import UsageError, near_names
from tfl_rewrite.integers.groups import Grid
from tfl_rewrite.integers.modes import Range, float_inputs, float_outputs
from tfl_rewrite.integers.plan import IntegerPlan, Wanted
from tfl_rewrite.integers.recipe import Recipe
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, Tensor
from tfl_rewrite.numerics import knapsack
from tfl_rewrite.numerics.knapsack import Float64
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.options.patterns import Budget, Pattern, compile_all
from tfl_rewrite.weights.rounders import Work

_NAMED = 5
"""Names beside the slip."""


class Computes(str, enum.Enum):
    """What an operator computes in: activations of so many bits, integer weights alone, or floats."""

    INT8 = "int8"
    INT16 = "int16"
    HYBRID = "hybrid"
    FLOAT = "float"

    @property
    def width(self) -> int | None:
        """Bits of activations; None where they stay float."""
        return {Computes.INT8: 8, Computes.INT16: 16}.get(self)


@frozen
class Rule:
    """Operators that match compute so."""

    match: Pattern
    computes: Computes


def parse_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Reads rules of the form ``REGEX=int8|int16|hybrid|float``; the expression may hold the sign, too.

    Raises:
        UsageError: One is not of that form, or holds no expression.
    """
    budget, rules = Budget(), list[Rule]()
    known = [item.value for item in Computes]
    for text in texts:
        match, sign, word = text.rpartition("=")
        if not sign or not match or word not in known:
            raise UsageError(
                f"rule {text[:80]!r} is not REGEX={'|'.join(known)}", remedy="write such as 'CONV.*=int16'"
            )
        rules.append(Rule(Pattern.compile(match, budget), Computes(word)))
    return tuple(rules)


@frozen
class Choice:
    """What a user wants.

    Attributes:
        default: Of what no rule says anything about.
        rules: In order; the last that matches decides.
        include: If there are any, what matches none stays float.
        exclude: What matches one stays float, whatever else is said.
    """

    default: Computes
    rules: tuple[Rule, ...] = ()
    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()

    @classmethod
    def parse(
        cls, default: Computes, rules: Sequence[str], include: Sequence[str], exclude: Sequence[str]
    ) -> Choice:
        """Makes one of texts.

        Raises:
            UsageError: One is no rule, or no regular expression.
        """
        return cls(default, parse_rules(rules), compile_all(include), compile_all(exclude))

    def of(self, operator: Operator) -> Computes:
        """Returns what an operator is to compute in."""
        words = _words(operator)
        if _found(words, self.exclude) or (self.include and not _found(words, self.include)):
            return Computes.FLOAT
        return self.ruled(operator) or self.default

    def width(self, operator: Operator) -> int | None:
        """Returns the bits of activations that an operator should have; None for floats."""
        return self.of(operator).width

    def ruled(self, operator: Operator) -> Computes | None:
        """Returns what the last rule says that matches an operator; None where none does."""
        words = _words(operator)
        rules = reversed(self.rules)
        return next((rule.computes for rule in rules if _found(words, [rule.match])), None)

    def check(self, model: Model) -> None:
        """Checks that every rule matches something.

        Raises:
            UsageError: One does not; names what is spelled alike.
        """
        words = sorted({word for _, operator in model.operators() for word in _words(operator) if word})
        for rule in self.rules:
            if words and not _found(words, [rule.match]):
                near = near_names(rule.match.pattern, words, cutoff=0.4) or words[:_NAMED]
                raise UsageError(
                    f"--map: rule {rule.match.pattern!r} matches no operator type and no name of an output",
                    remedy=f"near it are {', '.join(near[:_NAMED])}",
                )


def _words(operator: Operator) -> list[str]:
    return [operator.code.name, *(tensor.name for tensor in operator.outputs if tensor is not None)]


def _found(words: Sequence[str], patterns: Iterable[Pattern]) -> bool:
    return any(pattern.search(word) for pattern in patterns for word in words)


CONVERSION_NBYTES = 200
"""Of a QUANTIZE with its tensor, its name and its quantization, about."""
OPERATOR_NBYTES = 200
"""Of any other one, likewise."""

PRODUCT_NS = {8: 0.01, 16: 0.6, None: 0.03}
"""Of one product of a weight, one thread, XNNPACK, which has kernels for 8 bits and floats. Measured on
ai-edge-litert 2.3 with convolutions, depthwise ones and matrices: 0.005 to 0.07, and 0.3 to 1.8; floats on
whole models: 0.02 to 0.06."""
ELEMENT_NS = {8: 0.2, 16: 2.5, None: 0.3}
"""Of one element that an operator without weights gives out; measured likewise: 0.1 to 3, and 1 to 6."""
CONVERSION_NS = 1.0
"""Of one element that a QUANTIZE gives out."""

FLOATS_PRICE = 4.0
"""Of floats everywhere, beside bytes and time: small models would be cheapest without integers, which were
asked for."""


@slotted(eq=False)
class Unit:
    """A scale group that can be narrow or wide.

    Attributes:
        tensors: With the grid that each has where it is narrow.
        operators: Those that make or read it in integers.
    """

    tensors: dict[int, tuple[Tensor, Grid]] = field(default_factory=dict)
    operators: dict[int, Operator] = field(default_factory=dict)

    @property
    def grids(self) -> dict[int, Grid]:
        """The grids where it is narrow, by id of the tensor."""
        return {key: grid for key, (_, grid) in self.tensors.items()}


class Mixture:
    """The scale groups of a model, each narrow or wide: with 8 bits or 16, or with integers or floats.

    Args:
        model: With float weights; not changed.
        choice: What the user wants; operators of which a rule says something have what it says.
        ranges: By id, of float tensors and constants.
        recipe: How much wider than those grids are.
        target: What computes the file.
        wide: The bits of what is wide; None for floats.

    Attributes:
        model: See above.
        units: The groups among which there is a choice.
        narrow: The bits of what is narrow.
        wide: See above.
    """

    def __init__(
        self,
        model: Model,
        choice: Choice,
        ranges: Mapping[int, Range],
        recipe: Recipe | None = None,
        *,
        target: Target = Target.LITERT,
        wide: int | None = 16,
    ) -> None:
        self._target = target
        self.model = model
        self.narrow, self.wide = choice.default.width or 8, wide
        self._ranges = ranges
        self._recipe = recipe
        self._ruled: dict[int, int | None] = {}
        for _, operator in model.operators():
            computes = choice.of(operator)
            if computes is not choice.default or choice.ruled(operator) is not None:
                self._ruled[id(operator)] = computes.width
        narrow, widest = self.plan(()), IntegerPlan(model, self._widest, ranges, recipe, target=target)
        self._fixed = {
            id(operator)
            for _, operator in model.operators()
            if narrow.modes.width(operator) and widest.modes.width(operator) != wide
        }
        found = _units(narrow)
        self.units = [unit for unit in found if self._has_choice(unit, widest)]
        self._prices = _Prices(model, narrow, self.narrow)

    def wanted(self, wide: Collection[Unit]) -> Wanted:
        """Returns the bits of each operator where some groups are wide."""
        touched = {key for unit in wide for key in unit.operators}

        def bits(operator: Operator) -> int | None:
            if id(operator) in self._ruled:
                return self._ruled[id(operator)]
            return self.wide if id(operator) in touched else self.narrow

        return bits

    def plan(self, wide: Collection[Unit], ranges: Mapping[int, Range] | None = None) -> IntegerPlan:
        """Returns the plan where some groups are wide, for other ranges where there are any."""
        held = self._ranges if ranges is None else ranges
        return IntegerPlan(self.model, self.wanted(wide), held, self._recipe, target=self._target)

    def share(self, wide: Collection[Unit]) -> float:
        """Returns the share of operators in integers that are wide."""
        bits = self.wanted(wide)
        widths = [bits(operator) for operator in self._prices.operators]
        return widths.count(self.wide) / max(1, len(widths))

    def price(self, wide: Collection[Unit]) -> float:
        """Returns bytes and time over those where nothing is wide, added; floats cost besides."""
        floats = FLOATS_PRICE * self.share(wide) if self.wide is None else 0.0
        return floats + self._prices.of(self.wanted(wide))

    def cheapest(self, noises: Float64, allowed: float) -> list[Unit]:
        """Returns the groups that are wide, so that the others' noises add up to what is allowed at most.

        Args:
            noises: ``[units, outputs]``, of each where it alone is narrow.
            allowed: For every output.
        """
        if not self.units:
            return []
        table = np.stack([np.zeros_like(noises), noises], axis=1)
        picked = knapsack.solve(self._costs, table, allowed)
        wide = {number for number, option in enumerate(picked) if not option}
        return [self.units[number] for number in sorted(self._polished(wide, noises, allowed))]

    @functools.cached_property
    def _costs(self) -> Float64:
        """``[units, 2]``: what each costs where it alone is wide, and narrow."""
        none = self.price(())
        return np.array([[self.price([unit]) - none, 0.0] for unit in self.units])

    def _polished(self, wide: set[int], noises: Float64, allowed: float) -> set[int]:
        """Changes groups one by one while that is cheaper: neighbours of one width need no conversion."""
        order = [int(number) for number in np.argsort(noises.max(axis=1))]
        now, before = self._priced(wide), float("inf")
        while now < before * (1 - 1e-9):
            before = now
            for number in order:
                flipped = wide ^ {number}
                noise = noises.sum(axis=0) - noises[sorted(flipped)].sum(axis=0)
                if number in wide and noise.max(initial=0.0) > allowed:
                    continue
                price = self._priced(flipped)
                if price < now:
                    now, wide = price, flipped
        return wide

    def _priced(self, numbers: Collection[int]) -> float:
        return self.price([self.units[number] for number in numbers])

    def _widest(self, operator: Operator) -> int | None:
        return self._ruled.get(id(operator), self.wide)

    def _has_choice(self, unit: Unit, widest: IntegerPlan) -> bool:
        if any(key in self._fixed for key in unit.operators):
            return False
        if all(key in self._ruled for key in unit.operators):
            return False
        # Slopes have 8 bits beside 16, too.
        return self.wide is None or all(
            widest.modes.input_width(operator, position) == self.wide
            for operator in unit.operators.values()
            for position, tensor in float_inputs(operator)
            if id(tensor) in unit.tensors
        )


def _units(plan: IntegerPlan) -> list[Unit]:
    """Returns the scale groups; forms of one tensor on several grids count as one."""
    parents: dict[int, int] = {}

    def root(key: int) -> int:
        while parents.setdefault(key, key) != key:
            key = parents[key]
        return key

    touched: list[tuple[Operator, Tensor, Grid]] = []
    for subgraph in plan.subgraphs:
        groups = plan.groups_of(subgraph)
        for operator in subgraph.operators:
            for form, grid in groups.forms_of(operator) if plan.modes.width(operator) else ():
                parents[root(id(form.group()))] = root(id(form.tensor))
                touched.append((operator, form.tensor, grid))
    units: dict[int, Unit] = {}
    for operator, tensor, grid in touched:
        unit = units.setdefault(root(id(tensor)), Unit())
        unit.operators[id(operator)] = operator
        # What an operator gives is rounded there: it comes before what others make of it.
        unit.tensors.setdefault(id(tensor), (tensor, grid))
    return list(units.values())


class _Prices:
    """What a model takes in bytes and time, estimated."""

    def __init__(self, model: Model, plan: IntegerPlan, narrow: int) -> None:
        graph = Graph.of(model)
        works = {key: work for (key, _), work in plan.works().items()}
        self._operators: list[tuple[Operator, dict[int | None, tuple[float, float]]]] = []
        self._tensors: dict[int, tuple[Operator | None, list[Operator | None], int]] = {}
        for subgraph in plan.subgraphs:
            for operator in subgraph.operators:
                if plan.modes.width(operator):
                    sizes = _sizes(operator, works.get(id(operator)), graph)
                    self._operators.append((operator, sizes))
            mine = {id(operator): operator for operator in subgraph.operators if plan.modes.width(operator)}
            for tensor in subgraph.tensors:
                readers = [mine.get(id(use.operator)) for use in graph.uses_of(tensor)]
                readers += [None] if id(tensor) in graph.exposed else []
                maker = graph.maker_of(tensor)
                made = mine.get(id(maker)) if maker is not None else None
                if not graph.is_constant(tensor) and (made is not None or any(readers)):
                    self._tensors[id(tensor)] = made, readers, tensor.elements
        self._least = self._sums(lambda _: narrow)

    @property
    def operators(self) -> list[Operator]:
        """Those in integers."""
        return [operator for operator, _ in self._operators]

    def of(self, wanted: Wanted) -> float:
        """Returns bytes and time over those where nothing is wide, added."""
        return sum(one / max(least, 1.0) for one, least in zip(self._sums(wanted), self._least, strict=True))

    def _sums(self, wanted: Wanted) -> tuple[float, float]:
        widths = {id(operator): wanted(operator) for operator, _ in self._operators}
        nbytes = nanoseconds = 0.0
        for operator, sizes in self._operators:
            one, other = sizes[widths[id(operator)]]
            nbytes, nanoseconds = nbytes + one, nanoseconds + other
        for maker, readers, elements in self._tensors.values():
            forms = {None if reader is None else widths[id(reader)] for reader in readers}
            others = len(forms - {None if maker is None else widths[id(maker)]})
            nbytes += others * CONVERSION_NBYTES
            nanoseconds += others * elements * CONVERSION_NS
        return nbytes, nanoseconds


def _sizes(operator: Operator, work: Work | None, graph: Graph) -> dict[int | None, tuple[float, float]]:
    """Returns bytes and nanoseconds of an operator with its constants, by width."""
    given = sum(tensor.elements for tensor in float_outputs(operator))
    if work is not None:
        channels = work.channels
        products = given * channels.elements // channels.channels
        # Weights and their scales, and biases of 32 bits or 64; floats have a bias alone.
        nbytes = {
            8: channels.elements + 8 * channels.channels,
            16: channels.elements + 12 * channels.channels,
            None: 4 * (channels.elements + channels.channels),
        }
        return {width: (OPERATOR_NBYTES + nbytes[width], products * PRODUCT_NS[width]) for width in nbytes}
    values = sum(tensor.elements for _, tensor in float_inputs(operator) if graph.is_constant(tensor))
    return {
        width: (OPERATOR_NBYTES + (width or 32) // 8 * values, given * ELEMENT_NS[width])
        for width in ELEMENT_NS
    }
