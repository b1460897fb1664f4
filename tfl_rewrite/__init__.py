"""Rewrites .tflite files: lossless core, int8 weights, every rewrite verified by the interpreter.

The names below are the public ones. They are loaded when first used, so that importing the package is
quick and pulls in no interpreter.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tfl_rewrite.errors import (
        FileAccessError,
        FormatError,
        InvariantError,
        TflRewriteError,
        UnsupportedError,
        UsageError,
        VerificationError,
    )
    from tfl_rewrite.files.store import load, save
    from tfl_rewrite.judge.settings import Judging, Tolerance
    from tfl_rewrite.judge.verdict import Verdict
    from tfl_rewrite.passes.calls import (
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
    from tfl_rewrite.passes.catalog import passes_of, preset
    from tfl_rewrite.pipeline.report import Report, RewriteFailed
    from tfl_rewrite.pipeline.rewrite import rewrite
    from tfl_rewrite.pipeline.verify import verify
    from tfl_rewrite.reading.blame import blame
    from tfl_rewrite.reading.check import check
    from tfl_rewrite.reading.diff import Comparison, diff
    from tfl_rewrite.reading.doctor import Diagnosis, doctor
    from tfl_rewrite.reading.inspect import inspect
    from tfl_rewrite.search.calls import shrink
    from tfl_rewrite.search.report import ShrinkFailed, ShrinkReport
    from tfl_rewrite.search.rounding import search_rounding
    from tfl_rewrite.shards.calls import ShardedModel, join, open_sharded, shard
    from tfl_rewrite.shards.report import ShardFailed, ShardReport

_HOMES = {
    "Comparison": "reading.diff",
    "Diagnosis": "reading.doctor",
    "FileAccessError": "errors",
    "FormatError": "errors",
    "InvariantError": "errors",
    "Report": "pipeline.report",
    "RewriteFailed": "pipeline.report",
    "ShardFailed": "shards.report",
    "ShardReport": "shards.report",
    "ShardedModel": "shards.calls",
    "ShrinkFailed": "search.report",
    "ShrinkReport": "search.report",
    "TflRewriteError": "errors",
    "Tolerance": "judge.settings",
    "UnsupportedError": "errors",
    "UsageError": "errors",
    "Verdict": "judge.verdict",
    "Judging": "judge.settings",
    "VerificationError": "errors",
    "blame": "reading.blame",
    "check": "reading.check",
    "compact": "passes.calls",
    "compact_passes": "passes.calls",
    "dedup": "passes.calls",
    "dedup_pass": "passes.calls",
    "dequantize": "passes.calls",
    "dequantize_pass": "passes.calls",
    "diff": "reading.diff",
    "doctor": "reading.doctor",
    "inspect": "reading.inspect",
    "join": "shards.calls",
    "load": "files.store",
    "open_sharded": "shards.calls",
    "passes_of": "passes.catalog",
    "preset": "passes.catalog",
    "quantize_weights": "passes.calls",
    "quantize_weights_pass": "passes.calls",
    "remove_dead": "passes.calls",
    "remove_dead_passes": "passes.calls",
    "repair_pass": "passes.calls",
    "rewrite": "pipeline.rewrite",
    "round_weights": "passes.calls",
    "round_weights_pass": "passes.calls",
    "save": "files.store",
    "search_rounding": "search.rounding",
    "shard": "shards.calls",
    "shrink": "search.calls",
    "verify": "pipeline.verify",
}

__all__ = [
    "Comparison",
    "Diagnosis",
    "FileAccessError",
    "FormatError",
    "InvariantError",
    "Judging",
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
