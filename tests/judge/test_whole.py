"""What a verdict speaks of: every entry point, every branch, what an output hides, and what was assumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from tfl_rewrite import Judging, RewriteFailed, rewrite
from tfl_rewrite.cli.render_judge import verdict_line, verdict_lines
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.pipeline.verify import verify

from .. import tiny_models

pytestmark = pytest.mark.runtime

SIZE = 8


def weights(seed: int, rows: int = SIZE, columns: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def layer(
    graph: tiny_models.Graph, x: int, values: np.ndarray, name: str = "y", bias: ArrayLike = 0.0
) -> int:
    """``x @ values.T + bias``."""
    w = graph.tensor(f"{name}/w", "float32", values.shape, data=values)
    b = graph.tensor(f"{name}/b", "float32", [len(values)], data=np.full(len(values), bias))
    y = graph.tensor(name, "float32", [1, len(values)])
    graph.op("FULLY_CONNECTED", [x, w, b], [y])
    return y


def dense(path: Path, values: np.ndarray, *, after: str | None = None, bias: ArrayLike = 0.0) -> Path:
    """One layer, and maybe an operator behind it."""
    model = tiny_models.TinyModel()
    graph = model.graph()
    y = layer(graph, graph.input("x", "float32", [1, values.shape[1]]), values, "h", bias)
    if after is not None:
        z = graph.tensor("z", "float32", [1, len(values)])
        graph.op(after, [y], [z], **({"beta": 1.0} if after == "SOFTMAX" else {}))
        y = z
    graph.outputs = [y]
    return model.write(path)


def beside_a_signature(path: Path, primary: np.ndarray, *, named: bool = False) -> Path:
    """A signature that runs subgraph 1, or one that names one of two outputs of the primary subgraph."""
    model = tiny_models.TinyModel()
    graph = model.graph()
    x = graph.input("x", "float32", [1, SIZE])
    first = layer(graph, x, weights(1), "first")
    second = layer(graph, x, primary, "second")
    graph.outputs = [first, second]
    other = model.graph()
    z = other.input("x", "float32", [1, SIZE])
    other.outputs = [layer(other, z, weights(2))]
    if named:
        model.signature("main", graph, {"in": x}, {"out": first})
    else:
        model.signature("other", other, {"in": z}, {"out": other.outputs[0]})
    return model.write(path)


@pytest.mark.parametrize("named", [False, True], ids=["another subgraph", "one output of two"])
def test_what_no_signature_names_is_judged(tmp_path: Path, named: bool) -> None:
    before = beside_a_signature(tmp_path / "a.tflite", weights(0), named=named)
    after = beside_a_signature(tmp_path / "b.tflite", weights(0) * 0, named=named)
    assert verify(before, before).status == "pass"
    verdict = verify(before, after)
    assert verdict.status == "fail" and "second: SNR 0.0 dB" in verdict.reasons[0]
    statuses = [(entry.label, entry.status) for entry in verdict.entries]
    key = "main" if named else "other"
    assert statuses == [(f"signature '{key}'", "pass"), ("the primary subgraph", "fail")]


def test_a_signature_that_runs_all_of_the_primary_subgraph_is_enough(tmp_path: Path) -> None:
    file = tiny_models.two_signatures(tmp_path / "a.tflite")
    assert [entry.signature for entry in verify(file, file).entries] == ["add", "mul"]


@pytest.mark.parametrize("role", ["inputs", "outputs"])
def test_whoever_goes_by_position_finds_them_in_the_same_order(tmp_path: Path, role: str) -> None:
    def write(path: Path, *, turned: bool) -> Path:
        model = tiny_models.TinyModel()
        graph = model.graph()
        a, b = (graph.input(name, "float32", [1, SIZE]) for name in "ab")
        one, two = (graph.tensor(name, "float32", [1, SIZE]) for name in ("one", "two"))
        graph.op("SUB", [a, b], [one])
        graph.op("ADD", [a, b], [two])
        graph.outputs = [one, two]
        if turned:
            setattr(graph, role, getattr(graph, role)[::-1])
        model.signature("main", graph, {"a": a, "b": b}, {"one": one, "two": two})
        return model.write(path)

    verdict = verify(write(tmp_path / "a", turned=False), write(tmp_path / "b", turned=True))
    assert verdict.status == "fail"
    assert f"the {role} of the primary subgraph stand in another order" in verdict.reasons[0]


def test_inputs_named_by_a_signature_serve_the_primary_subgraph(tmp_path: Path) -> None:
    before = beside_a_signature(tmp_path / "a.tflite", weights(0), named=True)
    given = np.random.default_rng(3).standard_normal((5, 1, SIZE)).astype(np.float32)
    np.savez(tmp_path / "in.npz", **{"in": given})
    verdict = verify(before, before, Judging(inputs=[tmp_path / "in.npz"]))
    assert verdict.status == "pass" and verdict.sample_source == "real" and verdict.sample_count == 10


def half_broken(path: Path, values: np.ndarray) -> Path:
    """A signature that runs, and one with an operator that no runtime knows."""
    model = tiny_models.TinyModel()
    for key in ("infer", "train"):
        graph = model.graph()
        x = graph.input("x", "float32", [1, SIZE])
        y = layer(graph, x, values if key == "infer" else weights(7))
        if key == "train":
            z = graph.tensor("z", "float32", [1, SIZE])
            graph.op("CUSTOM", [y], [z])
            y = z
        graph.outputs = [y]
        model.signature(key, graph, {"x": x}, {"y": y})
    return model.write(path)


def test_each_signature_gets_its_verdict(tmp_path: Path) -> None:
    before = half_broken(tmp_path / "a.tflite", weights(0))
    verdict = verify(before, before)
    assert verdict.status == "unverified" and verdict.cause == "error"
    assert [(entry.signature, entry.status) for entry in verdict.entries] == [
        ("infer", "pass"),
        ("train", "unverified"),
    ]
    assert "NobodyKnowsThis" in verdict.reasons[0]
    assert verdict.not_judged == ("signature 'train' (the original does not run)",)
    assert verdict.measured and verdict.outputs[0].bit_exact
    # What runs is judged all the same.
    verdict = verify(before, half_broken(tmp_path / "b.tflite", weights(0) * 0))
    assert verdict.status == "fail" and verdict.entries[0].status == "fail"


def branches(path: Path, *, taken: np.ndarray, other: np.ndarray, nested: bool = False) -> Path:
    """IF, of which made samples take one branch only; maybe inside a branch that is taken."""
    model = tiny_models.TinyModel()
    main = model.graph()
    x = main.input("x", "float32", [1, SIZE])
    axis = main.tensor("axis", "int32", [2], data=[0, 1])
    limit = main.tensor("limit", "float32", [], data=1e6)
    total, truth = main.tensor("sum", "float32", []), main.tensor("truth", "bool", [])
    main.op("SUM", [x, axis], [total])
    main.op("GREATER", [total, limit], [truth])
    y = main.tensor("y", "float32", [1, SIZE])
    main.op("IF", [truth, x], [y], thenSubgraphIndex=1, elseSubgraphIndex=2)
    main.outputs = [y]
    for name, values in (("rare", other), ("usual", taken)):
        branch = model.graph()
        given = branch.input("x", "float32", [1, SIZE])
        branch.outputs = [layer(branch, given, values, name)]
    return model.write(path)


def test_a_branch_that_no_sample_takes_is_run_by_itself(tmp_path: Path) -> None:
    before = branches(tmp_path / "a.tflite", taken=weights(0), other=weights(1))
    verdict = verify(before, branches(tmp_path / "b.tflite", taken=weights(0), other=weights(1) * 0))
    assert verdict.status == "fail"
    assert "run by IF, was entered by no sample; run by itself, it fails" in verdict.reasons[0]
    near = branches(tmp_path / "c.tflite", taken=weights(0), other=weights(1) * np.float32(1.001))
    verdict = verify(before, near)
    assert verdict.status == "pass" and verdict.entries[-1].label.endswith("run by IF (by itself)")
    # The branch that is taken is judged by the outputs, and by them alone.
    verdict = verify(before, branches(tmp_path / "d.tflite", taken=weights(0) * 0, other=weights(1)))
    assert verdict.status == "fail" and len(verdict.entries) == 1


def unknown_branch(path: Path, values: np.ndarray) -> Path:
    """The branch that is not taken starts with an operator that no runtime knows."""
    model = tiny_models.TinyModel()
    main = model.graph()
    x = main.input("x", "float32", [1, SIZE])
    main.outputs = [layer(main, x, weights(0), "main")]
    never = model.graph()
    given = never.input("x", "float32", [1, SIZE])
    odd = never.tensor("odd", "float32", [1, SIZE])
    never.op("CUSTOM", [given], [odd])
    never.outputs = [layer(never, odd, values, "never")]
    return model.write(path)


def test_what_cannot_be_run_by_itself_is_named(tmp_path: Path) -> None:
    before = unknown_branch(tmp_path / "a.tflite", weights(1))
    verdict = verify(before, unknown_branch(tmp_path / "b.tflite", weights(1) * 0))
    assert verdict.status == "unverified" and verdict.cause == "unreached"
    assert "'never/w'" in verdict.reasons[0] and "entered by no sample" in verdict.reasons[0]
    assert any("cannot be judged by itself" in text for text in verdict.not_judged)
    assert verify(before, before).status == "pass"


def sides(path: Path, taken: np.ndarray, other: np.ndarray) -> Path:
    """SELECT, both sides of which are computed, and of which made samples take one only."""
    model = tiny_models.TinyModel()
    main = model.graph()
    x = main.input("x", "float32", [1, SIZE])
    axis = main.tensor("axis", "int32", [1], data=[1])
    limit = main.tensor("limit", "float32", [1], data=[1e6])
    total, truth = main.tensor("sum", "float32", [1]), main.tensor("truth", "bool", [1])
    main.op("SUM", [x, axis], [total])
    main.op("LESS", [total, limit], [truth])
    y = main.tensor("y", "float32", [1, SIZE])
    main.op("SELECT", [truth, layer(main, x, taken, "usual"), layer(main, x, other, "rare")], [y])
    main.outputs = [y]
    return model.write(path)


def test_a_constant_that_became_something_else_unseen(tmp_path: Path) -> None:
    before = sides(tmp_path / "a.tflite", weights(0), weights(1))
    row = weights(1)
    row[3] = 0
    verdict = verify(before, sides(tmp_path / "b.tflite", weights(0), row))
    assert verdict.status == "unverified" and verdict.cause == "unreached"
    assert "no sample shows it: 'rare/w'" in verdict.reasons[0]
    near = weights(1) * np.float32(1.3)
    assert verify(before, sides(tmp_path / "c.tflite", weights(0), near)).status == "pass"
    # Nor does one scale of int8 for the whole constant keep what is next to nothing beside the rest.
    tiny = weights(1)
    tiny[3] *= np.float32(1e-20)
    faint = sides(tmp_path / "e.tflite", weights(0), tiny)
    assert verify(faint, sides(tmp_path / "b.tflite", weights(0), row)).status == "pass"
    # One number that is far from all others makes nothing of them; a rewrite is told so as well.
    far = weights(1)
    far[0, 0] = 1e6
    outlying = sides(tmp_path / "f.tflite", weights(0), far)
    passes = [QuantizeWeights(granularity="tensor", min_elements=64)]
    report = rewrite(outlying, tmp_path / "g.tflite", passes)
    assert report.unverified is not None and "no sample shows it: 'rare/w'" in report.unverified
    # What the outputs show is judged by them, however large it is.
    shown = sides(tmp_path / "d.tflite", weights(0) * np.float32(-1), weights(1))
    assert verify(before, shown).status == "fail"


def test_a_bias_that_a_sure_softmax_does_not_show(tmp_path: Path) -> None:
    """It varies between samples, from one class to another, and nothing under its sureness moves it."""
    sure, other = weights(0) * np.float32(1e4), np.tile([30.0, -30.0], SIZE // 2)
    before = dense(tmp_path / "a.tflite", sure, after="SOFTMAX", bias=0.1)
    verdict = verify(before, dense(tmp_path / "b.tflite", sure, after="SOFTMAX", bias=other))
    assert verdict.status == "unverified" and "no sample shows it: 'h/b'" in verdict.reasons[0]
    near = dense(tmp_path / "c.tflite", sure, after="SOFTMAX", bias=0.15)
    assert verify(before, near).status == "pass"
    unsure = dense(tmp_path / "d.tflite", weights(0), after="SOFTMAX", bias=0.1)
    assert (
        verify(unsure, dense(tmp_path / "e.tflite", weights(0), after="SOFTMAX", bias=other)).status == "fail"
    )


def test_nan_says_nothing(tmp_path: Path) -> None:
    before = dense(tmp_path / "a.tflite", weights(0), after="LOG", bias=-1e9)
    verdict = verify(before, dense(tmp_path / "b.tflite", weights(0) * 0, after="LOG", bias=-1e9))
    assert verdict.status == "unverified" and verdict.cause == "nothing"
    assert "all its values are NaN" in verdict.reasons[0]
    with pytest.raises(RewriteFailed) as caught:
        made = QuantizeWeights(min_elements=1)
        rewrite(before, tmp_path / "out.tflite", [made], judging=Judging(mode="require"))
    assert caught.value.exit_code == 3 and not (tmp_path / "out.tflite").exists()


def test_outputs_that_are_always_the_same_say_nothing(tmp_path: Path) -> None:
    before = dense(tmp_path / "a.tflite", weights(0) * 0)
    verdict = verify(before, before)
    assert verdict.status == "unverified" and "the same for all samples" in verdict.reasons[0]


def test_made_samples_get_louder_until_outputs_vary(tmp_path: Path) -> None:
    """A RELU6-like plateau: small inputs all end at the same value."""
    model = tiny_models.TinyModel()
    graph = model.graph()
    x = graph.input("x", "float32", [1, SIZE])
    graph.outputs = [layer(graph, x, np.eye(SIZE, dtype=np.float32), "y", bias=-40.0)]
    graph.operators[-1].builtinOptions.fusedActivationFunction = 1
    file = model.write(tmp_path / "a.tflite")
    verdict = verify(file, file)
    assert verdict.status == "pass"
    assert any("gives always the same on varied made samples" in note for note in verdict.notes)


def test_a_saturated_softmax_is_judged_before_it(tmp_path: Path) -> None:
    sure = weights(0)
    sure[0] = 0
    files = {}
    for name, factor in (("a", 1.0), ("near", 1.001), ("off", -1.0)):
        model = tiny_models.TinyModel()
        graph = model.graph()
        x = graph.input("x", "float32", [1, SIZE])
        values = sure * np.float32(factor)
        w = graph.tensor("w", "float32", values.shape, data=values)
        # The first class always wins, by far.
        b = graph.tensor("b", "float32", [SIZE], data=[1e3] + [0.0] * (SIZE - 1))
        h, y = graph.tensor("h", "float32", [1, SIZE]), graph.tensor("y", "float32", [1, SIZE])
        graph.op("FULLY_CONNECTED", [x, w, b], [h])
        graph.op("SOFTMAX", [h], [y], beta=1.0)
        graph.outputs = [y]
        files[name] = model.write(tmp_path / f"{name}.tflite")
    given = [tmp_path / "in.npz"]
    np.savez(given[0], x=np.random.default_rng(0).standard_normal((4, 1, SIZE)).astype(np.float32))
    verdict = verify(files["a"], files["near"], Judging(inputs=given))
    assert verdict.status == "pass" and not verdict.outputs[0].bit_exact
    assert any("judged before its last operator" in note for note in verdict.outputs[0].notes)
    assert verdict.not_judged == ()
    assert verdict.headline == "PASS (y judged before the last operator)"
    kernels = ("default", "builtin", "reference")
    three = verify(files["a"], files["near"], Judging(inputs=given, resolver=kernels))
    assert [one.status for one in three.verdicts] == ["pass"] * 3, "each is told by what it found there"
    assert verdict_lines(three)[0] == f"{verdict.headline}: the worst of 3 judges (3 pass)"
    verdict = verify(files["a"], files["off"], Judging(inputs=given))
    assert verdict.status == "fail" and "y: " in verdict.reasons[0]


def test_small_units_are_no_zeros(tmp_path: Path) -> None:
    before = dense(tmp_path / "a.tflite", weights(0) * np.float32(1e-7))
    assert verify(before, dense(tmp_path / "b.tflite", weights(0) * 0)).status == "fail"


def test_what_a_verdict_rests_on_stands_in_its_first_line(tmp_path: Path) -> None:
    file = dense(tmp_path / "a.tflite", weights(0))
    verdict = verify(file, file)
    assert verdict.assumed == ("made samples",)
    assert verdict_lines(verdict)[0] == "PASS (made samples)"
    assert "  not judged: nothing" in verdict_lines(verdict)
    assert verdict.to_dict()["headline"] == "PASS (made samples)"
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).standard_normal((4, 1, SIZE)).astype(np.float32))
    assert verdict_lines(verify(file, file, Judging(inputs=[tmp_path / "in.npz"])))[0] == "PASS"


def eye(path: Path, *, limit: float) -> Path:
    """Pixels above a limit become the limit: two ranges of pixels are two models."""
    model = tiny_models.TinyModel()
    graph = model.graph()
    x = graph.input("image", "float32", [1, 8, 8, 3])
    top = graph.tensor("top", "float32", [1], data=[limit])
    y = graph.tensor("y", "float32", [1, 8, 8, 3])
    graph.op("MINIMUM", [x, top], [y])
    graph.outputs = [y]
    return model.write(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_each_plausible_range_of_pixels_is_run(tmp_path: Path, photos: Path) -> None:
    before, after = eye(tmp_path / "a.tflite", limit=1e9), eye(tmp_path / "b.tflite", limit=1.0)
    verdict = verify(before, before, Judging(inputs=[photos]))
    assert verdict.headline == "PASS (pixel range assumed)"
    # Up to 1 both are the same; up to 255 they are not.
    verdict = verify(before, after, Judging(inputs=[photos]))
    assert verdict.status == "fail" and "pixel range assumed" in verdict.assumed
    told = verify(before, after, Judging(inputs=[photos_in(photos, (0.0, 1.0))]))
    assert told.headline == "PASS"


def photos_in(folder: Path, bounds: tuple[float, float]) -> object:
    from tfl_rewrite.samples.media import Media

    return Media(folder, bounds)


def test_an_assumed_range_does_not_satisfy_require(tmp_path: Path, photos: Path) -> None:
    model = tiny_models.TinyModel()
    graph = model.graph()
    x = graph.input("image", "float32", [1, 8, 8, 3])
    shape = graph.tensor("shape", "int32", [2], data=[1, 192])
    flat = graph.tensor("flat", "float32", [1, 192])
    graph.op("RESHAPE", [x, shape], [flat], newShape=[1, 192])
    graph.outputs = [layer(graph, flat, weights(0, 16, 192))]
    file = model.write(tmp_path / "a.tflite")
    made = [QuantizeWeights(min_elements=1)]
    with pytest.raises(RewriteFailed, match="pixel range assumed") as caught:
        checked = Judging(mode="require", inputs=(photos,))
        rewrite(file, tmp_path / "out.tflite", made, judging=checked)
    assert caught.value.exit_code == 3 and not (tmp_path / "out.tflite").exists()
    told = Judging(mode="require", inputs=(photos_in(photos, (0.0, 1.0)),))
    report = rewrite(file, tmp_path / "out.tflite", made, judging=told)
    assert report.verdict is not None and report.verdict.headline == "PASS"


def test_a_tolerance_of_20_db_is_the_default() -> None:
    assert Tolerance().min_snr == 20.0


def test_samples_that_are_all_equal_are_named(tmp_path: Path) -> None:
    file, rounded = dense(tmp_path / "a.tflite", weights(0)), dense(tmp_path / "b.tflite", weights(0) * 1.001)
    samples = np.random.default_rng(0).standard_normal((4, 1, SIZE)).astype(np.float32)
    for values, told in ((np.repeat(samples[:1], 4, axis=0), True), (samples, False)):
        np.savez(tmp_path / "in.npz", x=values)
        verdict = verify(file, rounded, Judging(inputs=[tmp_path / "in.npz"]))
        assert verdict.passed is not told
        assert any("the samples are all equal" in reason for reason in verdict.reasons) is told


@pytest.mark.parametrize("count", [1, 4])
def test_samples_that_hold_nan_are_not_called_equal(count: int, tmp_path: Path) -> None:
    file, rounded = dense(tmp_path / "a.tflite", weights(0)), dense(tmp_path / "b.tflite", weights(0) * 1.001)
    np.savez(tmp_path / "in.npz", x=np.full((count, 1, SIZE), np.nan, np.float32))
    (reason,) = verify(file, rounded, Judging(inputs=[tmp_path / "in.npz"])).reasons
    assert reason.endswith("the samples hold NaN, give some that do not") and "equal" not in reason


@pytest.mark.parametrize("after", [None, "SOFTMAX"])
def test_the_largest_of_a_row_is_told_of_where_rows_are_shares(after: str | None, tmp_path: Path) -> None:
    file = dense(tmp_path / "a.tflite", weights(0), after=after)
    made = dense(tmp_path / "b.tflite", weights(0) * 1.001, after=after)
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).standard_normal((4, 1, SIZE)).astype(np.float32))
    verdict = verify(file, made, Judging(inputs=[tmp_path / "in.npz"]))
    assert verdict.outputs[0].argmax_agreement == 1.0
    assert ("the same largest score" in verdict_line(verdict)) is (after is not None)
