"""Large files: memory stays flat, and offsets past 2 GiB are as good as small ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import check, load, work
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.search.rewrite import rewrite

DEEP = os.environ.get("TFL_REWRITE_LARGE") == "1"
OFF = Judging(mode="off")

# The command, and then the peak of its resident memory in KiB; that of its parent does not count there.
MEASURED = """
import sys
from tfl_rewrite.cli import main
code = main(sys.argv[1:])
status = open("/proc/self/status").read()
print("peak", status.split("VmHWM:")[1].split()[0])
sys.exit(code)
"""
PEAK_MIB = 150


def peak(*arguments: str | Path) -> float:
    """Runs a command; returns its peak memory in MiB, mapped pages included."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.rsplit("peak ", 1)[1]) / 1024


def make(root: Path, path: Path, gib: float, *options: str) -> Path:
    script = root / "scripts" / "large_model.py"
    subprocess.run([sys.executable, script, path, str(gib), *options], check=True, timeout=600)
    return path


def need_room(folder: Path, gib: float) -> None:
    if shutil.disk_usage(folder).free < gib * (1 << 30):
        pytest.skip(f"less than {gib} GiB of room on the disk")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak memory from")
def test_memory_stays_flat(root: Path, tmp_path: Path) -> None:
    """Less than half of the file, in any command: each of the two heads alone would be a tenth."""
    need_room(tmp_path, 1.5)
    model = make(root, tmp_path / "model.tflite", 0.3)
    assert model.stat().st_size > 2 * PEAK_MIB << 20
    shards, joined = tmp_path / "shards", tmp_path / "joined.tflite"
    peaks = {
        "check": peak("check", model),
        "inspect": peak("inspect", model),
        "quantize-weights": peak("quantize-weights", "--verify", "off", model, tmp_path / "q.tflite"),
        "dedup": peak("dedup", "--verify", "off", model, tmp_path / "d.tflite"),
        # Parts as large as the model: nothing of that size is ever held.
        "shard": peak("shard", "--max-size", "1GB", model, shards),
        "join": peak("join", shards / "manifest.json", joined),
    }
    assert all(value < PEAK_MIB for value in peaks.values()), peaks
    assert (tmp_path / "q.tflite").stat().st_size < 0.27 * model.stat().st_size
    # Two of eight towers at most are repeats, one of two heads is; nearly equal ones stay.
    assert 0.85 < (tmp_path / "d.tflite").stat().st_size / model.stat().st_size < 0.92
    with open(model, "rb") as one, open(joined, "rb") as two:
        while piece := one.read(1 << 20):
            assert two.read(1 << 20) == piece
        assert not two.read(1)


@pytest.mark.slow
def test_past_two_gibibytes(root: Path, tmp_path: Path) -> None:
    """A file of holes: what lies past 2 GiB is found, and said to be sound."""
    need_room(tmp_path, 2.5)
    model = make(root, tmp_path / "model.tflite", 2.2, "--sparse")
    if model.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("the file system has no holes")
    assert check(model) == []
    loaded = load(model)
    far = [buffer for buffer in loaded.buffers if buffer.rest.get("offset") > 1 << 31]
    assert far and all(buffer.outside for buffer in far)
    heads = [tensor for tensor in loaded.subgraphs[0].tensors if tensor.name.startswith("head")]
    first, second = (tensor.buffer.blob for tensor in heads if tensor.name.endswith("kernel"))
    assert first is not None and second is not None and bytes(first.view()[:64]) == bytes(second.view()[:64])
    assert any(first.view()[:64])


@pytest.mark.skipif(not DEEP, reason="takes a minute and 5 GB of disk; TFL_REWRITE_LARGE=1 runs it")
def test_rewrites_past_two_gibibytes(root: Path, tmp_path: Path) -> None:
    need_room(tmp_path, 6)
    model = make(root, tmp_path / "model.tflite", 2.2)
    out = tmp_path / "out.tflite"
    assert peak("quantize-weights", "--verify", "off", model, out) < 300
    assert check(out) == [] and not any(buffer.outside for buffer in load(out).buffers)
    out.unlink()
    # One weight stays float: what is left is over 2 GiB, so offsets stay.
    assert peak("dedup", "--verify", "off", model, out) < 300
    before, after = load(model), load(out)
    names = {tensor.name: tensor for tensor in before.subgraphs[0].tensors}
    for tensor in after.subgraphs[0].tensors:
        old = names[tensor.name]
        assert tensor.buffer.nbytes == old.buffer.nbytes
        if tensor.buffer.blob is not None and old.buffer.blob is not None:
            assert np.array_equal(
                np.frombuffer(tensor.buffer.blob.view(), "u1"), np.frombuffer(old.buffer.blob.view(), "u1")
            )


def test_threads_are_those_asked_for(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    each = work.Work.each

    def counted(self: work.Work, *arguments: Any, **options: Any) -> list[Any]:
        asked.append(self.threads)
        return each(self, *arguments, **options)

    monkeypatch.setattr(work.Work, "each", counted)
    source = fixtures / "digits_cnn.tflite"
    rewrite(source, tmp_path / "3.tflite", [QuantizeWeights()], judging=OFF, threads=3)
    assert set(asked) == {3}
    asked.clear()
    rewrite(source, tmp_path / "0.tflite", [QuantizeWeights()], judging=OFF)
    assert set(asked) == {os.cpu_count()}
