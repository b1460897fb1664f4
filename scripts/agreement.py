"""Compares what our check says of damaged models with what the runtime's own verifier says.

    python scripts/agreement.py MODEL... --count 20000 --seed 0

Mutants are those of fuzz.py. The runtime is ai-edge-litert, in a process of its own that is started again
when a model kills it. Making an interpreter runs the FlatBuffer verifier over the whole file first
(``VerifyAndBuildFromBuffer``), then builds: tensors, operators and their kernels are looked up. Nothing is
allocated and nothing computed.

Prints a table of what we say against what the runtime says, and for each way to disagree how many there
are, with
the number of one example; ``fuzz.py`` explains how a number repeats a mutant. Exits 1 if the runtime's
verifier refuses a file that we take for sound.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import fuzz

from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source
from tfl_rewrite.reading.check import examine_model

_SECONDS = 20.0
VERIFIER = "refused by its verifier"
BUILDER = "refused while building"
TAKEN = "built"
DIES = "the process dies"


@dataclass(frozen=True, slots=True)
class Opinion:
    """What somebody says of a file: a verdict, and the reason as it is said."""

    verdict: str
    reason: str


def ours(data: bytes) -> Opinion:
    """What ``check`` says: refused as damaged or unsupported, flawed, or sound."""
    try:
        problems, _ = examine_model(Source(Container.of_bytes(data)).model())
    except FormatError as error:
        return Opinion("damaged", f"{error.where or ''} {error.what}")
    except UnsupportedError as error:
        return Opinion("unsupported", error.what)
    return Opinion("flawed", problems[0]) if problems else Opinion("sound", "")


class Runtime:
    """Makes interpreters in a child process; use as a context."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._process: Any = None

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def opinion(self, data: bytes) -> Opinion:
        """What the runtime says of a file."""
        if self._connection is None:
            self._connection, other = multiprocessing.Pipe()
            self._process = multiprocessing.get_context("spawn").Process(
                target=_serve, args=(other,), daemon=True
            )
            self._process.start()
            other.close()
        try:
            self._connection.send(data)
            if not self._connection.poll(_SECONDS):
                self._end()
                return Opinion(DIES, "it does not come to an end")
            message: str | None = self._connection.recv()
        except (EOFError, OSError):
            code = self._end()
            return Opinion(DIES, f"exit code {code}")
        if message is None:
            return Opinion(TAKEN, "")
        # Its reporter puts the stages' messages one after the other; the verifier's stands alone.
        verifier = "not a valid Flatbuffer" in message or "identifier" in message
        return Opinion(VERIFIER if verifier else BUILDER, message)

    def _end(self) -> int | None:
        if self._connection is None:
            return None
        self._connection.close()
        self._process.join(1)
        self._process.kill()
        self._process.join()
        self._connection = None
        code: int | None = self._process.exitcode
        return code


def _serve(connection: Connection) -> None:
    # What the runtime says on the way to an error goes to its standard error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    while True:
        try:
            data = connection.recv()
        except EOFError:
            return
        try:
            Interpreter(model_content=data, experimental_op_resolver_type=plain, num_threads=1)
            connection.send(None)
        except (RuntimeError, ValueError) as error:
            connection.send(str(error))


def family(text: str) -> str:
    """Returns what is the same in reasons of one kind: no numbers, names or places."""
    text = re.sub(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"", "'...'", text)
    text = re.sub(r"\S*\[\d+\]\S*", "", text)
    text = re.sub(r"\[[-\d, ]*\]|\([-\d, ]*\)", "[...]", text)
    text = re.sub(r"(?i)\b[A-Z][A-Z0-9]*(_[A-Z0-9]+)+\b|0x[0-9a-f]+|-?\d+", "N", text)
    text = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return text[:110]


@dataclass(slots=True)
class Class:
    """One way to disagree: how often, and the number of the first example."""

    count: int = 0
    example: int = -1


def compare(
    seeds: Sequence[fuzz.Seed], seed: int, numbers: Sequence[int]
) -> tuple[collections.Counter[tuple[str, str]], dict[tuple[str, ...], Class]]:
    """Returns how often each pair of verdicts occurs, and the ways to disagree."""
    table: collections.Counter[tuple[str, str]] = collections.Counter()
    classes: dict[tuple[str, ...], Class] = {}
    for number, one, two in _opinions(seeds, seed, numbers):
        table[one.verdict, two.verdict] += 1
        if (one.verdict == "sound") != (two.verdict == TAKEN):
            key = (one.verdict, two.verdict, family(one.reason), family(two.reason))
            found = classes.setdefault(key, Class())
            found.count += 1
            found.example = number if found.example < 0 else found.example
    return table, classes


def _opinions(
    seeds: Sequence[fuzz.Seed], seed: int, numbers: Sequence[int]
) -> Iterator[tuple[int, Opinion, Opinion]]:
    with Runtime() as runtime:
        for done, number in enumerate(numbers):
            data = fuzz.mutant(seeds, seed, number)[1]
            if data:
                yield number, ours(data), runtime.opinion(data)
            if done % 500 == 499:
                print(f"{done + 1} done", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path, help="models to damage; fixtures/ without any")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seeds = [fuzz.seed_of(path) for path in arguments.models or fuzz.default_models()]
    numbers = range(arguments.first, arguments.first + arguments.count)
    table, classes = compare(seeds, arguments.seed, numbers)
    verdicts = (TAKEN, BUILDER, VERIFIER, DIES)
    print(f"{'we say':12s}" + "".join(f"{verdict:>26s}" for verdict in verdicts))
    for name in ("sound", "flawed", "damaged", "unsupported"):
        print(f"{name:12s}" + "".join(f"{table[name, verdict]:26d}" for verdict in verdicts))
    total = table.total()
    wrong = table["sound", VERIFIER]
    refused = sum(count for (_, verdict), count in table.items() if verdict == VERIFIER)
    sound = sum(count for (name, _), count in table.items() if name == "sound")
    print(f"{total} mutants")
    print(f"sound for us, and passed by its verifier: {sound - wrong} of {sound}")
    print(f"refused by its verifier, and not sound for us: {refused - wrong} of {refused}")
    for key, found in sorted(classes.items(), key=lambda item: -item[1].count):
        we, they, why, because = key
        print(f"{found.count:6d}  #{found.example}  we: {we}: {why or '-'} | it: {they}: {because or '-'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
