"""How files are run and compared: the one place of inputs, runtimes, limits and tolerances."""

from __future__ import annotations

import math
import os
from dataclasses import replace

from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.counterparts import Counterparts
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.option import NBYTES, PATHS, Role, check_options, option, options_within

CHANNEL_SLACK_DB = 15.0
"""By how much less than a whole output one channel of it may keep.

Channels are weaker and stronger, and few samples tell little of one: of 27 real models in up to four
encodings, judged on real inputs, none that keeps 25 dB as a whole has a channel that is 15 dB worse than
20 dB; one that drowned beside stronger channels keeps 0 dB or less.
"""
SNR_BOUNDS = (-1000.0, 1000.0)
ERROR_BOUNDS = (0.0, 1e300)
MODES = ("auto", "require", "off")
RESOLVERS = ("default", "builtin", "reference")
OLD_RUNTIME_PYTHON = "TFL_REWRITE_OLD_RUNTIME_PYTHON"
"""What in the environment names the Python that has tflite-runtime 2.14, for files that are made for it."""
OF_TWO_FILES = ("exact", "retyped")
"""Options for two files that are there already; of what a pass makes, the pass knows what it promises."""
LEAST_MEMORY_NBYTES = 64 << 20
"""Python, numpy and an interpreter without any model take nearly that."""


@frozen(kw_only=True)
class Tolerance:
    """What counts as equal enough. Every rule is applied to each output on its own, over all samples.

    Attributes:
        exact: Every byte equal; the other rules are not consulted. For rewrites that change no number.
        min_snr: Least signal-to-noise ratio in dB, ``10 log10(sum ref^2 / sum (ref - new)^2)``: the SQNR by
            which Lin, Talathi and Annapureddy (Fixed Point Quantization of Deep Convolutional Networks, ICML
            2016) relate bit widths to accuracy. 20 dB is an error of a tenth in amplitude. None: not judged.
            Each channel must keep its own variation at `CHANNEL_SLACK_DB` less, and at 0 dB at least.
        max_abs_error: Largest error of any element, in the unit of the output (a quantized output counts in
            real values, not steps). In addition to the other rules.
        min_agreement: Least share of rows of the last axis whose largest element stays the largest, where an
            output may be scores over classes; and least share of equal elements of integer and bool outputs
            without quantization, where a distance means nothing. Of fewer than 10 one may differ, unless
            this is 1.
        few_channels: Whether a channel may rest of which two or three values were seen: by chance they are
            as good as equal in one of many channels. Only where more samples are judged besides.

    Raises:
        UsageError: A bound is none, or out of its range.

    Example:
        >>> strict = tfl_rewrite.Tolerance(min_snr=40, min_agreement=1)
        >>> strict.min_channel_snr
        25.0
    """

    exact: bool = option(False, "outputs must be equal to the bit")
    min_snr: float | None = option(
        20.0,
        "least signal-to-noise ratio of every output, in dB",
        metavar="DB",
        bounds=SNR_BOUNDS,
    )
    min_agreement: float = option(
        0.9,
        "least share of samples (in a segmentation, of positions) whose largest score stays the largest, "
        "where an output may be scores over classes; of fewer than 10 one may differ",
        metavar="SHARE",
        bounds=(0, 1),
    )
    max_abs_error: float | None = option(
        None, "largest error of any element of an output", metavar="X", bounds=ERROR_BOUNDS
    )
    few_channels: bool = False

    def __post_init__(self) -> None:
        """Refuses values that would let everything or nothing pass by accident."""
        check_options(self)

    @property
    def min_channel_snr(self) -> float | None:
        """Least ratio of each channel, in dB; None where no ratio is judged."""
        return None if self.min_snr is None else max(0.0, self.min_snr - CHANNEL_SLACK_DB)

    def may_differ(self, count: int) -> int:
        """How many of ``count`` rows or samples may differ."""
        share = 1 - self.min_agreement
        # 0.1 of 10 is 1, whatever the last bit of 1 - 0.9 says.
        return max(int(share * count + 1e-9), int(share > 0 and 3 <= count < 10))


FOLDED = Tolerance(min_snr=120.0, min_agreement=1.0)
"""What the same computation in another order of rounding may change.

A float32 operation is off by at most 2^-24 of its result, 144 dB; of what folding did to real models, the
least that an output kept was 127 dB. A wrong constant or a factor in the wrong place keeps far less.
"""

INSIDE = Tolerance(min_snr=None, min_agreement=0.0)
"""Before a last SOFTMAX and the like only the noise counts."""


@frozen(kw_only=True)
class Judging:
    """How rewritten files are run and compared with the original.

    Attributes:
        mode: ``auto``: run both files; if the original itself cannot run, say so and publish a file that was
            checked structurally. ``require``: refuse then. ``off``: do not run anything.
        inputs: Real inputs: ``.npz`` files, pictures, sound, or folders of them; without any, they are made.
            Where a pass is fitted to them, a quarter of the samples is held out, two at least, and judges.
        holdout: Real inputs that nothing is fitted to; where there are some, they alone judge.
        input_range: What pixels 0 and 255, or samples of -1 and 1, become; None for what the metadata says.
        input_layout: The axes of an input that takes media by letter, such as ``NCHW``, or ``NT`` for sound.
        sample_rate: What sound is resampled to, in Hz.
        samples: How many are made for each entry point.
        seed: Of the made ones.
        tolerance: What a lossy pass may change. Passes that promise equal numbers are judged bit by bit;
            those that compute the same in another order, by `FOLDED`.
        runtime: ``litert``, ``tensorflow``, ``tflm``, ``python:PATH`` or ``python:PATH:RUNTIME``; or several
            of them.
        resolver: ``default`` (XNNPACK), ``builtin`` or ``reference`` kernels; or several. Each runtime judges
            with each; the worst verdict counts. Without any, the default ones, or the built-in ones if the
            original runs with no others.
        independent: Each sample meets a new interpreter. Otherwise all are one sequence in one interpreter,
            and what a model keeps in variables carries over.
        timeout: Seconds for each run of a file: opening, allocating and all samples.
        memory_limit: Bytes, or text such as ``4GB``, that the interpreters of both files may take together;
            None for four fifths of the machine's. One of them that takes more is ended.
        threads: Of each interpreter.
        implied: Resolvers that judge where ``resolver`` names none, each where the original runs with it. A
            file passes only where the kernels that judge agree
            (:func:`tfl_rewrite.judge.agreement.agreed`). For what is computed in integers.
        agreeing: Whether they have to agree beyond that. Where the user said what outputs must keep, and they
            keep it with each, a note says where they do not.
        retyped: Whether inputs and outputs may have other types than those of the original, as was asked for:
            both files are compared in real values then.
        counterparts: Where the rewritten file was asked to have other names or signatures: which entry point
            of the original computes what each of its own does
            (:mod:`tfl_rewrite.judge.counterparts`); else empty.
        blame: Whether to run both files operator by operator as well, after the verdict.
        rescue: Whether, after a failure, the constants that did the damage are stored finer, or operators
            stay float that were to compute in integers, so that the file passes; otherwise it is refused.
        blame_seconds: How long to look for those constants where the file is refused; it is only told then.

    Raises:
        UsageError: A value is of another kind or out of bounds.

    Example:
        >>> judging = tfl_rewrite.Judging(
        ...     inputs=("inputs.npz",), tolerance=tfl_rewrite.Tolerance(min_snr=30), resolver=("builtin",)
        ... )
        >>> judging.mode
        'auto'
    """

    mode: str = option(
        "auto",
        "auto (default): run both files; if IN itself cannot run, say UNVERIFIED and still write a file "
        "that was checked structurally. require: refuse then. off: run nothing",
        choices=MODES,
        flags=("--verify",),
    )
    inputs: tuple[str | os.PathLike[str], ...] = option(
        (),
        "real inputs to run with: a .npz (one array per input name, first axis = samples), a picture, a "
        "sound file, or a folder of such; repeatable. Without it, seeded samples are made",
        kind=PATHS,
        metavar="PATH",
        role=Role.READ,
    )
    holdout: tuple[str | os.PathLike[str], ...] = option(
        (),
        "real inputs that nothing is fitted to and that alone judge OUT; repeatable. Without it: a "
        "quarter of the samples of --inputs, two at least, where something is fitted to them, else all",
        kind=PATHS,
        metavar="PATH",
        role=Role.READ,
    )
    input_range: tuple[float, float] | None = option(
        None,
        "what pixels 0 and 255 (or sound at full scale) become; default: as the metadata of the model "
        "says, else -1,1, and raw pixels for 8-bit inputs",
        metavar="LO,HI",
    )
    input_layout: str | None = option(
        None,
        "axes of an input that takes pictures or sound, such as NHWC, NCHW, HWC or NT (T: time); "
        "default: told from the sizes",
        metavar="AXES",
    )
    sample_rate: int | None = option(
        None,
        "resample sound to this rate in Hz; default: as the metadata of the model says, else as the "
        "files are",
        metavar="HZ",
        bounds=(1000, 768_000),
    )
    samples: int = option(4, "how many samples are made", metavar="N", bounds=(1, 10_000))
    seed: int = option(0, "seed of the made samples", metavar="S", bounds=(0, (1 << 63) - 1))
    tolerance: Tolerance = options_within(Tolerance)
    runtime: tuple[str, ...] = option(
        ("litert",),
        "which interpreter judges: litert (default), tensorflow, tflm (TFLite Micro), or python:PATH for "
        "the one that another Python installation has (tflite-runtime, a vendor's build): the first that "
        "runs the original, or the one named by python:PATH:litert, :tflite_runtime or :tensorflow; "
        "repeatable: each one judges, and the worst verdict counts",
        metavar="NAME",
        role=Role.READ_RUNTIME,
    )
    resolver: tuple[str, ...] = option(
        (),
        "which of its kernels run both files: default (XNNPACK), builtin (optimized, no delegate) or "
        "reference (slow); repeatable: each runtime judges with each. Without it: default, or builtin if the "
        "original runs with nothing else",
        choices=RESOLVERS,
    )
    independent: bool = option(
        False,
        "run each sample in a new interpreter. Otherwise all samples are one sequence, in order: what a "
        "model keeps in variables carries over",
    )
    timeout: float = option(600.0, "seconds for each run of a file", metavar="S", bounds=(0.001, 1e6))
    memory_limit: int | None = option(
        None,
        "memory that the interpreters of both files may take together, such as 4GB; one that takes more "
        "is ended (default: 80 % of the machine's)",
        kind=NBYTES,
        metavar="SIZE",
        bounds=(LEAST_MEMORY_NBYTES, 1 << 60),
    )
    threads: int = 1
    implied: tuple[str, ...] = ()
    agreeing: bool = True
    retyped: bool = option(
        False,
        "inputs and outputs may have other types than those of BEFORE, such as int8 for float32 (quantize "
        "--io): real values are compared",
    )
    counterparts: Counterparts = ()
    blame: bool = option(
        False,
        "after the verdict, run both files again with all tensors kept, and print where the error "
        "enters and grows, operator by operator",
    )
    rescue: bool = option(
        True,
        "refuse a result that fails. Without this, the constants that did the damage are stored finer "
        "(int8 behind DEQUANTIZE, then float16, then as they were) until the outputs pass, and operators "
        "that 'quantize' makes integer stay float",
    )
    blame_seconds: float = option(
        5.0,
        "after a failure with --no-rescue, how long to look for the constants that did it, to name them",
        metavar="S",
        bounds=(0, 1e6),
    )

    def __post_init__(self) -> None:
        """Refuses what cannot be run with."""
        check_options(self)
        if not self.runtime:
            raise UsageError("no runtime to judge with", remedy="name one, such as litert")
        if not 1 <= self.threads <= 1024:
            raise UsageError(f"threads is {self.threads}", remedy="give 1 or more, 1,024 at most")
        if self.input_layout is not None:
            object.__setattr__(self, "input_layout", self.input_layout.upper())
            if len(set(self.input_layout)) < len(self.input_layout) or not set(self.input_layout) <= set(
                "NHWCT"
            ):
                raise UsageError(
                    f"input layout {self.input_layout!a}",
                    remedy="name each axis once: N batch, H, W, C channels, T time, such as NHWC",
                )
        if self.input_range is not None and (
            not all(map(math.isfinite, self.input_range)) or self.input_range[0] == self.input_range[1]
        ):
            low, high = self.input_range
            raise UsageError(f"input range {low:g},{high:g}", remedy="give two different numbers")

    @property
    def judging_inputs(self) -> tuple[str | os.PathLike[str], ...]:
        """The real inputs that files are judged with."""
        return self.holdout or self.inputs

    @property
    def for_judges(self) -> Judging:
        """The same, with the inputs that files are judged with as its only ones."""
        return replace(self, inputs=self.judging_inputs, holdout=())

    @property
    def on_old_runtime(self) -> Judging:
        """The same, with the old runtime that the environment names, unless one was asked for by its path."""
        python = os.environ.get(OLD_RUNTIME_PYTHON)
        if not python or any(name.startswith("python:") for name in self.runtime):
            return self
        return replace(self, runtime=(*self.runtime, f"python:{python}"))

    @property
    def here(self) -> Judging:
        """The same, with the runtimes that have no path of their own: those that run originals.

        For files that are made for another runtime, which the others are then (:attr:`elsewhere`).
        """
        kept = tuple(name for name in self.runtime if name not in self.elsewhere)
        return replace(self, runtime=kept or ("litert",))

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """The runtimes that were named by a path."""
        return tuple(name for name in self.runtime if name.startswith("python:"))

    @property
    def exactly(self) -> Judging:
        """The same, with a tolerance that allows no difference."""
        return replace(self, tolerance=Tolerance(exact=True))

    @property
    def folded(self) -> Judging:
        """The same, with the tolerance for what is computed in another order."""
        return replace(self, tolerance=FOLDED)
