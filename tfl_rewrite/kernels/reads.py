"""How operators read integer weights beside float activations, and which versions what they use needs.

Read by the pass that repairs files and by whoever reports on them, so that both mean the same. What TFLite
Micro refuses is told in the same terms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operands import (
    constant_values,
    grouped,
    input_of,
    is_blockwise,
    operators_of,
    scales_of,
    zero_points_of,
)
from tfl_rewrite.kernels.operators import Form, Granularity, Need, OperatorRow
from tfl_rewrite.kernels.runtimes import Runtime, Terms
from tfl_rewrite.kernels.table import FLOAT_CUSTOM, MAIN_ONLY, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Operator, OperatorCode, SubGraph, Tensor
from tfl_rewrite.options.frozen import frozen

EQUAL_SCALES_FROM: Runtime = (2, 15)
"""Runtimes before it may read per-channel scales that are all equal as 0: 2.14 does
(:attr:`Need.SCALES_DIFFER`, measured), 2.3 does not; none between was measured."""

INTEGER_WEIGHTS = ("INT8", "UINT8", "INT4", "INT2")
"""Types that a hybrid kernel may meet as a weight."""


@frozen
class WeightRead:
    """One integer constant that a hybrid kernel reads.

    Attributes:
        place: ``subgraphs[i].operators[j]``.
    """

    subgraph: SubGraph
    operator: Operator
    position: int
    weight: Tensor
    row: OperatorRow
    place: str

    @property
    def name(self) -> str:
        """The operator's type."""
        return self.operator.code.name

    @property
    def blockwise(self) -> bool:
        """Whether the scales are a tensor, one scale for each block of a row."""
        return is_blockwise(self.weight)

    @property
    def scales(self) -> list[float]:
        """The scales; none for a blockwise weight."""
        return scales_of(self.weight)

    @property
    def granularity(self) -> Granularity:
        """One scale, or one for each channel."""
        return Granularity.CHANNEL if len(self.scales) > 1 else Granularity.TENSOR

    @property
    def four_bit_kernel(self) -> bool:
        """Whether it is a matrix that the operator has read right since it knows int4."""
        shape, least = self.weight.shape or (), self.row.four_bit_from
        if least is None or self.weight.dtype_name != "INT4" or self.blockwise:
            return False
        large = len(shape) == 2 and shape[0] >= least[0] and shape[1] >= least[1]
        return large and shape[1] % 2 == 0

    @property
    def whole_forms(self) -> list[Form]:
        """The forms of int8 weights with as many scales."""
        forms = self.row.forms_for(runtimes.NEWEST_RUNTIME, by_default=False)
        return [form for form in forms if form.granularity is self.granularity]

    def needed_version(self) -> int:
        """Returns the least operator version that keeps runtimes away which would misread the weight.

        0 where the rows know no form of this kind.
        """
        packed = self.row.stamps.get(self.weight.dtype_name, 0)
        if self.blockwise:
            return self.row.blockwise_stamp
        if self.four_bit_kernel:
            return packed
        if self.weight.dtype_name == "UINT8":
            # From before int8: its kernels had versions of their own.
            return 0
        # Whether inputs are rounded asymmetrically changes the version too, but nothing is misread for it.
        return max(packed, min((form.version for form in self.whole_forms), default=0))

    @property
    def form(self) -> str:
        """The form of the weight in words."""
        kind = "blockwise" if self.blockwise else f"per-{self.granularity.value}"
        return f"{kind} {self.weight.dtype_name.lower()} weight"

    def first_runtime(self) -> Runtime:
        """Returns the first runtime whose kernel computes this form right; ``(0, 0)`` if unknown."""
        if self.weight.dtype_name == "UINT8":
            return (0, 0)
        if self.weight.dtype_name == "INT8" and not self.blockwise:
            first = min((form.first_runtime for form in self.whole_forms), default=(0, 0))
            return max(first, EQUAL_SCALES_FROM) if scales_equal(self) else first
        if self.four_bit_kernel:
            text = runtimes.version_text(self.name, self.needed_version())
            return runtimes.runtime_of(text) if text is not None else (0, 0)
        granularity = Granularity.BLOCK if self.blockwise else self.granularity
        forms = self.row.forms_for(runtimes.NEWEST_RUNTIME, self.weight.dtype_name, by_default=False)
        return min((form.first_runtime for form in forms if form.granularity is granularity), default=(0, 0))


def version_counts(model: Model) -> Counter[tuple[str, int]]:
    """Returns how many operators of each builtin type and version a model has, in the order of the first."""
    return Counter(
        (operator.code.name, operator.code.version)
        for _, operator in model.operators()
        if operator.code.custom is None
    )


def late_releases(model: Model) -> set[str]:
    """Returns the releases that operators need for what older ones refuse, although they have the version."""
    rules = runtimes.taken_from()
    return {
        first
        for _, operator in model.operators()
        for name, first, terms in rules
        if operator.code.name == name and refused(operator, (terms,)) is not None
    }


def weight_reads(model: Model) -> Iterator[WeightRead]:
    """Yields every integer constant that an operator reads as a weight beside float activations."""
    for subgraph, operator, place in operators_of(model):
        yield from reads_of(subgraph, operator, place)


def reads_of(subgraph: SubGraph, operator: Operator, place: str = "") -> Iterator[WeightRead]:
    """Yields the integer constants that one operator reads as weights beside float activations."""
    row = row_of(operator)
    if not row.weights or not _computes_in_float(operator, row):
        return
    for position in row.weights:
        weight = input_of(operator, position)
        if weight is not None and weight.is_constant and weight.dtype_name in INTEGER_WEIGHTS:
            yield WeightRead(subgraph, operator, position, weight, row, place)


def lacks_bias(operator: Operator) -> bool:
    """Whether a convolution in floats has no bias, which its kernel demands (:attr:`Need.FLOAT_BIAS`)."""
    row = row_of(operator)
    if Need.FLOAT_BIAS not in row.needs or not _computes_in_float(operator, row):
        return False
    return input_of(operator, row.biases[0]) is None


def scales_equal(read: WeightRead) -> bool:
    """Whether per-channel scales break :attr:`Need.SCALES_DIFFER`."""
    if not any(Need.SCALES_DIFFER in form.needs for form in read.row.forms):
        return False
    scales = read.scales
    activation = input_of(read.operator, read.row.activation)
    known = activation is not None and activation.shape and read.weight.shape
    return len(scales) > 1 and len(set(scales)) == 1 and not (known and grouped(read.operator))


def _computes_in_float(operator: Operator, row: OperatorRow) -> bool:
    activation = input_of(operator, row.activation)
    if row.activation is not None and (activation is None or activation.dtype != dtypes.FLOAT32.value):
        return False
    return bool(operator.outputs) and all(
        tensor is not None and tensor.dtype == dtypes.FLOAT32.value for tensor in operator.outputs
    )


@frozen
class TooHigh:
    """An operator code whose version keeps runtimes away that have all that its operators use.

    Attributes:
        places: Of its operators.
        needed: The version that they need.
    """

    code: OperatorCode
    operators: tuple[Operator, ...]
    places: tuple[str, ...]
    needed: int


def needed_version(operator: Operator) -> int | None:
    """Returns the lowest version whose contract covers what a builtin operator uses, or None if unknown.

    Of a weight that a hybrid kernel reads, :class:`~tfl_rewrite.kernels.reads.WeightRead` knows more.
    """
    if operator.code.custom is not None or any(
        tensor is not None and is_blockwise(tensor) for tensor in operator.inputs
    ):
        # Blocks have no version of their own (blockwise_stamp), so what a file says of them stays.
        return None
    met = [
        version
        for version, (_, rules) in runtimes.versions().get(operator.code.name, {}).items()
        if any(all(_holds(term, operator) for term in terms) for terms in rules)
    ]
    return max(met, default=1)


def first_version_with(row: OperatorRow, option: str) -> int | None:
    """Returns the first version of an operator that reads an option, or None where none is known to."""
    return next(
        (
            version
            for version, (_, rules) in runtimes.versions().get(row.name, {}).items()
            if any(f"={option}" in terms for terms in rules)
        ),
        None,
    )


def too_high(model: Model) -> Iterator[TooHigh]:
    """Yields operator codes of a higher version than any of their operators needs.

    A code that one operator needs is right for all that share it: converters write one for each kind.
    """
    weights: dict[int, int] = {}
    for read in weight_reads(model):
        key = id(read.operator)
        weights[key] = max(weights.get(key, 1), read.needed_version())
    groups: dict[int, list[tuple[Operator, str]]] = {}
    for _, operator, place in operators_of(model):
        groups.setdefault(id(operator.code), []).append((operator, place))
    for group in groups.values():
        code = group[0][0].code
        each = [needed_version(operator) for operator, _ in group] if code.version > 1 else [None]
        if None in each:
            continue
        known = [weights.get(id(operator), 1) for operator, _ in group]
        needed = max(*(item for item in each if item is not None), *known)
        if needed < code.version and _is_later(code.name, code.version, needed):
            yield TooHigh(
                code, tuple(operator for operator, _ in group), tuple(place for _, place in group), needed
            )


_OLDEST = (1, 14)
"""Runtimes up to this one count as one: nobody meets an older one."""


def _is_later(name: str, version: int, than: int) -> bool:
    """Whether a version came with a later runtime than another; one that no runtime has came after all."""
    first = runtimes.version_text(name, than)
    if first is None:
        return False
    found = runtimes.version_text(name, version)
    if found is None:
        return version > runtimes.max_version(name, runtimes.NEWEST_RUNTIME)
    return runtimes.runtime_of(found) > max(_OLDEST, runtimes.runtime_of(first))


def _holds(term: str, operator: Operator) -> bool:
    if term.startswith("!"):
        return not _holds(term[1:], operator)
    if term.startswith("="):
        return _is_set(operator, term[1:])
    subject, colon, test = term.partition(":")
    if not colon:
        return WORDS[term](operator)
    return any(_passes(tensor, test) for tensor in _operands(operator, subject))


def _operands(operator: Operator, subject: str) -> list[Tensor | None]:
    if subject == "any":
        return [*operator.inputs, *operator.outputs]
    items = operator.outputs if subject.startswith("out") else operator.inputs
    position = int(subject.removeprefix("out") or 0)
    return items[position : position + 1]


def _passes(tensor: Tensor | None, test: str) -> bool:
    if tensor is None:
        return False
    word, sign, number = test.partition(">") if ">" in test else test.partition("=")
    if word == "rank":
        rank = len(tensor.shape or ())
        return rank > int(number) if sign == ">" else rank == int(number)
    if test in TESTS:
        return TESTS[test](tensor)
    return tensor.dtype_name in test.split("|")


def _is_set(operator: Operator, name: str) -> bool:
    """Whether an option is not what it is by default."""
    options = operator.options
    if options is None or name not in options.spec.by_name:
        return False
    value: Any = options.get(name)
    return bool(value != options.spec.by_name[name].default)


def _broadcasts(operator: Operator) -> bool:
    return len(operator.inputs) > 1 and _shape(operator.inputs[0]) != _shape(operator.inputs[1])


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tensor.shape


def _rescaled(operator: Operator) -> bool:
    """Whether a product of scales is not below the scale of the output."""
    tensors = [*operator.inputs[:2], *operator.outputs[:1]]
    scales = [scales_of(tensor)[:1] if tensor is not None else [] for tensor in tensors]
    if len(scales) < 3 or not all(scales) or not all(scale[0] for scale in scales):
        return False
    return scales[0][0] * scales[1][0] / scales[2][0] >= 1


@frozen
class MicroObstacle:
    """Something that TFLite Micro refuses, or silently gets wrong.

    Attributes:
        place: ``subgraphs[i].operators[j]``, or an input of a subgraph.
        operator: Its type; empty for an input.
        reason: What is the matter, to stand alone.
        custom: Whether it is a custom operator, whose kernel a program may bring itself.
    """

    place: str
    operator: str
    reason: str
    custom: bool = False


def micro_obstacles(model: Model, *, typed: bool = True) -> Iterator[MicroObstacle]:
    """Yields what TFLite Micro does not compute as LiteRT does; see :func:`micro_obstacle`."""
    run = _run_by_main(model)
    for subgraph, operator, place in operators_of(model):
        reason = micro_obstacle(operator, typed=typed)
        if not reason and row_of(operator) in MAIN_ONLY and id(subgraph) not in run:
            reason = (
                f"TFLite Micro ends on {operator.code.name} in a subgraph that the main one does not run "
                "('tfl-rewrite signatures --extract KEY' makes a file of one)"
            )
        if reason:
            yield MicroObstacle(place, operator.code.name, reason, operator.code.custom is not None)
    for index, subgraph in enumerate(model.subgraphs):
        for tensor in subgraph.inputs:
            if not _is_static(tensor):
                told = f"input {tensor.name!r} has no fixed shape"
                yield MicroObstacle(f"subgraphs[{index}]", "", told)


def _run_by_main(model: Model) -> set[int]:
    """Returns the ids of the main subgraph, and of those that it runs."""
    waiting, found = model.subgraphs[:1], set[int]()
    while waiting:
        subgraph = waiting.pop()
        if id(subgraph) not in found:
            found.add(id(subgraph))
            waiting += [inner for operator in subgraph.operators for inner in operator.subgraphs()]
    return found


def micro_obstacle(operator: Operator, *, typed: bool = True) -> str:
    """Returns why TFLite Micro does not compute an operator as LiteRT does; empty where it does.

    Args:
        operator: As it is.
        typed: Whether its floats are to stay, and not to become integers yet.
    """
    name = operator.code.name
    if operator.code.custom is not None:
        return _custom_obstacle(operator, name)
    kernel = row_of(operator).micro
    if kernel is None:
        return f"TFLite Micro has no {name}"
    tensors = [tensor for tensor in (*operator.inputs, *operator.outputs) if tensor is not None]
    typed = typed or all(tensor.dtype_name != "FLOAT32" for tensor in tensors)
    if any(tensor.is_sparse or tensor.external is not None for tensor in tensors):
        return f"a constant of {name} is sparse, or lies in a file beside the model"
    if not all(map(_is_static, operator.outputs)):
        return f"an output of {name} has no fixed shape"
    if any(tensor.dtype_name == "STRING" for tensor in tensors):
        # Its memory is planned by the size of an element (TfLiteTypeSizeOf, micro_utils.cc).
        return f"TFLite Micro has no {name} of strings"
    if typed and kernel.data and not _holds(kernel.data, operator):
        position = kernel.data.partition(":")[0]
        found = ", ".join(item.dtype_name.lower() for item in _operands(operator, position) if item)
        return f"TFLite Micro has no {name} of {found or 'nothing'}"
    for rule in kernel.refuses:
        if (typed or not _is_typed(rule)) and all(_holds(term, operator) for term in rule):
            return f"TFLite Micro has no {name} {_told(rule)}"
    return ""


def _custom_obstacle(operator: Operator, name: str) -> str:
    if name not in runtimes.micro_customs():
        return f"TFLite Micro has no custom operator {name}"
    if name in FLOAT_CUSTOM:
        # Measured: it fails on integers (detection_postprocess.cc), and writes past what has no room for it.
        kinds = {item.dtype_name.lower() for item in operator.inputs if item is not None} - {"float32"}
        if kinds:
            return f"TFLite Micro has no {name} of {', '.join(sorted(kinds))}"
        if not all(item is None or item.shape for item in operator.outputs):
            return f"the file records no shape of an output of {name}, which TFLite Micro believes"
    return ""


def refused(operator: Operator, rules: Iterable[Terms]) -> str | None:
    """Returns what of some rules holds for an operator, in words that follow its name; None for none."""
    for rule in rules:
        if all(_holds(term, operator) for term in rule):
            return _told(rule)
    return None


def micro_refuses(operator: Operator, kind: str) -> str:
    """Returns why TFLite Micro does not compute an operator once its real values are of an integer type.

    Args:
        operator: In floats.
        kind: Name in ``TensorType``.
    """
    kernel = row_of(operator).micro
    for rule in kernel.refuses if kernel is not None else ():
        others = [term for term in rule if not _is_typed((term,))]
        kinds = [set(term.partition(":")[2].split("|")) for term in rule if term not in others]
        mine = bool(others and kinds) and all(kind in item for item in kinds)
        if mine and all(_holds(term, operator) for term in others):
            return f"TFLite Micro has no {operator.code.name} {_told(rule)}"
    return ""


def _is_static(tensor: Tensor | None) -> bool:
    return tensor is None or all(size > 0 for size in tensor.shape or ())


def _is_typed(rule: tuple[str, ...]) -> bool:
    """Whether a rule is about what becomes another one with integers: types of real values, and scales."""
    tests = {test for term in rule for test in term.partition(":")[2].split("|")}
    return bool(tests & {"channels", "FLOAT32", *INTEGER_WEIGHTS, "INT16"}) or "unequal" in rule


def _told(rule: tuple[str, ...]) -> str:
    """Says what a rule is about."""
    said = []
    for term in rule:
        subject, _, test = term.removeprefix("!").partition(":")
        operand = f"output {subject[3:] or 0}" if subject.startswith("out") else f"input {subject}"
        negated, kinds = term.startswith("!"), ", ".join(test.lower().split("|"))
        if set(test.split("|")) <= TYPES:
            said.append(f"whose {operand} is {'not ' if negated else ''}{kinds}")
        elif test == "constant":
            said.append(f"whose {operand} is {'computed' if negated else 'constant'}")
        elif test == "channels":
            said.append(f"whose {operand} has a scale for each channel")
        elif test.startswith("rank"):
            axes = f"{'more than ' if '>' in test else ''}{test.lstrip('rank>=')} axes"
            said.append(f"whose {operand} has {'not ' if negated else ''}{axes}")
        elif test == "present":
            said.append(f"{'without' if negated else 'with'} {operand}")
        elif subject.startswith("="):
            said.append(f"with the option {subject[1:]}")
        else:
            said.append(_WORDS_TOLD[subject])
    return " and ".join(said)


_WORDS_TOLD = {
    "always": "that it computes",
    "few": "of fewer than 24 inputs",
    "many": "of more than ten inputs",
    "pads": "that pads",
    "unequal": "from one scale to another",
}


def _changes_scales(operator: Operator) -> bool:
    """Whether input 0 has another scale or zero point than output 0."""
    ends = [tensor for tensor in (*operator.inputs[:1], *operator.outputs[:1]) if tensor is not None]
    grids = {(*scales_of(tensor), *zero_points_of(tensor)) for tensor in ends if scales_of(tensor)}
    return len(grids) > 1


def _pads(operator: Operator) -> bool:
    """Whether input 2 is not known to be all 0."""
    pads = input_of(operator, 2)
    values = None if pads is None else constant_values(pads, "INT32")
    return values is None or bool(values.any())


TESTS: dict[str, Callable[[Tensor], bool]] = {
    "channels": lambda tensor: len(scales_of(tensor)) > 1,
    "constant": lambda tensor: tensor.is_constant,
    "present": lambda tensor: True,
    "sparse": lambda tensor: tensor.is_sparse,
    "unquantized": lambda tensor: tensor.quantization is None,
}
WORDS: dict[str, Callable[[Operator], bool]] = {
    "always": lambda operator: True,
    "broadcast": _broadcasts,
    "grouped": grouped,
    "few": lambda operator: len(operator.inputs) < 24,
    "many": lambda operator: len(operator.inputs) > 10,
    "pads": _pads,
    "unequal": _changes_scales,
    "rescaled": _rescaled,
}
TYPES = frozenset(dtypes.BY_NAME)
