"""Rewrites .tflite files: lossless core, int8 weights, every rewrite verified by the interpreter.

The names below are the public ones. They are loaded when first used, so that importing the package is
quick and pulls in no interpreter.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tfl_rewrite.api import (
        compact,
        compact_passes,
        dedup,
        dedup_pass,
        dequantize,
        dequantize_pass,
        quantize_weights,
        quantize_weights_pass,
        remove_dead,
        remove_dead_passes,
        repair_pass,
        round_weights,
        round_weights_pass,
    )
    from tfl_rewrite.blaming import blame
    from tfl_rewrite.catalog import passes_of, preset
    from tfl_rewrite.checking import check
    from tfl_rewrite.diagnosis.doctor import Diagnosis, doctor
    from tfl_rewrite.diffing import Comparison, diff
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
    from tfl_rewrite.judging import verify
    from tfl_rewrite.media_metadata import media_inputs
    from tfl_rewrite.rewriting import Report, RewriteFailed, Verification, rewrite
    from tfl_rewrite.rounding_search import search_rounding
    from tfl_rewrite.shards.calls import join, shard
    from tfl_rewrite.shards.opened import ShardedModel, open_sharded
    from tfl_rewrite.shards.outcome import ShardFailed, ShardReport
    from tfl_rewrite.shrinking.calls import shrink
    from tfl_rewrite.shrinking.shrink import ShrinkFailed, ShrinkReport
    from tfl_rewrite.storage import load, save
    from tfl_rewrite.verification import Tolerance, Verdict

_HOMES = {
    "Comparison": "diffing",
    "Diagnosis": "diagnosis.doctor",
    "FileAccessError": "errors",
    "FormatError": "errors",
    "InvariantError": "errors",
    "Report": "rewriting",
    "RewriteFailed": "rewriting",
    "ShardFailed": "shards.outcome",
    "ShardReport": "shards.outcome",
    "ShardedModel": "shards.opened",
    "ShrinkFailed": "shrinking.shrink",
    "ShrinkReport": "shrinking.shrink",
    "TflRewriteError": "errors",
    "Tolerance": "verification",
    "UnsupportedError": "errors",
    "UsageError": "errors",
    "Verdict": "verification",
    "Verification": "rewriting",
    "VerificationError": "errors",
    "blame": "blaming",
    "check": "checking",
    "compact": "api",
    "compact_passes": "api",
    "dedup": "api",
    "dedup_pass": "api",
    "dequantize": "api",
    "dequantize_pass": "api",
    "diff": "diffing",
    "doctor": "diagnosis.doctor",
    "inspect": "inspection",
    "join": "shards.calls",
    "load": "storage",
    "media_inputs": "media_metadata",
    "open_sharded": "shards.opened",
    "passes_of": "catalog",
    "preset": "catalog",
    "quantize_weights": "api",
    "quantize_weights_pass": "api",
    "remove_dead": "api",
    "remove_dead_passes": "api",
    "repair_pass": "api",
    "rewrite": "rewriting",
    "round_weights": "api",
    "round_weights_pass": "api",
    "save": "storage",
    "search_rounding": "rounding_search",
    "shard": "shards.calls",
    "shrink": "shrinking.calls",
    "verify": "judging",
}

__all__ = [
    "Comparison",
    "Diagnosis",
    "FileAccessError",
    "FormatError",
    "InvariantError",
    "Report",
    "RewriteFailed",
    "ShardFailed",
    "ShardReport",
    "ShardedModel",
    "ShrinkFailed",
    "ShrinkReport",
    "TflRewriteError",
    "Tolerance",
    "UnsupportedError",
    "UsageError",
    "Verdict",
    "Verification",
    "VerificationError",
    "__version__",
    "blame",
    "check",
    "compact",
    "compact_passes",
    "dedup",
    "dedup_pass",
    "dequantize",
    "dequantize_pass",
    "diff",
    "doctor",
    "inspect",
    "join",
    "load",
    "media_inputs",
    "open_sharded",
    "passes_of",
    "preset",
    "quantize_weights",
    "quantize_weights_pass",
    "remove_dead",
    "remove_dead_passes",
    "repair_pass",
    "rewrite",
    "round_weights",
    "round_weights_pass",
    "save",
    "search_rounding",
    "shard",
    "shrink",
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
