"""``quantize --ranges``: the same file again without the inputs, and a contract that holds for bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import Judging, UsageError, load, rewrite
from tfl_rewrite.cli.main import main
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.errors import FileAccessError
from tfl_rewrite.files.atomic import AtomicFile
from tfl_rewrite.integers.ranges import TensorRanges
from tfl_rewrite.passes import Quantize


@pytest.fixture
def here(fixtures: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and inputs: ``in.tflite``, ``few.npz``."""
    (few.parent / "in.tflite").write_bytes((fixtures / "digits_cnn.tflite").read_bytes())
    monkeypatch.chdir(few.parent)
    return few.parent


QUANTIZE = ("quantize", "in.tflite")
CALIBRATED = ("--inputs", "few.npz", "--ranges", "r.json")
AGAIN = ("--ranges", "r.json")
OTHERS = b'{"format": "tfl-rewrite-ranges", "version": 1, "model": "%s", "subgraphs": []}' % (b"0" * 64)
UNJUDGED = ("--verify", "off")
ONE_JUDGE = ("--resolver", "builtin")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.runtime
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_the_same_file_again_without_inputs(here: Path, activations: str) -> None:
    options = ("--effort", "fast", "--activations", activations)
    assert main([*QUANTIZE, "one.tflite", *CALIBRATED, *options, *UNJUDGED]) == 0
    assert main([*QUANTIZE, "other.tflite", *AGAIN, *options, *UNJUDGED]) == 0
    assert (here / "one.tflite").read_bytes() == (here / "other.tflite").read_bytes()
    # Ranges are those of the float model, whatever is made of it.
    other = "int16" if activations == "int8" else "int8"
    assert main([*QUANTIZE, "third.tflite", *AGAIN, "--activations", other, *UNJUDGED]) == 0


@pytest.mark.runtime
def test_rounding_for_what_weights_meet_needs_inputs_and_that_is_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUANTIZE, "one.tflite", *CALIBRATED, *UNJUDGED]) == 0
    capsys.readouterr()
    assert main([*QUANTIZE, "other.tflite", *AGAIN, *UNJUDGED]) == 0
    assert "weights are rounded as by --effort fast: balanced needs --inputs" in capsys.readouterr().out
    assert main([*QUANTIZE, "fast.tflite", *AGAIN, *UNJUDGED, "--effort", "fast"]) == 0
    assert "--effort fast" not in capsys.readouterr().out
    made = files(here)
    assert made["other.tflite"] == made["fast.tflite"] != made["one.tflite"]


@pytest.mark.runtime
def test_made_samples_pass_or_prove_nothing_and_others_judge(
    here: Path, fixtures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUANTIZE, "one.tflite", *CALIBRATED, "--effort", "fast", *UNJUDGED]) == 0
    strict = ("--min-snr", "90", "--effort", "fast", *ONE_JUDGE)
    capsys.readouterr()
    assert main([*QUANTIZE, "made.tflite", *AGAIN, *strict]) == 0
    assert "UNVERIFIED (made samples)" in (said := capsys.readouterr().out) and "--holdout" in said
    assert main([*QUANTIZE, "none.tflite", *AGAIN, *strict, "--verify", "require"]) == 3
    assert main([*QUANTIZE, "none.tflite", *AGAIN, *strict, "--holdout", "few.npz"]) == 4
    assert not (here / "none.tflite").exists()
    assert main([*QUANTIZE, "judged.tflite", *AGAIN, "--holdout", "few.npz", *ONE_JUDGE]) == 0
    assert "verified: PASS" in capsys.readouterr().out


@pytest.mark.runtime
def test_a_run_that_fails_or_is_dry_leaves_no_ranges(here: Path) -> None:
    before, options = files(here), ("--effort", "fast", *ONE_JUDGE)
    assert main([*QUANTIZE, "out.tflite", *CALIBRATED, *options, "--min-snr", "90"]) == 4
    assert main([*QUANTIZE, "out.tflite", *CALIBRATED, *options, "--dry-run"]) == 0
    assert files(here) == before


@pytest.mark.runtime
def test_ranges_that_cannot_be_kept_leave_no_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, publish = files(here), AtomicFile.publish

    def refuse(self: AtomicFile) -> None:
        if Path(self.target).name == "r.json":
            raise FileAccessError("cannot write", file="r.json")
        publish(self)

    monkeypatch.setattr(AtomicFile, "publish", refuse)
    assert main([*QUANTIZE, "out.tflite", *CALIBRATED, "--effort", "fast", *UNJUDGED]) == 2
    assert files(here) == before


@pytest.mark.runtime
def test_inputs_that_are_too_few_are_no_reason_to_read_the_file(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUANTIZE, "out.tflite", *CALIBRATED, "--effort", "fast", *UNJUDGED]) == 0
    with np.load("few.npz") as held:
        np.savez("two.npz", **{name: held[name][:2] for name in held.files})
    before = files(here)
    for kept in ("new.json", "r.json"):
        assert main([*QUANTIZE, "b.tflite", "--inputs", "two.npz", "--ranges", kept, "--force"]) == 2
        assert "2 samples are too few" in capsys.readouterr().err
    assert files(here) == before


@pytest.mark.runtime
def test_inputs_that_are_no_numbers_calibrate_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load("few.npz") as held:
        arrays = {name: held[name].copy() for name in held.files}
    for array in arrays.values():
        array.reshape(len(array), -1)[:, 0] = np.nan
    np.savez("nan.npz", **arrays)
    before = files(here)
    assert main([*QUANTIZE, "out.tflite", "--inputs", "nan.npz", "--ranges", "r.json"]) == 2
    assert "is NaN or infinite in some sample" in capsys.readouterr().err
    assert files(here) == before


@pytest.mark.runtime
def test_a_file_of_somebody_is_replaced_with_force_only(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "r.json").write_text("mine")
    before = files(here)
    assert main([*QUANTIZE, "out.tflite", *CALIBRATED]) == 2
    assert "r.json: exists already" in capsys.readouterr().err
    assert files(here) == before
    assert main([*QUANTIZE, "out.tflite", *CALIBRATED, "--effort", "fast", "--force", *UNJUDGED]) == 0
    assert TensorRanges.read("r.json").count > 5


@pytest.mark.parametrize(
    "words",
    [
        ("out.tflite", "--inputs", "few.npz", "--ranges", "out.tflite"),
        ("out.tflite", "--inputs", "few.npz", "--ranges", "few.npz", "--force"),
        ("out.tflite", "--inputs", "few.npz", "--ranges", "in.tflite", "--force"),
        ("out.tflite", "--inputs", "few.npz", "--ranges", "a.json", "--report", "a.json"),
        ("r.json", "--ranges", "r.json", "--force"),
        ("out.tflite", "--ranges", "r.json", "--report", "r.json", "--force"),
    ],
    ids=" ".join,
)
def test_no_file_is_written_over_another(
    here: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "r.json").write_text("mine")
    before = files(here)
    assert main([*QUANTIZE, *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    target, *rest = words
    assert "--ranges" in rest
    text = ",".join(f"{name}={value}" for name, value in [("ranges", rest[rest.index("--ranges") + 1])])
    at = rest.index("--ranges")
    passes = ("run", "in.tflite", target, "--pass", f"quantize:{text}", *rest[:at], *rest[at + 2 :])
    assert main([*passes]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert files(here) == before


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, 2),
        (b"", 5),
        (b"[]", 5),
        (b" " * (100 << 20), 5),
        (b'{"format": "tfl-rewrite-ranges", "version": 9}', 3),
        (OTHERS, 2),
    ],
    ids=["none", "empty", "other", "large", "newer", "of another model"],
)
def test_bad_files_are_refused_in_one_line(
    here: Path, content: bytes | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (here / "r.json").write_bytes(content)
    assert main([*QUANTIZE, "out.tflite", *AGAIN]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "r.json" in error and ";" in error
    assert not (here / "out.tflite").exists()


@pytest.mark.runtime
def test_from_python(here: Path) -> None:
    unjudged = Judging(inputs=("few.npz",), mode="off")
    report = rewrite("in.tflite", None, [Quantize(ranges="r.json", effort="fast")], judging=unjudged)
    assert report.model is not None
    ranges = TensorRanges.read("r.json")
    for kept in ("r.json", Path("r.json"), ranges):
        model = load("in.tflite")
        run_passes(model, [Quantize(ranges=kept, effort="fast")])
        assert model.to_bytes() == report.model.to_bytes()
    with pytest.raises(UsageError, match="is no text"):
        Quantize(ranges=7)  # type: ignore[arg-type]


@pytest.mark.runtime
def test_fewer_rows_mean_more_islands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUANTIZE, "one.tflite", *CALIBRATED, "--effort", "fast", *UNJUDGED]) == 0
    data = json.loads((here / "r.json").read_text())
    gone = data["subgraphs"][0].pop(3)
    (here / "fewer.json").write_text(json.dumps(data))
    capsys.readouterr()
    assert main([*QUANTIZE, "two.tflite", "--ranges", "fewer.json", *UNJUDGED, "--json"]) == 0
    (done,) = json.loads(capsys.readouterr().out)["passes"]
    assert {skip["reason"] for skip in done["skips"]} == {f"no sample says what {gone[1]!r} holds"}


@pytest.mark.runtime
def test_odd_ranges_make_a_file_that_loads_or_none(here: Path) -> None:
    assert main([*QUANTIZE, "one.tflite", *CALIBRATED, "--effort", "fast", *UNJUDGED]) == 0
    data = json.loads((here / "r.json").read_text())
    for scale in (0.0, 1e-44, 1e-30, 1e30, 3.4e38):
        for row in data["subgraphs"][0]:
            row[3:] = [-scale, scale]
        (here / "odd.json").write_text(json.dumps(data))
        # What one resolver reads, another one may refuse: all of them judge one of these.
        judges = () if scale == 1e-30 else ONE_JUDGE
        code = main([*QUANTIZE, "odd.tflite", "--ranges", "odd.json", "--holdout", "few.npz", *judges])
        assert code in (0, 3, 4), scale
        assert (here / "odd.tflite").exists() == (code == 0), scale
        (here / "odd.tflite").unlink(missing_ok=True)
