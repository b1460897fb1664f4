"""How the weights of a model are stored: why a pass finds nothing to do, and what came after a runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import field

from tfl_rewrite.editing.base import Edit
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operands import is_blockwise, operators_of, scales_of
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.kernels.reads import (
    INTEGER_WEIGHTS,
    TooHigh,
    needed_version,
    reads_of,
    too_high,
    version_counts,
    weight_reads,
)
from tfl_rewrite.kernels.runtimes import Runtime
from tfl_rewrite.kernels.table import DEQUANTIZE, dequantize_form, row_of
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.weights.storage import forms

_ACTIVATIONS = ("INT8", "UINT8", "INT16")
_FLOATS = ("FLOAT32", "FLOAT16")
_MOST = 3


@slotted
class WeightState:
    """What the constants of a model are.

    Attributes:
        read: Integers that kernels read beside float activations, in words, with their number.
        expanded: Constants behind DEQUANTIZE.
        activations: Types of integer activations that weighted operators compute in.
        computed: Weights of such operators.
        floats: Float32 constants.
        elements: Elements of the largest of them.
    """

    read: Counter[str] = field(default_factory=Counter)
    expanded: Counter[str] = field(default_factory=Counter)
    activations: Counter[str] = field(default_factory=Counter)
    computed: Counter[str] = field(default_factory=Counter)
    floats: int = 0
    elements: int = 0

    @classmethod
    def of(cls, model: Model) -> WeightState:
        """Looks at a model."""
        state = cls()
        seen: set[int] = set()
        for read in weight_reads(model):
            if id(read.weight) not in seen:
                seen.add(id(read.weight))
                state.read[f"{read.form} of {read.name}"] += 1
        for _, operator, _ in operators_of(model):
            row = row_of(operator)
            tensors = [tensor for tensor in operator.inputs if tensor is not None]
            if row.multiplies and tensors and tensors[0].dtype_name in _ACTIVATIONS:
                state.activations[tensors[0].dtype_name.lower()] += 1
            for tensor in tensors:
                if not tensor.is_constant or id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                if row is DEQUANTIZE:
                    state.expanded[_kind(tensor)] += 1
                elif tensor.dtype_name in INTEGER_WEIGHTS and scales_of(tensor):
                    state.computed[tensor.dtype_name.lower()] += 1
                elif tensor.dtype_name == "FLOAT32":
                    state.floats += 1
                    state.elements = max(state.elements, tensor.elements)
        return state

    @property
    def integers(self) -> bool:
        """Whether any weight is an integer that stands for a float and can be expanded."""
        return bool(self.read) or any(not kind.startswith("float16") for kind in self.expanded)

    @property
    def full_integer(self) -> bool:
        """Whether operators compute in integers."""
        return bool(self.activations)

    def stored(self) -> str:
        """Returns what is quantized already, or nothing."""
        parts = [_counted(count, kind) for kind, count in self.read.most_common(_MOST)]
        parts += [
            f"{_counted(count, kind)} behind DEQUANTIZE" for kind, count in self.expanded.most_common(_MOST)
        ]
        if self.activations:
            held = ", ".join(_counted(count, f"{kind} weight") for kind, count in self.computed.most_common())
            kinds = " and ".join(self.activations)
            parts.append(f"{held or 'operators'} in integer arithmetic ({kinds} activations)")
        return "; ".join(parts)

    def rounding(self) -> str:
        """Returns what rounds its int8 constants, or nothing."""
        kinds = [*self.read, *self.expanded, *self.computed]
        if not any(kind == "int8" or " int8 " in kind for kind in kinds):
            return ""
        return "to compress better, with some loss: tfl-rewrite round-weights IN OUT --int8 --steps 64"


def _counted(count: int, kind: str) -> str:
    if count == 1:
        return f"1 {kind}"
    head, of, name = kind.partition(" of ")
    return f"{count} {head}s{of}{name}"


def _kind(tensor: Tensor) -> str:
    if tensor.dtype_name == "FLOAT16":
        return "float16 constant"
    granularity = Granularity.CHANNEL if len(scales_of(tensor)) > 1 else Granularity.TENSOR
    words = "blockwise" if is_blockwise(tensor) else f"per-{granularity.value}"
    return f"{words} {tensor.dtype_name.lower()} constant"


def nothing_to_quantize(model: Model) -> str:
    """Says why no weight was quantized, and what does something instead."""
    state = WeightState.of(model)
    stored = state.stored()
    if state.read or state.expanded:
        again = "tfl-rewrite run IN OUT --pass dequantize --pass quantize-weights:dtype=int4"
        return f"quantized already: {stored}; to store them in another encoding, dequantize first: {again}"
    if state.full_integer:
        other = "to store it otherwise, start from the float model it was made from"
        return f"quantized already, activations too: {stored}; {state.rounding() or other}"
    if state.floats:
        kept = (
            f"none of {state.floats} float constants is to be changed, of at most {state.elements:,} elements"
        )
        return f"{kept}; -v says why of each, --min-elements 1 takes small ones too"
    return "it has no float constants"


def nothing_to_expand(model: Model) -> str:
    """Says why no weight was turned into float32, and what does something instead."""
    state = WeightState.of(model)
    if state.full_integer:
        kept = f"its operators compute in integers, and those stay: {state.stored()}"
        return f"{kept}; --activations makes a float model of it"
    if state.read or state.expanded:
        return f"what it has cannot be expanded: {state.stored()}; -v says why of each"
    if state.floats:
        smaller = "to make them smaller: tfl-rewrite quantize-weights IN OUT"
        return f"it has float32 constants only ({state.floats}); {smaller}"
    return "it has no weights"


def nothing_to_round(model: Model, *, integers: bool) -> str:
    """Says why no constant was rounded, and what does something instead."""
    state = WeightState.of(model)
    stored = state.stored()
    if stored and not integers and state.rounding():
        return f"it has integers and no float constants that are worth it: {stored}; {state.rounding()}"
    if state.floats or (integers and state.rounding()):
        return "no constant would deflate to less, or all are on a grid already; fewer --steps are coarser"
    return f"it has nothing to round{f': {stored}' if stored else ''}"


@frozen
class LateForm:
    """An integer weight whose form a runtime does not know.

    Attributes:
        operator: The type of the operator that reads it.
        form: The form in words.
        first: The first runtime that computes it right.
        place: Of the operator.
    """

    tensor: Tensor
    operator: str
    form: str
    first: Runtime
    place: str


def late_forms(model: Model, runtime: Runtime) -> Iterator[LateForm]:
    """Yields the integer weights whose form came after a runtime, once for each operator that reads them."""
    for read in weight_reads(model):
        first = read.first_runtime()
        if first > runtime:
            yield LateForm(read.weight, read.name, read.form, first, read.place)
    plain = {form.parts[0] for form in forms().values() if form.is_plain}
    for _, operator, place in operators_of(model):
        tensor = operator.inputs[0] if operator.inputs else None
        if row_of(operator) is not DEQUANTIZE or tensor is None or not tensor.is_constant:
            continue
        if tensor.dtype_name not in plain or is_blockwise(tensor):
            continue
        granularity = Granularity.CHANNEL if len(scales_of(tensor)) > 1 else Granularity.TENSOR
        form = dequantize_form(tensor.dtype_name, granularity)
        if form is not None and form.first_runtime > runtime:
            words = f"per-{granularity.value} {tensor.dtype_name.lower()} constant"
            yield LateForm(tensor, operator.code.name, words, form.first_runtime, place)


def still_late(model: Model, runtime: Runtime) -> tuple[list[LateForm], list[str]]:
    """Returns what a runtime misreads in a model all the same, and which operators it does not have.

    Returns:
        The weights, and the operators in words.
    """
    missing = []
    for (name, version), count in version_counts(model).items():
        text = runtimes.version_text(name, version)
        if text is not None and runtimes.runtime_of(text) > runtime:
            missing.append(f"{count} x {name} version {version}, first in {text}")
    return list(late_forms(model, runtime)), missing


def lower_for(model: Model, runtime: Runtime) -> list[tuple[str, int, int]]:
    """Lowers operator codes whose version alone keeps a runtime away.

    Returns:
        Name, version, and what it is now.
    """
    done = []
    for item in list(lowerable(model, runtime)):
        done.append((item.code.name, item.code.version, item.needed))
        editor = Editor(model)
        for operator in item.operators:
            editor.stamp(operator, item.needed, exact=True)
        editor.finish()
    return done


def lowerable(model: Model, runtime: Runtime) -> Iterator[TooHigh]:
    """Yields operator codes that a runtime refuses for their version, and has all that they use."""
    for item in too_high(model):
        needed = runtimes.version_text(item.code.name, item.needed)
        text = runtimes.version_text(item.code.name, item.code.version)
        if needed is None or runtimes.runtime_of(needed) > runtime:
            continue
        if text is None or runtimes.runtime_of(text) > runtime:
            yield item


def lower_versions(model: Model) -> list[Edit]:
    """Lowers the version of each operator to what it needs; returns what changed, by code."""
    editor = Editor(model)
    changed: Counter[tuple[str, int, int]] = Counter()
    first: dict[tuple[str, int, int], str] = {}
    for subgraph, operator, place in operators_of(model):
        needed, found = needed_version(operator), operator.code.version
        if needed is None:
            continue
        least = max([needed, *(read.needed_version() for read in reads_of(subgraph, operator))])
        if least >= found or runtimes.version_text(operator.code.name, least) is None:
            continue
        key = operator.code.name, found, least
        changed[key] += 1
        first.setdefault(key, place)
        editor.stamp(operator, least, exact=True)
    editor.finish()
    return [
        Edit(
            f"{count} x {name}" if count > 1 else f"{first[name, old, new]} {name}",
            f"version {old} -> {new} (first in {runtimes.version_text(name, new)})",
        )
        for (name, old, new), count in changed.items()
    ]
