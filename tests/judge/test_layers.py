"""Which operator output of one model is which of another."""

from __future__ import annotations

import pytest

from tfl_rewrite.interpreter.interface import EntryPoint, Interface, TensorFacts
from tfl_rewrite.judge import layers
from tfl_rewrite.judge.layers import Node, Trace, match_outputs

Row = tuple[str, list[int], list[tuple[int, str, tuple[int, ...]]]]


def trace(rows: list[Row], inputs: tuple[int, ...] = (0,)) -> Trace:
    """Operators as (type, inputs, [(tensor, name, shape)])."""
    tensors, nodes = {}, []
    for index, (operator, used, made) in enumerate(rows):
        for tensor, name, shape in made:
            tensors[tensor] = TensorFacts(
                name=name, tensor=name, dtype="float32", shape=shape, shape_signature=shape
            )
        outputs = tuple(tensor for tensor, *_ in made)
        nodes.append(Node(index=index, operator=operator, inputs=tuple(used), outputs=outputs))
    given = tuple(
        TensorFacts(name="x", tensor="x", dtype="float32", shape=(), shape_signature=(), index=index)
        for index in inputs
    )
    primary = EntryPoint(key=None, inputs=given, outputs=())
    interface = Interface(primary=primary, signatures=(), subgraphs=1)
    return Trace(interface=interface, nodes=tuple(nodes), tensors=tensors)


def pairs(before: Trace, after: Trace) -> list[tuple[int, int, str]]:
    return [(match.before.index, match.after.index, match.by) for match in match_outputs(before, after)]


def test_names_win_over_places():
    before = trace([("ADD", [0], [(1, "a", (4,))]), ("ADD", [1], [(2, "b", (4,))])])
    after = trace([("ADD", [0], [(7, "b", (4,))]), ("ADD", [7], [(8, "a", (4,))])])
    assert pairs(before, after) == [(0, 1, "name"), (1, 0, "name")]


@pytest.mark.parametrize("limit", [4000, 1], ids=["aligned", "counted"])
def test_repeated_and_missing_names_go_by_place(monkeypatch, limit):
    monkeypatch.setattr(layers, "_ALIGN_UP_TO", limit)
    before = trace(
        [("ADD", [0], [(1, "", (4,))]), ("MUL", [1], [(2, "same", (4,))]), ("ADD", [2], [(3, "same", (4,))])]
    )
    after = trace(
        [
            ("ADD", [0], [(1, "", (4,))]),
            ("QUANTIZE", [1], [(9, "", (4,))]),
            ("MUL", [9], [(2, "same", (4,))]),
            ("ADD", [2], [(3, "same", (4,))]),
        ]
    )
    assert pairs(before, after) == [(0, 0, "place"), (1, 2, "place"), (2, 3, "place")]


def test_a_name_on_another_shape_is_not_the_same():
    before = trace([("CONV_2D", [0], [(1, "bias", (1, 8, 8, 4))])])
    after = trace([("CONV_2D", [0], [(1, "y", (1, 8, 8, 4))]), ("ADD", [1], [(2, "bias", (4,))])])
    assert pairs(before, after) == [(0, 0, "place")]


def test_other_types_do_not_match_by_place():
    before, after = trace([("ADD", [0], [(1, "", (4,))])]), trace([("MUL", [0], [(1, "", (4,))])])
    assert pairs(before, after) == []


def test_names_settle_what_lies_between():
    # Without the anchor "mid", the first of the equal operators would be taken for the second.
    before = trace(
        [("ADD", [0], [(1, "", (4,))]), ("MUL", [1], [(2, "mid", (4,))]), ("ADD", [2], [(3, "", (4,))])]
    )
    after = trace([("MUL", [0], [(2, "mid", (4,))]), ("ADD", [2], [(3, "", (4,))])])
    assert pairs(before, after) == [(1, 0, "name"), (2, 1, "place")]


def test_several_outputs_keep_their_position():
    rows: list[Row] = [("SPLIT", [0], [(1, "", (2,)), (2, "", (2,))])]
    found = match_outputs(trace(rows), trace(rows))
    assert [(match.position, match.before_tensor, match.after_tensor) for match in found] == [
        (0, 1, 1),
        (1, 2, 2),
    ]


def test_weights_are_unpacked_from_constants_only():
    model = trace(
        [
            ("DEQUANTIZE", [10], [(1, "w", (4,))]),
            ("RESHAPE", [1, 11], [(2, "v", (4,))]),
            ("DEQUANTIZE", [0], [(3, "x", (4,))]),
            ("READ_VARIABLE", [12], [(4, "state", (4,))]),
        ]
    )
    assert model.unpacked == {1, 2}
