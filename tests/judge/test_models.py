"""Whole verdicts over tiny models in the real runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite.cli.render_judge import verdict_lines
from tfl_rewrite.errors import UsageError
from tfl_rewrite.files.source import load, save
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.pipeline.verify import verify

from .. import tiny_models


@pytest.fixture
def plus(tmp_path):
    """Builds ``x + constant`` models under new names."""

    def build(constant, **more):
        number = len(list(tmp_path.iterdir()))
        return tiny_models.add_constant(tmp_path / f"plus{number}.tflite", constant, **more)

    return build


@pytest.mark.runtime
def test_pass_exact_and_fail(plus):
    before = plus([[1, 2, 3, 4]])
    assert verify(before, plus([[1, 2, 3, 4]]), Judging(tolerance=Tolerance(exact=True))).status == "pass"
    near = plus([[1, 2, 3, 4.001]])
    assert verify(before, near).status == "pass"
    assert verify(before, near, Judging(tolerance=Tolerance(exact=True))).status == "fail"
    verdict = verify(before, plus([[9, -2, 3, 4]]))
    assert verdict.status == "fail"
    assert "y: SNR" in verdict.reasons[0]
    assert verdict.sample_source == "made" and verdict.sample_count == 4
    assert "ai-edge-litert" in verdict_lines(verdict)[1]


@pytest.mark.runtime
def test_failures_to_run(tmp_path, plus):
    good = plus([[1, 2, 3, 4]])
    custom = tiny_models.custom_op(tmp_path / "custom.tflite")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"not a model at all")
    for bad, text in ((custom, "NobodyKnowsThis"), (broken, "opening the model")):
        verdict = verify(bad, good)
        assert verdict.status == "unverified" and text in verdict.reasons[0]
        verdict = verify(good, bad)
        assert verdict.status == "fail" and text in verdict.reasons[0]
        assert all(line.isprintable() for line in verdict_lines(verdict))
    with pytest.raises(UsageError, match="no such file"):
        verify(good, tmp_path / "missing.tflite")


@pytest.mark.runtime
def test_crash_of_the_real_interpreter(tmp_path):
    crashing = tiny_models.crashing(tmp_path / "crash.tflite")
    looping = tiny_models.hanging(tmp_path / "hang.tflite")
    verdict = verify(crashing, looping)
    assert verdict.status == "unverified" and "SIGSEGV while allocating" in verdict.reasons[0]


@pytest.mark.runtime
def test_hang_of_the_real_interpreter(tmp_path):
    looping = tiny_models.hanging(tmp_path / "hang.tflite")
    verdict = verify(looping, looping, Judging(timeout=1.5))
    assert verdict.status == "unverified" and "stopped after 1.5 s" in verdict.reasons[0]
    assert verdict.seconds < 20


@pytest.mark.runtime
def test_nothing_reaches_the_terminal(tmp_path, capfd, plus):
    file = plus([[1, 2, 3, 4]])
    verify(file, file)
    verify(file, tiny_models.custom_op(tmp_path / "custom.tflite"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_import_loads_no_runtime():
    code = "import sys, tfl_rewrite.judge.judge; "
    code += "print([m for m in sys.modules if m[:6] in ('ai_edg', 'tensor')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.runtime
def test_every_signature_is_judged(tmp_path):
    before = tiny_models.two_signatures(tmp_path / "a.tflite")
    verdict = verify(before, before)
    assert [output.label for output in verdict.outputs] == ["add/out", "mul/out"]
    assert verdict.sample_count == 8
    # The second one is wrong, and only there.
    verdict = verify(before, tiny_models.two_signatures(tmp_path / "b.tflite", factor=-2.0))
    assert verdict.status == "fail"
    assert [output.passed for output in verdict.outputs] == [True, False]
    renamed = tiny_models.two_signatures(tmp_path / "c.tflite", name="other")
    verdict = verify(before, renamed)
    assert verdict.status == "fail" and "is named 'other'" in verdict.reasons[0]
    assert all(output.bit_exact for output in verdict.outputs)


@pytest.mark.runtime
def test_missing_signature_fails(tmp_path, plus):
    verdict = verify(tiny_models.two_signatures(tmp_path / "a.tflite"), plus([1.0]))
    assert verdict.status == "fail"
    assert "interface: signature 'add' is missing" in verdict.reasons


@pytest.mark.runtime
def test_names_alone_are_a_note(plus):
    verdict = verify(plus([1.0]), plus([1.0], names=("x\n2", "z")))
    assert verdict.status == "pass"
    assert "input 0 ('x') of the model is named 'x\\n2'" in verdict.notes
    assert all(line.isprintable() for line in verdict_lines(verdict))


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"shape": (1, 5)}, "float32[1, 5] instead of float32[1, 4]"),
        ({"dtype": "int32"}, "int32[1, 4] instead of float32[1, 4]"),
        ({"signature": (-1, 4)}, "float32[-1, 4] instead of float32[1, 4]"),
    ],
)
def test_interface_differences_are_told_exactly(plus, more, text):
    verdict = verify(plus([1]), plus([1], **more))
    assert verdict.status == "fail"
    assert any(text in reason for reason in verdict.reasons)


@pytest.mark.runtime
def test_an_output_may_say_the_shape_that_it_has(tmp_path, plus):
    """Of an output that says none; of another one that is a difference."""
    stated, silent = plus([1]), tmp_path / "silent.tflite"
    model = load(stated)
    model.subgraphs[0].outputs[0].shape = None
    save(model, silent)
    verdict = verify(silent, stated)
    assert verdict.status == "pass"
    assert verdict.notes[0] == "output 0 ('y') of the model is float32[1, 4] instead of float32[]"
    assert "float32[] instead of float32[1, 4]" in verify(stated, silent).reasons[0]
    retyped = verify(silent, plus([1], dtype="int32"))
    assert any("int32[1, 4] instead of float32[]" in reason for reason in retyped.reasons)


@pytest.mark.runtime
def test_quantization_is_part_of_the_interface(tmp_path):
    files = [
        tiny_models.constant_output(tmp_path / f"{scale}", [1, 2], dtype="int8", scale=scale, zero_point=3)
        for scale in (0.5, 0.25)
    ]
    verdict = verify(*files)
    assert verdict.status == "fail" and "scale [0.25]" in verdict.reasons[0]


@pytest.mark.runtime
def test_free_sizes_are_judged_at_two_shapes(plus):
    before = plus([[1, 2, 3, 4]], signature=(-1, 4))
    result = run_model(before)
    assert [call["y"].shape[0] for call in result.outputs] == [1, 1, 1, 1, 2]
    # Right at the default shape only: the constant has no second row.
    after = plus([[1, 2, 3, 4]], signature=(-1, 4))
    assert verify(before, after).sample_count == 5
    picky = plus(np.ones((2, 4)), signature=(-1, 4), shape=(2, 4))
    assert verify(picky, picky).status == "pass"


@pytest.mark.runtime
@pytest.mark.parametrize("op", ["GATHER", "EMBEDDING_LOOKUP"])
@pytest.mark.parametrize("through", [None, "CAST", "RESHAPE"])
def test_indices_stay_below_the_table(tmp_path, op, through):
    for rows in (3, 500):
        result = run_model(tiny_models.lookup(tmp_path / "a.tflite", rows=rows, op=op, through=through))
        indices = np.concatenate([call[0] for call in result.inputs])
        assert indices.min() >= 0 and rows * 0.8 - 2 < indices.max() < rows
        assert not any("varied" in note for note in result.notes)


@pytest.mark.runtime
def test_inputs_that_the_model_refuses_are_told_from_a_model_that_does_not_run(tmp_path):
    file, given = tiny_models.lookup(tmp_path / "a.tflite", rows=3), (tmp_path / "in.npz",)
    np.savez(given[0], ids=np.full((2, 64), 7, np.int32))
    (reason,) = verify(file, file, Judging(inputs=given)).reasons
    said = "the original does not run with these inputs, only with made ones (check --inputs): "
    assert reason.startswith(said), reason
    np.savez(given[0], ids=np.arange(128, dtype=np.int32).reshape(2, 64) % 3)
    assert verify(file, file, Judging(inputs=given)).passed
    # A model that refuses made samples, too, is not excused by those that were given.
    model = tiny_models.TinyModel()
    graph = model.graph()
    x, beyond = graph.input("x", "float32", [1, 4]), graph.tensor("i", "int32", [1], data=[7])
    y = graph.tensor("y", "float32", [1, 4])
    graph.op("GATHER", [x, beyond], [y], axis=0)
    graph.outputs = [y]
    broken = model.write(tmp_path / "b.tflite")
    np.savez(given[0], x=np.ones((2, 1, 4), np.float32))
    (reason,) = verify(broken, broken, Judging(inputs=given)).reasons
    assert reason.startswith("the original does not run: "), reason


@pytest.mark.runtime
def test_strings_and_large_integers_survive_the_transport(tmp_path):
    words = [b"", b"nul\0", "naïve".encode(), b"\xff\xfe"]
    file = tiny_models.constant_output(tmp_path / "a.tflite", words, dtype="string")
    assert run_model(file).outputs[0]["y"].tolist() == words
    other = tiny_models.constant_output(tmp_path / "b.tflite", [*words[:3], b"\xff"], dtype="string")
    assert verify(file, file).status == "pass"
    assert verify(file, other).status == "fail"
    big = [tiny_models.constant_output(tmp_path / str(n), [2**53 + n], dtype="int64") for n in (0, 1)]
    assert verify(big[0], big[1]).status == "fail"


@pytest.mark.runtime
def test_nan_and_zero_outputs(tmp_path):
    values = {"nan": [np.nan, 1], "finite": [0, 1], "zero": [0, 0], "tiny": [1e-6, 0]}
    files = {
        name: tiny_models.constant_output(tmp_path / name, value, dtype="float32")
        for name, value in values.items()
    }
    assert verify(files["nan"], files["nan"]).status == "pass"
    assert verify(files["nan"], files["finite"]).status == "fail"
    verdict = verify(files["zero"], files["tiny"])
    assert verdict.status == "fail" and verdict.outputs[1].rule == "snr"
    assert verify(files["zero"], files["finite"]).status == "fail"


@pytest.mark.runtime
def test_model_without_outputs_is_not_called_equal(tmp_path):
    model = tiny_models.TinyModel()
    graph = model.graph()
    x = graph.input("x", "float32", [1])
    graph.op("ADD", [x, x], [graph.tensor("y", "float32", [1])])
    file = model.write(tmp_path / "a.tflite")
    verdict = verify(file, file)
    assert verdict.status == "unverified" and "no outputs" in verdict.reasons[0]


@pytest.mark.runtime
def test_model_without_inputs_and_with_empty_output(tmp_path):
    model = tiny_models.TinyModel()
    graph = model.graph()
    a = graph.tensor("a", "float32", [0, 4], data=b"")
    b = graph.tensor("b", "float32", [4], data=[1, 2, 3, 4])
    ids = graph.tensor("i", "int32", [4], data=[0, 1, 2, 3])
    y = graph.tensor("y", "float32", [4])
    graph.op("GATHER", [b, ids], [y], axis=0)
    graph.outputs = [y]
    assert a == 0
    file = model.write(tmp_path / "a.tflite")
    verdict = verify(file, file)
    assert verdict.status == "pass" and verdict.sample_count == 1


@pytest.mark.runtime
def test_random_original_proves_nothing(tmp_path):
    model = tiny_models.TinyModel()
    graph = model.graph()
    shape = graph.tensor("s", "int32", [2], data=[1, 64])
    y = graph.tensor("y", "float32", [1, 64])
    graph.op("RANDOM_UNIFORM", [shape], [y], seed=0, seed2=0)
    graph.outputs = [y]
    file = model.write(tmp_path / "a.tflite")
    verdict = verify(file, file)
    assert verdict.status == "unverified" and "does not repeat" in verdict.reasons[0]


@pytest.mark.runtime
def test_variable_tensors_carry_over_unless_told_otherwise(tmp_path):
    file = tiny_models.summing(tmp_path / "a.tflite")
    np.savez(tmp_path / "same.npz", x=np.ones((3, 1, 3), np.float32))
    given = [tmp_path / "same.npz"]
    result = run_model(file, Judging(inputs=given))
    assert [call["y"].tolist() for call in result.outputs] == [[[3.0, 3.0]], [[6.0, 6.0]], [[9.0, 9.0]]]
    result = run_model(file, Judging(inputs=given, independent=True))
    assert [call["y"].tolist() for call in result.outputs] == [[[3.0, 3.0]]] * 3
    said = "state carries over from call to call: the 3 calls were run as one sequence"
    assert verify(file, file, Judging(inputs=given)).notes == (said,)
    assert verify(file, file, Judging(inputs=given, independent=True)).notes == ()


@pytest.mark.runtime
def test_a_file_is_run_whatever_it_is_called(plus, tmp_path):
    """A name need be no text: on Linux it is bytes."""
    odd = tmp_path / os.fsdecode(b"caf\xe9\xff")
    odd.mkdir()
    shutil.copy(plus([1.0]), odd / os.fsdecode(b"\xe9.tflite"))
    file = odd / os.fsdecode(b"\xe9.tflite")
    assert verify(file, plus([1.0])).passed and verify(plus([1.0]), file).passed


@pytest.mark.runtime
def test_samples_are_seeded_and_shared(plus):
    file = plus([1.0])
    first, again, other = (run_model(file, Judging(seed=seed)) for seed in (1, 1, 2))
    for call, same, different in zip(first.inputs, again.inputs, other.inputs, strict=True):
        assert np.array_equal(call[0], same[0]) and not np.array_equal(call[0], different[0])
    more = run_model(file, Judging(seed=1, samples=6))
    assert len(more.outputs) == 6 and np.array_equal(more.inputs[0][0], first.inputs[0][0])
    assert np.array_equal(first.outputs[0]["y"], first.inputs[0][0] + np.float32(1))


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"threads": 0}, {"timeout": 0}, {"seed": -1}])
def test_senseless_options_are_refused(wrong):
    with pytest.raises(UsageError):
        Judging(**wrong)


@pytest.mark.runtime
def test_full_range_of_small_integers(tmp_path):
    for dtype in ("int8", "uint8", "int16"):
        model = tiny_models.TinyModel()
        graph = model.graph()
        graph.outputs = [graph.input("x", dtype, [1, 4000], scale=0.1)]
        result = run_model(model.write(Path(tmp_path / dtype)))
        values = result.inputs[0][0]
        limits = np.iinfo(dtype)
        assert values.min() < limits.min + 9 * values.itemsize**6 and values.max() > limits.max * 0.9
