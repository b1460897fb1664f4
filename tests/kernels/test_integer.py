"""The integer kernels compute what their rows say: one operator a file, on every resolver of both runtimes.

All files of a kind run in a few child processes, at once; each test looks at one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.nets import UnsignedNet, nearest, run
from tfl_rewrite import save
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.files.source import layout
from tfl_rewrite.flatbuf.record import FLOAT32, ScalarVector
from tfl_rewrite.integers.convert import Conversion
from tfl_rewrite.integers.groups import Groups
from tfl_rewrite.integers.modes import Modes
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.integers.recipe import Recipe
from tfl_rewrite.kernels.integer import Caveat, IntegerKernel, Scales
from tfl_rewrite.kernels.table import ROWS
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model

from .integer_cases import COMPARISONS, LABELS, NOT_COMPUTED, OF_ONES, Array, built, kind_of, ranges_of
from .measure import (
    BUILTIN,
    OLD_PYTHON,
    REFERENCE,
    XNNPACK,
    Case,
    Outcome,
    is_unregistered,
    measure,
    needs_new,
    needs_old,
)

pytestmark = [pytest.mark.runtime, needs_new]

Outcomes = dict[str, dict[str, Outcome]]

LEAST = {8: 35.0, 16: 70.0}
"""In dB, of one operator on numbers between -2 and 3; measured: 35.2 and 75 at least."""
LEAST_OF_WEIGHTS = {8: 36.0, 16: 43.0}
"""Beside int8 weights and slopes, which are what errs in 16 bits."""
LEAST_OF_DECISIONS = 15.0
"""Of what is true or false, or a position: one of thirty decided otherwise."""
LEAST_OF_FILTERS = 31.0
"""Of SVDF, whose weights have one scale, and of whose output RELU leaves half; measured: 31.5."""
AGREEMENT = 3.0
WRONG = 12.0
"""What integers read on another scale have at most."""
UNUSED = (Caveat.REFERENCE_WRONG, Caveat.REFERENCE_ABSENT, Caveat.NEGATES)


def kernel_of(label: str) -> IntegerKernel:
    kernel = ROWS[kind_of(label)].integer
    assert kernel is not None
    return kernel


CASES = [(label, width) for label in LABELS for width in (8, 16) if kernel_of(label).version(width)]
each = pytest.mark.parametrize(("label", "width"), CASES, ids=[f"{label}-{width}" for label, width in CASES])


def name_of(label: str, width: int) -> str:
    return f"{label}.{width}".replace(" ", "_")


def is_unused(label: str) -> bool:
    """Whether the kernels are so bad that no plan makes the operator compute in integers."""
    return any(caveat in UNUSED for caveat in kernel_of(label).caveats)


def least(label: str, width: int) -> float:
    kernel = kernel_of(label)
    if kind_of(label) in COMPARISONS or kind_of(label) == "ARG_MAX":
        return LEAST_OF_DECISIONS
    if kind_of(label) == "SVDF":
        return LEAST_OF_FILTERS
    weighted = kernel.scales is Scales.WEIGHTS or Caveat.ALPHA_8_BITS in kernel.caveats
    return (LEAST_OF_WEIGHTS if weighted else LEAST)[width]


def case_of(label: str, width: int, outputs: Mapping[str, Array], *, coarser: float = 1.0) -> Case:
    """Makes the operator compute in integers, beside the float model that it came from.

    Args:
        coarser: By how much the scale that the file says of an output is coarser than it should be.
    """
    model, inputs = built(label)
    ranges, before = ranges_of(model, inputs, outputs), layout(model).to_bytes()
    operator = model.subgraphs[0].operators[0]
    plan = IntegerPlan(model, lambda _: width, ranges)
    assert bool(plan.modes.reasons) == is_unused(label), plan.modes.reasons
    if is_unused(label):
        convert_anyhow(model, width, ranges)
    else:
        editor = Editor(model)
        plan.convert(editor, nearest)
        editor.finish()
    for tensor in operator.outputs:
        details = tensor.quantization if tensor is not None else None
        if tensor is not None and details is not None and details.scale is not None:
            scale = ScalarVector.of(FLOAT32, [coarser * number for number in details.scale])
            tensor.quantization = replace(details, scale=scale)
    return Case(name_of(label, width), layout(model).to_bytes(), inputs, before)


def convert_anyhow(model: Model, width: int, ranges: Mapping[int, tuple[float, float]]) -> None:
    """Makes the operator of a model compute in integers, although no plan would."""
    subgraph, editor = model.subgraphs[0], Editor(model)
    modes = Modes({id(subgraph.operators[0]): width})
    recipe = Recipe()
    groups = Groups(subgraph.operators, modes, ranges, lambda _, width: recipe.margin(width), {})
    Conversion(subgraph, Graph.of(model), modes, groups, nearest, editor).run()
    editor.finish()


def measured_floats(
    models: Mapping[str, tuple[Model, list[Array]]], folder: Path
) -> dict[str, Mapping[str, Array]]:
    """Runs float models and returns what each gives."""
    names = {label: name_of(label, 32) for label in models}
    cases = [
        Case(names[label], layout(model).to_bytes(), inputs) for label, (model, inputs) in models.items()
    ]
    seen = measure(cases, folder, resolvers=(BUILTIN,))
    found = {label: seen[name][BUILTIN] for label, name in names.items()}
    assert not {label: outcome.error for label, outcome in found.items() if outcome.error}
    return {label: outcome.outputs for label, outcome in found.items()}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping[str, Array]]:
    """What the float operators give, by label."""
    return measured_floats({label: built(label) for label in LABELS}, tmp_path_factory.mktemp("floats"))


@pytest.fixture(scope="module")
def cases(outputs: dict[str, Mapping[str, Array]]) -> list[Case]:
    return [case_of(label, width, outputs[label]) for label, width in CASES]


@pytest.fixture(scope="module")
def newest(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return measure(cases, tmp_path_factory.mktemp("newest"))


@pytest.fixture(scope="module")
def oldest(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    assert OLD_PYTHON is not None
    return measure(cases, tmp_path_factory.mktemp("oldest"), resolvers=(XNNPACK, BUILTIN), python=OLD_PYTHON)


@pytest.fixture(scope="module")
def coarser(outputs: dict[str, Mapping[str, Array]], tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What becomes of it where an output says that its scale is twice what its range needs."""
    made = [case_of(label, width, outputs[label], coarser=2.0) for label, width in CASES]
    return measure(made, tmp_path_factory.mktemp("coarser"))


def test_every_row_is_measured() -> None:
    assert {kind_of(label) for label in LABELS} == {name for name, row in ROWS.items() if row.integer}


@each
def test_an_operator_computes_in_integers_on_every_resolver(label: str, width: int, newest: Outcomes) -> None:
    outcomes, caveats = newest[name_of(label, width)], kernel_of(label).caveats
    told = {resolver: str(outcome) for resolver, outcome in outcomes.items()}
    if Caveat.REFERENCE_ABSENT in caveats:
        assert is_unregistered(outcomes.pop(REFERENCE)), told
    if Caveat.REFERENCE_WRONG in caveats:
        assert outcomes.pop(REFERENCE).snr < WRONG, told
    if Caveat.NEGATES in caveats and width == 8:
        # The zero points are not 0 here.
        assert all(outcome.snr < 15 for outcome in outcomes.values()), told
        return
    assert all(outcome.ok(least(label, width)) for outcome in outcomes.values()), told
    found = [outcome.snr for outcome in outcomes.values()]
    assert max(found) == min(found) or max(found) - min(found) < AGREEMENT, told


@needs_old
@each
def test_the_oldest_runtime_computes_the_widths_of_the_row(label: str, width: int, oldest: Outcomes) -> None:
    outcomes = oldest[name_of(label, width)]
    told = {resolver: str(outcome) for resolver, outcome in outcomes.items()}
    right = [outcome.ok(least(label, width)) for outcome in outcomes.values()]
    assert all(right) is any(right) is (width in kernel_of(label).old), told


@each
def test_which_outputs_may_have_a_scale_of_their_own(label: str, width: int, coarser: Outcomes) -> None:
    outcomes, scales = coarser[name_of(label, width)], kernel_of(label).scales
    told = {resolver: str(outcome) for resolver, outcome in outcomes.items()}
    if is_unused(label):
        outcomes.pop(REFERENCE)
    good = [outcome.ok(least(label, width) - 8) for outcome in outcomes.values()]
    bad = [outcome.error is not None or outcome.snr < WRONG for outcome in outcomes.values()]
    if Caveat.DIVIDES in kernel_of(label).caveats:
        assert all(bad) or width == 16 or label != "DIV", f"{told}: this is outside of its limits"
    elif scales in (Scales.OWN, Scales.WEIGHTS) or kind_of(label) == "SVDF":
        assert all(good), told
    else:
        assert any(bad) or label == "TANH", told


@pytest.fixture(scope="module")
def uncomputed(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    models = {label: built(label) for label in NOT_COMPUTED}
    seen = measured_floats(models, tmp_path_factory.mktemp("floats_uncomputed"))
    cases = []
    for label, (model, inputs) in models.items():
        ranges, before = ranges_of(model, inputs, seen[label]), layout(model).to_bytes()
        plan = IntegerPlan(model, lambda _: 8, ranges)
        (reason,) = plan.modes.reasons.values()
        assert NOT_COMPUTED[label][1] in reason
        states = [item for item in model.subgraphs[0].tensors if item.is_variable]
        convert_anyhow(model, 8, {**{id(item): (-2.0, 2.0) for item in states}, **ranges})
        cases.append(Case(name_of(label, 8), layout(model).to_bytes(), inputs, before))
    return measure(cases, tmp_path_factory.mktemp("uncomputed"))


@pytest.mark.parametrize("label", NOT_COMPUTED)
def test_kernels_with_a_state_are_wrong_or_fail_where_they_are_not_used(
    label: str, uncomputed: Outcomes
) -> None:
    outcomes = uncomputed[name_of(label, 8)]
    told = {resolver: str(outcome) for resolver, outcome in outcomes.items()}
    assert all(outcome.error is not None or outcome.snr < WRONG for outcome in outcomes.values()), told


OUTSIDE = {
    "ADD": ((1e6, 1e6), 1e6),
    "SUB": ((1e6, 1e6), 1e6),
    "DIV": ((1.0, 0.0), 1.0),
    "HARD_SWISH": ((1e25, 1.0), 1.0),
    "L2_NORMALIZATION": ((1e-8, 1.0), 1.0),
    "MUL fused with RELU": ((1e6, 1.0), 1e7),
    OF_ONES: ((1.0, 1.0), 1e-3),
    "RELU_N1_TO_1": ((1e-8, 1.0), 1.0),
    "SQUARED_DIFFERENCE": ((1e3, 1e3), 1e10),
    "SOFTMAX": ((1e-7, 1.0), 1.0),
    "GREATER": ((1e-4, 1e-4), 1.0),
    "LESS_EQUAL": ((1e3, 1e3), 1.0),
}
"""By what the inputs are multiplied, and the range of the output is divided, so that kernels go wrong."""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    models = {label: built(label, sizes) for label, (sizes, _) in OUTSIDE.items()}
    seen = measured_floats(models, tmp_path_factory.mktemp("floats_outside"))
    cases = []
    for label, (model, inputs) in models.items():
        ranges, before = ranges_of(model, inputs, seen[label]), layout(model).to_bytes()
        for tensor in model.subgraphs[0].outputs:
            if id(tensor) in ranges:
                low, high = ranges[id(tensor)]
                ranges[id(tensor)] = low / OUTSIDE[label][1], high / OUTSIDE[label][1]
        plan = IntegerPlan(model, lambda _: 8, ranges)
        assert not plan.modes.widths, f"{label} would compute in integers"
        convert_anyhow(model, 8, ranges)
        cases.append(Case(name_of(label, 8), layout(model).to_bytes(), inputs, before))
    return measure(cases, tmp_path_factory.mktemp("outside"))


@pytest.mark.parametrize("label", OUTSIDE)
def test_outside_of_its_limits_a_kernel_is_wrong_or_fails(label: str, outside: Outcomes) -> None:
    outcomes = outside[name_of(label, 8)]
    told = {resolver: str(outcome) for resolver, outcome in outcomes.items()}
    bad = [outcome.error is not None or outcome.snr < WRONG for outcome in outcomes.values()]
    assert all(bad) or (label == "SOFTMAX" and any(bad)), told


def test_caveats_name_what_they_are_about() -> None:
    kernels = {name: row.integer for name, row in ROWS.items() if row.integer is not None}
    assert {name for name, item in kernels.items() if Caveat.REFERENCE_WRONG in item.caveats} == {"SUM"}
    for name, item in kernels.items():
        assert (item.scales is Scales.FIXED) == bool(item.fixed), name
        assert set(item.fixed) == ({8, 16} if item.version16 else {8}) or not item.fixed, name
        assert set(item.old) <= {8, 16}, name


@pytest.mark.parametrize("kind", ["CONCATENATION", "RESHAPE"])
def test_which_uint8_kernels_convert_between_scales(kind: str, tmp_path: Path) -> None:
    net = UnsignedNet()
    shape = [net.constant("shape", np.array([1, 4], np.int32))] if kind == "RESHAPE" else []
    net.output(net.gives(kind, [net.source((1, 4), 1.0, 0), *shape], "out", (0.5, 10)))
    save(net.model, tmp_path / "model.tflite")
    found = run(tmp_path / "model.tflite", {"in": np.array([[0, 1, 50, 100]], np.uint8)}, reference=True)
    row = ROWS[kind].integer
    assert row is not None
    converts = Caveat.UNSIGNED_RESCALES in row.caveats
    assert found["out"].tolist() == [[10, 12, 110, 210] if converts else [0, 1, 50, 100]]


CURVES = {
    "LOGISTIC": lambda x: (1 + np.tanh(x / 2)) / 2,
    "TANH": np.tanh,
    "RELU": lambda x: np.maximum(x, 0),
    "RELU6": lambda x: np.clip(x, 0, 6),
    "RELU_0_TO_1": lambda x: np.clip(x, 0, 1),
    "RELU_N1_TO_1": lambda x: np.clip(x, -1, 1),
    "HARD_SWISH": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


@pytest.mark.parametrize("label", [name for name, row in ROWS.items() if row.integer and row.integer.bends])
def test_beyond_its_bends_a_curve_gives_the_same(label: str) -> None:
    kernel = ROWS[label].integer
    assert kernel is not None
    for width, (low, high) in kernel.bends.items():
        quarter = kernel.fixed[width][0] / 4 if kernel.fixed else 1e-12
        for end, beyond in ((low, [1.001, 2.0, 50.0, 1e4]), (high, [1.001, 2.0, 50.0, 1e4])):
            if np.isfinite(end):
                sign = -1.0 if end == low else 1.0
                far = np.array([end + sign * by for by in beyond])
                assert np.abs(CURVES[label](far) - CURVES[label](np.float64(end))).max() <= quarter
