"""Servers that keep somebody waiting: without a word, or with a byte now and then."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tfl_rewrite
from tfl_rewrite.errors import FileAccessError
from tfl_rewrite.shards import sources, web
from tfl_rewrite.shards.settings import JoinOptions, ShardOptions

from .serving import serve

# They wait for servers that let them wait.
pytestmark = pytest.mark.slow

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limits in a fraction of the time."""
    monkeypatch.setattr(web, "RATE_SECONDS", 0.8)
    monkeypatch.setattr(web, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(web, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(web, "_PAUSE_SECONDS", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(fixtures: Path, tmp_path: Path) -> Path:
    tfl_rewrite.shard(fixtures / "dense.tflite", tmp_path / "shards", ShardOptions(max_size="1KiB"))
    return tmp_path / "shards"


Talk = Callable[[socket.socket], None]


@contextlib.contextmanager
def talking(talk: Talk) -> Iterator[tuple[str, list[int]]]:
    """A server that says to everybody who asks what it likes; the list counts them."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[int] = []
    stop = threading.Event()

    def serve_one(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            talk(client)

    def run() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                asked.append(1)
                threading.Thread(target=serve_one, args=(client,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        stop.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def trickle(client: socket.socket, byte: bytes = b" ", seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        client.sendall(byte)
        time.sleep(0.05)


def says(first: bytes, byte: bytes = b" ") -> Talk:
    """Asked, it says something at once, and then a byte now and then."""

    def talk(client: socket.socket) -> None:
        if first:
            client.recv(65536)
            client.sendall(first)
        trickle(client, byte)

    return talk


def silent(client: socket.socket) -> None:
    time.sleep(30)


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (says(HEAD + b"Content-Length: 10000\r\n\r\n"), "sends less than 1000 bytes a second"),
        (says(HEAD + b"\r\n"), "sends less than 1000 bytes a second"),
        (says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"), "sends less than"),
        (says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"), "sends less than"),
        (says(HEAD + b"X: ", b"x"), "gave no answer within 2 s"),
        (says(b"", b"H"), "gave no answer within 2 s"),
        (silent, "gave no answer within 2 s"),
    ],
    ids=["length", "until closed", "chunks", "chunk extension", "header", "status", "silent"],
)
@pytest.mark.parametrize("scheme", ["http", "simplecache::http"])
def test_a_server_that_sends_a_byte_now_and_then(
    talk: Talk, reason: str, scheme: str, tmp_path: Path
) -> None:
    kept_waiting(talk, reason, scheme, tmp_path)


def test_a_byte_now_and_then_where_a_greeting_is_awaited(tmp_path: Path) -> None:
    """Nobody encrypts here: what comes is no answer to the first message."""
    kept_waiting(says(b"", b"\x16"), "gave no answer|cannot be fetched", "https", tmp_path)


def kept_waiting(talk: Talk, reason: str, scheme: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with talking(talk) as (address, asked):
        started = time.monotonic()
        with pytest.raises(FileAccessError, match=reason):
            tfl_rewrite.join(
                f"{scheme}://{address}/manifest.json",
                tmp_path / "here" / "out",
                JoinOptions(allow_private=True),
            )
        assert time.monotonic() - started < 20
        # It is not asked again.
        assert len(asked) == 1 or scheme == "https"
    assert list((tmp_path / "here").iterdir()) == []


def test_an_encrypted_connection_is_ended_too(tmp_path: Path) -> None:
    with talking(silent) as (address, asked), pytest.raises(FileAccessError, match="gave no answer within"):
        tfl_rewrite.join(
            f"https://{address}/manifest.json", tmp_path / "out", JoinOptions(allow_private=True)
        )
    assert len(asked) == 1


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_part_that_never_comes(folder: Path, tmp_path: Path, jobs: int) -> None:
    """All others do; they stay for the next time, and OUT does not appear."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    names = sorted(name for name in files if name.endswith(".part"))

    def talk(client: socket.socket) -> None:
        name = client.recv(65536).split()[1].decode().strip("/")
        client.sendall(HEAD + f"Content-Length: {len(files[name])}\r\n\r\n".encode())
        if name == names[-1]:
            trickle(client)
        else:
            client.sendall(files[name])

    (tmp_path / "here").mkdir()
    with talking(talk) as (address, _), pytest.raises(FileAccessError, match="sends less than") as caught:
        url = f"http://{address}/manifest.json"
        tfl_rewrite.join(url, tmp_path / "here" / "out", JoinOptions(allow_private=True, jobs=jobs))
    assert names[-1] in str(caught.value)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["out.parts"]
    kept = {path.name for path in (tmp_path / "here" / "out.parts").glob("*.part")}
    assert kept and names[-1] not in kept


def test_a_slow_line_is_no_fault(folder: Path, fixtures: Path, tmp_path: Path) -> None:
    """A little faster than the limit, one part after the other and several at once."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    line = threading.Lock()

    def talk(client: socket.socket) -> None:
        data = files[client.recv(65536).split()[1].decode().strip("/")]
        client.sendall(HEAD + f"Content-Length: {len(data)}\r\n\r\n".encode())
        for start in range(0, len(data), 400):
            with line:  # All connections share it.
                client.sendall(data[start : start + 400])
                time.sleep(0.1)

    with talking(talk) as (address, _):
        url = f"http://{address}/manifest.json"
        tfl_rewrite.join(url, tmp_path / "out", JoinOptions(allow_private=True, jobs=4))
    assert (tmp_path / "out").read_bytes() == (fixtures / "dense.tflite").read_bytes()


def test_time_that_nobody_waited_does_not_count(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as for a disk."""
    write = tfl_rewrite.files.atomic.FileSink.write_at

    def slow(sink: object, data: bytes, offset: int) -> None:
        time.sleep(0.3)
        write(sink, data, offset)  # type: ignore[arg-type]

    monkeypatch.setattr("tfl_rewrite.files.atomic.FileSink.write_at", slow)
    with serve(folder) as server:
        tfl_rewrite.join(
            f"{server.url}/manifest.json",
            tmp_path / "out",
            JoinOptions(allow_private=True, jobs=1),
        )
    assert (tmp_path / "out").exists()


def test_the_whole_has_a_limit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LONGEST_SECONDS", 0.5)
    with serve(folder) as server, pytest.raises(FileAccessError, match=r"took more than 0\.5 s"):
        server.delay = 0.15
        tfl_rewrite.join(
            f"{server.url}/manifest.json",
            tmp_path / "out",
            JoinOptions(allow_private=True, jobs=1),
        )
    assert not (tmp_path / "out").exists()


def test_nobody_looks_when_nothing_is_asked(folder: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    with serve(folder) as server:
        tfl_rewrite.join(f"{server.url}/manifest.json", tmp_path / "out", JoinOptions(allow_private=True))
    time.sleep(0.5)
    assert threading.active_count() <= before + 1


def test_a_store_that_is_slow(tmp_path: Path) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            time.sleep(0.2)
            return super().read(1)

    class System:
        def open(self, path: str, mode: str) -> io.BytesIO:
            return Slow(bytes(1000))

    source = sources.FsspecSource(System(), "bucket", "s3://bucket")
    with pytest.raises(FileAccessError, match=r"s3://bucket/m\.json: sends less than"):
        sources.read_manifest_text(source, "m.json", "s3://bucket/m.json")
