"""An interpreter for a program's own loop that notes what every float tensor holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.calibration.collect import file_of
from tfl_rewrite.calibration.probe import Probe, Runner
from tfl_rewrite.calibration.ranges import Memories, float_tensors, memoryfuls, widen
from tfl_rewrite.errors import UnsupportedError, UsageError
from tfl_rewrite.files.source import ModelLike, Source
from tfl_rewrite.integers.modes import Range
from tfl_rewrite.integers.ranges import GivenModel, TensorRanges
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.interpreter.worker import ModelFailed
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Signature, SubGraph, Tensor
from tfl_rewrite.weights.expansion import expand_constants
from tfl_rewrite.weights.sparse import make_dense

Array = npt.NDArray[Any]


@contextlib.contextmanager
def record(source: ModelLike, *, judging: Judging | None = None) -> Iterator[Recorder]:
    """Opens a model for a loop of one's own, such as an evaluation, and notes the ranges of its tensors.

    What the loop feeds is what the model is calibrated for: no inputs have to be written to files, and a
    model that keeps something from call to call is called as it will be.

    Args:
        source: A path, bytes, an open file or a model.
        judging: Its first runtime, its time and memory limits count; for each call.

    Yields:
        An interpreter with the methods of LiteRT's that such a loop calls. It runs in processes of its own,
        with the default delegate where that takes the model. Its ``ranges`` may be read afterwards, too.

    Raises:
        FileAccessError, FormatError, UnsupportedError: As for :func:`tfl_rewrite.load`.

    Example:
        >>> from tfl_rewrite.passes import Quantize
        >>> import numpy
        >>> (images,) = numpy.load("inputs.npz").values()
        >>> with tfl_rewrite.record("model.tflite") as interpreter:
        ...     interpreter.allocate_tensors()
        ...     index = interpreter.get_input_details()[0]["index"]
        ...     for image in images[:20]:
        ...         interpreter.set_tensor(index, image[None])
        ...         interpreter.invoke()
        >>> passes = [Quantize(ranges=interpreter.ranges)]
        >>> judging = tfl_rewrite.Judging(holdout=("inputs.npz",))
        >>> report = tfl_rewrite.rewrite("model.tflite", "recorded.tflite", passes, judging=judging)
        >>> report.verdict.passed
        True
    """
    opened = Source.of(source)
    with TerminationGuard(), Scratch() as scratch, contextlib.ExitStack() as stack:
        recorder = Recorder(opened, judging or Judging(), scratch, stack)
        try:
            yield recorder
        finally:
            recorder.is_over = True


class Recorder:
    """What :func:`record` opens. It counts the tensors of the model as LiteRT's interpreter does.

    Attributes:
        is_over: Whether the ``with`` block has been left: only what was noted is there then.
    """

    def __init__(
        self, source: Source, judging: Judging, scratch: Scratch, stack: contextlib.ExitStack
    ) -> None:
        self.is_over = False
        self._given: Model = source.model()
        self._model: Model = source.model()
        self._places = GivenModel.of(self._model)
        make_dense(self._model)
        expand_constants(self._model)
        self._file = file_of(self._model, scratch.folder())
        self._judging = judging
        limit = default_limit() if judging.memory_limit is None else judging.memory_limit
        self._watch = MemoryWatch(limit)
        self._stack = stack
        self._graphs: dict[int, _Graph] = {}
        self._seen: dict[int, dict[int, Range]] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._values: dict[int, Array] = {}
        self._results: dict[int, Array] = {}

    @property
    def ranges(self) -> TensorRanges:
        """What the float tensors of the model held so far; for ``Quantize(ranges=...)``.

        Raises:
            UsageError: Nothing was run yet.
        """
        if not self._seen:
            raise UsageError("nothing was run yet", remedy="call invoke(), or the runner of a signature")
        found = {
            id(self._model.subgraphs[number].tensors[at]): held
            for number, seen in self._seen.items()
            for at, held in seen.items()
        }
        return TensorRanges.of(self._places, found)

    def allocate_tensors(self) -> None:
        """Does nothing: tensors are allocated when the model is first called."""

    def get_input_details(self) -> list[dict[str, Any]]:
        """Returns what the main subgraph takes: name, index, shape, dtype, quantization of each input."""
        main = self._given.subgraphs[0]
        return [self.details(main, tensor) for tensor in main.inputs]

    def get_output_details(self) -> list[dict[str, Any]]:
        """Returns what the main subgraph gives, as :meth:`get_input_details`."""
        main = self._given.subgraphs[0]
        return [self.details(main, tensor) for tensor in main.outputs]

    def get_signature_list(self) -> dict[str, dict[str, list[str]]]:
        """Returns the names that each signature takes and gives."""
        return {
            str(item.key): {
                side: sorted(record.get("name") or "" for record, _ in rows)
                for side, rows in (("inputs", item.inputs), ("outputs", item.outputs))
            }
            for item in self._given.signatures
        }

    def resize_tensor_input(self, input_index: int, tensor_size: Sequence[int], strict: bool = False) -> None:
        """Gives an input another shape.

        Args:
            input_index: Of :meth:`get_input_details`.
            tensor_size: The shape.
            strict: Whether only sizes that the model leaves open may change.

        Raises:
            UsageError: It is no input, or a size is not open and ``strict`` is on.
        """
        tensor = self._input(input_index)
        size = tuple(int(item) for item in tensor_size)
        fixed = tensor.signature or tensor.shape or ()
        if strict and (
            len(fixed) != len(size) or any(old not in (-1, new) for old, new in zip(fixed, size, strict=True))
        ):
            raise UsageError(f"{tensor.name!r} is {list(fixed)}, and only -1 may become another size")
        self._shapes[input_index] = size
        self._values.pop(input_index, None)

    def set_tensor(self, tensor_index: int, value: npt.ArrayLike) -> None:
        """Sets an input of the main subgraph; the array is copied.

        Args:
            tensor_index: Of :meth:`get_input_details`.
            value: Of its type and shape.

        Raises:
            UsageError: It is no input, or the array is of another type or shape.
        """
        tensor = self._input(tensor_index)
        array = _fitting(tensor, np.array(value))
        shape = self._shapes.get(tensor_index, tensor.shape or ())
        if array.shape != shape:
            raise UsageError(
                f"the array for {tensor.name!r} is {list(array.shape)}, the input {list(shape)}",
                remedy="call resize_tensor_input for another shape",
            )
        self._values[tensor_index] = array

    def invoke(self) -> None:
        """Runs the main subgraph; inputs that were not set are zeros.

        Raises:
            UnsupportedError: The model does not run.
        """
        main = self._given.subgraphs[0]
        values = []
        for tensor in main.inputs:
            index = _position(main, tensor)
            if index not in self._values:
                shape = self._shapes.get(index, tensor.shape or ())
                self._values[index] = np.zeros(shape, _dtype(tensor))
            values.append(self._values[index])
        outputs = self._run(0, values)
        self._results = {
            _position(main, item): held for item, held in zip(main.outputs, outputs, strict=True)
        }

    def get_tensor(self, tensor_index: int) -> Array:
        """Returns an input, or an output of the last :meth:`invoke`; a copy.

        Raises:
            UsageError: It is neither, or nothing was run yet.
        """
        found = self._results.get(tensor_index, self._values.get(tensor_index))
        if found is None:
            raise UsageError(
                f"tensor {tensor_index} is no output of a call, nor an input that was set",
                remedy="take an index of get_output_details, after invoke()",
            )
        return np.array(found)

    def get_signature_runner(self, signature_key: str | None = None) -> SignatureRunner:
        """Returns what calls a signature: by name of each input, to a dictionary of outputs.

        What signatures keep for one another in variables is not seen: each runs in a process of its own.

        Raises:
            UsageError: There is none of that key, or several and no key is given.
        """
        found = self._given.signatures
        if signature_key is not None:
            found = [item for item in found if item.key == signature_key]
        if len(found) != 1:
            keys = ", ".join(repr(item.key) for item in self._given.signatures) or "none"
            raise UsageError(f"signature {signature_key!r} is not one of the model", remedy=f"it has: {keys}")
        return SignatureRunner(self, found[0])

    def reset_all_variables(self) -> None:
        """Lets the next calls meet variables as they are in the file."""
        for graph in self._graphs.values():
            graph.reset()

    def run_subgraph(self, subgraph: SubGraph, values: Sequence[Array]) -> list[Array]:
        """Runs a subgraph of the model; returns its outputs, in order."""
        return self._run(self._given.subgraphs.index(subgraph), values)

    def _run(self, number: int, values: Sequence[Array]) -> list[Array]:
        if self.is_over:
            raise UsageError(
                "nothing runs after the with block of record()", remedy="call it inside; ranges stay"
            )
        if number not in self._graphs:
            self._graphs[number] = _Graph(self._file, number, self._runner)
        try:
            outputs = self._graphs[number].run(values, self._seen.setdefault(number, {}))
        except ModelFailed as error:
            raise UnsupportedError(f"the model does not run: {error}", file=self._file.path) from error
        return outputs

    def _runner(self) -> Runner:
        choice = RuntimeChoice.parse(self._judging.runtime[0])
        runner = Runner(choice, timeout=self._judging.timeout, watch=self._watch)
        return self._stack.enter_context(runner)

    def _input(self, index: int) -> Tensor:
        main = self._given.subgraphs[0]
        for tensor in main.inputs:
            if _position(main, tensor) == index:
                return tensor
        known = ", ".join(str(_position(main, tensor)) for tensor in main.inputs) or "none"
        raise UsageError(f"tensor {index} is no input of the model", remedy=f"its inputs: {known}")

    def details(self, subgraph: SubGraph, tensor: Tensor) -> dict[str, Any]:
        """Returns what LiteRT's interpreter tells of an input or an output of a subgraph."""
        index, shape, details = _position(subgraph, tensor), tensor.shape or (), tensor.quantization
        if subgraph is self._given.subgraphs[0]:
            shape = self._shapes.get(index, shape)
        scales = [] if details is None or details.scale is None else list(details.scale)
        zeros = [] if details is None or details.zero_point is None else list(details.zero_point)
        return {
            "name": tensor.name,
            "index": index,
            "shape": np.array(shape, np.int32),
            "shape_signature": np.array(tensor.signature or shape, np.int32),
            "dtype": _dtype(tensor).type,
            "quantization": (scales[0], zeros[0]) if len(scales) == len(zeros) == 1 else (0.0, 0),
            "quantization_parameters": {
                "scales": np.array(scales, np.float32),
                "zero_points": np.array(zeros, np.int32),
                "quantized_dimension": 0 if details is None else details.dimension,
            },
            "sparsity_parameters": {},
        }


class SignatureRunner:
    """Calls one signature, as LiteRT's does."""

    def __init__(self, recorder: Recorder, signature: Signature) -> None:
        self._recorder = recorder
        self._signature = signature

    def __call__(self, **values: npt.ArrayLike) -> dict[str, Array]:
        """Runs it.

        Args:
            values: Arrays by name of the input, of any shape that the model takes.

        Raises:
            UsageError: A name is missing or unknown, or an array is of another type.
            UnsupportedError: The model does not run.
        """
        names = {record.get("name") or "": tensor for record, tensor in self._signature.inputs}
        if set(names) != set(values):
            raise UsageError(
                f"signature {self._signature.key!r} takes {', '.join(sorted(names)) or 'nothing'}",
                remedy="give each by its name",
            )
        subgraph = self._signature.subgraph
        arrays = {id(names[name]): _fitting(names[name], np.array(value)) for name, value in values.items()}
        if missing := [item.name for item in subgraph.inputs if id(item) not in arrays]:
            raise UsageError(f"signature {self._signature.key!r} does not give {missing[0]!r}")
        outputs = self._recorder.run_subgraph(subgraph, [arrays[id(item)] for item in subgraph.inputs])
        given = {id(item): held for item, held in zip(subgraph.outputs, outputs, strict=True)}
        return {record.get("name") or "": given[id(tensor)] for record, tensor in self._signature.outputs}

    def get_input_details(self) -> dict[str, dict[str, Any]]:
        """Returns what it takes, by name; see :meth:`Recorder.get_input_details`."""
        return self._told(self._signature.inputs)

    def get_output_details(self) -> dict[str, dict[str, Any]]:
        """Returns what it gives, by name."""
        return self._told(self._signature.outputs)

    def _told(self, rows: Sequence[tuple[Any, Tensor]]) -> dict[str, dict[str, Any]]:
        graph = self._signature.subgraph
        return {record.get("name") or "": self._recorder.details(graph, tensor) for record, tensor in rows}


class _Part:
    """Some tensors of a subgraph that fit into memory, in a process of their own.

    Args:
        probe: Has the model with float weights.
        number: Of the subgraph.
        wanted: Positions of what operators give, with the tensors.
    """

    def __init__(self, probe: Probe, number: int, wanted: Sequence[int]) -> None:
        self._probe = probe
        self._number = number
        self._wanted = wanted
        self._tensors = [probe.model.subgraphs[number].tensors[at] for at in wanted]

    def run(self, values: Sequence[Array], *, first: bool) -> Iterator[tuple[int, Array]]:
        """Runs it; yields what each of its tensors holds, by position."""
        found = self._probe.step(self._number, self._tensors, values, first=first)
        return zip(self._wanted, found, strict=True)


class _Graph:
    """One subgraph, in as many parts as its tensors take memory for."""

    def __init__(self, file: Source, number: int, runner: Callable[[], Runner]) -> None:
        probe = Probe(file, runner())
        subgraph = probe.model.subgraphs[number]
        self._inputs = [_position(subgraph, item) for item in subgraph.inputs]
        self._outputs = [_position(subgraph, item) for item in subgraph.outputs]
        made = {id(item) for each in subgraph.operators for item in each.outputs if item is not None}
        self._constants = {
            at: np.array(subgraph.tensors[at].values)
            for at in {*self._outputs} - {*self._inputs}
            if id(subgraph.tensors[at]) not in made
        }
        floats = float_tensors(subgraph)
        self._floats = {at for at, _ in floats}
        others = {*self._outputs} - self._floats
        wanted = [row for row in enumerate(subgraph.tensors) if row[0] in self._floats | others]
        parts = memoryfuls([row for row in wanted if id(row[1]) in made and row[0] not in self._inputs])
        self._parts = [
            _Part(Probe(file, runner()) if at else probe, number, [position for position, _ in part])
            for at, part in enumerate(parts)
        ]
        self._memories = Memories(subgraph)
        self._is_open = False

    def reset(self) -> None:
        self._is_open = False

    def run(self, values: Sequence[Array], seen: dict[int, Range]) -> list[Array]:
        """Runs it once, widens what was seen, and returns the outputs."""
        given = dict(zip(self._inputs, values, strict=True))
        held = self._constants | given
        first, self._is_open = not self._is_open, False
        for part in self._parts:
            for at, array in part.run(values, first=first):
                if at in self._floats:
                    self._see(seen, at, array, first=first)
                if at in self._outputs:
                    held[at] = array
        self._is_open = True
        for at in self._floats & given.keys():
            self._see(seen, at, given[at], first=first)
        return [held[at] for at in self._outputs]

    def _see(self, seen: dict[int, Range], at: int, array: Array, *, first: bool) -> None:
        widen(seen, at, array)
        for state, held in self._memories.run(at, array, first=first):
            widen(seen, state, held)


def _position(subgraph: SubGraph, tensor: Tensor) -> int:
    return next(at for at, item in enumerate(subgraph.tensors) if item is tensor)


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    row = dtypes.BY_VALUE.get(tensor.dtype)
    if row is None or not row.numpy:
        return np.dtype(np.bytes_)
    return np.dtype(row.numpy)


def _fitting(tensor: Tensor, array: Array) -> Array:
    """Returns an array of the type of an input.

    Raises:
        UsageError: It is of another type.
    """
    wanted = _dtype(tensor)
    if wanted.kind == "S":
        if array.dtype.kind in "OSU":
            return array
    elif array.dtype == wanted:
        return np.ascontiguousarray(array).reshape(array.shape)
    raise UsageError(
        f"the array for {tensor.name!r} is {array.dtype}, the input {wanted.name}",
        remedy=f"convert it, such as by astype({wanted.name!r})",
    )
