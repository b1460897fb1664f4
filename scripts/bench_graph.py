"""Measures what simplify leaves of models: operators, bytes and time, beside a round trip through MLIR.

    python scripts/bench_graph.py [FOLDER] [--inputs FOLDER] [--only WORD ...] [--peer-python PATH]
                                  [--peer-counts FILE.json] [--times SECONDS] [--json FILE]

The peer is ``litert-converter`` (extra ``bench``): .tflite to MLIR, canonicalize, tfl-optimize, canonicalize,
CSE, and back. It is run by the Python of ``--peer-python`` (by default, this one if it has it), in a process
of its own, since files crash it; ``--peer-counts`` reads what an earlier run noted. Each line says how many
operators and bytes are left, and what the outputs keep on ``FOLDER/NAME.eval.npz``, or on made inputs. Below
is each model of which the peer leaves fewer operators, with which, and whether its file is right.

``--times`` adds the median of the ratios of the times of single runs: one thread, one run of each file in
turn, in one process. On a busy machine a difference below 5 % is noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PASSES = "builtin.module(canonicalize,func.func(tfl-optimize),canonicalize,cse)"
LEAST_DB = 120.0
_PEER_SECONDS = 120.0
_LEAST_RUNS = 5


@dataclass
class Row:
    """What became of one model.

    Attributes:
        operators: Before, after, and of the peer's file; None where there is none.
        nbytes: Likewise.
        verdict: On ours: ``exact``, ``141.2 dB``, or what kept it from being judged.
        seconds: That simplify took, verification included.
        times: After over before, and the peer's over before; by kernels.
        fewer: Operators that the peer's file has fewer, by type.
        peer: What became of the peer's file, where it has fewer operators.
    """

    name: str
    operators: tuple[int, int | None, int | None]
    nbytes: tuple[int, int | None, int | None]
    verdict: str = ""
    seconds: float = 0.0
    times: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    fewer: dict[str, int] = field(default_factory=dict)
    peer: str = ""


def round_trip(source: Path, target: Path) -> None:
    """What the peer makes of a file."""
    from litert_converter.mlir import passmanager
    from litert_converter.mlir._mlir_libs import model_utils_ext
    from litert_converter.tools.model_utils import transform

    context = transform.get_ir_context()
    module = model_utils_ext.flatbuffer_to_mlir(source.read_bytes(), context)
    with context:
        passmanager.PassManager.parse(PASSES).run(module.operation)
        target.write_bytes(transform.write_flatbuffer(module, ir_context=context))


def alternate(paths: list[str], seconds: float, plain: bool) -> list[float | None]:
    """Runs files in turn; returns the median of each one's time over that of the first."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plain else OpResolverType.AUTO
    runners: list[Any] = []
    for path in paths:
        runner = Interpreter(path, experimental_op_resolver_type=kind, num_threads=1)
        runner.allocate_tensors()
        numbers = np.random.default_rng(0)
        for row in runner.get_input_details():
            values = numbers.uniform(0, 1, row["shape"]).astype(row["dtype"])
            runner.set_tensor(row["index"], values)
        runner.invoke()
        runners.append(runner)
    found: list[list[float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(found) < _LEAST_RUNS:
        each = []
        # The first in turn changes, so that none always follows the same one.
        for at in range(len(runners)):
            place = (at + len(found)) % len(runners)
            start = time.perf_counter()
            runners[place].invoke()
            each.append((place, time.perf_counter() - start))
        found.append([took for _, took in sorted(each)])
    return [statistics.median(row[at] / row[0] for row in found) for at in range(len(paths))]


def child(python: str, *words: str, limit: float) -> str | None:
    """Runs this program in another process; returns what it prints, or None where it fails."""
    try:
        done = subprocess.run(
            [python, __file__, *words], capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def times_of(before: Path, after: Path, peer: Path | None, seconds: float) -> Iterator[tuple[str, Any]]:
    """Yields ratios by kernels: ours and the peer's; None where a file does not run."""
    for name in ("default", "builtin"):
        ratios: list[float | None] = []
        for other in (after, peer):
            words = ["--alternate", str(before), str(other), "--times", str(seconds), "--kernels", name]
            told = None if other is None else child(sys.executable, *words, limit=60 + 20 * seconds)
            ratios.append(None if told is None else json.loads(told)[1])
        yield name, tuple(ratios)


def kinds(path: Path) -> Counter[str] | None:
    """Operators of a file by type."""
    from tfl_rewrite import TflRewriteError, load

    try:
        return Counter(operator.code.name for _, operator in load(path).operators())
    except TflRewriteError:
        return None


def judged(before: Path, after: Path, inputs: tuple[Path, ...]) -> str:
    """What the outputs of a file keep, in words."""
    from tfl_rewrite import Judging, Tolerance, verify

    judging = Judging(inputs=inputs, tolerance=Tolerance(min_snr=LEAST_DB), samples=2)
    verdict = verify(before, after, judging, repeat=False)
    if verdict.status == "unverified":
        return f"not judged: {'; '.join(verdict.reasons)[:80]}"
    if verdict.status == "fail":
        return f"wrong: {'; '.join(verdict.reasons)[:80]}"
    if all(output.bit_exact for output in verdict.outputs):
        return "exact"
    return f"{verdict.worst_snr():.1f} dB"


def measured(path: Path, arguments: argparse.Namespace, work: Path) -> Row | None:
    """Simplifies a file, has the peer do what it does, and measures both."""
    from tfl_rewrite import Judging, TflRewriteError, rewrite
    from tfl_rewrite.passes import Simplify

    before = kinds(path)
    if before is None:
        return None
    row = Row(path.name, (before.total(), None, None), (path.stat().st_size, None, None))
    after, peer = work / "after.tflite", work / "peer.tflite"
    for left in (after, peer):
        left.unlink(missing_ok=True)
    given = arguments.inputs / f"{path.stem}.eval.npz" if arguments.inputs else None
    inputs = (given,) if given is not None and given.exists() else ()
    start = time.monotonic()
    try:
        rewrite(path, after, [Simplify()], judging=Judging(inputs=inputs, samples=2))
    except TflRewriteError as error:
        row.verdict = f"refused: {error}"[:100]
        return row
    row.seconds = time.monotonic() - start
    row.verdict = judged(path, after, inputs)
    ours = kinds(after) or Counter()
    python = arguments.peer_python
    told = None if python is None else child(python, "--round-trip", path, peer, limit=_PEER_SECONDS)
    theirs = kinds(peer) if told is not None and peer.exists() else None
    noted = json.loads(arguments.peer_counts.read_text()) if arguments.peer_counts else {}
    known = noted.get(path.stem, {})
    row.operators = (before.total(), ours.total(), theirs.total() if theirs else known.get("ops_peer"))
    size = peer.stat().st_size if theirs else known.get("bytes_peer")
    row.nbytes = (path.stat().st_size, after.stat().st_size, size)
    if theirs is not None and theirs.total() < ours.total():
        row.fewer = dict(ours - theirs)
        row.peer = judged(path, peer, inputs)
    if arguments.times:
        row.times = dict(times_of(path, after, peer if theirs else None, arguments.times))
    return row


def line(row: Row) -> str:
    """A row of the table."""
    counts = " -> ".join("?" if count is None else str(count) for count in row.operators[:2])
    peer = "-" if row.operators[2] is None else str(row.operators[2])
    share = "" if row.nbytes[1] is None else f"{row.nbytes[1] / row.nbytes[0]:.3f}"
    theirs = "-" if row.nbytes[2] is None else f"{row.nbytes[2] / row.nbytes[0]:.3f}"
    times = " ".join(
        f"{name} {' / '.join('-' if one is None else f'{one:.2f}' for one in ratios)}"
        for name, ratios in row.times.items()
    )
    return f"{row.name[-52:]:52} {counts:>12} {peer:>5} {share:>6} {theirs:>6}  {row.verdict:10} {times}"


def summary(rows: list[Row]) -> Iterator[str]:
    """Sums, and each model of which the peer leaves fewer operators."""
    both = [row for row in rows if None not in row.operators]
    sums = [sum(row.operators[at] or 0 for row in both) for at in range(3)]
    yield f"{len(both)} models that both wrote: {sums[0]} operators, {sums[1]} after, {sums[2]} of the peer"
    alone = [row for row in rows if row.operators[1] is not None and row.operators[2] is None]
    yield (
        f"{len(alone)} that the peer did not write: {sum(row.operators[0] for row in alone)} operators, "
        + (f"{sum(row.operators[1] or 0 for row in alone)} after")
    )
    behind = [row for row in both if (row.operators[1] or 0) > (row.operators[2] or 0)]
    yield f"{len(behind)} of which the peer leaves fewer operators"
    for row in behind:
        yield f"  {row.name}: {row.operators[1]} and {row.operators[2]}; {row.fewer}; its file: {row.peer}"


def peer_here() -> str | None:
    """This Python, if it has the peer."""
    import importlib.util

    return sys.executable if importlib.util.find_spec("litert_converter") else None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, nargs="?", default=Path("fixtures"))
    made.add_argument("--inputs", type=Path, help="folder of NAME.eval.npz")
    made.add_argument("--only", nargs="*", default=[], help="words of names")
    made.add_argument("--peer-python", default=peer_here())
    made.add_argument("--peer-counts", type=Path)
    made.add_argument("--times", type=float, default=0.0, metavar="SECONDS")
    made.add_argument("--json", type=Path)
    made.add_argument("--round-trip", nargs=2, type=Path, help=argparse.SUPPRESS)
    made.add_argument("--alternate", nargs="+", help=argparse.SUPPRESS)
    made.add_argument("--kernels", default="default", help=argparse.SUPPRESS)
    return made


def main() -> None:
    arguments = parser().parse_args()
    if arguments.round_trip:
        round_trip(*arguments.round_trip)
        return
    if arguments.alternate:
        plain = arguments.kernels == "builtin"
        print(json.dumps(alternate(arguments.alternate, arguments.times, plain)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for path in sorted(arguments.folder.rglob("*.tflite")):
            if arguments.only and not any(word in path.name for word in arguments.only):
                continue
            row = measured(path, arguments, Path(work))
            if row is not None:
                rows.append(row)
                print(line(row), flush=True)
    print("\n".join(summary(rows)))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
