"""Wherever a model is taken: a path, bytes, an open file, or a model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfl_rewrite
from tfl_rewrite import Judging

OFF = Judging(mode="off")


def opened(path: Path) -> Any:
    return open(path, "rb")


def changed(path: Path) -> tfl_rewrite.Model:
    model = tfl_rewrite.load(path)
    model.description = "changed"
    return model


KINDS: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "path": Path,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "stream": lambda path: io.BytesIO(path.read_bytes()),
    "open file": opened,
    "model": tfl_rewrite.load,
    "model of bytes": lambda path: tfl_rewrite.load(path.read_bytes()),
    "changed model": changed,
}


@contextmanager
def given(kind: str, path: Path) -> Iterator[Any]:
    made = KINDS[kind](path)
    yield made
    if kind == "open file":
        made.close()


@pytest.fixture
def model(fixtures: Path) -> Path:
    return fixtures / "digits_cnn.tflite"


@pytest.mark.parametrize("kind", KINDS)
def test_readers_take_it(kind: str, model: Path) -> None:
    def same(call: Callable[[Any], Any], read: Callable[[Any], Any]) -> None:
        with given(kind, model) as source:
            assert read(call(source)) == read(call(model))

    same(tfl_rewrite.check, lambda found: found)
    same(tfl_rewrite.inspect, lambda found: (found.operators, found.constants, found.outputs))
    # What was changed is written anew, so that everything lies where it should.
    expected = [] if kind == "changed model" else ["unaligned"]
    with given(kind, model) as source:
        assert [finding.kind for finding in tfl_rewrite.diagnose(source).findings] == expected
    same(tfl_rewrite.load, lambda found: [item.code.name for item in found.subgraphs[0].operators])
    with given(kind, model) as source:
        told = [item.where for item in tfl_rewrite.diff(model, source).differences]
        assert told == (["description"] if kind == "changed model" else [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_rewrite_takes_it_and_gives_a_model(kind: str, model: Path, tmp_path: Path) -> None:
    passes = [tfl_rewrite.passes.QuantizeWeights()]
    tfl_rewrite.rewrite(
        changed(model) if kind == "changed model" else model, tmp_path / "a", passes, judging=OFF
    )
    with given(kind, model) as source:
        report = tfl_rewrite.rewrite(source, passes=passes, judging=OFF)
    assert report.model is not None and report.target == "<memory>"
    assert report.model.to_bytes() == (tmp_path / "a").read_bytes()
    assert report.nbytes_after == len(report.model.to_bytes())
    assert "model" not in report.to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_rewrite_that_changes_nothing_gives_the_model_too(model: Path) -> None:
    report = tfl_rewrite.rewrite(model, passes=[tfl_rewrite.passes.Dedup()], judging=OFF)
    assert report.outcome == "unchanged" and report.model is not None
    assert report.model.to_bytes() == model.read_bytes()


def test_with_a_target_the_report_holds_no_model(model: Path, tmp_path: Path) -> None:
    assert (
        tfl_rewrite.rewrite(model, tmp_path / "out", [tfl_rewrite.passes.Dedup()], judging=OFF).model is None
    )


def test_a_model_is_what_save_would_write(model: Path, tmp_path: Path) -> None:
    loaded = tfl_rewrite.load(model)
    assert loaded.to_bytes() == model.read_bytes()
    tfl_rewrite.run(loaded, [tfl_rewrite.passes.QuantizeWeights()])
    tfl_rewrite.save(loaded, tmp_path / "out")
    assert loaded.to_bytes() == (tmp_path / "out").read_bytes()


def test_a_zip_behind_the_model_stays(fixtures: Path) -> None:
    loaded = tfl_rewrite.load((fixtures / "metadata_label_zip.tflite").read_bytes())
    loaded.description = "digits"
    assert tfl_rewrite.inspect(loaded).zip_members == ("labels.txt",)


def test_what_is_no_model_is_told() -> None:
    with pytest.raises(tfl_rewrite.UsageError, match="int is not a model; give a path, bytes"):
        tfl_rewrite.load(7)  # type: ignore[arg-type]
    with pytest.raises(tfl_rewrite.UsageError, match="StringIO is not a model"):
        tfl_rewrite.load(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(tfl_rewrite.FormatError, match="<bytes>: the file is empty"):
        tfl_rewrite.check(b"")


def test_a_model_made_in_memory_says_how_it_is_written() -> None:
    made = tfl_rewrite.Model([], [], [])
    with pytest.raises(tfl_rewrite.UsageError, match="save"):
        made.to_bytes()


# -- What runs them ------------------------------------------------------------------------------------------

IN_MEMORY = ["bytes", "open file", "model", "model of bytes", "changed model"]


@pytest.mark.runtime
@pytest.mark.parametrize("kind", IN_MEMORY)
def test_the_judge_takes_it(kind: str, model: Path, tmp_path: Path) -> None:
    with given(kind, model) as source, given(kind, model) as other:
        verdict = tfl_rewrite.verify(source, other, Judging(samples=1))
    assert verdict.passed and verdict.worst_snr() is not None
    new = tfl_rewrite.rewrite(model, passes=[tfl_rewrite.passes.QuantizeWeights()], judging=OFF).model
    with given(kind, model) as source:
        assert new is not None
        assert tfl_rewrite.verify(source, new, Judging(samples=1)).worst_snr() is not None
    with given(kind, model) as source:
        assert tfl_rewrite.blame(source, new, Judging(samples=1)).marked()


@pytest.mark.runtime
@pytest.mark.parametrize("kind", IN_MEMORY)
def test_a_verified_rewrite_takes_it(kind: str, model: Path, few: Path) -> None:
    with given(kind, model) as source:
        report = tfl_rewrite.rewrite(
            source, passes=[tfl_rewrite.passes.QuantizeWeights(effort="best")], judging=Judging(inputs=(few,))
        )
    assert report.verdict is not None and report.verdict.passed and report.model is not None


@pytest.mark.runtime
def test_the_judge_runs_the_bytes_that_were_loaded_not_what_lies_there_now(
    model: Path, fixtures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(model.read_bytes())
    loaded = tfl_rewrite.load(path)
    other = tmp_path / "other.tflite"
    other.write_bytes((fixtures / "dense.tflite").read_bytes())
    other.replace(path)
    assert tfl_rewrite.verify(loaded, model, Judging(samples=1)).passed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "changed model"])
def test_searches_and_shards_take_it(kind: str, fixtures: Path, tmp_path: Path) -> None:
    model, judging = fixtures / "dense.tflite", Judging(inputs=(fixtures / "inputs" / "dense.npz",))
    with given(kind, model) as source:
        goal = tfl_rewrite.Goal(min_snr=20, effort="fast", encodings=("int8:channel",))
        made = tfl_rewrite.shrink(source, tmp_path / "out", goal, judging=judging)
    assert made.source == ("<model>" if kind == "changed model" else "<bytes>")
    with given(kind, model) as source:
        rounding = tfl_rewrite.passes.RoundWeights(effort="fast", min_snr=30)
        report = tfl_rewrite.rewrite(source, passes=[rounding], judging=judging)
    assert report.outcome == "rewritten"
    with given(kind, model) as source:
        report = tfl_rewrite.shard(source, tmp_path / "parts")
    assert report.source == made.source
    assert tfl_rewrite.join(report.entry, tmp_path / "joined").sha256 == report.sha256
    with given(kind, model) as source:
        report = tfl_rewrite.shard(source, tmp_path / "weights", tfl_rewrite.ShardOptions(format="external"))
    assert report.verdict is not None and np.isfinite(report.nbytes)
