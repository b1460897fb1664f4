"""Files that a search runs: where they are opened, what is put in place, and that it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.in_place import Content, Patched
from tfl_rewrite.search.session import Session, Wanted, session
from tfl_rewrite.search.trials import Frame
from tfl_rewrite.search.units import ENCODINGS, Form, base_pass, find_units
from tfl_rewrite.weights.encoding import Encoding
from tfl_rewrite.weights.grids import Choice as Grid
from tfl_rewrite.weights.grids import Constant, find_constants
from tfl_rewrite.weights.payloads import GridPayload


@pytest.mark.runtime
def test_constants_that_are_not_chosen_any_more_come_back(fixtures: Path, tmp_path: Path) -> None:
    source, path = fixtures / "digits_cnn.tflite", tmp_path / "trial.tflite"
    first, second = find_constants(load(source), int8=False, min_elements=RoundWeights().min_elements)[0][:2]
    patched = Patched(load(source), path)

    def coarse(item: Constant) -> dict[int, Content]:
        return {item.position: Content("coarse", GridPayload.of(item, Grid(0.25)).data)}

    assert patched.takes(coarse(first)) and not patched.takes({10**6: Content("", bytes)})
    patched.hold(coarse(first))
    changed = path.read_bytes()
    assert changed != source.read_bytes() and len(changed) == source.stat().st_size
    with Judge(source) as judge:
        verdict = judge.compare(path)
    assert verdict.measured and (verdict.worst_snr() or 0.0) < 60
    patched.hold(coarse(second))
    patched.hold({})
    assert path.read_bytes() == source.read_bytes()
    patched.hold(coarse(first))
    assert path.read_bytes() == changed


@pytest.fixture(scope="module")
def opened(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A search on the digits net, with weights that are rounded for a few of its inputs."""
    some = tmp_path_factory.mktemp("inputs") / "some.npz"
    with np.load(fixtures / "inputs" / "digits_calib.npz") as file:
        np.savez(some, **{key: file[key][:8] for key in file.files})
    goal, frame = Goal(min_snr=30.0), Frame(fixtures / "digits_cnn.tflite")
    wanted = Wanted(
        goal=goal, frame=frame, judging=Judging(inputs=(some,)), base=base_pass(QuantizeWeights())
    )
    with session(wanted) as made:
        yield made


def choices(session: Session) -> list[dict[int, Form]]:
    """All constants in one encoding, for some; a single hybrid one; and all of them in several."""
    base = session.wanted.base
    assert base is not None
    units = find_units(session.trials.fresh, base, ENCODINGS, Objective.FILE)
    forms = [[option.form for option in unit.options[1:]] for unit in units]
    found: list[dict[int, Form]] = [
        {
            unit.position: form
            for unit, each in zip(units, forms, strict=True)
            for form in each
            if str(form) == text
        }
        for text in ENCODINGS[::2]
    ]
    hybrid = Encoding.parse("int8:channel")
    mixed = {
        unit.position: each[-1] if number % 2 else hybrid
        for number, (unit, each) in enumerate(zip(units, forms, strict=True))
    }
    return [{unit.position: hybrid for unit in units}, {units[0].position: hybrid}, *found, mixed]


@pytest.mark.runtime
def test_values_in_place_give_what_the_file_gives(opened: Session, tmp_path: Path) -> None:
    """But for the last bits: what is no constant any more is computed with by other kernels."""
    trials, tried = opened.trials, []
    for number, choice in enumerate(choices(opened)):
        path = tmp_path / f"{number}.tflite"
        trials.write(choice, path)
        patched = trials.in_place(0, choice, opened=False)
        assert patched is not None
        with Judge(path, opened.wanted.judging, beside=trials.judge) as judge:
            verdict = judge.compare(patched)
        assert verdict.measured and (verdict.worst_snr() or 999.0) > 100, (choice, verdict.worst_snr())
        tried.append({str(form) for form in choice.values()})
    assert len(tried) >= 6 and "int8:channel" in tried[-1] and len(tried[-1]) > 1
