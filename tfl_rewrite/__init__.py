"""Rewrites .tflite files: lossless core, int8 weights, every rewrite verified by the interpreter.

The names below are the public ones. They are loaded when first used, so that importing the package is
quick and pulls in no interpreter.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult, Skip
    from tfl_rewrite.editing.base import run_passes as run
    from tfl_rewrite.editing.editor import Editor
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
    from tfl_rewrite.judge.layers import Blame
    from tfl_rewrite.judge.settings import Judging, Tolerance
    from tfl_rewrite.judge.verdict import Verdict
    from tfl_rewrite.model.graph import Graph
    from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
    from tfl_rewrite.options.option import option
    from tfl_rewrite.passes.catalog import passes_of, preset
    from tfl_rewrite.passes.compact import Compact
    from tfl_rewrite.passes.dedup import Dedup
    from tfl_rewrite.passes.dequantize import Dequantize
    from tfl_rewrite.passes.equalize import Equalize
    from tfl_rewrite.passes.quantize_weights import QuantizeWeights
    from tfl_rewrite.passes.remove_dead import RemoveDead
    from tfl_rewrite.passes.repair import Repair
    from tfl_rewrite.passes.round_weights import RoundWeights
    from tfl_rewrite.pipeline.report import Report, RewriteFailed
    from tfl_rewrite.pipeline.rewrite import rewrite
    from tfl_rewrite.pipeline.verify import verify
    from tfl_rewrite.reading.blame import blame
    from tfl_rewrite.reading.check import check
    from tfl_rewrite.reading.diff import Comparison, diff
    from tfl_rewrite.reading.doctor import Diagnosis, diagnose
    from tfl_rewrite.reading.inspect import Inspection, inspect
    from tfl_rewrite.search.goals import Goal
    from tfl_rewrite.search.report import ShrinkFailed, ShrinkReport
    from tfl_rewrite.search.round import search_rounding
    from tfl_rewrite.search.shrink import shrink
    from tfl_rewrite.shards.calls import ShardedModel, join, open_sharded, shard
    from tfl_rewrite.shards.report import ShardFailed, ShardReport
    from tfl_rewrite.shards.settings import JoinOptions, ShardOptions

_HOMES = {
    "Blame": "judge.layers",
    "Compact": "passes.compact",
    "Comparison": "reading.diff",
    "Context": "editing.base",
    "Dedup": "passes.dedup",
    "Dequantize": "passes.dequantize",
    "Diagnosis": "reading.doctor",
    "Edit": "editing.base",
    "Editor": "editing.editor",
    "Effect": "editing.base",
    "Equalize": "passes.equalize",
    "FileAccessError": "errors",
    "FormatError": "errors",
    "Graph": "model.graph",
    "Inspection": "reading.inspect",
    "Goal": "search.goals",
    "InvariantError": "errors",
    "JoinOptions": "shards.settings",
    "Judging": "judge.settings",
    "Model": "model.ir",
    "Operator": "model.ir",
    "Pass": "editing.base",
    "PassResult": "editing.base",
    "QuantizeWeights": "passes.quantize_weights",
    "RemoveDead": "passes.remove_dead",
    "Repair": "passes.repair",
    "Report": "pipeline.report",
    "RewriteFailed": "pipeline.report",
    "RoundWeights": "passes.round_weights",
    "ShardFailed": "shards.report",
    "ShardOptions": "shards.settings",
    "ShardReport": "shards.report",
    "ShardedModel": "shards.calls",
    "ShrinkFailed": "search.report",
    "ShrinkReport": "search.report",
    "Skip": "editing.base",
    "SubGraph": "model.ir",
    "Tensor": "model.ir",
    "TflRewriteError": "errors",
    "Tolerance": "judge.settings",
    "UnsupportedError": "errors",
    "UsageError": "errors",
    "Verdict": "judge.verdict",
    "VerificationError": "errors",
    "blame": "reading.blame",
    "check": "reading.check",
    "diagnose": "reading.doctor",
    "diff": "reading.diff",
    "inspect": "reading.inspect",
    "join": "shards.calls",
    "load": "files.store",
    "open_sharded": "shards.calls",
    "option": "options.option",
    "passes_of": "passes.catalog",
    "preset": "passes.catalog",
    "rewrite": "pipeline.rewrite",
    "run": "editing.base:run_passes",
    "save": "files.store",
    "search_rounding": "search.round",
    "shard": "shards.calls",
    "shrink": "search.shrink",
    "verify": "pipeline.verify",
}

__all__ = [
    "Blame",
    "Compact",
    "Comparison",
    "Context",
    "Dedup",
    "Dequantize",
    "Diagnosis",
    "Edit",
    "Editor",
    "Effect",
    "Equalize",
    "FileAccessError",
    "FormatError",
    "Goal",
    "Graph",
    "Inspection",
    "InvariantError",
    "JoinOptions",
    "Judging",
    "Model",
    "Operator",
    "Pass",
    "PassResult",
    "QuantizeWeights",
    "RemoveDead",
    "Repair",
    "Report",
    "RewriteFailed",
    "RoundWeights",
    "ShardFailed",
    "ShardOptions",
    "ShardReport",
    "ShardedModel",
    "ShrinkFailed",
    "ShrinkReport",
    "Skip",
    "SubGraph",
    "Tensor",
    "TflRewriteError",
    "Tolerance",
    "UnsupportedError",
    "UsageError",
    "Verdict",
    "VerificationError",
    "__version__",
    "blame",
    "check",
    "diagnose",
    "diff",
    "inspect",
    "join",
    "load",
    "open_sharded",
    "option",
    "passes_of",
    "preset",
    "rewrite",
    "run",
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
    module, _, own = home.partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), own or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
