"""The rows say what the runtimes do: every one is measured, and so is what each need protects from.

The models are built here, run in child processes with every resolver, and compared with float models that
hold the dequantized weights. Set ``TFL_REWRITE_OLD_RUNTIME_PYTHON`` to the Python of an environment with
tflite-runtime 2.14.0 to measure that runtime too.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operators import Form, Granularity, OperatorRow
from tfl_rewrite.kernels.runtimes import OLDEST_MEASURED_RUNTIME
from tfl_rewrite.kernels.table import DEQUANTIZE, ROWS

from . import cases
from .cases import Weight, case
from .measure import (
    BUILTIN,
    EXACT_SNR,
    HYBRID_SNR,
    OLD_PYTHON,
    REFERENCE,
    RESOLVERS,
    XNNPACK,
    Case,
    Outcome,
    is_unregistered,
    measure,
    needs_new,
    needs_old,
)

pytestmark = pytest.mark.runtime

PAIRS = [(row, form) for row in ROWS.values() if row.weights for form in row.forms if form.dtype == "INT8"]
FORMS = [
    pytest.param(row, form, id=f"{row.name}-{form.granularity.value}-v{form.version}") for row, form in PAIRS
]
CONSUMERS = tuple(cases.consumers())
SCALARS = ("FILL", "RANGE", "ONE_HOT")


def form_cases(row: OperatorRow, form: Form) -> list[Case]:
    found = []
    for name, build in cases.variants(row.name, asymmetric=bool(form.asymmetric_inputs)).items():
        if name == "grouped" and form.granularity is Granularity.TENSOR:
            continue
        axis = None
        if form.granularity is Granularity.CHANNEL:
            axis = row.scales_axis(adj_y=name.startswith("transposed"))
        version = max(form.version, 6) if name == "grouped" else form.version
        label = f"{row.name}-{form.granularity.value}-v{form.version}-{name}"
        found.append(case(label, build, Weight("int8", axis), version))
    return found


def consumer_cases() -> list[Case]:
    found = []
    for name, build in [
        *cases.consumers().items(),
        ("chain", cases.chain()),
        ("two_readers", cases.two_readers()),
        ("TFLite_Detection_PostProcess", cases.detection_post_process()),
    ]:
        found.append(case(f"{name}-tensor", build, Weight("dequantize", None), 1))
        if name not in SCALARS:
            found.append(case(f"{name}-channel", build, Weight("dequantize", 0), 1))
    return found


def control_cases() -> list[Case]:
    return [cases.control(kind, axis) for kind in cases.CONTROLS for axis in (None, 0)]


def packed_cases() -> list[Case]:
    return [
        cases.packed(
            int(form.dtype[3:]), 0 if form.granularity is Granularity.CHANNEL else None, form.version
        )
        for form in DEQUANTIZE.forms
        if form.dtype in ("INT4", "INT2")
    ]


def broken_cases() -> list[Case]:
    """Returns one case for each need, with the need ignored."""
    channel, tensor = Weight("int8", 0), Weight("int8", None)
    return [
        case("conv_no_bias", cases.conv(bias="none"), channel, 5),
        case("depthwise_no_bias", cases.depthwise(bias="none"), Weight("int8", 3), 6),
        case("grouped_per_tensor", cases.conv(groups=2), tensor, 6),
        case("equal_scales", cases.conv(), cases.EqualScales("int8", 0), 5),
        case("no_rank", cases.fully_connected_without_shape(), channel, 12),
        case("no_rank_dequantize", cases.fully_connected_without_shape(), Weight("dequantize", None), 1),
        case("two_batch_axes", cases.batch_matmul(left=(2, 3, 5, 32)), tensor, 4),
        cases.with_scale(cases.fully_connected(), 0, 12, "subnormal_scale", 1e-39),
        cases.with_scale(cases.fully_connected(), 0, 12, "small_scale", 1e-35),
        case("two_axes", cases.shared_by_two_axes(), tensor, 0),
        case("constant_output", cases.constant_output(), Weight("dequantize", None), 0),
        case("mixed_LSTM", cases.lstm(operator="LSTM"), cases.FirstOnly("int8", None), 4),
        case("mixed_UNIDIRECTIONAL_SEQUENCE_LSTM", cases.lstm(), cases.FirstOnly("int8", None), 3),
        case("mixed_SVDF", cases.svdf(), cases.FirstOnly("int8", None), 4),
        case("shuffled", cases.fully_connected(weightsFormat=1), channel, 12),
        case("BIDIRECTIONAL_SEQUENCE_RNN", cases.rnn(operator="BIDIRECTIONAL_SEQUENCE_RNN"), tensor, 3),
        case("CONV_3D", cases.conv_3d(), tensor, 1),
        case("CONV_3D_TRANSPOSE", cases.conv_3d(transpose=True), tensor, 1),
    ]


def probes(runtime: runtimes.Runtime) -> list[Case]:
    found = []
    for operator in sorted(runtimes.versions()):
        highest = runtimes.max_version(operator, runtime)
        if highest:
            found += [cases.probe(operator, highest), cases.probe(operator, highest + 1)]
    return found


class Lab:
    """Measures groups of cases once and remembers the outcomes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._of = functools.lru_cache(maxsize=None)(self._measure)

    def _measure(self, group: str, old: bool) -> dict[str, dict[str, Outcome]]:
        resolvers: tuple[str, ...] = RESOLVERS
        if group == "hybrid":
            models = [model for pair in PAIRS for model in form_cases(*pair)]
        elif group == "probes":
            models = probes(OLDEST_MEASURED_RUNTIME if old else runtimes.NEWEST_RUNTIME)
            resolvers = (BUILTIN,)
        else:
            models = {
                "consumers": consumer_cases,
                "control": control_cases,
                "packed": packed_cases,
                "broken": broken_cases,
                "tables": cases.table_cases,
            }[group]()
        folder = self.folder / f"{group}{'-old' if old else ''}"
        folder.mkdir()
        more = {"python": OLD_PYTHON} if old and OLD_PYTHON is not None else {}
        return measure(models, folder, resolvers=resolvers, **more)

    def of(self, group: str, *, old: bool = False) -> dict[str, dict[str, Outcome]]:
        return self._of(group, old)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("kernels"))


def wrong(table: dict[str, dict[str, Outcome]], least_snr: float, *, old: bool = False) -> list[str]:
    """Returns what is not right; the reference resolver of 2.14 may lack an operator version."""
    return [
        f"{name} {resolver}: {outcome}"
        for name, outcomes in table.items()
        for resolver, outcome in outcomes.items()
        if not (outcome.reference_error is None and outcome.ok(least_snr))
        and not (resolver == REFERENCE and is_unregistered(outcome) and (old or name in LACKING))
    ]


LACKING = ("SEGMENT_SUM-tensor", "SEGMENT_SUM-channel")
"""Operators that the reference resolver does not have at all."""


@needs_new
@pytest.mark.parametrize(("row", "form"), FORMS)
def test_hybrid_form(lab: Lab, row: OperatorRow, form: Form) -> None:
    names = [model.name for model in form_cases(row, form)]
    table = {name: lab.of("hybrid")[name] for name in names}
    assert wrong(table, EXACT_SNR if row.name == "EMBEDDING_LOOKUP" else HYBRID_SNR) == []


@needs_new
@needs_old
@pytest.mark.parametrize(("row", "form"), FORMS)
def test_hybrid_form_on_the_old_runtime(lab: Lab, row: OperatorRow, form: Form) -> None:
    names = [model.name for model in form_cases(row, form)]
    table = {name: lab.of("hybrid", old=True)[name] for name in names}
    if form.first_runtime <= OLDEST_MEASURED_RUNTIME:
        assert wrong(table, HYBRID_SNR, old=True) == []
        return
    for outcomes in table.values():
        for outcome in outcomes.values():
            assert is_unregistered(outcome) if form.version_tells else not outcome.ok(HYBRID_SNR)


@needs_new
@pytest.mark.parametrize("group", ["consumers", "control", "packed", "tables"])
def test_exact_groups(lab: Lab, group: str) -> None:
    assert wrong(lab.of(group), EXACT_SNR) == []


@needs_new
@needs_old
@pytest.mark.parametrize("group", ["consumers", "control", "tables"])
def test_exact_groups_on_the_old_runtime(lab: Lab, group: str) -> None:
    table = {
        name: outcomes
        for name, outcomes in lab.of(group, old=True).items()
        if not name.startswith("STABLEHLO_COMPOSITE")
    }
    assert wrong(table, EXACT_SNR, old=True) == []


@needs_new
@needs_old
def test_packed_integers_are_refused_by_the_old_runtime(lab: Lab) -> None:
    for outcomes in lab.of("packed", old=True).values():
        assert all(is_unregistered(outcome) for outcome in outcomes.values())


@needs_new
@pytest.mark.parametrize(
    ("name", "resolvers"),
    [
        ("conv_no_bias", RESOLVERS),
        ("depthwise_no_bias", (XNNPACK, BUILTIN)),
        ("grouped_per_tensor", (BUILTIN, REFERENCE)),
        ("no_rank", (XNNPACK,)),
        ("two_batch_axes", (BUILTIN, REFERENCE)),
        ("subnormal_scale", (XNNPACK,)),
        ("two_axes", (XNNPACK,)),
        ("constant_output", (XNNPACK,)),
        ("mixed_LSTM", RESOLVERS),
        ("mixed_UNIDIRECTIONAL_SEQUENCE_LSTM", RESOLVERS),
        ("mixed_SVDF", RESOLVERS),
        ("shuffled", RESOLVERS),
        ("BIDIRECTIONAL_SEQUENCE_RNN", RESOLVERS),
        ("CONV_3D", RESOLVERS),
        ("CONV_3D_TRANSPOSE", RESOLVERS),
    ],
)
def test_what_a_need_protects_from(lab: Lab, name: str, resolvers: tuple[str, ...]) -> None:
    outcomes = lab.of("broken")[name]
    assert [resolver for resolver in resolvers if outcomes[resolver].ok(HYBRID_SNR)] == []


@needs_new
@pytest.mark.parametrize("name", ["small_scale", "no_rank_dequantize", "equal_scales"])
def test_what_needs_no_protection(lab: Lab, name: str) -> None:
    assert wrong({name: lab.of("broken")[name]}, HYBRID_SNR) == []


@needs_new
@needs_old
def test_equal_scales_on_the_old_runtime(lab: Lab) -> None:
    for outcome in lab.of("broken", old=True)["equal_scales"].values():
        assert outcome.error is None
        assert outcome.snr < 1


@needs_new
def test_registered_versions(lab: Lab) -> None:
    registered = {name for name, by in lab.of("probes").items() if by[BUILTIN].error is None}
    expected = {
        f"{operator}@{runtimes.max_version(operator, runtimes.NEWEST_RUNTIME)}"
        for operator in runtimes.versions()
    }
    assert registered ^ expected == {"STABLEHLO_CBRT@1"}


@needs_old
def test_registered_versions_of_the_old_runtime(lab: Lab) -> None:
    registered = {name for name, by in lab.of("probes", old=True).items() if by[BUILTIN].error is None}
    expected = {
        f"{operator}@{highest}"
        for operator in runtimes.versions()
        if (highest := runtimes.max_version(operator, OLDEST_MEASURED_RUNTIME))
    }
    assert registered ^ expected == {"TRANSPOSE@7"}
