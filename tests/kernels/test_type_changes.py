"""Every step of a type is turned into the same value of another, on every resolver of both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.files.source import layout
from tfl_rewrite.integers.border import FLOATS, TYPES, Form
from tfl_rewrite.integers.convert import type_change
from tfl_rewrite.kernels.integer import TYPE_CHANGES, TypeChange
from tfl_rewrite.kernels.table import QUANTIZE

from .measure import OLD_PYTHON, Case, Outcome, measure, needs_new, needs_old

pytestmark = [pytest.mark.runtime, needs_new]

INSIDE = Form("INT8", float(np.float32(0.0173)), -17)
FORMS = {kind: FLOATS if kind == FLOATS.kind else INSIDE.nested(kind) for kind in TYPES.values()}
PAIRS = [(one, other) for one in FORMS for other in FORMS if (one, other) != (FLOATS.kind, FLOATS.kind)]
LAST_BITS = 2.0**-22


def steps(kind: str) -> np.ndarray:
    """All values of eight bits, in a type that holds them."""
    form = FORMS[kind]
    ratio = round(INSIDE.scale / form.scale)
    found = (np.arange(-128, 128) - INSIDE.zero_point) * ratio + form.zero_point
    return found.astype({"INT8": "i1", "UINT8": "u1", "INT16": "i2"}[kind])


def values(kind: str) -> np.ndarray:
    reals = (np.arange(-128, 128) - INSIDE.zero_point).astype(np.float32) * np.float32(INSIDE.scale)
    return np.tile(reals if kind == FLOATS.kind else steps(kind), 64)


def case_of(one: str, other: str) -> Case:
    net, given = Net(), values(one)
    source, made = net.input("x", given.shape, given.dtype), net.tensor("y", given.shape, values(other).dtype)
    FORMS[one].give(source)
    FORMS[other].give(made)
    editor = Editor(net.model)
    if (one, other) in TYPE_CHANGES:
        net.graph.operators.append(type_change(editor, source, made))
    else:
        net.graph.operators.append(editor.plain(QUANTIZE, 2, [source], made))
    net.output(made)
    editor.finish()
    return Case(f"{one}-{other}", layout(net.model).to_bytes(), [given])


def check(outcomes: dict[str, Outcome], other: str, *, works: bool) -> None:
    told = {resolver: str(outcome) for resolver, outcome in outcomes.items()}
    assert all((outcome.error is None) is works for outcome in outcomes.values()), told
    wanted = values(other)
    for outcome in outcomes.values() if works else ():
        made = outcome.outputs["turn0_0"]
        if other == FLOATS.kind:
            # Built-in kernels multiply and add in one step.
            assert np.abs(made - wanted).max() <= LAST_BITS * np.abs(wanted).max()
        else:
            assert np.array_equal(made, wanted)


def test_every_change_is_that_of_the_table(tmp_path: Path) -> None:
    seen = measure([case_of(*pair) for pair in PAIRS], tmp_path)
    for one, other in PAIRS:
        check(seen[f"{one}-{other}"], other, works=(one, other) in TYPE_CHANGES)


@needs_old
def test_the_oldest_runtime_makes_those_that_the_table_says(tmp_path: Path) -> None:
    assert OLD_PYTHON is not None
    seen = measure([case_of(*pair) for pair in PAIRS], tmp_path, python=OLD_PYTHON)
    for one, other in PAIRS:
        change: TypeChange | None = TYPE_CHANGES.get((one, other))
        check(seen[f"{one}-{other}"], other, works=change is not None and change.old)
