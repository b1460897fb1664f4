"""Models around the recurrent operators, which today's converter no longer emits on request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from . import samples
from .builder import ABSENT, GraphBuilder, ModelBuilder, weights

GATES = ("input", "forget", "cell", "output")
STEPS = 6


def gate_constants(graph: GraphBuilder, name: str, matrices: Sequence[np.ndarray]) -> list[int]:
    """Adds one constant a gate, in the operator's order."""
    return [graph.constant(f"{name}_{gate}", matrix) for gate, matrix in zip(GATES, matrices, strict=True)]


def lstm_options(kind: type) -> Any:
    """Batch-major options of either LSTM operator, with tanh and no clipping."""
    options = kind()
    options.fusedActivationFunction = schema.ActivationFunctionType.TANH
    options.timeMajor = False
    return options


def lstm_classifier(
    *, lift: Sequence[np.ndarray], cell: Sequence[np.ndarray], head: Sequence[np.ndarray]
) -> bytes:
    """Assembles dense, UNIDIRECTIONAL_SEQUENCE_LSTM, last step, dense from Keras weights.

    Args:
        lift: kernel `[8, features]` and bias of the first dense layer (ReLU).
        cell: kernel `[features, 4 * units]`, recurrent kernel `[units, 4 * units]` and bias `[4 * units]`,
            gates in the order input, forget, cell, output, which is the operator's order as well.
        head: kernel `[units, classes]` and bias of the last dense layer.
    """
    units, features = cell[1].shape[0], cell[0].shape[0]
    model = ModelBuilder("an LSTM that reads digits row by row")
    graph = model.graph("main")
    rows = graph.input("rows", [1, 8, 8])

    lifted = graph.value("lifted", [1, 8, features])
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU
    lift_inputs = [rows, graph.constant("lift/weights", lift[0].T), graph.constant("lift/bias", lift[1])]
    graph.operator("FULLY_CONNECTED", lift_inputs, [lifted], options, version=5)

    states = graph.value("states", [1, 8, units])
    graph.operator(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        [
            lifted,
            *gate_constants(graph, "lstm/input_to", np.split(cell[0].T, 4)),
            *gate_constants(graph, "lstm/recurrent_to", np.split(cell[1].T, 4)),
            *[ABSENT] * 3,  # no peephole
            *gate_constants(graph, "lstm/bias", np.split(cell[2], 4)),
            *[ABSENT] * 2,  # no projection
            graph.variable("lstm/output_state", [1, units]),
            graph.variable("lstm/cell_state", [1, units]),
            *[ABSENT] * 4,  # no layer normalization
        ],
        [states],
        lstm_options(schema.UnidirectionalSequenceLSTMOptionsT),
    )

    last = graph.value("last_state", [1, units])
    slicing = schema.StridedSliceOptionsT()
    slicing.shrinkAxisMask = 0b010
    slicing.beginMask = slicing.endMask = 0b101
    bounds = [
        graph.constant(f"last/{name}", np.array(value, np.int32))
        for name, value in (("begin", [0, -1, 0]), ("end", [0, 8, 0]), ("strides", [1, 1, 1]))
    ]
    graph.operator("STRIDED_SLICE", [states, *bounds], [last], slicing)
    graph.finish(graph.fully_connected(last, head[0].T, head[1], name="logits"))
    return model.pack()


def save(out: Path, name: str, model: ModelBuilder, x: int) -> None:
    """Writes the model and eight samples of its only input."""
    (out / f"{name}.tflite").write_bytes(model.pack())
    tensor = model.model.subgraphs[0].tensors[x]
    inputs = samples.vectors(8, *tensor.shape[1:])
    samples.save_npz(out / "inputs" / f"{name}.npz", **{tensor.name: inputs})


def make_bidirectional_lstm(out: Path) -> None:
    """BIDIRECTIONAL_SEQUENCE_LSTM whose outputs are merged; weights of both directions are large."""
    rng = samples.seeded()
    units, width = 36, 32
    model = ModelBuilder("a bidirectional LSTM")
    graph = model.graph("main")
    x = graph.input("sequence", [1, STEPS, width])

    def direction(name: str) -> tuple[list[int], list[int]]:
        constants = [
            *gate_constants(graph, f"{name}/input_to", [weights(rng, units, width) for _ in GATES]),
            *gate_constants(graph, f"{name}/recurrent_to", [weights(rng, units, units) for _ in GATES]),
            *[ABSENT] * 3,
            *gate_constants(graph, f"{name}/bias", [weights(rng, units) for _ in GATES]),
            *[ABSENT] * 2,
        ]
        return constants, [graph.variable(f"{name}/{kind}_state", [1, units]) for kind in ("output", "cell")]

    forward, forward_states = direction("forward")
    backward, backward_states = direction("backward")
    result = graph.value("merged", [1, STEPS, 2 * units])
    options = lstm_options(schema.BidirectionalSequenceLSTMOptionsT)
    options.mergeOutputs = True
    graph.operator(
        "BIDIRECTIONAL_SEQUENCE_LSTM",
        [x, *forward, *backward, *forward_states, *backward_states, *[ABSENT] * 9],  # no auxiliary input
        [result],
        options,
    )
    graph.finish(result)
    save(out, "bidirectional_lstm", model, x)


def make_rnn(out: Path) -> None:
    """UNIDIRECTIONAL_SEQUENCE_RNN over a sequence, then RNN over its last step."""
    rng = samples.seeded()
    units, width = 40, 32
    model = ModelBuilder("the two basic recurrent operators")
    graph = model.graph("main")
    x = graph.input("sequence", [1, STEPS, width])

    def cell(name: str, columns: int) -> list[int]:
        return [
            graph.constant(f"{name}/weights", weights(rng, units, columns)),
            graph.constant(f"{name}/recurrent_weights", weights(rng, units, units)),
            graph.constant(f"{name}/bias", weights(rng, units)),
            graph.variable(f"{name}/hidden_state", [1, units]),
        ]

    states = graph.value("states", [1, STEPS, units])
    sequence_options = schema.SequenceRNNOptionsT()
    sequence_options.timeMajor = False
    sequence_options.fusedActivationFunction = schema.ActivationFunctionType.TANH
    graph.operator("UNIDIRECTIONAL_SEQUENCE_RNN", [x, *cell("first", width)], [states], sequence_options)

    mean = graph.value("mean_state", [1, units])
    graph.operator(
        "MEAN", [states, graph.constant("axis", np.array([1], np.int32))], [mean], schema.ReducerOptionsT()
    )
    result = graph.value("result", [1, units])
    options = schema.RNNOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.TANH
    graph.operator("RNN", [mean, *cell("second", units)], [result], options)
    graph.finish(result)
    save(out, "rnn", model, x)


def make_svdf(out: Path) -> None:
    """SVDF, the keyword spotter's operator: its memory is a variable tensor."""
    rng = samples.seeded()
    width, units, rank, memory = 40, 48, 2, 12
    filters = units * rank
    model = ModelBuilder("a singular value decomposition filter")
    graph = model.graph("main")
    x = graph.input("frame", [1, width])
    result = graph.value("result", [1, units])
    options = schema.SVDFOptionsT()
    options.rank = rank
    graph.operator(
        "SVDF",
        [
            x,
            graph.constant("weights_feature", weights(rng, filters, width)),
            graph.constant("weights_time", weights(rng, filters, memory)),
            graph.constant("bias", weights(rng, units)),
            graph.variable("activation_state", [1, memory * filters]),
        ],
        [result],
        options,
    )
    graph.finish(result)
    save(out, "svdf", model, x)
