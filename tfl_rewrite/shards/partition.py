"""Where the main subgraph of a model may be cut into parts that run one after the other, and where it pays.

A part is a stretch of operators in their order. What a stretch takes of those before it crosses the cut; it
is better to cut where few bytes do. Operators that work on constants alone belong to no stretch: each part
has those that it needs. A cut is not possible where something cannot be handed over: a resource, a type that
numpy does not have, or a variable that operators on both sides share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tfl_rewrite.editing.effects import Effects
from tfl_rewrite.editing.shapes import Shapes
from tfl_rewrite.errors import UnsupportedError, UsageError
from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Operator, Tensor

_MOST_PLACES = 600
"""Places that are compared; of more, the best of each stretch."""
_SLACK, _WIDER = 1.5, 1.3
"""How much more than its share a part may hold, so that a better place is near; more where there is none."""
_TENSOR_NBYTES, _OPERATOR_NBYTES = 120, 80
"""What the tables of one take in a file, about."""


@dataclass(slots=True)
class Stretch:
    """A part to be.

    Attributes:
        operators: Numbers of its operators, in order.
        inputs: What it takes: of the caller, or of parts before it.
        outputs: What it gives: to the caller, or to parts behind it.
    """

    operators: list[int]
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


class Partition:
    """The main subgraph of one model, as a line of operators.

    Attributes:
        shapes: What is known of shapes, for the inputs of parts.
        places: Positions in the line before which a cut is possible.
        reasons: Why it is not, at the others.
    """

    def __init__(self, model: Model) -> None:
        self.main = model.subgraphs[0]
        self.shapes = Shapes.of(model)
        self._effects = Effects()
        self._makers = {
            id(tensor): number
            for number, operator in enumerate(self.main.operators)
            for tensor in operator.outputs
            if tensor is not None
        }
        self._folded = self._on_constants()
        self.line = [number for number in range(len(self.main.operators)) if number not in self._folded]
        self._spans = self._lifetimes()
        self.reasons = self._forbidden()
        self.places = [at for at in range(1, len(self.line)) if at not in self.reasons]
        self._crossing = self._bytes_across()

    def _operator(self, at: int) -> Operator:
        return self.main.operators[self.line[at]]

    def _on_constants(self) -> set[int]:
        """Numbers of the operators that compute the same from constants in every call."""
        found: set[int] = set()
        given = set(map(id, self.main.inputs))
        for number, operator in enumerate(self.main.operators):
            inputs = [tensor for tensor in operator.inputs if tensor is not None]
            fixed = all(
                self._makers.get(id(tensor), -1) in found
                or (tensor.is_constant and id(tensor) not in self._makers and id(tensor) not in given)
                for tensor in inputs
            )
            if inputs and fixed and self._effects.of(operator)[0] is SideEffect.NONE:
                found.add(number)
        return found

    def _lifetimes(self) -> dict[int, tuple[Tensor, int, int]]:
        """What an operator of the line makes and a later one reads: the positions of both."""
        spans: dict[int, tuple[Tensor, int, int]] = {}
        made: dict[int, int] = {}
        for at in range(len(self.line)):
            operator = self._operator(at)
            for tensor in operator.inputs:
                if tensor is not None and id(tensor) in made:
                    spans[id(tensor)] = (tensor, made[id(tensor)], at)
            for tensor in operator.outputs:
                if tensor is not None and not tensor.is_variable:
                    made.setdefault(id(tensor), at)
        return spans

    def _forbidden(self) -> dict[int, str]:
        reasons: dict[int, str] = {}

        def keep(first: int, last: int, why: str) -> None:
            for at in range(first + 1, last + 1):
                reasons.setdefault(at, why)

        for tensor, first, last in self._spans.values():
            kind = dtypes.BY_VALUE.get(tensor.dtype)
            if kind is None or (not kind.numpy and kind.name != "STRING"):
                keep(first, last, f"{tensor.name!r} is {tensor.dtype_name}, which cannot be handed over")
        for first, last, why in self._states():
            keep(first, last, why)
        return reasons

    def _states(self) -> Iterable[tuple[int, int, str]]:
        """First and last operator of each state that is kept from call to call."""
        found: dict[object, list[int]] = {}
        said: dict[object, str] = {}
        for at in range(len(self.line)):
            operator = self._operator(at)
            operands = [*operator.inputs, *operator.outputs, *operator.intermediates]
            keys: list[object] = [id(item) for item in operands if item is not None and item.is_variable]
            effect, reason = self._effects.of(operator)
            if not keys and effect is SideEffect.STATE:
                keys = ["resources"]
            for key in keys:
                found.setdefault(key, []).append(at)
                said.setdefault(key, f"{operator.code.name} {reason}")
        for key, places in found.items():
            last = self._operator(places[-1]).code.name
            yield places[0], places[-1], f"{said[key]}, and operators up to {last} share it"

    def nbytes_of(self, tensor: Tensor) -> int:
        """Bytes of a tensor; sizes that are free count as they are declared."""
        known, declared = self.shapes[tensor], tensor.shape or ()
        if known is not None and len(known) != len(declared):
            declared = (1,) * len(known)
        sizes = zip(declared if known is None else known, declared, strict=True)
        shape = [other if size is None else size for size, other in sizes]
        kind = dtypes.BY_VALUE.get(tensor.dtype)
        bits = kind.bits if kind is not None and kind.bits else 64
        return (math.prod(max(1, size) for size in shape) * bits + 7) // 8

    def _bytes_across(self) -> list[int]:
        across = [0] * (len(self.line) + 1)
        for tensor, first, last in self._spans.values():
            nbytes = self.nbytes_of(tensor)
            for at in range(first + 1, last + 1):
                across[at] += nbytes
        return across

    def crossing(self, at: int) -> int:
        """Bytes that cross a cut."""
        return self._crossing[at]

    # -- where to cut --------------------------------------------------------------------------------------

    def at(self, tensors: Sequence[Tensor]) -> list[int]:
        """Returns the places right behind the operators that make some tensors.

        Raises:
            UsageError: None makes it, or it is the last.
            UnsupportedError: A cut is not possible there.
        """
        chosen = set()
        for tensor in tensors:
            number = self._makers.get(id(tensor))
            if number is None or number in self._folded:
                raise UsageError(
                    f"{tensor.name!r} is made by no operator that could end a part",
                    remedy="name what an operator computes",
                )
            at = self.line.index(number) + 1
            if at == len(self.line):
                raise UsageError(f"{tensor.name!r} is made last", remedy="name one that others read")
            if at in self.reasons:
                raise UnsupportedError(
                    f"behind {tensor.name!r} there is no place to cut: {self.reasons[at]}",
                    remedy="cut before or behind all of it",
                )
            chosen.add(at)
        return sorted(chosen)

    def of_count(self, count: int) -> list[int]:
        """Returns the places for so many parts, of about equal size, where fewest bytes cross.

        Raises:
            UnsupportedError: There are too few places.
        """
        self._check(count - 1)
        loads = self._loads()
        limit = _SLACK / count
        places = self._thinned(count)
        while True:
            fits = _Within(loads, limit + 1e-9)
            found = _cheapest(places, len(self.line), self.crossing, fits, loads, count)
            if found is not None:
                return found
            limit *= _WIDER

    def of_size(self, most: int) -> list[int]:
        """Returns the places for parts of at most so many bytes: few, and where few bytes cross.

        Raises:
            UnsupportedError: Operators that belong together are larger.
        """
        places = [0, *self._thinned(len(self.line)), len(self.line)]
        fitting: dict[int, int] = {}
        for number, start in enumerate(places[:-1]):
            seen: dict[int, int] = {}
            reached = start
            for stop in places[number + 1 :]:
                for at in range(reached, stop):
                    self._weigh(self.line[at], seen)
                if sum(seen.values()) > most:
                    break
                fitting[start], reached = stop, stop
            if start not in fitting:
                stop = places[number + 1]
                name = self._operator(start).code.name
                why = self.reasons.get(start + 1, "")
                raise UnsupportedError(
                    f"{name} with what belongs to it takes about {sum(seen.values()):,} bytes, more than "
                    f"{most:,}" + (f" ({why})" if why and stop > start + 1 else ""),
                    remedy="ask for larger parts; 'tfl-rewrite shard' cuts bytes, whatever they are",
                )
        found = _cheapest(
            places[1:-1],
            len(self.line),
            self.crossing,
            lambda start, stop: stop <= fitting.get(start, 0),
            self._loads(),
            None,
        )
        assert found is not None
        return found

    def _check(self, wanted: int) -> None:
        if len(self.places) >= wanted:
            return
        operators = "1 operator" if len(self.line) == 1 else f"{len(self.line)} operators"
        told = f": {next(iter(self.reasons.values()), f'it has {operators}')}"
        places = "1 place" if len(self.places) == 1 else f"{len(self.places)} places"
        raise UnsupportedError(
            f"the main subgraph can be cut at {places}, not at {wanted}{told}",
            remedy="ask for fewer parts" if self.places else "it stays whole",
        )

    def _loads(self) -> list[float]:
        """Sums over the line: of constants and of operators, half each."""
        seen: dict[int, int] = {}
        totals = [0]
        for number in self.line:
            self._weigh(number, seen)
            totals.append(sum(seen.values()))
        whole, count = max(1, totals[-1]), max(1, len(self.line))
        return [0.5 * total / whole + 0.5 * at / count for at, total in enumerate(totals)]

    def _weigh(self, number: int, seen: dict[int, int]) -> None:
        """Adds what an operator needs in a file, by identity."""
        for each in (*self._needs(number), number):
            operator = self.main.operators[each]
            seen[id(operator)] = _OPERATOR_NBYTES
            for tensor in [*operator.inputs, *operator.outputs, *operator.intermediates]:
                if tensor is not None:
                    seen[id(tensor)] = _TENSOR_NBYTES + len(tensor.name)
                    seen[id(tensor.buffer)] = tensor.buffer.nbytes

    def _needs(self, number: int) -> list[int]:
        """Numbers of the operators on constants that an operator needs, in order."""
        found: set[int] = set()
        waiting = [number]
        while waiting:
            for tensor in self.main.operators[waiting.pop()].inputs:
                maker = self._makers.get(id(tensor))
                if maker in self._folded and maker not in found:
                    found.add(maker)
                    waiting.append(maker)
        return sorted(found)

    def _thinned(self, count: int) -> list[int]:
        """The places, or of very many the best of each stretch."""
        if len(self.places) <= _MOST_PLACES:
            return list(self.places)
        step = -(-len(self.places) // max(_MOST_PLACES, 2 * min(count, _MOST_PLACES)))
        groups = (self.places[at : at + step] for at in range(0, len(self.places), step))
        return [min(group, key=self.crossing) for group in groups]

    # -- the parts -----------------------------------------------------------------------------------------

    def stretches(self, cuts: Sequence[int]) -> list[Stretch]:
        """Returns the parts between some cuts; their outputs are what others or the caller take of them."""
        bounds = [0, *cuts, len(self.line)]
        made: list[Stretch] = []
        owner: dict[int, int] = {}
        given = set(map(id, self.main.inputs))
        wanted = {id(tensor) for tensor in self.main.outputs}
        for start, stop in itertools.pairwise(bounds):
            own = self.line[start:stop]
            last = stop == len(self.line)
            needed = {each for number in own for each in self._needs(number)}
            # What the caller gets of constants alone comes with the last part.
            ends = [self._makers[key] for key in wanted if last and self._makers.get(key) in self._folded]
            needed |= {each for number in ends for each in (*self._needs(number), number)}
            part = Stretch(sorted({*own, *needed}))
            inside: dict[int, Tensor] = {}
            for number in part.operators:
                operator = self.main.operators[number]
                for tensor in operator.inputs:
                    if tensor is None or id(tensor) in inside or tensor.is_variable:
                        continue
                    if id(tensor) in given or id(tensor) in owner:
                        inside[id(tensor)] = tensor
                        part.inputs.append(tensor)
                for tensor in operator.outputs:
                    if tensor is not None:
                        inside[id(tensor)] = tensor
            for number in own:
                for tensor in self.main.operators[number].outputs:
                    if tensor is not None and not tensor.is_variable:
                        owner[id(tensor)] = len(made)
            made.append(part)
        self._give_out(made, owner, wanted)
        return made

    def _give_out(self, made: Sequence[Stretch], owner: dict[int, int], wanted: set[int]) -> None:
        taken = wanted | {id(tensor) for part in made for tensor in part.inputs}
        for number, part in enumerate(made):
            seen: set[int] = set()
            for each in part.operators:
                for tensor in self.main.operators[each].outputs:
                    if tensor is None or id(tensor) in seen or id(tensor) not in taken:
                        continue
                    folded = each in self._folded
                    if owner.get(id(tensor)) == number or (folded and number == len(made) - 1):
                        seen.add(id(tensor))
                        part.outputs.append(tensor)
        given = set(map(id, self.main.inputs))
        stored = {
            id(item): item
            for item in self.main.outputs
            if id(item) not in self._makers and id(item) not in given
        }
        made[-1].outputs += stored.values()


@dataclass(frozen=True, slots=True)
class _Within:
    """Whether a part holds no more than a share."""

    loads: Sequence[float]
    limit: float

    def __call__(self, start: int, stop: int) -> bool:
        return self.loads[stop] - self.loads[start] <= self.limit


def _cheapest(
    places: Sequence[int],
    end: int,
    cost: Callable[[int], int],
    fits: Callable[[int, int], bool],
    loads: Sequence[float],
    count: int | None,
) -> list[int] | None:
    """Returns the cuts that cost least; None where parts that fit do not come to the end.

    Args:
        places: Where cuts are possible.
        end: Behind the last operator.
        cost: Of a cut.
        fits: Whether a part from one place to another may be; of longer parts than one that does not, none.
        loads: Sums over the line of what parts hold; of cuts that cost the same, those with more equal parts.
        count: How many parts; None for as few as possible.
    """
    points = [0, *places, end]
    # For each number of parts and each point: what it costs to come there, and from where.
    best: list[dict[int, tuple[tuple[int, float], int]]] = [{0: ((0, 0.0), -1)}]
    while count is None or len(best) <= count:
        reached: dict[int, tuple[tuple[int, float], int]] = {}
        for number, start in enumerate(points):
            if start not in best[-1]:
                continue
            spent = best[-1][start][0]
            for stop in points[number + 1 :]:
                if not fits(start, stop):
                    break
                uneven = spent[1] + (loads[stop] - loads[start]) ** 2
                total = spent[0] + (0 if stop == end else cost(stop)), uneven
                if stop not in reached or total < reached[stop][0]:
                    reached[stop] = (total, start)
        best.append(reached)
        if not reached or (count is None and end in reached):
            break
    if end not in best[-1] or (count is not None and len(best) != count + 1):
        return None
    cuts, at = [], end
    for level in reversed(best[1:]):
        at = level[at][1]
        cuts.append(at)
    return sorted(cuts)[1:]
