"""How the weights of a model are stored, in words: why a pass on weights finds nothing to do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tfl_rewrite.kernels.operands import is_blockwise, operators_of, scales_of
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.kernels.reads import INTEGER_WEIGHTS, weight_reads
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model.ir import Model, Tensor

_ACTIVATIONS = ("INT8", "UINT8", "INT16")
_FLOATS = ("FLOAT32", "FLOAT16")
_MOST = 3


@dataclass(slots=True)
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
        return f"{kept}; for a float model, start from the one it was made from"
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
