"""One file on disk: the map, what no offset reaches, and the ZIP after the model."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.errors import FileAccessError, FormatError, UnsupportedError, UsageError
from tfl_rewrite.files.atomic import check_target
from tfl_rewrite.files.container import Container, ZipTail, explain_orphans, find_zip, unexplained
from tfl_rewrite.files.layout import packed, read_members, tail_of
from tfl_rewrite.files.source import Source, is_changed, layout, origin_of
from tfl_rewrite.flatbuf.record import UINT8, ScalarVector
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.model.blob import MemorySink, OwnedBlob
from tfl_rewrite.model.ir import Buffer, Metadata
from tfl_rewrite.work import Work

from ..helpers import FIXTURES
from ..nets import Net

MEMBERS = {"labels.txt": b"cat\ndog\n", "ü/vocab.txt": bytes(range(256)), "empty": b""}


def zipped(
    prefix: bytes, members: dict[str, bytes] = MEMBERS, *, comment: bytes = b"", absolute: bool = True
) -> bytes:
    """``prefix`` with a ZIP after it, counting from the start of the file or of the ZIP."""
    file = io.BytesIO(prefix if absolute else b"")
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment
    return file.getvalue() if absolute else prefix + file.getvalue()


def contents(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def changed(data: bytes) -> bytes:
    """The file of the model in ``data`` after a change that moves what follows it."""
    model = Source(Container.of_bytes(data)).model()
    assert not is_changed(model)
    model.description = "x" * 3000
    made = layout(model)
    sink = MemorySink(made.nbytes)
    made.write_to(sink, Work(wanted_threads=1))
    return bytes(sink.data)


@pytest.fixture(scope="module")
def dense(fixtures: Path) -> bytes:
    return (fixtures / "dense.tflite").read_bytes()


# -- The file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "words"), [("missing.tflite", "cannot read"), (".", "is a directory")])
def test_what_cannot_be_read_is_an_access_error_that_names_it(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(FileAccessError, match=words) as failure:
        Container.open(tmp_path / name)
    assert failure.value.file == str(tmp_path / name)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileAccessError, match="not a regular file"):
        Container.open(tmp_path / "pipe")


def test_an_empty_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="empty"):
        Container.open(tmp_path / "empty")
    with pytest.raises(FormatError, match="empty"):
        Container.of_bytes(b"")


def test_bytes_stay_readable_after_release_and_after_replacement(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = os.urandom(9 << 20)
    path.write_bytes(data)
    container = Container.open(path)
    assert container.nbytes == len(data)
    container.release(123, len(data) - 123)
    assert bytes(container.data) == data
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "other").replace(path)
    assert bytes(container.data) == data


# -- Bytes that nothing reaches ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "spans", "expected"),
    [
        (b"", [], []),
        (bytes(40), [], []),
        (b"abcd", [(0, 4)], []),
        (b"abcd", [], [(0, 4)]),
        (b"\0a\0b\0", [], [(1, 4)]),
        (b"ab\0\0cd\0e", [(0, 2), (4, 6)], [(7, 8)]),
        (b"abcdef", [(2, 6), (0, 3), (1, 2)], []),
        (b"abcdef", [(3, 4)], [(0, 3), (4, 6)]),
    ],
)
def test_unexplained_bytes(
    data: bytes, spans: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    assert unexplained(memoryview(data), spans) == expected


def test_unexplained_region_larger_than_a_piece_is_one() -> None:
    data = bytes(100) + b"\1" * (9 << 20) + bytes(100)
    assert unexplained(memoryview(data), [(0, 10)]) == [(100, 100 + (9 << 20))]


@pytest.mark.parametrize("padding", [1, 3, 16, 4096])
def test_zeros_after_the_model_are_padding(dense: bytes, padding: int) -> None:
    origin = origin_of(Source(Container.of_bytes(dense + bytes(padding))).model())
    assert origin is not None and origin.dead == () and origin.refusals == ()


def test_one_byte_after_the_model_goes_when_it_is_changed(dense: bytes) -> None:
    model = Source(Container.of_bytes(dense + b"\0\0\0\0\1")).model()
    origin = origin_of(model)
    assert origin is not None and origin.dead == ((len(dense) + 4, len(dense) + 5),) and not origin.refusals
    assert layout(model).notes == ()  # A verbatim copy keeps it.
    model.description = "changed"
    (note,) = layout(model).notes
    assert f"1 byte between {len(dense) + 4} and {len(dense) + 5} left out" in note


def orphan(vtable: bytes = struct.pack("<HHHH", 8, 12, 8, 4)) -> bytes:
    """An unused table of 12 bytes behind its own vtable."""
    return vtable + struct.pack("<iII", len(vtable), 0xC0FFEE, 0xC0FFEE)


def test_unused_tables_are_explained(dense: bytes) -> None:
    aligned = dense + bytes(-len(dense) % 4)
    origin = origin_of(Source(Container.of_bytes(aligned + orphan())).model())
    assert origin is not None and origin.dead == ()
    Source(Container.of_bytes(changed(aligned + orphan() + orphan())))


@pytest.mark.parametrize(
    "extra",
    [
        orphan() + b"\1",
        orphan() + bytes(8) + b"code",
        orphan(struct.pack("<HHHH", 8, 12, 12, 4)),
        orphan(struct.pack("<HHHH", 8, 8, 8, 4)),
        orphan(struct.pack("<HHHH", 7, 12, 8, 4)),
        orphan()[:-4],
        orphan()[:8] + struct.pack("<iII", 1, 0xC0FFEE, 0xC0FFEE),
        orphan()[8:],
    ],
    ids=["more", "later", "slot outside", "too short", "odd length", "cut", "odd vtable", "no vtable"],
)
def test_what_only_begins_like_an_unused_table_explains_nothing(dense: bytes, extra: bytes) -> None:
    """All or nothing: the whole of what nothing reaches is reported."""
    aligned = dense + bytes(-len(dense) % 4)
    data = aligned + extra
    origin = origin_of(Source(Container.of_bytes(data)).model())
    assert origin is not None
    spans = [(0, len(aligned))]
    assert list(origin.dead) == unexplained(memoryview(data), spans)


@pytest.mark.parametrize("slots", range(5))
def test_unused_tables_are_found_wherever_they_start(slots: int) -> None:
    """Behind a vtable that takes any number of words."""
    vtable = struct.pack(f"<HH{slots}H", 4 + 2 * slots, 12, *[11] * slots) + bytes(2 * slots % 4)
    length = len(vtable)
    data = vtable + struct.pack("<iII", length, 7, 0x01000000)
    found = explain_orphans(memoryview(data), [(0, len(data))], {})
    assert found == [(length, length + 12), (0, 4 + 2 * slots)]


def test_pages_around_gaps_are_given_back() -> None:
    told: list[bool] = []
    gaps = [(2 * number, 2 * number + 1) for number in range(256)]
    assert unexplained(memoryview(bytes(512)), gaps, release=lambda: told.append(True)) == []
    assert len(told) == 1
    assert unexplained(memoryview(bytes(510)), gaps[:255], release=lambda: told.append(True)) == []
    assert len(told) == 1


def test_unused_table_of_a_vtable_in_use_is_explained() -> None:
    vtable, table = struct.pack("<HHHH", 6, 8, 4, 0), struct.pack("<iI", 8, 7)
    data = vtable + table + struct.pack("<iI", 16, 9)
    found = explain_orphans(memoryview(data), [(16, 24)], {0: (6, 8)})
    assert found == [(16, 24)]
    assert explain_orphans(memoryview(data), [(16, 24)], {}) == []


def test_public_file_with_unused_operator_codes_can_be_changed(tmp_path: Path) -> None:
    from ..helpers import CORPUS, NO_CORPUS

    if not CORPUS:
        pytest.skip(NO_CORPUS)
    path = Path(CORPUS) / "syaringan357+Android-MobileFaceNet-MTCNN-FaceAntiSpoofing__rnet.tflite"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the collection")
    model = load(path)
    origin = origin_of(model)
    assert origin is not None and origin.dead == ()
    model.description = "changed"
    assert save(model, tmp_path / "out.tflite") < path.stat().st_size


# -- The ZIP -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comment", [b"", b"made by hand", b"c" * 0xFFFF], ids=len)
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_zip_moves_with_the_model(dense: bytes, absolute: bool, comment: bytes) -> None:
    data = zipped(dense, comment=comment, absolute=absolute)
    origin = origin_of(Source(Container.of_bytes(data)).model())
    assert origin is not None and origin.tail is not None and origin.refusals == ()
    assert origin.tail.absolute is absolute and origin.tail.offset == len(dense)
    result = changed(data)
    assert len(result) != len(data)
    assert contents(result) == MEMBERS
    with zipfile.ZipFile(io.BytesIO(result)) as archive:
        assert archive.comment == comment
        first = min(archive.infolist(), key=lambda item: item.header_offset)
    # Where the input counted from the start of the file, so does the output.
    end = result.rindex(b"PK\5\6", 0, len(result) - len(comment))
    (directory,) = struct.unpack_from("<I", result, end + 16)
    start = 0 if absolute else result.index(b"PK\3\4")
    assert result[start + directory : start + directory + 4] == b"PK\1\2"
    assert result[first.header_offset : first.header_offset + 4] == b"PK\3\4"
    assert changed(result) == changed(changed(result)), "and again"


@pytest.mark.parametrize("tail", [False, True])
def test_a_file_that_lies_as_asked_for_already_is_copied(tail: bool) -> None:
    """Names lie in the gaps between constants: another of the same length moves nothing, and is a change."""
    net = Net()
    made = net.input("x", (1, 13))
    for number in range(6):
        constant = net.constant(f"c_{number}", np.full((1, 13), number, np.float32))
        made = net.add("ADD", [made, constant], f"y_{number}", (1, 13))
    net.output(made)
    plain = layout(net.model).to_bytes()
    first = layout(Source(Container.of_bytes(zipped(plain) if tail else plain)).model(), packing=Packing())
    assert first.plan is not None and first.plan.nbytes % 16
    between = {bytes(blob.raw[4:-1]) for _, blob in first.plan.writes if isinstance(blob, ScalarVector)}
    data = first.to_bytes()
    assert not tail or contents(data) == MEMBERS
    again = Source(Container.of_bytes(data)).model()
    assert layout(again, packing=Packing()).verbatim is not None
    moved = next(tensor for tensor in again.subgraphs[0].tensors if tensor.name.encode() in between)
    before, moved.name = moved.name, "z_z"
    second = layout(again, packing=Packing())
    assert second.verbatim is None
    after = Source(Container.of_bytes(second.to_bytes())).model().subgraphs[0].tensors
    assert {before, moved.name} & {tensor.name for tensor in after} == {moved.name}


def test_files_are_put_among_those_of_a_zip() -> None:
    made = packed(read_members(zipped(b"")), {"labels.txt": b"other", "new": b"n"})
    assert contents(made) == MEMBERS | {"labels.txt": b"other", "new": b"n"}
    tail = tail_of(made)
    assert tail is not None and (tail.offset, tail.records) == (16, 4)
    assert read_members(None) == []


def test_comment_that_looks_like_an_end_record_is_not_one(dense: bytes) -> None:
    """Python's zipfile takes it for one."""
    data = zipped(dense, comment=b"PK\5\6" * 20)
    tail = find_zip(memoryview(data), len(dense))
    assert tail is not None and (tail.offset, tail.records) == (len(dense), len(MEMBERS))


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_empty_zip_is_kept(dense: bytes, absolute: bool) -> None:
    data = zipped(dense, {}, absolute=absolute)
    assert len(data) == len(dense) + 22
    result = changed(data)
    assert contents(result) == {}
    assert result[-22:-6] == data[-22:-6]


def test_zip_of_the_fixture_survives_on_disk(fixtures: Path, tmp_path: Path) -> None:
    path = fixtures / "metadata_label_zip.tflite"
    model = load(path)
    model.description = "changed" * 100
    save(model, tmp_path / "out.tflite")
    assert contents((tmp_path / "out.tflite").read_bytes()) == contents(path.read_bytes())
    assert not is_changed(load(tmp_path / "out.tflite"))


def test_zip_after_offset_buffers_comes_last(fixtures: Path) -> None:
    data = zipped((fixtures / "offset_buffers.tflite").read_bytes())
    result = changed(data)
    assert contents(result) == MEMBERS
    model = Source(Container.of_bytes(result)).model()
    assert sum(buffer.nbytes for buffer in model.buffers) > 90_000


def test_padding_between_model_and_zip_is_no_reason_to_refuse(dense: bytes) -> None:
    assert contents(changed(zipped(dense + bytes(50)))) == MEMBERS


def test_bytes_between_model_and_zip_go(dense: bytes) -> None:
    made = changed(zipped(dense + b"code"))
    assert contents(made) == MEMBERS and b"code" not in made


def spoiled(dense: bytes, where: int, value: bytes) -> bytes:
    """A file whose ZIP end record says something else at byte ``where``."""
    data = bytearray(zipped(dense))
    end = bytes(data).rindex(b"PK\5\6")
    data[end + where : end + where + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("where", "value", "text"),
    [
        (10, struct.pack("<H", 4), "directory entry 3 is missing"),
        (10, struct.pack("<H", 2), "directory has the wrong size"),
        (12, struct.pack("<I", 3), "directory entry 0 is missing"),
        (12, struct.pack("<I", 1 << 30), "reaches into the model"),
        (16, struct.pack("<I", 0), "directory"),
        (16, struct.pack("<I", 1 << 30), "directory"),
    ],
)
def test_zip_that_contradicts_itself_is_damaged(dense: bytes, where: int, value: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        Source(Container.of_bytes(spoiled(dense, where, value))).model()


@pytest.mark.parametrize(("where", "value"), [(10, b"\xff\xff"), (12, b"\xff" * 4), (16, b"\xff" * 4)])
def test_zip64_is_refused(dense: bytes, where: int, value: bytes) -> None:
    with pytest.raises(UnsupportedError, match="ZIP64"):
        Source(Container.of_bytes(spoiled(dense, where, value))).model()


def test_missing_local_header_is_damage(dense: bytes) -> None:
    data = zipped(dense)
    at = data.index(b"PK\3\4", len(dense) + 1)
    with pytest.raises(FormatError, match="local header is missing"):
        Source(Container.of_bytes(data[:at] + b"JUNK" + data[at + 4 :])).model()


def test_bytes_after_a_zip_are_not_a_zip(dense: bytes) -> None:
    assert find_zip(memoryview(zipped(dense) + b"x"), len(dense)) is None
    assert find_zip(memoryview(dense), len(dense)) is None
    with pytest.raises(UnsupportedError, match="no offset"):
        changed(zipped(dense) + b"x")


def test_a_moved_zip_differs_in_its_positions_only(dense: bytes) -> None:
    data = zipped(dense)
    tail = find_zip(memoryview(data), len(dense))
    assert isinstance(tail, ZipTail)
    assert tail.moved(tail.offset) == bytes(tail.data)
    there = tail.moved(tail.offset + 1000)
    assert contents(bytes(tail.offset + 1000) + there) == MEMBERS
    differing = [index for index, pair in enumerate(zip(tail.data, there, strict=True)) if pair[0] != pair[1]]
    assert len(differing) <= 4 * (len(MEMBERS) + 1)


def test_a_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="pipe"):
        check_target(pipe, force=True)
    assert pipe.is_fifo()


# -- Who may address what nothing reaches --------------------------------------------------------------------


def with_custom(fixtures: Path, name: str, options: bytes, extra: bytes, *, metadata: str = "") -> bytes:
    """A model with a custom operator, and bytes behind it; AT in the options is where those lie."""
    path = fixtures / "malformed" / "custom_unknown_op.tflite"

    def made(at: int) -> bytes:
        model = load(path)
        code = next(code for code in model.operator_codes if code.custom is not None)
        code.custom = name
        operator = next(operator for _, operator in model.operators() if operator.code is code)
        numbers = options.replace(b"AT4", struct.pack("<I", at + 1)).replace(
            b"AT2", struct.pack("<H", at & 0xFFFF)
        )
        raw = numbers.replace(b"ATD", str(at).encode())
        if metadata:
            model.buffers.append(Buffer(OwnedBlob(raw)))
            model.metadata.append(Metadata(metadata, model.buffers[-1]))
        else:
            operator.rest = operator.rest.replace(custom_options=ScalarVector(UINT8, raw))
        sink = MemorySink(layout(model).nbytes)
        layout(model).write_to(sink)
        return bytes(sink.data)

    size = len(made(0x7FFFFFF0)) if b"ATD" not in options else len(made(1000))
    data = made(size)
    assert len(data) == size
    return data + extra


CODE = b"\xa5" * 40


@pytest.mark.parametrize(
    ("name", "options", "extra", "why"),
    [
        ("vendor-op", b"\1\2AT4\3", CODE, "holds the number"),
        ("vendor-op", b"AT2", CODE, "holds the number"),
        ("vendor-op", b"offset=ATD;", CODE, "holds the number"),
        ("vendor-op", b"name=conv;kernel=3", CODE, ""),
        ("vendor-op", b"", CODE, ""),
        ("TFLite_Detection_PostProcess", b"AT4", CODE, ""),
        ("FlexAddV2", b"AT4", CODE, ""),
        ("DISPATCH_OP", b"\1\2\3", CODE, "DISPATCH_OP may address them"),
        ("vendor-op", b"", b"PK\3\4" + CODE, "a ZIP archive"),
        ("vendor-op", b"", CODE + b"\x18\0\0\0TFL3", "another model"),
    ],
)
def test_what_may_be_addressed_by_position_is_not_left_out(
    fixtures: Path, name: str, options: bytes, extra: bytes, why: str
) -> None:
    model = Source(Container.of_bytes(with_custom(fixtures, name, options, extra))).model()
    origin = origin_of(model)
    assert origin is not None and origin.dead
    model.description = "changed"
    if why:
        with pytest.raises(UnsupportedError, match=why) as caught:
            layout(model)
        assert caught.value.offset == origin.dead[0][0] and caught.value.remedy
    else:
        assert "left out" in layout(model).notes[0]


@pytest.mark.parametrize(("name", "refused"), [("vendor_code", True), ("TFLITE_METADATA", False)])
def test_metadata_of_unknown_meaning_may_address_bytes(fixtures: Path, name: str, refused: bool) -> None:
    data = with_custom(fixtures, "vendor-op", b"AT4", CODE, metadata=name)
    origin = origin_of(Source(Container.of_bytes(data)).model())
    assert origin is not None and origin.dead
    assert [refusal.where for refusal in origin.refusals] == ([f"metadata {name}"] if refused else [])


def test_a_model_outlives_what_is_written_into_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.tflite"
    data = (FIXTURES / "dense.tflite").read_bytes()
    path.write_bytes(data)
    model = load(path)
    with path.open("wb") as file:
        file.write(model.to_bytes())
    assert path.read_bytes() == data
    monkeypatch.setattr("tfl_rewrite.files.source._MOST_READ", 100)
    mapped = load(path)
    path.write_bytes(b"")
    with pytest.raises(FileAccessError, match="was changed while it was being read"):
        mapped.to_bytes()
    with pytest.raises(FileAccessError, match="was changed while it was being read"):
        save(mapped, tmp_path / "out.tflite")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.tflite"]
