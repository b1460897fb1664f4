"""Runs the parts of a model that was split, one after the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tfl_rewrite.errors import FormatError, UsageError, VerificationError, near_names
from tfl_rewrite.files.container import Container
from tfl_rewrite.interpreter.child import KERNELS
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.interpreter.worker import ModelFailed, Worker
from tfl_rewrite.judge.routes import OUTSIDE, Feed
from tfl_rewrite.judge.settings import RESOLVERS
from tfl_rewrite.options.option import unknown
from tfl_rewrite.samples.made import Step, write_steps
from tfl_rewrite.shards.graphs import GraphManifest, parse
from tfl_rewrite.shards.manifest import sha256_of
from tfl_rewrite.shards.sources import FolderSource, read_manifest_text

Array = npt.NDArray[Any]


class _Runner(Protocol):
    """One part that is open."""

    def run(self, values: Sequence[Array]) -> list[Array]:
        """Runs it once."""


class Chain:
    """A model in parts that is open: called like the whole.

    Every part is checked by its hash before it is opened. By default each runs in a process of its own, in a
    sandbox, since a model is a stranger's file; ``in_process=True`` runs them in this process, which is
    quicker and for files that you trust. What parts keep in variables carries over from call to call. Use it
    as a context manager, or call :meth:`close`.

    Attributes:
        manifest: Which parts there are, and who feeds whom.

    Example:
        >>> import numpy
        >>> (images,) = numpy.load("inputs.npz").values()
        >>> options = tfl_rewrite.SplitOptions(parts=2)
        >>> report = tfl_rewrite.split("model.tflite", "halves", options)
        >>> with tfl_rewrite.Chain.open("halves/chain.json") as model:
        ...     outputs = model.run([images[:1]])
        >>> [value.shape for value in outputs.values()]
        [(1, 10)]
    """

    def __init__(
        self, manifest: GraphManifest, runners: Sequence[_Runner], stack: contextlib.ExitStack
    ) -> None:
        self.manifest = manifest
        self._runners = runners
        self._stack = stack

    def __repr__(self) -> str:
        return f"<Chain of {self.manifest.name!r}: {len(self.manifest.parts)} parts>"

    @classmethod
    def open(
        cls,
        manifest: str | os.PathLike[str],
        *,
        in_process: bool = False,
        runtime: str = "litert",
        resolver: str = "default",
        num_threads: int = 1,
        timeout: float = 600.0,
    ) -> Chain:
        """Opens the parts of a manifest.

        Args:
            manifest: Path of the ``chain.json`` that :func:`tfl_rewrite.split` wrote.
            in_process: Whether parts run in this process (ai-edge-litert), outside of a sandbox.
            runtime: In processes of their own: as for ``--runtime``.
            resolver: Which kernels: as for ``--resolver``, so ``builtin`` for what XNNPACK refuses.
            num_threads: Of each interpreter.
            timeout: Seconds that one part may take; not for ``in_process``.

        Raises:
            FormatError: The manifest or a part is damaged, or a part is not the one that it names.
            FileAccessError: One of them cannot be read.
            UsageError: The runtime cannot be started, or there are no such kernels.
            VerificationError: A part does not run.
        """
        if resolver not in RESOLVERS:
            raise unknown("resolver", resolver, RESOLVERS)
        path = Path(os.path.realpath(manifest))
        found = parse(
            read_manifest_text(FolderSource(path.parent), path.name, os.fspath(manifest)), str(path)
        )
        files = [checked(path.parent / part.name, part.nbytes, part.sha256) for part in found.parts]
        with contextlib.ExitStack() as stack:
            if in_process:
                runners: list[_Runner] = [_Own(file, resolver, num_threads) for file in files]
            else:
                scratch = stack.enter_context(Scratch())
                watch = MemoryWatch(default_limit())
                choice = RuntimeChoice.parse(runtime)
                runners = []
                for file in files:
                    folder = scratch.folder()
                    worker = Worker(choice, scratch, watch, timeout=timeout, readable=[folder])
                    stack.callback(worker.kill)
                    runners.append(_Apart(file, worker, folder, resolver, num_threads))
            return cls(found, runners, stack.pop_all())

    def run(self, inputs: Mapping[str, npt.ArrayLike] | Sequence[npt.ArrayLike]) -> dict[str, Array]:
        """Runs the whole once.

        Args:
            inputs: By name, or in the order of the manifest.

        Returns:
            The outputs by name, in the order of the manifest.

        Raises:
            UsageError: The chain is closed; or an input is missing, unknown, or of another type or shape.
            VerificationError: A part does not run.
        """
        if not self._runners:
            raise UsageError("is closed", file=self.manifest.name, remedy="open the chain again")
        given = self._given(inputs)
        results: list[list[Array]] = []

        def value_of(feed: Feed | None) -> Array:
            assert feed is not None
            return given[feed[1]] if feed[0] == OUTSIDE else results[feed[0]][feed[1]]

        for part, runner in zip(self.manifest.parts, self._runners, strict=True):
            try:
                found = runner.run([value_of(row.feed) for row in part.inputs])
            except (ModelFailed, RuntimeError, ValueError) as error:
                raise VerificationError(f"does not run: {error}", file=part.name) from error
            if len(found) != len(part.outputs):
                raise FormatError(f"gives {len(found)} outputs, not {len(part.outputs)}", file=part.name)
            results.append(found)
        return {row.name: value_of(row.feed) for row in self.manifest.outputs}

    def _given(self, inputs: Mapping[str, npt.ArrayLike] | Sequence[npt.ArrayLike]) -> list[Array]:
        rows = self.manifest.inputs
        names = [row.name for row in rows]
        if isinstance(inputs, Mapping):
            for name in inputs:
                if name not in names:
                    near = near_names(name, names, count=1)
                    listed = f"did you mean {near[0]!r}? " if near else ""
                    raise UsageError(
                        f"no input is named {name!r}", remedy=f"{listed}there is {', '.join(names)}"
                    )
            lacking = [name for name in names if name not in inputs]
            if lacking:
                raise UsageError(f"no value for {', '.join(map(repr, lacking))}", remedy="give all inputs")
            inputs = [inputs[name] for name in names]
        if len(inputs) != len(rows):
            raise UsageError(f"{len(inputs)} inputs", remedy=f"give {len(rows)}: {', '.join(names)}")
        values = [np.asarray(value) for value in inputs]
        for row, value in zip(rows, values, strict=True):
            kind = "string" if value.dtype.kind in "OSU" else value.dtype.name
            if kind != row.dtype:
                raise UsageError(f"{row.name!r} is {kind}", remedy=f"it takes {row.dtype}")
            # Of no axes is also what a file says of a shape that it does not know.
            wanted = tuple(
                own if size == -1 else size for size, own in zip(row.shape, value.shape, strict=False)
            )
            if row.shape and (len(row.shape) != value.ndim or wanted != value.shape):
                raise UsageError(
                    f"{row.name!r} has the shape {list(value.shape)}",
                    remedy=f"it takes {list(row.shape)}; -1 is any size",
                )
        return values

    def close(self) -> None:
        """Ends what runs."""
        self._stack.close()
        self._runners = ()

    def __enter__(self) -> Chain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def checked(path: Path, nbytes: int, sha256: str) -> Path:
    """Returns the path of a part that holds what it should.

    Raises:
        FormatError: It is another file.
        FileAccessError: It cannot be read.
    """
    container = Container.open(path)
    if container.nbytes != nbytes or sha256_of(container.pieces()) != sha256:
        raise FormatError(
            "is not the part that the manifest names: its SHA-256 differs",
            file=path,
            remedy="split the model again, or copy all parts anew",
        )
    return path


class _Own:
    """A part in this process."""

    def __init__(self, path: Path, resolver: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kind = getattr(OpResolverType, KERNELS.get(resolver, "AUTO"))
        self._work = Interpreter(str(path), experimental_op_resolver_type=kind, num_threads=threads)
        try:
            self._work.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise VerificationError(f"does not run: {error}", file=path) from error

    def run(self, values: Sequence[Array]) -> list[Array]:
        """See `_Runner.run`."""
        work = self._work
        rows = work.get_input_details()
        changed = [
            (row["index"], value)
            for row, value in zip(rows, values, strict=True)
            if list(row["shape"]) != list(value.shape)
        ]
        for index, value in changed:
            work.resize_tensor_input(index, value.shape)
        if changed:
            work.allocate_tensors()
        for row, value in zip(rows, values, strict=True):
            work.set_tensor(row["index"], value)
        work.invoke()
        return [work.get_tensor(row["index"]) for row in work.get_output_details()]


class _Apart:
    """A part in a process of its own, in a sandbox."""

    def __init__(self, path: Path, worker: Worker, folder: Path, resolver: str, threads: int) -> None:
        self._worker = worker
        self._folder = folder
        self._calls = 0
        try:
            interface, _ = worker.open("open", path, resolver, threads)
        except ModelFailed as error:
            raise VerificationError(f"does not run: {error}", file=path) from error
        self._outputs = [facts.index for facts in interface.primary.outputs]

    def run(self, values: Sequence[Array]) -> list[Array]:
        """See `_Runner.run`."""
        named = tuple((str(place), value) for place, value in enumerate(values))
        write_steps([Step(signature=None, values=named)], self._folder)
        stems = [(name, str(self._folder / f"0.{place}")) for place, (name, _) in enumerate(named)]
        self._worker.call(self._calls, None, stems, carries_over=True)
        self._worker.ended()
        self._calls += 1
        with self._worker.get(self._calls - 1, self._outputs) as fetched:
            for index, why in fetched.unreadable.items():
                raise ModelFailed(f"output {index} cannot be read: {why}")
            return [np.array(fetched.tensor(index)) for index in self._outputs]
