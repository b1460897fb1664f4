"""Activations of a part of a model are those that the model cut there gives out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.calibration.collect import Wanted, collect, steps_of
from tfl_rewrite.calibration.probe import Call, Place, Probe, Runner
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.integers.trials import operators_by_place
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.worker import ModelFailed
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.products import product_of
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Buffer, Model, Operator, Tensor
from tfl_rewrite.numerics.moments import Moments
from tfl_rewrite.passes.cut import Cut
from tfl_rewrite.weights.rounders import Simulate

pytestmark = pytest.mark.runtime

Array = np.ndarray[Any, Any]


@pytest.fixture
def runner() -> Iterator[Runner]:
    with Runner(RuntimeChoice.parse("litert"), timeout=60) as made:
        yield made


def weighted(path: Path) -> list[Wanted]:
    return [
        Wanted(Place(0, position), 1, product)
        for position, operator in enumerate(load(path).subgraphs[0].operators)
        if (product := product_of(operator, 1)) is not None
    ]


def test_activations_and_moments_of_a_whole_net(fixtures: Path, tmp_path: Path, runner: Runner) -> None:
    path, inputs = fixtures / "mtcnn_rnet.tflite", str(fixtures / "inputs" / "mtcnn_rnet.npz")
    wanted = weighted(path)
    assert len(wanted) == 6
    steps = steps_of(load(path), Judging(inputs=[inputs]))
    assert len(steps) == 12
    probe = Probe(path, runner)
    calls = probe.calls(steps)
    seen: dict[int, list[Array]] = {}
    for number, activations in probe.activations([(item.place, item.position) for item in wanted], calls):
        assert number == len(seen.setdefault(0, []))
        for position, activation in enumerate(activations):
            seen.setdefault(position, []).append(activation)
    for position, item in enumerate(wanted):
        model = load(path)
        tensor = model.subgraphs[0].operators[item.place.operator].inputs[0]
        assert tensor is not None
        if any(tensor is given for given in model.subgraphs[0].inputs):
            expected = [step.values[0][1] for step in steps]
        else:
            index = next(k for k, other in enumerate(model.subgraphs[0].tensors) if other is tensor)
            run_passes(model, [Cut(None, [f"#{index}"])])
            part = tmp_path / f"{position}.tflite"
            save(model, part)
            ran = run_model(part, Judging(inputs=[inputs]))
            assert ran.failure is None
            expected = [values for call in ran.outputs if (values := call.values[0]) is not None]
        for ours, theirs in zip(seen[position], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for position, found in collect(probe, wanted, calls):
        assert isinstance(found, Moments)
        vectors = [
            wanted[position].product.vectors(one, 1 << 20, np.random.default_rng(0)) for one in seen[position]
        ]
        if all(rows.shape[1] == found.count.sum() / len(vectors) for rows in vectors):
            wide = np.concatenate(vectors, axis=1).astype(np.float64)
            np.testing.assert_allclose(
                found.square.sum(axis=0), wide.swapaxes(1, 2) @ wide, rtol=1e-3, atol=1e-2
            )
        assert found.samples == 12


def test_other_constants_change_what_follows_and_not_the_file(fixtures: Path, runner: Runner) -> None:
    path, inputs = fixtures / "mtcnn_rnet.tflite", str(fixtures / "inputs" / "mtcnn_rnet.npz")
    before = path.read_bytes()
    first, second = [item.place for item in weighted(path)][:2]
    probe, other = Probe(path, runner), Probe(path, runner)
    calls = probe.calls(steps_of(load(path), Judging(inputs=[inputs])))[:1]
    weight = load(path).subgraphs[0].operators[first.operator].inputs[1]
    assert weight is not None and weight.shape is not None
    other.put(first, 1, np.zeros(weight.shape))
    other.add(first, 2, np.full(weight.shape[0], -1e6))
    (_, (plain,)), (_, (changed,)) = (next(iter(p.activations([(second, 1)], calls))) for p in (probe, other))
    assert np.isfinite(changed).all() and not np.array_equal(plain, changed)
    # Nothing but the bias is left, so all positions of a channel are alike.
    assert (np.ptp(changed, axis=(1, 2)) == 0).all()
    assert path.read_bytes() == before


def test_signatures_enter_their_own_subgraphs(fixtures: Path, runner: Runner) -> None:
    path = fixtures / "two_signatures_shared_weights.tflite"
    inputs = str(fixtures / "inputs" / "two_signatures_shared_weights.npz")
    model = load(path)
    probe = Probe(path, runner)
    calls = probe.calls(steps_of(load(path), Judging(inputs=[inputs])))
    assert {call.subgraph for call in calls} == {0, 1}
    for number, subgraph in enumerate(model.subgraphs):
        places = [
            Place(number, position)
            for position, operator in enumerate(subgraph.operators)
            if product_of(operator, 1) is not None
        ]
        assert places
        rounds = list(probe.activations([(place, 1) for place in places], calls))
        assert len(rounds) == 8
        for _, activations in rounds:
            assert len(activations) == len(places)


def test_a_model_that_does_not_run_is_named(fixtures: Path, runner: Runner) -> None:
    path = fixtures / "conv_without_bias.tflite"
    with pytest.raises(ModelFailed, match=r"runtime failed|bias"):
        runner.open(path)
    with pytest.raises(ModelFailed):
        runner.open(fixtures / "malformed" / "text.tflite")


def test_a_part_that_does_not_run_is_run_with_all_that_follows(
    fixtures: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where XNNPACK crashes: nothing in the part reads what an operator gives out besides."""
    path, inputs = fixtures / "mtcnn_rnet.tflite", str(fixtures / "inputs" / "mtcnn_rnet.npz")
    item = weighted(path)[1]
    steps = steps_of(load(path), Judging(inputs=[inputs]))[:2]
    expected = [
        found
        for _, (found,) in Probe(path, runner).activations(
            [(item.place, 1)], Probe(path, runner).calls(steps)
        )
    ]
    tried: list[tuple[int, int, bool]] = []
    real = Runner.open

    def opened(self: Runner, model: Path, *, delegates: bool = True) -> None:
        part = load(model)
        tried.append((len(part.subgraphs[0].operators), len(part.subgraphs[0].outputs), delegates))
        if len(tried) < 3:
            raise ModelFailed("the interpreter process died")
        real(self, model, delegates=delegates)

    monkeypatch.setattr(Runner, "open", opened)
    probe = Probe(path, runner)
    found = [each for _, (each,) in probe.activations([(item.place, 1)], probe.calls(steps))]
    graph = load(path).subgraphs[0]
    assert [each[2] for each in tried] == [True, False, True]
    assert tried[0][0] == tried[1][0] < len(graph.operators) == tried[2][0]
    assert tried[2][1] == 1 + len(graph.outputs)
    assert all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True))


def test_halves_of_the_calls(fixtures: Path, runner: Runner) -> None:
    path, inputs = fixtures / "mtcnn_rnet.tflite", str(fixtures / "inputs" / "mtcnn_rnet.npz")
    steps = steps_of(load(path), Judging(inputs=[inputs]))
    for count, expected in ((12, [0] * 6 + [1] * 6), (3, [0, 0, 1]), (1, [0])):
        assert [call.half for call in Probe(path, runner).calls(steps[:count])] == expected


def test_a_file_need_not_say_the_shapes_of_activations(fixtures: Path) -> None:
    """Behind custom operators it often does not: how a weight is multiplied follows from itself."""
    for name in ("digits_cnn", "mtcnn_rnet"):
        told, silent = (load(fixtures / f"{name}.tflite") for _ in range(2))
        for graph in silent.subgraphs:
            for tensor in graph.tensors:
                if not tensor.is_constant:
                    tensor.shape = None
        products = [
            [product_of(operator, 1) for _, operator in model.operators() if len(operator.inputs) > 1]
            for model in (told, silent)
        ]
        assert products[0] == products[1] and sum(item is not None for item in products[0]) > 4


def test_a_part_is_written_without_what_it_does_not_hold(
    fixtures: Path, tmp_path: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []
    opened = runner.open

    def kept(path: Path, *, delegates: bool = True) -> None:
        parts.append(load(path))
        opened(path, delegates=delegates)

    monkeypatch.setattr(runner, "open", kept)
    path = tmp_path / "digits.tflite"
    whole = load(fixtures / "digits_cnn.tflite")
    # Old converters list the buffers of the metadata once more.
    whole.buffers.append(Buffer(OwnedBlob(b"1.5.0")))
    whole.metadata_buffers.append(whole.buffers[-1])
    save(whole, path)
    probe, whole = Probe(path, runner), load(path)
    first = probe.model.subgraphs[0].operators[0]
    values = np.zeros(whole.subgraphs[0].inputs[0].shape or (), np.float32)
    (_, (given,)), *_ = probe.values_of(0, [t for t in first.outputs if t is not None], [Call(0, (values,))])
    assert given.shape == (first.outputs[0].shape if first.outputs[0] is not None else ())
    (part,) = parts
    (graph,) = part.subgraphs
    assert len(graph.operators) == 1
    assert len(graph.tensors) == len([t for t in (*first.inputs, *first.outputs) if t is not None])
    assert len(part.buffers) <= 1 + len(graph.tensors) < len(whole.buffers)
    # The model in memory is whole again.
    assert probe.model.to_bytes() == whole.to_bytes()


def parts_opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that takes up how many operators each part has that is opened from then on."""
    found: list[int] = []
    real = Runner.open

    def opened(self: Runner, model: Path, *, delegates: bool = True) -> None:
        found.append(len(load(model).subgraphs[0].operators))
        real(self, model, delegates=delegates)

    monkeypatch.setattr(Runner, "open", opened)
    return found


def asked(probe: Probe, item: Wanted, calls: list[Call]) -> list[Array]:
    return [found for _, (found,) in probe.activations([(item.place, 1)], calls)]


def test_a_part_begins_where_the_one_before_ended(
    fixtures: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows from constants that were replaced meanwhile is computed again, and nothing else is."""
    path, inputs = fixtures / "mtcnn_rnet.tflite", str(fixtures / "inputs" / "mtcnn_rnet.npz")
    items, steps = weighted(path), steps_of(load(path), Judging(inputs=[inputs]))[:3]
    opened = parts_opened(monkeypatch)
    probe, first = Probe(path, runner), items[0]
    calls = probe.calls(steps)
    cut = [asked(probe, item, calls) for item in items]
    cuts = opened[:]
    del opened[:]
    whole = [asked(Probe(path, runner), item, calls) for item in items]
    for ours, theirs in zip(cut, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # The first weight meets the input, and the last two meet the same.
    assert len(opened) == 5 and len(cuts) == 4
    assert cuts[0] == opened[0] and sum(cuts) == opened[-1]
    last = opened[-1]
    probe.add(first.place, 2, np.full(first.product.shape[0], 0.5))
    del opened[:]
    changed = asked(probe, items[-1], calls)
    assert opened == [last] and not np.array_equal(changed[0], cut[-1][0])
    # Other calls were not kept.
    other = probe.calls(steps)
    assert len(asked(probe, items[-1], other)) == 3 and opened == [last] * 2


def test_copies_begin_where_they_first_differ(
    fixtures: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a copy replaces an operand or what it holds, and whatever is measured first."""
    path, inputs = fixtures / "mtcnn_rnet.tflite", str(fixtures / "inputs" / "mtcnn_rnet.npz")
    steps = steps_of(load(path), Judging(inputs=[inputs]))[:3]
    probe = Probe(path, runner)
    calls, count = probe.calls(steps), len(probe.model.subgraphs[0].operators)
    opened = parts_opened(monkeypatch)

    def simulate(at: int, *, replaces: bool) -> Simulate:
        def change(copy: Model) -> Mapping[tuple[int, int], Operator]:
            operator = copy.subgraphs[0].operators[at]
            tensor = operator.inputs[1]
            assert tensor is not None
            blob = OwnedBlob(np.zeros(tensor.shape or (), np.float32).tobytes())
            if replaces:
                buffer = copy.add_buffer(blob)
                operator.inputs[1] = zeros = Tensor("zeros", tensor.shape, tensor.dtype, buffer)
                copy.subgraphs[0].tensors.insert(0, zeros)
            else:
                tensor.buffer.blob = blob
            return operators_by_place(copy)

        return change

    def given(made: Probe) -> list[Array]:
        outputs = made.model.subgraphs[0].outputs
        return [array for _, arrays in made.values_of(0, outputs, calls) for array in arrays]

    last = max(item.place.operator for item in weighted(path))
    changes = [(0, True), (last, True), (last, False), (0, False), (last, True)]
    lengths = []
    for at, replaces in changes:
        del opened[:]
        ours = given(probe.again(simulate(at, replaces=replaces)))
        lengths.append(opened[-1])
        for one, other in zip(ours, given(Probe(path, runner, simulate(at, replaces=replaces))), strict=True):
            np.testing.assert_array_equal(one, other)
    assert lengths[0] == lengths[3] == count and lengths[1] == lengths[2] == lengths[4] < count / 2
    # The file does not have what was put into the probe: a copy of the file does not begin behind it.
    probe.put(Place(0, 0), 1, np.zeros(weighted(path)[0].product.shape))
    del opened[:]
    given(probe.again(simulate(last, replaces=True)))
    assert opened == [count]


def test_weights_behind_dequantize_stay_constants_of_each_part(
    fixtures: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, inputs = fixtures / "digits_cnn_float16.tflite", str(fixtures / "inputs" / "digits_calib.npz")
    items, steps = weighted(path), steps_of(load(path), Judging(inputs=[inputs]))[:2]
    opened = parts_opened(monkeypatch)
    probe = Probe(path, runner)
    calls = probe.calls(steps)
    first, last = (asked(probe, item, calls) for item in (items[1], items[-1]))
    assert opened[-1] < len(load(path).subgraphs[0].operators)
    probe.put(items[-1].place, 1, np.zeros(items[-1].product.shape))
    # Nothing before it reads that.
    for ours, theirs in zip(asked(probe, items[-1], calls), last, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    probe.put(items[0].place, 1, np.zeros(items[0].product.shape))
    assert not np.array_equal(asked(probe, items[1], calls)[0], first[0])


def test_what_keeps_state_is_run_from_the_inputs_on(
    fixtures: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, inputs = fixtures / "svdf.tflite", str(fixtures / "inputs" / "svdf.npz")
    opened = parts_opened(monkeypatch)
    probe = Probe(path, runner)
    calls = probe.calls(steps_of(load(path), Judging(inputs=[inputs])))
    outputs = probe.model.subgraphs[0].outputs
    once, again = ([values for _, values in probe.values_of(0, outputs, calls)] for _ in range(2))
    assert opened[0] == opened[1] == len(probe.model.subgraphs[0].operators)
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
