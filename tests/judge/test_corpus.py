"""Public models: each against itself, and the ones that need special treatment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite.cli.render_judge import verdict_lines
from tfl_rewrite.judge.judge import Judge, run_model
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.pipeline.verify import verify

from ..helpers import CORPUS, NO_CORPUS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.runtime,
    pytest.mark.skipif(not CORPUS, reason=NO_CORPUS),
]
MODELS = Path(CORPUS or "/nonexistent")
INPUTS = MODELS.parent / "inputs"

# What the runtime does not take, and a word of the reason.
UNRUNNABLE = {
    "google-ai-edge+LiteRT__0_subgraphs": "No subgraph",
    "google-ai-edge+LiteRT__blockwise_quantized": "SIGABRT",
    "google-ai-edge+LiteRT__dynamic_string_custom_ops": "Normalize",
    "google-ai-edge+LiteRT__invalid_model": "not a valid Flatbuffer",
    "google-ai-edge+LiteRT__simple_model_npu_google_tensor_precompiled": "DISPATCH_OP",
    "google-ai-edge+LiteRT__test_model_broken": "not a valid Flatbuffer",
    "google-ai-edge+LiteRT__transpose": "schema version 2",
    "google-coral+test_data__mobilenet_v1_0.25_128_quant_edgetpu": "edgetpu-custom-op",
    "tensorflow+tflite-micro__person_detect": "quantized_dimension",
}
ONLY_WITHOUT_DELEGATES = {
    "google-coral+edgetpu__deeplabv3_mnv2_dm05_pascal_quant",
    "derived+ai-edge-quantizer__ff__dynamic_wi4b32_afp32",
}

# A single sample of these takes seconds.
SLOW = {
    "google-ai-edge+LiteRT__torchaudio_conformer",
    "mattn+go-tflite__style_transfer_quantized_dynamic",
    "syaringan357+Android-MobileFaceNet-MTCNN-FaceAntiSpoofing__pnet",
    "tensorflow+tflite-support__deeplabv3.971133",
    "terryky+tflite_gles_app__hair_segmentation",
}


def inputs_of(name: str) -> list[Path]:
    file = INPUTS / f"{name}.calib.npz"
    return [file] if file.exists() else []


def test_every_model_equals_itself(public, tmp_path):
    name = public.name.removesuffix(".tflite")
    count, inputs = 1 if name in SLOW else 2, []
    for file in inputs_of(name):
        with np.load(file) as held:
            np.savez(tmp_path / "in.npz", **{key: held[key][:count] for key in held.files})
        inputs.append(tmp_path / "in.npz")
    verdict = verify(public, public, Judging(inputs=inputs, tolerance=Tolerance(exact=True), samples=count))
    if name in UNRUNNABLE:
        assert verdict.status == "unverified" and UNRUNNABLE[name] in verdict.reasons[0]
        return
    assert all(output.bit_exact for output in verdict.outputs), verdict_lines(verdict)
    if all(output.silence is not None for output in verdict.outputs):
        # What is the same whatever goes in proves nothing, even of a file against itself.
        assert verdict.status == "unverified" and "no output says anything" in verdict.reasons[0]
        return
    assert verdict.status == "pass", verdict_lines(verdict)
    assert ("without default delegates" in verdict.judge.resolver) is (name in ONLY_WITHOUT_DELEGATES)
    assert verdict.sample_source == "made" if not inputs else verdict.sample_source != "made"


def test_float_against_its_quantized_neighbour():
    before = MODELS / "breizhn+DTLN__model_1.tflite"
    after = MODELS / "breizhn+DTLN__model_quant_1.tflite"
    verdict = verify(before, after, Judging(inputs=inputs_of("breizhn+DTLN__model_1")))
    assert verdict.status == "pass", verdict_lines(verdict)
    assert 10 < verdict.worst_snr() < 60


def test_indices_of_real_vocabularies():
    result = run_model(MODELS / "tensorflow+tflite-support__movie_review.tflite")
    assert result.failure is None
    assert 5000 < max(int(call[0].max()) for call in result.inputs) < 20000
    assert not any("varied" in note for note in result.notes)


def test_many_candidates_against_one_reference():
    names = ["mobilenet_v1_0.25_224_1_default_1", "mobilenet_v1_0.25_224_1_metadata_1", "deeplabv3.971133"]
    files = [MODELS / f"tensorflow+tflite-support__{name}.tflite" for name in names]
    with Judge(files[0], Judging(samples=1)) as judge:
        statuses = [judge.compare(file, tolerance=Tolerance(exact=True)).status for file in files]
    assert statuses == ["pass", "pass", "fail"]
