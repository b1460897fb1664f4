"""Sizes as stores make them, and what is said where a library is missing."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import types
import zlib

import pytest

from tfl_rewrite.errors import UsageError
from tfl_rewrite.numerics.codecs import Codec


def test_deflate_is_the_highest_level() -> None:
    data = bytes(range(256)) * 40 + b"abc" * 999
    assert Codec.DEFLATE.sized()(data) == len(zlib.compress(data, 9))
    assert Codec.DEFLATE.sized(quick=True)(data) == len(zlib.compress(data, 6))


@pytest.mark.parametrize(("codec", "library"), [(Codec.ZSTD, "zstandard"), (Codec.BROTLI, "brotli")])
def test_what_is_not_installed_is_named(codec: Codec, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> types.ModuleType:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=f"needs the library {library}") as raised:
        codec.sized()
    assert "tfl-rewrite[codecs]" in str(raised.value.remedy)


def test_libraries_are_asked_for_their_highest_level(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compressor:
        def __init__(self, level: int) -> None:
            self.level = level

        def compress(self, data: bytes) -> bytes:
            return bytes(self.level)

    zstandard = types.SimpleNamespace(ZstdCompressor=Compressor)
    brotli = types.SimpleNamespace(compress=lambda data, quality: bytes(quality))
    monkeypatch.setattr(importlib, "import_module", {"zstandard": zstandard, "brotli": brotli}.__getitem__)
    assert (Codec.ZSTD.sized()(b"x"), Codec.BROTLI.sized()(b"x")) == (19, 11)


@pytest.mark.parametrize("codec", list(Codec))
def test_a_signal_is_answered_while_much_is_compressed(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries return once they are done, and until then Python answers none in the thread that called."""
    ended, called = threading.Event(), list[threading.Thread]()

    def compress(data: bytes, *_: object, **__: object) -> bytes:
        called.append(threading.current_thread())
        if called[-1] is not threading.main_thread():
            os.kill(os.getpid(), signal.SIGINT)
            ended.wait(60)
        return data

    library = types.SimpleNamespace(
        compress=compress, ZstdCompressor=lambda level: types.SimpleNamespace(compress=compress)
    )
    monkeypatch.setattr(importlib, "import_module", lambda _name: library)
    monkeypatch.setattr(zlib, "compress", compress)
    sized = codec.sized()
    assert sized(b"short") == 5
    with pytest.raises(KeyboardInterrupt):
        sized(bytes(1 << 20))
    assert not ended.is_set()
    ended.set()
    called[-1].join()
    assert [thread is threading.main_thread() for thread in called] == [True, False]


def test_what_fails_elsewhere_fails_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def compress(_data: bytes, _level: int) -> bytes:
        raise MemoryError("no room")

    monkeypatch.setattr(zlib, "compress", compress)
    with pytest.raises(MemoryError, match="no room"):
        Codec.DEFLATE.sized()(bytes(1 << 20))
