"""Files made for an old runtime, computed by that runtime.

``TFL_REWRITE_OLD_RUNTIME_PYTHON`` names the Python of an environment with tflite-runtime 2.14.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tfl_rewrite import UsageError, load, save, verify
from tfl_rewrite.cli import main
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.passes.quantize_weights import QuantizeWeights

OLD = os.environ.get("TFL_REWRITE_OLD_RUNTIME_PYTHON")
pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(not OLD, reason="TFL_REWRITE_OLD_RUNTIME_PYTHON names no Python"),
]

# Models that the old runtime itself cannot run, and why.
BEYOND_IT = {
    "already_int4": "int4",
    "blockwise_int4": "blocks",
    "composite": "STABLEHLO_COMPOSITE",
    "digits_cnn_dynamic_range": "FULLY_CONNECTED with scales per channel",
    "conv_without_bias": "no runtime prepares it",
    "model": "weights beside the model",
}


# Models that it loads and computes wrong; tests/passes/test_renewal.py compares with newer runtimes.
MISREAD = {"already_int8": "FULLY_CONNECTED with scales per channel, stamped too low"}


@pytest.mark.runtime
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheme": "dequantize"},
        {"granularity": "tensor"},
        {"granularity": "block:32"},
        {"dtype": "float16"},
        {"map": "FULLY_CONNECTED=int8:block:64,.*=float16"},
    ],
    ids=str,
)
def test_old_runtime(sound: Path, fixtures: Path, tmp_path: Path, options: dict[str, str]) -> None:
    model = load(sound)
    try:
        result = run_passes(model, [QuantizeWeights(min_runtime="2.14", **options)])[0]
    except UsageError:
        pytest.skip("a rule matches nothing")
    if not result.modified:
        pytest.skip("nothing is changed")
    target = tmp_path / "out.tflite"
    save(model, target)
    real = fixtures / "inputs" / f"{sound.stem}.npz"
    inputs = (real,) if real.is_file() else ()
    # Whether it computes what was meant; two samples tell little of how exactly.
    tolerance = Tolerance(min_snr=10.0)
    try:
        verdict = verify(
            sound, target, Judging(inputs=inputs, samples=2, runtime=f"python:{OLD}", tolerance=tolerance)
        )
    except UsageError:
        verdict = verify(sound, target, Judging(samples=2, runtime=f"python:{OLD}", tolerance=tolerance))
    if sound.stem in BEYOND_IT:
        assert verdict.status == "unverified"
    elif sound.stem in MISREAD:
        assert not verdict.passed
    else:
        assert verdict.passed, verdict.reasons


def test_a_file_that_is_too_new_for_the_judge_names_the_option(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize-weights", str(fixtures / "dense.tflite"), str(tmp_path / "out.tflite")]
    words += ["--min-elements", "1", "--runtime", f"python:{OLD}"]
    assert main(words) == 4
    assert capsys.readouterr().err.endswith("; --min-runtime 2.14 chooses forms that this runtime knows\n")
    assert main([*words, "--min-runtime", "2.14"]) == 0
