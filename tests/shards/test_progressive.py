"""A base that runs first, and the rest with which it becomes the original."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfl_rewrite
from tfl_rewrite.cli.main import main
from tfl_rewrite.errors import FormatError, UnsupportedError, UsageError
from tfl_rewrite.files.source import save
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.shards import rest as rests
from tfl_rewrite.shards.manifest import MAX_ELEMENTS, parse
from tfl_rewrite.shards.residual import decode, encode
from tfl_rewrite.shards.rest import Prediction
from tfl_rewrite.shards.settings import JoinOptions, ShardFailed, ShardOptions, ShardReport

from ..nets import Net, data_of, stored_apart

OFF = Judging(mode="off")
SHAPES = (
    "digits_cnn",
    "digits_cnn_float16",
    "dynamic_shapes",
    "lstm",
    "metadata_label_zip",
    "mtcnn_rnet_old_schema",
    "offset_buffers",
    "text_embedding",
    "transpose_conv",
    "two_signatures_shared_weights",
)


def shard(model: Path, folder: Path, **options: Any) -> ShardReport:
    return tfl_rewrite.shard(model, folder, ShardOptions(progressive=True, **options), judging=OFF)


def there_and_back(model: Path, folder: Path, **options: Any) -> ShardReport:
    report = shard(model, folder / "parts", **options)
    tfl_rewrite.join(report.entry, folder / "whole", JoinOptions(force=True))
    assert (folder / "whole").read_bytes() == model.read_bytes()
    return report


# -- The numbers ---------------------------------------------------------------------------------------------


def half(bits: int) -> int:
    """The bits of a float16 number near a float32 one, as the upper half of 32 bits."""
    near = max(0, min(((bits & 0x7FFFFFFF) - 0x38000000 + 0x1000) >> 13, 0x7C00)) << 16
    return near - (1 << 31) if bits < 0 else near


def plainly_decoded(left: bytes, codes: list[int], scales: list[float], width: int) -> bytes:
    """What docs/shards.md says, a number at a time."""
    shift, kind = 32 - 8 * width, "i" if width == 4 else "h"
    count = len(codes)
    made = [0] * count
    for place, element in enumerate(sorted(range(count), key=lambda item: abs(codes[item]))):
        folded = int.from_bytes(bytes(left[plane * count + place] for plane in range(width)), "big")
        product = np.float32(codes[element]) * np.float32(scales[element])
        (predicted,) = struct.unpack("<i", struct.pack("<f", product))
        predicted = predicted if width == 4 else half(predicted)
        order = (predicted ^ (0x7FFFFFFF if predicted < 0 else 0)) >> shift
        order = ((order + ((folded >> 1) ^ -(folded & 1)) << shift) + (1 << 31)) % (1 << 32) - (1 << 31)
        made[element] = (order ^ (0x7FFFFFFF if order < 0 else 0)) >> shift
    return struct.pack(f"<{count}{kind}", *made)


@pytest.mark.parametrize("width", [4, 2])
def test_any_bits_come_back(width: int) -> None:
    """Also infinite ones, NaN, both zeros, and those that are nowhere near what is predicted."""
    dice = np.random.default_rng(0)
    odd = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3.4e38, -3.4e38]
    with np.errstate(all="ignore"):
        ends = np.array(odd, "<f4").astype(f"<f{width}")
    noise = np.frombuffer(dice.bytes(width * 500), ends.dtype)
    floats = np.concatenate([noise, ends])
    codes = dice.integers(-128, 128, len(floats)).astype(np.int8)
    scales = np.resize(np.array([1e-3, 0.5, 1e-45, 1e36], np.float32), len(floats))
    left = encode(memoryview(floats.tobytes()), codes, scales, width)
    assert len(left) == floats.nbytes
    assert decode(left, codes, scales, width) == floats.tobytes()
    assert plainly_decoded(left, codes.tolist(), scales.tolist(), width) == floats.tobytes()


@pytest.mark.parametrize("width", [4, 2])
def test_near_predictions_leave_small_numbers(width: int) -> None:
    dice = np.random.default_rng(0)
    floats = dice.normal(0, 0.1, 4096).astype(f"<f{width}")
    scales = np.full(4096, np.abs(floats).max() / 127, np.float32)
    codes = np.rint(floats / scales).astype(np.int8)
    left = encode(memoryview(floats.tobytes()), codes, scales, width)
    assert np.count_nonzero(np.frombuffer(left, np.uint8)[:4096]) < 300


# -- There and back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_models_come_back(name: str, fixtures: Path, tmp_path: Path) -> None:
    model = fixtures / f"{name}.tflite"
    report = there_and_back(model, tmp_path, max_size="8KiB")
    assert max(item.stored_nbytes for item in report.files) <= 8 << 10
    assert {path.name for path in tmp_path.iterdir()} == {"parts", "whole"}


def test_the_base_is_what_quantize_weights_makes(fixtures: Path, tmp_path: Path) -> None:
    model = fixtures / "mtcnn_rnet.tflite"
    report = there_and_back(model, tmp_path)
    assert report.base is not None
    with pytest.raises(UsageError, match="is of a model with the SHA-256"):
        tfl_rewrite.join(report.entry, tmp_path / "base", JoinOptions(base=True, sha256=report.sha256))
    tfl_rewrite.join(report.entry, tmp_path / "base", JoinOptions(base=True, sha256=report.base.sha256))
    tfl_rewrite.rewrite(model, tmp_path / "int8", [QuantizeWeights()], judging=OFF)
    base = (tmp_path / "int8").read_bytes()
    assert (tmp_path / "base").read_bytes() == base
    assert report.base.sha256 == hashlib.sha256(base).hexdigest()
    rest = sum(item.stored_nbytes for item in report.files) - report.base.stored_nbytes
    # 26 and 64 %, where deflate alone leaves 91 %.
    assert report.base.stored_nbytes < 0.27 * report.nbytes and rest < 0.65 * report.nbytes
    for file in (tmp_path / "parts").iterdir():
        with pytest.raises(UsageError, match="is what the result is made of"):
            tfl_rewrite.join(report.entry, file, JoinOptions(base=True, force=True))
    with pytest.raises(UsageError, match="more than"):
        tfl_rewrite.open_sharded(report.entry, max_nbytes=report.nbytes)
    with tfl_rewrite.open_sharded(report.entry) as whole:
        assert whole.content == model.read_bytes()
    with tfl_rewrite.open_sharded(report.entry, base=True) as first:
        assert first.content == base
    again = shard(model, tmp_path / "parts")
    assert {item.status for item in again.files} == {"kept"}


def test_equal_weights_share_their_bytes(tmp_path: Path) -> None:
    net = Net()
    one = net.weights("w", (64, 64))
    two = net.constant("w2", data_of(one))
    stored_apart(two)
    net.output(net.dense(net.dense(net.input("in", (1, 64)), one, "mid"), two, "out"))
    path = tmp_path / "twice.tflite"
    save(net.model, path)
    report = there_and_back(path, tmp_path, max_size="16KiB")
    rows = parse(Path(report.entry).read_bytes(), "m").weights().values()
    assert [len(group) for group in rows] == [2] * len(rows) and len(rows) >= 1


def test_what_is_found_wrong_in_the_base_costs_bytes_alone(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fixtures / "digits_cnn.tflite"
    found = rests.predictions

    def elsewhere(*given: Any) -> dict[tuple[int, int], Prediction]:
        return {span: Prediction(7, 13, 3, 5) for span in found(*given)}

    right = there_and_back(model, tmp_path)
    monkeypatch.setattr(rests, "predictions", elsewhere)
    wrong = there_and_back(model, tmp_path, force=True)
    sizes = [sum(item.stored_nbytes for item in report.files) for report in (right, wrong)]
    assert sizes[0] < sizes[1]


def test_the_same_bytes_each_time(fixtures: Path, tmp_path: Path) -> None:
    made = []
    for name in "ab":
        shard(fixtures / "text_embedding.tflite", tmp_path / name, max_size="16KiB", jobs=1 + (name == "b"))
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
    text = made[0]["manifest.json"]
    assert parse(text, "m").dump() == text and json.loads(text)["version"] == 2


@pytest.mark.runtime
def test_the_base_is_judged(fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, folder = fixtures / "digits_cnn.tflite", tmp_path / "parts"
    strict = Judging(samples=2, tolerance=Tolerance(min_snr=90), rescue=False)
    with pytest.raises(ShardFailed, match="differs too much") as caught:
        tfl_rewrite.shard(model, folder, ShardOptions(progressive=True), judging=strict)
    verdict = caught.value.report.verdict
    assert verdict is not None and verdict.status == "fail" and not list(tmp_path.iterdir())
    words = ["shard", str(model), str(folder), "--progressive", "--samples", "2", "--verify", "require"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "verified: PASS" in said and "verified: read back, equal" in said and "base: a model of" in said
    base = tmp_path / "base.tflite"
    assert main(["join", "--base", str(folder / "manifest.json"), str(base)]) == 0
    assert hashlib.sha256(base.read_bytes()).hexdigest() in said


# -- What does not go ----------------------------------------------------------------------------------------


def test_what_has_no_base(fixtures: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="so there is no base"):
        shard(fixtures / "digits_cnn_full_int8.tflite", tmp_path / "parts")
    assert not list(tmp_path.iterdir())
    entry = tfl_rewrite.shard(fixtures / "dense.tflite", tmp_path / "parts").entry
    with pytest.raises(UsageError, match="has no base"):
        tfl_rewrite.join(entry, tmp_path / "out", JoinOptions(base=True))
    with pytest.raises(UsageError, match="has no base"):
        tfl_rewrite.open_sharded(entry, base=True)
    weights = fixtures / "external_buffers" / "model.tflite"
    with pytest.raises(UsageError, match="has no base"):
        tfl_rewrite.join(weights, tmp_path / "out", JoinOptions(base=True))
    with pytest.raises(UsageError, match="only parts"):
        ShardOptions(format="external", progressive=True)


def test_a_dry_run_leaves_nothing(fixtures: Path, tmp_path: Path) -> None:
    report = shard(fixtures / "digits_cnn.tflite", tmp_path / "parts", dry_run=True)
    assert report.dry_run and report.base is not None and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    folder = tmp_path_factory.mktemp("progressive") / "parts"
    shard(fixtures / "mtcnn_rnet.tflite", folder, max_size="512KiB")
    return folder


def rows_of(data: dict[str, Any], length: int) -> list[list[int]]:
    return [row for row in data["layout"] if len(row) == length]


def longest(data: dict[str, Any]) -> list[int]:
    return max(rows_of(data, 9), key=lambda row: row[2])


def changed(at: int, value: int) -> Any:
    """Changes a number of the longest row of weights."""

    def change(data: dict[str, Any]) -> None:
        longest(data)[at] = value

    return change


def overlapping(data: dict[str, Any]) -> None:
    row = longest(data)
    row[2] -= 4
    data["layout"].append([row[0], row[1] + 4, row[2], *row[3:]])
    data["nbytes"] += row[2] - 4


def without_base(data: dict[str, Any]) -> None:
    del data["base"]


def as_the_first_version(data: dict[str, Any]) -> None:
    data["version"] = 1


def base_of_weights(data: dict[str, Any]) -> None:
    data["base"]["layout"][0] = longest(data)


def longer_copy(data: dict[str, Any]) -> None:
    rows_of(data, 2)[0][1] = 1 << 40


def negative_copy(data: dict[str, Any]) -> None:
    rows_of(data, 2)[0][0] = -1


def wrong_base(data: dict[str, Any]) -> None:
    data["base"]["sha256"] = "0" * 64


def unused_part(data: dict[str, Any]) -> None:
    data["base"]["layout"] = [[longest(data)[0], 0, 4]]
    data["base"]["nbytes"] = 4
    data["layout"] = [[longest(data)[0], 0, 8]]
    data["nbytes"] = 8


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (changed(2, 4 * MAX_ELEMENTS - 1), "are not at most"),
        (changed(2, 4 * MAX_ELEMENTS + 4), "are not at most"),
        (changed(8, 0), "are not at most"),
        (changed(8, 3), "are not at most"),
        (changed(3, -1), "are not inside of the base"),
        (changed(3, 111_000), "are not inside of the base"),
        (changed(4, 112_256), "are not inside of the base"),
        (changed(5, 0), "has 0 channels"),
        (changed(5, 1 << 62), "channels"),
        (changed(6, 0), "is out of range"),
        (changed(6, 1 << 62), "is out of range"),
        (changed(7, -1), "is out of range"),
        (changed(7, 1 << 62), "is out of range"),
        (changed(6, 5), "together they have the SHA-256"),
        (changed(0, 99), "part 99 is out of range"),
        (overlapping, "overlap in part"),
        (without_base, "(base): is not an object"),
        (as_the_first_version, "is not [part, offset, nbytes]"),
        (base_of_weights, "(base.layout[0]): is not [part, offset, nbytes]"),
        (longer_copy, "are not inside of the base"),
        (negative_copy, "are not inside of the base"),
        (wrong_base, "together they have the SHA-256"),
        (unused_part, "no slice uses it"),
    ],
)
def test_a_manifest_of_somebody_else(change: Any, what: str, parts: Path, tmp_path: Path) -> None:
    data = json.loads((parts / "manifest.json").read_bytes())
    change(data)
    bad = parts / "bad.json"
    bad.write_text(json.dumps(data))
    with pytest.raises(FormatError) as caught:
        tfl_rewrite.join(bad, tmp_path / "out")
    assert what in str(caught.value) and not list(tmp_path.iterdir())


def test_rows_that_share_all_their_bytes_are_held_once(parts: Path, tmp_path: Path) -> None:
    """A manifest of a few kilobytes asks for many of the largest rows: time, but no memory."""
    data = json.loads((parts / "manifest.json").read_bytes())
    row = longest(data)
    data["layout"] += [row] * 50
    data["nbytes"] += 50 * row[2]
    (parts / "many.json").write_text(json.dumps(data))
    manifest = parse((parts / "many.json").read_bytes(), "m")
    slices = [piece for found in manifest.slices() for piece in found]
    assert len(slices) == len(rows_of(data, 3)) + len({tuple(item[:3]) for item in rows_of(data, 9)})
    with pytest.raises(FormatError, match="together they have"):
        tfl_rewrite.join(parts / "many.json", tmp_path / "out")
