"""What a store or a server makes of a file: deflate, or a newer codec where its library is installed."""

from __future__ import annotations

import enum
import importlib
import zlib
from collections.abc import Callable
from typing import Any

from tfl_rewrite.errors import UsageError

Sized = Callable[[bytes], int]
"""Returns how many bytes a codec makes of some."""


class Codec(str, enum.Enum):
    """How a download is compressed."""

    DEFLATE = "deflate"
    ZSTD = "zstd"
    BROTLI = "brotli"

    def sized(self, *, quick: bool = False) -> Sized:
        """Returns what compresses as hard as the codec can.

        Args:
            quick: Less hard, for sizes that are compared with one another: a tenth of the time and more.

        Raises:
            UsageError: Its library is not installed.
        """
        if self is Codec.DEFLATE:
            return lambda data: len(zlib.compress(data, 6 if quick else 9))
        if self is Codec.ZSTD:
            zstd = self._library("zstandard")
            return lambda data: len(zstd.ZstdCompressor(level=9 if quick else 19).compress(data))
        brotli = self._library("brotli")
        return lambda data: len(brotli.compress(data, quality=7 if quick else 11))

    def _library(self, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError:
            raise UsageError(
                f"--codec {self.value} needs the library {name}",
                remedy="install it: pip install 'tfl-rewrite[codecs]', or leave out --codec",
            ) from None
