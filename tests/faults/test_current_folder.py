"""Nothing is imported from the folder that the program is run in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .place import FIXTURES

TOOL = [str(Path(sys.executable).parent / "tfl-rewrite")]
POISON = (
    *("json", "numpy", "queue", "ctypes", "platform", "tempfile", "hashlib", "tomllib", "logging", "secrets"),
    *(
        "ai_edge_litert",
        "flatbuffers",
        "tflite_runtime",
        "rich",
        "shtab",
        "re2",
        "child",
        "interface",
        "sandbox",
    ),
)
"""Names of modules that the program or its children import, or would if they were there."""
QUICK = ("--effort", "fast", "--encodings", "int8:channel")
"""A search with little to try."""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a model, and a module of each name that says so when it is run."""
    folder = tmp_path / "download"
    folder.mkdir()
    says = f"import os\nos.close(os.open({str(tmp_path / 'run')!r}, os.O_CREAT | os.O_WRONLY))\n"
    for name in POISON:
        (folder / f"{name}.py").write_text(f"{says}raise SystemExit(99)\n")
    (folder / "tfl_rewrite").mkdir()
    (folder / "tfl_rewrite" / "__init__.py").write_text(says)
    shutil.copy(FIXTURES / "mtcnn_rnet.tflite", folder / "in.tflite")
    shutil.copy(FIXTURES / "digits_cnn.tflite", folder / "cnn.tflite")
    shutil.copy(FIXTURES / "inputs" / "mtcnn_rnet.npz", folder / "in.npz")
    (folder / "mine.py").write_text("import beside\ndef same(outputs, reference):\n    return beside.VALUE\n")
    (folder / "beside.py").write_text("import json\nVALUE = json.loads('1.0')\n")
    return folder


@pytest.mark.runtime
@pytest.mark.parametrize(
    "words",
    [
        (
            "quantize-weights",
            "in.tflite",
            "out.tflite",
            "--inputs",
            "in.npz",
            "--blame",
            "--resolver",
            "builtin",
        ),
        ("batch", "in.tflite", "--out", "ob", "--pass", "dedup"),
        ("shard", "cnn.tflite", "s", "--format", "external"),
        (
            "shrink",
            "in.tflite",
            "out.tflite",
            "--objective",
            "latency",
            "--min-snr",
            "20",
            *QUICK,
        ),
        (
            *("shrink", "in.tflite", "out.tflite", "--min-snr", "20", *QUICK),
            *("--metric", "mine:same", "--min-metric", "1", "--inputs", "in.npz"),
        ),
    ],
    ids=["rewrite", "batch", "shard", "latency", "metric"],
)
def test_nothing_is_imported_from_the_current_folder(here: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run([*TOOL, *words], cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (here.parent / "run").exists()


@pytest.mark.runtime
@pytest.mark.parametrize("safe", [(), ("-P",), ("-I",)])
@pytest.mark.parametrize(
    "words", [("check", "in.tflite"), ("batch", "in.tflite", "--out", "o", "--pass", "dedup")]
)
def test_nor_with_the_module_switch(here: Path, safe: tuple[str, ...], words: tuple[str, ...]) -> None:
    """Python itself puts that folder first then."""
    if safe == ("-P",) and sys.version_info < (3, 11):
        pytest.skip("this Python does not know -P")
    shutil.rmtree(here / "tfl_rewrite")
    command = [sys.executable, *safe, "-m", "tfl_rewrite", *words]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (here.parent / "run").exists()


@pytest.mark.runtime
def test_where_python_is_told_not_to_look_there_anyway(here: Path, tmp_path: Path) -> None:
    """Then the first place of all is another one, which must not be left out."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").write_text("")
    (tmp_path / "first" / "mine_too.py").write_text("def same(outputs, reference):\n    return 1.0\n")
    environment = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path / "first"), "PATH": "/usr/bin:/bin"}
    words = ("shrink", "in.tflite", "out.tflite", "--min-snr", "20", *QUICK)
    metric = ("--metric", "mine_too:same", "--min-metric", "1", "--inputs", "in.npz")
    done = subprocess.run(
        [*TOOL, *words, *metric], cwd=here, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert not (here.parent / "run").exists()
