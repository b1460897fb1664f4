"""Models made one: written, equal to their parts to the bit, and refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tfl_rewrite
from tests.nets import Net, with_grid
from tfl_rewrite import (
    ChainOptions,
    FormatError,
    Judging,
    SplitOptions,
    UnsupportedError,
    UsageError,
    chain,
    load,
    save,
    split,
)
from tfl_rewrite.cli import main
from tfl_rewrite.model.ir import Tensor

ONCE = Judging(samples=2)
NOTHING = Judging(mode="off")


def dense(path: Path, *, inputs: int = 6, outputs: int = 4, name: str = "x", seed: int = 0) -> Path:
    net = Net(seed)
    given = net.input(name, (1, inputs))
    net.output(net.dense(given, net.weights("w", (outputs, inputs)), f"{name}_scores"))
    save(net.model, path)
    return path


def picture(path: Path) -> Path:
    net = Net()
    given = net.input("image", (1, 4, 4, 3))
    shape = net.constant("shape", np.array([1, 48], np.int32))
    flat = net.add("RESHAPE", [given, shape], "flat", (1, 48))
    net.output(net.dense(flat, net.weights("w", (5, 48)), "logits"))
    net.sign("serving_default")
    save(net.model, path)
    return path


def integers(path: Path, *, scale: float = 0.02) -> Path:
    net = Net()
    given = with_grid(net.input("q", (1, 4), np.int8), scale, 3)
    shape = net.constant("shape", np.array([4, 1], np.int32))
    net.output(with_grid(net.add("RESHAPE", [given, shape], "r", (4, 1), dtype=np.int8), scale, 3))
    save(net.model, path)
    return path


def test_a_second_model_is_not_taken_for_the_file_to_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = dense(tmp_path / "a.tflite"), dense(tmp_path / "b.tflite", inputs=4, name="h")
    before, words = second.read_bytes(), ["--append", "softmax", "--verify", "off"]
    for force, why in (([], "exists already"), (["--force"], "missing; name OUT behind all models")):
        assert main(["chain", str(first), str(second), *words, *force]) == 2
        assert why in capsys.readouterr().err
    assert second.read_bytes() == before
    # What the same call made is replaced.
    for _ in range(2):
        assert main(["chain", str(first), str(tmp_path / "out.tflite"), *words, "--force"]) == 0


@pytest.mark.runtime
def test_two_models_are_one_and_share_weights(tmp_path: Path) -> None:
    first = dense(tmp_path / "a.tflite", inputs=4)
    second = dense(tmp_path / "b.tflite", inputs=4, name="y")
    report = chain([first, second], tmp_path / "out.tflite", judging=ONCE)
    assert report.verdict is not None and report.verdict.passed and report.verdict.outputs[0].bit_exact
    model = load(tmp_path / "out.tflite")
    main = model.subgraphs[0]
    assert [item.name for item in (*main.inputs, *main.outputs)] == ["x", "y_scores"]
    # Both were drawn with one seed.
    assert len([item for item in model.buffers if item.nbytes]) == 1
    assert any("equal constants are stored once" in note for note in report.notes)
    again = chain([load(first), second.read_bytes()], tmp_path / "again.tflite", judging=NOTHING)
    assert again.unverified == "not run, as asked" and report.nbytes_after == again.nbytes_after


@pytest.mark.runtime
def test_stages_stand_around_a_model_and_arguments_keep_their_names(tmp_path: Path) -> None:
    options = ChainOptions(
        prepend=["cast:uint8", "resize", "normalize:mean=127.5,std=127.5"], append=["softmax", "top-k:2"]
    )
    report = chain([picture(tmp_path / "a.tflite")], tmp_path / "out.tflite", options, judging=ONCE)
    assert report.verdict is not None and report.verdict.passed
    assert sum("compared with numpy" in note for note in report.notes) == 5
    model = load(tmp_path / "out.tflite")
    (given,), (signature,) = model.subgraphs[0].inputs, model.signatures
    assert (given.name, given.dtype_name, given.signature) == ("image", "UINT8", (1, -1, -1, 3))
    assert [row.get("name") for row, _ in signature.inputs] == ["image"]
    assert [row.get("name") for row, _ in signature.outputs] == ["logits_values", "logits_indices"]


@pytest.mark.runtime
def test_an_input_of_the_first_goes_to_the_second_as_the_first_takes_it(tmp_path: Path) -> None:
    first, net = dense(tmp_path / "a.tflite"), Net(1)
    scores, given = net.input("scores", (1, 4)), net.input("x", (1, 6))
    hidden = net.dense(scores, net.weights("v", (6, 4)), "hidden")
    net.output(net.add("ADD", [hidden, given], "sum", (1, 6)))
    net.sign("serving_default")
    save(net.model, tmp_path / "b.tflite")
    files, out = [first, tmp_path / "b.tflite"], tmp_path / "out.tflite"
    stages = ["cast:uint8", "normalize:mean=100,std=50"]
    report = chain(files, out, ChainOptions(connect=["x_scores=scores", "x=x"], prepend=stages), judging=ONCE)
    assert report.verdict is not None and report.verdict.passed
    main = load(out).subgraphs[0]
    assert [(item.name, item.dtype_name) for item in main.inputs] == [("x", "UINT8")]
    (add,) = (item for item in main.operators if item.code.name == "ADD")
    (maker,) = (item for item in main.operators if add.inputs[1] in item.outputs)
    assert maker.code.name == "MUL"
    # Two models beside each other, on one input.
    files[1] = dense(tmp_path / "c.tflite", seed=3)
    with pytest.raises(UsageError, match="takes nothing that the first gives; --keep-outputs"):
        chain(files, tmp_path / "d.tflite", ChainOptions(connect=["x=x"]), judging=NOTHING)
    options = ChainOptions(connect=["x=x"], keep_outputs=True)
    report = chain(files, tmp_path / "d.tflite", options, judging=ONCE)
    assert report.verdict is not None and report.verdict.passed and len(report.verdict.outputs) == 2


@pytest.mark.runtime
def test_types_are_converted_between(tmp_path: Path) -> None:
    first, second = dense(tmp_path / "a.tflite"), integers(tmp_path / "b.tflite")
    report = chain([first, second], tmp_path / "one.tflite", judging=ONCE)
    assert report.verdict is not None and report.verdict.passed
    names = [item.code.name for item in load(tmp_path / "one.tflite").subgraphs[0].operators]
    assert names == ["FULLY_CONNECTED", "QUANTIZE", "RESHAPE"]
    options = ChainOptions(append=["argmax"])
    report = chain([second], tmp_path / "two.tflite", options, judging=ONCE)
    names = [item.code.name for item in load(tmp_path / "two.tflite").subgraphs[0].operators]
    assert names == ["RESHAPE", "DEQUANTIZE", "ARG_MAX"]


@pytest.mark.runtime
def test_a_shape_that_does_not_fit_is_told_as_it_is_run(tmp_path: Path) -> None:
    first, second = dense(tmp_path / "a.tflite"), dense(tmp_path / "b.tflite", name="y")
    with pytest.raises(UsageError, match=r"'x_scores' gives \[1, 4\], and 'y' takes \[1, 6\]"):
        chain([first, second], tmp_path / "out.tflite", judging=ONCE)
    assert not (tmp_path / "out.tflite").exists()
    # What is declared is wrong, and what is computed fits.
    model = load(first)
    model.subgraphs[0].outputs[0].shape = (1, 1)
    save(model, tmp_path / "lies.tflite")
    third = dense(tmp_path / "c.tflite", inputs=4, name="z")
    report = chain([tmp_path / "lies.tflite", third], tmp_path / "out.tflite", judging=ONCE)
    assert report.verdict is not None and report.verdict.passed


@pytest.mark.runtime
def test_a_stage_behind_an_output_without_a_shape_takes_that_of_a_run(tmp_path: Path) -> None:
    model = load(dense(tmp_path / "a.tflite"))
    # As of detectors: the kernel alone knows how many there are.
    model.subgraphs[0].outputs[0].shape = ()
    save(model, tmp_path / "b.tflite")
    first, options = dense(tmp_path / "c.tflite", inputs=5, outputs=6), ChainOptions(append=["top-k:2"])
    report = chain([first, tmp_path / "b.tflite"], tmp_path / "out.tflite", options, judging=ONCE)
    assert report.verdict is not None and report.verdict.passed
    assert [item.shape for item in load(tmp_path / "out.tflite").subgraphs[0].outputs] == [(1, 2), (1, 2)]
    with pytest.raises(UnsupportedError, match=r"'x_scores' declares no shape; where the model is run"):
        chain([tmp_path / "b.tflite"], tmp_path / "no.tflite", options, judging=NOTHING)


@pytest.mark.runtime
def test_outputs_that_nothing_takes_stay_where_asked(tmp_path: Path) -> None:
    net = Net()
    given = net.input("x", (1, 4))
    net.output(net.add("NEG", [given], "a", (1, 4)))
    net.output(net.add("ABS", [given], "b", (1, 4)))
    save(net.model, tmp_path / "a.tflite")
    models = [tmp_path / "a.tflite", dense(tmp_path / "b.tflite", inputs=4, name="y")]
    with pytest.raises(UsageError, match="not clear what is connected"):
        chain(models, tmp_path / "out.tflite", judging=ONCE)
    options = ChainOptions(connect=["b=y"], keep_outputs=True)
    report = chain(models, tmp_path / "out.tflite", options, judging=ONCE)
    assert report.verdict is not None and report.verdict.passed
    assert [item.name for item in load(tmp_path / "out.tflite").subgraphs[0].outputs] == ["y_scores", "a"]
    options = ChainOptions(connect=["b=y"], dry_run=True)
    report = chain(models, tmp_path / "none.tflite", options, judging=ONCE)
    assert report.notes[0] == "no outputs any more: 'a' (--keep-outputs keeps them)"
    assert report.dry_run and not (tmp_path / "none.tflite").exists()


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    one = dense(tmp_path / "a.tflite")
    out = tmp_path / "out.tflite"
    for models, options, why in (
        ([one, one, one], None, "3 models.*two at a time"),
        ([one], None, "there is nothing to do"),
        ([one], ChainOptions(connect=["a=b"]), "for two models"),
        ([one], ChainOptions(prepend=["normalize:tensor=z"]), "no input is named 'z'"),
        ([one], ChainOptions(append=["softmax:tensor=z"]), "no output is named 'z'"),
        ([one], ChainOptions(prepend=["normalize", "cast"]), "give cast first"),
    ):
        with pytest.raises(UsageError, match=why):
            chain(models, out, options, judging=NOTHING)
    with pytest.raises(UsageError, match="is read as a model"):
        chain([one], one, ChainOptions(append=["softmax"], force=True), judging=NOTHING)
    with pytest.raises(UnsupportedError, match=r"^--prepend resize.*: resize is for pictures"):
        chain([one], out, ChainOptions(prepend=["resize"]), judging=NOTHING)
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.runtime
def test_a_model_that_does_not_run_is_unverified(tmp_path: Path) -> None:
    def broken_shape(net: Net, given: Tensor) -> Tensor:
        return net.add("RESHAPE", [given, net.constant("s", np.array([7], np.int32))], "y", (7,))

    net = Net()
    net.output(broken_shape(net, net.input("x", (1, 4))))
    save(net.model, tmp_path / "a.tflite")
    options = ChainOptions(append=["softmax"])
    report = chain([tmp_path / "a.tflite"], tmp_path / "out.tflite", options, judging=ONCE)
    assert report.unverified is not None and "a.tflite does not run" in report.unverified
    with pytest.raises(tfl_rewrite.RewriteFailed, match="could not be verified"):
        chain([tmp_path / "a.tflite"], tmp_path / "no.tflite", options, judging=Judging(mode="require"))
    assert not (tmp_path / "no.tflite").exists()


def test_a_damaged_order_is_refused(tmp_path: Path) -> None:
    net = Net()
    value = net.add("NEG", [net.input("x", (1, 4))], "a", (1, 4))
    net.output(net.add("NEG", [value], "y", (1, 4)))
    net.graph.operators.reverse()
    save(net.model, tmp_path / "a.tflite")
    with pytest.raises(FormatError, match="reads 'a', which is made later"):
        chain([tmp_path / "a.tflite"], tmp_path / "b", ChainOptions(append=["softmax"]), judging=NOTHING)
    with pytest.raises(FormatError, match="reads 'a', which is made later"):
        split(tmp_path / "a.tflite", tmp_path / "b", SplitOptions(parts=2), judging=NOTHING)
    assert not (tmp_path / "b").exists()


def test_names_that_the_whole_cannot_have_are_told_or_refused(tmp_path: Path) -> None:
    one, out = picture(tmp_path / "a.tflite"), tmp_path / "out.tflite"
    net = Net()
    result = net.add("NEG", [net.input("y", (1, 5))], "z", (1, 5))
    net.output(net.add("ABS", [result], "abs", (1, 5)))
    for key in ("serving_default", "encode"):
        net.sign(key)
    save(net.model, tmp_path / "b.tflite")
    report = chain([one, tmp_path / "b.tflite"], out, judging=NOTHING)
    assert report.notes == ("no signature 'encode' of b any more: the whole has those of a",)
    row, _ = net.model.signatures[1].outputs[0]
    net.model.signatures[1].outputs.append((row.replace(name="inner"), result))
    save(net.model, tmp_path / "b.tflite", force=True)
    with pytest.raises(UnsupportedError, match=r"b.tflite: signature 'encode' names 'z', which is none of"):
        chain([one, tmp_path / "b.tflite"], tmp_path / "no.tflite", judging=NOTHING)
    assert not (tmp_path / "no.tflite").exists()


@pytest.mark.runtime
def test_a_stage_that_says_nothing_is_no_pass(tmp_path: Path) -> None:
    net = Net()
    given = net.input("x", (1, 4))
    net.output(net.add("TANH", [given], "o", (1, 4)))
    axis = net.constant("axis", np.array([1], np.int32))
    net.output(net.add("SUM", [given, axis], "k", (1, 1), keep_dims=True))
    save(net.model, tmp_path / "a.tflite")
    # Of one number it is 1.
    options = ChainOptions(append=["softmax:tensor=k"])
    report = chain([tmp_path / "a.tflite"], tmp_path / "out.tflite", options, judging=ONCE)
    assert report.verdict is not None and report.verdict.status == "unverified"
    assert report.unverified is not None and report.unverified.startswith("softmax, compared with numpy: ")
    with pytest.raises(tfl_rewrite.RewriteFailed, match=r"could not be verified.*softmax") as caught:
        chain([tmp_path / "a.tflite"], tmp_path / "no.tflite", options, judging=Judging(mode="require"))
    assert caught.value.exit_code == 3 and not (tmp_path / "no.tflite").exists()
