"""How many operands kernels take: the table against the runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfl_rewrite import diagnose, load, save
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.operands import allows, lacks_shape, recorded_shape, wrong_operands
from tfl_rewrite.kernels.table import ROWS, row_of
from tfl_rewrite.model.ir import Model, Operator, schema


def first_of_each_kind(model: Model) -> list[tuple[int, Operator]]:
    """The first operator of each type that the table has, of the main subgraph."""
    found: dict[str, tuple[int, Operator]] = {}
    for position, operator in enumerate(model.subgraphs[0].operators):
        if row_of(operator).inputs:
            found.setdefault(operator.code.name, (position, operator))
    return list(found.values())


def test_rows_are_of_operators_that_there_are() -> None:
    names = schema().enums["BuiltinOperator"].values
    known = [row for row in ROWS.values() if row.inputs]
    assert set(ROWS) <= set(names) and len(known) > 120
    for row in known:
        assert row.outputs
        assert not row.optional or any(
            allows(row.inputs, count) for count in range(max(row.optional) + 1, 64)
        )


def test_no_committed_model_lacks_any(sound: Path) -> None:
    for _, operator in load(sound).operators():
        assert wrong_operands(operator) is None and not lacks_shape(operator)


def test_no_public_model_lacks_any(public: Path) -> None:
    from tfl_rewrite import TflRewriteError

    try:
        model = load(public)
    except TflRewriteError:
        return
    assert not [operator.code.name for _, operator in model.operators() if wrong_operands(operator)]


FIXTURES = ("mtcnn_rnet", "digits_cnn_full_int8", "lstm", "rnn", "svdf", "text_embedding", "dynamic_shapes",
            "batch_matmul", "transpose_conv", "bidirectional_lstm", "if_branches", "while_loop")  # fmt: skip


@pytest.mark.runtime
@pytest.mark.parametrize("name", FIXTURES)
def test_the_runtime_refuses_what_the_table_does(fixtures: Path, tmp_path: Path, name: str) -> None:
    """Each operator without its last operand that must be there, and with one too many."""
    source = fixtures / f"{name}.tflite"
    assert run_model(source, Judging(samples=1)).failure is None
    for position, operator in first_of_each_kind(load(source)):
        numbers = [count for count in range(64) if allows(row_of(operator).inputs, count)]
        least = numbers[0]
        spare = [len(operator.inputs) + 1] if numbers[-1] - least < 2 else []
        for count in [*([least - 1] if least else []), *spare]:
            if count in numbers:
                continue
            model = load(source)
            changed = model.subgraphs[0].operators[position]
            changed.inputs = [*changed.inputs, *changed.inputs[:1]][:count]
            path = tmp_path / f"{position}-{count}.tflite"
            save(model, path)
            assert wrong_operands(changed), operator.code.name
            assert "operands" in {item.kind for item in diagnose(path).findings}
            # XNNPACK overlooks some.
            ran = run_model(path, Judging(samples=1, resolver="builtin"))
            assert ran.failure is not None, f"{operator.code.name} with {count} inputs"


@pytest.mark.runtime
def test_an_operand_that_must_be_there_is_absent(fixtures: Path, tmp_path: Path) -> None:
    model = load(fixtures / "mtcnn_rnet.tflite")
    operator = next(item for _, item in model.operators() if item.code.name == "PRELU")
    operator.inputs[1] = None
    assert wrong_operands(operator) == "input 1 is absent (-1); its kernel needs it"
    save(model, tmp_path / "out.tflite")
    assert run_model(tmp_path / "out.tflite", Judging(samples=1)).failure is not None
    operator = next(item for _, item in model.operators() if item.code.name == "FULLY_CONNECTED")
    operator.inputs[2:] = [None]
    assert wrong_operands(operator) is None


def test_words() -> None:
    from ..nets import Net

    net = Net()
    source = net.input("x", (2, 8))
    texts = []
    for kind, count in (
        ("ADD", 1),
        ("ADD", 3),
        ("CONCATENATION", 0),
        ("PAD", 1),
        ("LSTM", 19),
        ("HASHTABLE", 1),
    ):
        net.add(kind, [source] * count, "y", (2, 8))
        texts.append(wrong_operands(net.graph.operators[-1]))
    assert texts == [
        "has 1 input; its kernel takes 2",
        "has 3 inputs; its kernel takes 2",
        "has no inputs; its kernel takes 1 or more",
        "has 1 input; its kernel takes 2 to 3",
        "has 19 inputs; its kernel takes 5, 20 or 24",
        "has 1 input; its kernel takes 0",
    ]


def test_recorded_shapes() -> None:
    from ..nets import Net

    tensor = Net().tensor("x", (1, 4))
    assert recorded_shape(tensor) == (1, 4)
    tensor.signature = (-1, 4)
    assert recorded_shape(tensor) == (-1, 4)
    tensor.signature = (-1, -1)
    assert recorded_shape(tensor) is None
    tensor.signature, tensor.shape = None, None
    assert recorded_shape(tensor) is None and recorded_shape(None) is None
