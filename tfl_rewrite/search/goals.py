"""What a file must keep, and what is to be small."""

from __future__ import annotations

import enum
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.settings import ERROR_BOUNDS, SNR_BOUNDS, Tolerance
from tfl_rewrite.judge.verdict import OutputComparison, Verdict
from tfl_rewrite.kernels.runtimes import Runtime
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.numerics.codecs import Codec
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, left_out
from tfl_rewrite.options.option import (
    NBYTES,
    PATH,
    Kind,
    Role,
    Taken,
    check_options,
    listed,
    made_with,
    option,
    option_of,
    values_of,
)
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.remove_dead import STRIP, STRIPS
from tfl_rewrite.weights.encoding import Encoding
from tfl_rewrite.weights.rounders import Effort

_STEP = 1.0
"""By how many dB a search moves on where what is bounded is not counted in dB."""

FLOATS, ANY = "float", "any"
INTEGERS = ("int8", "mixed", "int16")
"""Activations of :class:`tfl_rewrite.passes.Quantize`, the smallest and fastest first."""


def _encodings(value: object) -> tuple[str, ...]:
    found = listed(value)
    if not found:
        raise ValueError("names no encoding, such as int4:block:32")
    for text in found:
        Encoding.parse(text)
    return found


_ENCODINGS = Kind(_encodings, _encodings)

_NO_LIMIT = 1e9
"""So many seconds and more are no limit; written as ``none``."""


def _above_0(value: object, what: str, most: float) -> float:
    """Returns a number above 0, at most so large; raises a ValueError that says what it is not."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if 0 < found <= most:
        return found
    raise ValueError(f"is no {what}")


def _seconds(value: object) -> float:
    if value == "none":
        return _NO_LIMIT
    return min(_above_0(value, "number of seconds above 0, and not none", sys.float_info.max), _NO_LIMIT)


def _share(value: object) -> float:
    return _above_0(value, "share above 0, 1 at most, such as 0.99", 1.0)


_SECONDS, _SHARE = Kind(_seconds, _seconds), Kind(_share, _share)


class Objective(str, enum.Enum):
    """What is to be small."""

    FILE = "file"
    DOWNLOAD = "download"
    RAM = "ram"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal(JsonData):
    """What a search is to find: the budget, what is to be small, and what is tried.

    Attributes:
        min_snr: Least signal-to-noise ratio of every output, in dB.
        max_error: Largest error of any element of an output.
        min_agreement: Least share of samples with the same largest element, of each output of scores.
        metric: ``module:function``, called as ``function(outputs, reference)`` with dicts of arrays
            ``[samples, ...]`` in a process of its own; larger is better.
        min_metric: Its least value.
        max_nbytes: Largest file; with nothing else, the error is to be as small as it can be.
        objective: What is to be small.
        codec: What a download is compressed with.
        activations: What operators may compute in: ``float``; or ``int8``, ``int16`` or ``mixed``, where they
            have such kernels, with integer weights; ``any`` for whatever of all these comes out best.
        effort, include, exclude, min_runtime: As for :class:`QuantizeWeights`.
        encodings: What is tried for each constant, such as ``int4:block:32``; None for all that the
            objective gains by.
        time_limit: Seconds after which the search ends with the best that it has; None for no limit.
        strip: What is left out besides, as for :class:`Compact`.
        state: A file that measurements are kept in, so that a search can be continued.
        sure: Whether ratios are to hold on as many other samples, most likely; see
            :attr:`OutputComparison.doubt_db`. Otherwise on those at hand.

    Example:
        >>> tfl_rewrite.Goal(min_snr=30, max_nbytes=4_000_000).text()
        'SNR of 30 dB, at most 4,000,000 bytes'
    """

    min_snr: float | None = option(
        None, "least signal-to-noise ratio of every output, in dB", metavar="DB", bounds=SNR_BOUNDS
    )
    max_error: float | None = option(
        None, "largest error of any element of an output", metavar="X", bounds=ERROR_BOUNDS
    )
    min_agreement: float | None = option(
        None,
        "least share of samples whose largest element is the same, of every output of scores, such as 0.99",
        metavar="SHARE",
        kind=_SHARE,
    )
    metric: str | None = left_out(
        option(
            None,
            "your own figure: function(outputs, reference), both dicts of arrays by output name; larger is "
            "better. Called in a process of its own",
            metavar="MODULE:FUNCTION",
        )
    )
    min_metric: float | None = option(None, "its least value", metavar="X", bounds=(-1e300, 1e300))
    max_nbytes: int | None = option(
        None,
        "largest file, such as 5MB; with nothing else, the error is made as small as it can be",
        kind=NBYTES,
        metavar="SIZE",
        bounds=(1, 1 << 60),
        flags=("--max-size",),
    )
    objective: Taken[Objective, str] = option(
        Objective.FILE,
        "what is to be small. file (default): bytes. download: bytes as a store deflates them. ram: weights "
        "in memory, which prefers kernels that read integers. latency: the time of a call on this machine",
        choices=Objective,
    )
    codec: Taken[Codec, str] = option(
        Codec.DEFLATE,
        "with --objective download: what compresses it. deflate (default); zstd, brotli: need those "
        "libraries, extra [codecs]",
        choices=Codec,
    )
    activations: str = left_out(
        option(
            FLOATS,
            "what operators may compute in. float (default): weights alone become integers. int8, int16, "
            "mixed: as for quantize; needs --inputs. any: all of these are tried, and the best file is taken",
            choices=(FLOATS, *INTEGERS, ANY),
        )
    )
    effort: Taken[Effort, str] = left_out(
        option_of(QuantizeWeights, "effort", "as for quantize-weights (default: balanced)")
    )
    encodings: tuple[str, ...] | None = left_out(
        option(
            None,
            "what to try for each constant, between commas (default: all that quantize-weights knows and "
            "--min-runtime allows)",
            kind=_ENCODINGS,
            metavar="ENCODING,...",
        )
    )
    include: tuple[str, ...] = left_out(option_of(QuantizeWeights, "include", "as for quantize-weights"))
    exclude: tuple[str, ...] = left_out(option_of(QuantizeWeights, "exclude", "as for quantize-weights"))
    min_runtime: Taken[Runtime, str] = left_out(
        option_of(QuantizeWeights, "min_runtime", "as for quantize-weights (default: the newest)")
    )
    time_limit: float | None = left_out(
        option(
            None,
            "seconds after which the search ends with the best that it has, or none. Files whose weights "
            "have one encoding are tried all the same. A search that is not ended by it gives the same file "
            "each time",
            metavar="S",
            kind=_SECONDS,
        )
    )
    strip: tuple[str, ...] = left_out(option((), STRIP, kind=STRIPS, metavar="WHAT,..."))
    state: str | os.PathLike[str] | None = left_out(
        option(
            None,
            "keep measurements in this file; a search that was stopped goes on from it. It is read and "
            "written; one of another search, or of other inputs, is replaced with --force only",
            kind=PATH,
            metavar="FILE.json",
            role=Role.KEEP,
        )
    )
    sure: bool = field(default=True, metadata=LEFT_OUT)

    def __post_init__(self) -> None:
        """Refuses budgets that cannot be.

        Raises:
            UsageError: Nothing is given, a metric without its bound, a codec without downloads, or a value is
                out of its range.
        """
        check_options(self)
        if self.time_limit == _NO_LIMIT:
            object.__setattr__(self, "time_limit", None)
        if (self.min_metric is None) != (self.metric is None):
            raise UsageError(
                "a metric and its bound go together", remedy="give both --metric and --min-metric"
            )
        if self.codec is not Codec.DEFLATE and self.objective is not Objective.DOWNLOAD:
            raise UsageError(
                f"--codec {self.codec.value} has no use here: only downloads are compressed",
                remedy="give --objective download, or leave out --codec",
            )
        if not self.bounds_error and self.max_nbytes is None:
            raise UsageError(
                "no budget", remedy="give --min-snr, --max-error, --min-agreement, --metric or --max-size"
            )

    @property
    def weights(self) -> QuantizeWeights:
        """Which constants are stored otherwise, and how they are rounded; how is what is searched."""
        return made_with(QuantizeWeights, values_of(self))

    @property
    def bounds_error(self) -> bool:
        """Whether there is a bound on the error."""
        return any(
            bound is not None for bound in (self.min_snr, self.max_error, self.min_agreement, self.min_metric)
        )

    @property
    def in_db(self) -> bool:
        """Whether all that is missing can be told in dB."""
        return self.min_agreement is None and self.min_metric is None

    @property
    def tolerance(self) -> Tolerance:
        """What the judge measures with.

        Without a ratio the user's own figure counts, or nothing does but the size: classes are not judged.
        """
        share = Tolerance().min_agreement if self.min_snr is not None else 0.0
        return Tolerance(min_snr=self.min_snr, max_abs_error=self.max_error, min_agreement=share)

    def shortfall(
        self,
        verdict: Verdict,
        metric: float | None = None,
        *,
        chance: Callable[[OutputComparison], float] = attrgetter("doubt_db"),
    ) -> float:
        """Returns by how much as many other samples may miss the bounds on the error; at most 0 if not.

        In dB where dB are what is bounded; any positive number elsewhere.

        Args:
            verdict: On some samples.
            metric: The user's own figure on those.
            chance: Tells of an output how much of its ratio may be chance, in dB, which is taken off.
        """
        if not verdict.measured:
            return math.inf
        if any(item.nonfinite_mismatches or item.rule == "interface" for item in verdict.outputs):
            return math.inf
        missing = [-math.inf, *(item.short_db for item in verdict.outputs if not item.passed)]
        if self.min_snr is not None:
            # What is judged by another rule is no worse than it may be.
            kept = [
                item.snr_db - (chance(item) if self.sure else 0.0)
                for item in verdict.outputs
                if item.snr_db is not None and item.rule == "snr"
            ]
            missing.append(self.min_snr - min(kept, default=math.inf))
            # A channel may be nearer to its bound than the whole output is.
            least = self.tolerance.min_channel_snr or 0.0
            missing += [
                least - item.channel.snr_db
                for item in verdict.outputs
                if item.channel is not None and item.rule == "snr"
            ]
        if self.max_error is not None:
            largest = max((item.max_abs_error or 0.0 for item in verdict.outputs), default=0.0)
            missing.append(_ratio_db(largest, self.max_error))
        if self.min_agreement is not None:
            shares = [item.argmax_agreement for item in verdict.outputs if item.argmax_agreement is not None]
            lowest = min(shares, default=1.0)
            missing.append(_STEP if lowest < self.min_agreement else -_STEP)
        if self.min_metric is not None:
            missing.append(_STEP if metric is None or not metric >= self.min_metric else -_STEP)
        return max(missing)

    def text(self) -> str:
        """The bounds, for people."""
        words = []
        if self.min_snr is not None:
            words.append(f"SNR of {self.min_snr:g} dB")
        if self.max_error is not None:
            words.append(f"error of at most {self.max_error:g}")
        if self.min_agreement is not None:
            words.append(f"argmax agreement of {self.min_agreement:.2%}")
        if self.min_metric is not None:
            words.append(f"metric {self.metric} of at least {self.min_metric:g}")
        if self.max_nbytes is not None:
            words.append(f"at most {self.max_nbytes:,} bytes")
        return ", ".join(words)


def _ratio_db(found: float, allowed: float) -> float:
    """Returns by how many dB an error is larger than it may be."""
    if found <= allowed:
        return -20.0 * math.log10(allowed / found) if found > 0 and allowed > 0 else -100.0
    return 20.0 * math.log10(found / allowed) if allowed > 0 else 100.0


def ram_nbytes(model: Model) -> int:
    """Returns about how many bytes a model takes while it runs.

    Constants; what a DEQUANTIZE makes of them, which stays; and of what operators give to one another as much
    as is needed at once, where nothing lies twice. What kernels take for themselves is not counted.
    """
    fixed = sum(buffer.nbytes for buffer in model.buffers)
    most = 0
    for subgraph in model.subgraphs:
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        tensors = {id(tensor): tensor for tensor in subgraph.tensors}
        for tensor in subgraph.inputs:
            first[id(tensor)] = last[id(tensor)] = -1
        for number, operator in enumerate(subgraph.operators):
            stays = row_of(operator) is DEQUANTIZE and operator.inputs[0] is not None
            if stays and operator.inputs[0] is not None and operator.inputs[0].is_constant:
                fixed += sum(_nbytes(tensor) for tensor in operator.outputs if tensor is not None)
                continue
            for item in (*operator.inputs, *operator.outputs):
                if item is not None and not item.is_constant and id(item) in tensors:
                    first.setdefault(id(item), number)
                    last[id(item)] = number
        for tensor in subgraph.outputs:
            last[id(tensor)] = len(subgraph.operators)
        for number in range(len(subgraph.operators)):
            held = (key for key, begin in first.items() if begin <= number <= last[key])
            most = max(most, sum(_nbytes(tensors[key]) for key in held))
    return fixed + most


def _nbytes(tensor: Tensor) -> int:
    row = dtypes.BY_VALUE.get(tensor.dtype)
    return 0 if row is None else row.nbytes(tensor.elements)
