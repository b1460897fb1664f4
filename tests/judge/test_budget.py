"""Outputs are compared as they come, within a budget of disk and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite.cli.render_judge import verdict_lines
from tfl_rewrite.interpreter import process, worker
from tfl_rewrite.interpreter.child import load_array
from tfl_rewrite.interpreter.interface import EntryPoint, TensorFacts
from tfl_rewrite.interpreter.memory import MemoryWatch
from tfl_rewrite.interpreter.process import Child
from tfl_rewrite.judge import channels, reference, tally
from tfl_rewrite.judge.compare import compared
from tfl_rewrite.judge.judge import Judge, run_model
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.pipeline.verify import verify
from tfl_rewrite.samples import made as samples

from .. import tiny_models
from ..interpreter import fake_runtime

MB = 1 << 20


@pytest.fixture
def small(monkeypatch):
    """Budgets of a hundredth of what they are."""
    for module, name in (
        (reference, "KEPT_NBYTES"),
        (reference, "SINGLE_NBYTES"),
        (worker, "KEPT_NBYTES"),
        (process, "WINDOW_NBYTES"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name) // 100)
    # The defaults of arguments are bound already.
    monkeypatch.setattr(
        worker.Worker.begin, "__kwdefaults__", {**worker.Worker.begin.__kwdefaults__, "keeps": 0}
    )


@pytest.fixture
def peak(tmp_path, monkeypatch):
    """Runs something and returns what it returned, and the most bytes that lay in its temporary folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def run(what: Callable[[], object]):
        most, ended = [0], threading.Event()

        def look() -> None:
            while not ended.wait(0.001):
                most.append(nbytes_in(folder))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            result = what()
        finally:
            ended.set()
            watcher.join()
        assert list(folder.iterdir()) == []
        return result, max(most)

    return run


def nbytes_in(folder: Path) -> int:
    nbytes = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                nbytes += Path(root, name).stat().st_size
            except OSError:
                continue
    return nbytes


@pytest.mark.runtime
@pytest.mark.parametrize("declared", [None, 1])
def test_fewer_samples_of_large_outputs(tmp_path, peak, small, declared):
    # 1 MB a sample, of which 2.56 are kept.
    file = tiny_models.bomb(tmp_path / "a.tflite", times=4096, declared=declared)
    verdict, most = peak(lambda: verify(file, file))
    assert verdict.status == "pass" and verdict.sample_count == 2
    assert verdict.outputs[0].elements == 2 * 4096 * 64
    assert any(text.startswith("2 of 4 samples (outputs take 1 MB each") for text in verdict.not_judged)
    # Those of the original, and one of each side on its way.
    assert most < 4.5 * MB
    told = "\n".join(verdict_lines(verdict))
    assert "not judged: 2 of 4 samples" in told


@pytest.mark.runtime
def test_one_sample_at_least_and_none_that_is_too_large(tmp_path, peak, small):
    file = tiny_models.bomb(tmp_path / "a.tflite", times=4 * 4096)
    verdict, _ = peak(lambda: verify(file, file))
    assert verdict.sample_count == 1 and verdict.outputs[0].bit_exact
    file = tiny_models.bomb(tmp_path / "b.tflite", times=8 * 4096)
    verdict, most = peak(lambda: verify(file, file))
    assert verdict.status == "unverified" and verdict.cause == "disk"
    assert "its outputs take more than 5 MB" in verdict.reasons[0]
    assert most < 20 * MB


@pytest.mark.runtime
def test_a_rewritten_file_that_gives_more_than_the_original(tmp_path, peak, small):
    before = tiny_models.bomb(tmp_path / "a.tflite", times=1)
    after = tiny_models.bomb(tmp_path / "b.tflite", times=10 * 4096, declared=1)
    verdict, most = peak(lambda: verify(before, after))
    assert (
        verdict.status == "fail" and "is float32[40960, 64] instead of float32[1, 64]" in verdict.reasons[0]
    )
    # 10 MB a sample: one at a time.
    assert most < 25 * MB


@pytest.mark.runtime
def test_all_samples_of_small_outputs_are_judged_and_asked_again(tmp_path, peak):
    file = tiny_models.bomb(tmp_path / "a.tflite", times=64)
    verdict, most = peak(lambda: verify(file, file, Judging(samples=8)))
    assert verdict.status == "pass" and verdict.sample_count == 8 and verdict.repeated == 1
    assert verdict.notes == () and "samples" not in "".join(verdict.not_judged)
    assert most < MB


@pytest.mark.runtime
def test_large_outputs_are_said_not_to_be_asked_for_again(tmp_path, small):
    file = tiny_models.bomb(tmp_path / "a.tflite", times=4096)
    verdict = verify(file, file)
    assert verdict.repeated == 0
    assert any("too large to be kept" in note for note in verdict.notes)


@pytest.mark.slow
def test_differences_are_found_in_whatever_was_not_kept(tmp_path, small, monkeypatch):
    # Nothing stays of the rewritten file, and the fourth sample differs.
    runtime = fake_runtime.install(tmp_path)
    before = fake_runtime.model(tmp_path / "a", mode="count since reset")
    with Judge(before, Judging(runtime=runtime)) as judge:
        assert judge.compare(fake_runtime.model(tmp_path / "b", mode="count calls")).status == "pass"
    other = fake_runtime.model(
        tmp_path / "c", mode="count calls", running=[{"from_call": 4, "error": "late"}]
    )
    with Judge(before, Judging(runtime=runtime)) as judge:
        verdict = judge.compare(other)
        assert verdict.status == "fail" and "late" in verdict.reasons[0] and verdict.sample_count == 3
        assert judge.reference().outputs[3]["y"].tolist() == [[4.0] * 4]


@pytest.mark.parametrize(
    ("dtype", "shape", "more"),
    [
        ("float32", (1, 17, 13, 3), {}),
        ("float32", (2, 3, 17, 13), {}),
        ("float32", (1, 1000), {}),
        ("float32", (5000,), {}),
        ("float32", (2, 150_001), {}),
        ("float32", (), {}),
        ("float32", (0, 4), {}),
        ("complex64", (3, 70), {}),
        ("int64", (40, 7), {}),
        ("bool", (300,), {}),
        ("int8", (1, 9, 9, 4), {"scales": (0.5,), "zero_points": (3,)}),
        (
            "int8",
            (1, 9, 9, 4),
            {"scales": (0.5, 1, 2, 3), "zero_points": (3, 1, 0, 2), "quantized_dimension": 3},
        ),
    ],
)
@pytest.mark.parametrize("special", [None, np.nan, np.inf])
def test_pieces_add_up_to_the_whole(monkeypatch, dtype, shape, more, special):
    facts = TensorFacts(name="y", tensor="y", dtype=dtype, shape=shape, shape_signature=shape, **more)

    def tallied() -> tally.OutputTally:
        made = tally.OutputTally(facts, signature=None, position=0)
        source = np.random.default_rng(1)
        for _ in range(3):
            before = (source.standard_normal(shape) * 20).astype(dtype)
            after = (before + np.asarray(source.standard_normal(shape) > 1).astype(dtype)).astype(dtype)
            if special is not None and dtype == "float32" and before.size:
                before.reshape(-1)[0] = after.reshape(-1)[0] = special
            made.add(np.asarray(before), np.asarray(after))
        return made

    whole = tallied()
    monkeypatch.setattr(channels, "PIECE", 50 if whole.elements < 20_000 else 40_000)
    parts = tallied()
    for name in ("samples", "elements", "equal", "nonfinite", "all_nan", "finite", "same_bytes", "peak"):
        assert getattr(parts, name) == getattr(whole, name), name
    for name in ("max_error", "max_integer_error"):
        assert getattr(parts, name) == getattr(whole, name), name
    for name in ("power", "noise", "dot", "power_after"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12, abs=1e-9), name
    np.testing.assert_allclose(parts.energies, whole.energies)
    assert parts.rows.rows == whole.rows.rows and parts.rows.agreeing == whole.rows.agreeing
    assert parts.channels.keys() == whole.channels.keys()
    for axis, sums in whole.channels.items():
        other = parts.channels[axis]
        assert sums is not None and other is not None
        np.testing.assert_allclose(other.signal, sums.signal, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(other.noise, sums.noise, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(other.spread, sums.spread, rtol=1e-6)
    assert compared(parts, Tolerance()).passed == compared(whole, Tolerance()).passed


def entry(*shape: int, dtype: str = "float32", free: bool = False) -> EntryPoint:
    signature = tuple(-1 for _ in shape) if free else shape
    facts = TensorFacts(name="x", tensor="x", dtype=dtype, shape=shape, shape_signature=signature)
    return EntryPoint(key=None, inputs=(facts,), outputs=())


def test_made_inputs_are_bounded():
    small = samples.made_steps(entry(1, 100), count=9, seed=0)
    assert len(small) == 9
    large = samples.made_steps(entry(6, 1 << 20), count=9, seed=0)
    assert [step.values[0][1].shape for step in large] == [(6, 1 << 20)] * 2
    drawn = large[0].values[0][1].reshape(-1)
    assert (drawn[: 1 << 20] == drawn[1 << 22 : 5 << 20]).all() and len(set(drawn[:1000])) > 900
    assert len(samples.made_steps(entry(25 << 20), count=9, seed=0)) == 1
    with pytest.raises(ValueError, match=r"the inputs of the model take 4\.3 GB, more than are made"):
        samples.made_steps(entry(1 << 30), count=1, seed=0)
    assert samples.larger_step(entry(1 << 24, free=True), seed=0) is None


@pytest.mark.runtime
def test_a_model_that_declares_a_huge_input_is_unverified(tmp_path):
    huge = tiny_models.add_constant(tmp_path / "a.tflite", [1.0], shape=(40_000, 1_000))
    verdict = verify(huge, huge)
    assert verdict.status == "unverified" and "more than are made" in verdict.reasons[0]
    large = tiny_models.add_constant(tmp_path / "b.tflite", [1.0], shape=(8_000, 1_000))
    verdict = verify(large, large)
    assert verdict.status == "pass" and verdict.sample_count == 2
    assert any("2 samples instead of 4" in note for note in verdict.notes)


SENDER = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("child", sys.argv[1])
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
channel = child.Channel()
sys.stdin.readline()
arrays = [
    np.arange(6, dtype=np.float32).reshape(2, 3).T, np.float64(7), np.zeros((0, 4), np.int8), np.array(True),
    np.array([1 + 2j]), np.array([[b"a", b"", "\\u00ef"]], dtype=object), np.arange(1 << 20, dtype=np.int64),
    np.frombuffer(b"abcd", "V2"), np.array([1], dtype=">i4"),
]
print("chatter that ends elsewhere")
channel.send({"n": 1}, [child.packed(f"{n}", value) for n, value in enumerate(arrays)])
channel.send({"n": 2})
"""


@pytest.mark.slow
def test_arrays_come_as_they_were_sent(tmp_path):
    script = Path(process.__file__).with_name("child.py")
    (tmp_path / "arrays").mkdir()
    child = Child([sys.executable, "-c", SENDER, str(script)], tmp_path / "stderr", MemoryWatch(None))
    try:
        child.ask({}, tmp_path / "arrays")
        message = child.message(60)
        assert message is not None and message["stored"] == [str(n) for n in range(9)]
        held = message["held"]
        assert sorted(held) == ["0", "1", "2", "3", "4", "7", "8"]  # Strings and what is large lie on disk.
        found = [
            held[str(n)] if str(n) in held else load_array(tmp_path / "arrays" / str(n)) for n in range(9)
        ]
        assert found[0].tolist() == [[0, 3], [1, 4], [2, 5]] and found[1].shape == () and found[1] == 7
        assert found[2].shape == (0, 4) and found[3].dtype == bool and found[4].tolist() == [1 + 2j]
        assert found[5].tolist() == [[b"a", b"", "ï".encode()]]
        assert (found[6] == np.arange(1 << 20)).all() and isinstance(found[6], np.memmap)
        assert found[7].dtype == "V2" and found[8].tolist() == [1]
        assert child.message(60) == {"n": 2}
        assert "chatter" in (tmp_path / "stderr").read_text()
    finally:
        child.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ('[{"name": "0/../x", "dtype": "<f4", "shape": []}]', "an array that is none"),
        ('[{"name": "0", "dtype": "O", "shape": []}]', "an array that is none"),
        ('[{"name": "0", "dtype": "<f4", "shape": [-1]}]', "an array that is none"),
        ('[{"name": "0", "dtype": "<f4", "shape": [1.5]}]', "an array that is none"),
        ('[{"name": "0", "dtype": "<f4", "shape": [true]}]', "an array that is none"),
        ('[{"name": "0", "dtype": "string", "shape": [1], "nbytes": -8}]', "an array that is none"),
        ('[{"name": "0"}]', "an array that is none"),
        ("[7]", "an array that is none"),
        ("7", "an array that is none"),
        ('[{"name": "0", "dtype": "<f4", "shape": [400000000]}]', "arrays of 1600000000 bytes at once"),
        (
            '[{"name": "0", "dtype": "<f4", "shape": [0]}, {"name": "0", "dtype": "<f4", "shape": [0]}]',
            "twice",
        ),
    ],
)
def test_what_is_no_array(tmp_path, arrays, text):
    code = f"import sys; sys.stdin.readline(); print('{{\"arrays\": {arrays}}}', flush=True); input()"
    child = Child([sys.executable, "-c", code], tmp_path / "stderr", MemoryWatch(None))
    (tmp_path / "arrays").mkdir()
    try:
        child.ask({}, tmp_path / "arrays")
        message = child.message(60)
        assert message is not None and text in message["broken"]
        assert child.message(60) is None
        assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays", "stderr"]
    finally:
        child.kill()


@pytest.mark.slow
def test_a_process_that_sends_more_than_is_looked_at_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "WINDOW_NBYTES", 3 * MB)
    code = SENDER.split("arrays = [")[0].replace("sys.stdin.readline()", "") + (
        "sys.stdin.readline()\n"
        "for n in range(20):\n"
        "    channel.send({'n': n}, [child.packed(f'{n}', np.zeros(1 << 20, np.int8))])\n"
    )
    script = Path(process.__file__).with_name("child.py")
    (tmp_path / "arrays").mkdir()
    child = Child([sys.executable, "-c", code, str(script)], tmp_path / "stderr", MemoryWatch(None))
    try:
        child.ask({}, tmp_path / "arrays")
        first = child.message(60)
        # It has the time to send all, and that it waits is not its fault.
        while child.waited < 0.1:
            time.sleep(0.01)
        for number in range(20):
            message = child.message(60) if number else first
            assert message is not None and message["n"] == number
            assert nbytes_in(tmp_path / "arrays") < 4 * MB
            (tmp_path / "arrays" / f"{number}.npy").unlink()
            child.release(message["nbytes"])
    finally:
        child.kill()


@pytest.mark.runtime
def test_a_large_output_takes_little_memory_here(tmp_path):
    # 102 MB a sample, as a file of 444 bytes can give; whole, its tally took 1.4 GB.
    file = tiny_models.bomb(tmp_path / "a.tflite", times=400_000)
    code = (
        "import sys; from tfl_rewrite.pipeline.verify import verify\n"
        "verdict = verify(sys.argv[1], sys.argv[1])\n"
        "assert verdict.sample_count == 2, verdict\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000


@pytest.mark.runtime
def test_the_original_alone_is_bounded_too(tmp_path, peak, small):
    file = tiny_models.bomb(tmp_path / "a.tflite", times=4096)
    result, most = peak(lambda: run_model(file))
    assert len(result.outputs) == 2 and most < 4 * MB
