"""The process that loads a model into an interpreter and runs it: requests in, arrays out.

This file is a script. It is started by ``sandbox.py`` with whatever Python holds the interpreter that should
judge, so it imports nothing of its package and keeps to what Python 3.9 and numpy 1.x offer. It speaks JSON
lines: requests on standard input, messages on what was standard output when it started. From then on
everything that the runtime prints, wherever to, ends on standard error, which the parent keeps in a file.

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
import re
import sys
import threading
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

# Names under which the interpreter is published, in the order in which a foreign Python is searched.
RUNTIMES = {
    "litert": ("ai-edge-litert", "ai_edge_litert.interpreter"),
    "tflite_runtime": ("tflite-runtime", "tflite_runtime.interpreter"),
    "tensorflow": ("tensorflow", "tensorflow"),
}
# Operators that hand the values of an input on, so that an index stays an index.
# fmt: off
CARRIERS = frozenset([
    "ADD", "BROADCAST_TO", "CAST", "CONCATENATION", "DEQUANTIZE", "EXPAND_DIMS", "FLOOR_MOD", "MAXIMUM",
    "MINIMUM", "PACK", "PAD", "PADV2", "QUANTIZE", "RESHAPE", "REVERSE_V2", "SELECT", "SELECT_V2", "SLICE",
    "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "SUB", "TILE", "TRANSPOSE", "UNPACK",
])
# fmt: on
# Operators that keep something from call to call, or run other subgraphs, whose operators cannot be seen.
KEEPERS = re.compile(
    r"VAR_HANDLE|READ_VARIABLE|ASSIGN_VARIABLE|HASHTABLE.*|CALL_ONCE|WHILE|IF|STABLEHLO_.*|SVDF|.*(LSTM|RNN).*"
)
MMAP_FROM_NBYTES = 1 << 20
# What the runtimes call the kernels that are asked for; without any they take their default delegates.
KERNELS = {"builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}
# glibc: fill what malloc hands out, and what free takes back, with the complement of a byte and that byte.
M_PERTURB = -6
# Beside the model: the interpreter's own libraries, Python, and memory that is reserved but never touched.
SLACK_NBYTES = 1 << 30


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
        name: By which the parent stores it: ``output``, or numbers such as ``3`` and ``0.1``.
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

    def send(self, message: dict[str, Any], arrays: Iterable[Packed] = ()) -> None:
        """Sends a message and the arrays behind it."""
        packed = list(arrays)
        line = {**message, "arrays": [facts for facts, _ in packed]} if packed else message
        self._stream.write(json.dumps(line).encode() + b"\n")
        for _, blobs in packed:
            for blob in blobs:
                self._stream.write(blob)
        self._stream.flush()


class Runtime:
    """One importable interpreter: its class, its resolver names, what it is called and its version."""

    def __init__(self, kind: str) -> None:
        self.distribution, module_name = RUNTIMES[kind]
        module = importlib.import_module(module_name)
        if kind == "tensorflow":
            self.interpreter: Any = module.lite.Interpreter
            self.resolvers: Any = module.lite.experimental.OpResolverType
        else:
            self.interpreter = module.Interpreter
            self.resolvers = module.OpResolverType
        self.version = _version(self.distribution, module)

    def build(self, model: str, resolver: str, threads: int) -> Any:
        """An interpreter of the file, not yet allocated."""
        options: dict[str, Any] = {"model_path": model, "num_threads": threads}
        if resolver in KERNELS:
            kernels = getattr(self.resolvers, KERNELS[resolver], None)
            if kernels is None:
                raise ValueError(f"this runtime has no {resolver} kernels to choose")
            options["experimental_op_resolver_type"] = kernels
        return self.interpreter(**options)


def _version(distribution: str, module: Any) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return str(getattr(module, "__version__", "unknown version"))


def find_runtime(wanted: str) -> Runtime:
    """The first of the named runtimes, between commas, that this Python can import.

    Raises:
        ImportError: With the reason of each that could not be imported.
    """
    reasons = []
    for kind in wanted.split(","):
        try:
            return Runtime(kind)
        except Exception as error:
            # Not only ImportError: an extension built for another numpy raises whatever it likes.
            reasons.append(f"{RUNTIMES[kind][0]}: {type(error).__name__}: {error}")
    raise ImportError("; ".join(reasons))


def tensor_facts(
    detail: Any, name: str, bounds: dict[int, int], read: frozenset[int] = frozenset()
) -> dict[str, Any]:
    """One input or output as data: name, dtype, declared shape, quantization, bound of its values.

    An output is consumed if it is among the tensors that operators read.
    """
    dtype = np.dtype(detail["dtype"])
    shape = [int(size) for size in detail["shape"]]
    quantization = detail.get("quantization_parameters", {})
    index = int(detail["index"])
    return {
        "name": name,
        "tensor": detail["name"],
        "index": index,
        "dtype": "string" if dtype.kind in "SUO" else dtype.name,
        "shape": shape,
        "shape_signature": [int(size) for size in detail.get("shape_signature", shape)],
        "scales": [float(scale) for scale in quantization.get("scales", ())],
        "zero_points": [int(zero) for zero in quantization.get("zero_points", ())],
        "quantized_dimension": int(quantization.get("quantized_dimension", 0)),
        "below": bounds.get(index),
        "consumed": index in read,
    }


def _nodes(interpreter: Any) -> list[tuple[str, list[int], list[int]]]:
    """Name, inputs and outputs of each operator of the primary subgraph.

    The public interface does not tell; what it wraps is asked, and an older or newer runtime without these
    names yields nothing, which costs only the bounds of made indices. The wrapped object must not be held:
    the interpreter counts references to it before every call.
    """
    try:
        return [
            (
                str(interpreter._interpreter.NodeName(position)),
                [int(tensor) for tensor in interpreter._interpreter.NodeInputs(position)],
                [int(tensor) for tensor in interpreter._interpreter.NodeOutputs(position)],
            )
            for position in range(int(interpreter._interpreter.NumNodes()))
        ]
    except Exception:
        return []


def _index_operand(name: str, inputs: list[int], outputs: list[int], shapes: Any) -> tuple[int, int] | None:
    """Which tensor of an operator holds indices, and the size that they must stay below.

    The axis of GATHER is not visible here, so it is inferred from the shape of the output; where several
    axes fit, the smallest of their sizes is safe for all.
    """
    if name == "EMBEDDING_LOOKUP" and len(inputs) > 1 and shapes.get(inputs[1]):
        return inputs[0], int(shapes[inputs[1]][0])
    if name not in ("GATHER", "GATHER_ND") or len(inputs) < 2:
        return None
    table, indices = shapes.get(inputs[0]), shapes.get(inputs[1])
    if not table or indices is None:
        return None
    if name == "GATHER_ND":
        addressed = table[: indices[-1]] if indices else table
        return inputs[1], int(min(addressed)) if addressed else 1
    result = shapes.get(outputs[0]) if outputs else None
    fitting = [
        size
        for axis, size in enumerate(table)
        if result is not None and table[:axis] + indices + table[axis + 1 :] == result
    ]
    return inputs[1], int(min(fitting or table))


def index_bounds(interpreter: Any, nodes: list[tuple[str, list[int], list[int]]]) -> dict[int, int]:
    """For each tensor of the primary subgraph that ends as an index: the size it must stay below.

    Walks the operators from the last to the first, handing a bound from the output of an operator that
    only carries values to its inputs. Must be called before the graph is delegated.
    """
    if not nodes:
        return {}
    shapes = {
        int(detail["index"]): [int(size) for size in detail["shape"]]
        for detail in interpreter.get_tensor_details()
    }
    bounds: dict[int, int] = {}
    for name, inputs, outputs in reversed(nodes):
        found = _index_operand(name, inputs, outputs, shapes)
        targets = [found] if found else []
        carried = [bounds[tensor] for tensor in outputs if tensor in bounds]
        if name in CARRIERS and carried:
            targets += [(tensor, min(carried)) for tensor in inputs if tensor >= 0]
        elif name == "GATHER" and carried:
            targets.append((inputs[0], min(carried)))
        for tensor, below in targets:
            bounds[tensor] = max(1, min(below, bounds.get(tensor, below)))
    return bounds


def describe(interpreter: Any) -> dict[str, Any]:
    """Inputs and outputs of the primary subgraph and of every signature, as the file declares them."""
    nodes = _nodes(interpreter)
    try:
        bounds = index_bounds(interpreter, nodes)
    except Exception:
        bounds = {}
    read = frozenset(tensor for _, given, _ in nodes for tensor in given)
    inputs = [tensor_facts(detail, detail["name"], bounds) for detail in interpreter.get_input_details()]
    outputs = [tensor_facts(detail, detail["name"], {}, read) for detail in interpreter.get_output_details()]
    signatures = []
    by_name = {facts["tensor"]: facts["below"] for facts in inputs}
    for key in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(key)
        subgraph = _subgraph_of(interpreter, key)
        own, reads = (bounds, read) if subgraph == 0 else ({}, frozenset())
        entries = {
            "key": key,
            "subgraph": subgraph,
            "inputs": [tensor_facts(d, name, own) for name, d in runner.get_input_details().items()],
            "outputs": [tensor_facts(d, name, {}, reads) for name, d in runner.get_output_details().items()],
        }
        signatures.append(entries)
        by_name.update({f["name"]: f["below"] for f in entries["inputs"] if f["below"]})
    for entry in signatures:
        # The operators of other subgraphs cannot be seen: an input of the same name is taken for the same.
        for facts in entry["inputs"]:
            facts["below"] = facts["below"] or by_name.get(facts["name"])
    names = [name for name, _, _ in nodes]
    primary = all(entry["subgraph"] == 0 for entry in signatures)
    # A custom operator, whose name is its author's, may keep anything.
    innocent = [name for name in names if re.fullmatch(r"[A-Z0-9_]+", name) and not KEEPERS.fullmatch(name)]
    try:
        subgraphs = int(interpreter._interpreter.NumSubgraphs())
    except Exception:
        subgraphs = -1
    return {
        "subgraphs": subgraphs,
        "subgraph": 0,
        "inputs": inputs,
        "outputs": outputs,
        "signatures": signatures,
        "keeps_state": not (primary and names and len(innocent) == len(names)),
    }


def _subgraph_of(interpreter: Any, key: str) -> int:
    try:
        return int(interpreter._interpreter.GetSubgraphIndexFromSignature(key))
    except Exception:
        return -1


class Service:
    """Answers the requests of one parent, one model at a time."""

    def __init__(self, runtime: Runtime, channel: Channel) -> None:
        self._runtime = runtime
        self._emit = channel.send
        self._loaded: tuple[Any, Any, Any] | None = None
        self._poisoned = 0

    def answer(self, request: dict[str, Any]) -> None:
        """Carries out one request; its last message has either ``done`` or ``error``."""
        started = time.monotonic()
        self._where: dict[str, Any] = {"stage": "opening"}
        try:
            self._poison(request.get("poison", 0))
            _bound_memory(request.get("memory"))
            interpreter, facts = self._load(request)
            if request["do"] == "run":
                self._run(interpreter, facts, request)
                self._loaded = None
            self._emit({"done": True, "seconds": time.monotonic() - started})
        except Exception as error:
            self._loaded = None
            text = str(error) or type(error).__name__
            if self._where["stage"] == "allocating" and self._is_bound(request):
                text = f"out of memory: it reserves much more than it may ({text})"
            self._emit({**self._where, "error": text})

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
        self._loaded = None
        try:
            ctypes.CDLL(None).mallopt(M_PERTURB, byte)
        except (OSError, AttributeError):
            # Not glibc. Another process has other memory anyway.
            pass
        self._poisoned = byte

    def _enter(self, stage: str, **where: Any) -> None:
        # Sent before the work, so that the parent knows where a process that died had come to.
        self._where = {"stage": stage, **where}
        self._emit(self._where)

    def _load(self, request: dict[str, Any]) -> tuple[Any, Any]:
        key = (request["model"], request["resolver"], request["threads"])
        if self._loaded is not None and self._loaded[0] == key:
            return self._loaded[1], self._loaded[2]
        self._loaded = None
        self._enter("opening")
        interpreter = self._runtime.build(*key)
        facts = describe(interpreter)
        self._emit({"facts": facts})
        self._enter("allocating")
        interpreter.allocate_tensors()
        self._loaded = (key, interpreter, facts)
        return interpreter, facts

    def _run(self, interpreter: Any, facts: dict[str, Any], request: dict[str, Any]) -> None:
        steps = json.loads(Path(request["steps"]).read_text(encoding="utf-8"))
        for number, position in enumerate(request.get("only") or range(len(steps))):
            step = steps[position]
            self._enter("running", step=number)
            values = [(name, load_array(Path(stem))) for name, stem in step["inputs"]]
            if request.get("independent") and number:
                interpreter = self._runtime.build(request["model"], request["resolver"], request["threads"])
                interpreter.allocate_tensors()
            try:
                if step["signature"] is None:
                    results = _run_primary(interpreter, facts, values)
                else:
                    results = _run_signature(interpreter, facts, step["signature"], values)
            except Exception as error:
                if not step["optional"]:
                    raise
                self._emit({"dropped": number, "reason": str(error) or type(error).__name__})
                break
            errors = [result if isinstance(result, str) else None for result in results]
            arrays = [
                packed(f"{number}.{place}", result)
                for place, result in enumerate(results)
                if not isinstance(result, str)
            ]
            self._emit({"ran": number, "unreadable": errors}, arrays)


def _run_primary(interpreter: Any, facts: dict[str, Any], values: Any) -> list[Any]:
    """Runs the primary subgraph on inputs by position; a text instead of an output: why it is unreadable."""
    details = interpreter.get_input_details()
    if len(details) != len(values):
        raise ValueError(f"the model has {len(details)} inputs, the samples {len(values)}")
    resized = False
    for position, (_, value) in enumerate(values):
        if [int(size) for size in details[position]["shape"]] != list(value.shape):
            interpreter.resize_tensor_input(details[position]["index"], list(value.shape))
            resized = True
    if resized:
        interpreter.allocate_tensors()
    for position, (_, value) in enumerate(values):
        interpreter.set_tensor(details[position]["index"], value)
    interpreter.invoke()
    results: list[Any] = []
    for output in facts["outputs"]:
        try:
            results.append(np.asarray(interpreter.get_tensor(output["index"])))
        except Exception as error:
            results.append(str(error) or type(error).__name__)
    return results


def _run_signature(interpreter: Any, facts: dict[str, Any], key: str, values: Any) -> list[Any]:
    """Runs one signature on inputs by name, or by position where the names are others."""
    entry = next((entry for entry in facts["signatures"] if entry["key"] == key), None)
    if entry is None:
        raise ValueError(f"the model has no signature {key!r}")
    names = [item["name"] for item in entry["inputs"]]
    if len(names) != len(values):
        raise ValueError(f"signature {key!r} has {len(names)} inputs, the samples {len(values)}")
    given = dict(values)
    by_position = {name: values[position][1] for position, name in enumerate(names)}
    arguments = given if set(given) == set(names) else by_position
    result = interpreter.get_signature_runner(key)(**arguments)
    return [np.asarray(result[item["name"]]) for item in entry["outputs"]]


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


def main(sandbox: Any, wanted: str, service: Any = Service) -> None:
    """Says hello with the runtime's name, then answers requests until standard input closes.

    Args:
        sandbox: What this process is shut into; see ``sandbox.py``.
        wanted: Which runtime; see `find_runtime`.
        service: What answers, made with the runtime and the channel.
    """
    channel = Channel()
    try:
        runtime = find_runtime(wanted)
    except ImportError as error:
        channel.send({"missing": str(error)})
        return
    answers = service(runtime, channel)
    # Now all is imported.
    sandbox.seal()
    channel.send(
        {
            "hello": runtime.distribution,
            "version": runtime.version,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "sandbox": sandbox.walls,
        }
    )
    for request in _requests(sys.stdin):
        answers.answer(request)
