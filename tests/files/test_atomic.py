"""Files that are written aside: how they get their names, who may read them, and what is left of them."""

from __future__ import annotations

import mmap
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tfl_rewrite
from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.files import atomic as module
from tfl_rewrite.files.atomic import access_of, atomic_write, nameless_file, sweep, write_whole

OLD, NEW = b"old", b"new"


@pytest.fixture(params=["nameless", "named", "named, no links"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems with nameless files; without; and without hard links either."""
    kind = str(request.param)
    if kind != "nameless":
        plain = os.open

        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(95, "Operation not supported")
            return plain(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", opened)
    if kind == "named, no links":

        def link(*_: Any, **__: Any) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    return kind


@pytest.fixture
def umask() -> Any:
    """Sets the umask of this process."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file(system: str, tmp_path: Path) -> None:
    write_whole(tmp_path / "file", NEW, force=False)
    assert (tmp_path / "file").read_bytes() == NEW and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UsageError, match="exists already"):
        write_whole(tmp_path / "file", OLD, force=False)
    write_whole(tmp_path / "file", OLD, force=True)
    assert (tmp_path / "file").read_bytes() == OLD and len(list(tmp_path.iterdir())) == 1


def test_pieces_that_are_written_and_read(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE", 2)
    monkeypatch.setattr(module, "_READ", 3)
    with nameless_file(tmp_path) as file:
        assert bytes(file.view()) == b""
        file.sink.write_at(b"abcde", 2)
        file.sink.write_at(b"xy", 0)
        assert list(file.pieces()) == [b"xya", b"bcd", b"e"] and bytes(file.view()) == b"xyabcde"


def test_what_takes_the_place_of_the_only_other_copy_is_on_disk_first(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, _noted(getattr(os, name), name, done))
    write_whole(tmp_path / "file", NEW, force=True)
    assert "fsync" not in done
    done.clear()
    write_whole(tmp_path / "file", OLD, force=True)
    assert done == ["fsync", "replace"]


def test_what_is_waited_for_on_disk_goes_there_early(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    start = module._start_writing
    monkeypatch.setattr(module, "_PIECE", 2)
    monkeypatch.setattr(
        module, "_start_writing", lambda descriptor: begun.append(descriptor) or start(descriptor)
    )
    write_whole(tmp_path / "file", b"12345", force=True)
    assert not begun
    write_whole(tmp_path / "file", b"abcde", force=True)
    assert len(begun) == 1 and (tmp_path / "file").read_bytes() == b"abcde"
    # What the system refuses is written later.
    start(-1)


def _noted(function: Callable[..., object], name: str, done: list[str]) -> Callable[..., object]:
    def noted(*given: object, **options: object) -> object:
        done.append(name)
        return function(*given, **options)

    return noted


def test_what_appears_meanwhile_stays(system: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="appeared while it was being made"),
        atomic_write(tmp_path / "file", force=False, nbytes=3) as output,
    ):
        output.sink.write_at(NEW, 0)
        (tmp_path / "file").write_bytes(OLD)
        output.publish()
    assert (tmp_path / "file").read_bytes() == OLD and len(list(tmp_path.iterdir())) == 1


def test_a_link_that_leads_nowhere_is_a_name_too(system: str, tmp_path: Path) -> None:
    with nameless_file(tmp_path) as file, pytest.raises(FileExistsError):
        (tmp_path / "link").symlink_to("nowhere")
        file.publish(tmp_path / "link", force=False)
    assert (tmp_path / "link").is_symlink() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("of_input", "mask", "expected"),
    [
        (0o600, 0o022, 0o600),
        (0o640, 0o022, 0o640),
        (0o664, 0o022, 0o644),
        (0o666, 0o077, 0o600),
        (0o444, 0o022, 0o644),
        (0o444, 0o002, 0o664),
        (0o440, 0o022, 0o640),
        (0o755, 0o022, 0o755),
        (0o6755, 0o022, 0o755),
        (0o400, 0o000, 0o600),
    ],
)
def test_who_may_read_the_input_may_read_what_is_made_of_it(
    system: str, umask: Callable[[int], int], tmp_path: Path, of_input: int, mask: int, expected: int
) -> None:
    (tmp_path / "in").write_bytes(OLD)
    (tmp_path / "in").chmod(of_input)
    umask(mask)
    write_whole(tmp_path / "out", NEW, force=False, access=access_of(tmp_path / "in"))
    assert mode(tmp_path / "out") == expected
    # Nor does it open what was closed.
    (tmp_path / "two").write_bytes(OLD)
    (tmp_path / "two").chmod(0o600)
    write_whole(tmp_path / "two", NEW, force=True, access=access_of(tmp_path / "in"))
    assert mode(tmp_path / "two") == expected & 0o600


def test_access_of_what_is_no_file(tmp_path: Path) -> None:
    assert access_of(tmp_path / "none") == access_of(tmp_path) == access_of("/dev/null") == module.PLAIN


def test_nobody_else_reads_it_before_it_has_its_name(
    system: str, umask: Callable[[int], int], tmp_path: Path
) -> None:
    with atomic_write(tmp_path / "file", force=False, nbytes=3, access=0o600) as output:
        assert mode(output.path) == 0o600


@pytest.mark.runtime
@pytest.mark.parametrize("of_input", [0o600, 0o640, 0o4755])
def test_all_that_a_command_writes(
    umask: Callable[[int], int], fixtures: Path, tmp_path: Path, of_input: int
) -> None:
    """Model, report, parts and manifest: who may not read the model may not read what is made of it."""
    source = tmp_path / "in.tflite"
    source.write_bytes((fixtures / "dense.tflite").read_bytes())
    source.chmod(of_input)
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "tfl_rewrite"]
    words = [
        "quantize-weights",
        source,
        out / "a.tflite",
        "--report",
        out / "r.json",
        "--verify",
        "off",
        "-q",
    ]
    subprocess.run([*command, *words], check=True)
    words = ["shard", source, out / "s", "--max-size", "2KiB", "--compress", "gzip", "-q"]
    subprocess.run([*command, *words], check=True)
    subprocess.run([*command, "join", out / "s" / "manifest.json", out / "b.tflite", "-q"], check=True)
    assert mode(out / "a.tflite") == of_input & 0o777
    others = [path for path in out.rglob("*") if path.is_file() and path.name != "a.tflite"]
    assert len(others) > 4 and {mode(path) for path in others} == {of_input & 0o666}


def test_a_saved_model_is_as_open_as_the_file_that_it_came_from(fixtures: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes((fixtures / "dense.tflite").read_bytes())
    (tmp_path / "in").chmod(0o600)
    tfl_rewrite.save(tfl_rewrite.load(tmp_path / "in"), tmp_path / "out")
    assert mode(tmp_path / "out") == 0o600


# -- What a killed process left -----------------------------------------------------------------------------


def left_behind(folder: Path) -> Path:
    path = folder / f".tfl-rewrite-{secrets.token_hex(8)}.tmp"
    path.write_bytes(b"half")
    return path


@pytest.mark.parametrize("access", [0o600, 0o444])
def test_what_a_killed_process_left_goes(tmp_path: Path, access: int) -> None:
    left = left_behind(tmp_path)
    left.chmod(access)
    write_whole(tmp_path / "file", NEW, force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "name",
    [
        ".tfl-rewrite-notes.tmp",
        ".tfl-rewrite-0123456789abcde.tmp",
        f".tfl-rewrite-{'0' * 17}.tmp",
        f".tfl-rewrite-{'A' * 16}.tmp",
        f".tfl-rewrite-{'0' * 16}.tmp.mine",
        f".tfl-rewrite-{'0' * 16}",
    ],
)
def test_other_names_are_not_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    assert sweep(tmp_path) == [] and (tmp_path / name).read_text() == "mine"


def test_only_files_are_ours(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    names = [f".tfl-rewrite-{number:016x}.tmp" for number in range(3)]
    (tmp_path / names[0]).symlink_to("mine")
    (tmp_path / names[1]).mkdir()
    os.mkfifo(tmp_path / names[2])
    assert sweep(tmp_path) == [] and sorted(path.name for path in tmp_path.iterdir()) == [*names, "mine"]


def test_what_is_being_written_stays(system: str, tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file", force=False, nbytes=3) as output:
        assert sweep(tmp_path) == [] and output.path.exists()
        output.publish()


@pytest.mark.parametrize("moment", ["opened", "locked"])
def test_somebody_sweeps_while_a_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between opening and locking it: another one is made then."""
    plain, swept = os.open, list[Path]()

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return plain(path, flags, *rest, **more)

    lock = module.lock

    def late(descriptor: int, **more: bool) -> bool:
        if more and not swept and moment == "opened":
            swept.extend(sweep(tmp_path))
        locked = lock(descriptor, **more)
        if more and not swept and moment == "locked":
            assert sweep(tmp_path) == []
        return locked

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(module, "lock", late)
    with atomic_write(tmp_path / "file", force=False, nbytes=3) as output:
        assert len(swept) == (moment == "opened") and output.path.exists()
        output.sink.write_at(NEW, 0)
        output.publish()
    assert (tmp_path / "file").read_bytes() == NEW and len(list(tmp_path.iterdir())) == 1


def test_what_was_cut_off_while_it_was_copied_is_no_fault_of_the_target(tmp_path: Path) -> None:
    """The kernel reads past the end of a mapped file then, and says "bad address"."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(bytes(1 << 16))
    with open(source, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.truncate(source, 0)
    with (
        pytest.raises(FileAccessError, match="was truncated while it was being read"),
        atomic_write(target, force=False, nbytes=0) as output,
    ):
        output.sink.write_at(memoryview(mapped), 0)
    assert not target.exists()
