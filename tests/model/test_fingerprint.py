"""What counts as the same graph, whatever else a file holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import load, save
from tfl_rewrite.model.ir import Buffer, Model
from tfl_rewrite.model.likeness import fingerprint


def net() -> Model:
    made = Net()
    source = made.input("in", (1, 2))
    weight = made.constant("w", np.array([[1, 2], [3, 4]], np.float32))
    hidden = made.dense(source, weight, "hidden", made.constant("b", np.ones(2, np.float32)))
    made.output(made.add("SOFTMAX", [hidden], "out", (1, 2), beta=1.0))
    made.sign("serve")
    return made.model


def renamed_tensor(model: Model) -> None:
    model.subgraphs[0].tensors[0].name = "other"


def other_shape(model: Model) -> None:
    model.subgraphs[0].tensors[0].shape = (2, 1)


def other_constant(model: Model) -> None:
    model.subgraphs[0].tensor("w").set_values(np.array([[1, 2], [3, 5]], np.float32))


def other_option(model: Model) -> None:
    softmax = model.subgraphs[0].operators[-1]
    assert softmax.options is not None
    softmax.options = softmax.options.replace(beta=2.0)


def other_operand(model: Model) -> None:
    dense = model.subgraphs[0].operators[0]
    dense.inputs[2] = None


def other_output(model: Model) -> None:
    model.subgraphs[0].outputs = [model.subgraphs[0].tensor("hidden")]


def other_signature(model: Model) -> None:
    model.signatures[0].key = "another"


def variable(model: Model) -> None:
    model.subgraphs[0].tensor("hidden").is_variable = True


@pytest.mark.parametrize(
    "change",
    [
        renamed_tensor,
        other_shape,
        other_constant,
        other_option,
        other_operand,
        other_output,
        other_signature,
        variable,
    ],
)
def test_what_is_computed_counts(change: Callable[[Model], None]) -> None:
    model = net()
    change(model)
    assert fingerprint(model) != fingerprint(net())


def test_what_else_a_file_holds_does_not_count(tmp_path: Path) -> None:
    model = net()
    known = fingerprint(model)
    model.description = "a description"
    model.buffers[1:] = [Buffer(), *reversed(model.buffers[1:])]
    assert fingerprint(model) == known
    save(model, tmp_path / "net.tflite")
    assert fingerprint(load(tmp_path / "net.tflite")) == known


def test_every_committed_model_has_one_that_a_copy_shares(sound: Path) -> None:
    assert fingerprint(load(sound)) == fingerprint(load(sound.read_bytes()))
