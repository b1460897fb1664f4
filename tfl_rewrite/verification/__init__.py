"""Judges a rewritten model by running it and the original, each in a process of its own.

Shares no code with what rewrites: it sees two files, through the runtime only.
"""

from __future__ import annotations

from .compare import Tolerance
from .judge import CallOutputs, Judge, RunResult, run_model
from .memory import parse_memory
from .panel import Panel, several
from .report import JudgeInfo, OutputComparison
from .runner import Failure
from .verdict import Verdict

__all__ = [
    "CallOutputs",
    "Failure",
    "Judge",
    "JudgeInfo",
    "OutputComparison",
    "Panel",
    "RunResult",
    "Tolerance",
    "Verdict",
    "parse_memory",
    "run_model",
    "several",
]
