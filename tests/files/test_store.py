"""Saving: aside, then renamed; what is refused; and where buffers go past two gibibytes."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.errors import FileAccessError, UnsupportedError, UsageError
from tfl_rewrite.files import layout as layouts
from tfl_rewrite.files.atomic import AtomicFile, atomic_write
from tfl_rewrite.files.source import is_changed, layout, origin_of
from tfl_rewrite.flatbuf.reader import read
from tfl_rewrite.model.blob import ComputedBlob, MappedBlob, OwnedBlob
from tfl_rewrite.model.ir import Buffer, Model, schema
from tfl_rewrite.work import Work

from ..helpers import ROOT

RUNNER = ROOT / "tests" / "model" / "run_models.py"


def changed(path: Path) -> Model:
    model = load(path)
    model.description = "changed"
    return model


@pytest.fixture
def dense(fixtures: Path) -> Path:
    return fixtures / "dense.tflite"


# -- What is patched in place --------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
def test_bytes_stored_once_are_patched_for_all_or_not_at_all(
    dense: Path, tmp_path: Path, outside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if outside:
        monkeypatch.setattr(layouts, "_INLINE_LIMIT", 0)
        monkeypatch.setattr(layouts, "_OUTSIDE_FROM", 16)
    model = load(dense)
    weights = next(buffer for buffer in model.buffers if buffer.nbytes == 5120)
    model.buffers.append(Buffer(weights.blob))
    source, target = tmp_path / "source.tflite", tmp_path / "target.tflite"
    save(model, source)
    once = load(source)
    one, other = (buffer for buffer in once.buffers if buffer.nbytes == 5120)
    assert one.blob is not None and other.blob is not None and one.blob.identity == other.blob.identity
    assert one.outside == outside
    zeros = OwnedBlob(bytes(5120))
    for buffer in (one, other):
        kept = bytes(buffer.blob.view())  # type: ignore[union-attr]
        buffer.blob = zeros
        made = layout(once)
        save(once, target, force=True)
        contents = [
            bytes(item.blob.view()) for item in load(target).buffers if item.blob and item.nbytes == 5120
        ]
        if buffer is one:
            assert made.base is None and contents == [zeros.data, kept]
        else:
            assert made.base is not None and contents == [zeros.data] * 2


def test_a_constant_over_a_table_is_moved_and_not_patched(dense: Path, tmp_path: Path) -> None:
    """No converter writes that, and the bytes of one would be those of the other."""
    data = bytearray(dense.read_bytes())
    number = next(index for index, buffer in enumerate(load(dense).buffers) if buffer.nbytes)
    place = load(dense).buffers[number].blob
    assert isinstance(place, MappedBlob)
    words = {at: int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data) - 3, 4)}
    (slot,) = (at for at, word in words.items() if at + word == place.offset - 4)
    spans = read(memoryview(bytes(data)), schema()).spans
    starts = {start for start, _ in spans}
    # A table begins with the distance to its vtable, which reads as the length of a vector.
    table = next(
        start
        for start, end in spans
        if slot < start
        and 8 <= words.get(start, 0) <= 64
        and start - words[start] in starts
        and end - start > 8
    )
    data[slot : slot + 4] = (table - slot).to_bytes(4, "little")
    source, target = tmp_path / "source.tflite", tmp_path / "target.tflite"
    source.write_bytes(data)
    model = load(source)
    buffer = model.buffers[number]
    assert isinstance(buffer.blob, MappedBlob) and buffer.blob.offset == table + 4
    buffer.blob = OwnedBlob(bytes(buffer.nbytes))
    assert layout(model).base is None
    save(model, target)
    made = load(target)
    assert [tensor.shape for tensor in made.subgraphs[0].tensors] == [
        tensor.shape for tensor in load(dense).subgraphs[0].tensors
    ]


# -- Where it is written -------------------------------------------------------------------------------------


def test_new_file_has_the_size_that_is_returned_and_nothing_lies_beside_it(
    dense: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.tflite"
    assert save(changed(dense), target) == target.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["out.tflite"]
    assert load(target).description == "changed"


def test_new_file_has_the_permissions_that_the_user_gives_new_files(dense: Path, tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        save(load(dense), tmp_path / "out.tflite")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "out.tflite").stat().st_mode) == 0o640


@pytest.mark.parametrize("change", [False, True])
def test_existing_file_is_only_replaced_when_told(dense: Path, tmp_path: Path, change: bool) -> None:
    target = tmp_path / "out.tflite"
    target.write_bytes(b"precious")
    target.chmod(0o604)
    model = changed(dense) if change else load(dense)
    with pytest.raises(UsageError, match="exists already") as refusal:
        save(model, target)
    assert refusal.value.remedy is not None and "--force" in refusal.value.remedy
    assert target.read_bytes() == b"precious"
    save(model, target, force=True)
    assert load(target).description == model.description
    assert stat.S_IMODE(target.stat().st_mode) == 0o604, "permissions are those of the file that it replaces"
    assert [path.name for path in tmp_path.iterdir()] == ["out.tflite"]


def test_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(UsageError, match="appeared"), atomic_write(target, force=False, nbytes=4) as output:
        target.write_bytes(b"another process")
        output.publish()
    assert target.read_bytes() == b"another process"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", [False, True])
def test_input_may_be_the_output(fixtures: Path, tmp_path: Path, change: bool) -> None:
    path = tmp_path / "model.tflite"
    data = (fixtures / "digits_cnn.tflite").read_bytes()
    path.write_bytes(data)
    model = load(path)
    constants = [bytes(buffer.blob.view()) for buffer in model.buffers if buffer.blob]
    if change:
        model.description = "changed"
    save(model, path, force=True)
    assert [bytes(buffer.blob.view()) for buffer in model.buffers if buffer.blob] == constants, (
        "the map lives"
    )
    assert [bytes(buffer.blob.view()) for buffer in load(path).buffers if buffer.blob] == constants
    assert (path.read_bytes() == data) is not change
    save(model, path, force=True)
    assert load(path).description == model.description


def test_symbolic_link_is_followed_and_stays(dense: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real.tflite", tmp_path / "link.tflite"
    real.write_bytes(b"old")
    link.symlink_to(real)
    with pytest.raises(UsageError, match="exists already"):
        save(changed(dense), link)
    save(changed(dense), link, force=True)
    assert link.is_symlink() and not real.is_symlink()
    assert load(real).description == "changed"


def test_dangling_link_names_the_file_to_make(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "link.tflite").symlink_to(tmp_path / "real.tflite")
    save(changed(dense), tmp_path / "link.tflite")
    assert load(tmp_path / "real.tflite").description == "changed"


@pytest.mark.parametrize(
    ("target", "text"),
    [(".", "is a directory"), ("no/such/out", "folder does not exist"), ("file/out", "folder")],
)
def test_impossible_targets_are_usage_errors(dense: Path, tmp_path: Path, target: str, text: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=text) as refusal:
        save(changed(dense), tmp_path / target, force=True)
    assert refusal.value.remedy


def test_name_that_the_system_refuses_is_an_access_error(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="cannot write"):
        save(changed(dense), tmp_path / ("n" * 300))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "-", " ", "a\nb"])
def test_any_legal_name_will_do(dense: Path, tmp_path: Path, name: str) -> None:
    save(changed(dense), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


# -- When writing fails --------------------------------------------------------------------------------------


def failing(dense: Path, error: BaseException) -> Model:
    model = load(dense)
    buffer = next(buffer for buffer in model.buffers if buffer.nbytes == 5120)

    def compute(sink, offset):  # type: ignore[no-untyped-def]
        sink.write_at(b"half", offset)
        raise error

    buffer.blob = ComputedBlob(5120, compute)
    return model


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_failure_leaves_the_target_alone_and_nothing_beside_it(
    dense: Path, tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "out.tflite"
    with pytest.raises(type(error)):
        save(failing(dense, error), target)
    assert list(tmp_path.iterdir()) == []
    target.write_bytes(b"precious")
    with pytest.raises(type(error)):
        save(failing(dense, error), target, force=True)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.tflite", b"precious")]


def test_full_disk_is_an_access_error(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="No space left on device"):
        save(failing(dense, OSError(28, "No space left on device")), tmp_path / "out.tflite")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_published_is_removed(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "out", force=False, nbytes=10) as output:
        assert isinstance(output, AtomicFile) and output.path.stat().st_size == 10
        assert output.path.stat().st_size == 10 and not (tmp_path / "out").exists()
        output.sink.write_at(b"abc", 3)
        assert output.path.read_bytes() == bytes(3) + b"abc" + bytes(4)
    assert list(tmp_path.iterdir()) == []


# -- What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["unknown_field_newer_schema", "union_type_unknown", "dispatch_op_custom"],
)
def test_refusal_writes_nothing(fixtures: Path, tmp_path: Path, name: str) -> None:
    path = fixtures / "malformed" / f"{name}.tflite"
    with pytest.raises(UnsupportedError) as refusal:
        save(changed(path), tmp_path / "out.tflite")
    assert refusal.value.exit_code == 3 and refusal.value.remedy
    assert list(tmp_path.iterdir()) == []
    save(load(path), tmp_path / "out.tflite")
    assert (tmp_path / "out.tflite").read_bytes() == path.read_bytes()


def test_dispatch_op_is_refused_for_itself(fixtures: Path) -> None:
    origin = origin_of(load(fixtures / "malformed" / "dispatch_op_custom.tflite"))
    assert origin is not None
    dead, dispatch = origin.refusals
    assert "1,020 bytes" in dead.what and "DISPATCH_OP" in dispatch.what
    assert dispatch.where == "operator_codes[0]"


def test_a_change_taken_back_is_no_change(dense: Path, tmp_path: Path) -> None:
    model = load(dense)
    graph, blob = model.subgraphs[0], model.buffers[1].blob
    name, graph.tensors[0].name = graph.tensors[0].name, "other"
    model.buffers[1].blob = OwnedBlob(b"other")
    assert is_changed(model)
    graph.tensors[0].name, model.buffers[1].blob = name, blob
    assert not is_changed(model)
    save(model, tmp_path / "out.tflite")
    assert (tmp_path / "out.tflite").read_bytes() == dense.read_bytes()


# -- How it is written ---------------------------------------------------------------------------------------


def test_same_model_same_bytes_whatever_the_threads(fixtures: Path, tmp_path: Path) -> None:
    results = set()
    for threads in (1, 2, 7):
        made = layout(changed(fixtures / "digits_cnn.tflite"))
        with atomic_write(tmp_path / f"{threads}", force=False, nbytes=made.nbytes) as output:
            made.write_to(output.sink, Work(wanted_threads=threads))
            output.publish()
        results.add((tmp_path / f"{threads}").read_bytes())
    assert len(results) == 1


def test_ticks_add_up_to_the_constants(fixtures: Path, tmp_path: Path) -> None:
    model = changed(fixtures / "digits_cnn.tflite")
    made, told = layout(model), list[tuple[str, int, int]]()
    work = Work(progress=lambda *what: told.append(what))
    with atomic_write(tmp_path / "out", force=False, nbytes=made.nbytes) as output:
        made.write_to(output.sink, work)
    constants = sum(buffer.nbytes for buffer in model.buffers)
    assert {(what, total) for what, _, total in told} == {("writing", made.nbytes)}
    assert constants <= max(done for _, done, _ in told) <= made.nbytes


# -- Past two gibibytes --------------------------------------------------------------------------------------


def outputs(models: list[Path], inputs: Path, folder: Path) -> dict[str, np.ndarray]:
    subprocess.run(
        [sys.executable, RUNNER, folder / "outputs.npz"],
        input=json.dumps([[str(model), str(inputs)] for model in models]),
        text=True,
        check=True,
        capture_output=True,
        timeout=120,
    )
    with np.load(folder / "outputs.npz") as arrays:
        return dict(arrays)


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["digits_cnn", "metadata_label_zip", "offset_buffers"])
def test_buffers_go_outside_when_they_do_not_fit(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, target = fixtures / f"{name}.tflite", tmp_path / "out.tflite"
    before = changed(path)
    monkeypatch.setattr(layouts, "_INLINE_LIMIT", 50_000)
    save(before, target)
    after = load(target)
    for one, two in zip(before.buffers, after.buffers, strict=True):
        assert two.outside is (one.nbytes >= 1024)
        assert (bytes(one.blob.view()) if one.blob else b"") == (bytes(two.blob.view()) if two.blob else b"")
        if two.outside:
            assert two.blob is not None and two.rest["offset"] % 16 == 0 and "data" not in two.rest
    assert not is_changed(after)
    results = outputs([path, target], fixtures / "inputs" / "digits_eval.npz", tmp_path)
    assert len(results) == 6 and not any("error" in key for key in results)
    for sample in range(3):
        assert results[f"0.{sample}.0"].tobytes() == results[f"1.{sample}.0"].tobytes()
    if name == "metadata_label_zip":
        with zipfile.ZipFile(io.BytesIO(target.read_bytes())) as archive:
            assert archive.testzip() is None and archive.namelist() == ["labels.txt"]
    # Once there is room again, they come back.
    monkeypatch.undo()
    after.description = "small again"
    save(after, target, force=True)
    assert not any(buffer.outside for buffer in load(target).buffers)
