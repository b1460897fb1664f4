"""What is to run a file, and which operators it does not have: a TensorFlow Lite release, or TFLite Micro."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tfl_rewrite.errors import UsageError
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operands import operators_of
from tfl_rewrite.kernels.reads import micro_obstacle, needed_version, refused
from tfl_rewrite.kernels.runtimes import NEWEST_RUNTIME, OLDEST_MEASURED_RUNTIME, Runtime, runtime_text
from tfl_rewrite.model.ir import Model, Operator

MICRO = "tflm"
"""What names TFLite Micro, as a target and as a judge."""
FLEX = "Flex"
"""What the names of custom operators begin with that a delegate with all of TensorFlow runs."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What is to run a file.

    Attributes:
        text: As it was asked for, such as ``2.14``, ``litert-2.1`` or ``tflm``.
        runtime: Its place in TensorFlow's count; of TFLite Micro, which looks at no version, the newest.
    """

    text: str
    runtime: Runtime = NEWEST_RUNTIME

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Reads its name.

        Raises:
            UsageError: It is none, or newer than all that is known.
        """
        if text == MICRO:
            return cls(text)
        try:
            return cls(text, runtimes.parse_runtime(text))
        except UsageError as error:
            told = error.what.replace("min runtime", "target", 1)
            raise UsageError(told, remedy=f"{error.remedy}; or {MICRO} for TFLite Micro") from None

    @property
    def is_micro(self) -> bool:
        """Whether it is TFLite Micro."""
        return self.text == MICRO

    @property
    def spoken(self) -> str:
        """Its name in a sentence."""
        if self.is_micro:
            return "TFLite Micro"
        return f"runtime {self.text}" if self.text[0].isdigit() else self.text.replace("litert-", "LiteRT ")

    @property
    def release(self) -> str:
        """The release of tflite-runtime that it is, where one was measured; else empty."""
        return runtime_text(self.runtime) if self.runtime == OLDEST_MEASURED_RUNTIME else ""

    def has(self, name: str, version: int) -> bool:
        """Whether it registers a version of a builtin operator; TFLite Micro never looks at the version."""
        if self.is_micro:
            return name in runtimes.micro_kernels()
        first = runtimes.version_text(name, version)
        return first is not None and runtimes.version_key(first) <= (*self.runtime, 0)

    def lacks(self, operator: Operator) -> str:
        """Returns why it does not compute an operator; empty where it does, as far as is known.

        Of custom operators a TensorFlow Lite release has what a program registers: nothing is said of them.
        What a hybrid kernel reads is told by :func:`tfl_rewrite.weights.state.late_forms`.
        """
        if self.is_micro:
            return micro_obstacle(operator)
        name = operator.code.name
        told = refused(operator, runtimes.refusals(self.runtime).get(name, ()))
        if told is not None:
            return f"{self.spoken} has no {name} {told}"
        if operator.code.custom is not None:
            return ""
        needed = needed_version(operator)
        version = operator.code.version if needed is None else needed
        if self.has(name, version):
            return ""
        known = runtimes.versions().get(name, {})
        if not known:
            return f"no release of the runtime is known to have {name}"
        first = runtimes.version_text(name, version)
        if first is None:
            # Of some versions no release is listed, although all have them.
            return "" if version <= max(known) else f"no release of {name} has version {version}"
        most = runtimes.max_version(name, self.runtime)
        has = f"{name} up to version {most}, and version {version} is needed" if most else f"no {name}"
        return f"{self.spoken} has {has} (first in {first})"


def missing(model: Model, platform: Platform) -> Iterator[tuple[str, Operator, str]]:
    """Yields what a platform does not compute: the place, the operator, and why."""
    for _, operator, place in operators_of(model):
        reason = platform.lacks(operator)
        if reason:
            yield place, operator, reason
