"""Sizes as stores make them, and what is said where a library is missing."""

from __future__ import annotations

import importlib
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
