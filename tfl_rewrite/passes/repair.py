"""repair: what keeps a file from being read as it is meant is corrected; what it computes is not touched.

One fix for each fault (:data:`FIXES`), each under the name that ``doctor`` reports it by. A fix applies only
where every runtime that reads the file correctly computes the same before and after; where it cannot be known
what was meant, the place is left as it is and reported. Outputs are equal to the bit. What kernels read past
computes nothing that could be compared, so the original is read in another way then, and outputs are equal
within the tolerance (:meth:`Repair.define`): the weights of a hybrid DEPTHWISE_CONV_2D whose scales are too
few as float32, a bias beside int16 activations with the option that tells its type. A second run finds
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from tfl_rewrite.editing import metadata
from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.reader import misaligned
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operands import lacks_shape, operators_of, recorded_shape
from tfl_rewrite.kernels.reads import lacks_bias, too_high, version_counts, weight_reads
from tfl_rewrite.model.blob import MappedBlob
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.option import TEXTS, check_options, option, unknown
from tfl_rewrite.weights import biases, repairs
from tfl_rewrite.weights.biases import Done

BLOB_ALIGN = 16
"""``force_align`` of ``Buffer.data`` in the schema."""

_INLINE_LIMIT = (1 << 31) - (64 << 20)


@dataclass(frozen=True, slots=True)
class Fix:
    """One fix.

    Attributes:
        name: Of the finding that it corrects.
        summary: What it does.
        asked: Whether it is applied only when it is named.
        apply: Applies it to a model.
    """

    name: str
    summary: str
    asked: bool
    apply: Callable[[Model, Editor], Done]


def stamp_versions(model: Model, editor: Editor) -> Done:
    """Raises operator versions to what the weights need, so that older runtimes refuse the file."""
    done: Done = []
    for read in weight_reads(model):
        needed, found = read.needed_version(), read.operator.code.version
        if needed <= found:
            continue
        editor.stamp(read.operator, needed)
        text = runtimes.version_text(read.name, needed)
        done.append(Edit(f"{read.place} {read.name}", f"version {found} -> {needed} (first in {text})"))
    return done


def add_biases(model: Model, editor: Editor) -> Done:
    """Gives convolutions the bias of zeros that their kernels demand."""
    done: Done = []
    for subgraph, operator, place in operators_of(model):
        if not lacks_bias(operator):
            continue
        output = operator.outputs[0]
        shape = output.shape if output is not None else None
        where = f"{place} {operator.code.name}"
        if not shape or shape[-1] < 1 or len(operator.inputs) < 2 or operator.inputs[1] is None:
            done.append(Skip(where, "how many channels it gives out is not recorded", "unknown-channels"))
            continue
        editor.ensure_bias(subgraph, operator, shape[-1])
        editor.stamp(operator, operator.code.version)
        done.append(Edit(where, f"a bias of {shape[-1]} zeros"))
    return done


def lower_versions(model: Model, editor: Editor, *, known: bool) -> Done:
    """Lowers operator versions to what the features in use need, so that older runtimes take the file.

    Args:
        model: Changed in place.
        editor: Of the model.
        known: Those that a runtime has, or those that none has.
    """
    done: Done = []
    for found in too_high(model):
        old, name = found.code.version, found.code.name
        if (runtimes.version_text(name, old) is not None) is not known:
            continue
        for operator in found.operators:
            editor.stamp(operator, found.needed, exact=True)
        what = f"version {old} -> {found.needed} (first in {runtimes.version_text(name, found.needed)})"
        count = f"{len(found.operators)} x " if len(found.operators) > 1 else f"{found.places[0]} "
        done.append(Edit(f"{count}{name}", what))
    return done


def tell_shapes(model: Model, editor: Editor) -> Done:
    """Tells a RESHAPE the shape that the file records for its output."""
    done: Done = []
    for _, operator, place in operators_of(model):
        if not lacks_shape(operator):
            continue
        where = f"{place} {operator.code.name}"
        shape = recorded_shape(operator.outputs[0] if operator.outputs else None)
        if shape is None or not shape:
            done.append(Skip(where, "the shape of its output is not recorded", "unknown-shape"))
            continue
        editor.set_option(operator, "new_shape", ScalarVector.of(INT32, shape))
        editor.stamp(operator, operator.code.version)
        done.append(Edit(where, f"new_shape {list(shape)}, as recorded for its output"))
    return done


def raise_min_runtime(model: Model, _editor: Editor) -> Done:
    """Makes ``min_runtime_version`` say what the operators need."""
    raised = metadata.raise_min_runtime(model, version_counts(model))
    return [Edit("metadata min_runtime_version", f"{raised[0]} -> {raised[1]}")] if raised else []


def take_in_buffers(model: Model, _editor: Editor) -> Done:
    """Finds buffers outside the FlatBuffer; laying the file out anew takes them in."""
    outside = [buffer for buffer in model.buffers if buffer.outside and buffer.nbytes]
    if not outside:
        return []
    if sum(buffer.nbytes for buffer in model.buffers) > _INLINE_LIMIT:
        return [Skip("buffers", "the constants take over 2 GiB, which a FlatBuffer cannot hold", "too-large")]
    nbytes = sum(buffer.nbytes for buffer in outside)
    return [Edit("buffers", f"{len(outside)} buffers ({nbytes} bytes) taken into the FlatBuffer")]


def align_blobs(model: Model, _editor: Editor) -> Done:
    """Finds constants that lie askew; laying the file out anew aligns them."""
    askew = unaligned(model)
    return [Edit("buffers", f"{askew} constants start on a multiple of {BLOB_ALIGN} now")] if askew else []


def align_vectors(model: Model, _editor: Editor) -> Done:
    """Finds vectors of 8-byte numbers that lie askew; laying the file out anew aligns them."""
    askew = misaligned(model.rest)
    what = "vector starts" if len(askew) == 1 else "vectors start"
    return [Edit("the file", f"{len(askew)} {what} on a multiple of 8 now")] if askew else []


FIXES: tuple[Fix, ...] = (
    Fix(
        "quantized-dimension",
        "points quantized_dimension at the one axis that has as many elements as there are scales",
        False,
        repairs.point_dimensions,
    ),
    Fix(
        "zero-points",
        "repeats a zero point that is the same for all channels, so that there are as many as scales",
        False,
        repairs.count_zero_points,
    ),
    Fix(
        "zero-scale",
        "gives channels and blocks of scale 0 scale 1 and zeros, which are the same values",
        False,
        repairs.replace_zero_scales,
    ),
    Fix(
        "depthwise-scales",
        "spreads the scale of a hybrid depthwise weight over its channels, on axis 3",
        False,
        repairs.spread_depthwise,
    ),
    Fix("missing-bias", "adds the bias of zeros that a convolution's kernel demands", False, add_biases),
    Fix(
        "int16-bias",
        "stores an int32 bias beside int16 activations as int64, or tells the kernel its type",
        False,
        biases.widen_biases,
    ),
    Fix(
        "bias-scale",
        "gives a bias of zeros the scale of its input times that of its weight, where kernels refuse it",
        False,
        partial(biases.scale_zero_biases, refused=True),
    ),
    Fix(
        "zero-bias-scale",
        "gives a bias of zeros the scale of its input times that of its weight",
        False,
        partial(biases.scale_zero_biases, refused=False),
    ),
    Fix("operands", "tells a RESHAPE the shape that is recorded for its output", False, tell_shapes),
    Fix(
        "operator-version",
        "lowers versions that no runtime has to what the operators use",
        False,
        partial(lower_versions, known=False),
    ),
    Fix(
        "version-high",
        "lowers operator versions to what the operators use",
        False,
        partial(lower_versions, known=True),
    ),
    Fix("hybrid-version", "stamps the operator version that the weights need", False, stamp_versions),
    Fix("min-runtime", "makes min_runtime_version say what the operators need", False, raise_min_runtime),
    Fix("offset-buffers", "takes buffers outside the FlatBuffer into it", False, take_in_buffers),
    Fix("misaligned", "starts vectors of 8-byte numbers on a multiple of 8", False, align_vectors),
    Fix("unaligned", "starts every constant on a multiple of 16", True, align_blobs),
)
"""In the order in which they are applied: versions are stamped once operators and scales are settled."""

NAMES = tuple(fix.name for fix in FIXES)
_UNDEFINED = {
    "depthwise-scales": "with these weights as float32",
    "int16-bias": "with its kernels told the type of these biases (quantized_bias_type)",
}
"""Fixes of what the original leaves undefined, and how it is read to compare with."""
_BY_LAYOUT = ("offset-buffers", "misaligned", "unaligned")


def _parted(texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the names in texts that hold one or more each.

    Raises:
        UsageError: There is no repair of that name.
    """
    names = tuple(name.strip() for text in texts for name in text.split(",") if name.strip())
    for name in names:
        if name not in NAMES:
            raise unknown("repair", name, NAMES)
    return names


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair(Pass):
    """Puts right what keeps a file from being read right.

    Puts right what 'tfl-rewrite doctor' finds, where every runtime that reads the file correctly computes the
    same before and after. Outputs stay equal to the bit, or within --min-snr where kernels read past what the
    original gives them; where it does not run, the repaired file is run by itself and the report says so. A
    file with nothing to repair is copied.

    Example:
        >>> from tfl_rewrite.passes import Repair
        >>> report = tfl_rewrite.rewrite("model.tflite", "repaired.tflite", [Repair()])
        >>> report.results[0].idle
        "nothing to repair; 'tfl-rewrite doctor' says what else is worth knowing"
    """

    name: ClassVar[str] = "repair"
    effect: ClassVar[Effect] = Effect.REPAIR
    place: ClassVar[str] = "before all others: they read the model too"

    only: tuple[str, ...] = option(
        (),
        "repair only these findings; repeatable or between commas. Without it: all that can be repaired, but "
        "for 'unaligned'",
        kind=TEXTS.checked_by(_parted),
        metavar="ID,...",
    )

    def __post_init__(self) -> None:
        """Parts names between commas."""
        check_options(self)
        object.__setattr__(self, "only", _parted(self.only))

    @property
    def chosen(self) -> tuple[Fix, ...]:
        """The fixes to apply, in order."""
        if not self.only:
            return tuple(fix for fix in FIXES if not fix.asked)
        return tuple(fix for fix in FIXES if fix.name in self.only)

    def run(self, model: Model, context: Context) -> PassResult:
        """Puts right what can be."""
        editor = Editor(model)
        edits: list[Edit] = []
        skips: list[Skip] = []
        packing = None
        undefined: dict[str, None] = {}
        for fix in self.chosen:
            if fix.name == "min-runtime":
                # What the other fixes stamped counts too.
                editor.finish()
            for item in fix.apply(model, editor):
                if isinstance(item, Skip):
                    skips.append(item)
                    continue
                edits.append(Edit(item.where, f"{fix.name}: {item.what}"))
                if fix.name in _UNDEFINED:
                    undefined[fix.name] = None
                if fix.name in _BY_LAYOUT:
                    packing = Packing(defaults=True)
        editor.finish()
        idle = "" if edits else "nothing to repair; 'tfl-rewrite doctor' says what else is worth knowing"
        return PassResult(
            self.name,
            tuple(edits),
            tuple(skips),
            tuple(editor.notes),
            packing,
            grows=True,
            reading=" and ".join(_UNDEFINED[name] for name in undefined),
            idle=idle,
        )

    def define(self, model: Model, context: Context) -> None:
        """Gives what kernels read past its meaning in another way than this pass does."""
        biases.tell_types(model)
        if repairs.expand_depthwise(model):
            # What else is wrong keeps it from being run.
            self.run(model, context)


def unaligned(model: Model) -> int:
    """Counts constants inside the FlatBuffer that do not start on a multiple of 16."""
    return sum(
        isinstance(buffer.blob, MappedBlob) and not buffer.outside and buffer.blob.offset % BLOB_ALIGN != 0
        for buffer in model.buffers
        if buffer.nbytes
    )
