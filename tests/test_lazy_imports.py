"""Heavy packages are loaded when they are needed, not before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

INTERPRETERS = {"ai_edge_litert", "tensorflow", "tflite_runtime"}


def all_loaded_by(code: str) -> set[str]:
    """The modules of a fresh Python after it ran ``code``."""
    text = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", text], check=True, capture_output=True, text=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def loaded_by(code: str) -> set[str]:
    """The top-level modules of a fresh Python after it ran ``code``."""
    return {name.partition(".")[0] for name in all_loaded_by(code)}


VERSION = """
from tfl_rewrite.cli import main
try:
    main(["--version"])
except SystemExit as stop:
    assert not stop.code
"""


@pytest.mark.parametrize("code", ["import tfl_rewrite", VERSION], ids=["import", "version"])
def test_nothing_heavy_is_loaded(code: str) -> None:
    names = loaded_by(code)
    assert "tfl_rewrite" in names
    assert not names & {"numpy", "flatbuffers", "rich", "shtab", *INTERPRETERS}
    # Either takes longer than Python itself.
    assert not names & {"argparse", "dataclasses"}


@pytest.mark.parametrize("call", ["load", "check", "inspect"])
def test_reading_a_model_loads_no_interpreter(fixtures: Path, call: str) -> None:
    names = loaded_by(f"import tfl_rewrite; tfl_rewrite.{call}({str(fixtures / 'dense.tflite')!r})")
    assert "tfl_rewrite" in names and not names & INTERPRETERS


@pytest.mark.parametrize("call", ["tfl_rewrite.check({0!r})", "tfl_rewrite.cli.main(['check', {0!r}])"])
def test_checking_a_model_loads_nothing_that_computes_or_writes(fixtures: Path, call: str) -> None:
    names = all_loaded_by(f"import tfl_rewrite.cli; {call.format(str(fixtures / 'digits_cnn.tflite'))}")
    tops = {name.partition(".")[0] for name in names}
    assert "tfl_rewrite" in tops and not tops & {"numpy", "flatbuffers", "rich", "shtab", *INTERPRETERS}
    assert not names & SLOW


SLOW = {"concurrent.futures", "importlib.metadata", "tomllib", "zipfile"}
"""Of the standard library: what takes as long to load as a small file to read."""
ROOMS_OF_OTHER_COMMANDS = ("batch", "calibration", "integers", "interpreter", "samples", "shards")


def test_rewriting_with_one_pass_loads_no_other_pass_and_no_judge(fixtures: Path, tmp_path: Path) -> None:
    call = ["quantize-weights", "--verify", "off", str(fixtures / "digits_cnn.tflite"), str(tmp_path / "out")]
    names = all_loaded_by(f"import tfl_rewrite.cli; assert not tfl_rewrite.cli.main({call!r})")
    assert (tmp_path / "out").exists()
    own = {name.removeprefix("tfl_rewrite.") for name in names if name.startswith("tfl_rewrite.")}
    passes = {name for name in own if name.startswith("passes.")}
    assert passes == {"passes.catalog", "passes.quantize_weights", "passes.simplify"}
    assert not {name for name in own if name.split(".")[0] in ROOMS_OF_OTHER_COMMANDS}
    assert not own & {"judge.verdict", "editing.layer_fusions", "search.shrink"}
    assert not names & {*SLOW, "rich", "shtab", *INTERPRETERS}


def test_media_are_decoded_by_packages_that_are_loaded_when_there_are_media() -> None:
    names = loaded_by("import tfl_rewrite.samples.inputs, tfl_rewrite.reading.metadata")
    assert "numpy" in names and not names & {"PIL", "soundfile"}


def test_saving_a_changed_model_loads_no_interpreter(fixtures: Path, tmp_path: Path) -> None:
    source, target = str(fixtures / "dense.tflite"), str(tmp_path / "out.tflite")
    code = f"import tfl_rewrite as t; m = t.load({source!r}); m.description = 'x'; t.save(m, {target!r})"
    assert not loaded_by(code) & INTERPRETERS
    assert (tmp_path / "out.tflite").exists()


def test_every_public_name_can_be_loaded() -> None:
    import tfl_rewrite

    assert sorted(tfl_rewrite.__all__) == list(tfl_rewrite.__all__) == dir(tfl_rewrite)
    for name in tfl_rewrite.__all__:
        assert getattr(tfl_rewrite, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tfl_rewrite.nothing  # noqa: B018
