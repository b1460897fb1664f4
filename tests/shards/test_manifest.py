"""Manifests that somebody else wrote: wrong, hostile, or cut short."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tfl_rewrite
from tfl_rewrite.errors import FileAccessError, FormatError, TflRewriteError, UnsupportedError
from tfl_rewrite.shards.manifest import MAX_MANIFEST_NBYTES, parse
from tfl_rewrite.shards.settings import JoinOptions, ShardOptions


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    folder = tmp_path_factory.mktemp("manifest") / "shards"
    tfl_rewrite.shard(fixtures / "digits_cnn.tflite", folder, ShardOptions(max_size="16KiB", compress="gzip"))
    return folder


@pytest.fixture
def good(shards: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((shards / "manifest.json").read_bytes())
    return data


def refuse(folder: Path, data: object, tmp_path: Path) -> TflRewriteError:
    """Joins a manifest that must be refused, beside good parts; returns the error."""
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    manifest = folder / "bad.json"
    manifest.write_bytes(text)
    with pytest.raises(TflRewriteError) as caught:
        tfl_rewrite.join(manifest, tmp_path / "out.tflite")
    assert [path for path in tmp_path.iterdir() if path.name.startswith("out")] == []
    assert caught.value.exit_code in (2, 3, 5)
    return caught.value


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a\\b",
        "C:x",
        "a\0b",
        "con",
        "NUL.part",
        ".parts",
        "x" * 200,
    ],
)
def test_names_cannot_leave_the_folder(name: str, shards: Path, good: dict[str, Any], tmp_path: Path) -> None:
    good["parts"][0]["name"] = name
    error = refuse(shards, good, tmp_path)
    assert isinstance(error, FormatError) and error.where == "parts[0].name"


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("nbytes",), 1 << 60, "not a number from"),
        (("nbytes",), True, "not a number from"),
        (("nbytes",), 0, "not a number from"),
        (("nbytes",), 102425, "add up to"),
        (("name",), 7, "not a text"),
        (("sha256",), "0" * 63, "not a SHA-256"),
        (("sha256",), "0" * 64, "together they have the SHA-256"),
        (("version",), 3, "is newer"),
        (("version",), 2, "(base): is not an object"),
        (("version",), "1", "not a version number"),
        (("format",), "tar", "not a manifest"),
        (("parts",), [], "not a list of parts"),
        (("parts",), {}, "not a list of parts"),
        (("parts", 0), 3, "not an object"),
        (("parts", 0, "nbytes"), 1 << 40, "not a number from"),
        (("parts", 0, "nbytes"), 6553, "unpacks to 6552 of 6553 bytes"),
        (("parts", 0, "nbytes"), 1 << 29, "cannot hold"),
        (("parts", 0, "stored_nbytes"), 1 << 30, "cannot hold"),
        (("parts", 0, "stored_nbytes"), 6552, "ends after"),
        (("parts", 0, "stored_sha256"), "f" * 64, "has the wrong SHA-256"),
        (("parts", 0, "sha256"), "f" * 64, "wrong SHA-256 when unpacked"),
        (("parts", 0, "compression"), "zstd", "not none or gzip"),
        (("parts", 0, "compression"), "none", "which is not compressed"),
        (("layout",), [], "not a list of slices"),
        (("layout", 0), [0, 0], "is not [part, offset, nbytes]"),
        (("layout", 0), [0, 0, 1.0], "is not [part, offset, nbytes]"),
        (("layout", 0, 0), 99, "out of range"),
        (("layout", 0, 0), -1, "out of range"),
        (("layout", 0, 1), 1 << 62, "are not inside"),
        (("layout", 0, 1), -1, "are not inside"),
        (("layout", 0, 2), -5, "are not inside"),
        (("layout", 0, 2), 0, "are not inside"),
        (("layout", 0, 2), 1 << 20, "are not inside"),
        (("layout", 0), 5, "is not [part, offset, nbytes]"),
        (("name",), "x" * 256, "not a text"),
        (("parts", 0, "name"), 7, "not a plain file name"),
    ],
)
def test_what_is_wrong_is_named(
    path: tuple[Any, ...], value: object, what: str, shards: Path, good: dict[str, Any], tmp_path: Path
) -> None:
    place: Any = good
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    error = refuse(shards, good, tmp_path)
    assert what in str(error), error
    assert isinstance(error, UnsupportedError if "is newer" in what else FormatError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no JSON at line 1, column 1"),
        (b"{", "no JSON at line 1, column 2"),
        (b'{"format": "a\nb"}', "no JSON at line 1, column 14"),
        (b"\xff\xfe", "no UTF-8 text at byte 0"),
        (b"[]", '"format" is not'),
        (b"null", '"format" is not'),
        (b'{"format": NaN}', "NaN is not JSON"),
        (b"[" * 200_000, "it nests too deep"),
        (b'{"version": ' + b"9" * 10_000 + b"}", "it holds a number of too many digits"),
        (b" " * (MAX_MANIFEST_NBYTES + 1), "a manifest of over 8388608 bytes"),
    ],
    ids=range(10),
)
def test_what_is_no_manifest(text: bytes, said: str, shards: Path, tmp_path: Path) -> None:
    error = refuse(shards, text, tmp_path)
    assert isinstance(error, FormatError) and said in str(error)
    assert error.file == str(shards / "bad.json") and str(error).endswith("'tfl-rewrite shard' wrote")


def smallest(**more: Any) -> dict[str, Any]:
    """A model of one byte."""
    digest = hashlib.sha256(b"x").hexdigest()
    part = {"name": "0.part", "compression": "none", "stored_nbytes": 1, "stored_sha256": digest}
    part |= {"nbytes": 1, "sha256": digest}
    data = {"format": "tfl-rewrite-parts", "version": 1, "name": "m", "nbytes": 1, "sha256": digest}
    return data | {"parts": [part], "layout": [[0, 0, 1]]} | more


def test_the_least_and_the_most_that_is_allowed() -> None:
    text = json.dumps(smallest()).encode()
    found = parse(text, "m.json")
    assert (found.nbytes, found.layout, found.parts[0].nbytes) == (1, ((0, 0, 1),), 1)
    assert found.slices() == [[(0, 1, 0)]]
    assert parse(found.dump(), "m.json") == found
    padded = text.ljust(MAX_MANIFEST_NBYTES)
    assert parse(padded, "m.json") == found
    with pytest.raises(FormatError, match="a manifest of over"):
        parse(padded + b" ", "m.json")
    assert parse(json.dumps(smallest(name="n" * 255)).encode(), "m.json").name == "n" * 255


def test_slices_are_in_the_order_of_the_part() -> None:
    """A part is read from its first byte to its last, wherever its pieces lie in the model."""
    digest = hashlib.sha256(b"xyz").hexdigest()
    part = smallest()["parts"][0] | {
        "stored_nbytes": 3,
        "nbytes": 3,
        "sha256": digest,
        "stored_sha256": digest,
    }
    rows = [[0, 2, 1], [0, 0, 2], [0, 1, 1]]
    found = parse(json.dumps(smallest(nbytes=4, parts=[part], layout=rows)).encode(), "m.json")
    assert found.slices() == [[(0, 2, 1), (1, 1, 3), (2, 1, 0)]]


def test_two_parts_of_one_name_and_unused_parts(shards: Path, good: dict[str, Any], tmp_path: Path) -> None:
    data = copy.deepcopy(good)
    data["parts"].append(data["parts"][0])
    assert "same name" in str(refuse(shards, data, tmp_path))
    for other in (str.upper, str.capitalize, str.swapcase):
        # Not all file systems tell upper from lower case.
        data["parts"][0] = good["parts"][0] | {"name": "part-of-a-model.part"}
        data["parts"][-1] = data["parts"][0] | {"name": other("part-of-a-model.part")}
        assert "same name" in str(refuse(shards, data, tmp_path))
    data["parts"] = [*good["parts"], good["parts"][0] | {"name": "other.part"}]
    assert "no slice uses it" in str(refuse(shards, data, tmp_path))


def test_a_bomb_stops_at_its_declared_size(shards: Path, good: dict[str, Any], tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(50 << 20), 9, mtime=0)
    digest = hashlib.sha256(bomb).hexdigest()
    name = "bomb.part"
    (shards / name).write_bytes(bomb)
    row = good["parts"][0]
    declared = len(bomb)
    row |= {"name": name, "stored_nbytes": len(bomb), "stored_sha256": digest, "nbytes": declared}
    data = good | {"parts": [row], "layout": [[0, 0, declared]], "nbytes": declared}
    assert f"unpacks to more than {declared} bytes" in str(refuse(shards, data, tmp_path))


def test_bytes_after_the_gzip_stream(shards: Path, good: dict[str, Any], tmp_path: Path) -> None:
    packed = gzip.compress(bytes(4000), mtime=0)
    for name, tail in (("tail.part", b"tail"), ("member.part", gzip.compress(b"more", mtime=0))):
        stored = packed + tail
        (shards / name).write_bytes(stored)
        row = {
            "name": name,
            "compression": "gzip",
            "nbytes": 4000,
            "sha256": hashlib.sha256(bytes(4000)).hexdigest(),
            "stored_nbytes": len(stored),
            "stored_sha256": hashlib.sha256(stored).hexdigest(),
        }
        data = good | {"parts": [row], "layout": [[0, 0, 4000]], "nbytes": 4000}
        assert "has bytes after its gzip stream" in str(refuse(shards, data, tmp_path))


def test_more_than_the_disk_has_room_for(shards: Path, good: dict[str, Any], tmp_path: Path) -> None:
    # One part, used again and again.
    part = good["parts"][1]
    data = good | {"parts": [part], "layout": [[0, 0, part["nbytes"]]] * 10}
    data["nbytes"] = 10 * part["nbytes"]
    assert "together they have" in str(refuse(shards, data, tmp_path))
    manifest = parse(json.dumps(data).encode(), "m")
    from dataclasses import replace

    from tfl_rewrite.shards.join import join_parts
    from tfl_rewrite.shards.sources import FolderSource

    with pytest.raises(FileAccessError, match="do not fit on the disk"):
        join_parts(replace(manifest, nbytes=1 << 50), FolderSource(shards), tmp_path / "out", JoinOptions())


def test_links_and_pipes_are_not_followed(shards: Path, good: dict[str, Any], tmp_path: Path) -> None:
    import os

    (shards / "link.part").symlink_to(shards / good["parts"][0]["name"])
    os.mkfifo(shards / "pipe.part")
    (shards / "folder.part").mkdir()
    for name, what in (
        ("link.part", "symbolic link"),
        ("pipe.part", "not a regular file"),
        ("folder.part", "not a regular file"),
        ("missing.part", "missing.part: is missing"),
    ):
        good["parts"][0]["name"] = name
        error = refuse(shards, good, tmp_path)
        assert isinstance(error, FileAccessError) and what in str(error) and name in str(error)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["../x", "gzip", "none", "0" * 64]),
    st.lists(st.integers(-2, 20000), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_change_is_refused_or_harmless(data: st.DataObject, shards: Path, tmp_path: Path) -> None:
    manifest: Any = json.loads((shards / "manifest.json").read_bytes())
    expected = manifest["sha256"]
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = manifest
        while isinstance(place, (dict, list)) and place:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            deeper = isinstance(place[key], (dict, list)) and place[key] and data.draw(st.integers(0, 5))
            if not deeper:
                action = data.draw(st.sampled_from(["set", "drop", "near", "copy"]))
                if action == "drop":
                    del place[key]
                elif action == "near" and type(place[key]) is int:
                    place[key] += data.draw(st.sampled_from([-1, 1, 1 << 20, -(1 << 33)]))
                elif action == "copy" and isinstance(place, list):
                    place.append(copy.deepcopy(place[key]))
                else:
                    place[key] = data.draw(values)
                break
            place = place[key]
    text = json.dumps(manifest).encode()
    cut = data.draw(st.sampled_from([None, None, None, "cut", "flip"]))
    if cut is not None and text:
        position = data.draw(st.integers(0, len(text) - 1))
        text = text[:position] + (b"" if cut == "cut" else b"\xff" + text[position + 1 :])
    path, out = shards / "mutated.json", tmp_path / "mutated.tflite"
    path.write_bytes(text)
    try:
        tfl_rewrite.join(path, out, JoinOptions(force=True))
    except TflRewriteError as error:
        assert error.exit_code in (2, 3, 5)
        assert not out.exists()
    else:
        assert hashlib.sha256(out.read_bytes()).hexdigest() == expected
        out.unlink()
    assert not list(tmp_path.glob("*.parts"))
