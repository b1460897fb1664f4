"""All checks over one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tfl_rewrite.files.source import ModelLike, Source
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.invariants import problems
from tfl_rewrite.options.json_data import JsonData, computed
from tfl_rewrite.reading.content_findings import check_file, check_quantization, check_values
from tfl_rewrite.reading.findings import KINDS, Finding, Severity
from tfl_rewrite.reading.operator_findings import check_operators, check_versions

_ORDER = {kind.name: index for index, kind in enumerate(KINDS)}
# What the structural check says too, and a row says better.
_SAID_BETTER = ("quantized_dimension", " scales but ", " scales for a dimension")


@dataclass(frozen=True, slots=True)
class Diagnosis(JsonData):
    """What is wrong with one file.

    Attributes:
        findings: Worst first, then in the order of :data:`tfl_rewrite.reading.findings.KINDS`.

    Example:
        >>> tfl_rewrite.diagnose("model.tflite").repairable
        ('unaligned',)
    """

    schema: ClassVar[int] = 1
    file: str
    nbytes: int
    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {severity}" for severity, count in self.counts.items())
        return f"<Diagnosis: {self.nbytes:,} bytes, findings: {counts}>"

    @property
    @computed(after="nbytes")
    def counts(self) -> dict[str, int]:
        """How many findings are of each severity."""
        return {severity.value: self.count(severity) for severity in Severity}

    def count(self, severity: Severity) -> int:
        """Returns how many findings are of a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    @property
    def repairable(self) -> tuple[str, ...]:
        """Names of the kinds that ``repair`` settles here."""
        return tuple(dict.fromkeys(finding.kind for finding in self.findings if finding.repairable))

    def reaches(self, severity: Severity) -> bool:
        """Whether anything is as bad as that, or worse."""
        return any(finding.severity.rank <= severity.rank for finding in self.findings)


def diagnose(model: ModelLike, *, min_runtime: str | None = None) -> Diagnosis:
    """Reads a file and says what will go wrong where. Nothing is run, nothing is written.

    Args:
        model: A path, bytes, an open file or a model.
        min_runtime: The oldest runtime that is to run it, as for
            :class:`tfl_rewrite.QuantizeWeights`; None for no particular one.

    Raises:
        FormatError: It is damaged so far that it cannot be read.
        UsageError: ``min_runtime`` is no version.
        FileAccessError, UnsupportedError: As for :func:`tfl_rewrite.files.store.load`.

    Example:
        >>> found = tfl_rewrite.diagnose("model.tflite", min_runtime="2.14")
        >>> [(finding.kind, finding.severity.value) for finding in found.findings]
        [('unaligned', 'note')]
    """
    wanted = None if min_runtime is None else runtimes.parse_runtime(min_runtime)
    origin = Source.of(model)
    model = origin.model()
    found = [
        *check_quantization(model, Graph.of(model)),
        *check_operators(model),
        *check_versions(model, wanted),
        *check_values(model),
    ]
    for problem in problems(model):
        if not any(words in problem.what for words in _SAID_BETTER):
            found.append(Finding("structure", problem.where, problem.what))
    found += check_file(model)
    found.sort(key=lambda finding: (finding.severity.rank, _ORDER[finding.kind]))
    return Diagnosis(origin.path, origin.container.nbytes, tuple(found))
