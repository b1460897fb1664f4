"""Models that hypothesis generates: chains of layers over shared constants, in several subgraphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from tfl_rewrite.model.ir import Model, Tensor

from ..nets import Net

WIDTH = 40  # of every value that goes from layer to layer
ROWS = 4

Layer = Callable[["Built", Tensor, int], Tensor]


@dataclass
class Built:
    """A net and the constants of it that later layers may read again."""

    net: Net
    shared: list[Tensor] = field(default_factory=list)
    squares: dict[int, list[Tensor]] = field(default_factory=dict)

    def weights(self, shape: tuple[int, ...], kind: int) -> Tensor:
        """Weights of a kind: fresh, fresh in float16, or those of an earlier layer (or of its bytes)."""
        name = f"w{len(self.net.model.buffers)}_{len(self.net.graph.tensors)}"
        here = [
            t for t in self.shared if t.shape == shape and any(t is item for item in self.net.graph.tensors)
        ]
        elsewhere = [t for t in self.shared if t.shape == shape and t.buffer.blob is not None]
        if kind == 1:
            made = self.net.half(name, self.net.random.standard_normal(shape) * 0.2)
        elif kind == 2 and here:
            return here[-1]
        elif kind == 3 and elsewhere:
            made = self.net.weights(name, shape, elsewhere[-1].buffer)
        else:
            made = self.net.weights(name, shape)
        self.shared.append(made)
        return made


def _dense(built: Built, source: Tensor, kind: int) -> Tensor:
    bias = None
    if kind % 2:
        values = built.net.random.standard_normal(WIDTH)
        name = f"bias{len(built.net.graph.tensors)}"
        bias = (
            built.net.half(name, values) if kind == 1 else built.net.constant(name, values.astype(np.float32))
        )
    return built.net.dense(source, built.weights((WIDTH, WIDTH), kind), _name(built), bias)


def _multiply(built: Built, source: Tensor, kind: int) -> Tensor:
    return built.net.add("MUL", [source, built.weights((ROWS, WIDTH), kind)], _name(built), (ROWS, WIDTH))


def _wide(built: Built, source: Tensor, kind: int) -> Tensor:
    """Adds a table of 1,600 elements, the same that dense layers may read."""
    net = built.net
    flat = net.add(
        "RESHAPE",
        [source, net.constant(_name(built), np.array([4, 1, 40], np.int32))],
        _name(built),
        (4, 1, 40),
    )
    table = built.weights((WIDTH, WIDTH), kind)
    summed = net.add("ADD", [flat, table], _name(built), (4, 40, 40))
    axes = net.constant(_name(built), np.array([1], np.int32))
    return net.add("MEAN", [summed, axes], _name(built), (ROWS, WIDTH))


def _product(built: Built, source: Tensor, kind: int) -> Tensor:
    weight = built.weights((WIDTH, WIDTH), kind)
    return built.net.add("BATCH_MATMUL", [source, weight], _name(built), (ROWS, WIDTH), adj_y=kind % 2 == 1)


def _convolution(built: Built, source: Tensor, kind: int) -> Tensor:
    net = built.net
    shape = net.constant(_name(built), np.array([1, 4, 5, 8], np.int32))
    image = net.add("RESHAPE", [source, shape], _name(built), (1, 4, 5, 8))
    bias = net.constant(_name(built), np.linspace(-1, 1, 8).astype(np.float32))
    if kind % 2:
        weight = built.weights((1, 3, 3, 8), 0 if kind == 3 else kind)
        options = {"stride_w": 1, "stride_h": 1, "depth_multiplier": 1}
        image = net.add("DEPTHWISE_CONV_2D", [image, weight, bias], _name(built), (1, 4, 5, 8), **options)
    else:
        weight = built.weights((8, 3, 3, 8), kind)
        image = net.add("CONV_2D", [image, weight, bias], _name(built), (1, 4, 5, 8), stride_w=1, stride_h=1)
    back = net.constant(_name(built), np.array([ROWS, WIDTH], np.int32))
    return net.add("RESHAPE", [image, back], _name(built), (ROWS, WIDTH))


def _lookup(built: Built, source: Tensor, kind: int) -> Tensor:
    net = built.net
    positions = net.constant(_name(built), np.array([0, 39, 7, 7], np.int32))
    rows = net.add(
        "GATHER", [built.weights((WIDTH, WIDTH), kind), positions], _name(built), (ROWS, WIDTH), axis=0
    )
    return net.add("ADD", [source, rows], _name(built), (ROWS, WIDTH))


LAYERS: dict[str, Layer] = {
    "dense": _dense,
    "multiply": _multiply,
    "wide": _wide,
    "product": _product,
    "convolution": _convolution,
    "lookup": _lookup,
}


def _name(built: Built) -> str:
    return f"t{built.net.model.subgraphs.index(built.net.graph)}_{len(built.net.graph.tensors)}"


# A seed, and for each subgraph the layers with the kind of weights they get.
Recipe = tuple[int, list[list[tuple[str, int]]]]

_steps = st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.integers(0, 3)), min_size=1, max_size=5)
recipes: st.SearchStrategy[Recipe] = st.tuples(
    st.integers(0, 2**16), st.lists(_steps, min_size=1, max_size=2)
)


def build(recipe: Recipe) -> Model:
    """Each subgraph is a chain of layers with its own signature."""
    seed, graphs = recipe
    built = Built(Net(seed))
    for number, steps in enumerate(graphs):
        if number:
            built.net.next_subgraph(f"graph{number}")
        current = built.net.input(f"x{number}", (ROWS, WIDTH))
        for layer, kind in steps:
            current = LAYERS[layer](built, current, kind)
        built.net.output(current)
        built.net.sign(f"signature{number}")
    return built.net.model
