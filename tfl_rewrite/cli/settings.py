"""What the options of a command say about inputs, judges and tolerances."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tfl_rewrite.pipeline.verification import Verification

if TYPE_CHECKING:
    from tfl_rewrite.judge.compare import Tolerance


def real_inputs(arguments: argparse.Namespace, model: str) -> tuple[str | os.PathLike[str], ...]:
    """Returns what --inputs names; pictures and sound are read as the options, then metadata say."""
    options = (arguments.input_range, arguments.input_layout, arguments.sample_rate)
    if not arguments.inputs and options == (None, None, None):
        return ()
    return _read_as_said(arguments, model, arguments.inputs)


def held_out(arguments: argparse.Namespace, model: str) -> tuple[str | os.PathLike[str], ...]:
    """Returns what --holdout names, read likewise."""
    from tfl_rewrite.samples.inputs import expand_paths
    from tfl_rewrite.samples.media import Media

    if any(isinstance(found, Media) for found in expand_paths(arguments.holdout)):
        return _read_as_said(arguments, model, arguments.holdout)
    return tuple(arguments.holdout)


def _read_as_said(
    arguments: argparse.Namespace, model: str, paths: Sequence[str]
) -> tuple[str | os.PathLike[str], ...]:
    from tfl_rewrite.reading.metadata import media_inputs

    return media_inputs(
        model,
        paths,
        value_range=arguments.input_range,
        layout=arguments.input_layout,
        sample_rate=arguments.sample_rate,
    )


def verification_of(arguments: argparse.Namespace) -> Verification:
    """Returns how a command is to verify, from its options."""
    tolerance = tolerance_of(arguments)
    return Verification(
        mode=arguments.verify,
        inputs=real_inputs(arguments, arguments.source),
        holdout=held_out(arguments, arguments.source) if "holdout" in arguments else (),
        samples=arguments.samples,
        seed=arguments.seed,
        tolerance=tolerance if arguments.verify != "off" else None,
        **judges_of(arguments),
        blame_seconds=arguments.blame_seconds,
        rescue=not arguments.no_rescue,
        blame=arguments.blame or arguments.blame_out is not None,
    )


def judges_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns who judges, and within which limits."""
    limit = None
    if arguments.memory_limit is not None:
        from tfl_rewrite.interpreter.memory import parse_memory

        limit = parse_memory(arguments.memory_limit)
    return {
        "runtime": tuple(arguments.runtime) or ("litert",),
        "resolver": tuple(arguments.resolver),
        "timeout": arguments.timeout,
        "memory_limit": limit,
        "independent": arguments.independent,
    }


def tolerance_of(arguments: argparse.Namespace, *, exact: bool = False) -> Tolerance:
    """Returns what may differ; a command without --min-snr allows nothing."""
    from tfl_rewrite.judge.compare import Tolerance

    if "min_snr" not in arguments:
        return Tolerance(exact=True)
    return Tolerance(
        exact=exact,
        min_snr=arguments.min_snr,
        max_abs_error=arguments.max_abs_error,
        min_agreement=arguments.min_agreement,
    )
