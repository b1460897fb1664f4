"""What damaged models led to, each as a small model of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.nets import Net
from tfl_rewrite.editing import PassResult
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.integers.ranges import GivenModel, TensorRanges
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Buffer, Model
from tfl_rewrite.passes import Quantize


def quantized(model: Model, **options: Any) -> PassResult:
    """Quantizes with -1 to 1 for every float tensor."""
    tensors = [item for subgraph in model.subgraphs for item in subgraph.tensors]
    ranges = TensorRanges.of(GivenModel.of(model), {id(item): (-1.0, 1.0) for item in tensors})
    known = broken(model)
    (result,) = run_passes(model, [Quantize(ranges=ranges, effort="fast", **options)])
    assert broken(model) == known
    return result


def kept(result: PassResult) -> list[str]:
    return [skip.reason for skip in result.skips]


def test_what_is_computed_has_bytes_in_the_file() -> None:
    net = Net()
    hidden = net.add("RELU", [net.input("in", (1, 4))], "hidden", (1, 4))
    net.output(net.add("ABS", [hidden], "out", (1, 4)))
    hidden.buffer = net.buffer(np.arange(4, dtype=np.float32).tobytes())
    quantized(net.model)
    assert hidden.dtype_name == "INT8" and hidden.buffer.blob is None


def test_a_pool_that_reads_nothing() -> None:
    net = Net()
    source = net.input("in", (1, 4, 4, 2))
    net.output(net.add("AVERAGE_POOL_2D", [], "pooled", (1, 1, 1, 2)))
    net.output(net.add("RELU", [source], "out", (1, 4, 4, 2)))
    assert kept(quantized(net.model)) == ["AVERAGE_POOL_2D has no inputs; its kernel takes 1"]


def test_a_summand_that_is_no_float() -> None:
    net = Net()
    source = net.input("in", (1, 2))
    net.output(net.add("ADD", [source, net.constant("n", np.array([1, 2], np.int32))], "out", (1, 2)))
    net.output(net.add("RELU", [source], "plain", (1, 2)))
    assert kept(quantized(net.model)) == ["input 1 of ADD holds no floats"]


def test_weights_that_are_no_numbers() -> None:
    for weight, bias in (([np.nan, 1.0], 0.0), ([1.0, np.inf], 0.0), ([1.0, 1.0], np.nan)):
        net = Net()
        source = net.input("in", (1, 2))
        held = net.constant("w", np.array([weight], np.float32))
        net.output(net.dense(source, held, "out", net.constant("b", np.array([bias], np.float32))))
        net.output(net.add("RELU", [source], "plain", (1, 2)))
        (why,) = kept(quantized(net.model))
        assert why == "there is a number that is not finite in the weights of FULLY_CONNECTED"


def test_a_model_without_buffers() -> None:
    net = Net()
    net.output(net.add("RELU", [net.input("in", (1, 2))], "out", (1, 2)))
    net.model.buffers.clear()
    for tensor in net.graph.tensors:
        tensor.buffer = Buffer()
    quantized(net.model)
    assert all(any(tensor.buffer is item for item in net.model.buffers) for tensor in net.graph.tensors)
