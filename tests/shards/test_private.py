"""What a server can make this program connect to: nothing private, whatever names and redirects say."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tfl_rewrite
from tfl_rewrite.errors import FileAccessError
from tfl_rewrite.shards import web
from tfl_rewrite.shards.settings import JoinOptions

from .serving import Server, serve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as found:
        yield found


@pytest.mark.parametrize(
    "address",
    [
        *("172.16.0.1", "192.168.1.1", "169.254.0.1", "198.18.0.1", "192.0.2.1", "255.255.255.255"),
        *("::", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "5f00::1", "100::1"),
        *("::127.0.0.1", "::ffff:192.168.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::7f00:1", "64:ff9b::a00:1"),
    ],
)
def test_more_addresses_that_are_private(address: str) -> None:
    assert not web.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808", "2606:4700::1111"])
def test_addresses_that_are_public(address: str) -> None:
    assert web.is_public(address)


class Names:
    """A resolver: each name has its answers, one after the other."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(host)
        rows = self.answers.get(host.replace(".", "_"), [[host]])
        addresses = rows.pop(0) if len(rows) > 1 else rows[0]
        return [
            (socket.AF_INET6 if ":" in item else socket.AF_INET, socket.SOCK_STREAM, 6, "", (item, port))
            for item in addresses
        ]


class Sockets:
    """Counts connections instead of making them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []

        def connect(_: socket.socket, target: tuple[Any, ...]) -> None:
            self.made.append(target[0])
            raise ConnectionRefusedError("counted")

        monkeypatch.setattr(socket.socket, "connect", connect)
        monkeypatch.setattr(web, "_PAUSE_SECONDS", 0.0)


def refusal(url: str, folder: Path) -> str:
    with pytest.raises(FileAccessError) as caught:
        tfl_rewrite.join(url, folder / "out.tflite")
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "answer", [["10.0.0.5"], ["8.8.8.8", "127.0.0.1"], ["::1"], ["::ffff:169.254.169.254"], ["fe80::1%2"]]
)
def test_a_name_that_leads_to_a_private_address(
    scheme: str, answer: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets = Sockets(monkeypatch)
    monkeypatch.setattr(socket, "getaddrinfo", Names(weights_example_org=[answer]))
    text = refusal(f"{scheme}://weights.example.org/m.json", tmp_path)
    assert "weights.example.org is at the private address" in text and "--allow-private" in text
    assert not sockets.made


def test_a_name_that_changes_its_mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was looked at is the one that is connected to; each attempt looks again."""
    sockets = Sockets(monkeypatch)
    names = Names(weights_example_org=[["8.8.8.8"], ["127.0.0.1"]])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    text = refusal("http://weights.example.org/m.json", tmp_path)
    assert sockets.made == ["8.8.8.8"] and "private address 127.0.0.1" in text
    assert names.asked == ["weights.example.org"] * 2


@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]", "localhost", "0x7f.2", "2130706434"])
def test_a_redirect_to_a_private_address(
    host: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first server counts as public here; where it sends us does not."""
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1" and host != "localhost")
    if host == "localhost":
        monkeypatch.setattr(web, "is_public", lambda address: not server.asked)
    port = server.url.rpartition(":")[2]
    server.answer = lambda path: (302, {"Location": f"http://{host}:{port}/secret"}, b"")
    text = refusal(f"{server.url}/m.json", tmp_path)
    assert "private address" in text or "cannot be fetched" in text
    assert set(server.asked) == {"/m.json"}, "nothing asked of the other"


def test_private_addresses_when_allowed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="is missing"):
        tfl_rewrite.join(f"{server.url}/m.json", tmp_path / "out.tflite", JoinOptions(allow_private=True))
    assert set(server.asked) == {"/m.json"}
