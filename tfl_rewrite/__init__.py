"""Rewrites .tflite files: lossless core, int8 weights, every rewrite verified by the interpreter.

The names below are the public ones. They are loaded when first used, so that importing the package is
quick and pulls in no interpreter.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tfl_rewrite.calibration.record import record as record
    from tfl_rewrite.editing.base import Context as Context
    from tfl_rewrite.editing.base import Edit as Edit
    from tfl_rewrite.editing.base import Effect as Effect
    from tfl_rewrite.editing.base import Pass as Pass
    from tfl_rewrite.editing.base import PassResult as PassResult
    from tfl_rewrite.editing.base import Skip as Skip
    from tfl_rewrite.editing.base import run_passes
    from tfl_rewrite.errors import FileAccessError as FileAccessError
    from tfl_rewrite.errors import FormatError as FormatError
    from tfl_rewrite.errors import TflRewriteError as TflRewriteError
    from tfl_rewrite.errors import UnsupportedError as UnsupportedError
    from tfl_rewrite.errors import UsageError as UsageError
    from tfl_rewrite.errors import VerificationError as VerificationError
    from tfl_rewrite.files.source import load as load
    from tfl_rewrite.files.source import save as save
    from tfl_rewrite.judge.settings import Judging as Judging
    from tfl_rewrite.judge.settings import Tolerance as Tolerance
    from tfl_rewrite.judge.verdict import Verdict as Verdict
    from tfl_rewrite.model.ir import Model as Model
    from tfl_rewrite.options.option import option as option
    from tfl_rewrite.passes.catalog import passes_of as passes_of
    from tfl_rewrite.passes.catalog import preset as preset
    from tfl_rewrite.passes.compact import Compact as Compact
    from tfl_rewrite.passes.dedup import Dedup as Dedup
    from tfl_rewrite.passes.dequantize import Dequantize as Dequantize
    from tfl_rewrite.passes.metadata import SetMetadata as SetMetadata
    from tfl_rewrite.passes.prune import Prune as Prune
    from tfl_rewrite.passes.quantize import Quantize as Quantize
    from tfl_rewrite.passes.quantize_weights import QuantizeWeights as QuantizeWeights
    from tfl_rewrite.passes.remove_dead import RemoveDead as RemoveDead
    from tfl_rewrite.passes.rename import Rename as Rename
    from tfl_rewrite.passes.repair import Repair as Repair
    from tfl_rewrite.passes.retarget import Retarget as Retarget
    from tfl_rewrite.passes.round_weights import RoundWeights as RoundWeights
    from tfl_rewrite.passes.signatures import Signatures as Signatures
    from tfl_rewrite.passes.simplify import Simplify as Simplify
    from tfl_rewrite.pipeline.chain import ChainOptions as ChainOptions
    from tfl_rewrite.pipeline.chain import chain as chain
    from tfl_rewrite.pipeline.report import Report as Report
    from tfl_rewrite.pipeline.report import RewriteFailed as RewriteFailed
    from tfl_rewrite.pipeline.shape_change import reshape as reshape
    from tfl_rewrite.pipeline.targets import Reshaping as Reshaping
    from tfl_rewrite.pipeline.verify import blame as blame
    from tfl_rewrite.pipeline.verify import verify as verify
    from tfl_rewrite.reading.check import check as check
    from tfl_rewrite.reading.diff import diff as diff
    from tfl_rewrite.reading.doctor import diagnose as diagnose
    from tfl_rewrite.reading.inspect import inspect as inspect
    from tfl_rewrite.search.goals import Goal as Goal
    from tfl_rewrite.search.rewrite import rewrite as rewrite
    from tfl_rewrite.search.shrink import shrink as shrink
    from tfl_rewrite.shards.calls import join as join
    from tfl_rewrite.shards.calls import open_sharded as open_sharded
    from tfl_rewrite.shards.calls import shard as shard
    from tfl_rewrite.shards.chain import Chain as Chain
    from tfl_rewrite.shards.settings import JoinOptions as JoinOptions
    from tfl_rewrite.shards.settings import ShardOptions as ShardOptions
    from tfl_rewrite.shards.split import SplitOptions as SplitOptions
    from tfl_rewrite.shards.split import split as split

    run = run_passes

_NAMES = {
    "calibration.record": "record",
    "editing.base": "Context Edit Effect Pass PassResult Skip",
    "editing.base:run_passes": "run",
    "errors": "FileAccessError FormatError TflRewriteError UnsupportedError UsageError VerificationError",
    "files.source": "load save",
    "judge.settings": "Judging Tolerance",
    "judge.verdict": "Verdict",
    "model.ir": "Model",
    "options.option": "option",
    "passes.catalog": "passes_of preset",
    "passes.compact": "Compact",
    "passes.dedup": "Dedup",
    "passes.dequantize": "Dequantize",
    "passes.prune": "Prune",
    "passes.metadata": "SetMetadata",
    "passes.quantize": "Quantize",
    "passes.quantize_weights": "QuantizeWeights",
    "passes.remove_dead": "RemoveDead",
    "passes.rename": "Rename",
    "passes.repair": "Repair",
    "passes.retarget": "Retarget",
    "passes.round_weights": "RoundWeights",
    "passes.signatures": "Signatures",
    "pipeline.chain": "ChainOptions chain",
    "passes.simplify": "Simplify",
    "pipeline.report": "Report RewriteFailed",
    "pipeline.shape_change": "reshape",
    "pipeline.targets": "Reshaping",
    "pipeline.verify": "blame verify",
    "reading.diff": "diff",
    "reading.check": "check",
    "reading.doctor": "diagnose",
    "reading.inspect": "inspect",
    "search.goals": "Goal",
    "search.rewrite": "rewrite",
    "search.shrink": "shrink",
    "shards.calls": "join open_sharded shard",
    "shards.chain": "Chain",
    "shards.settings": "JoinOptions ShardOptions",
    "shards.split": "SplitOptions split",
}
"""Modules, and the public names of each; behind a colon what a single one is called there."""

_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_HOMES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


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
