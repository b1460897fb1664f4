"""What the runtime may do wrong, made to happen; and judging with another Python."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.worker import Worker
from tfl_rewrite.judge.judge import Judge, run_model
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.pipeline.verify import verify

from .. import tiny_models
from ..interpreter import fake_runtime

INTS = [{"name": "x", "dtype": "int32", "shape": [1, 4]}]
FREE = [{"name": "x", "dtype": "float32", "shape": [1, 4], "signature": [-1, 4]}]


@pytest.fixture
def runtime(tmp_path: Path) -> str:
    return fake_runtime.install(tmp_path)


@pytest.mark.slow
def test_names_the_runtime(tmp_path, runtime):
    file = fake_runtime.model(tmp_path / "a")
    verdict = verify(file, file, Judging(runtime=runtime, threads=2))
    assert verdict.status == "pass"
    assert verdict.judge.runtime == "ai-edge-litert"
    assert verdict.judge.threads == 2
    assert verdict.judge.python == sys.version.split()[0]


@pytest.mark.slow
def test_falls_back_to_no_delegates_on_both_sides(tmp_path, runtime):
    refuses = [{"resolver": "default", "error": "cannot be delegated"}]
    before = fake_runtime.model(tmp_path / "a", allocating=refuses)
    verdict = verify(before, fake_runtime.model(tmp_path / "b"), Judging(runtime=runtime))
    assert verdict.status == "pass"
    assert "without default delegates" in verdict.judge.resolver
    assert any("only without the default delegates" in note for note in verdict.notes)
    # The fallback holds for the other side too: one that runs only with delegates fails.
    picky = fake_runtime.model(
        tmp_path / "c", allocating=[{"resolver": "plain", "error": "needs a delegate"}]
    )
    verdict = verify(before, picky, Judging(runtime=runtime))
    assert verdict.status == "fail"
    assert "needs a delegate" in verdict.reasons[0]


@pytest.mark.slow
def test_rewritten_that_needs_the_fallback_fails(tmp_path, runtime):
    before = fake_runtime.model(tmp_path / "a")
    after = fake_runtime.model(tmp_path / "b", allocating=[{"resolver": "default", "error": "no delegate"}])
    verdict = verify(before, after, Judging(runtime=runtime))
    assert verdict.status == "fail"
    assert "no delegate" in verdict.reasons[0]
    assert "XNNPACK" in verdict.judge.resolver


@pytest.mark.slow
def test_reason_is_that_of_the_default_resolver(tmp_path, runtime):
    deeds = [{"resolver": "default", "error": "first"}, {"resolver": "plain", "error": "second"}]
    file = fake_runtime.model(tmp_path / "a", allocating=deeds)
    verdict = verify(file, file, Judging(runtime=runtime))
    assert verdict.status == "unverified"
    assert "first" in verdict.reasons[0]
    assert "XNNPACK" in verdict.judge.resolver


@pytest.mark.slow
def test_death_is_told_with_the_last_words_that_matter(tmp_path, runtime):
    says = "ERROR: the cause \x1b[31m\nINFO: Created TensorFlow Lite XNNPACK delegate for CPU."
    before = fake_runtime.model(tmp_path / "a")
    for deed, text in (({"signal": signal.SIGABRT}, "died of SIGABRT"), ({"exit": 3}, "exit code 3")):
        after = fake_runtime.model(tmp_path / "b", allocating=[{"says": says, **deed}])
        reason = verify(before, after, Judging(runtime=runtime)).reasons[0]
        assert f"{text} while allocating its tensors: ERROR: the cause \\x1b[31m" in reason
    after = fake_runtime.model(tmp_path / "b", running=[{"signal": signal.SIGSEGV, "from_call": 3}])
    assert (
        "died of SIGSEGV while running it (call 3)"
        in verify(before, after, Judging(runtime=runtime)).reasons[0]
    )


@pytest.mark.slow
def test_timeout_of_the_rewritten_fails(tmp_path, runtime):
    before = fake_runtime.model(tmp_path / "a")
    after = fake_runtime.model(tmp_path / "b", running=[{"sleep": 60}])
    verdict = verify(before, after, Judging(runtime=runtime, timeout=1.5))
    assert verdict.status == "fail"
    assert "stopped after 1.5 s, while running it (call 1)" in verdict.reasons[0]
    assert verdict.seconds < 20


@pytest.mark.slow
def test_timeout_of_the_original_is_not_tried_again(tmp_path, runtime, monkeypatch):
    asked, begin = [], Worker.begin

    def counted(self, request, **more):
        if request["do"] == "run":
            asked.append(Path(request["model"]).name)
        return begin(self, request, **more)

    monkeypatch.setattr(Worker, "begin", counted)
    before = fake_runtime.model(tmp_path / "a", running=[{"sleep": 60}], inputs=INTS)
    after = fake_runtime.model(tmp_path / "b", running=[{"sleep": 60}], inputs=INTS)
    verdict = verify(before, after, Judging(runtime=runtime, timeout=2.0))
    assert verdict.status == "unverified"
    assert asked.count("a") == 1, asked


@pytest.mark.slow
def test_gentler_inputs(tmp_path, runtime, monkeypatch):
    # A busy machine needs more, and this is about which inputs are tried, not for how long.
    monkeypatch.setattr("tfl_rewrite.judge.reference.PATIENCE_SECONDS", 600.0)
    before = fake_runtime.model(
        tmp_path / "a", inputs=INTS, running=[{"unless_value": 0, "error": "out of range"}]
    )
    verdict = verify(before, before, Judging(runtime=runtime))
    # Always the same inputs tell nothing of a rewrite.
    assert verdict.status == "unverified" and verdict.cause == "nothing"
    assert any("all integer inputs 0" in note for note in verdict.notes)
    # The reason given is that of the first, varied inputs; crashes are survived on the way.
    hopeless = fake_runtime.model(tmp_path / "b", inputs=INTS, running=[{"signal": 6}])
    verdict = verify(hopeless, hopeless, Judging(runtime=runtime))
    assert verdict.status == "unverified"
    assert "SIGABRT while running it (call 1)" in verdict.reasons[0]


@pytest.mark.slow
@pytest.mark.parametrize("deed", [{"error": "only one row"}, {"signal": int(signal.SIGABRT)}])
def test_larger_sizes_that_the_original_refuses_are_a_note(tmp_path, runtime, deed):
    before = fake_runtime.model(tmp_path / "a", inputs=FREE, running=[{"if_rows": 2, **deed}])
    for after in (before, fake_runtime.model(tmp_path / "b", inputs=FREE)):
        verdict = verify(before, after, Judging(runtime=runtime))
        assert verdict.status == "pass"
        assert verdict.sample_count == 4
        assert any("refused by the original" in note for note in verdict.notes)


@pytest.mark.slow
@pytest.mark.parametrize("deed", [{"error": "only one row"}, {"signal": int(signal.SIGABRT)}])
def test_larger_sizes_that_only_the_rewritten_refuses_fail(tmp_path, runtime, deed):
    before = fake_runtime.model(tmp_path / "a", inputs=FREE)
    after = fake_runtime.model(tmp_path / "b", inputs=FREE, running=[{"if_rows": 2, **deed}])
    verdict = verify(before, after, Judging(runtime=runtime))
    assert verdict.status == "fail"
    assert verify(before, before, Judging(runtime=runtime)).sample_count == 5


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["count calls", "count since reset"])
def test_state_carries_over_unless_told_otherwise(tmp_path, runtime, mode):
    file = fake_runtime.model(tmp_path / "a", mode=mode)
    for independent, counts in ((False, [1, 2, 3, 4]), (True, [1, 1, 1, 1])):
        result = run_model(file, Judging(runtime=runtime, independent=independent))
        assert [float(call["y"].max()) for call in result.outputs] == counts
        verdict = verify(file, file, Judging(runtime=runtime, independent=independent))
        assert verdict.status == ("unverified" if independent else "pass")
        assert any("one sequence" in note for note in verdict.notes) is not independent


@pytest.mark.slow
def test_original_that_does_not_repeat_itself_proves_nothing(tmp_path, runtime):
    file = fake_runtime.model(tmp_path / "a", mode="random")
    verdict = verify(file, file, Judging(runtime=runtime))
    assert verdict.status == "unverified"
    assert "does not repeat its own outputs" in verdict.reasons[0]


@pytest.mark.slow
def test_unreadable_outputs(tmp_path, runtime):
    before = fake_runtime.model(tmp_path / "a", outputs=["y", "z"], unreadable=[1])
    verdict = verify(before, before, Judging(runtime=runtime))
    assert verdict.status == "pass"
    assert [output.name for output in verdict.outputs] == ["y"]
    assert any("'z'" in note and "cannot be read" in note for note in verdict.notes)
    whole = fake_runtime.model(tmp_path / "b", outputs=["y", "z"])
    assert verify(before, whole, Judging(runtime=runtime)).status == "fail"
    verdict = verify(whole, before, Judging(runtime=runtime))
    assert "cannot be read after the rewrite" in verdict.reasons[0]
    nothing = fake_runtime.model(tmp_path / "c", unreadable=[0])
    assert verify(nothing, nothing, Judging(runtime=runtime)).status == "unverified"


@pytest.mark.slow
def test_one_judge_for_many_files(tmp_path, runtime):
    files = [fake_runtime.model(tmp_path / f"m{factor}", factor=factor) for factor in (1.0, 1.01, -1.0)]
    files.append(fake_runtime.model(tmp_path / "dies", allocating=[{"signal": 6}]))
    with Judge(files[0], Judging(runtime=runtime)) as judge:
        verdicts = [judge.compare(file) for file in (*files, *files)]
        strict = judge.compare(files[1], tolerance=Tolerance(exact=True))
    statuses = [verdict.status for verdict in verdicts]
    assert statuses == ["pass", "pass", "fail", "fail"] * 2
    assert verdicts[0].worst_snr() > verdicts[1].worst_snr() > verdicts[2].worst_snr()
    assert verdicts[1].outputs == verdicts[5].outputs
    assert strict.status == "fail"


@pytest.mark.slow
def test_runtime_that_is_none(tmp_path):
    file = fake_runtime.model(tmp_path / "a")
    mute, broken = tmp_path / "mute", tmp_path / "broken"
    mute.write_text("#!/bin/sh\nexit 0\n")
    broken.write_text("#!/bin/sh\necho 'no numpy here' >&2\nexit 1\n")
    mute.chmod(0o755)
    broken.chmod(0o755)
    for runtime, text in (
        (f"python:{mute}", "exit code 0"),
        (f"python:{broken}", "no numpy here"),
        ("python:/nowhere/python", "not an executable"),
        ("python:", "unknown runtime"),
        ("pytorch", "unknown runtime"),
    ):
        with pytest.raises(UsageError, match=text) as caught:
            verify(file, file, Judging(runtime=runtime))
        assert caught.value.remedy


@pytest.mark.runtime
def test_missing_tensorflow_says_what_to_install(tmp_path):
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("TensorFlow is installed")
    file = tiny_models.add_constant(tmp_path / "a.tflite", [1.0])
    with pytest.raises(UsageError, match="tensorflow") as caught:
        verify(file, file, Judging(runtime="tensorflow"))
    assert "pip install tensorflow" in caught.value.remedy


@pytest.mark.runtime
def test_old_runtime(tmp_path):
    python = os.environ.get("TFL_REWRITE_OLD_RUNTIME_PYTHON")
    if not python:
        pytest.skip("TFL_REWRITE_OLD_RUNTIME_PYTHON does not name a Python with tflite-runtime")
    runtime = f"python:{python}"
    file = tiny_models.add_constant(tmp_path / "a.tflite", [[1, 2, 3, 4]], signature=[-1, 4])
    verdict = verify(file, file, Judging(runtime=runtime, tolerance=Tolerance(exact=True)))
    assert verdict.status == "pass"
    assert verdict.judge.runtime == "tflite-runtime"
    assert verdict.sample_count == 5
    signed = tiny_models.two_signatures(tmp_path / "s.tflite")
    assert verify(signed, signed, Judging(runtime=runtime)).sample_count == 8
    lookup = tiny_models.lookup(tmp_path / "l.tflite", op="EMBEDDING_LOOKUP")
    result = run_model(lookup, Judging(runtime=runtime))
    assert result.failure is None
    assert max(int(np.max(call[0])) for call in result.inputs) == 2
    words = tiny_models.constant_output(tmp_path / "w.tflite", [b"a", b"b\0"], dtype="string")
    assert run_model(words, Judging(runtime=runtime)).outputs[0]["y"].tolist() == [b"a", b"b\0"]
    every = ("default", "builtin", "reference")
    both = verify(signed, signed, Judging(runtime=["litert", runtime], resolver=every))
    assert both.status == "pass"
    assert [(one.judge.runtime, one.judge.kernels) for one in both.verdicts] == [
        (name, kernels) for name in ("ai-edge-litert", "tflite-runtime") for kernels in every
    ]
    unknown = tiny_models.custom_op(tmp_path / "c.tflite")
    assert verify(unknown, unknown, Judging(runtime=runtime)).status == "unverified"
    looping = tiny_models.crashing(tmp_path / "d.tflite")
    assert "SIGSEGV" in verify(looping, looping, Judging(runtime=runtime)).reasons[0]


# -- Several runtimes of one Python --------------------------------------------------------------------------

BOTH = ("ai_edge_litert", "tflite_runtime")


def lacking(stage="allocating", package="ai_edge_litert", **deed):
    return {stage: [{"package": package, **(deed or {"error": "Select TensorFlow op(s) not supported"})}]}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["opening", "allocating"])
@pytest.mark.parametrize("deed", [{}, {"signal": int(signal.SIGABRT)}], ids=["refused", "died"])
def test_the_next_runtime_judges_what_the_first_cannot_run(tmp_path, stage, deed):
    runtime = fake_runtime.install(tmp_path, *BOTH)
    before = fake_runtime.model(tmp_path / "a", **lacking(stage, **deed))
    same, other = fake_runtime.model(tmp_path / "b"), fake_runtime.model(tmp_path / "c", factor=2.0)
    for after, status in ((before, "pass"), (same, "pass"), (other, "fail")):
        verdict = verify(before, after, Judging(runtime=runtime, tolerance=Tolerance(exact=True)))
        assert verdict.status == status
        assert verdict.judge.runtime == "tflite-runtime" and verdict.judge.asked == runtime
        notes = [note for note in verdict.notes if "does not run the original" in note]
        assert len(notes) == 1 and notes[0].startswith("ai-edge-litert")


@pytest.mark.slow
def test_a_rewritten_file_that_needs_the_next_runtime_fails(tmp_path):
    runtime = fake_runtime.install(tmp_path, *BOTH)
    before, after = fake_runtime.model(tmp_path / "a"), fake_runtime.model(tmp_path / "b", **lacking())
    verdict = verify(before, after, Judging(runtime=runtime))
    assert verdict.status == "fail" and verdict.judge.runtime == "ai-edge-litert"
    assert "operators of TensorFlow (Flex); the runtime 'tensorflow' runs them" in verdict.reasons[0]
    # And one that runs in the first only, where the original needs the second.
    verdict = verify(
        after,
        fake_runtime.model(tmp_path / "c", **lacking(package="tflite_runtime")),
        Judging(runtime=runtime),
    )
    assert verdict.status == "fail" and verdict.judge.runtime == "tflite-runtime"


@pytest.mark.slow
def test_no_runtime_runs_the_original(tmp_path):
    runtime = fake_runtime.install(tmp_path, *BOTH)
    deeds = [
        {"package": "ai_edge_litert", "error": "first"},
        {"package": "tflite_runtime", "error": "second"},
    ]
    file = fake_runtime.model(tmp_path / "a", allocating=deeds)
    verdict = verify(file, file, Judging(runtime=runtime))
    assert verdict.status == "unverified" and "first" in verdict.reasons[0]
    assert verdict.judge.runtime == "ai-edge-litert"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tflite_runtime", "tflite-runtime"])
def test_a_runtime_of_a_python_is_named(tmp_path, name):
    runtime = fake_runtime.install(tmp_path, *BOTH)
    file = fake_runtime.model(tmp_path / "a")
    verdict = verify(file, file, Judging(runtime=f"{runtime}:{name}"))
    assert verdict.status == "pass" and verdict.judge.runtime == "tflite-runtime"
    only = fake_runtime.model(tmp_path / "b", **lacking(package="tflite_runtime"))
    assert verify(only, only, Judging(runtime=f"{runtime}:{name}")).status == "unverified"
    with pytest.raises(UsageError, match="cannot be used: tensorflow"):
        verify(file, file, Judging(runtime=f"{runtime}:tensorflow"))


@pytest.mark.slow
def test_paths_with_colons_and_wrong_names(tmp_path):
    program = Path(fake_runtime.install(tmp_path, *BOTH).removeprefix("python:"))
    (tmp_path / "b:litert").mkdir()
    runtime = f"python:{program.rename(tmp_path / 'b:litert' / 'python')}"
    file = fake_runtime.model(tmp_path / "a")
    assert verify(file, file, Judging(runtime=runtime)).status == "pass"
    assert verify(file, file, Judging(runtime=f"{runtime}:litert")).judge.runtime == "ai-edge-litert"
    with pytest.raises(UsageError, match=r"unknown runtime 'onnx'.*litert, tflite_runtime, tensorflow"):
        verify(file, file, Judging(runtime=f"{runtime}:onnx"))
    with pytest.raises(UsageError, match="not an executable file"):
        verify(file, file, Judging(runtime=f"python:{tmp_path}/nothing:litert"))


@pytest.mark.slow
def test_running_is_no_reason_to_fall_back(tmp_path):
    runtime = fake_runtime.install(tmp_path, *BOTH)
    file = fake_runtime.model(tmp_path / "a", **lacking("running"))
    verdict = verify(file, file, Judging(runtime=runtime))
    assert verdict.status == "unverified" and verdict.judge.runtime == "ai-edge-litert"
