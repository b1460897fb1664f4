"""Models that become parts of one: what is connected, and that names, signatures and resources stay apart."""

from __future__ import annotations

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite.editing.merge import Piece, merge
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.judge.routes import OUTSIDE
from tfl_rewrite.model.invariants import broken, problems
from tfl_rewrite.model.ir import ExternalGroup, Model, Quantization, new_record


def double(*, key: str | None = None, inner: str = "inner") -> Model:
    net = Net()
    given = net.input("x", (1, 4))
    factor = net.constant("factor", np.array([2], np.float32))
    result = net.add("MUL", [given, factor], inner, (1, 4))
    net.output(net.add("MUL", [result, factor], "y", (1, 4)))
    if key is not None:
        net.sign(key)
    return net.model


def names(model: Model) -> list[str]:
    return [tensor.name for tensor in model.subgraphs[0].tensors]


def test_second_takes_what_first_gives() -> None:
    first, second = double(), double()
    pieces = [Piece("a", first, ((OUTSIDE, 0),)), Piece("b", second, ((0, 0),))]
    model, notes = merge(pieces, [(1, 0)])
    main = model.subgraphs[0]
    assert not broken(model) and not problems(model) and len(model.operator_codes) == 1
    assert [operator.code.name for operator in main.operators] == ["MUL"] * 4
    assert main.operators[2].inputs[0] is main.operators[1].outputs[0]
    # What the whole gives keeps its name; what is inside gets that of its model in front.
    assert [tensor.name for tensor in (*main.inputs, *main.outputs)] == ["x", "y"] and not notes
    assert names(model) == ["x", "factor", "inner", "a/y", "b/factor", "b/inner", "y"]
    assert not model.signatures


def test_signatures_name_what_the_whole_takes_and_gives() -> None:
    first, second = double(key="serving_default"), double(key="other")
    second.signatures[0].outputs = [
        (row.replace(name="result"), tensor) for row, tensor in second.signatures[0].outputs
    ]
    pieces = [Piece("a", first, ((OUTSIDE, 0),)), Piece("b", second, ((0, 0),))]
    model, notes = merge(pieces, [(1, 0), (0, 0)])
    (made,) = model.signatures
    assert made.key == "serving_default" and made.subgraph is model.subgraphs[0]
    assert [row.get("name") for row, _ in (*made.inputs, *made.outputs)] == ["x", "result", "y"]
    # Both outputs are called y by their models.
    assert [tensor.name for tensor in model.subgraphs[0].outputs] == ["y", "a/y"]
    assert notes == [
        "'y' of a is 'a/y' now",
        "no signature 'other' of b any more: the whole has those of a",
    ]


def test_names_that_the_whole_has_not_are_told_or_refused() -> None:
    first, second = double(key="serve"), double(key="serve")
    rows, other = first.signatures[0], second.signatures[0]
    rows.outputs.append((rows.outputs[0][0].replace(name="again"), rows.outputs[0][1]))
    other.inputs.clear()
    # The input of the second that nothing feeds is one of the whole.
    pieces = [Piece("a", first, ((OUTSIDE, 0),)), Piece("b", second, ((OUTSIDE, 1),))]
    model, notes = merge(pieces, [(1, 0), (0, 0)])
    (made,) = model.signatures
    assert [row.get("name") for row, _ in made.inputs] == ["x", "b/x"]
    assert [row.get("name") for row, _ in made.outputs] == ["y", "y_2", "again"]
    assert [tensor.name for _, tensor in made.outputs] == ["y", "a/y", "a/y"]
    assert notes[2:] == [
        "signature 'serve' has 'b/x' among its inputs now",
        "'y' of a is 'y_2' in signature 'serve' now",
    ]
    inner = double(key="serve")
    row, _ = inner.signatures[0].outputs[0]
    inner.signatures[0].outputs.append((row.replace(name="inner"), inner.subgraphs[0].tensors[2]))
    with pytest.raises(UnsupportedError, match="'serve' names 'inner', which is none of the outputs"):
        merge([Piece("a", inner, ((OUTSIDE, 0),))], [(0, 0)])


def test_a_stage_leads_no_signatures() -> None:
    stage, first = double(key="other"), double(key="serve")
    pieces = [Piece("s", stage, ((OUTSIDE, 0),), is_stage=True), Piece("a", first, ((0, 0),))]
    model, _ = merge(pieces, [(1, 0)])
    assert [item.key for item in model.signatures] == ["serve"]


def test_what_operators_run_and_other_signatures_come_along() -> None:
    models = []
    for _ in range(2):
        net = Net()
        net.output(net.add("NEG", [net.input("x", (1, 4))], "y", (1, 4)))
        net.next_subgraph("encode")
        net.output(net.add("NEG", [net.input("x", (1, 4))], "y", (1, 4)))
        net.sign("encode")
        models.append(net.model)
    pieces = [Piece("a", models[0], ((OUTSIDE, 0),)), Piece("b", models[1], ((0, 0),))]
    model, _ = merge(pieces, [(1, 0)])
    assert [subgraph.name for subgraph in model.subgraphs] == ["main", "encode", "b/encode"]
    assert [item.key for item in model.signatures] == ["encode", "b_encode"]
    assert [item.subgraph for item in model.signatures] == model.subgraphs[1:] and not broken(model)


def test_resources_of_one_name_are_kept_apart() -> None:
    models = []
    for _ in range(2):
        net = Net()
        given = net.input("x", (1, 4))
        net.add("VAR_HANDLE", [], "handle", (), dtype=np.int32)
        net.graph.operators[-1].options = new_record("VarHandleOptions").replace(shared_name="state")
        net.output(net.add("NEG", [given], "y", (1, 4)))
        models.append(net.model)
    pieces = [Piece("a", models[0], ((OUTSIDE, 0),)), Piece("b", models[1], ((0, 0),))]
    model, notes = merge(pieces, [(1, 0)])
    handles = [item for item in model.subgraphs[0].operators if item.code.name == "VAR_HANDLE"]
    assert [item.option("shared_name") for item in handles] == ["state", "b/state"] and len(notes) == 1


def test_tables_get_numbers_that_no_other_has() -> None:
    models = []
    for _ in range(2):
        net = Net()
        for number in (7, 8):
            net.add("HASHTABLE", [], f"handle{number}", (), dtype=np.int32)
            options = new_record("HashtableOptions").replace(table_id=number, key_dtype=4, value_dtype=2)
            net.graph.operators[-1].options = options
        net.output(net.add("NEG", [net.input("x", (1, 4))], "y", (1, 4)))
        models.append(net.model)
    pieces = [Piece("a", models[0], ((OUTSIDE, 0),)), Piece("b", models[1], ((0, 0),))]
    model, notes = merge(pieces, [(1, 0)])
    tables = [item for item in model.subgraphs[0].operators if item.code.name == "HASHTABLE"]
    assert [item.option("table_id") for item in tables] == [7, 8, 9, 10] and len(notes) == 2


def test_weights_beside_a_model_are_refused() -> None:
    model = double()
    model.external_groups.append(ExternalGroup("weights.bin"))
    with pytest.raises(UnsupportedError, match="weights of a lie in files beside the model"):
        merge([Piece("a", model, ((OUTSIDE, 0),))], [(0, 0)])


def test_a_signature_that_names_a_tensor_inside_is_refused() -> None:
    model = double(key="serving_default")
    (row, _) = model.signatures[0].outputs[0]
    model.signatures[0].outputs = [(row, model.subgraphs[0].tensors[2])]
    with pytest.raises(UnsupportedError, match="'serving_default' names 'inner', which is none"):
        merge([Piece("a", model, ((OUTSIDE, 0),))], [(0, 0)])


def test_an_input_that_holds_scales_is_refused() -> None:
    model = double()
    main = model.subgraphs[0]
    main.tensors[-1].quantization = Quantization(scales_tensor=main.inputs[0])
    with pytest.raises(UnsupportedError, match="an input of a holds scales"):
        merge([Piece("a", model, ((OUTSIDE, 0),))], [(0, 0)])
