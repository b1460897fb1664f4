"""Inputs from the user's files."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import TensorFacts
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.pipeline.verify import verify
from tfl_rewrite.samples.inputs import split_samples

from .. import tiny_models

pytestmark = pytest.mark.runtime


@pytest.fixture
def model(tmp_path):
    return tiny_models.add_constant(tmp_path / "m.tflite", [[1, 2, 3, 4]])


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def rows(count, *shape):
    return np.arange(count * int(np.prod(shape)), dtype=np.float32).reshape(count, *shape)


@pytest.mark.parametrize("shape", [(1, 4), (4,)])
def test_first_axis_counts_the_samples(tmp_path, model, shape):
    file = save(tmp_path / "in.npz", x=rows(3, *shape))
    result = run_model(model, Judging(inputs=[file]))
    assert [call[0].tolist() for call in result.inputs] == rows(3, 1, 4).tolist()
    verdict = verify(model, model, Judging(inputs=[file]))
    assert (verdict.sample_source, verdict.sample_count) == ("real", 3)


def test_positional_names_extra_arrays_and_folders(tmp_path, model):
    folder = tmp_path / "folder"
    folder.mkdir()
    np.savez(folder / "2.npz", rows(2, 4))
    save(folder / "1.npz", x=rows(1, 4) + 50, labels=np.arange(3))
    (folder / "readme.txt").write_text("not an npz")
    single = save(tmp_path / "in.npz", x=rows(1, 4) + 90)
    result = run_model(model, Judging(inputs=[folder, single]))
    assert [float(call[0][0, 0]) for call in result.inputs] == [50, 0, 4, 90]
    assert result.notes == ("1.npz: not an input: 'labels'",)


@pytest.mark.parametrize("name", ["mul/x", "mul:x", "mul_x:0"])
def test_one_signature_covered_the_other_made(tmp_path, name):
    model = tiny_models.two_signatures(tmp_path / "m.tflite")
    file = tmp_path / "in.npz"
    np.savez(file, **{name: rows(3, 4)})
    verdict = verify(model, model, Judging(inputs=[file]))
    assert verdict.sample_source == "mixed" and verdict.sample_count == 3 + 4
    assert "signature 'add' is not covered by the input files: made samples" in verdict.notes
    result = run_model(model, Judging(inputs=[file]))
    assert [call.signature for call in result.outputs] == ["mul"] * 3 + ["add"] * 4 or [
        call.signature for call in result.outputs
    ].count("mul") == 3
    covered = [call["out"].tolist() for call in result.outputs if call.signature == "mul"]
    assert covered == (rows(3, 1, 4) * 2).tolist()


def test_a_plain_name_serves_all_signatures(tmp_path):
    model = tiny_models.two_signatures(tmp_path / "m.tflite")
    verdict = verify(model, model, Judging(inputs=[save(tmp_path / "in.npz", x=rows(3, 4))]))
    assert (verdict.sample_source, verdict.sample_count) == ("real", 6)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"z": rows(2, 4)}, r"lacks 'x' float32\[1, 4\]; the file holds 'z' float32\[2, 4\]"),
        (
            {"x": rows(2, 4).astype(np.float64)},
            r"'x' is float64\[2, 4\], input 'x' takes samples of float32\[1, 4\]",
        ),
        ({"x": rows(2, 4, 1, 1, 1)}, r"'x' is float32\[2, 4, 1, 1, 1\]"),
        ({"x": np.array(["a"])}, "is string"),
        ({"x": rows(0, 4)}, "holds no samples"),
        ({"x": rows(2, 5)}, r"sizes of the samples, 'x' \[1, 5\] instead of \[1, 4\]"),
    ],
)
def test_what_does_not_fit_is_told_with_names_and_shapes(tmp_path, model, arrays, text):
    file = save(tmp_path / "in.npz", **arrays)
    with pytest.raises(UsageError, match=text) as caught:
        verify(model, model, Judging(inputs=[file]))
    assert caught.value.remedy
    # Only what differs is to be mended.
    given = next(iter(arrays.values()))
    assert ("astype" in caught.value.remedy) is (given.dtype != np.float32)
    assert ("axes" in caught.value.remedy) is (given.ndim not in (2, 3))


@pytest.mark.parametrize("axes", [(3, 10, 1), (1, 3, 10, 1), (3, 1, 10, 1)])
def test_a_size_that_is_fixed_beside_a_free_one_is_no_other(tmp_path, axes):
    free = replace(facts((1, 49, 1)), shape_signature=(-1, 49, 1))
    with pytest.raises(UsageError, match=r"takes samples of float32\[-1, 49, 1\]; sizes that") as caught:
        split_samples(tmp_path / "in.npz", "x", free, rows(*axes))
    assert "tfl-rewrite reshape" in caught.value.remedy
    fitting = rows(*(49 if size == 10 else size for size in axes))
    assert len(split_samples(tmp_path / "in.npz", "x", free, fitting)) == axes[0]


def test_real_numbers_for_a_quantized_input_are_told_how_to_become_integers(tmp_path):
    # A cast alone would make 0 of every pixel between 0 and 1.
    plain = facts((1, 4), dtype="int8")
    quantized = replace(plain, scales=(0.0039215687,), zero_points=(-128,))
    for given, remedy in (
        (plain, "convert it with .astype('int8')"),
        (quantized, "np.rint(array / 0.0039215687 + -128)"),
    ):
        with pytest.raises(UsageError) as caught:
            split_samples(tmp_path / "in.npz", "x", given, rows(3, 4))
        assert remedy in caught.value.remedy


def test_unreadable_files(tmp_path, model):
    good = save(tmp_path / "good.npz", x=rows(2, 4)).read_bytes()
    (tmp_path / "empty").mkdir()
    cases = {
        "garbage.npz": b"garbage",
        "nothing.npz": b"",
        "cut.npz": good[: len(good) // 2],
        "flipped.npz": good[:60] + bytes(20) + good[80:],
        "pickle.npz": pickle.dumps({"x": 1}),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "single.npy", rows(2, 4))
    for name in (*cases, "objects.npz", "single.npy", "empty", "missing.npz"):
        with pytest.raises(UsageError) as caught:
            verify(model, model, Judging(inputs=[tmp_path / name]))
        assert name in str(caught.value) and caught.value.remedy


def test_samples_of_another_size_resize_the_model(tmp_path):
    model = tiny_models.add_constant(tmp_path / "m.tflite", [1.0])
    file = save(tmp_path / "in.npz", x=rows(2, 7))
    verdict = verify(model, model, Judging(inputs=[file]))
    assert verdict.status == "pass"
    assert any("[1, 7] instead of [1, 4]" in note for note in verdict.notes)


def facts(shape, signature=None, dtype="float32"):
    return TensorFacts(name="x", tensor="x", dtype=dtype, shape=shape, shape_signature=signature or shape)


@pytest.mark.parametrize(
    ("declared", "signature", "given", "expected"),
    [
        ((16000, 1), None, (8, 16000, 1), [(16000, 1)] * 8),
        ((16000, 1), None, (16000, 1), [(16000, 1)]),
        ((1,), None, (8,), [(1,)] * 8),
        ((), None, (3,), [()] * 3),
        ((), None, (), [()]),
        ((1, 4), (-1, 4), (3, 4), [(1, 4)] * 3),
        ((1, 4), (-1, 4), (3, 2, 4), [(2, 4)] * 3),
        ((5, 4), (-1, 4), (3, 4), [(1, 4)] * 3),
        ((1, 8, 8, 3), None, (2, 16, 16, 3), [(1, 16, 16, 3)] * 2),
    ],
)
def test_how_an_array_is_split(tmp_path, declared, signature, given, expected):
    samples = split_samples(tmp_path, "x", facts(declared, signature), np.zeros(given, np.float32))
    assert [sample.shape for sample in samples] == expected
    assert all(isinstance(sample, np.ndarray) for sample in samples)


def test_one_value_serves_all_samples_and_strings_pass(tmp_path):
    model = tiny_models.TinyModel()
    graph = model.graph()
    graph.outputs = [graph.input("a", "float32", [1, 2]), graph.input("words", "string", [2])]
    path = model.write(tmp_path / "m.tflite")
    file = save(tmp_path / "in.npz", a=rows(3, 2), words=np.array([["naïve", "b"]]))
    result = run_model(path, Judging(inputs=[file]))
    assert [call["words"].tolist() for call in result.outputs] == [["naïve".encode(), b"b"]] * 3
    with pytest.raises(UsageError, match="'a' 3, 'words' 2"):
        verify(
            path,
            path,
            Judging(inputs=[save(tmp_path / "bad.npz", a=rows(3, 2), words=np.array([["a", "b"]] * 2))]),
        )
    # Made words reach the model and come back, too.
    assert verify(path, path).status == "pass"


@pytest.mark.parametrize("shape", [(0, 1, 4), (0, 4)])
def test_an_array_without_samples(tmp_path, model, shape):
    with pytest.raises(UsageError, match=r"in.npz: array 'x' holds no samples; its first axis counts"):
        run_model(model, Judging(inputs=[save(tmp_path / "in.npz", x=np.zeros(shape, np.float32))]))
