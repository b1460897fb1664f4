"""The examples in the docstrings of the public names run, and show what they say."""

from __future__ import annotations

import ast
import doctest
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

import tfl_rewrite

CLIENT = ast.parse(Path(__file__).with_name("client.py").read_text("utf-8"))
# What only some programs need is imported from its module.
HOMES = {
    alias.name: node.module
    for node in ast.walk(CLIENT)
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfl_rewrite.")
    for alias in node.names
}
NAMES = [*(name for name in tfl_rewrite.__all__ if name != "__version__"), *HOMES]
# These run files, or something in them does.
RUN = {
    "blame",
    "chain",
    "split",
    "Chain",
    "SplitFailed",
    "rewrite",
    "shrink",
    "verify",
    "Blame",
    "Compact",
    "Dedup",
    "Dequantize",
}
RUN |= {
    "Quantize",
    "RemoveDead",
    "Repair",
    "Report",
    "RewriteFailed",
    "RoundWeights",
    "ShardFailed",
    "ShardedModel",
}
RUN |= {
    "Tensor",
    "TensorRanges",
    "record",
    "Recorder",
    "SignatureRunner",
    "ShrinkFailed",
    "UnsupportedError",
    "Verdict",
    "reshape",
}
RUN |= {"Rename", "Retarget", "SetMetadata", "Simplify"}
FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


@pytest.fixture(scope="session")
def files(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples work on: a model, its int8 version, inputs of it, and a file that is no model."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(fixtures / "digits_cnn.tflite", folder / "model.tflite")
    with np.load(fixtures / "inputs" / "digits_calib.npz") as held:
        np.savez(folder / "inputs.npz", **{name: held[name][:24] for name in held.files})
    model = tfl_rewrite.load(folder / "model.tflite")
    tfl_rewrite.run(model, [tfl_rewrite.passes.QuantizeWeights()])
    tfl_rewrite.save(model, folder / "new.tflite")
    (folder / "labels.txt").write_text("zero\none\ntwo\n")
    return folder


def marked(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.runtime) if name in RUN else name


@pytest.mark.parametrize("name", [*map(marked, NAMES)])
def test_the_example_of_a_public_name_runs(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in files.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    text = getattr(importlib.import_module(HOMES.get(name) or "tfl_rewrite"), name).__doc__
    found = doctest.DocTestParser().get_doctest(text, {"tfl_rewrite": tfl_rewrite}, name, None, 0)
    assert found.examples, text
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    assert runner.run(found, out=said.append).failed == 0, "".join(said)
