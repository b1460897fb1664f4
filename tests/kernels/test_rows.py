"""The rows agree with each other and with what is known to go wrong; no runtime is started."""

from __future__ import annotations

import pytest

from tfl_rewrite.kernels import hybrid, runtimes
from tfl_rewrite.kernels.hybrid import Form, Granularity, HybridRow, Need
from tfl_rewrite.kernels.runtimes import Runtime

RUNTIMES = [(1, 14), (2, 3), (2, 4), (2, 13), (2, 14), (2, 17), (2, 18), (2, 21), runtimes.NEWEST_RUNTIME]
FORMS = [(row, form) for row in hybrid.HYBRID for form in row.forms]


def runtime_of(operator: str, version: int) -> tuple[int, ...]:
    return tuple(int(part) for part in runtimes.FIRST_RUNTIME[operator, version].split("."))[:2]


def test_every_row_is_found_by_its_operator() -> None:
    assert len({row.operator for row in hybrid.HYBRID}) == len(hybrid.HYBRID)
    for row in hybrid.HYBRID:
        assert hybrid.hybrid_row(row.operator) is row
        assert hybrid.no_hybrid(row.operator) is None
    for refused in hybrid.NO_HYBRID:
        assert hybrid.hybrid_row(refused.operator) is None
        assert hybrid.no_hybrid(refused.operator) is refused
    assert hybrid.hybrid_row("ADD") is None


@pytest.mark.parametrize(("row", "form"), FORMS, ids=lambda value: getattr(value, "operator", None))
def test_a_form_is_never_promised_before_its_version_exists(row: HybridRow, form: Form) -> None:
    first = runtime_of(row.operator, form.version)
    assert form.first_runtime >= first
    # Where the version does not keep older runtimes away, nobody gets the form without asking.
    assert form.version_tells == (form.first_runtime == first)
    assert form.version_tells or not form.by_default


@pytest.mark.parametrize("row", hybrid.HYBRID, ids=lambda row: row.operator)
def test_per_channel_forms_have_an_axis(row: HybridRow) -> None:
    with_channels = any(form.granularity is Granularity.CHANNEL for form in row.forms)
    assert with_channels == (row.axis() is not None)


@pytest.mark.parametrize("row", hybrid.HYBRID, ids=lambda row: row.operator)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_best_form_is_within_the_runtime(row: HybridRow, runtime: Runtime) -> None:
    form = row.best_form(runtime)
    if form is not None:
        assert form.first_runtime <= runtime
        assert form.by_default


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_known_to_go_wrong_is_a_default(runtime: Runtime) -> None:
    def best(operator: str) -> Form | None:
        row = hybrid.hybrid_row(operator)
        assert row is not None
        return row.best_form(runtime)

    depthwise = hybrid.hybrid_row("DEPTHWISE_CONV_2D")
    assert depthwise is not None
    assert {form.granularity for form in depthwise.forms} == {Granularity.CHANNEL}
    assert {form.version for form in depthwise.forms} == {6}
    assert depthwise.axis() == 3
    for operator, first in (("FULLY_CONNECTED", (2, 17)), ("EMBEDDING_LOOKUP", (2, 18))):
        form = best(operator)
        if form is not None and form.granularity is Granularity.CHANNEL:
            assert runtime >= first
    matmul = best("BATCH_MATMUL")
    assert matmul is None or matmul.granularity is Granularity.TENSOR
    assert best("TRANSPOSE_CONV") is None


def test_conv_needs_a_bias_and_its_forms_divide_the_cases_between_them() -> None:
    row = hybrid.hybrid_row("CONV_2D")
    assert row is not None
    assert Need.FLOAT_BIAS in row.needs
    needs = {form.granularity: form.needs for form in row.forms}
    assert needs == {Granularity.CHANNEL: (Need.SCALES_DIFFER,), Granularity.TENSOR: (Need.UNGROUPED,)}


def test_batch_matmul_axis_follows_adj_y() -> None:
    row = hybrid.hybrid_row("BATCH_MATMUL")
    assert row is not None
    assert (row.axis(adj_y=False), row.axis(adj_y=True)) == (-1, -2)


def test_recurrent_inputs_are_all_weights() -> None:
    row = hybrid.hybrid_row("BIDIRECTIONAL_SEQUENCE_LSTM")
    assert row is not None
    assert len(row.inputs) == 11 + 1 + 11 + 1 + 8
    for row in hybrid.HYBRID:
        assert (len(row.inputs) > 1) == (Need.ALL_OR_NOTHING in row.needs)


def test_dequantize_forms() -> None:
    form = hybrid.dequantize_form("INT8", Granularity.CHANNEL)
    assert form is not None
    assert form.version == 5
    assert hybrid.dequantize_form("INT8", Granularity.CHANNEL, (2, 6)) is None
    assert hybrid.dequantize_form("INT4", Granularity.TENSOR, (2, 17)) is None
    assert hybrid.dequantize_form("FLOAT16", None, (2, 3)) is not None
    assert hybrid.dequantize_form("INT32", None) is None
    for form in hybrid.DEQUANTIZE:
        assert form.first_runtime >= runtime_of("DEQUANTIZE", form.version)


def test_table_lookups() -> None:
    plain = hybrid.table_lookup("GATHER")
    assert plain is not None
    assert (plain.version, plain.granularity) == (2, Granularity.TENSOR)
    by_row = hybrid.table_lookup("GATHER", Granularity.CHANNEL)
    assert by_row is not None
    assert by_row.first_runtime >= runtime_of("CAST", 3)
    assert hybrid.table_lookup("GATHER_ND", Granularity.CHANNEL) is None


def test_must_stay_constant() -> None:
    assert hybrid.must_stay_constant("DENSIFY", 0) is not None
    assert hybrid.must_stay_constant("ADD", 1) is None


def test_needs_have_descriptions() -> None:
    assert len({need.description for need in Need}) == len(Need)


def test_min_runtime() -> None:
    assert runtimes.min_runtime([]) == (0, 0)
    assert runtimes.min_runtime_text([]) == ""
    assert runtimes.min_runtime([("CUSTOM", 1), ("ADD", 99)]) == (0, 0)
    pairs = [("CONV_2D", 5), ("ADD", 1), ("FULLY_CONNECTED", 12)]
    assert runtimes.min_runtime(pairs) == (2, 17)
    assert runtimes.min_runtime_text(pairs) == "2.17.0"
    assert runtimes.min_runtime_text([("TRANSPOSE", 7), ("CONV_2D", 5)]) == "2.14.4"
    # Ten is more than nine: versions are numbers, not text.
    assert runtimes.min_runtime_text([("GELU", 1), ("ATAN2", 1)]) == "2.10.0"
    assert runtimes.version_text("CONV_2D", 5) == "2.4.0"
    assert runtimes.version_text("CONV_2D", 99) is None


def test_the_table_covers_the_versions_without_holes() -> None:
    assert len(runtimes.FIRST_RUNTIME) == 441
    for operator in {operator for operator, _ in runtimes.FIRST_RUNTIME}:
        versions = sorted(version for name, version in runtimes.FIRST_RUNTIME if name == operator)
        assert versions == list(range(versions[0], versions[-1] + 1))


def test_max_version() -> None:
    assert runtimes.max_version("FULLY_CONNECTED", (2, 14)) == 10
    assert runtimes.max_version("DEQUANTIZE", (2, 14)) == 5
    assert runtimes.max_version("BROADCAST_TO", (2, 4)) == 0


def test_activations_are_not_weights() -> None:
    for row in hybrid.HYBRID:
        assert row.activation not in row.inputs
        assert (row.activation is None) == (Need.FLOAT_INPUT_OUTPUT not in row.needs)
