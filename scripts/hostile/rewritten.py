"""Generated models through random lists of passes: what comes out computes the same, and is no larger.

The two files are run by an interpreter in a process of its own, which stays for the next pair and is replaced
if a model kills it. The comparison shares no code with the package's own verification.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hostile.contract import Breach
from hostile.models import make, packed
from tfl_rewrite.editing.base import Effect, Pass
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.passes import catalog
from tfl_rewrite.pipeline.report import RewriteFailed
from tfl_rewrite.search.rewrite import rewrite

Array = np.ndarray[Any, Any]
LOSSLESS = ("remove-dead", "dedup", "compact")
LOSSY = ("round-weights", "quantize-weights")
LEAST_DECIBELS = 10.0
"""The tolerance of lossy commands by default."""
FOLDED_DECIBELS = 90.0
"""What folding keeps at least, on random models whose sums cancel; of real ones, 120."""
_NEAR_ZERO = 1e-3
_SECONDS = 60.0


def passes_at_random(random: Random, *, lossy: bool) -> list[tuple[str, Sequence[Pass]]]:
    """Returns one to four passes in any order, with options that bite on small constants."""
    made = []
    for name in random.choices((*LOSSLESS, *LOSSY) if lossy else LOSSLESS, k=random.randrange(1, 5)):
        options = ""
        if name == "quantize-weights":
            options = ":" + ",".join(
                (
                    f"scheme={random.choice(('auto', 'hybrid', 'dequantize'))}",
                    f"granularity={random.choice(('channel', 'tensor'))}",
                    f"min-elements={random.choice((1, 16, 64))}",
                )
            )
        elif name == "round-weights":
            options = f":steps={random.choice((64, 256))},min-elements=16"
        elif name == "compact" and random.random() < 0.3:
            options = ":strip=names+min-max"
        made.append((name + options, catalog.passes_of([name + options])))
    return made


class Runner:
    """Runs files in a child process; use as a context."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, path: Path, seed: int) -> list[Array]:
        """Returns all outputs of a few calls with seeded inputs.

        Raises:
            Breach: The runtime refuses the file, dies of it, or does not come to an end.
        """
        if self._connection is None:
            self._connection, other = multiprocessing.Pipe()
            context = multiprocessing.get_context("spawn")
            self._process = context.Process(target=_serve, args=(other,), daemon=True)
            self._process.start()
            other.close()
        try:
            self._connection.send((str(path), seed))
            if not self._connection.poll(_SECONDS):
                raise EOFError(f"nothing in {_SECONDS:.0f} s")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._end()
            raise Breach(f"the interpreter dies: {error}") from None
        if isinstance(answer, str):
            raise Breach(f"the interpreter refuses: {answer}")
        outputs: list[Array] = answer
        return outputs

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._connection = None


def _serve(connection: Connection) -> None:
    from ai_edge_litert.interpreter import Interpreter

    while True:
        try:
            path, seed = connection.recv()
        except EOFError:
            return
        try:
            interpreter = Interpreter(path, num_threads=1)
            interpreter.allocate_tensors()
            numbers, found = np.random.default_rng(seed), []
            # Twice for each sample: variables keep what the first call left.
            for _ in range(4):
                for row in interpreter.get_input_details():
                    value = numbers.uniform(-2, 2, row["shape"]).astype(row["dtype"])
                    interpreter.set_tensor(row["index"], value)
                interpreter.invoke()
                found += [interpreter.get_tensor(row["index"]) for row in interpreter.get_output_details()]
            connection.send(found)
        except (RuntimeError, ValueError) as error:
            connection.send(str(error))


@dataclass(frozen=True, slots=True)
class Example:
    """What became of one example.

    Attributes:
        outcome: ``unchanged``, ``equal``, ``within`` the tolerance, or ``refused`` by verification.
        kinds: The operator types of the model.
        passes: As given on the command line.
        nbytes: Of the file before and after.
    """

    outcome: str
    kinds: frozenset[str]
    passes: tuple[str, ...]
    nbytes: tuple[int, int]


def try_example(random: Random, runner: Runner, folder: Path) -> Example:
    """Makes a model, rewrites it by random passes, and compares.

    Raises:
        Breach: A lossless list changed a bit, a lossy one lost more than the tolerance and the command would
            publish it all the same, or the result is larger than the report says.
    """
    lossy = random.random() < 0.5
    model = make(random, smooth=lossy)
    kinds = frozenset(operator.code.name for _, operator in model.operators())
    source, target = folder / "before.tflite", folder / "after.tflite"
    source.write_bytes(packed(model))
    chosen = passes_at_random(random, lossy=lossy)
    words = tuple(word for word, _ in chosen)
    passes = [item for _, items in chosen for item in items]
    report = rewrite(source, target, passes, judging=Judging(mode="off"), force=True, threads=1)
    nbytes = source.stat().st_size, target.stat().st_size
    if nbytes != (report.nbytes_before, report.nbytes_after):
        raise Breach(
            f"{words}: the report says {report.nbytes_before} -> {report.nbytes_after}, not {nbytes}"
        )
    if nbytes[1] > nbytes[0]:
        raise Breach(f"{words}: the file grew from {nbytes[0]} to {nbytes[1]} bytes")
    if report.outcome == "unchanged":
        if source.read_bytes() != target.read_bytes():
            raise Breach(f"{words}: unchanged, and yet other bytes")
        return Example("unchanged", kinds, words, nbytes)
    seed = random.getrandbits(32)
    before, after = runner.run(source, seed), runner.run(target, seed)
    if len(before) != len(after) or any(
        (one.shape, one.dtype) != (two.shape, two.dtype) for one, two in zip(before, after, strict=False)
    ):
        raise Breach(f"{words}: the outputs have other shapes or types")
    if all(one.tobytes() == two.tobytes() for one, two in zip(before, after, strict=True)):
        return Example("equal", kinds, words, nbytes)
    effects = {item.effect for item in passes}
    if not effects & {Effect.TOLERANCE, Effect.FOLDING}:
        raise Breach(f"{words}: outputs differ after lossless passes")
    least = min(map(_decibels, before, after))
    if Effect.TOLERANCE not in effects and least < FOLDED_DECIBELS:
        raise Breach(f"{words}: outputs keep {least:.1f} dB after folding")
    if least >= LEAST_DECIBELS:
        return Example("within", kinds, words, nbytes)
    # Such a loss happens on random weights; then nothing may be published.
    target.unlink()
    try:
        rewrite(source, target, passes, judging=Judging(mode="require", samples=8), threads=1)
    except RewriteFailed:
        if target.exists():
            raise Breach(f"{words}: refused, and yet published") from None
        return Example("refused", kinds, words, nbytes)
    return Example("beyond on other samples", kinds, words, nbytes)


def _decibels(before: Array, after: Array) -> float:
    """Signal-to-noise ratio; what is nearly zero is judged by its distance."""
    one, two = before.astype(np.float64), after.astype(np.float64)
    if np.array_equal(one, two, equal_nan=True):
        return float("inf")
    if not np.isfinite(two).all() and np.isfinite(one).all():
        return float("-inf")
    noise, signal = float(np.square(one - two).sum()), float(np.square(one).sum())
    if np.abs(one).max(initial=0) < _NEAR_ZERO and np.abs(one - two).max(initial=0) < _NEAR_ZERO:
        return float("inf")
    return 10 * float(np.log10(max(signal, 1e-300) / noise)) if noise else float("inf")
