"""Files cut into parts, and put together again."""

from __future__ import annotations

import gzip
import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import tfl_rewrite
from tfl_rewrite.errors import FormatError, UsageError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import load, save
from tfl_rewrite.shards import parts as writing
from tfl_rewrite.shards.cuts import cut
from tfl_rewrite.shards.manifest import parse
from tfl_rewrite.shards.settings import ShardOptions, ShardReport


def there_and_back(model: Path, folder: Path, **options: Any) -> ShardReport:
    folder.mkdir(exist_ok=True)
    report = tfl_rewrite.shard(model, folder / "shards", ShardOptions(**options))
    tfl_rewrite.join(folder / "shards" / "manifest.json", folder / "out.tflite")
    assert (folder / "out.tflite").read_bytes() == model.read_bytes()
    assert {path.name for path in folder.iterdir()} == {"shards", "out.tflite"}
    return report


def test_every_fixture_comes_back(sound: Path, tmp_path: Path) -> None:
    report = there_and_back(sound, tmp_path, max_size=8 << 10, compress="gzip")
    files = list((tmp_path / "shards").glob("*.part"))
    assert {path.name for path in files} == {item.name for item in report.files}
    assert max(path.stat().st_size for path in files) <= 8 << 10
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.name == f"{digest[:32]}.part"


def test_damaged_files_come_back_too(malformed: Path, tmp_path: Path) -> None:
    if malformed.read_bytes()[4:8] != b"TFL3":
        with pytest.raises(FormatError, match=r"the file is empty|is 6 bytes long|of text|identifier"):
            tfl_rewrite.shard(malformed, tmp_path / "shards")
        assert not list(tmp_path.iterdir())
        return
    there_and_back(malformed, tmp_path, max_size=2048)


def test_every_public_model_comes_back(public: Path, tmp_path: Path) -> None:
    # The slowest thing here is gzip, and small files show as much of it.
    how = "gzip" if public.stat().st_size < 1 << 20 else "none"
    if public.read_bytes()[4:8] != b"TFL3":
        pytest.skip("no model, whatever its name says")
    report = there_and_back(public, tmp_path, max_size="256KiB", compress=how)
    assert max(item.stored_nbytes for item in report.files) <= 256 << 10
    with tfl_rewrite.open_sharded(tmp_path / "shards" / "manifest.json") as model:
        assert model.content == public.read_bytes()
    again = tfl_rewrite.shard(public, tmp_path / "shards", ShardOptions(max_size="256KiB", compress=how))
    assert {item.status for item in again.files} == {"kept"}


def test_large_constants_have_parts_of_their_own(fixtures: Path) -> None:
    container = Container.open(fixtures / "digits_cnn.tflite")
    cuts, notes = cut(container, 16 << 10)
    assert not notes
    covered = sorted(piece for item in cuts for piece in item.slices)
    assert covered[0][0] == 0 and sum(nbytes for _, nbytes in covered) == container.nbytes
    assert all(first[0] + first[1] == then[0] for first, then in pairwise(covered))
    large = [
        (buffer.blob.offset, buffer.blob.nbytes)  # type: ignore[union-attr]
        for buffer in load(fixtures / "digits_cnn.tflite").buffers
        if buffer.nbytes >= 1024
    ]
    starts = {item.slices[0][0] for item in cuts if len(item.slices) == 1}
    assert len(large) == 5 and {offset for offset, _ in large} <= starts
    # All that lies between them is one part.
    assert sum(len(item.slices) > 1 for item in cuts) == 1


def test_a_second_version_shares_what_did_not_change(fixtures: Path, tmp_path: Path) -> None:
    first = fixtures / "digits_cnn.tflite"
    model = load(first)
    model.description = "a description that moves everything" * 9
    second = tmp_path / "second.tflite"
    save(model, second)
    folder = tmp_path / "shards"
    tfl_rewrite.shard(first, folder, ShardOptions(max_size="16KiB"))
    with pytest.raises(UsageError, match="for another model"):
        tfl_rewrite.shard(second, folder, ShardOptions(max_size="16KiB"))
    report = tfl_rewrite.shard(second, folder, ShardOptions(max_size="16KiB", manifest="v2.json"))
    new = sum(item.stored_nbytes for item in report.files if item.status == "new")
    assert new < 10_000 < sum(item.stored_nbytes for item in report.files if item.status == "kept")
    for manifest, model_file in (("manifest.json", first), ("v2.json", second)):
        with tfl_rewrite.open_sharded(folder / manifest) as opened:
            assert opened.content == model_file.read_bytes()


def test_equal_constants_are_one_part(fixtures: Path, tmp_path: Path) -> None:
    model = load(fixtures / "digits_cnn.tflite")
    data = bytes(range(256)) * 256
    for _ in range(2):
        from tfl_rewrite.model.blob import ComputedBlob
        from tfl_rewrite.model.ir import Buffer

        # Two blobs that the writer cannot know to be equal.
        model.buffers.append(
            Buffer(ComputedBlob(len(data), lambda sink, offset: sink.write_at(data, offset)))
        )
    twice = tmp_path / "twice.tflite"
    save(model, twice)
    report = there_and_back_in(twice, tmp_path / "work")
    assert sum(item.nbytes for item in report.files) == twice.stat().st_size - len(data)


def there_and_back_in(model: Path, folder: Path) -> ShardReport:
    folder.mkdir()
    return there_and_back(model, folder)


def test_same_input_same_bytes(fixtures: Path, tmp_path: Path) -> None:
    contents = []
    for name in "ab":
        tfl_rewrite.shard(
            fixtures / "mtcnn_rnet.tflite",
            tmp_path / name,
            ShardOptions(compress="gzip", max_size="64KiB"),
        )
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    packed = [data for data in contents[0].values() if data[:2] == b"\x1f\x8b"]
    assert packed and all(data[4:10] == b"\0\0\0\0\x02\xff" for data in packed)
    rows = {row["name"]: row for row in json.loads(contents[0]["manifest.json"])["parts"]}
    for data in packed:
        row = rows[f"{hashlib.sha256(data).hexdigest()[:32]}.part"]
        assert hashlib.sha256(gzip.decompress(data)).hexdigest() == row["sha256"]


def test_what_gzip_does_not_shrink_is_stored_as_it_is(tmp_path: Path) -> None:
    noise, zeros = hashlib.shake_256(b"noise").digest(5000), bytes(5000)
    (tmp_path / "model").write_bytes(b"\x10\0\0\0TFL3" + noise[8:] + zeros)
    report = there_and_back(tmp_path / "model", tmp_path / "made", max_size=5000, compress="gzip")
    stored = {item.nbytes: item.stored_nbytes for item in report.files}
    assert len(report.files) == 2 and sum(item.stored_nbytes >= 5000 for item in report.files) == 1, stored
    sizes = sorted(path.stat().st_size for path in (tmp_path / "made" / "shards").glob("*.part"))
    assert sizes[0] < 100 and sizes[1] == 5000
    assert gzip.decompress(b"".join(writing.gzipped([noise, zeros]))) == noise + zeros


def test_files_are_never_overwritten_unasked(fixtures: Path, tmp_path: Path) -> None:
    model, folder = fixtures / "digits_cnn.tflite", tmp_path / "shards"
    report = tfl_rewrite.shard(model, folder)
    part = folder / report.files[0].name
    good = part.read_bytes()
    part.write_bytes(good[:-1] + b"?")
    (folder / "other.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already, with other content"):
        tfl_rewrite.shard(model, folder)
    assert part.read_bytes() != good
    tfl_rewrite.shard(model, folder, ShardOptions(force=True))
    assert part.read_bytes() == good and (folder / "other.txt").read_text() == "mine"
    part.unlink()
    part.symlink_to(fixtures / "lstm.tflite")
    with pytest.raises(UsageError, match="is not a plain file"):
        tfl_rewrite.shard(model, folder, ShardOptions(force=True))


def test_a_failed_run_leaves_nothing(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = fixtures / "digits_cnn.tflite", tmp_path / "shards"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.PartWriter, "_check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tfl_rewrite.shard(model, folder, ShardOptions(max_size="16KiB"))
    assert not folder.exists()
    monkeypatch.undo()
    report = tfl_rewrite.shard(model, folder, ShardOptions(max_size="16KiB", dry_run=True))
    assert report.dry_run and len(report.files) > 3 and not folder.exists()


def test_weights_beside_the_model_are_mentioned(fixtures: Path, tmp_path: Path) -> None:
    report = tfl_rewrite.shard(fixtures / "external_buffers" / "model.tflite", tmp_path / "shards")
    assert any("are not among the parts" in note for note in report.notes)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4MB", 4_000_000), ("512KiB", 1 << 19), ("1.5 MiB", 3 << 19), (4096, 4096), ("1gib", 1 << 30)],
)
def test_sizes(text: str | int, nbytes: int) -> None:
    assert ShardOptions(max_size=text).max_nbytes == nbytes


@pytest.mark.parametrize("text", ["", "4XB", "-1", "1e9", "0", "1000", "2GiB", "٤MB" * 20, "nan"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        ShardOptions(max_size=text)


@pytest.mark.parametrize("name", ["", "a/b", "../m.json", ".hidden", "..", "/abs", "x\n"])
def test_bad_manifest_names(name: str, fixtures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a plain file name"):
        tfl_rewrite.shard(fixtures / "dense.tflite", tmp_path / "shards", ShardOptions(manifest=name))
    assert not list(tmp_path.iterdir())


def test_a_manifest_reads_back(fixtures: Path, tmp_path: Path) -> None:
    tfl_rewrite.shard(fixtures / "digits_cnn.tflite", tmp_path / "shards", ShardOptions(max_size="16KiB"))
    text = (tmp_path / "shards" / "manifest.json").read_bytes()
    assert parse(text, "m").dump() == text
