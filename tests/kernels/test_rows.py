"""The rows agree with each other and with what is known to go wrong; no runtime is started."""

from __future__ import annotations

import pytest

from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operators import Form, Granularity, Need, OperatorRow, Reading
from tfl_rewrite.kernels.runtimes import Runtime
from tfl_rewrite.kernels.table import DEQUANTIZE, ROWS, dequantize_form, row_named

RUNTIMES = [(1, 14), (2, 3), (2, 4), (2, 13), (2, 14), (2, 17), (2, 18), (2, 21), runtimes.NEWEST_RUNTIME]
HYBRID = [row for row in ROWS.values() if row.weights]
FORMS = [(row, form) for row in HYBRID for form in row.forms if form.dtype == "INT8"]


def runtime_of(operator: str, version: int) -> tuple[int, ...]:
    text = runtimes.version_text(operator, version)
    assert text is not None
    return runtimes.runtime_of(text)


def test_who_takes_integer_weights_has_forms_of_them() -> None:
    assert len(HYBRID) == 12
    for row in ROWS.values():
        readings = {form.reading for form in row.forms}
        assert (Reading.HYBRID in readings) == bool(row.weights)
        assert (Reading.LOOKUP in readings) == (row.table is not None)
        assert (Reading.DEQUANTIZE in readings) == (row is DEQUANTIZE)
        assert not (row.refusal and row.weights)
        assert row.source or not row.forms
        assert all(form.source for form in row.forms)
    assert not row_named("ADD").weights


def test_what_is_not_known_promises_nothing() -> None:
    row = row_named("NO_SUCH_OPERATOR")
    assert not (row.name or row.forms or row.weights or row.summed or row.biases or row.inputs)


@pytest.mark.parametrize(("row", "form"), FORMS, ids=lambda value: getattr(value, "name", None))
def test_a_form_is_never_promised_before_its_version_exists(row: OperatorRow, form: Form) -> None:
    first = runtime_of(row.name, form.version)
    assert form.first_runtime >= first
    # Where the version does not keep older runtimes away, nobody gets the form without asking.
    assert form.version_tells == (form.first_runtime == first)
    assert form.version_tells or not form.by_default


@pytest.mark.parametrize("row", HYBRID, ids=lambda row: row.name)
def test_per_channel_forms_have_an_axis(row: OperatorRow) -> None:
    with_channels = any(form.granularity is Granularity.CHANNEL for form in row.forms)
    assert with_channels == (row.scales_axis() is not None)


@pytest.mark.parametrize("row", HYBRID, ids=lambda row: row.name)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_best_form_is_within_the_runtime(row: OperatorRow, runtime: Runtime) -> None:
    for form in row.forms_for(runtime):
        assert form.first_runtime <= runtime
        assert form.by_default


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_known_to_go_wrong_is_a_default(runtime: Runtime) -> None:
    def best(operator: str) -> Form | None:
        return next(iter(row_named(operator).forms_for(runtime)), None)

    depthwise = row_named("DEPTHWISE_CONV_2D")
    assert {form.granularity for form in depthwise.forms} == {Granularity.CHANNEL}
    assert {form.version for form in depthwise.forms} == {6}
    assert depthwise.scales_axis() == 3
    for operator, first in (("FULLY_CONNECTED", (2, 17)), ("EMBEDDING_LOOKUP", (2, 18))):
        form = best(operator)
        if form is not None and form.granularity is Granularity.CHANNEL:
            assert runtime >= first
    matmul = best("BATCH_MATMUL")
    assert matmul is None or matmul.granularity is Granularity.TENSOR
    assert best("TRANSPOSE_CONV") is None


def test_conv_needs_a_bias_and_its_forms_divide_the_cases_between_them() -> None:
    row = row_named("CONV_2D")
    assert Need.FLOAT_BIAS in row.needs
    needs = {form.granularity: form.needs for form in row.forms if form.dtype == "INT8"}
    assert needs == {Granularity.CHANNEL: (Need.SCALES_DIFFER,), Granularity.TENSOR: (Need.UNGROUPED,)}


def test_batch_matmul_axis_follows_adj_y() -> None:
    row = row_named("BATCH_MATMUL")
    assert (row.scales_axis(adj_y=False), row.scales_axis(adj_y=True)) == (-1, -2)


def test_recurrent_inputs_are_all_weights() -> None:
    row = row_named("BIDIRECTIONAL_SEQUENCE_LSTM")
    assert len(row.weights) == 11 + 1 + 11 + 1 + 8
    for row in HYBRID:
        assert (len(row.weights) > 1) == (Need.ALL_OR_NOTHING in row.needs)


def test_dequantize_forms() -> None:
    form = dequantize_form("INT8", Granularity.CHANNEL)
    assert form is not None
    assert form.version == 5
    assert dequantize_form("INT8", Granularity.CHANNEL, (2, 6)) is None
    assert dequantize_form("INT4", Granularity.TENSOR, (2, 17)) is None
    assert dequantize_form("FLOAT16", None, (2, 3)) is not None
    assert dequantize_form("INT32", None) is None
    for form in DEQUANTIZE.forms:
        assert form.first_runtime >= runtime_of("DEQUANTIZE", form.version)


def test_table_lookups() -> None:
    newest = runtimes.NEWEST_RUNTIME
    plain = row_named("GATHER").form("INT8", Granularity.TENSOR, newest)
    assert plain is not None
    assert plain.version == 2
    by_row = row_named("GATHER").form("INT8", Granularity.CHANNEL, newest)
    assert by_row is not None
    assert by_row.first_runtime >= runtime_of("CAST", 3)
    assert row_named("GATHER_ND").form("INT8", Granularity.CHANNEL, newest) is None


def test_must_stay_constant() -> None:
    assert 0 in row_named("DENSIFY").constant_inputs
    assert not row_named("ADD").constant_inputs


def test_needs_have_descriptions() -> None:
    assert len({need.description for need in Need}) == len(Need)


def test_min_runtime() -> None:
    assert runtimes.min_runtime_text([]) == ""
    assert runtimes.min_runtime_text([("CUSTOM", 1), ("ADD", 99)]) == ""
    pairs = [("CONV_2D", 5), ("ADD", 1), ("FULLY_CONNECTED", 12)]
    assert runtimes.min_runtime_text(pairs) == "2.17.0"
    assert runtimes.min_runtime_text([("TRANSPOSE", 7), ("CONV_2D", 5)]) == "2.14.4"
    # Ten is more than nine: versions are numbers, not text.
    assert runtimes.min_runtime_text([("GELU", 1), ("ATAN2", 1)]) == "2.10.0"
    assert runtimes.version_text("CONV_2D", 5) == "2.4.0"
    assert runtimes.version_text("CONV_2D", 99) is None


def test_the_table_covers_the_versions_without_holes() -> None:
    listed = 0
    for rows in runtimes.versions().values():
        versions = [version for version, (first, _) in rows.items() if first is not None]
        assert versions == list(range(versions[0], versions[-1] + 1))
        listed += len(versions)
    assert listed == 441


def test_max_version() -> None:
    assert runtimes.max_version("FULLY_CONNECTED", (2, 14)) == 10
    assert runtimes.max_version("DEQUANTIZE", (2, 14)) == 5
    assert runtimes.max_version("BROADCAST_TO", (2, 4)) == 0


def test_activations_are_not_weights() -> None:
    for row in HYBRID:
        assert row.activation not in row.weights
        assert (row.activation is None) == (Need.FLOAT_INPUT_OUTPUT not in row.needs)
