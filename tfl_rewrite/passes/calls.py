"""The calls that a program makes; the command line is built on the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tfl_rewrite.editing.base import Pass, PassResult, run_passes
from tfl_rewrite.errors import UsageError, check_number, number_text, whole_number
from tfl_rewrite.kernels import operators, runtimes
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.patterns import Pattern, compile_all
from tfl_rewrite.passes.compact import Compact
from tfl_rewrite.passes.cut import Cut
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.dequantize import Dequantize
from tfl_rewrite.passes.quantize_weights import QuantizeWeights, Scheme
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.passes.repair import Repair
from tfl_rewrite.passes.round_weights import (
    LARGEST_STEPS,
    LEAST_ELEMENTS,
    STEPS,
    Granularity,
    RoundWeights,
)
from tfl_rewrite.passes.strip import Strip, Wanted
from tfl_rewrite.weights.candidates import Selection
from tfl_rewrite.weights.encoding import Encoding, forms
from tfl_rewrite.weights.recipe import Recipe
from tfl_rewrite.weights.rounders import Effort


def quantize_weights_pass(
    *,
    dtype: str = "int8",
    scheme: str = "auto",
    granularity: str = "channel",
    map: str | None = None,
    min_elements: int | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    keep_first_last: bool = False,
    min_runtime: str | None = None,
    effort: str = "balanced",
    bias_correction: bool = True,
) -> QuantizeWeights:
    """Makes the weight pass from plain values.

    Args:
        dtype: ``int8``, ``int6`` (stored as an int4 and an int2 that add up), ``int4``, ``int2``,
            ``float16``, or ``float32`` to keep what ``map`` names not.
        scheme: ``auto``, ``hybrid`` or ``dequantize``.
        granularity: ``channel``, ``tensor``, or ``block:32``, ``block:64``, ``block:128``.
        map: Rules ``REGEX=ENCODING,...``, or a path ``*.toml``; the first that matches a constant decides
            (:class:`tfl_rewrite.weights.recipe.Recipe`).
        min_elements: Smaller constants stay; by default 1,024, and fewer for the weights of small models.
        include: Regular expressions, searched in tensor names and operator types; if any is given, only
            what matches one is rewritten.
        exclude: The same; what matches stays.
        keep_first_last: Keep the weights of the first and the last weighted operator.
        min_runtime: Oldest TensorFlow Lite release that must compute the file, such as ``2.14``.
        effort: ``fast``: scales that cover the largest value, nearest integers. ``balanced``: scales of least
            squared error and, where :func:`tfl_rewrite.rewrite` is given real inputs, integers for what the
            weights are multiplied with. ``best``: weight by weight, each for what it meets behind the others.
        bias_correction: Whether biases take back what rounding does to mean outputs; needs real inputs.

    Raises:
        UsageError: A value is not one of those.
    """
    if min_elements is not None:
        check_number("min_elements", min_elements)
    runtime = runtimes.parse_runtime(min_runtime)
    diligence = _member(Effort, effort, "effort")
    encoding = _encoding(dtype, granularity)
    recipe = Recipe.parse(map, default=replace(encoding, form=Encoding().form)) if map is not None else None
    for wanted in [encoding, *(rule.encoding for rule in (recipe.rules if recipe is not None else ()))]:
        check_encoding(wanted, runtime)
    return QuantizeWeights(
        scheme=_member(Scheme, scheme, "scheme"),
        granularity=encoding.granularity,
        selection=Selection(min_elements, *_selecting(include, exclude), keep_first_last),
        min_runtime=runtime,
        encoding=encoding,
        assignment=recipe,
        effort=diligence,
        correct_bias=bias_correction,
    )


def _selecting(
    include: Iterable[str], exclude: Iterable[str]
) -> tuple[tuple[Pattern, ...], tuple[Pattern, ...]]:
    """Compiles what is to be changed, and what is to stay."""
    wanted = _texts(include)
    made = compile_all([*wanted, *_texts(exclude)])
    return made[: len(wanted)], made[len(wanted) :]


def _encoding(dtype: str, granularity: str) -> Encoding:
    kind = forms().get(dtype)
    if kind is None:
        raise UsageError(f"dtype {dtype!r} is unknown", remedy=f"use one of {', '.join(forms())}")
    if not kind.is_integer:
        return Encoding(kind)
    words = granularity.split(":")
    if words[0] == "block" and len(words) == 2 and (size := whole_number(words[1])) is not None:
        return Encoding(kind, operators.Granularity.BLOCK, size)
    if granularity not in ("channel", "tensor"):
        raise UsageError(
            f"granularity {granularity!r} is unknown",
            remedy="use one of channel, tensor, block:32, block:64, block:128",
        )
    return Encoding(kind, operators.Granularity(granularity))


def check_encoding(encoding: Encoding, runtime: runtimes.Runtime) -> None:
    """Refuses an encoding that no constant could have on a runtime.

    Raises:
        UsageError: Names the first runtime that has it.
    """
    first = encoding.form.first_runtime
    if runtime < first:
        raise UsageError(
            f"{encoding.text} needs runtime {first[0]}.{first[1]} or newer, and {runtime[0]}.{runtime[1]} "
            "is asked for",
            remedy="use int8, or a newer --min-runtime",
        )


def quantize_weights(model: Model, **options: Any) -> PassResult:
    """Stores the large float constants of a model smaller.

    Nothing is verified here; :func:`tfl_rewrite.rewrite` does that.

    Args:
        model: Changed in place.
        **options: As for :func:`quantize_weights_pass`.

    Returns:
        What became of every float constant.
    """
    return run_passes(model, [quantize_weights_pass(**options)])[0]


def dequantize_pass() -> Dequantize:
    """Makes the pass that turns integer and float16 weights back into float32."""
    return Dequantize()


def dequantize(model: Model) -> PassResult:
    """Turns integer and float16 weights back into float32, in place. Nothing is verified here.

    Args:
        model: Changed in place.
    """
    return run_passes(model, [dequantize_pass()])[0]


def round_weights_pass(
    *,
    steps: int | None = None,
    granularity: str = "auto",
    int8: bool = False,
    min_elements: int = LEAST_ELEMENTS,
    effort: str = "balanced",
) -> RoundWeights:
    """Makes the rounding pass from plain values.

    Args:
        steps: At most so many steps between the smallest and the largest value of a channel or tensor; by
            default 256.
        granularity: ``auto``, ``channel`` or ``tensor``.
        int8: Round int8 constants too.
        min_elements: Smaller constants stay.
        effort: ``balanced``: where :func:`tfl_rewrite.rewrite` is given real inputs, levels are chosen for
            what the weights are multiplied with. ``fast``: they never are.

    Raises:
        UsageError: A value is not one of those.
    """
    diligence = _member(Effort, effort, "effort")
    if diligence is Effort.BEST:
        raise UsageError("effort best is for quantize-weights", remedy="use balanced or fast")
    if steps is not None and not 1 <= steps <= LARGEST_STEPS:
        raise UsageError(f"steps is {number_text(steps)}", remedy=f"give 1 to {LARGEST_STEPS}")
    check_number("min_elements", min_elements)
    kind = _member(Granularity, granularity, "granularity")
    return RoundWeights(STEPS if steps is None else steps, kind, int8, min_elements, effort=diligence)


def round_weights(model: Model, **options: Any) -> PassResult:
    """Rounds the constants of a model to values that compress well.

    Nothing is verified here; :func:`tfl_rewrite.rewrite` does that.

    Args:
        model: Changed in place.
        **options: As for :func:`round_weights_pass`.

    Returns:
        What became of every constant, with its deflated bytes before and after.

    Raises:
        UsageError: A value is not one that :func:`round_weights_pass` takes.
    """
    return run_passes(model, [round_weights_pass(**options)])[0]


def remove_dead_passes(
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    signature: str | None = None,
    strip: Iterable[str] = (),
    pure_custom: Iterable[str] = (),
) -> list[Pass]:
    """Makes the passes of ``remove-dead`` from plain values.

    Args:
        inputs: Tensors of a subgraph that become its inputs, in this order: names of tensors, or of arguments
            of a signature, or ``#N`` for the tensor of that index; None to keep them.
        outputs: The same, for the outputs.
        signature: Key of a signature whose subgraph is cut; None for the one that has the names.
        strip: What else to drop: ``names``, ``min-max``, ``metadata:NAME``.
        pure_custom: Names of custom operators that only compute.

    Raises:
        UsageError: A value is not one of those.
    """
    made: list[Pass] = []
    if inputs is not None or outputs is not None:
        made.append(
            Cut(
                None if inputs is None else _texts(inputs),
                None if outputs is None else _texts(outputs),
                signature,
            )
        )
    elif signature is not None:
        raise UsageError("a signature says where to cut", remedy="name inputs or outputs too")
    return [*made, *_strip_passes(strip), RemoveDead(frozenset(_texts(pure_custom)))]


def remove_dead(model: Model, **options: Any) -> list[PassResult]:
    """Removes what no output needs, in place. Nothing is verified here.

    Args:
        model: Changed in place.
        **options: As for :func:`remove_dead_passes`.

    Returns:
        One result for each pass: ``cut`` and ``strip`` where asked for, and ``remove-dead``.

    Raises:
        UsageError: A name is unknown or ambiguous, or the outputs do not follow from the inputs.
        UnsupportedError: Metadata refers to what would move; the model is changed in part then.
    """
    return run_passes(model, remove_dead_passes(**options))


def dedup_pass(*, pure_custom: Iterable[str] = ()) -> Dedup:
    """Makes the pass that merges what is there twice.

    Args:
        pure_custom: Names of custom operators that only compute.
    """
    return Dedup(frozenset(_texts(pure_custom)))


def dedup(model: Model, **options: Any) -> PassResult:
    """Merges equal constants and equal operators, in place. Nothing is verified here.

    Args:
        model: Changed in place.
        **options: As for :func:`dedup_pass`.

    Returns:
        What was merged.

    Raises:
        UnsupportedError: Metadata refers to what would move.
    """
    return run_passes(model, [dedup_pass(**options)])[0]


def compact_passes(*, strip: Iterable[str] = (), align: int = 16) -> list[Pass]:
    """Makes the passes of ``compact`` from plain values.

    Args:
        strip: What else to drop: ``names``, ``min-max``, ``metadata:NAME``.
        align: Constants of at least this many bytes start on a multiple of it in the file: a power of two
            from 16 to 65,536.

    Raises:
        UsageError: A value is not one of those.
    """
    return [*_strip_passes(strip), Compact(align)]


def compact(model: Model, **options: Any) -> list[PassResult]:
    """Takes out what says nothing, in place. Nothing is verified here.

    Most is won by laying the file out anew: pass the ``packing`` of the last result to
    :func:`tfl_rewrite.save`.

    Args:
        model: Changed in place.
        **options: As for :func:`compact_passes`.

    Returns:
        One result for each pass: ``strip`` where asked for, and ``compact``.

    Raises:
        UsageError: A value is not one that :func:`compact_passes` takes.
    """
    return run_passes(model, compact_passes(**options))


def repair_pass(*, only: Iterable[str] = ()) -> Repair:
    """Makes the pass that puts right what ``doctor`` finds.

    Args:
        only: Names of findings; none for all that can be repaired and need not be asked for.

    Raises:
        UsageError: A name is none of those.
    """
    return Repair(_texts(only))


def _texts(texts: Iterable[str]) -> list[str]:
    """Returns them as a list; a text alone is one of them, not its letters."""
    return [texts] if isinstance(texts, str) else list(texts)


def _strip_passes(words: Iterable[str]) -> list[Strip]:
    wanted = _texts(words)
    return [Strip(Wanted.parse(wanted))] if wanted else []


def _member(kind: Any, value: str, what: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(item.value for item in kind)
        raise UsageError(f"{what} {value!r} is unknown", remedy=f"use one of {choices}") from None
