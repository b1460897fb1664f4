"""Several judges of one rewrite: each runtime with each resolver. The worst verdict counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.compare import Tolerance
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.kernels import differences
from tfl_rewrite.judge.reference import PathLike
from tfl_rewrite.judge.verdict import Verdict, combined


class Panel:
    """Judges that work one after another, each with processes of its own.

    Use it as a context manager, or call `close`.

    Args:
        before: The original.
        runtimes: ``litert``, ``tensorflow``, ``python:PATH`` or ``python:PATH:RUNTIME``; what is named
            twice judges once.
        resolvers: ``default``, ``builtin`` or ``reference``; without any, see `Judge`.
        tolerance: Default of `compare`.
        progress: Called with what is being done.
        options: See `Judge`.

    Raises:
        UsageError: See `Judge`.
    """

    def __init__(
        self,
        before: PathLike,
        *,
        runtimes: Sequence[str] = ("litert",),
        resolvers: Sequence[str] = (),
        tolerance: Tolerance | None = None,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        if not runtimes:
            raise UsageError("no runtime to judge with", remedy="name one, such as litert")
        self._tolerance = tolerance or Tolerance()
        self._progress = progress
        kernels = tuple(dict.fromkeys(resolvers))
        self._judges: list[tuple[str, Judge]] = []
        try:
            for runtime in dict.fromkeys(runtimes):
                for resolver in kernels or (None,):
                    judge = Judge(
                        before,
                        runtime=runtime,
                        resolver=resolver,
                        tolerance=tolerance,
                        kernels=kernels if len(kernels) > 1 else (),
                        **options,
                    )
                    name = runtime if resolver is None else f"{runtime}, {resolver} kernels"
                    self._judges.append((name, judge))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Panel:
        self._judges[0][1].__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        finally:
            self._judges[0][1].__exit__(kind, error, trace)

    def close(self) -> None:
        """Ends all processes and removes the temporary folders."""
        for _, judge in self._judges:
            judge.close()

    def compare(self, after: PathLike, *, tolerance: Tolerance | None = None, repeat: bool = True) -> Verdict:
        """Has every judge judge one rewritten file (see `Judge.compare`).

        Returns:
            The worst verdict, with those of all judges in it: a failure that one of them sees is a failure,
            and a file that one of them cannot judge is unverified, unless it failed.

        Raises:
            UsageError: See `Judge.compare`.
        """
        verdicts = []
        for number, (name, judge) in enumerate(self._judges, 1):
            if self._progress is not None:
                which = "" if len(self._judges) == 1 else f" {number} of {len(self._judges)}, {name}"
                self._progress(f"verifying{which}")
            verdicts.append(judge.compare(after, tolerance=tolerance, repeat=repeat))
            if len(self._judges) > 1:
                # Their memory is the next one's.
                judge.rest()
        return combined(verdicts, self._differences(tolerance or self._tolerance))

    def judge_of(self, verdict: Verdict) -> Judge:
        """The judge of the worst verdict that `compare` returned."""
        for (_, judge), one in zip(self._judges, verdict.each, strict=False):
            if one.judge == verdict.judge and one.status == verdict.status:
                return judge
        return self._judges[0][1]

    def _differences(self, tolerance: Tolerance) -> list[str]:
        """Where the original differs from itself between the judges."""
        settled = [judge.settled for _, judge in self._judges]
        known = [reference for reference in settled if reference is not None]
        return [note for other in known[1:] for note in differences(known[0], other, tolerance)]


def several(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One word, some, or none, as a tuple."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)
