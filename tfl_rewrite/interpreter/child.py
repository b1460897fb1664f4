"""The process that loads a model into an interpreter and runs it: requests in, arrays out.

This file is a script. It is started by ``sandbox.py`` with whatever Python holds the interpreter that should
judge, so of its package it loads ``interface.py`` alone, by path, and keeps to what Python 3.9 and numpy 1.x
offer. It speaks JSON lines: requests on standard input, messages on what was standard output when it started.
From then on everything that the runtime prints, wherever to, ends on standard error, which the parent keeps.
What a request asks for is a verb (see `VERBS`). Its last message has either ``done`` or ``error``.

Inputs are ``.npy`` files, strings their bytes beside an array of their lengths: never pickled. Outputs follow
the message that announces them, as plain bytes; no file is written.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Published(NamedTuple):
    """A runtime: the package to install, the module to import, and what in it is what.

    Attributes:
        own: Whether this Python's own may be asked for by name.
        adapter: A script of this package that gives it the interface that the others have.
        forks: Whether a process that has imported it has one thread, and may be copied.
    """

    distribution: str
    module: str
    interpreter: str = "Interpreter"
    resolvers: str = "OpResolverType"
    own: bool = True
    adapter: str = ""
    forks: bool = False

    @property
    def package(self) -> str:
        """What is imported, without its parts."""
        return self.module.split(".")[0]


RUNTIMES = {
    "litert": Published("ai-edge-litert", "ai_edge_litert.interpreter", forks=True),
    "tflite_runtime": Published("tflite-runtime", "tflite_runtime.interpreter", own=False),
    "tensorflow": Published(
        "tensorflow", "tensorflow", "lite.Interpreter", "lite.experimental.OpResolverType"
    ),
    "tflm": Published(
        "tflite-micro", "tflite_micro.python.tflite_micro.runtime", adapter="interpreter/micro.py"
    ),
}
"""Where the interpreter is published, in the order in which a foreign Python is searched.

What has an adapter is not searched for: it computes other sizes and fewer models, so it has to be named.
"""
COMPILED = "ai_edge_litert.compiled_model"
"""What ``compiled`` runs models with: the only runtime that reads external buffers."""
MMAP_FROM_NBYTES = 1 << 20
# What the runtimes call the kernels that are asked for; without any they take their default delegates.
KERNELS = {"builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}
# glibc: fill what malloc hands out, and what free takes back, with the complement of a byte and that byte.
M_PERTURB = -6
# Beside the model: the interpreter's own libraries, Python, and memory that is reserved but never touched.
SLACK_NBYTES = 1 << 30
TIMED_SECONDS = 0.15
"""For each model that is timed."""
TIMED_CALLS = 5
"""Of each at least."""

# -- arrays ----------------------------------------------------------------------------------------------


def _as_bytes(strings: Any) -> tuple[Any, bytes]:
    """The lengths of an array of strings, and all of them one after the other."""
    items = [item.encode() if isinstance(item, str) else bytes(item) for item in strings.reshape(-1).tolist()]
    lengths = np.array([len(item) for item in items], dtype=np.int64).reshape(strings.shape)
    return lengths, b"".join(items)


def save_array(stem: Path, array: Any) -> None:
    """Writes one array under ``stem``; arrays of strings as bytes and lengths."""
    array = np.asarray(array)
    if array.dtype.kind not in "OSU":
        np.save(f"{stem}.npy", array, allow_pickle=False)
        return
    lengths, blob = _as_bytes(array)
    Path(f"{stem}.bytes").write_bytes(blob)
    np.save(f"{stem}.lengths.npy", lengths, allow_pickle=False)


def load_array(stem: Path) -> Any:
    """Reads what `save_array` wrote, or the parent received: large arrays mapped, strings as bytes."""
    plain = Path(f"{stem}.npy")
    if plain.exists():
        mapped = plain.stat().st_size >= MMAP_FROM_NBYTES
        return np.load(plain, mmap_mode="r" if mapped else None, allow_pickle=False)
    lengths = np.load(f"{stem}.lengths.npy", allow_pickle=False)
    blob = Path(f"{stem}.bytes").read_bytes()
    strings = np.empty(lengths.size, dtype=object)
    offset = 0
    for position, length in enumerate(lengths.reshape(-1).tolist()):
        strings[position] = blob[offset : offset + length]
        offset += length
    return strings.reshape(lengths.shape)


Packed = tuple[dict[str, Any], list[Any]]
"""What is said about an array that is sent, and its bytes."""


def packed(name: str, value: Any) -> Packed:
    """Makes an array ready to be sent, strings as lengths and bytes.

    Args:
        name: By which the parent stores it: numbers such as ``3`` and ``0.1``.
        value: Anything that numpy makes an array of.

    Raises:
        TypeError, ValueError: It has no such value.
    """
    array = np.asarray(value)
    facts: dict[str, Any] = {"name": name, "shape": list(array.shape)}
    if array.dtype.kind in "OSU":
        lengths, blob = _as_bytes(array)
        return {**facts, "dtype": "string", "nbytes": len(blob)}, [lengths.tobytes(), blob]
    flat = np.ascontiguousarray(array).reshape(-1)
    return {**facts, "dtype": np.lib.format.dtype_to_descr(array.dtype)}, [flat.view(np.uint8).data]


class Channel:
    """What was standard output when the process started; from now on, prints end on standard error."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def send(self, message: dict[str, Any], arrays: Iterable[Packed] = (), *, more: bool = False) -> None:
        """Sends a message and the arrays behind it; with what follows, where ``more`` does at once."""
        packed = list(arrays)
        line = {**message, "arrays": [facts for facts, _ in packed]} if packed else message
        self._stream.write(json.dumps(line).encode() + b"\n")
        for _, blobs in packed:
            for blob in blobs:
                self._stream.write(blob)
        if not more:
            self._stream.flush()


# -- the interpreter -------------------------------------------------------------------------------------


class Runtime:
    """One importable interpreter: its class, its resolver names, what it is called and its version.

    Args:
        kind: Key in `RUNTIMES`.
        script: Imports a script of this package.
    """

    def __init__(self, kind: str, script: Callable[[str], Any]) -> None:
        row = RUNTIMES[kind]
        module = importlib.import_module(row.module)
        if row.adapter:
            module = script(row.adapter)
        self.distribution = row.distribution
        self.chooses = not row.adapter
        self.interpreter: Any = attrgetter(row.interpreter)(module)
        self.resolvers: Any = attrgetter(row.resolvers)(module)
        self.version = _version(self.distribution, module)

    def build(self, model: str, resolver: str, threads: int, keeps_tensors: bool = False) -> Any:
        """An interpreter of the file, not yet allocated."""
        options: dict[str, Any] = {"num_threads": threads}
        if self.chooses and not _is_utf8(model):
            # It takes names that are text only; what a file is called says nothing of it.
            options["model_content"] = Path(model).read_bytes()
        else:
            options["model_path"] = model
        if resolver in KERNELS and self.chooses:
            kernels = getattr(self.resolvers, KERNELS[resolver], None)
            if kernels is None:
                raise ValueError(f"this runtime has no {resolver} kernels to choose")
            options["experimental_op_resolver_type"] = kernels
        if keeps_tensors:
            options["experimental_preserve_all_tensors"] = True
        return self.interpreter(**options)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _version(distribution: str, module: Any) -> str:
    # It takes a while to load, and who only reads arrays with this file needs none of it.
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return str(getattr(module, "__version__", "unknown version"))


def find_runtime(wanted: str, script: Callable[[str], Any]) -> Runtime:
    """The first of the named runtimes, between commas, that this Python can import.

    Args:
        wanted: Their kinds.
        script: Imports a script of this package.

    Raises:
        ImportError: With the reason of each that could not be imported.
    """
    reasons = []
    for kind in wanted.split(","):
        try:
            return Runtime(kind, script)
        except Exception as error:
            # Not only ImportError: an extension built for another numpy raises whatever it likes.
            reasons.append(f"{RUNTIMES[kind].distribution}: {type(error).__name__}: {error}")
    raise ImportError("; ".join(reasons))


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__


class Opened:
    """A model in an interpreter.

    Attributes:
        key: Which file, with which kernels: what was asked for.
        operators: Of the primary subgraph; see ``interface.operators_of``.
        facts: What it takes and gives; see ``interface.describe``.
    """

    def __init__(self, key: Any, interpreter: Any, operators: Any, facts: dict[str, Any]) -> None:
        self.key = key
        self.interpreter = interpreter
        self.operators = operators
        self.facts = facts

    def signature(self, key: str) -> dict[str, Any] | None:
        """What is known of a signature; None if there is none of that name."""
        return next((entry for entry in self.facts["signatures"] if entry["key"] == key), None)

    def run(self, key: str | None, values: Any, wanted: Any = None) -> list[Any]:
        """One call of an entry point; a text instead of an output: why it is unreadable.

        Args:
            key: Of a signature, or None for the primary subgraph.
            values: Of the inputs, each with its name.
            wanted: Which outputs, by name or, of the primary subgraph, by position; all of them by default.
        """
        if key is None:
            self.invoke(_by_position(self.facts["inputs"], values))
            found = [self._read(facts["index"]) for facts in self.facts["outputs"]]
            return found if wanted is None else [found[position] for position in wanted]
        entry = self.signature(key)
        if entry is None:
            raise ValueError(f"the model has no signature {key!r}")
        names = [item["name"] for item in entry["inputs"]]
        if len(names) != len(values):
            raise ValueError(f"signature {key!r} has {len(names)} inputs, the samples {len(values)}")
        given = dict(values)
        by_position = {name: values[position][1] for position, name in enumerate(names)}
        arguments = given if set(given) == set(names) else by_position
        result = self.interpreter.get_signature_runner(key)(**arguments)
        outputs = [item["name"] for item in entry["outputs"]]
        return [np.asarray(result[name]) for name in (outputs if wanted is None else wanted)]

    def invoke(self, values: dict[int, Any], *, reset: bool = False) -> None:
        """Runs the primary subgraph.

        Args:
            values: Of its inputs, by number of the tensor.
            reset: Whether it meets its variables as they are in a new interpreter.
        """
        work = self.interpreter
        shapes = {int(detail["index"]): list(detail["shape"]) for detail in work.get_input_details()}
        resized = [index for index, value in values.items() if shapes.get(index) != list(value.shape)]
        for index in resized:
            work.resize_tensor_input(index, list(values[index].shape))
        if resized:
            work.allocate_tensors()
        if reset:
            try:
                work.reset_all_variables()
            except (AttributeError, RuntimeError):
                # An old runtime has no such call. A variable of a subgraph that was never allocated cannot be
                # reset, and need not be: allocation clears it.
                pass
        for index, value in values.items():
            work.set_tensor(index, value)
        work.invoke()

    def _read(self, index: int) -> Any:
        try:
            return np.asarray(self.interpreter.get_tensor(index))
        except Exception as error:
            return _told(error)

    def sizes(self) -> dict[int, int]:
        """Bytes of what each operator gives, by number of the tensor."""
        produced = {tensor for _, _, outputs in self.operators for tensor in outputs}
        sizes = {}
        for detail in self.interpreter.get_tensor_details():
            index, dtype = int(detail["index"]), np.dtype(detail["dtype"])
            if index in produced:
                elements = int(np.prod([int(size) for size in detail["shape"]], dtype=np.int64))
                sizes[index] = elements * max(1, dtype.itemsize)
        return sizes


def _by_position(targets: list[dict[str, Any]], values: Any) -> dict[int, Any]:
    if len(targets) != len(values):
        raise ValueError(f"the model has {len(targets)} inputs, the samples {len(values)}")
    return {facts["index"]: values[place][1] for place, facts in enumerate(targets)}


def _loaded(inputs: Any) -> list[tuple[str, Any]]:
    """The arrays of a call, by name."""
    return [(name, load_array(Path(stem))) for name, stem in inputs]


# -- verbs -----------------------------------------------------------------------------------------------

Answer = tuple[dict[str, Any], list[Packed]]
"""What is told of a request that was carried out, and arrays."""


class Service:
    """Answers the requests of one parent, one model at a time.

    Args:
        runtime: That opens models.
        channel: To the parent.
        interface: The script that describes them.
    """

    def __init__(self, runtime: Runtime, channel: Channel, interface: Any) -> None:
        self._runtime = runtime
        self._emit = channel.send
        self._interface = interface
        self._opened: Opened | None = None
        self._poisoned = 0
        self._where: dict[str, Any] = {}
        # The clean-up of CompiledModel has been seen to crash after all was said.
        self._compiled: list[Any] = []

    def answer(self, request: dict[str, Any]) -> None:
        """Carries out one request; its last message has either ``done`` or ``error``."""
        started = time.monotonic()
        self._where = {"stage": "opening"}
        try:
            self._poison(request.get("poison", 0))
            _bound_memory(request.get("memory"))
            answer, arrays = VERBS[request["do"]](self, request)
            self._emit({"done": True, "answer": answer, "seconds": time.monotonic() - started}, arrays)
        except Exception as error:
            self._opened = None
            text = _told(error)
            if self._where["stage"] == "allocating" and self._is_bound(request):
                text = f"out of memory: it reserves much more than it may ({text})"
            self._emit({**self._where, "error": text})

    def open(self, request: dict[str, Any]) -> Answer:
        """Opens a model anew and keeps it open; tells what it takes and gives."""
        self._opened = None
        self._load(request)
        return {}, []

    def trace(self, request: dict[str, Any]) -> Answer:
        """Opens a model so that what its operators give can be fetched; tells of them and their tensors."""
        self._opened = None
        opened = self._load(request, keeps_tensors=True)
        used = {tensor for _, inputs, outputs in opened.operators for tensor in (*inputs, *outputs)}
        tensors = {
            int(detail["index"]): vars(self._interface.TensorFacts.of(detail, detail["name"], {}))
            for detail in opened.interpreter.get_tensor_details()
            if int(detail["index"]) in used
        }
        return {"operators": opened.operators, "tensors": tensors}, []

    def run(self, request: dict[str, Any]) -> Answer:
        """Runs all calls of a list, or some; sends what each gives. The model is closed then."""
        opened = self._load(request)
        steps = json.loads(Path(request["steps"]).read_text(encoding="utf-8"))
        asked = request.get("only") or range(len(steps))
        for number, position in enumerate(asked):
            step = steps[position]
            self._enter("running", step=number)
            values = _loaded(step["inputs"])
            if request.get("independent") and number:
                opened.interpreter = self._runtime.build(*opened.key)
                opened.interpreter.allocate_tensors()
            # Of this thread: under a limit of processor time, Linux counts that of a process in ticks.
            began = time.thread_time()
            try:
                results = opened.run(step["signature"], values, step.get("outputs"))
            except Exception as error:
                if not step["optional"]:
                    raise
                self._emit({"dropped": number, "reason": _told(error)})
                break
            # Before the model is closed, which may end the process, all that it gave is with the parent.
            more = number + 1 < len(asked)
            self._send_call(number, results, time.thread_time() - began, more=more)
        self._opened = None
        return {}, []

    def call(self, request: dict[str, Any]) -> Answer:
        """Runs one call in what is open, its variables reset unless told; `get` fetches what it gave."""
        opened = self._known()
        self._enter("running", step=request["step"])
        entry = None if request["signature"] is None else opened.signature(request["signature"])
        targets = opened.facts["inputs"] if entry is None else entry["inputs"]
        values = _loaded(request["inputs"])
        given = dict(values)
        if request["signature"] is not None and set(given) == {facts["name"] for facts in targets}:
            values = [(facts["name"], given[facts["name"]]) for facts in targets]
        opened.invoke(_by_position(targets, values), reset=not request["carries_over"])
        return {"sizes": opened.sizes()} if request["sizes"] else {}, []

    def get(self, request: dict[str, Any]) -> Answer:
        """Sends tensors of the call that was run last, by number."""
        opened = self._known()
        self._enter("running", step=request["step"])
        unreadable, arrays = {}, []
        for index in request["tensors"]:
            try:
                # A resource has no value, and comes as an object that is none.
                arrays.append(packed(str(index), opened.interpreter.get_tensor(index)))
            except Exception as error:
                unreadable[index] = _told(error)
        return {"unreadable": unreadable}, arrays

    def time(self, request: dict[str, Any]) -> Answer:
        """Measures how long one call of each of some models takes."""
        self._enter("running")
        built = [self._runtime.build(path, "default", request["threads"]) for path in request["models"]]
        return {"seconds": _seconds(built)}, []

    def compiled(self, request: dict[str, Any]) -> Answer:
        """Runs all calls of a list in CompiledModel; sends what each gives."""
        self._enter("opening")
        model = importlib.import_module(COMPILED).CompiledModel.from_file(request["model"])
        self._compiled.append(model)
        for number, step in enumerate(json.loads(Path(request["steps"]).read_text(encoding="utf-8"))):
            self._enter("running", step=number)
            self._send_call(number, _run_compiled(model, step))
        return {}, []

    def shapes(self, request: dict[str, Any]) -> Answer:
        """Resizes inputs; tells the shapes of all tensors and, where an operator refuses, what it says.

        What is refused is an answer: the shapes are then those up to the operator that refused. Where ``run``
        asks for it, the subgraphs are run on zeros, for shapes that only a run tells.
        """
        self._opened = None
        self._enter("opening")
        interpreter = self._runtime.build(request["model"], request["resolver"], request["threads"])
        wrapped = interpreter._interpreter
        refused = {}
        for number, resized in enumerate(request["resized"]):
            if resized is None:
                continue
            self._enter("allocating")
            try:
                for index, shape in resized:
                    wrapped.ResizeInputTensor(index, np.array(shape, np.int32), False, number)
                wrapped.AllocateTensors(number)
                if request["run"]:
                    self._enter("running")
                    _run_on_zeros(interpreter, number, [index for index, _ in resized])
            except Exception as error:
                refused[number] = _told(error)
        found = [
            [_shape_of(wrapped, index, number) for index in range(int(wrapped.NumTensors(number)))]
            for number in range(int(wrapped.NumSubgraphs()))
        ]
        return {"shapes": found, "refused": refused}, []

    def _known(self) -> Opened:
        if self._opened is None:
            raise ValueError("no model is open")
        return self._opened

    def _send_call(
        self, number: int, results: list[Any], seconds: float = 0.0, *, more: bool = False
    ) -> None:
        """What one call gave, and its processor time; a text instead of an output: why it is unreadable."""
        errors = [result if isinstance(result, str) else None for result in results]
        arrays = [
            packed(f"{number}.{place}", result)
            for place, result in enumerate(results)
            if not isinstance(result, str)
        ]
        self._emit({"ran": number, "unreadable": errors, "cpu": seconds}, arrays, more=more)

    def _enter(self, stage: str, **where: Any) -> None:
        # Sent before the work, so that the parent knows where a process that died had come to.
        self._where = {"stage": stage, **where}
        self._emit(self._where)

    def _load(self, request: dict[str, Any], *, keeps_tensors: bool = False) -> Opened:
        key = (request["model"], request["resolver"], request["threads"], keeps_tensors)
        if self._opened is not None and self._opened.key == key:
            self._emit({"facts": self._opened.facts}, more=True)
            return self._opened
        self._opened = None
        self._enter("opening")
        interpreter = self._runtime.build(*key)
        operators = self._interface.operators_of(interpreter)
        facts = self._interface.describe(interpreter, operators)
        self._emit({"facts": facts}, more=True)
        self._enter("allocating")
        interpreter.allocate_tensors()
        self._opened = Opened(key, interpreter, operators, facts)
        return self._opened

    def _is_bound(self, request: dict[str, Any]) -> bool:
        """Whether a model that was refused would have been allocated with all memory that there is."""
        if request.get("memory") is None:
            return False
        _bound_memory(None)
        try:
            interpreter = self._runtime.build(request["model"], request["resolver"], request["threads"])
            interpreter.allocate_tensors()
        except Exception:
            return False
        finally:
            _bound_memory(request["memory"])
        return True

    def _poison(self, byte: int) -> None:
        """From now on, memory that a kernel reads before it wrote it holds something else than usual."""
        if byte == self._poisoned:
            return
        # A model that is opened already has the memory that it has.
        self._opened = None
        try:
            ctypes.CDLL(None).mallopt(M_PERTURB, byte)
        except (OSError, AttributeError):
            # Not glibc. A process that is started anew has other memory anyway.
            pass
        self._poisoned = byte


VERBS = {
    "open": Service.open,
    "trace": Service.trace,
    "run": Service.run,
    "call": Service.call,
    "get": Service.get,
    "time": Service.time,
    "compiled": Service.compiled,
    "shapes": Service.shapes,
}


def _shape_of(wrapped: Any, index: int, subgraph: int) -> list[int] | None:
    try:
        return [int(size) for size in wrapped.TensorSize(index, subgraph)]
    except ValueError:
        # It has none, such as one that no operator makes.
        return None


def _run_on_zeros(interpreter: Any, subgraph: int, inputs: list[int]) -> None:
    wrapped = interpreter._interpreter
    for index in inputs:
        detail = interpreter._get_tensor_details(index, subgraph)
        kind = np.dtype(detail["dtype"])
        empty = (
            np.full(detail["shape"], b"", object) if kind.kind in "SUO" else np.zeros(detail["shape"], kind)
        )
        wrapped.SetTensor(index, empty, subgraph)
    wrapped.Invoke(subgraph)


def _seconds(interpreters: list[Any]) -> list[float]:
    """The lower quartile of one call of each, with made inputs."""
    runs: list[tuple[Any, list[float]]] = []
    for work in interpreters:
        work.allocate_tensors()
        random = np.random.default_rng(0)
        for detail in work.get_input_details():
            if np.issubdtype(detail["dtype"], np.floating):
                work.set_tensor(detail["index"], random.random(detail["shape"]).astype(detail["dtype"]))
        work.invoke()
        runs.append((work, []))
    # In turn, so that whatever else goes on meets all of them.
    ends = time.perf_counter() + TIMED_SECONDS * len(runs)
    while time.perf_counter() < ends or len(runs[0][1]) < TIMED_CALLS:
        for work, times in runs:
            started = time.perf_counter()
            work.invoke()
            times.append(time.perf_counter() - started)
    return [sorted(times)[len(times) // 4] for _, times in runs]


def _run_compiled(model: Any, step: dict[str, Any]) -> list[Any]:
    """One call of a CompiledModel; returns its outputs."""
    key = step["signature"]
    if key is None:
        # A model without signatures has one that the runtime made.
        key = model.get_signature_by_index(0)["key"]
    names = model.get_signature_list()[key]
    details = model.get_input_tensor_details(key)
    given = _loaded(step["inputs"])
    if len(given) != len(names["inputs"]):
        raise ValueError(f"the model has {len(names['inputs'])} inputs, the samples {len(given)}")
    if {name for name, _ in given} != set(names["inputs"]):
        given = [(name, given[place][1]) for place, name in enumerate(names["inputs"])]
    for name, array in given:
        if list(details[name]["shape"]) != list(array.shape):
            model.resize_input_tensor_by_name(key, name, list(array.shape), strict=False)
    inputs = {}
    for name, array in given:
        inputs[name] = model.create_input_buffer_by_name(key, name)
        inputs[name].write(_as_known(array))
    wanted = step["outputs"]
    if set(wanted) != set(names["outputs"]):
        wanted = names["outputs"]
    outputs = {name: model.create_output_buffer_by_name(key, name) for name in wanted}
    model.run_by_name(key, inputs, outputs)
    results = []
    for name in wanted:
        facts = outputs[name].get_tensor_details()
        shape = [int(size) for size in facts["shape"]]
        dtype = np.dtype(str(facts["dtype"]))
        known = _as_known(np.empty(shape, dtype))
        results.append(outputs[name].read(known.size, known.dtype).view(dtype).reshape(shape))
    return results


def _as_known(array: Any) -> Any:
    """Bytes in a type that the buffers of CompiledModel take: they know few types, but only move bytes."""
    if array.dtype in (np.float32, np.int32, np.int8, np.uint8, np.bool_):
        return array
    return np.ascontiguousarray(array).reshape(-1).view(np.int8)


# -- the whole -------------------------------------------------------------------------------------------


def _bound_memory(nbytes: int | None) -> None:
    """Lets allocations fail beyond a limit; the parent, which sees what is really used, is stricter."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = hard if nbytes is None else nbytes + SLACK_NBYTES
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    except (ImportError, OSError, ValueError):
        pass


def _requests(lines: Any) -> Any:
    """Yields the requests; ends the process the moment the parent is gone, even in the middle of a run."""
    pending: Any = queue.Queue()

    def read() -> None:
        for line in lines:
            pending.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield pending.get()


def main(sandbox: Any, wanted: str, *modules: str) -> None:
    """Says hello with the runtime's name, then answers requests until standard input closes.

    Args:
        sandbox: What this process is shut into; see ``sandbox.py``.
        wanted: Which runtime; see `find_runtime`.
        modules: What is imported besides, by name.
    """
    channel = Channel()
    try:
        runtime = find_runtime(wanted, sandbox.script)
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        channel.send({"missing": str(error)})
        return
    service = Service(runtime, channel, sandbox.script("interpreter/interface.py"))
    # Now all is imported.
    sandbox.seal()
    channel.send(
        {
            "hello": runtime.distribution,
            "version": runtime.version,
            "chooses": runtime.chooses,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "sandbox": sandbox.walls,
        }
    )
    for request in _requests(sys.stdin):
        service.answer(request)
