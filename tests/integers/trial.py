"""Grown graphs as floats, as integers and simulated: what must hold of them, and what runtimes make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.kernels.measure import BUILTIN, EXACT_SNR, RESOLVERS, Case, Outcome, measure, snr
from tests.nets import Array, Net, nearest
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.files.source import layout
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.kernels.integer import Scales
from tfl_rewrite.kernels.operands import scales_of, zero_points_of
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Operator, Tensor
from tfl_rewrite.reading.check import examine_model

from .graphs import Grown, Seeded, grow, widths

Range = tuple[float, float]
INTEGERS = ("INT8", "INT16")
AGREEMENT, GOOD = 3.0, 35.0
"""In dB: how far resolvers may be from one another, and from where on it does not matter."""

ALLOWED = {8: 2.01, 16: 6.0}
"""Steps that a kernel may be off."""

COARSE = {
    ("LOG_SOFTMAX", 8): 4.01,
    ("LOGISTIC", 16): 10,
    ("TANH", 16): 10,
    ("RESIZE_BILINEAR", 16): 40,
    ("REDUCE_PROD", 16): 100,
    ("SOFTMAX", 16): 60,
    ("GELU", 16): 1000,
    ("EXP", 16): 1000,
    ("RSQRT", 16): 4000,
    ("SQRT", 16): 700,
    ("LOG", 16): 16000,
}
"""Those of kernels that look up few numbers, in the 65,536 steps of 16 bits."""

DECIDED = 0.5
"""The share of what may be decided otherwise: two numbers are a step from one another."""


def unsound(model: Model) -> list[str]:
    """What is wrong with a model that computes in integers; needs no runtime."""
    found = [str(problem) for problem in broken(model)]
    found += [text for texts in examine_model(model) for text in texts]
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            if tensor.dtype_name in (*INTEGERS, "INT64") and tensor.quantization is not None:
                found += [f"{tensor.name}: {text}" for text in _bad_grid(tensor)]
        for operator in subgraph.operators:
            found += [f"{operator.code.name}: {text}" for text in _bad_operator(operator)]
    return found


def _bad_grid(tensor: Tensor) -> list[str]:
    scales, zeros = scales_of(tensor), zero_points_of(tensor)
    found = [f"scale {scale}" for scale in scales if not np.finfo(np.float32).tiny <= scale < np.inf]
    if len(zeros) != len(scales):
        found.append(f"{len(scales)} scales and {len(zeros)} zero points")
    if tensor.dtype_name != "INT8" and any(zeros):
        found.append(f"zero point {zeros}")
    return found + [f"zero point {zero}" for zero in zeros if not -128 <= zero <= 127]


def _grid(tensor: Tensor) -> tuple[str, float, int]:
    return tensor.dtype_name, scales_of(tensor)[0], zero_points_of(tensor)[0]


def _bad_operator(operator: Operator) -> list[str]:
    row = row_of(operator)
    kernel = row.integer
    special = {*row.weights, *row.biases} if kernel is not None and kernel.scales is Scales.WEIGHTS else set()
    inputs = [item for at, item in enumerate(operator.inputs) if item is not None and at not in special]
    outputs = [item for item in operator.outputs if item is not None]
    integers = [item for item in inputs if item.dtype_name in INTEGERS and item.quantization is not None]
    if kernel is None or not integers:
        return []
    found = [f"reads {item.name} as floats" for item in (*inputs, *outputs) if item.dtype_name == "FLOAT32"]
    made = [item for item in outputs if item.dtype_name in INTEGERS]
    if kernel.scales is Scales.SAME and len({_grid(item) for item in (*integers, *made)}) != 1:
        found.append("scales differ")
    if kernel.scales is Scales.FIXED:
        width = 8 if made[0].dtype_name == "INT8" else 16
        found += [] if _grid(made[0])[1:] == kernel.fixed[width] else ["the output is not on its grid"]
    if special:
        found += _bad_weights(operator, integers[0], made[0])
    return found


def _bad_weights(operator: Operator, source: Tensor, made: Tensor) -> list[str]:
    row = row_of(operator)
    weight = operator.inputs[row.weights[0]]
    bias = operator.inputs[row.biases[0]] if len(operator.inputs) > row.biases[0] else None
    assert weight is not None
    found = [] if weight.dtype_name == "INT8" else ["the weights are no int8"]
    if source.dtype_name != made.dtype_name:
        found.append("it reads and gives different types")
    if bias is None:
        return found
    if bias.dtype_name != {"INT8": "INT32", "INT16": "INT64"}[source.dtype_name]:
        found.append(f"the bias is {bias.dtype_name}")
    wanted = scales_of(source)[0] * np.array(scales_of(weight))
    if not np.allclose(scales_of(bias), wanted, rtol=1e-5, atol=0):
        found.append("the scale of the bias is not the product")
    most = 2.0**30 if source.dtype_name == "INT8" else 2.0**46
    if np.abs(bias.values.astype(np.float64)).max(initial=0) > most * (1 + 1e-6):
        found.append("the bias is near the end of its type")
    return found


def _dequantized(tensor: Tensor) -> Array:
    details, values = tensor.quantization, tensor.values.astype(np.float64)
    assert details is not None
    scales, shape = np.array(scales_of(tensor)), [1] * values.ndim
    if scales.size > 1:
        shape[details.dimension] = scales.size
    zeros = np.array(zero_points_of(tensor)).reshape(shape if scales.size > 1 else ())
    made: Array = ((values - zeros) * scales.reshape(shape if scales.size > 1 else ())).astype(np.float32)
    return made


@dataclass(frozen=True)
class Shadow:
    """One output of an integer operator, beside what the float operator makes of the same integers.

    Attributes:
        where: Name and operator.
        kind: Of the operator.
        integers: Position of the tensor among the outputs of the model.
        floats: Position of what the float operator gives.
        grid: Type, scale and zero point; None for what is no number of a grid.
    """

    where: str
    kind: str
    integers: int
    floats: int
    grid: tuple[str, float, int] | None

    @property
    def allowed(self) -> float:
        """How far off it may be."""
        if self.grid is None:
            return DECIDED
        width = int(self.grid[0][3:])
        return COARSE.get((self.kind, width), ALLOWED[width])

    def steps(self, outputs: Mapping[str, Array]) -> float:
        """The largest distance of the two in steps of the grid, or the share of what is decided otherwise."""
        made, wanted = (outputs[f"turn0_{at}"] for at in (self.integers, self.floats))
        if self.grid is None:
            return float(np.mean(made != wanted)) if made.size else 0.0
        kind, scale, zero = self.grid
        half = 1 << (int(kind[3:]) - 1)
        numbers = ~np.isnan(wanted)
        wanted = np.clip(wanted.astype(np.float64) / scale + zero, -half, half - 1)
        return float(np.abs(made.astype(np.float64) - wanted)[numbers].max(initial=0))


def shadowed(model: Model, versions: Mapping[int, int]) -> tuple[bytes, list[Shadow]]:
    """Puts a float operator beside each one that computes in integers, on what its integers stand for.

    Args:
        model: Changed.
        versions: Of the float operators, by the id of the one that they became.
    """
    graph, found, real = model.subgraphs[0], list[Shadow](), dict[int, Tensor]()
    net = Net()
    net.model, net.graph = model, graph

    def floats(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.quantization is None or not scales_of(tensor):
            return tensor
        if id(tensor) not in real:
            name = f"{tensor.name}_{len(graph.tensors)}"
            if tensor.is_constant:
                real[id(tensor)] = net.constant(name, _dequantized(tensor))
            else:
                version = 2 if tensor.dtype_name == "INT8" else 3
                real[id(tensor)] = net.add("DEQUANTIZE", [tensor], name, tensor.shape or (), version=version)
        return real[id(tensor)]

    for operator in list(graph.operators):
        if id(operator) not in versions or not any(
            item is not None and item.dtype_name in INTEGERS and scales_of(item) for item in operator.inputs
        ):
            continue
        inputs = [floats(item) for item in operator.inputs]
        outputs = []
        for item in operator.outputs:
            assert item is not None
            grid = _grid(item) if item.dtype_name in INTEGERS else None
            kind = dtypes.BY_VALUE[item.dtype].numpy if grid is None else np.float32
            outputs.append(net.tensor(f"{item.name}_{len(graph.tensors)}", item.shape or (), kind))
            at = len(graph.outputs)
            where = f"{operator.code.name} {item.name} {grid}"
            found.append(Shadow(where, operator.code.name, at, at + 1, grid))
            graph.outputs += [item, outputs[-1]]
        code = net.code(operator.code.name, versions[id(operator)])
        graph.operators.append(replace(operator, code=code, inputs=inputs, outputs=outputs))
    return layout(model).to_bytes(), found


@dataclass
class Trial:
    """One grown graph.

    Attributes:
        plan: How its float model becomes integers.
        floats: That model.
        integers: What it became.
        simulated: The float model that rounds activations as the integer one does.
        shadow: The integer model with a float operator beside each integer one.
        shadows: Those.
        problems: What is wrong with the integer model or the simulated one, as far as no runtime is needed.
    """

    name: str
    grown: Grown
    plan: IntegerPlan
    floats: bytes
    integers: bytes
    simulated: bytes
    shadow: bytes
    shadows: list[Shadow]
    problems: list[str]


def tried(
    name: str, build: Callable[[], Grown], bits: Sequence[int | None], seen: Mapping[str, Range]
) -> Trial:
    """Makes a graph compute in integers.

    Args:
        build: Grows the graph, the same one each time.
        bits: By operator; None for floats.
        seen: Ranges by name.
    """
    grown, copy = build(), build()

    def planned(model: Model) -> IntegerPlan:
        operators = [operator for _, operator in model.operators()]
        wanted = {id(operator): width for operator, width in zip(operators, bits, strict=True)}
        ranges = {id(item): seen[item.name] for item in model.subgraphs[0].tensors if item.name in seen}
        return IntegerPlan(model, lambda operator: wanted[id(operator)], ranges)

    model, before = grown.net.model, layout(grown.net.model).to_bytes()
    versions = {id(operator): operator.code.version for _, operator in model.operators()}
    plan = planned(model)
    plan.simulate(copy.net.model)
    editor = Editor(model)
    plan.convert(editor, nearest)
    editor.finish()
    problems = [*unsound(model), *(str(problem) for problem in broken(copy.net.model))]
    integers = layout(model).to_bytes()
    integer = {key: version for key, version in versions.items() if key in plan.modes.widths}
    shadow, shadows = shadowed(model, integer)
    return Trial(
        name, grown, plan, before, integers, layout(copy.net.model).to_bytes(), shadow, shadows, problems
    )


def ranges_of(grown: Grown, outputs: Mapping[str, Array]) -> dict[str, Range]:
    """Ranges by name of what the inputs and constants hold, and of what operators gave."""
    graph = grown.net.graph
    held = {tensor.name: values for tensor, values in zip(graph.inputs, grown.inputs, strict=True)}
    held |= {item.name: item.values for item in graph.tensors if item.is_constant}
    held |= {item.name: outputs[f"turn0_{at}"] for at, item in enumerate(made_by(grown))}
    floats = [item for item in graph.tensors if item.dtype_name == "FLOAT32" and held[item.name].size]
    return {item.name: (float(held[item.name].min()), float(held[item.name].max())) for item in floats}


def made_by(grown: Grown) -> list[Tensor]:
    return [item for operator in grown.net.graph.operators for item in operator.outputs if item is not None]


def exposed(grown: Grown) -> bytes:
    """The float model with all that is computed as outputs."""
    graph = grown.net.graph
    outputs, graph.outputs = graph.outputs, made_by(grown)
    try:
        return layout(grown.net.model).to_bytes()
    finally:
        graph.outputs = outputs


def seeded(seed: int) -> Callable[[], Grown]:
    def build() -> Grown:
        choices = Seeded(seed)
        return grow(choices, choices.number(1, 12))

    return build


def bits_of(seed: int, grown: Grown) -> list[int | None]:
    return widths(Seeded(seed + 1), grown.net.graph.operators)


@dataclass
class Ran:
    """What runtimes made of one graph.

    Attributes:
        floats: By resolver, of the float model.
        integers: Likewise, compared with the float model.
        simulated: Likewise, without the delegate only.
        shadows: By resolver, of the integer model with float operators beside the integer ones.
    """

    trial: Trial
    floats: dict[str, Outcome]
    integers: dict[str, Outcome]
    simulated: Outcome
    shadows: dict[str, Outcome]

    def faults(self) -> list[str]:
        """What is wrong; nothing with kernels that do not run the float model either."""
        found = [f"seed {self.trial.name}: {text}" for text in self.trial.problems]
        if self.simulated.error is not None:
            found.append(f"seed {self.trial.name} simulated: {self.simulated}")
        runs = [resolver for resolver, outcome in self.floats.items() if outcome.error is None]
        for resolver in runs:
            for outcome in (self.integers[resolver], self.shadows[resolver]):
                if outcome.error is not None:
                    found.append(f"seed {self.trial.name} {resolver}: {outcome}")
            if self.shadows[resolver].error is None:
                outputs = self.shadows[resolver].outputs
                found += [
                    f"seed {self.trial.name} {resolver} {shadow.where}: {shadow.steps(outputs):.1f} steps off"
                    for shadow in self.trial.shadows
                    if shadow.steps(outputs) > shadow.allowed
                ]
        return found or self._disagreement(runs)

    def _disagreement(self, runs: Sequence[str]) -> list[str]:
        outcomes = [self.floats[BUILTIN], *(self.integers[resolver] for resolver in runs)]
        arrays = [array for outcome in outcomes for array in outcome.outputs.values()]
        if not all(np.isfinite(array).all() for array in arrays):
            return []
        wanted = self.floats[BUILTIN].outputs
        if any(snr(wanted, self.floats[resolver].outputs) < EXACT_SNR for resolver in runs):
            # The float kernels do not agree either: a position, or what is compared, hangs by a rounding.
            return []
        ratios = [self.integers[resolver].snr for resolver in runs]
        if max(ratios) == min(ratios) or max(ratios) - min(ratios) < AGREEMENT or min(ratios) > GOOD:
            return []
        return [f"seed {self.trial.name}: {ratios} dB"]


def ran(seeds: Sequence[int], folder: Path) -> list[Ran]:
    """Grows graphs by seeds, makes them compute in integers on what they really hold, and runs them."""
    grown = {f"f{seed}": seeded(seed)() for seed in seeds}
    floats = measure([Case(name, exposed(item), item.inputs) for name, item in grown.items()], folder)
    trials = []
    for seed, (name, item) in zip(seeds, grown.items(), strict=True):
        outcome = floats[name][BUILTIN]
        assert outcome.error is None, f"the float graph of seed {seed} does not run: {outcome}"
        ranges = ranges_of(item, outcome.outputs)
        trials.append(tried(str(seed), seeded(seed), bits_of(seed, item), ranges))

    def measured(
        letter: str, model: Callable[[Trial], bytes], *resolvers: str, reference: bool = True
    ) -> dict[str, dict[str, Outcome]]:
        return measure(
            [
                Case(
                    f"{letter}{item.name}", model(item), item.grown.inputs, item.floats if reference else None
                )
                for item in trials
            ],
            folder,
            resolvers=resolvers or RESOLVERS,
        )

    integers = measured("i", lambda item: item.integers)
    simulated = measured("s", lambda item: item.simulated, BUILTIN)
    shadows = measured("d", lambda item: item.shadow, reference=False)
    return [
        Ran(
            item,
            floats[f"f{item.name}"],
            integers[f"i{item.name}"],
            simulated[f"s{item.name}"][BUILTIN],
            shadows[f"d{item.name}"],
        )
        for item in trials
    ]
