"""Addresses that fsspec makes of several: each is looked at as if it stood alone."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import tfl_rewrite
from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.shards import web
from tfl_rewrite.shards.settings import JoinOptions, ShardOptions
from tfl_rewrite.shards.sources import FolderSource, find_source
from tfl_rewrite.shards.web import WebSource

from .serving import Server, serve


@pytest.fixture
def folder(fixtures: Path, tmp_path: Path) -> Path:
    tfl_rewrite.shard(fixtures / "dense.tflite", tmp_path / "shards", ShardOptions(max_size="1KiB"))
    return tmp_path / "shards"


@pytest.fixture
def model(fixtures: Path) -> bytes:
    return (fixtures / "dense.tflite").read_bytes()


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(web, "_PAUSE_SECONDS", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(folder) as running:
        yield running


CACHES = ("simplecache::", "filecache::", "blockcache::", "cached::simplecache::", "SimpleCache::")


@pytest.mark.parametrize("chain", CACHES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0x7f.1", "2130706433"])
def test_private_addresses_in_a_chain(chain: str, host: str, server: Server, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    with pytest.raises(FileAccessError, match="is at the private address"):
        tfl_rewrite.join(f"{chain}http://{host}:{port}/manifest.json", tmp_path / "out")
    with pytest.raises(FileAccessError, match="is at the private address"):
        tfl_rewrite.open_sharded(f"{chain}http://{host}:{port}/manifest.json")
    assert not server.asked and not (tmp_path / "out").exists()


@pytest.mark.parametrize("chain", CACHES)
def test_when_they_are_allowed(chain: str, server: Server, model: bytes, tmp_path: Path) -> None:
    tfl_rewrite.join(f"{chain}{server.url}/manifest.json", tmp_path / "out", JoinOptions(allow_private=True))
    assert (tmp_path / "out").read_bytes() == model


def test_a_redirect_in_a_chain(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")
    port = server.url.rpartition(":")[2]
    server.answer = lambda _path: (302, {"Location": f"http://127.0.0.2:{port}/secret"}, b"")
    with pytest.raises(FileAccessError, match="private address"):
        tfl_rewrite.join(f"simplecache::{server.url}/manifest.json", tmp_path / "out")
    assert set(server.asked) == {"/manifest.json"}


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/manifest.json",
        "sftp://127.0.0.1/manifest.json",
        "ssh://127.0.0.1/manifest.json",
        "smb://127.0.0.1/share/manifest.json",
        "webhdfs://127.0.0.1/manifest.json",
        "hdfs://127.0.0.1/manifest.json",
        "jlab://127.0.0.1/manifest.json",
        "dask::memory://x/manifest.json",
        "reference://manifest.json::memory://x/refs.json",
        "reference::http://127.0.0.1/refs.json",
        "dir::memory://x",
        "generic://127.0.0.1/x",
        "git://repository:main@manifest.json",
        "github://owner:name@main/manifest.json",
        "data:text/plain,x",
        "libarchive://x::/tmp/a.rar",
        "simplecache::ftp://127.0.0.1/manifest.json",
        "zip://manifest.json::ftp://127.0.0.1/a.zip",
        # What would come last for us would not for fsspec.
        "memory://x/manifest.json::http://127.0.0.1/",
        "s3://bucket/x::simplecache::http://127.0.0.1/",
        "file:///x::http://127.0.0.1/manifest.json",
        "zip://a::memory://b::http://127.0.0.1/x",
        "simplecache://x",
        "http::127.0.0.1/x",
    ],
)
@pytest.mark.parametrize("private", [False, True])
def test_other_kinds_of_addresses(
    url: str, private: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by what they say, before fsspec sees them."""
    core = pytest.importorskip("fsspec.core")
    monkeypatch.setattr(core, "url_to_fs", lambda *_, **__: pytest.fail("fsspec was asked"))
    if url.startswith("data:"):
        assert isinstance(find_source(url)[0], FolderSource)  # No more than a strange name.
        return
    with pytest.raises(UsageError, match=r"is not read from|is not the last link"):
        tfl_rewrite.join(url, tmp_path / "out", JoinOptions(allow_private=private))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_archives_on_the_web(scheme: str, tmp_path: Path) -> None:
    url = f"zip://manifest.json::simplecache::{scheme}://127.0.0.1/a.zip"
    with pytest.raises(UsageError, match="is in an archive on a web server; fetch the archive"):
        tfl_rewrite.join(url, tmp_path / "out", JoinOptions(allow_private=True))


def archive(folder: Path, kind: str, path: Path) -> Path:
    names = sorted(item.name for item in folder.iterdir())
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.write(folder / name, f"deep/{name}")
    else:
        with tarfile.open(path, "w") as tar:
            for name in names:
                tar.add(folder / name, f"deep/{name}")
    return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("before", ["", "simplecache::"])
def test_archives_on_this_machine(kind: str, before: str, folder: Path, model: bytes, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    path = archive(folder, kind, tmp_path / f"a.{kind}")
    for number, base in enumerate((str(path), path.as_uri())):
        url = f"{before}{kind}://deep/manifest.json::{base}"
        tfl_rewrite.join(url, tmp_path / f"out{number}")
        assert (tmp_path / f"out{number}").read_bytes() == model
    with pytest.raises(FileAccessError, match=r"none\.json: is missing"):
        tfl_rewrite.join(f"{kind}://deep/none.json::{path}", tmp_path / "out2")


def test_copies_are_not_kept_twice(folder: Path, model: bytes, tmp_path: Path) -> None:
    """Parts are kept until the model is whole, whatever stands before the address."""
    os.environ.pop("FSSPEC", None)
    source, name = find_source(f"simplecache::{(folder / 'manifest.json').as_uri()}")
    assert isinstance(source, FolderSource) and source.folder == folder and name == "manifest.json"
    source, name = find_source(f"filecache::{folder}/manifest.json")
    assert isinstance(source, FolderSource) and name == "manifest.json"
    source, name = find_source("simplecache::http://[2606:4700::1111]/a::b/manifest.json")
    assert isinstance(source, WebSource) and name == "manifest.json"
