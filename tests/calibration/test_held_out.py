"""What is fitted to some samples is judged by others: in every command that fits, and from Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tfl_rewrite import (
    Judging,
    Tolerance,
    load,
    rewrite,
    save,
)
from tfl_rewrite.calibration.holdout import divide
from tfl_rewrite.cli import main
from tfl_rewrite.errors import UsageError
from tfl_rewrite.model.ir import Operator, OperatorCode, Tensor, operator_number
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.work import BLAS_THREADS, blas_environment, one_blas_thread

Array = np.ndarray[Any, Any]
UNJUDGED = ("--verify", "off")
APART = "real samples that nothing was fitted to"


def call(*words: object) -> int:
    return main([str(word) for word in words])


def changed(source: Path, target: Path, rows: list[int]) -> Path:
    """The same samples, but for some of them."""
    with np.load(source) as held:
        arrays = {name: held[name].copy() for name in held.files}
    for array in arrays.values():
        array[rows] = np.random.default_rng(0).uniform(-1, 1, array[rows].shape)
    np.savez(target, **arrays)
    return target


def taken(source: Path, target: Path, count: int) -> Path:
    with np.load(source) as held:
        np.savez(target, **{name: held[name][:count] for name in held.files})
    return target


@pytest.fixture
def rnet(fixtures: Path) -> tuple[Path, Path]:
    """A net and twelve samples."""
    return fixtures / "mtcnn_rnet.tflite", fixtures / "inputs" / "mtcnn_rnet.npz"


FITTING: Mapping[str, tuple[str, ...]] = {
    "quantize-weights": ("quantize-weights", "--scheme", "dequantize"),
    "quantize-weights best": ("quantize-weights", "--scheme", "dequantize", "--effort", "best"),
    "round-weights": ("round-weights", "--steps", "256"),
    "run": ("run", "--pass", "dedup", "--pass", "quantize-weights:scheme=dequantize"),
    "run round": ("run", "--pass", "round-weights"),
}


def made(words: tuple[str, ...], source: Path, target: Path, *options: object) -> dict[str, Any]:
    report = target.with_suffix(".json")
    # Whatever comes of it: the same bytes, whoever judges.
    gates = ("--no-rescue", "--min-agreement", "0", *(() if "--min-snr" in words else ("--min-snr", "-99")))
    command = (words[0], source, target, "--force", "-q", "--report", report, *words[1:], *gates, *options)
    assert call(*command) == 0
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


@pytest.mark.runtime
@pytest.mark.parametrize("name", FITTING)
def test_a_quarter_judges_and_nothing_looks_at_it(rnet: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    (source, inputs), words = rnet, FITTING[name]
    report = made(words, source, tmp_path / "a.tflite", "--inputs", inputs)
    assert report["verdict"]["sample_count"] == 3 and report["verdict"]["unfitted"] is True
    assert any("9 sample(s)" in note for result in report["passes"] for note in result["notes"])
    # Every fourth is held out: whatever it holds, the bytes are the same.
    other = changed(inputs, tmp_path / "held.npz", [3, 7, 11])
    made(words, source, tmp_path / "b.tflite", "--inputs", other, *UNJUDGED)
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()
    other = changed(inputs, tmp_path / "fitted.npz", [2])
    made(words, source, tmp_path / "c.tflite", "--inputs", other, *UNJUDGED)
    assert (tmp_path / "a.tflite").read_bytes() != (tmp_path / "c.tflite").read_bytes()


@pytest.mark.runtime
@pytest.mark.parametrize("name", FITTING)
def test_holdout_judges_alone(rnet: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    (source, inputs), words = rnet, FITTING[name]
    apart = changed(taken(inputs, tmp_path / "two.npz", 2), tmp_path / "apart.npz", [0, 1])
    report = made(words, source, tmp_path / "a.tflite", "--inputs", inputs, "--holdout", apart)
    assert report["verdict"]["sample_count"] == 2 and report["verdict"]["unfitted"] is True
    assert any("12 sample(s)" in note for result in report["passes"] for note in result["notes"])
    other = taken(inputs, tmp_path / "other.npz", 2)
    made(words, source, tmp_path / "b.tflite", "--inputs", inputs, "--holdout", other, *UNJUDGED)
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


@pytest.mark.runtime
def test_the_verdict_says_so(
    rnet: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, inputs = rnet
    assert call("quantize-weights", source, tmp_path / "a.tflite", "--inputs", inputs) == 0
    assert f"on 3 {APART}" in capsys.readouterr().out
    assert (
        call("quantize-weights", source, tmp_path / "b.tflite", "--inputs", inputs, "--effort", "fast", "-v")
        == 0
    )
    told = capsys.readouterr().out
    # Nothing was fitted to any of them.
    assert "on 12 real samples in" in told and APART not in told
    two = ("--resolver", "default", "--resolver", "reference")
    assert call("quantize-weights", source, tmp_path / "c.tflite", "--inputs", inputs, *two, "-v") == 0
    # Of each judge, and of the worst of them.
    assert capsys.readouterr().out.count(f"on 3 {APART}") == 3


@pytest.mark.runtime
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("words", [("quantize-weights",), ("round-weights", "--steps", "256")])
def test_of_too_few_none_is_fitted_to(
    rnet: tuple[Path, Path], tmp_path: Path, count: int, words: tuple[str, ...]
) -> None:
    source, inputs = rnet
    few = taken(inputs, tmp_path / "few.npz", count)
    report = made(words, source, tmp_path / "few.tflite", "--inputs", few)
    assert report["verdict"]["sample_count"] == count and report["verdict"]["unfitted"] is False
    assert any("too few" in note and "give 4 or more" in note for note in report["notes"])
    assert not any("sample(s)" in note for note in report["passes"][0]["notes"])
    made(words, source, tmp_path / "none.tflite", *UNJUDGED)
    assert (tmp_path / "few.tflite").read_bytes() == (tmp_path / "none.tflite").read_bytes()


@pytest.mark.runtime
def test_four_are_enough(rnet: tuple[Path, Path], tmp_path: Path) -> None:
    source, inputs = rnet
    four = taken(inputs, tmp_path / "four.npz", 4)
    report = made(("quantize-weights",), source, tmp_path / "out.tflite", "--inputs", four)
    assert report["verdict"]["sample_count"] == 2 and report["verdict"]["unfitted"] is True
    assert any("on 2 sample(s)" in note for note in report["passes"][0]["notes"])


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    stream = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(stream.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((24, 24), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.mark.runtime
@pytest.mark.parametrize(
    "words",
    [("quantize-weights",), ("round-weights", "--steps", "256"), ("run", "--pass", "quantize-weights")],
)
def test_nothing_is_fitted_to_an_assumed_range(
    rnet: tuple[Path, Path], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """What pixels mean to a model of floats is not known: what fits a guess may fit nothing else."""
    source, folder = rnet[0], photos(tmp_path / "photos", 8)
    report = made(words, source, tmp_path / "a.tflite", "--inputs", folder)
    assert any("pixel range assumed" in note and "--input-range" in note for note in report["notes"])
    assert report["verdict"]["unfitted"] is False and report["verdict"]["sample_count"] >= 8
    assert not any("sample(s)" in note for note in report["passes"][0]["notes"])
    made(words, source, tmp_path / "none.tflite", *UNJUDGED)
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "none.tflite").read_bytes()
    report = made(words, source, tmp_path / "b.tflite", "--inputs", folder, "--input-range=-1,1")
    assert report["notes"] == [] or not any("assumed" in note for note in report["notes"])
    assert report["verdict"]["unfitted"] is True and report["verdict"]["sample_count"] == 2
    assert any("6 sample(s)" in note for note in report["passes"][0]["notes"])
    assert (tmp_path / "a.tflite").read_bytes() != (tmp_path / "b.tflite").read_bytes()


@pytest.mark.runtime
def test_shrink_fits_nothing_to_an_assumed_range(
    rnet: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = rnet[0], photos(tmp_path / "photos", 8)
    words = ("shrink", source, tmp_path / "a.tflite", "--min-snr", "25", "--inputs", folder)
    assert call(*words, "--encodings", "int8,float16") == 0
    told = capsys.readouterr().out
    assert "not rounding for them: pixel range assumed (give it with --input-range)" in told


@pytest.mark.runtime
@pytest.mark.parametrize("effort", ["balanced", "fast"])
def test_steps_are_searched_with_other_samples_than_those_that_judge(
    rnet: tuple[Path, Path], tmp_path: Path, effort: str
) -> None:
    source, inputs = rnet
    words = ("round-weights", "--min-snr", "25", "--effort", effort)
    report = made(words, source, tmp_path / "a.tflite", "--inputs", inputs)
    assert report["verdict"]["sample_count"] == 3 and report["verdict"]["unfitted"] is True
    assert min(float(output["snr_db"]) for output in report["verdict"]["outputs"]) >= 25
    dealt = "5 + 4 samples" if effort == "balanced" else "9 samples; 3 held out"
    assert any(dealt in note for note in report["passes"][0]["notes"])


def test_what_judges_is_never_written_to(
    rnet: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, inputs = rnet
    apart = taken(inputs, tmp_path / "apart.npz", 2)
    before = apart.read_bytes()
    linked = tmp_path / "linked.json"
    linked.hardlink_to(apart)
    for words in (
        ("quantize-weights", source, tmp_path / "a.tflite", "--report", apart),
        ("quantize-weights", source, tmp_path / "a.tflite", "--report", linked),
        ("quantize-weights", source, apart),
        ("round-weights", source, linked),
        ("run", source, apart, "--pass", "quantize-weights"),
        ("shrink", source, apart, "--min-snr", "25"),
    ):
        assert call(*words, "--inputs", inputs, "--holdout", apart, "--force") == 2
        assert "--holdout" in capsys.readouterr().err
    with pytest.raises(UsageError, match="holdout"):
        given = Judging(inputs=(inputs,), holdout=(apart,))
        rewrite(source, linked, [QuantizeWeights()], judging=given, force=True)
    assert apart.read_bytes() == before and not (tmp_path / "a.tflite").exists()


@pytest.mark.runtime
def test_in_a_batch(rnet: tuple[Path, Path], tmp_path: Path) -> None:
    source, inputs = rnet
    apart = changed(taken(inputs, tmp_path / "two.npz", 2), tmp_path / "mtcnn_rnet-apart.npz", [0, 1])
    for name, options, count in (("a", (), 3), ("b", ("--holdout", tmp_path / "{stem}-apart.npz"), 2)):
        out = tmp_path / name
        words = ("batch", source, "--out", out, "--pass", "quantize-weights", "--inputs", inputs)
        assert call(*words, *options) == 0
        report = json.loads(next(out.rglob("reports/*.json")).read_text(encoding="ascii"))
        assert report["verdict"]["sample_count"] == count and report["verdict"]["unfitted"] is True
    config = tmp_path / "fleet.toml"
    config.write_text(
        f'[batch]\ninputs = ["{source}"]\nout = "c"\npasses = ["quantize-weights"]\n'
        f'[verify]\ninputs = ["{inputs}"]\nholdout = ["{apart}"]\n',
        encoding="utf-8",
    )
    assert call("batch", config) == 0
    report = json.loads(next((tmp_path / "c").rglob("reports/*.json")).read_text(encoding="ascii"))
    assert report["verdict"]["sample_count"] == 2
    assert (tmp_path / "b" / source.name).read_bytes() == (tmp_path / "c" / source.name).read_bytes()


@pytest.mark.parametrize("what", ["missing", "wrong"])
@pytest.mark.parametrize("command", ["quantize-weights", "shrink"])
def test_a_holdout_that_does_not_fit_is_told_before_anything_is_made(
    rnet: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    command: str,
) -> None:
    def ran(*_: object, **__: object) -> None:
        raise AssertionError("something was run")

    monkeypatch.setattr(subprocess, "Popen", ran)
    source, inputs = rnet
    other = tmp_path / "other.npz"
    if what == "wrong":
        np.savez(other, wrong=np.zeros((4, 3), np.float32))
    words = [command, str(source), str(tmp_path / "out.tflite"), "--inputs", str(inputs), "--min-snr", "30"]
    assert main([*words, "--holdout", str(other)]) == 2
    said = capsys.readouterr().err
    assert (
        "other.npz" in said and ("no such file" if what == "missing" else "no array for every input") in said
    )


@pytest.mark.parametrize("name", ["inputs", "holdout"])
def test_missing_inputs_are_told_before_anything_is_made(
    rnet: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def ran(*_: object, **__: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("tfl_rewrite.files.source.Source.model", ran)
    settings = Judging(**{name: (tmp_path / "no.npz",)})
    with pytest.raises(UsageError, match=r"no\.npz: no such file"):
        rewrite(rnet[0], tmp_path / "out.tflite", [QuantizeWeights()], judging=settings)


@pytest.mark.runtime
def test_from_python(rnet: tuple[Path, Path], tmp_path: Path) -> None:
    source, inputs = rnet
    for item in (QuantizeWeights(), RoundWeights()):
        report = rewrite(source, tmp_path / "a.tflite", [item], judging=Judging(inputs=(inputs,)), force=True)
        assert report.verdict is not None and report.verdict.unfitted
        assert report.verdict.sample_count == 3
        given = Judging(inputs=(inputs,), holdout=(inputs,), tolerance=Tolerance(min_snr=None))
        report = rewrite(source, tmp_path / "a.tflite", [item], judging=given, force=True)
        assert report.verdict is not None and report.verdict.sample_count == 12
        # Nobody is told that nothing was fitted to what judges.
        assert not report.verdict.unfitted
        assert any(note.startswith("--holdout has samples of --inputs") for note in report.notes)
        part = taken(inputs, tmp_path / "part.npz", 2)
        given = Judging(inputs=(inputs,), holdout=(part,), tolerance=Tolerance(min_snr=None))
        report = rewrite(source, tmp_path / "a.tflite", [item], judging=given, force=True)
        assert report.verdict is not None and not report.verdict.unfitted
    # Where nothing is fitted, all judge.
    plain = rewrite(
        source,
        tmp_path / "b.tflite",
        [QuantizeWeights(effort="fast")],
        judging=Judging(inputs=(inputs,)),
    )
    assert plain.verdict is not None and plain.verdict.sample_count == 12 and not plain.verdict.unfitted


@pytest.mark.parametrize("name", ["lstm", "resource_variables"])
def test_a_sequence_is_not_torn(fixtures: Path, tmp_path: Path, name: str) -> None:
    """What keeps something from call to call is fitted to the beginning and judged by the end."""
    model = load(fixtures / f"{name}.tflite")
    tensor = model.subgraphs[0].inputs[0] if not model.signatures else model.signatures[0].inputs[0][1]
    argument = tensor.name if not model.signatures else model.signatures[0].inputs[0][0].get("name")
    shape = (9, *(tensor.shape or ())[(tensor.shape or (0,))[0] == 1 :])
    values = np.broadcast_to(np.arange(9, dtype=np.float32).reshape(9, *[1] * (len(shape) - 1)), shape)
    np.savez(tmp_path / "in.npz", **{str(argument): values})
    parted = divide(model, [tmp_path / "in.npz"], (), tmp_path)
    assert parted.crossed
    order = []
    for (path,) in (*parted.folds, parted.judge):
        with np.load(str(path)) as held:
            order.append(held[str(argument)].reshape(-1, int(np.prod(shape[1:])))[:, 0].tolist())
    assert order == [[0, 1, 2, 3], [4, 5, 6], [7, 8]]


@pytest.mark.runtime
def test_as_many_threads_as_you_like(rnet: tuple[Path, Path], tmp_path: Path) -> None:
    source, inputs = rnet
    found = []
    for threads in (1, 2, 5):
        target = tmp_path / f"{threads}.tflite"
        words = ("quantize-weights", source, target, "--dtype", "int4", "--inputs", inputs, "-q")
        assert call(*words, "--min-snr", "-99", "--threads", threads) == 0
        found.append(target.read_bytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.runtime
def test_no_bias_moves_before_a_logarithm(rnet: tuple[Path, Path], tmp_path: Path) -> None:
    """A bias that is corrected in one model keeps its bytes where its result goes into LOG."""
    source, inputs = rnet
    model = load(source)
    subgraph = model.subgraphs[0]
    for number, output in enumerate(list(subgraph.outputs)):
        for kind in ("ABS", "LOG"):
            code = OperatorCode(operator_number(kind), None, 1)
            model.operator_codes.append(code)
            before = subgraph.outputs[number]
            after = Tensor(f"{output.name}/{kind}", before.shape, before.dtype, model.buffers[0])
            subgraph.tensors.append(after)
            subgraph.operators.append(Operator(code, [before], [after], []))
            subgraph.outputs[number] = after
    model.signatures = []
    save(model, tmp_path / "log.tflite")
    name = subgraph.inputs[0].name
    with np.load(inputs) as held:
        np.savez(tmp_path / "in.npz", **{name: next(iter(held.values()))})

    def biases(path: Path) -> dict[str, bytes]:
        found = {}
        for _, operator in load(path).operators():
            if operator.code.name in ("CONV_2D", "FULLY_CONNECTED"):
                weight, bias = operator.inputs[1], operator.inputs[2]
                assert weight is not None and bias is not None and bias.buffer.blob is not None
                found[weight.name.removesuffix("_int8")] = bytes(bias.buffer.blob.view())
        return found

    moved = {}
    for path in (source, tmp_path / "log.tflite"):
        target = tmp_path / f"{path.stem}-out.tflite"
        given = inputs if path == source else tmp_path / "in.npz"
        words = ("quantize-weights", path, target, "--dtype", "int4", "--scheme", "dequantize", "-q")
        assert call(*words, "--min-elements", "64", "--inputs", given, "--verify", "off") == 0
        old, new = biases(path), biases(target)
        moved[path.stem] = {key for key in old if old[key] != new[_key(key, new)]}
    last = {name for name in moved[source.stem] if name.endswith("/MatMul")}
    assert last and not last & moved["log"]


def _key(name: str, found: Mapping[str, bytes]) -> str:
    return next(key for key in found if key == name or key.startswith(f"{name}_"))


@pytest.mark.slow
def test_one_blas_thread_in_the_program() -> None:
    """Set before numpy is loaded; what the user has set stays."""
    text = "\n".join(
        [
            "import os, sys",
            "import tfl_rewrite.cli",
            "program = sys.modules['tfl_rewrite.cli.main']",
            "assert 'numpy' not in sys.modules",
            "def look(argv):",
            "    import numpy, threadpoolctl",
            "    (numpy.ones((9, 9)) @ numpy.ones((9, 9))).sum()",
            "    print([item['num_threads'] for item in threadpoolctl.threadpool_info()])",
            "program._main = look",
            "program.main([])",
            "print([name for name in os.environ if name.endswith('NUM_THREADS')])",
        ]
    )
    for given, expected in ((None, [1]), ("2", [2])):
        environment = {key: value for key, value in os.environ.items() if key not in BLAS_THREADS}
        environment |= {} if given is None else {"OPENBLAS_NUM_THREADS": given}
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, check=True, env=environment
        )
        threads, names = done.stdout.splitlines()
        if json.loads(threads) != expected and (os.cpu_count() or 1) < 2:
            pytest.skip("one processor")
        assert json.loads(threads) == expected
        assert ("OPENBLAS_NUM_THREADS" in names) is (given is not None)


def test_a_program_that_uses_the_package_keeps_its_blas_threads() -> None:
    from threadpoolctl import threadpool_info

    def threads() -> list[int]:
        return [item["num_threads"] for item in threadpool_info() if item["user_api"] == "blas"]

    before = threads()
    with one_blas_thread():
        assert set(threads()) == {1}
        with one_blas_thread():
            pass
        assert set(threads()) == {1}
    assert threads() == before
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        raise ZeroDivisionError
    assert threads() == before


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BLAS_THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(BLAS_THREADS[0], "3")
    before = dict(os.environ)
    with blas_environment():
        assert os.environ[BLAS_THREADS[0]] == "3"
        assert all(os.environ[name] == "1" for name in BLAS_THREADS[1:])
    assert dict(os.environ) == before
