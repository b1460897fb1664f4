"""Where models may be cut, and where it is done: few bytes, parts of a size, no torn states."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite.errors import UnsupportedError, UsageError
from tfl_rewrite.model.ir import Model
from tfl_rewrite.shards.partition import Partition


def tower(widths: list[int]) -> Model:
    """Layers one after the other."""
    net = Net()
    value = net.input("x", (1, widths[0]))
    for number, (size, wide) in enumerate(itertools.pairwise(widths)):
        value = net.dense(value, net.weights(f"w{number}", (wide, size)), f"y{number}")
    net.output(value)
    return net.model


def test_cuts_lie_where_few_bytes_cross() -> None:
    partition = Partition(tower([40, 40, 40, 4, 40, 40, 40]))
    assert [partition.crossing(at) for at in range(1, 6)] == [160, 160, 16, 160, 160]
    assert partition.of_count(2) == [3]
    assert len(partition.of_count(6)) == 5
    with pytest.raises(UnsupportedError, match="can be cut at 5 places, not at 6: it has 6 operators"):
        partition.of_count(7)


def test_parts_are_about_as_large_as_each_other_where_bytes_are_equal() -> None:
    partition = Partition(tower([30] * 10))
    assert partition.of_count(3) == [3, 6]


def test_parts_of_a_size_are_few() -> None:
    model = tower([40, 40, 40, 4, 40, 40, 40])
    partition = Partition(model)
    assert partition.of_size(100_000) == []
    assert partition.of_size(16_000) == [3]
    assert len(partition.of_size(7_000)) == 4
    with pytest.raises(UnsupportedError, match=r"FULLY_CONNECTED with what belongs to it takes about 6,\d+"):
        partition.of_size(5_000)


def test_tensors_say_where() -> None:
    model = tower([4, 4, 4])
    main = model.subgraphs[0]
    partition = Partition(model)
    assert partition.at([main.tensor("y0")]) == [1]
    for name, why in (("y1", "is made last"), ("w0", "made by no operator"), ("x", "made by no operator")):
        with pytest.raises(UsageError, match=why):
            partition.at([main.tensor(name)])


def test_what_comes_of_constants_alone_is_in_each_part_that_needs_it() -> None:
    net = Net()
    half = net.half("w", np.ones((4, 4)))
    one = net.dense(net.input("x", (1, 4)), half, "one")
    net.output(net.dense(one, half, "two"))
    partition = Partition(net.model)
    assert partition.line == [1, 2]
    first, second = partition.stretches(partition.of_count(2))
    assert first.operators == [0, 1] and second.operators == [0, 2]
    assert [item.name for item in (*first.outputs, *second.inputs)] == ["one", "one"]


def test_what_skips_a_part_goes_from_its_maker() -> None:
    net = Net()
    given = net.input("x", (1, 4))
    first = net.add("NEG", [given], "a", (1, 4))
    second = net.add("NEG", [first], "b", (1, 4))
    net.output(net.add("ADD", [second, first], "c", (1, 4)))
    net.output(first)
    partition = Partition(net.model)
    one, two, three = partition.stretches([1, 2])
    assert [[item.name for item in part.inputs] for part in (one, two, three)] == [["x"], ["a"], ["b", "a"]]
    assert [[item.name for item in part.outputs] for part in (one, two, three)] == [["a"], ["b"], ["c"]]


def test_states_are_not_torn() -> None:
    net = Net()
    given = net.input("x", (1, 4))
    state = net.variable("state", (1, 4))
    first = net.add("ADD", [given, state], "a", (1, 4))
    second = net.add("NEG", [first], "b", (1, 4))
    third = net.add("ADD", [second, state], "c", (1, 4))
    net.output(net.add("NEG", [third], "d", (1, 4)))
    partition = Partition(net.model)
    assert partition.places == [3] and "keeps state in the variable tensor 'state'" in partition.reasons[1]
    with pytest.raises(UnsupportedError, match="behind 'b' there is no place to cut: ADD keeps state"):
        partition.at([second])


def test_resources_are_not_handed_over() -> None:
    net = Net()
    given = net.input("x", (1, 4))
    handle = net.add("VAR_HANDLE", [], "handle", (), dtype=np.int32)
    net.add("ASSIGN_VARIABLE", [handle, given], "none", (1,))
    net.graph.operators[-1].outputs = []
    read = net.add("READ_VARIABLE", [handle], "read", (1, 4))
    net.output(net.add("NEG", [read], "y", (1, 4)))
    assert Partition(net.model).places == [3]
