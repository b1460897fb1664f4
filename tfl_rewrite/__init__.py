"""Rewrites .tflite files: lossless core, int8 weights, every rewrite verified by the interpreter.

The names below are the public ones. They are loaded when first used, so that importing the package is
quick and pulls in no interpreter.
"""

from __future__ import annotations

import importlib
import sys

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tfl_rewrite.calibration.record import record as record
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
    "editing.base:run_passes": "run",
    "errors": "FileAccessError FormatError TflRewriteError UnsupportedError UsageError VerificationError",
    "files.source": "load save",
    "judge.settings": "Judging Tolerance",
    "judge.verdict": "Verdict",
    "model.ir": "Model",
    "pipeline.chain": "ChainOptions chain",
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

ROOMS = ("editing", "errors", "model", "passes")
"""Parts of the package that have public names of their own."""


def late(
    package: str, names: dict[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns the ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names load when first used.

    Args:
        package: Its name.
        names: Modules below this one, and the names of each between spaces; behind a colon what a single one
            is called there.
    """
    homes = {name: home for home, told in names.items() for name in told.split()}
    known = sorted(homes)

    def get(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, own = home.partition(":")
        value = getattr(importlib.import_module(f"{__name__}.{module}"), own or name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: known, known


_get, __dir__, __all__ = late(__name__, _NAMES)
__all__.append("__version__")
__all__.sort()


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    try:
        return _get(name)
    except AttributeError as error:
        for room in ROOMS if not name.startswith("_") else ():
            if name in getattr(importlib.import_module(f"{__name__}.{room}"), "__all__", ()):
                raise AttributeError(f"{error}; it is in {__name__}.{room}") from None
        raise
