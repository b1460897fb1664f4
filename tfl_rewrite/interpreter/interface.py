"""What a model takes and gives: described in the child process, understood by its parent.

The child loads this file by path, with whatever Python holds the interpreter: it imports nothing of its
package and keeps to what Python 3.9 and numpy 1.x offer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:
    # Importing numpy.typing would take the child longer than all else here.
    Array = np.ndarray

STRING_NBYTES = 64
# Operators that hand the values of an input on, so that an index stays an index.
# fmt: off
CARRIERS = frozenset([
    "ADD", "BROADCAST_TO", "CAST", "CONCATENATION", "DEQUANTIZE", "EXPAND_DIMS", "FLOOR_MOD", "MAXIMUM",
    "MINIMUM", "PACK", "PAD", "PADV2", "QUANTIZE", "RESHAPE", "REVERSE_V2", "SELECT", "SELECT_V2", "SLICE",
    "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "SUB", "TILE", "TRANSPOSE", "UNPACK",
])
# fmt: on
# Operators that leave something for the next call.
STATEFUL = re.compile(r"VAR_HANDLE|READ_VARIABLE|ASSIGN_VARIABLE|SVDF|.*(LSTM|RNN).*")
# Those, tables, and what runs other subgraphs, whose operators cannot be seen.
KEEPERS = re.compile(rf"{STATEFUL.pattern}|HASHTABLE.*|CALL_ONCE|WHILE|IF|STABLEHLO_.*")
Operators = list[tuple[str, list[int], list[int]]]
"""Name, inputs and outputs of each operator of the primary subgraph."""


def printable(text: str, *, limit: int = 300) -> str:
    """Text from a file or a runtime, on one line: control characters escaped, cut at ``limit`` characters."""
    safe = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text.strip()
    )
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


def quoted(name: str) -> str:
    """A name from a file between quotes, safe to print."""
    return f"'{printable(name)}'"


@dataclass(frozen=True)
class TensorFacts:
    """One input or output.

    Attributes:
        name: In its signature, or the tensor's own where there is no signature.
        tensor: Name of the tensor.
        dtype: Name of the numpy dtype, or ``string``.
        shape: As declared; ``shape_signature`` has -1 where the size is free.
        scales: Empty when not quantized; one value, or one for each slice of ``quantized_dimension``.
        below: Its values end as indices of a table of this size.
        index: Number of the tensor in its subgraph.
        consumed: Of an output: operators of the model read it as well.
        aliases: Of an input of the primary subgraph: how signatures name the same tensor.
    """

    name: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    shape_signature: tuple[int, ...]
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    quantized_dimension: int = 0
    below: int | None = None
    index: int = -1
    consumed: bool = False
    aliases: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, detail: Any, name: str, bounds: dict[int, int], read: frozenset[int] = frozenset()
    ) -> TensorFacts:
        """In the child, from what the interpreter tells of a tensor.

        Args:
            detail: Of the tensor.
            name: What callers name it.
            bounds: For tensors that end as indices, the size that they must stay below.
            read: Tensors that operators read.
        """
        dtype = np.dtype(detail["dtype"])
        shape = tuple(int(size) for size in detail["shape"])
        quantization = detail.get("quantization_parameters", {})
        index = int(detail["index"])
        return cls(
            name=name,
            tensor=detail["name"],
            dtype="string" if dtype.kind in "SUO" else dtype.name,
            shape=shape,
            shape_signature=tuple(int(size) for size in detail.get("shape_signature", shape)),
            scales=tuple(float(scale) for scale in quantization.get("scales", ())),
            zero_points=tuple(int(zero) for zero in quantization.get("zero_points", ())),
            quantized_dimension=int(quantization.get("quantized_dimension", 0)),
            below=bounds.get(index),
            index=index,
            consumed=index in read,
        )

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> TensorFacts:
        """In the parent, from a message of the child: the fields by name."""
        fields: dict[str, Any] = {
            key: tuple(value) if type(value) is list else value for key, value in facts.items()
        }
        return cls(**fields)

    @property
    def declared(self) -> str:
        """Dtype and shape with -1 for a free size, such as ``float32[-1, 10]``."""
        return f"{self.dtype}{list(self.shape_signature)}"

    @property
    def itemsize(self) -> int:
        """Bytes of an element in memory; of a short string what Python takes, 8 of an unknown type."""
        try:
            return STRING_NBYTES if self.dtype == "string" else np.dtype(self.dtype).itemsize
        except TypeError:
            return 8

    @property
    def is_quantized(self) -> bool:
        """Integers that stand for real values."""
        return bool(self.scales) and any(self.scales) and self.dtype.startswith(("int", "uint"))


@dataclass(frozen=True)
class EntryPoint:
    """One way to call a model: a signature, or the primary subgraph when ``key`` is None.

    Attributes:
        subgraph: Which subgraph it runs; -1 where the runtime does not tell.
        among: There are signatures as well.
    """

    key: str | None
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    subgraph: int = 0
    among: bool = False

    @property
    def label(self) -> str:
        """As a report names it."""
        if self.key is not None:
            return f"signature {quoted(self.key)}"
        return "the primary subgraph" if self.among else "the model"

    def runs_all_of(self, primary: EntryPoint) -> bool:
        """Whether it is the primary subgraph with all of its outputs, called by another name."""
        if self.subgraph > 0:
            return False
        given, wanted = ({(item.index, item.tensor) for item in each.outputs} for each in (self, primary))
        return wanted <= given


@dataclass(frozen=True)
class Interface:
    """The primary subgraph and all signatures of one model.

    Attributes:
        keeps_state: It may keep something from one call to the next; False where that can be ruled out.
        carries_state: What a call gives is known to depend on those before it.
        subgraphs: How many there are; -1 where the runtime does not tell.
    """

    primary: EntryPoint
    signatures: tuple[EntryPoint, ...]
    keeps_state: bool = True
    subgraphs: int = -1
    carries_state: bool = False

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Interface:
        """From a message of the child process; see `describe`."""
        signatures = tuple(_entry_point(entry["key"], entry) for entry in facts["signatures"])
        primary = _entry_point(None, facts)
        names: dict[tuple[int, str], list[str]] = {}
        for item in (item for entry in signatures if entry.subgraph <= 0 for item in entry.inputs):
            names.setdefault((item.index, item.tensor), []).append(item.name)
        inputs = tuple(
            replace(item, aliases=tuple(names.get((item.index, item.tensor), ()))) for item in primary.inputs
        )
        return cls(
            primary=replace(primary, inputs=inputs, among=bool(signatures)),
            signatures=signatures,
            keeps_state=facts["keeps_state"],
            subgraphs=facts["subgraphs"],
            carries_state=facts["carries_state"],
        )

    @property
    def all_are_called(self) -> bool:
        """Whether each subgraph is the primary one or that of a signature: no operator runs another."""
        return self.subgraphs == len({0, *(entry.subgraph for entry in self.signatures)} - {-1})

    @property
    def entry_points(self) -> tuple[EntryPoint, ...]:
        """What is run: every signature, and the primary subgraph unless a signature runs all of it.

        ``Interpreter.invoke`` runs the primary subgraph, whatever signatures a file has.
        """
        if any(entry.runs_all_of(self.primary) for entry in self.signatures):
            return self.signatures
        return (*self.signatures, self.primary)

    @property
    def primary_keys(self) -> frozenset[str]:
        """Signatures that call the primary subgraph; the oldest runtimes tell only by its tensors."""
        own = {(item.index, item.tensor) for item in self.primary.inputs}
        return frozenset(
            entry.key
            for entry in self.signatures
            if entry.key is not None
            if entry.subgraph == 0
            or (entry.subgraph < 0 and {(item.index, item.tensor) for item in entry.inputs} == own)
        )

    def find(self, key: str | None) -> EntryPoint | None:
        """The entry point of that key."""
        return next((entry for entry in (*self.signatures, self.primary) if entry.key == key), None)


def _entry_point(key: str | None, facts: dict[str, Any]) -> EntryPoint:
    return EntryPoint(
        key=key,
        inputs=tuple(TensorFacts.from_dict(item) for item in facts["inputs"]),
        outputs=tuple(TensorFacts.from_dict(item) for item in facts["outputs"]),
        subgraph=facts["subgraph"],
    )


# -- in the child ----------------------------------------------------------------------------------------


def describe(interpreter: Any, operators: Operators) -> dict[str, Any]:
    """Inputs and outputs of the primary subgraph and of every signature, as the file declares them.

    Args:
        interpreter: Of the model.
        operators: See `operators_of`.
    """
    try:
        bounds = index_bounds(interpreter, operators)
    except Exception:
        bounds = {}
    read = frozenset(tensor for _, given, _ in operators for tensor in given)
    inputs = [
        vars(TensorFacts.of(detail, detail["name"], bounds)) for detail in interpreter.get_input_details()
    ]
    outputs = [
        vars(TensorFacts.of(detail, detail["name"], {}, read)) for detail in interpreter.get_output_details()
    ]
    signatures = []
    by_name = {facts["tensor"]: facts["below"] for facts in inputs}
    for key in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(key)
        subgraph = _subgraph_of(interpreter, key)
        own, reads = (bounds, read) if subgraph == 0 else ({}, frozenset[int]())
        given, results = runner.get_input_details().items(), runner.get_output_details().items()
        entries: dict[str, Any] = {
            "key": key,
            "subgraph": subgraph,
            "inputs": [vars(TensorFacts.of(detail, name, own)) for name, detail in given],
            "outputs": [vars(TensorFacts.of(detail, name, {}, reads)) for name, detail in results],
        }
        signatures.append(entries)
        by_name.update({facts["name"]: facts["below"] for facts in entries["inputs"] if facts["below"]})
    for entry in signatures:
        # The operators of other subgraphs cannot be seen: an input of the same name is taken for the same.
        for facts in entry["inputs"]:
            facts["below"] = facts["below"] or by_name.get(facts["name"])
    names = [name for name, _, _ in operators]
    primary = all(entry["subgraph"] == 0 for entry in signatures)
    # A custom operator, whose name is its author's, may keep anything.
    innocent = [name for name in names if re.fullmatch(r"[A-Z0-9_]+", name) and not KEEPERS.fullmatch(name)]
    called = {entry["subgraph"] for entry in signatures} - {-1, 0}
    carried = [name for name in names if STATEFUL.fullmatch(name)]
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
        "carries_state": bool(carried) or any(_has_variables(interpreter, graph) for graph in called),
    }


def _has_variables(interpreter: Any, subgraph: int) -> bool:
    """Whether a subgraph has tensors that stand for resources; its operators cannot be seen."""
    try:
        inside = interpreter._interpreter
        types = [inside.TensorType(tensor, subgraph) for tensor in range(inside.NumTensors(subgraph))]
    except Exception:
        # A runtime that does not tell, or a tensor without a type.
        return False
    return any(np.dtype(found) == object for found in types)


def operators_of(interpreter: Any) -> Operators:
    """The operators of the primary subgraph.

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


def _subgraph_of(interpreter: Any, key: str) -> int:
    try:
        return int(interpreter._interpreter.GetSubgraphIndexFromSignature(key))
    except Exception:
        return -1


_INDEXED = ("EMBEDDING_LOOKUP", "GATHER", "GATHER_ND")


def index_bounds(interpreter: Any, operators: Operators) -> dict[int, int]:
    """For each tensor of the primary subgraph that ends as an index: the size it must stay below.

    Walks the operators from the last to the first, handing a bound from the output of an operator that
    only carries values to its inputs. Must be called before the graph is delegated.
    """
    if not any(name in _INDEXED for name, _, _ in operators):
        return {}
    shapes = {
        int(detail["index"]): [int(size) for size in detail["shape"]]
        for detail in interpreter.get_tensor_details()
    }
    bounds: dict[int, int] = {}
    for name, inputs, outputs in reversed(operators):
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


def _index_operand(name: str, inputs: list[int], outputs: list[int], shapes: Any) -> tuple[int, int] | None:
    """Which tensor of an operator holds indices, and the size that they must stay below.

    The axis of GATHER is not visible here, so it is inferred from the shape of the output; where several
    axes fit, the smallest of their sizes is safe for all.
    """
    if name not in _INDEXED or len(inputs) < 2:
        return None
    if name == "EMBEDDING_LOOKUP":
        rows = shapes.get(inputs[1])
        return (inputs[0], int(rows[0])) if rows else None
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
