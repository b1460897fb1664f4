"""Runs two files operator by operator, and names their graph as Model Explorer does."""

from __future__ import annotations

from dataclasses import replace

from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.files.source import ModelLike, load
from tfl_rewrite.judge import blame as tracing
from tfl_rewrite.judge.layers import Blame
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.ir import Model
from tfl_rewrite.reading.metadata import on_disk, with_media


def blame(before: ModelLike, after: ModelLike, judging: Judging | None = None) -> Blame:
    """Says where the error of a rewritten file enters and grows, operator by operator.

    Args:
        before: The original: a path, bytes, an open file or a model.
        after: The rewritten one.
        judging: Inputs, samples, runtime and timeout; see :func:`tfl_rewrite.judge.blame.blame`.

    Raises:
        UsageError: The runtime is not installed, a file does not exist, or an input file does not fit.

    Example:
        >>> found = tfl_rewrite.blame("model.tflite", "new.tflite")
        >>> [layer.operator for layer in found.layers if layer.role == "enters"]
        ['CONV_2D']
    """
    with on_disk(before) as original, on_disk(after) as rewritten:
        found = tracing.blame(original, rewritten, with_media(judging or Judging(), original))
        try:
            graph = graph_name(load(rewritten))
        except TflRewriteError:
            # The interpreter takes files that we do not; what it found is worth showing all the same.
            graph = "main"
        return replace(found, graph=graph)


def graph_name(model: Model) -> str:
    """What Model Explorer calls the primary subgraph: by its name, else its signature, else ``main``."""
    primary = model.subgraphs[0]
    if primary.name:
        return primary.name
    keys = [item.key for item in model.signatures if item.subgraph is primary]
    return (keys[0] if keys else None) or "main"
