"""Says, where a measurement fails on a runtime that is newer than the rows, that this is what it found."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from tfl_rewrite.kernels.runtimes import unmeasured_here


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    report = (yield).get_result()
    newer = unmeasured_here() if report.failed else ""
    if newer:
        told = f"{newer}. What failed is a finding: its row needs a version or a condition (CONTRIBUTING.md)"
        report.sections.append(("a newer runtime", told))
