"""Rewrites .tflite files: lossless core, int8 weights, every rewrite verified by the interpreter.

The names below are the public ones. They are loaded when first used, so that importing the package is
quick and pulls in no interpreter.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tfl_rewrite.api import check, quantize_weights, quantize_weights_pass
    from tfl_rewrite.errors import (
        FileAccessError,
        FormatError,
        InvariantError,
        TflRewriteError,
        UnsupportedError,
        UsageError,
        VerificationError,
    )
    from tfl_rewrite.inspection import inspect
    from tfl_rewrite.rewriting import Report, RewriteFailed, Verification, rewrite
    from tfl_rewrite.storage import load, save
    from tfl_rewrite.verification import Tolerance, Verdict, verify

_HOMES = {
    "FileAccessError": "errors",
    "FormatError": "errors",
    "InvariantError": "errors",
    "Report": "rewriting",
    "RewriteFailed": "rewriting",
    "TflRewriteError": "errors",
    "Tolerance": "verification",
    "UnsupportedError": "errors",
    "UsageError": "errors",
    "Verdict": "verification",
    "Verification": "rewriting",
    "VerificationError": "errors",
    "check": "api",
    "inspect": "inspection",
    "load": "storage",
    "quantize_weights": "api",
    "quantize_weights_pass": "api",
    "rewrite": "rewriting",
    "save": "storage",
    "verify": "verification",
}

__all__ = [
    "FileAccessError",
    "FormatError",
    "InvariantError",
    "Report",
    "RewriteFailed",
    "TflRewriteError",
    "Tolerance",
    "UnsupportedError",
    "UsageError",
    "Verdict",
    "Verification",
    "VerificationError",
    "__version__",
    "check",
    "inspect",
    "load",
    "quantize_weights",
    "quantize_weights_pass",
    "rewrite",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
