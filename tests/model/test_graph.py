"""Who makes and who reads a tensor, and which are part of an interface."""

from __future__ import annotations

from tests.nets import Net
from tfl_rewrite.model.graph import Graph


def test_each_tensor_has_its_maker_its_readers_and_its_place_in_an_interface() -> None:
    net = Net()
    source, weight = net.input("x", (1, 2)), net.weights("w", (2, 2))
    inner = net.dense(source, weight, "inner")
    result = net.dense(inner, weight, "y")
    net.output(result)
    first, second = net.graph.operators
    graph = Graph.of(net.model)
    assert [graph.maker_of(item) for item in (source, weight, inner, result)] == [None, None, first, second]
    assert [(use.operator, use.position, use.subgraph) for use in graph.uses_of(weight)] == [
        (first, 1, net.graph),
        (second, 1, net.graph),
    ]
    assert graph.uses_of(result) == []
    assert graph.exposed == {id(source), id(result)} and graph.given == {id(source)}
    assert [graph.is_constant(item) for item in (source, weight, inner)] == [False, True, False]


def test_what_a_signature_names_is_part_of_an_interface() -> None:
    net = Net()
    weight, result = net.weights("w", (2, 2)), net.weights("y", (2, 2))
    net.graph.inputs, net.graph.outputs = [weight], [result]
    net.sign("serve")
    net.graph.inputs, net.graph.outputs = [], []
    graph = Graph.of(net.model)
    assert graph.exposed == {id(weight), id(result)} and graph.given == {id(weight)}
    assert [graph.is_constant(item) for item in (weight, result)] == [False, True]
