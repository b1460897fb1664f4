"""The same work on a real Dask cluster of two worker processes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfl_rewrite import UsageError
from tfl_rewrite.batch.config import plain_config
from tfl_rewrite.batch.run import run_batch
from tfl_rewrite.cli import main

MODELS = ("dense", "batch_matmul", "already_int8")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    distributed = pytest.importorskip("distributed", reason="dask is not installed (the extra [dask])")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        local_directory=str(tmp_path),
    ) as made:
        yield made.scheduler_address.replace("tcp://", "dask://")


@pytest.mark.runtime
def test_the_same_bytes_as_on_this_machine(cluster: str, fixtures: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in MODELS:
        shutil.copy(fixtures / f"{name}.tflite", models)
    shutil.copy(fixtures / "malformed" / "text.tflite", models)
    results = []
    for executor in ("local", cluster):
        out = tmp_path / executor[:4]
        config = plain_config(
            [f"{models}/*.tflite"],
            {"out": str(out), "passes": ("quantize-weights",), "executor": executor},
            {"mode": "off"},
        )
        summary = run_batch(config)
        assert summary.exit_code == 5 and len(summary.rows) == len(MODELS) + 1
        rows = json.loads((out / "summary.json").read_text())["files"]
        for row in rows:
            row.pop("seconds")
        results.append((rows, {path.name: path.read_bytes() for path in out.glob("*.tflite")}))
    assert results[0] == results[1]
    assert len(results[0][1]) == len(MODELS)


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_said_at_once(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed", reason="dask is not installed (the extra [dask])")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"dask://127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        words = ["batch", str(fixtures / "dense.tflite"), "--out", str(tmp_path / "out"), "--pass", "dedup"]
        assert main([*words, "--executor", address]) == 2
    assert time.monotonic() - started < 20
    said = capsys.readouterr().err
    assert "no scheduler answers" in said and "Traceback" not in said


def test_without_dask_it_says_what_to_install(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    config = plain_config(
        [str(fixtures / "dense.tflite")],
        {"out": str(tmp_path / "out"), "passes": ("dedup",), "executor": "dask://127.0.0.1:1"},
        {},
    )
    with pytest.raises(UsageError, match=r"pip install 'tfl-rewrite\[dask\]'"):
        run_batch(config)


@pytest.mark.runtime
def test_the_program_does_not_load_dask_unless_asked() -> None:
    code = "import sys, tfl_rewrite.batch.run; sys.exit('distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
