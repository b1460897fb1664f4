"""Verdicts and measured files with the figures that a test asks for; nothing is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tfl_rewrite.judge.verdict import OutputComparison, Verdict
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.holdout_judge import Figures
from tfl_rewrite.search.trials import Measured
from tfl_rewrite.weights.encoding import Encoding

OUTPUT = OutputComparison(
    signature=None,
    name="out",
    position=0,
    dtype="float32",
    unit="values",
    samples=4,
    elements=40,
    rule="snr",
    passed=True,
    reason=None,
    bit_exact=False,
    max_abs_error=0.1,
    rmse=0.05,
    snr_db=27.0,
    cosine=1.0,
    equal_share=None,
    argmax_agreement=0.75,
    nonfinite_mismatches=0,
    reference_peak=1.0,
)


def verdict(*outputs: dict[str, Any], cause: str = "") -> Verdict:
    return Verdict(status="pass", cause=cause, outputs=tuple(replace(OUTPUT, **more) for more in outputs))


TEXTS = ["int8", "int6", "int4", "int2"]


def measured(snr: float, nbytes: int, goal: Goal) -> Measured:
    """A file of that size and SNR; its choice tells it from others."""
    found = verdict({"snr_db": snr})
    choice = {nbytes: Encoding.parse(TEXTS[nbytes % len(TEXTS)])}
    return Measured(
        choice=choice,
        nbytes=nbytes,
        deflated=0,
        cost=float(nbytes),
        verdict=found,
    )


def judged(snr: float) -> Figures:
    """What held-out inputs show."""
    return Figures(verdict=verdict({"snr_db": snr}))
