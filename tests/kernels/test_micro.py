"""TFLite Micro computes what ``micro.json`` says, and refuses the rest: one operator a file, against LiteRT.

Compared with the reference kernels of LiteRT, which are the same code: within a few steps of the output, or
equal. The wheel of TFLite Micro is built from a later commit than the kernels that were read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net, nearest
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.files.source import layout
from tfl_rewrite.integers.border import Form
from tfl_rewrite.integers.convert import type_change
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.kernels import reads, runtimes
from tfl_rewrite.kernels.integer import TYPE_CHANGES, Caveat, Target
from tfl_rewrite.kernels.operators import OperatorRow
from tfl_rewrite.kernels.reads import micro_obstacle, micro_obstacles
from tfl_rewrite.kernels.table import ROWS
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Quantization, Tensor

from .integer_cases import LABELS, Array, built, kind_of, ranges_of
from .measure import BUILTIN, MICRO, REFERENCE, Case, Outcome, measure, needs_micro, needs_new

Outcomes = Mapping[str, Mapping[str, Outcome]]
Integers = dict[str, tuple[Case, list[float]]]
"""By name, an operator in integers, and the steps of its outputs."""
Make = Callable[[Net, Tensor], Tensor]


def measured(test: Any) -> Any:
    """A test that runs both."""
    return pytest.mark.runtime(needs_micro(needs_new(test)))


STEPS = 3
"""Of the output, at most; measured: 1."""
LATER = {("RSQRT", 16)}
"""What the wheel computes, and the kernels that were read do not."""
UNUSED = (Caveat.REFERENCE_WRONG, Caveat.REFERENCE_ABSENT, Caveat.NEGATES)
"""Such that no plan makes the operator compute in integers."""


def row_of(label: str) -> OperatorRow:
    return ROWS[kind_of(label)]


def is_used(label: str) -> bool:
    kernel = row_of(label).integer
    return kernel is not None and not any(caveat in UNUSED for caveat in kernel.caveats)


CASES = [
    (label, width)
    for label in LABELS
    for width in (8, 16)
    if is_used(label) and width in row_of(label).widths(Target.LITERT)
]
OBSTACLES = {
    label: micro_obstacle(built(label)[0].subgraphs[0].operators[0], typed=False) for label in LABELS
}
"""What is in the way, whatever the types; empty where nothing is."""
RUN = [
    (label, width)
    for label, width in CASES
    if width in row_of(label).widths(Target.MICRO) and not OBSTACLES[label]
]
NOT_RUN = [case for case in CASES if case not in RUN and case not in LATER]


def name_of(label: str, width: int) -> str:
    return f"{label}.{width}".replace(" ", "_")


def in_integers(label: str, width: int, floats: Mapping[str, Array], target: Target) -> tuple[Case, Model]:
    model, inputs = built(label)
    before = layout(model).to_bytes()
    plan = IntegerPlan(model, lambda _: width, ranges_of(model, inputs, floats), target=target)
    assert not plan.modes.reasons
    editor = Editor(model)
    plan.convert(editor, nearest)
    editor.finish()
    return Case(f"{name_of(label, width)}.{target.value}", layout(model).to_bytes(), inputs, before), model


def steps_of(model: Model) -> list[float]:
    """The size of a step of each output; 0 of what is no real value."""
    steps, operators = [], model.subgraphs[0].operators
    for tensor in model.subgraphs[0].outputs:
        (maker,) = (item for item in operators if any(one is tensor for one in item.outputs))
        source = maker.inputs[0]
        quantized = maker.code.name == "DEQUANTIZE" and source is not None
        steps.append(reads.scales_of(source)[0] if quantized and source is not None else 0.0)
    return steps


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What the float operators give."""
    cases = []
    for label in LABELS:
        model, inputs = built(label)
        cases.append(Case(name_of(label, 32), layout(model).to_bytes(), inputs))
    return measure(cases, tmp_path_factory.mktemp("floats"), resolvers=(BUILTIN, MICRO))


@pytest.fixture(scope="module")
def integers(floats: Outcomes, tmp_path_factory: pytest.TempPathFactory) -> Integers:
    """Operators in integers, for TFLite Micro where it has them, with the steps of their outputs."""
    made = {}
    for label, width in CASES:
        target = Target.MICRO if (label, width) in RUN else Target.LITERT
        case, model = in_integers(label, width, floats[name_of(label, 32)][BUILTIN].outputs, target)
        assert bool(list(micro_obstacles(model))) is (target is not Target.MICRO), case.name
        made[name_of(label, width)] = case, steps_of(model)
    return made


@pytest.fixture(scope="module")
def seen(integers: Integers, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    cases = [case for case, _ in integers.values()]
    return measure(cases, tmp_path_factory.mktemp("integers"), resolvers=(REFERENCE, MICRO))


def test_every_operator_of_it_is_one() -> None:
    assert set(runtimes.micro_kernels()) <= set(ROWS)
    assert len(runtimes.micro_kernels()) == 100
    for name, kernel in runtimes.micro_kernels().items():
        assert kernel.method.lower() == f"add{name.replace('_', '').lower()}"
        for term in (kernel.data, *(term for rule in kernel.refuses for term in rule)):
            subject, colon, test = term.removeprefix("!").partition(":")
            if term and colon:
                assert subject.startswith("out") or subject.isdigit(), term
                kinds = set(test.split("|"))
                assert kinds <= reads.TYPES or test in reads.TESTS or test.startswith("rank"), term
            elif term:
                assert subject.startswith("=") or subject in reads.WORDS, term


def test_quantize_changes_the_types_of_the_table() -> None:
    for (given, made), change in TYPE_CHANGES.items():
        net = Net()
        tensors = [net.input(name, (1, 4)) for name in ("in", "out")]
        for tensor, kind in zip(tensors, (given, made), strict=True):
            Form(kind, 0.5).give(tensor)
        operator = type_change(Editor(net.model), *tensors)
        assert (micro_obstacle(operator) == "") is change.micro, (given, made)


@measured
@pytest.mark.parametrize("label", LABELS)
def test_it_has_the_float_kernels_of_the_table(label: str, floats: Outcomes) -> None:
    outcome = floats[name_of(label, 32)]
    micro, wanted = outcome[MICRO], outcome[BUILTIN].outputs
    has = not OBSTACLES[label]
    assert (micro.error is None) is has, micro.error
    for name, values in wanted.items() if has else ():
        assert np.allclose(micro.outputs[name], values, rtol=1e-5, atol=1e-6)


@measured
@pytest.mark.parametrize(("label", "width"), RUN, ids=[name_of(*case) for case in RUN])
def test_it_computes_the_widths_of_the_table_as_the_reference_kernels_do(
    label: str, width: int, seen: Outcomes, integers: Integers
) -> None:
    case, steps = integers[name_of(label, width)]
    micro, reference = seen[case.name][MICRO], seen[case.name][REFERENCE]
    assert micro.error is None and reference.error is None, (str(micro), str(reference))
    for position, step in enumerate(steps):
        made, wanted = (item.outputs[f"turn0_{position}"] for item in (micro, reference))
        assert made.shape == wanted.shape
        assert np.abs(made.astype(np.float64) - wanted).max() <= STEPS * step * 1.001


@measured
@pytest.mark.parametrize(("label", "width"), NOT_RUN, ids=[name_of(*case) for case in NOT_RUN])
def test_it_refuses_other_widths(label: str, width: int, seen: Outcomes, integers: Integers) -> None:
    assert seen[integers[name_of(label, width)][0].name][MICRO].error is not None


@measured
def test_relu6_cuts_off_what_it_reads(floats: Outcomes, tmp_path: Path) -> None:
    made = floats[name_of("RELU6", 32)][BUILTIN].outputs
    cases = {target: in_integers("RELU6", 8, made, target) for target in (Target.LITERT, Target.MICRO)}
    found = measure([case for case, _ in cases.values()], tmp_path, resolvers=(REFERENCE, MICRO))
    for target, (case, model) in cases.items():
        reference, micro = found[case.name][REFERENCE], found[case.name][MICRO]
        assert reference.snr > 35 and (micro.snr > 35) is (target is Target.MICRO), str(micro)
        reasons = [item.reason for item in micro_obstacles(model)]
        told = "TFLite Micro has no RELU6 from one scale to another"
        assert reasons == ([] if target is Target.MICRO else [told])


def padding(net: Net, source: Tensor) -> Tensor:
    pads = net.constant("pads", np.array([[0, 1], [0, 1]], np.int32))
    inputs = [source, ints(net, 1, 1), pads]
    return net.add("SPACE_TO_BATCH_ND", inputs, "out", (1, 3, 3, 1))


@measured
def test_space_to_batch_pads_with_the_integer_0(tmp_path: Path) -> None:
    net, ends = Net(), Form("INT8", 1.0, 50)
    source = net.input("in", (1, 2, 2, 1), np.int8)
    net.output(padding(net, source))
    for tensor in (source, *net.graph.outputs):
        ends.give(tensor)
    told = "TFLite Micro has no SPACE_TO_BATCH_ND whose input 0 is int8 and that pads"
    assert [item.reason for item in micro_obstacles(net.model)] == [told]
    given = np.array([[[[1], [2]], [[3], [4]]]], np.int8)
    case = Case("padded", layout(net.model).to_bytes(), [given])
    found = measure([case], tmp_path, resolvers=(REFERENCE, MICRO))["padded"]
    made = {name: outcome.outputs["turn0_0"].ravel().tolist() for name, outcome in found.items()}
    assert made[REFERENCE] == [1, 2, 50, 3, 4, 50, 50, 50, 50]
    assert made[MICRO] == [1, 2, 0, 3, 4, 0, 0, 0, 0]


@measured
@pytest.mark.parametrize("kind", ["LOGISTIC", "TANH"])
def test_curves_saturate_outside_of_their_limits(kind: str, tmp_path: Path) -> None:
    kernel = row_of(kind).integer
    (limit,) = (item for item in kernel.limits if item.micro)  # type: ignore[union-attr]
    scale, zero = kernel.fixed[8]  # type: ignore[union-attr]
    cases, reals = [], np.array([[0, 1, 2, 4]], np.int8)
    for step in (limit.least[8], limit.most[8] * 0.99, limit.least[8] / 8, limit.most[8] * 2):
        net = Net()
        source = net.input("in", (1, 4), np.int8)
        net.output(net.add(kind, [source], "out", (1, 4), dtype=np.int8, version=2))
        for tensor, form in ((source, Form("INT8", step)), (net.graph.outputs[0], Form("INT8", scale, zero))):
            form.give(tensor)
        cases.append(Case(f"{step:g}", layout(net.model).to_bytes(), [reals]))
    found = measure(cases, tmp_path, resolvers=(REFERENCE, MICRO))
    off = []
    for case in cases:
        made, wanted = (found[case.name][which].outputs["turn0_0"] for which in (MICRO, REFERENCE))
        off.append(int(np.abs(made.astype(int) - wanted).max()))
    assert max(off[:2]) <= 1 and min(off[2:]) > 60, off


# -- What it refuses whatever the types ------------------------------------------------------------------


def ints(net: Net, *values: Any) -> Tensor:
    return net.constant(f"ints{len(net.graph.tensors)}", np.array(values, np.int32))


def moved(kind: str, rank: int) -> Make:
    """An operator over so many axes."""

    def make(net: Net, source: Tensor) -> Tensor:
        shape = source.shape or ()
        operands, made = {
            "TRANSPOSE": ([ints(net, *reversed(range(rank)))], shape[::-1]),
            "SLICE": ([ints(net, *[0] * rank), ints(net, *[1] * rank)], (1,) * rank),
            "STRIDED_SLICE": (
                [ints(net, *[0] * rank), ints(net, *shape), ints(net, *[1] * rank)],
                shape,
            ),
            "BROADCAST_TO": ([ints(net, *shape)], shape),
            "PRELU": ([net.constant("slopes", np.array([0.1, 0.2, 0.3], np.float32))], shape),
            "ADD": ([net.constant("added", np.array([0.1, 0.2, 0.3], np.float32))], shape),
        }[kind]
        return net.add(kind, [source, *operands], "out", made, version=2 if kind == "BROADCAST_TO" else 1)

    return make


def joined(count: int) -> Make:
    def make(net: Net, source: Tensor) -> Tensor:
        return net.add("CONCATENATION", [source] * count, "out", (2, 3 * count), axis=1)

    return make


def computed(kind: str, shape: Sequence[int]) -> Make:
    """What tells a shape or an order is an input of the model."""

    def make(net: Net, source: Tensor) -> Tensor:
        told = net.input("told", (2,), np.int32)
        return net.add(kind, [source, told], "out", shape)

    return make


def highest(net: Net, source: Tensor, dtype: Any) -> Tensor:
    return net.add("ARG_MAX", [source, ints(net, 1)], "out", (2,), dtype=dtype, output_type=4)


def of_integers(net: Net, source: Tensor) -> Tensor:
    held = net.add("CAST", [source], "held", (2, 3), dtype=np.int32)
    return net.add("GATHER", [held, ints(net, 1, 0)], "out", (2, 3), dtype=np.int32)


def sums_of_integers(net: Net, source: Tensor) -> Tensor:
    held = net.add("CAST", [source], "held", (2, 3), dtype=np.int32)
    return net.add("ADD", [held, held], "out", (2, 3), dtype=np.int32)


SHAPES: dict[str, tuple[tuple[int, ...], Make, str]] = {
    **{
        f"{kind} of {rank} axes": (
            (*[2] * (rank - 1), 3),
            moved(kind, rank),
            "" if rank <= most else f"TFLite Micro has no {kind} whose {side} 0 has more than {most} axes",
        )
        for kind, most, side in (
            ("TRANSPOSE", 5, "input"),
            ("SLICE", 5, "input"),
            ("STRIDED_SLICE", 4, "input"),
            ("BROADCAST_TO", 5, "input"),
            ("PRELU", 4, "output"),
        )
        for rank in (most, most + 1)
    },
    "ADD of 6 axes": ((2, 2, 2, 2, 2, 3), moved("ADD", 6), ""),
    "10 inputs": ((2, 3), joined(10), ""),
    "11 inputs": ((2, 3), joined(11), "TFLite Micro has no CONCATENATION of more than ten inputs"),
    "computed order": (
        (2, 3),
        computed("TRANSPOSE", (3, 2)),
        "TFLite Micro has no TRANSPOSE whose input 1 is computed",
    ),
    "computed shape": ((2, 3), computed("RESHAPE", (1, 6)), ""),
    "int32 position": ((2, 3), lambda net, source: highest(net, source, np.int32), ""),
    "int64 position": (
        (2, 3),
        lambda net, source: highest(net, source, np.int64),
        "TFLite Micro has no ARG_MAX whose output 0 is not int32",
    ),
    "GATHER of int32": ((2, 3), of_integers, "TFLite Micro has no GATHER of int32"),
    "ADD of int32": ((2, 3), sums_of_integers, ""),
}


def shaped(label: str) -> tuple[Model, list[Array]]:
    shape, make, _ = SHAPES[label]
    net = Net(5)
    net.output(make(net, net.input("in", shape)))
    inputs: list[Array] = [np.random.default_rng(1).uniform(-9, 9, shape).astype(np.float32)]
    told = {"computed order": [1, 0], "computed shape": [1, 6]}.get(label)
    return net.model, [*inputs, *([np.array(told, np.int32)] if told else [])]


@pytest.mark.parametrize("label", SHAPES)
def test_it_is_told_before(label: str) -> None:
    model, _ = shaped(label)
    found = [item.reason for item in micro_obstacles(model, typed=label != "GATHER of int32")]
    found = found or [item.reason for item in micro_obstacles(model)]
    assert found == [reason for *_, reason in [SHAPES[label]] if reason]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    cases = []
    for label in SHAPES:
        model, inputs = shaped(label)
        cases.append(Case(label.replace(" ", "_"), layout(model).to_bytes(), inputs))
    return measure(cases, tmp_path_factory.mktemp("shapes"), resolvers=(BUILTIN, MICRO))


@measured
@pytest.mark.parametrize("label", SHAPES)
def test_it_refuses_what_is_told(label: str, shapes: Outcomes) -> None:
    outcome = shapes[label.replace(" ", "_")]
    assert outcome[BUILTIN].error is None
    if SHAPES[label][2]:
        assert outcome[MICRO].error is not None
    else:
        for name, values in outcome[BUILTIN].outputs.items():
            assert np.allclose(outcome[MICRO].outputs[name], values)


def test_dequantize_with_scales_for_channels_is_told_of() -> None:
    told = "TFLite Micro has no DEQUANTIZE whose input 0 has a scale for each channel"
    for scales, reasons in ((1, []), (2, [told])):
        net = Net()
        weights = net.constant("w", np.array([[1, 2], [3, 4]], np.int8))
        weights.quantization = Quantization.symmetric(np.full(scales, 0.5, "<f4").tobytes())
        real = net.add("DEQUANTIZE", [weights], "real", (2, 2))
        net.output(net.add("ADD", [net.input("in", (2, 2)), real], "out", (2, 2)))
        assert [item.reason for item in micro_obstacles(net.model)] == reasons


def test_what_has_no_fixed_shape_and_what_it_has_not_is_told_of() -> None:
    net = Net()
    made = net.add("TILE", [net.input("in", (-1, 4)), ints(net, 1, 2)], "out", (1, 8))
    net.output(made)
    found = [(item.place, item.operator, item.reason, item.custom) for item in micro_obstacles(net.model)]
    assert found == [
        ("subgraphs[0].operators[0]", "TILE", "TFLite Micro has no TILE", False),
        ("subgraphs[0]", "", "input 'in' has no fixed shape", False),
    ]


def test_strings_are_told_of() -> None:
    net = Net()
    net.output(net.add("RESHAPE", [net.input("in", (1, 4)), ints(net, 4)], "out", (4,)))
    assert not list(micro_obstacles(net.model))
    for tensor in (*net.graph.inputs, *net.graph.outputs):
        tensor.dtype = dtypes.BY_NAME["STRING"].value
    assert [item.reason for item in micro_obstacles(net.model)] == ["TFLite Micro has no RESHAPE of strings"]


def test_custom_operators_are_told_apart() -> None:
    net = Net()
    net.output(net.add("ADD", [net.input("in", (1, 4))], "out", (1, 4)))
    (operator,) = net.graph.operators
    operator.code.custom = "mine"
    assert [item.custom for item in micro_obstacles(net.model)] == [True]
    operator.code.custom = "TFLite_Detection_PostProcess"
    assert not list(micro_obstacles(net.model))
    net.graph.outputs[0].shape = ()
    assert [item.reason.partition(" of an")[0] for item in micro_obstacles(net.model)] == [
        "the file records no shape"
    ]
    net.graph.inputs[0].dtype = dtypes.BY_NAME["UINT8"].value
    assert [item.reason for item in micro_obstacles(net.model)] == [
        "TFLite Micro has no TFLite_Detection_PostProcess of uint8"
    ]


def beside(kind: str, *, calls: bool = False) -> Model:
    """An operator in a second subgraph, which the main one runs, or not."""
    net = Net()
    net.output(net.add("NEG", [net.input("in", (1, 4))], "out", (1, 4)))
    main, inner = net.graph, net.next_subgraph("inner")
    net.output(net.add(kind, [net.input("x", (1, 4)), ints(net, 1)], "y", (1,)))
    if calls:
        net.graph = main
        branches = {"then_subgraph_index": inner, "else_subgraph_index": inner}
        condition = net.constant("if", np.array([True]))
        net.output(net.add("IF", [condition, main.inputs[0]], "sum", (1,), **branches))
    return net.model


def test_what_ends_it_beside_the_main_subgraph_is_told_of() -> None:
    for model, told in (
        (beside("SUM"), True),
        (beside("EXP"), False),
        (beside("SUM", calls=True), False),
    ):
        reasons = [item.reason for item in micro_obstacles(model)]
        assert [("--extract KEY" in reason) for reason in reasons] == [True] * told
