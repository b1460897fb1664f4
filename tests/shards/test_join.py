"""Fetching over the web and from elsewhere: resuming, refusing, being killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tfl_rewrite
from tfl_rewrite.errors import FileAccessError, FormatError, TflRewriteError, UsageError
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.shards import web
from tfl_rewrite.shards.join import work_folder
from tfl_rewrite.shards.settings import JoinOptions, ShardOptions

from .serving import Server, serve


@pytest.fixture(scope="module")
def model(fixtures: Path) -> Path:
    return fixtures / "digits_cnn.tflite"


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "host" / "shards"
    path.parent.mkdir()
    tfl_rewrite.shard(model, path, ShardOptions(max_size="8KiB"))
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as running:
        yield running


@pytest.fixture
def here(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PAUSE_SECONDS", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def parts_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.part"))


def test_over_the_web(server: Server, folder: Path, model: Path, here: Path) -> None:
    report = tfl_rewrite.join(
        f"{server.url}/manifest.json?key=1", here / "out", JoinOptions(allow_private=True)
    )
    assert (here / "out").read_bytes() == model.read_bytes()
    assert [path.name for path in here.iterdir()] == ["out"]
    assert {item.status for item in report.files} == {"fetched"}
    # Each once, and with the query that may be what grants access.
    assert server.asked == {f"/{name}?key=1": 1 for name in [*parts_of(folder), "manifest.json"]}


def test_what_is_there_and_right_is_not_fetched_again(
    server: Server, folder: Path, model: Path, here: Path
) -> None:
    names = parts_of(folder)
    missing = names[3]
    server.answer = lambda path: (404, {}, b"") if missing in path else None
    with pytest.raises(FileAccessError, match=f"{missing}: is missing"):
        tfl_rewrite.join(f"{server.url}/manifest.json", here / "out", JoinOptions(allow_private=True, jobs=1))
    work = here / "out.parts"
    assert not (here / "out").exists() and work.is_dir()
    kept = set(parts_of(work))
    assert 0 < len(kept) < len(names)
    # One of them is damaged meanwhile, and a stray file lies there.
    damaged = sorted(kept)[0]
    (work / damaged).write_bytes(bytes((folder / damaged).stat().st_size))
    (work / ".stray.tmp").write_bytes(b"?")
    server.answer = lambda _path: None
    server.asked.clear()
    report = tfl_rewrite.join(f"{server.url}/manifest.json", here / "out", JoinOptions(allow_private=True))
    assert (here / "out").read_bytes() == model.read_bytes() and not work.exists()
    assert {item.name for item in report.files if item.status == "kept"} == kept - {damaged}
    assert {path.strip("/") for path in server.asked} == {*names, "manifest.json"} - (kept - {damaged})


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (lambda good: good[:-1], "ends after"),
        (lambda good: good + b"x", "is longer than"),
        (lambda good: bytes(len(good)), "has the wrong SHA-256"),
    ],
)
def test_a_wrong_part_is_named(body: object, what: str, server: Server, folder: Path, here: Path) -> None:
    name = parts_of(folder)[2]
    wrong = body((folder / name).read_bytes())  # type: ignore[operator]
    server.answer = lambda path: (200, {}, wrong) if name in path else None
    with pytest.raises(FormatError, match=what) as caught:
        tfl_rewrite.join(f"{server.url}/manifest.json", here / "out", JoinOptions(allow_private=True))
    assert name in str(caught.value) and not (here / "out").exists()
    assert name not in parts_of(here / "out.parts")
    with pytest.raises(FormatError, match=what):
        tfl_rewrite.open_sharded(f"{server.url}/manifest.json", allow_private=True)


def test_a_server_that_stumbles(server: Server, model: Path, here: Path) -> None:
    def stumble(path: str) -> tuple[int, dict[str, str], bytes] | None:
        return (503, {}, b"busy") if server.asked[path] == 1 else None

    server.answer = stumble
    tfl_rewrite.join(f"{server.url}/manifest.json", here / "out", JoinOptions(allow_private=True))
    assert (here / "out").read_bytes() == model.read_bytes()
    server.answer = lambda _path: (403, {}, b"")
    with pytest.raises(FileAccessError, match="the server answers 403"):
        tfl_rewrite.join(f"{server.url}/manifest.json", here / "two", JoinOptions(allow_private=True))


def test_a_server_that_packs(server: Server, here: Path) -> None:
    server.answer = lambda _path: (200, {"Content-Encoding": "br"}, b"")
    with pytest.raises(FileAccessError, match="packs it"):
        tfl_rewrite.join(f"{server.url}/manifest.json", here / "out", JoinOptions(allow_private=True))


def test_private_addresses_need_to_be_allowed(server: Server, here: Path) -> None:
    for host in ("127.0.0.1", "localhost"):
        url = f"{server.url}/manifest.json".replace("127.0.0.1", host)
        with pytest.raises(FileAccessError, match="private address") as caught:
            tfl_rewrite.join(url, here / "out")
        assert "--allow-private" in str(caught.value)
    assert not server.asked and not list(here.iterdir())


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("10.1.2.3", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("nonsense", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert web.is_public(address) is public


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x/"])
def test_redirects_to_other_kinds(target: str, server: Server, here: Path) -> None:
    server.answer = lambda _path: (302, {"Location": target}, b"")
    with pytest.raises(FileAccessError, match=r"not allowed|not followed"):
        tfl_rewrite.join(f"{server.url}/manifest.json", here / "out", JoinOptions(allow_private=True))


def test_redirects(server: Server, model: Path, here: Path, folder: Path) -> None:
    def moved(path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/new/"):
            return 200, {}, (folder / path.removeprefix("/new/")).read_bytes()
        return 302, {"Location": f"/new{path}"}, b""

    server.answer = moved
    tfl_rewrite.join(f"{server.url}/manifest.json", here / "out", JoinOptions(allow_private=True))
    assert (here / "out").read_bytes() == model.read_bytes()
    server.answer = lambda path: (302, {"Location": path}, b"")
    with pytest.raises(FileAccessError, match="302"):
        tfl_rewrite.join(f"{server.url}/manifest.json", here / "two", JoinOptions(allow_private=True))


def test_never_down_from_https() -> None:
    import urllib.request

    request = urllib.request.Request("https://example.com/m.json")
    with pytest.raises(web.Refused, match="from https to http"):
        web._Redirects().redirect_request(request, None, 302, "Found", {}, "http://example.com/m.json")


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "http://host/",
        "http://host:99999/x",
        "http://user:word@host/m.json",
        "http://[::1/m.json",
        "http://host/a b",
        "file://elsewhere/m.json",
        "nosuchscheme://x/m.json",
    ],
)
def test_urls_that_make_no_sense(url: str, here: Path) -> None:
    with pytest.raises(UsageError) as caught:
        tfl_rewrite.join(url, here / "out")
    assert "word" not in str(caught.value)


def test_file_urls_and_fsspec(folder: Path, model: Path, here: Path) -> None:
    tfl_rewrite.join((folder / "manifest.json").as_uri(), here / "a")
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    tfl_rewrite.join("memory://bucket/manifest.json", here / "b")
    # One part after the other, and the last is missing: the others stay for the next time.
    *others, name = (part["name"] for part in json.loads((folder / "manifest.json").read_text())["parts"])
    memory.rm(f"/bucket/{name}")
    with pytest.raises(FileAccessError, match=f"{name}: is missing"):
        tfl_rewrite.join("memory://bucket/manifest.json", here / "c", JoinOptions(jobs=1))
    assert (here / "a").read_bytes() == (here / "b").read_bytes() == model.read_bytes()
    assert sorted(path.name for path in here.iterdir()) == ["a", "b", "c.parts"]
    assert parts_of(here / "c.parts") == sorted(others)


def test_fsspec_is_optional(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UsageError, match=r"tfl-rewrite\[remote\]"):
        tfl_rewrite.join("s3://bucket/manifest.json", here / "out")


def test_a_known_hash(folder: Path, model: Path, here: Path) -> None:
    right = hashlib.sha256(model.read_bytes()).hexdigest()
    with pytest.raises(UsageError, match="another version, or it was tampered with"):
        tfl_rewrite.join(folder / "manifest.json", here / "out", JoinOptions(sha256="0" * 64))
    tfl_rewrite.join(folder / "manifest.json", here / "out", JoinOptions(sha256=right.upper()))


def test_an_existing_file_stays(folder: Path, model: Path, here: Path) -> None:
    (here / "out").write_bytes(b"mine")
    (here / "out").chmod(0o640)
    with pytest.raises(UsageError, match="exists already"):
        tfl_rewrite.join(folder / "manifest.json", here / "out")
    tfl_rewrite.join(folder / "manifest.json", here / "out", JoinOptions(force=True, dry_run=True))
    assert (here / "out").read_bytes() == b"mine"
    tfl_rewrite.join(folder / "manifest.json", here / "out", JoinOptions(force=True))
    assert (here / "out").read_bytes() == model.read_bytes()
    assert (here / "out").stat().st_mode & 0o777 == 0o640


def test_two_joins_of_one_file(server: Server, here: Path) -> None:
    with work_folder(here / "out"), pytest.raises(UsageError, match="another join works in it"):
        tfl_rewrite.join(f"{server.url}/manifest.json", here / "out", JoinOptions(allow_private=True))
    assert not list(here.iterdir())
    (here / "out.parts").write_text("mine")
    with pytest.raises(UsageError, match="exists already, and no join made it"):
        tfl_rewrite.join(f"{server.url}/manifest.json", here / "out", JoinOptions(allow_private=True))


@pytest.mark.runtime
def test_a_model_in_memory(server: Server, model: Path, here: Path, folder: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    with pytest.raises(UsageError, match="more than 1000"):
        tfl_rewrite.open_sharded(folder / "manifest.json", max_nbytes=1000)
    outputs = []
    with tfl_rewrite.open_sharded(f"{server.url}/manifest.json", allow_private=True) as opened:
        assert opened.content == model.read_bytes() and opened.content.readonly
        interpreters = [opened.interpreter(num_threads=1), Interpreter(str(model), num_threads=1)]
    # What an interpreter needs outlives what it was made of.
    for interpreter in interpreters:
        interpreter.allocate_tensors()
        (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.set_tensor(source["index"], np.full(source["shape"], 0.5, np.float32))
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target["index"]))
    np.testing.assert_array_equal(*outputs)
    assert list(here.iterdir()) == []


# -- Being killed --------------------------------------------------------------------------------------------

KILLS = int(os.environ.get("TFL_REWRITE_KILLS", "20"))

_STARTER = """
import os, sys, numpy, tfl_rewrite
tfl_rewrite.join
for line in sys.stdin:
    source, target, force = line.split()
    child = os.fork()
    if not child:
        try:
            options = tfl_rewrite.JoinOptions(allow_private=True, jobs=2, force=force == "force")
            tfl_rewrite.join(source, target, options)
        finally:
            os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


@pytest.fixture
def starter() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported all it needs and joins in children of its own, one after the other."""
    with subprocess.Popen(
        [sys.executable, "-c", _STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def join_and_kill(starter: subprocess.Popen[str], what: str, seconds: float) -> None:
    assert starter.stdin is not None and starter.stdout is not None
    starter.stdin.write(what + "\n")
    starter.stdin.flush()
    child = int(starter.stdout.readline())
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        # Its parent waits for it, so the number is its own until "gone" or a moment before.
        os.kill(child, signal.SIGKILL)
    assert starter.stdout.readline() == "gone\n"


@pytest.mark.slow
def test_killed_at_any_moment(
    server: Server, folder: Path, model: Path, here: Path, starter: subprocess.Popen[str]
) -> None:
    dice = random.Random(4)
    good, before = model.read_bytes(), b"the old one"
    progressive = ShardOptions(max_size="8KiB", progressive=True, manifest="base-first.json")
    tfl_rewrite.shard(model, folder, progressive, judging=Judging(mode="off"))
    parts = {path.name: path.read_bytes() for path in folder.glob("*.part")}
    server.delay = 0.02
    remote, local = f"{server.url}/manifest.json", str(folder / "manifest.json")
    started = time.monotonic()
    tfl_rewrite.join(remote, here / "timed", JoinOptions(allow_private=True, jobs=2))
    longest = time.monotonic() - started
    (here / "timed").unlink()
    each = max(4, KILLS // 5)
    runs = [("new", remote)] * each * 3 + [("force", remote)] * each + [("new", local)] * each
    runs += [("force", local)] * each
    resumed = cut_short = 0
    for number, (mode, source) in enumerate(runs):
        # Each file is made of one manifest, which its name tells.
        name = ("manifest", "base-first")[number // 6 % 2]
        target = here / f"out-{number // 6}-{name}"
        work = target.with_name(f"{target.name}.parts")
        if mode == "force":
            target.write_bytes(before)
        resumed += bool(parts_of(work))
        seconds = dice.uniform(0, longest * 1.1 if source == remote else 0.02)
        join_and_kill(starter, f"{source.replace('manifest', name)} {target} {mode}", seconds)
        content = target.read_bytes() if target.exists() else None
        assert content in ((good, before) if mode == "force" else (good, None))
        cut_short += content != good
        # Besides, there is nothing, or a folder of parts that are whole and right.
        for path in here.iterdir():
            assert path.name.startswith("out-")
        for path in work.glob("*.part"):
            assert path.read_bytes() == parts[path.name]
        target.unlink(missing_ok=True)
    assert resumed and cut_short >= 5
    for work in here.glob("*.parts"):
        kept = set(parts_of(work))
        server.asked.clear()
        target = work.with_suffix("")
        url = remote.replace("manifest", target.name.partition("-")[2].partition("-")[2])
        tfl_rewrite.join(url, target, JoinOptions(allow_private=True))
        assert target.read_bytes() == good and not work.exists()
        assert not kept & {path.strip("/") for path in server.asked}


def test_mistakes_are_errors_of_ours(here: Path, folder: Path) -> None:
    for source, target in (
        (folder / "no.json", here / "out"),
        (folder, here / "out"),
        (folder / "manifest.json", here),
        (folder / "manifest.json", here / "no" / "out"),
    ):
        with pytest.raises(TflRewriteError) as caught:
            tfl_rewrite.join(source, target)
        assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="jobs is -1"):
        tfl_rewrite.join(folder / "manifest.json", here / "out", JoinOptions(jobs=-1))
    assert json.loads((folder / "manifest.json").read_bytes())["version"] == 1


def test_a_manifest_that_is_too_large_is_named_in_full(folder: Path, tmp_path: Path) -> None:
    (folder / "large.json").write_bytes(b" " * (9 << 20))
    with serve(folder) as server, pytest.raises(FormatError) as caught:
        tfl_rewrite.join(f"{server.url}/large.json", tmp_path / "out.tflite", JoinOptions(allow_private=True))
    assert caught.value.file == f"{server.url}/large.json"


def test_a_server_that_does_not_speak_http(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as client:
                    client.recv(4096)
                    client.sendall(b"220 mail.example.com\r\n")

    threading.Thread(target=answer, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/manifest.json"
        with pytest.raises(FileAccessError, match="the server does not speak HTTP"):
            tfl_rewrite.join(url, tmp_path / "out.tflite", JoinOptions(allow_private=True))
    finally:
        listener.close()
