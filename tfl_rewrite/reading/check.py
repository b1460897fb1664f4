"""Whether a file is structurally sound; of its own, since it loads nothing that computes."""

from __future__ import annotations

from tfl_rewrite.files.source import ModelLike, load, origin_of
from tfl_rewrite.flatbuf.reader import misaligned
from tfl_rewrite.model.invariants import problems
from tfl_rewrite.model.ir import Model


def check(model: ModelLike) -> list[str]:
    """Checks a file: every offset and index, buffer sizes against shapes, order of execution.

    Args:
        model: A path, bytes, an open file or a model.

    Returns:
        What the runtime would refuse, one line each; empty for a sound file.

    Raises:
        FormatError: The file is damaged so far that it cannot be read.
        FileAccessError, UnsupportedError: As for :func:`tfl_rewrite.files.source.load`.

    Example:
        >>> tfl_rewrite.check("model.tflite")
        []
    """
    return examine(model)[0]


def examine(model: ModelLike) -> tuple[list[str], list[str]]:
    """As :func:`check`, with what is no fault but would keep the file from being rewritten.

    Returns:
        Problems and notes, one line each.
    """
    return examine_model(load(model))


def examine_model(model: Model) -> tuple[list[str], list[str]]:
    """As :func:`examine`, for a model that was loaded already."""
    origin = origin_of(model)
    notes = []
    if origin is not None:
        for refusal in origin.refusals:
            refusal.file = None
            notes.append(f"a rewrite would be refused: {refusal}")
        askew = misaligned(origin.root)
        if askew:
            notes.append(
                f"{askew[0][0]}, offset {askew[0][1]}: 8-byte numbers that 8 does not align"
                f"{f', one of {len(askew)} such vectors' if len(askew) > 1 else ''}; any rewrite aligns them"
            )
    return [str(problem) for problem in problems(model)], notes
