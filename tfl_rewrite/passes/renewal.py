"""Integer weights in a form that an older runtime does not know: stored anew in one that it does.

Scales per channel of a FULLY_CONNECTED, blocks and packed integers came late; older runtimes refuse them, or
load the file and read zeros. Such weights become the float32 values that they stand for, to be quantized for
the runtime like any other (:mod:`tfl_rewrite.passes.quantize_weights`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tfl_rewrite.editing.base import Context
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operands import is_blockwise, operators_of, scales_of
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.kernels.reads import TooHigh, too_high, weight_reads
from tfl_rewrite.kernels.runtimes import Runtime
from tfl_rewrite.kernels.table import ADD, DEQUANTIZE, MUL, dequantize_form, row_of
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.passes.dequantize import Dequantize
from tfl_rewrite.weights.candidates import UNNAMED, expanded

_INTEGERS = ("INT8", "INT4", "INT2")


@dataclass(frozen=True, slots=True)
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
    for _, operator, place in operators_of(model):
        tensor = operator.inputs[0] if operator.inputs else None
        if row_of(operator) is not DEQUANTIZE or tensor is None or not tensor.is_constant:
            continue
        if tensor.dtype_name not in _INTEGERS or is_blockwise(tensor):
            continue
        granularity = Granularity.CHANNEL if len(scales_of(tensor)) > 1 else Granularity.TENSOR
        form = dequantize_form(tensor.dtype_name, granularity)
        if form is not None and form.first_runtime > runtime:
            words = f"per-{granularity.value} {tensor.dtype_name.lower()} constant"
            yield LateForm(tensor, operator.code.name, words, form.first_runtime, place)


def renew(
    model: Model, runtime: Runtime, wanted: Callable[[Tensor, Graph], bool]
) -> tuple[dict[str, int], list[str]]:
    """Turns weights whose form a runtime does not know into float32.

    Args:
        model: Changed in place.
        runtime: The oldest one that must compute the model.
        wanted: Whether a weight may be changed.

    Returns:
        What each took in bytes, by the name of the tensor; and what is to be said.
    """
    found = list(late_forms(model, runtime))
    if not found:
        return {}, []
    graph = Graph.of(model)
    late = {id(item.tensor): item for item in found if wanted(item.tensor, graph)}
    before = {id(item.tensor): item.tensor.buffer.nbytes for item in late.values()}
    # Of those behind DEQUANTIZE another tensor is the constant then; both parts of an int6 become one.
    names = {key: [one.name for one in expanded(item.tensor, graph)] for key, item in late.items()}
    parts = _with_partners(set(late), model, graph)
    result = Dequantize(only=lambda tensor: id(tensor) in parts).run(model, Context())
    left = {id(item.tensor) for item in late_forms(model, runtime)}
    done = [item for key, item in late.items() if key not in left]
    if not done:
        return {}, list(result.notes)
    listed = ", ".join(
        [*(repr(item.tensor.name or UNNAMED) for item in done[:3]), *(["..."] if done[3:] else [])]
    )
    forms = ", ".join(dict.fromkeys(f"{item.form} of {item.operator}" for item in done))
    why = f"runtime {_shown(runtime)} does not know their form ({forms})"
    taken: Counter[str] = Counter()
    for item in done:
        taken.update(dict.fromkeys(names[id(item.tensor)], before[id(item.tensor)]))
    note = f"{len(done)} weight(s) stored anew, since {why}: {listed}"
    return dict(taken), [note, *result.notes]


def _with_partners(parts: set[int], model: Model, graph: Graph) -> set[int]:
    """Adds what others are multiplied with or added to behind DEQUANTIZE: scales, and the halves of int6."""
    constants = {id(item): item for graph_ in model.subgraphs for item in graph_.tensors if item.is_constant}
    found, waiting = set(parts), list(parts)
    while waiting:
        for use in graph.uses_of(constants[waiting.pop()]):
            made = use.operator.outputs[0] if row_of(use.operator) is DEQUANTIZE else None
            for reader in graph.uses_of(made) if made is not None else ():
                if row_of(reader.operator) not in (MUL, ADD):
                    continue
                for other in reader.operator.inputs:
                    maker = graph.maker_of(other) if other is not None else None
                    stored = maker.inputs[0] if maker is not None and maker.inputs else None
                    if maker is None or stored is None or row_of(maker) is not DEQUANTIZE:
                        continue
                    if id(stored) in constants and id(stored) not in found:
                        found.add(id(stored))
                        waiting.append(id(stored))
    return found


def still_late(model: Model, runtime: Runtime) -> tuple[list[LateForm], list[str]]:
    """Returns what a runtime misreads in a model all the same, and which operators it does not have.

    Returns:
        The weights, and the operators in words.
    """
    pairs: dict[tuple[str, int], int] = {}
    for _, operator, _ in operators_of(model):
        if operator.code.custom is None:
            key = (operator.code.name, operator.code.version)
            pairs[key] = pairs.get(key, 0) + 1
    missing = []
    for (name, version), count in pairs.items():
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


def _shown(runtime: Runtime) -> str:
    return ".".join(map(str, runtime))
