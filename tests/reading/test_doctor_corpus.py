"""The doctor over a larger collection of public models."""

from __future__ import annotations

from pathlib import Path

from tfl_rewrite import FormatError, Judging, UnsupportedError, diagnose, rewrite
from tfl_rewrite.passes.repair import Repair
from tfl_rewrite.reading.findings import UNASKED, Severity

OFF = Judging(mode="off")


def test_every_file_that_can_be_read_is_diagnosed_and_only_faulty_ones_change(
    public: Path, tmp_path: Path
) -> None:
    try:
        found = diagnose(public)
    except (FormatError, UnsupportedError):
        return
    target = tmp_path / "out.tflite"
    report = rewrite(public, target, [Repair()], judging=OFF)
    faulty = any(item.repairable and item.kind in UNASKED for item in found.findings)
    assert (report.outcome == "rewritten") is faulty
    if not faulty:
        assert target.read_bytes() == public.read_bytes()
        return
    left = diagnose(target).findings
    assert not [item for item in left if item.repairable and item.kind in UNASKED]
    before = {(item.kind, item.where) for item in found.findings if item.severity is not Severity.NOTE}
    assert {(item.kind, item.where) for item in left if item.severity is not Severity.NOTE} <= before
