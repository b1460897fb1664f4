"""The rows of packed integers say what runtimes do: each is measured, and so is what each rule keeps out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operators import Form, Granularity, Need, Shape
from tfl_rewrite.kernels.table import ROWS, row_named

from .cases import variants
from .measure import (
    BUILTIN,
    EXACT_SNR,
    HYBRID_SNR,
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
from .packed_cases import conv_case, dense_case, embedding_case, expanded_case, packed, variant_case

FORMS = [
    (name, form)
    for name, row in ROWS.items()
    if row.weights
    for form in row.forms
    if form.dtype in ("INT4", "INT2")
]
IDS = [f"{operator}-{form.dtype}-{form.granularity.value}" for operator, form in FORMS]


def form_cases(operator: str, form: Form) -> list[Case]:
    """Every shape that the form admits: whole and odd sizes, one output, no bias."""
    bits, kind = int(form.dtype[3:]), form.granularity.value
    label = f"{operator}-{form.dtype}-{kind}"
    lowest = form.full_range
    made = []
    if operator == "FULLY_CONNECTED":
        shapes = [(16, 64), (17, 96), (4, 128)] if form.shape is Shape.WHOLE_BLOCKS else DENSE
        for rows, columns in shapes:
            weight = packed((rows, columns), bits, kind, lowest=lowest)
            for bias in (True, False):
                name = f"{label}-{rows}x{columns}-{bias}"
                made.append(dense_case(name, weight, form.version, batch=1 + rows % 3, bias=bias))
    elif operator == "CONV_2D":
        for shape in ((16, 3, 3, 8), (15, 3, 3, 7), (5, 1, 1, 9)):
            weight = packed(shape, bits, kind, lowest=lowest)
            name = f"{label}-{'x'.join(map(str, shape))}"
            made.append(conv_case(name, weight, form.version, stride=1 + shape[0] % 2))
    else:
        for shape in (
            ((10, 64), (9, 32)) if form.shape is Shape.WHOLE_BLOCKS else ((10, 16), (9, 4), (7, 2, 4))
        ):
            weight = packed(shape, bits, kind, lowest=lowest)
            made.append(embedding_case(f"{label}-{'x'.join(map(str, shape))}", weight, form.version))
    if form.granularity is not Granularity.BLOCK:
        axis = 0 if form.granularity is Granularity.CHANNEL else None
        for name, build in variants(operator, asymmetric=True).items():
            if name != "grouped" or Need.UNGROUPED not in form.needs:
                made.append(variant_case(f"{label}-{name}", build, bits, axis, form.version))
    return made


DENSE = ((16, 64), (15, 63), (15, 62), (17, 66), (3, 6), (1, 64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, dict[str, Outcome]]:
    """All cases of all forms, and of what the rules keep out, in one process for each resolver."""
    cases = [case for operator, form in FORMS for case in form_cases(operator, form)]
    cases += [
        dense_case("lowest", packed((16, 64), 4, "channel", lowest=True), 12),
        dense_case("few_outputs", packed((3, 64), 4, "block"), 14),
        embedding_case("half_bytes", packed((10, 15), 4, "channel"), 4),
        embedding_case("quarter_bytes", packed((10, 14), 2, "channel"), 5),
        *[expanded_case(f"expanded{bits}", bits) for bits in (8, 4, 2)],
    ]
    return measure(cases, folder)


@pytest.mark.runtime
@needs_new
@pytest.mark.parametrize(("operator", "form"), FORMS, ids=IDS)
def test_form(measured: dict[str, dict[str, Outcome]], operator: str, form: Form) -> None:
    least = EXACT_SNR if operator == "EMBEDDING_LOOKUP" else HYBRID_SNR
    for case in form_cases(operator, form):
        for resolver, outcome in measured[case.name].items():
            assert outcome.reference_error is None
            if form.by_default or resolver != REFERENCE:
                assert outcome.ok(least), f"{case.name} {resolver}: {outcome}"
            else:
                # The reason why nobody gets it without asking.
                assert not outcome.ok(least)


@pytest.mark.runtime
@needs_new
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_expanded_blocks_are_exact(measured: dict[str, dict[str, Outcome]], bits: int) -> None:
    for resolver, outcome in measured[f"expanded{bits}"].items():
        assert outcome.ok(EXACT_SNR), f"{resolver}: {outcome}"


@pytest.mark.runtime
@needs_new
@pytest.mark.parametrize(
    ("name", "resolvers"),
    [
        ("lowest", (BUILTIN,)),
        ("few_outputs", (BUILTIN, REFERENCE)),
        ("half_bytes", (XNNPACK, BUILTIN, REFERENCE)),
        ("quarter_bytes", (XNNPACK, BUILTIN, REFERENCE)),
    ],
)
def test_what_a_rule_protects_from(
    measured: dict[str, dict[str, Outcome]], name: str, resolvers: tuple[str, ...]
) -> None:
    assert [resolver for resolver in resolvers if measured[name][resolver].ok(20)] == []


@pytest.mark.runtime
@needs_new
@needs_old
def test_the_old_runtime_refuses_all(folder: Path) -> None:
    assert OLD_PYTHON is not None
    cases = [form_cases(operator, form)[0] for operator, form in FORMS]
    (whole,) = [expanded_case("expanded8", 8)]
    table = measure([*cases, whole], folder, python=OLD_PYTHON)
    for case in cases:
        assert all(is_unregistered(outcome) for outcome in table[case.name].values()), case.name
    assert all(outcome.ok(EXACT_SNR) for outcome in table["expanded8"].values())


def test_rows_agree_with_the_table_of_versions() -> None:
    for operator, form in FORMS:
        listed = runtimes.version_text(operator, form.version)
        assert listed is not None
        assert form.first_runtime >= runtimes.runtime_of(listed)
        assert form.first_runtime > runtimes.OLDEST_MEASURED_RUNTIME


def test_forms_by_runtime() -> None:
    dense, newest = row_named("FULLY_CONNECTED"), runtimes.NEWEST_RUNTIME
    assert dense.forms_for((2, 17), "INT4") == ()
    assert [form.granularity for form in dense.forms_for((2, 18), "INT4")] == [Granularity.CHANNEL]
    assert Granularity.BLOCK not in {form.granularity for form in dense.forms_for(newest, "INT4")}
    asked = dense.forms_for(newest, "INT4", by_default=False)
    assert Granularity.BLOCK in {form.granularity for form in asked}
    assert row_named("ADD").forms_for(newest, "INT4") == ()
