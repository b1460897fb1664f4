"""Messages name places of the file that was read, whatever passes have moved since."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import FormatError, UsageError, diagnose, load, rewrite, save
from tfl_rewrite.cli import main
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.invariants import problems
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.passes.repair import Repair

from ..faulty_models import scaled
from ..nets import Net


def after_dead_ones() -> Net:
    """Two operators and tensors that nothing needs, then an ADD."""
    net = Net(31)
    source = net.input("x", (2, 8))
    for number in range(2):
        net.add("MUL", [source, net.weights(f"dead{number}", (2, 8))], f"unread{number}", (2, 8))
    made = net.constant("c", np.ones((2, 8), np.float32))
    net.output(net.add("ADD", [source, made], "y", (2, 8)))
    return net


def beyond_repair() -> Model:
    model = after_dead_ones().model
    model.subgraphs[0].tensors[5].buffer.blob = OwnedBlob(b"\0" * 60)
    return model


@pytest.mark.runtime
def test_what_does_not_run_is_named_by_its_place_in_the_input(tmp_path: Path) -> None:
    source = tmp_path / "in.tflite"
    save(beyond_repair(), source)
    passes = [RemoveDead()]
    with pytest.raises(FormatError) as caught:
        rewrite(source, tmp_path / "out.tflite", passes)
    assert caught.value.where == "subgraphs[0].tensors[5]" == problems(load(source))[0].where


def test_a_later_pass_names_places_of_the_input(tmp_path: Path) -> None:
    net = after_dead_ones()
    weight = net.constant("w", np.ones((4, 8), np.int8))
    scaled(weight, [0.5, 0.0, 0.5, 0.5])
    source = net.graph.tensors[0]
    net.output(net.add("FULLY_CONNECTED", [source, weight, None], "z", (2, 4), version=12))
    path = tmp_path / "in.tflite"
    save(net.model, path)
    model = load(path)
    first = [item.where for item in diagnose(path).findings if item.kind == "zero-scale"]
    results = run_passes(model, [*[RemoveDead()], Repair()])
    assert [edit.where for edit in results[-1].changes] == first != []  # type: ignore[attr-defined]
    assert model.places is None


@pytest.mark.runtime
def test_numbers_of_tensors_are_those_of_the_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = after_dead_ones()
    source, made = net.graph.tensors[0], net.graph.outputs[0]
    net.output(net.add("MUL", [source, made], "z", (2, 8)))
    path, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(net.model, path)
    number = net.graph.tensors.index(made)
    words = [
        "run",
        str(path),
        str(target),
        "--pass",
        "remove-dead",
        "--pass",
        f"remove-dead:outputs=#{number}",
    ]
    code = main(words)
    assert code == 0, capsys.readouterr()
    assert [tensor.name for tensor in load(target).subgraphs[0].outputs] == ["y"]
    model = load(path)
    # Of the model as it is when a call begins.
    run_passes(model, [Dedup()])[0]
    run_passes(model, [RemoveDead()])
    now = [tensor.name for tensor in model.subgraphs[0].tensors].index("y")
    run_passes(model, [RemoveDead(outputs=[f"#{now}"])])
    assert [tensor.name for tensor in model.subgraphs[0].outputs] == ["y"]
    with pytest.raises(UsageError, match="there is no tensor #99"):
        run_passes(model, [RemoveDead(outputs=["#99"])])


def test_buffers_too(tmp_path: Path) -> None:
    net = after_dead_ones()
    same = net.constant("same", np.ones((2, 8), np.float32))
    net.output(net.add("ADD", [net.graph.tensors[0], same], "z", (2, 8)))
    result = run_passes(net.model, [*[RemoveDead()], Dedup()])[-1]
    assert result.changes[0].where == "buffers[4]"  # type: ignore[attr-defined]
    assert result.changes[0].what.endswith("buffers[3]")  # type: ignore[attr-defined]


def test_a_command_about_a_stream_reads_a_stream(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io
    import sys

    given = io.TextIOWrapper(io.BytesIO((fixtures / "already_int4.tflite").read_bytes()))
    monkeypatch.setattr(sys, "stdin", given)
    assert main(["quantize-weights", "-", str(tmp_path / "out.tflite"), "--verify", "off"]) == 0
    said = capsys.readouterr().out
    assert "tfl-rewrite run - OUT --pass" in said and "copy of <stdin>" in said
