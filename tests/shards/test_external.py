"""Weights in files beside the model: the native format of LiteRT 2.1 and newer."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfl_rewrite
from tfl_rewrite.errors import FileAccessError, FormatError, UnsupportedError, UsageError
from tfl_rewrite.files.source import load, save
from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.interpreter.worker import Failure
from tfl_rewrite.judge import compiled
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.ir import Model
from tfl_rewrite.model.lower import lower
from tfl_rewrite.shards import external
from tfl_rewrite.shards.external import move_out
from tfl_rewrite.shards.settings import ShardFailed, ShardOptions

UNRUN = Judging(mode="off")


def content(value: Any) -> Any:
    """Records as plain data, with constants by their bytes and wherever they lie."""
    if isinstance(value, Record):
        fields = {name: content(item) for name, item in value.values.items()}
        if value.spec.name == "Buffer":
            fields = {"data": fields.get("data") or None}
        return value.spec.name, fields
    if isinstance(value, list):
        return [content(item) for item in value]
    if isinstance(value, ScalarVector):
        return bytes(value.raw)
    return bytes(value.view()) if hasattr(value, "view") else value


def record_content(model: Model) -> Any:
    for buffer in model.buffers:
        if buffer.outside and buffer.blob is not None:
            buffer.outside = False
            buffer.rest = buffer.rest.replace(offset=None, size=None)
    return content(lower(model))


def movable(path: Path) -> bool:
    try:
        move_out(load(path), max_nbytes=1 << 20)
    except (UnsupportedError, FormatError):
        return False
    return True


def round_trip(path: Path, folder: Path, judging: Judging | None = None) -> None:
    report = tfl_rewrite.shard(
        path, folder / "e", ShardOptions(format="external", max_size="64KiB"), judging=judging
    )
    assert judging is not None or (report.verdict is not None and report.verdict.passed)
    assert sorted(item.name for item in report.files) == sorted(
        file.name for file in (folder / "e").iterdir()
    )
    tfl_rewrite.join(folder / "e" / "model.tflite", folder / "whole.tflite", judging=judging)
    joined = load(folder / "whole.tflite")
    assert not joined.external_buffers and not joined.external_groups
    assert record_content(joined) == record_content(load(path))


def test_every_fixture_comes_back_record_equal(sound: Path, tmp_path: Path) -> None:
    if not movable(sound):
        with pytest.raises(UnsupportedError) as caught:
            tfl_rewrite.shard(sound, tmp_path / "e", ShardOptions(format="external"))
        assert caught.value.exit_code == 3 and not list(tmp_path.iterdir())
        return
    round_trip(sound, tmp_path, UNRUN)


def test_every_public_model_comes_back_record_equal(public: Path, tmp_path: Path) -> None:
    try:
        round_trip(public, tmp_path, UNRUN)
    except (UnsupportedError, FormatError):
        assert not list(tmp_path.iterdir())


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["digits_cnn", "digits_cnn_dynamic_range", "two_signatures_shared_weights"])
def test_compiled_model_computes_the_same(name: str, fixtures: Path, tmp_path: Path) -> None:
    round_trip(fixtures / f"{name}.tflite", tmp_path)


@pytest.mark.runtime
def test_a_public_mobilenet(tmp_path: Path) -> None:
    from ..helpers import CORPUS, NO_CORPUS

    if not CORPUS:
        pytest.skip(NO_CORPUS)
    whole = Path(CORPUS) / "tensorflow+tflite-support__mobilenet_v1_0.25_224_1_default_1.tflite"
    round_trip(whole, tmp_path)
    # The same net as LiteRT's own tool divides it.
    theirs = Path(CORPUS) / "derived+LiteRT-externalize__mobilenet_v1_0.25_224" / "model.tflite"
    report = tfl_rewrite.join(theirs, tmp_path / "theirs.tflite", judging=Judging(mode="require"))
    assert report.verdict is not None and report.verdict.passed
    ours, joined = load(whole), load(tmp_path / "theirs.tflite")
    pairs = zip(ours.subgraphs[0].tensors, joined.subgraphs[0].tensors, strict=True)
    for one, two in pairs:
        assert one.name == two.name and one.buffer.nbytes == two.buffer.nbytes
        if one.buffer.blob is not None and two.buffer.blob is not None:
            assert one.buffer.blob.view() == two.buffer.blob.view()


@pytest.mark.runtime
def test_compiled_model_may_be_wrong_about_the_original(tmp_path: Path) -> None:
    from ..helpers import CORPUS, NO_CORPUS

    if not CORPUS:
        pytest.skip(NO_CORPUS)
    # It hands out memory that nobody wrote as the output of a RESHAPE whose shape it learns at run time.
    report = tfl_rewrite.shard(
        Path(CORPUS) / "sipeed+TinyMaix__mbnet96_0.25_f.tflite",
        tmp_path / "e",
        ShardOptions(format="external"),
    )
    assert report.unverified is not None and "as the classic interpreter does" in report.unverified


@pytest.mark.runtime
def test_int64_outputs_are_compared_too(tmp_path: Path) -> None:
    from ..helpers import CORPUS, NO_CORPUS

    if not CORPUS:
        pytest.skip(NO_CORPUS)
    model = Path(CORPUS) / "google-coral+test_data__deeplabv3_mnv2_dm05_pascal_quant.tflite"
    report = tfl_rewrite.shard(
        model,
        tmp_path / "e",
        ShardOptions(format="external"),
        judging=Judging(samples=1, mode="require"),
    )
    assert report.verdict is not None and report.verdict.outputs[0].dtype == "int64"


def test_what_the_runtime_reads_and_how_it_is_laid_out(fixtures: Path, tmp_path: Path) -> None:
    tfl_rewrite.shard(
        fixtures / "digits_cnn.tflite",
        tmp_path / "e",
        ShardOptions(format="external", max_size="48KiB"),
        judging=UNRUN,
    )
    model = load(tmp_path / "e" / "model.tflite")
    assert model.external_groups[0].name == "" and len(model.external_groups) == 4
    moved = {id(tensor) for tensor in model.subgraphs[0].tensors if tensor.external is not None}
    weights = {
        id(operator.inputs[1])
        for operator in model.subgraphs[0].operators
        if row_of(operator).external_weight
    }
    assert moved == weights and len(moved) == 5
    for item in model.external_buffers:
        assert item.identifier >> 31 == 1 and item.offset % 64 == 0 and item.rest["packing"] == "unpacked"
        assert (tmp_path / "e" / str(item.group.name)).stat().st_size <= 48 << 10
    assert (tmp_path / "e" / "model.tflite").stat().st_size < 10_000


def test_a_large_tensor_gets_a_file_of_its_own(fixtures: Path, tmp_path: Path) -> None:
    report = tfl_rewrite.shard(
        fixtures / "digits_cnn.tflite",
        tmp_path / "e",
        ShardOptions(format="external", max_size="16KiB"),
        judging=UNRUN,
    )
    assert sum("cannot be divided" in note for note in report.notes) == 2
    assert sorted(item.nbytes for item in report.files)[-1] == 40960


@pytest.mark.runtime
def test_a_failed_verification_publishes_nothing(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = external._write

    def broken(file: Any, path: Path) -> None:
        write(file, path)
        path.write_bytes(bytes(path.stat().st_size))

    monkeypatch.setattr(external, "_write", broken)
    with pytest.raises(ShardFailed, match="computes something else") as caught:
        tfl_rewrite.shard(fixtures / "digits_cnn.tflite", tmp_path / "e", ShardOptions(format="external"))
    assert caught.value.exit_code == 4 and caught.value.report.outcome == "failed"
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(external, "_write", lambda file, path: None)
    with pytest.raises(FileAccessError):
        tfl_rewrite.shard(fixtures / "digits_cnn.tflite", tmp_path / "e", ShardOptions(format="external"))


@pytest.mark.runtime
def test_what_compiled_model_does_not_run(fixtures: Path, tmp_path: Path) -> None:
    report = tfl_rewrite.shard(fixtures / "lstm.tflite", tmp_path / "e", ShardOptions(format="external"))
    assert report.unverified is not None and "does not run in CompiledModel" in report.unverified
    with pytest.raises(ShardFailed, match="could not be verified") as caught:
        tfl_rewrite.shard(
            fixtures / "lstm.tflite",
            tmp_path / "r",
            ShardOptions(format="external"),
            judging=Judging(mode="require"),
        )
    assert caught.value.exit_code == 3 and not (tmp_path / "r").exists()
    report = tfl_rewrite.shard(
        fixtures / "string_input.tflite", tmp_path / "s", ShardOptions(format="external")
    )
    assert report.unverified is not None


@pytest.mark.runtime
def test_runs_with_given_inputs(fixtures: Path, tmp_path: Path) -> None:
    given = Judging(inputs=(fixtures / "inputs" / "mtcnn_rnet.npz",), mode="require")
    report = tfl_rewrite.shard(
        fixtures / "mtcnn_rnet.tflite",
        tmp_path / "e",
        ShardOptions(format="external"),
        judging=given,
    )
    assert report.verdict is not None and report.verdict.sample_source == "real"


def test_existing_files(fixtures: Path, tmp_path: Path) -> None:
    external = ShardOptions(format="external")
    tfl_rewrite.shard(fixtures / "digits_cnn.tflite", tmp_path / "e", external, judging=UNRUN)
    again = tfl_rewrite.shard(fixtures / "digits_cnn.tflite", tmp_path / "e", external, judging=UNRUN)
    assert {item.status for item in again.files} == {"kept"}
    before = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    with pytest.raises(UsageError, match="exists already, with other content"):
        tfl_rewrite.shard(fixtures / "mtcnn_rnet.tflite", tmp_path / "e", external, judging=UNRUN)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    forced = ShardOptions(format="external", force=True)
    tfl_rewrite.shard(fixtures / "mtcnn_rnet.tflite", tmp_path / "e", forced, judging=UNRUN)
    # Weights are named by their content, so those of the first model are still there.
    assert {name for name in before if name != "model.tflite"} < {p.name for p in (tmp_path / "e").iterdir()}
    with pytest.raises(UnsupportedError, match="use 'tfl-rewrite join' first"):
        tfl_rewrite.shard(tmp_path / "e" / "model.tflite", tmp_path / "f", external, judging=UNRUN)
    with pytest.raises(UsageError, match="leave out --compress"):
        ShardOptions(format="external", compress="gzip")
    with pytest.raises(UsageError, match="is a whole model already"):
        tfl_rewrite.join(fixtures / "digits_cnn.tflite", tmp_path / "g")


@pytest.fixture
def beside(fixtures: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "beside"
    shutil.copytree(fixtures / "external_buffers", folder)
    return folder


@pytest.mark.parametrize("name", ["../weights_0.bin", "/etc/passwd", "", "..", "a/b", "C:\\x", "a\nb"])
def test_names_cannot_leave_the_folder(name: str, beside: Path, tmp_path: Path) -> None:
    model = load(beside / "model.tflite")
    model.external_groups[1].name = name
    save(model, beside / "bad.tflite")
    with pytest.raises(FormatError, match="is not a plain file name"):
        tfl_rewrite.join(beside / "bad.tflite", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_weight_files(beside: Path, tmp_path: Path) -> None:
    weights = beside / "weights_1.bin"
    good = weights.read_bytes()

    def refused(kind: type[Exception], what: str) -> None:
        with pytest.raises(kind, match=what) as caught:
            tfl_rewrite.join(beside / "model.tflite", tmp_path / "out", judging=UNRUN)
        assert "weights_1.bin" in str(caught.value) and not (tmp_path / "out").exists()

    weights.write_bytes(good[:-1])
    refused(FormatError, "past its end")
    weights.write_bytes(b"")
    refused(FormatError, "is empty")
    weights.unlink()
    refused(FileAccessError, "is missing")
    weights.symlink_to(beside / "weights_0.bin")
    refused(FileAccessError, "symbolic link")


def test_slices_that_do_not_fit(beside: Path, tmp_path: Path) -> None:
    model = load(beside / "model.tflite")
    model.external_buffers[0].nbytes -= 4
    save(model, beside / "short.tflite")
    with pytest.raises(FormatError, match="bytes in a weight file, but FLOAT32"):
        tfl_rewrite.join(beside / "short.tflite", tmp_path / "out")
    model = load(beside / "model.tflite")
    model.external_buffers[0].rest = model.external_buffers[0].rest.replace(packing="npu_blocks")
    save(model, beside / "packed.tflite")
    with pytest.raises(UnsupportedError, match="packed as 'npu_blocks'"):
        tfl_rewrite.join(beside / "packed.tflite", tmp_path / "out")


@pytest.mark.runtime
def test_the_joined_file_runs_in_the_classic_interpreter(
    beside: Path, fixtures: Path, tmp_path: Path
) -> None:
    tfl_rewrite.join(beside / "model.tflite", tmp_path / "out")
    verdict = tfl_rewrite.verify(
        fixtures / "digits_cnn.tflite",
        tmp_path / "out",
        tfl_rewrite.Judging(tolerance=tfl_rewrite.Tolerance(exact=True)),
    )
    assert verdict.passed and np.isinf(verdict.worst_snr() or 0)


def test_constants_that_other_operators_read_stay(fixtures: Path) -> None:
    with pytest.raises(UnsupportedError, match="is read only as a weight"):
        move_out(load(fixtures / "shared_constant_two_ops.tflite"), max_nbytes=1 << 20)


@pytest.mark.runtime
def test_compiled_model_may_take_no_more_memory_than_allowed(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The classic interpreter, which runs first, is let through: it asks for itself.
    monkeypatch.setattr(compiled, "default_limit", lambda: 1 << 20)
    whole = fixtures / "digits_cnn.tflite"
    verdict = compiled.judge_compiled(whole, whole, whole, Judging(), beside=((), ()))
    assert verdict.status == "unverified"
    assert "took more memory than 1 MB" in verdict.reasons[0]


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("ended", "crowded", "status"),
    [
        # The second, beside the first; alone there is room for it.
        ([1], True, "pass"),
        # The second, and the first when it runs again: it was over before anyone looked.
        ([1, 2], False, "unverified"),
        ([1], False, "fail"),
    ],
)
def test_what_ends_one_of_two_is_its_own_fault(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch, ended: list[int], crowded: bool, status: str
) -> None:
    runs = itertools.count()

    class Ended(compiled.Worker):
        def finish(self, timeout: float | None = None) -> compiled.Execution:
            execution = super().finish(timeout)
            if next(runs) in ended:
                execution.ran.clear()
                execution.failure = Failure(
                    kind="memory", stage="running", step=0, message="took too much memory", crowded=crowded
                )
            return execution

    monkeypatch.setattr(compiled, "Worker", Ended)
    whole = fixtures / "digits_cnn.tflite"
    verdict = compiled.judge_compiled(whole, whole, whole, Judging(samples=1), beside=((), ()))
    assert (verdict.status, verdict.reasons) == (
        status,
        {
            "pass": (),
            "unverified": ("the original does not run in CompiledModel: took too much memory",),
            "fail": ("the result does not run: took too much memory",),
        }[status],
    )
