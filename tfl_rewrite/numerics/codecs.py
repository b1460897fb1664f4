"""What a store or a server makes of a file: deflate, or a newer codec where its library is installed."""

from __future__ import annotations

import enum
import functools
import importlib
import zlib
from collections.abc import Callable
from typing import Any

from tfl_rewrite.errors import UsageError
from tfl_rewrite.work import aside

Sized = Callable[[bytes], int]
"""Returns how many bytes a codec makes of some."""


_LONG_NBYTES = 1 << 16
"""Less is compressed in a fifth of a second: brotli takes a second for 400 KB.

Pieces would not do for more: of them zstd and brotli at their quicker levels make 0.9 and 0.5 % more.
"""


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
        compress = self._compress(quick=quick)

        def sized(data: bytes) -> int:
            made = compress(data) if len(data) < _LONG_NBYTES else aside(lambda: compress(data))
            return len(made)

        return sized

    def _compress(self, *, quick: bool) -> Callable[[bytes], bytes]:
        if self is Codec.DEFLATE:
            return lambda data: zlib.compress(data, 6 if quick else 9)
        if self is Codec.ZSTD:
            zstd = self._library("zstandard")
            return lambda data: bytes(zstd.ZstdCompressor(level=9 if quick else 19).compress(data))
        return functools.partial(self._library("brotli").compress, quality=7 if quick else 11)

    def _library(self, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError:
            raise UsageError(
                f"--codec {self.value} needs the library {name}",
                remedy="install it: pip install 'tfl-rewrite[codecs]', or leave out --codec",
            ) from None
