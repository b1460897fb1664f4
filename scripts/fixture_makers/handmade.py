"""Small models for one peculiarity each, assembled tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from . import samples
from .builder import GraphBuilder, ModelBuilder, weights
from .object_api import pack

WIDTH, OUT = 40, 32


def save(out: Path, name: str, model: ModelBuilder, **inputs: np.ndarray) -> None:
    """Writes the model and its inputs."""
    path = out / f"{name}.tflite"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.pack())
    samples.save_npz(out / "inputs" / f"{name}.npz", **inputs)


def dense_model() -> ModelBuilder:
    """One FULLY_CONNECTED with a signature: the smallest model that is worth rewriting."""
    rng = samples.seeded()
    model = ModelBuilder("one dense layer")
    graph = model.graph("main")
    x = graph.input("x", [1, WIDTH])
    y = graph.fully_connected(x, weights(rng, OUT, WIDTH), weights(rng, OUT), name="dense")
    graph.finish(y)
    model.signature("serving_default", 0, {"x": x}, {"y": y})
    return model


def make_dense(out: Path) -> None:
    """Writes the single dense layer, which is also the parent of most malformed files."""
    save(out, "dense", dense_model(), x=samples.vectors(8, WIDTH))


def make_dense_defaults_present(out: Path) -> None:
    """Writes the dense layer again with every scalar field present, default values included."""
    (out / "dense_defaults_present.tflite").write_bytes(pack(dense_model().model, force_defaults=True))
    samples.save_npz(out / "inputs" / "dense_defaults_present.npz", x=samples.vectors(8, WIDTH))


def make_if_branches(out: Path) -> None:
    """An IF each of whose branches has a weight of its own (a converter would pass both in as inputs)."""
    rng = samples.seeded()
    model = ModelBuilder("two branches, two weights")
    main = model.graph("main")
    x = main.input("x", [1, WIDTH])
    total, positive = main.value("sum", []), main.value("positive", [], "bool")
    axes = main.constant("axes", np.array([0, 1], np.int32))
    main.operator("SUM", [x, axes], [total], schema.ReducerOptionsT())
    zero = main.constant("zero", np.zeros([], np.float32))
    main.operator("GREATER", [total, zero], [positive], schema.GreaterOptionsT())
    y = main.value("y", [1, OUT])
    options = schema.IfOptionsT()
    options.thenSubgraphIndex, options.elseSubgraphIndex = 1, 2
    main.operator("IF", [positive, x], [y], options)
    main.finish(y)
    for name in ("then", "else"):
        branch = model.graph(name)
        inner = branch.input(f"{name}_x", [1, WIDTH])
        dense = branch.fully_connected(inner, weights(rng, OUT, WIDTH), weights(rng, OUT), name=name)
        branch.finish(dense)
    save(out, "if_branches", model, x=samples.vectors(8, WIDTH))


def make_shared_constant_two_ops(out: Path) -> None:
    """One constant is the weight of a FULLY_CONNECTED and an operand of a MUL."""
    rng = samples.seeded()
    model = ModelBuilder("one constant, two consumers")
    graph = model.graph("main")
    x = graph.input("x", [1, WIDTH])
    shared = graph.constant("shared", weights(rng, OUT, WIDTH))
    bias = graph.constant("bias", weights(rng, OUT))
    dense, product = graph.value("dense", [1, OUT]), graph.value("product", [OUT, WIDTH])
    graph.operator("FULLY_CONNECTED", [x, shared, bias], [dense], schema.FullyConnectedOptionsT())
    graph.operator("MUL", [x, shared], [product], schema.MulOptionsT())
    graph.finish(dense, product)
    save(out, "shared_constant_two_ops", model, x=samples.vectors(8, WIDTH))


def make_conv_without_bias(out: Path) -> None:
    """A CONV_2D with two inputs only: legal in float, refused by the hybrid kernel."""
    model = ModelBuilder("a convolution without bias")
    graph = model.graph("main")
    x = graph.input("x", [1, 6, 6, 16])
    kernel = graph.constant("kernel", weights(samples.seeded(), 12, 3, 3, 16))
    y = graph.value("y", [1, 4, 4, 12])
    options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    graph.operator("CONV_2D", [x, kernel], [y], options)
    graph.finish(y)
    save(out, "conv_without_bias", model, x=samples.vectors(4, 6, 6, 16))


def make_string_input(out: Path) -> None:
    """A string input, gathered by builtin kernels, beside a dense layer that can be quantized."""
    rng = samples.seeded()
    model = ModelBuilder("strings in, strings out")
    graph = model.graph("main")
    words = graph.input("words", [1, 4], "string")
    x = graph.input("x", [1, WIDTH])
    row = graph.value("row", [4], "string")  # the kernel gathers strings from vectors only
    graph.operator("RESHAPE", [words, graph.constant("shape", np.array([4], np.int32))], [row])
    backwards = graph.value("backwards", [4], "string")
    order = graph.constant("order", np.array([3, 2, 1, 0], np.int32))
    graph.operator("GATHER", [row, order], [backwards], schema.GatherOptionsT())
    y = graph.fully_connected(x, weights(rng, OUT, WIDTH), weights(rng, OUT), name="dense")
    graph.finish(backwards, y)
    text = np.array([[b"one", b"two", b"three", b"four"], [b"", b"a", "é".encode(), b"last"]])
    save(out, "string_input", model, words=text, x=samples.vectors(2, WIDTH))


def make_composite(out: Path) -> None:
    """A STABLEHLO_COMPOSITE whose decomposition, subgraph 1, holds the weight."""
    rng = samples.seeded()
    model = ModelBuilder("a composite operator")
    main, body = model.graph("main"), model.graph("decomposition")
    x, y = main.input("x", [1, WIDTH]), main.value("y", [1, OUT])
    options = schema.StableHLOCompositeOptionsT()
    options.name = "example.dense"
    options.decompositionSubgraphIndex = 1
    options.version = 1
    options.compositeAttributes = np.frombuffer(flexbuffers.Dumps({"units": OUT}), np.uint8)
    main.operator("STABLEHLO_COMPOSITE", [x], [y], options)
    main.finish(y)
    inner = body.input("inner_x", [1, WIDTH])
    body.finish(body.fully_connected(inner, weights(rng, OUT, WIDTH), weights(rng, OUT), name="inner"))
    save(out, "composite", model, x=samples.vectors(8, WIDTH))


def quantization(scale: np.ndarray, *, axis: int = 0) -> schema.QuantizationParametersT:
    """Symmetric quantization, one scale for each index of `axis`."""
    parameters = schema.QuantizationParametersT()
    parameters.scale = scale.astype(np.float32)
    parameters.zeroPoint = np.zeros(scale.size, np.int64)
    parameters.quantizedDimension = axis
    return parameters


def pack_int4(values: np.ndarray) -> np.ndarray:
    """Two values a byte, the earlier one in the low nibble, two's complement."""
    nibbles = values.reshape(-1, 2).astype(np.uint8) & 0xF
    return nibbles[:, 0] | nibbles[:, 1] << 4


def int4_weight(graph: GraphBuilder, values: np.ndarray) -> tuple[int, schema.TensorT]:
    """Adds an INT4 constant `[out, in]`; the caller says how it is quantized."""
    buffer = graph.model.buffer(pack_int4(values))
    tensor = graph.tensor("weights", values.shape, schema.TensorType.INT4, buffer=buffer)
    return graph.last, tensor


def dense_int4(graph: GraphBuilder, weight: int, *, width: int, version: int) -> None:
    """Finishes a graph with one FULLY_CONNECTED over int4 weights and float activations."""
    x = graph.input("x", [1, width])
    bias = graph.constant("bias", weights(samples.seeded(), OUT))
    y = graph.value("y", [1, OUT])
    graph.operator(
        "FULLY_CONNECTED", [x, weight, bias], [y], schema.FullyConnectedOptionsT(), version=version
    )
    graph.finish(y)


def int8_model() -> ModelBuilder:
    """One hybrid FULLY_CONNECTED: int8 weights with a scale per output channel, float activations."""
    rng = samples.seeded()
    dense = weights(rng, OUT, WIDTH)
    scale = np.abs(dense).max(axis=1) / 127
    model = ModelBuilder("int8 weights, a scale per channel")
    graph = model.graph("main")
    x = graph.input("x", [1, WIDTH])
    weight = graph.constant("weights", np.round(dense / scale[:, None]).astype(np.int8))
    graph.subgraph.tensors[weight].quantization = quantization(scale)
    bias = graph.constant("bias", weights(rng, OUT))
    y = graph.value("y", [1, OUT])
    graph.operator("FULLY_CONNECTED", [x, weight, bias], [y], schema.FullyConnectedOptionsT(), version=12)
    graph.finish(y)
    return model


def make_already_int8(out: Path) -> None:
    """Writes the hybrid int8 layer: there is nothing left to quantize."""
    save(out, "already_int8", int8_model(), x=samples.vectors(8, WIDTH))


def make_already_int4(out: Path) -> None:
    """FULLY_CONNECTED over int4 weights with a scale per output channel."""
    dense = weights(samples.seeded(), OUT, WIDTH)
    scale = np.abs(dense).max(axis=1) / 7
    model = ModelBuilder("int4 weights, a scale per channel")
    graph = model.graph("main")
    weight, tensor = int4_weight(graph, np.round(dense / scale[:, None]).astype(np.int8))
    tensor.quantization = quantization(scale)
    dense_int4(graph, weight, width=WIDTH, version=10)
    save(out, "already_int4", model, x=samples.vectors(8, WIDTH))


def make_blockwise_int4(out: Path) -> None:
    """FULLY_CONNECTED over int4 weights whose float16 scales, one per 32 inputs, are a tensor."""
    width, block = 64, 32
    dense = weights(samples.seeded(), OUT, width)
    blocks = dense.reshape(OUT, width // block, block)
    scale = (np.abs(blocks).max(axis=2) / 7).astype(np.float16)
    values = np.clip(np.round(blocks / scale[..., None].astype(np.float32)), -7, 7).astype(np.int8)
    model = ModelBuilder("int4 weights, a scale per block")
    graph = model.graph("main")
    weight, tensor = int4_weight(graph, values.reshape(OUT, width))
    details = schema.BlockwiseQuantizationT()
    details.scales = graph.constant("scales", scale)
    details.zeroPoints = -1
    details.blockSize = block
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
    tensor.quantization.details = details
    dense_int4(graph, weight, width=width, version=13)
    save(out, "blockwise_int4", model, x=samples.vectors(8, width))


def make_sparse(out: Path) -> None:
    """FULLY_CONNECTED over weights that store only their non-zero elements (CSR)."""
    rng = samples.seeded()
    dense = weights(rng, OUT, WIDTH)
    dense[rng.random(dense.shape) < 0.75] = 0
    rows, columns = np.nonzero(dense)
    segments = np.searchsorted(rows, np.arange(OUT + 1)).astype(np.uint16)

    outer, inner = schema.DimensionMetadataT(), schema.DimensionMetadataT()
    outer.format = schema.DimensionType.DENSE
    outer.denseSize = OUT
    inner.format = schema.DimensionType.SPARSE_CSR
    inner.arraySegmentsType = schema.SparseIndexVector.Uint16Vector
    inner.arraySegments = schema.Uint16VectorT()
    inner.arraySegments.values = segments
    inner.arrayIndicesType = schema.SparseIndexVector.Uint8Vector
    inner.arrayIndices = schema.Uint8VectorT()
    inner.arrayIndices.values = columns.astype(np.uint8)

    model = ModelBuilder("sparse weights")
    graph = model.graph("main")
    x = graph.input("x", [1, WIDTH])
    tensor = graph.tensor(
        "weights", dense.shape, schema.TensorType.FLOAT32, buffer=model.buffer(dense[rows, columns])
    )
    weight = graph.last
    tensor.sparsity = schema.SparsityParametersT()
    tensor.sparsity.traversalOrder = [0, 1]
    tensor.sparsity.dimMetadata = [outer, inner]
    y = graph.value("y", [1, OUT])
    bias = graph.constant("bias", weights(rng, OUT))
    graph.operator("FULLY_CONNECTED", [x, weight, bias], [y], schema.FullyConnectedOptionsT(), version=8)
    graph.finish(y)
    save(out, "sparse", model, x=samples.vectors(8, WIDTH))
