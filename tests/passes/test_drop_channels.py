"""Which channels go: those that hold one number whatever the input, where nothing has to see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import Judging, Tolerance, rewrite, save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.model.ir import Tensor
from tfl_rewrite.passes.drop_channels import DropChannels, idle_channels
from tfl_rewrite.passes.quantize import Quantize

from ..nets import Array, Net, data_of, named, run

DEAD = [1, 4]
SAME, VALID, RELU = 0, 1, 1
STEPS = {"stride_w": 1, "stride_h": 1}


def separable(
    *,
    held: float = 0.5,
    size: int = 1,
    half: bool = False,
    dead: list[int] = DEAD,
    weak: float = 1e-20,
    read: float = 1.0,
    behind: str = "RELU",
) -> Net:
    """x -> first (1x1) -> deep (3x3, depthwise) -> RELU -> last (convolution) -> pooled -> flat -> scores.

    Args:
        held: Bias of the channels of ``deep`` that have next to no weights.
        size: Of the windows of ``last``, which pads with zeros.
        half: Whether weights are float16.
        dead: Those channels.
        weak: Factor of their weights.
        read: Factor of the weights of ``last`` on them.
        behind: What stands in the place of RELU.
    """
    net = Net(5)

    def constant(name: str, *shape: int, **spoiled: float) -> Tensor:
        values = net.random.standard_normal(shape).astype(np.float32)
        for factor in spoiled.values():
            values[..., dead] *= np.float32(factor)
        if name == "deep_b":
            values[dead] = held
        return net.half(name, values) if half else net.constant(name, values)

    source = net.input("x", (1, 5, 5, 3))
    inputs = [source, constant("first_w", 6, 1, 1, 3), constant("first_b", 6)]
    one = net.add(
        "CONV_2D", inputs, "one", (1, 5, 5, 6), padding=SAME, fused_activation_function=RELU, **STEPS
    )
    options = {**STEPS, "padding": VALID, "depth_multiplier": 1}
    slopes = [constant("slopes", 1, 1, 6)] if behind == "PRELU" else []
    inputs = [one, constant("deep_w", 1, 3, 3, 6, weights=weak), constant("deep_b", 6)]
    two = net.add("DEPTHWISE_CONV_2D", inputs, "two", (1, 3, 3, 6), **options)
    cut = net.add(behind, [two, *slopes], "cut", (1, 3, 3, 6))
    inputs = [cut, constant("last_w", 4, size, size, 6, weights=read), constant("last_b", 4)]
    three = net.add("CONV_2D", inputs, "three", (1, 3, 3, 4), padding=SAME, **STEPS)
    options = {**STEPS, "stride_w": 3, "stride_h": 3, "padding": VALID}
    pooled = net.add(
        "AVERAGE_POOL_2D", [three], "p", (1, 1, 1, 4), filter_width=3, filter_height=3, **options
    )
    shape = net.constant("shape", np.array([1, 4], np.int32))
    flat = net.add("RESHAPE", [pooled, shape], "flat", (1, 4))
    net.output(net.dense(flat, constant("scores_w", 2, 4), "scores"))
    return net


def outputs(net: Net, path: Path) -> dict[str, Array]:
    save(net.model, path, force=True)
    values = np.random.default_rng(1).standard_normal((1, 5, 5, 3)).astype(np.float32)
    return run(path, {"x": values})


def dropped(net: Net) -> list[str]:
    """What went, by the first tensor that had it."""
    (result,) = run_passes(net.model, [DropChannels()])
    return [f"{change.where}: {change.to_dict()['what']}" for change in result.changes]


GOES = {
    "held": {},
    "held, float16": {"half": True},
    "zero behind zeros of a padding": {"held": -0.5, "size": 3},
    "hardly read behind a padding": {"size": 3, "read": 1e-20},
    "below 0 behind PRELU": {"held": -0.5, "behind": "PRELU"},
    "below 0 behind PRELU, float16": {"held": -0.5, "behind": "PRELU", "half": True},
}


@pytest.mark.runtime
@pytest.mark.parametrize("case", GOES)
def test_what_holds_one_number_goes_with_all_weights_on_it(tmp_path: Path, case: str) -> None:
    net = separable(**GOES[case])  # type: ignore[arg-type]
    path = tmp_path / "model.tflite"
    before = outputs(net, path)
    assert idle_channels(net.model) == 2
    assert dropped(net) == ["one: 2 of 6 channels dropped"]
    after = outputs(net, path)
    np.testing.assert_allclose(after["scores"], before["scores"], rtol=1e-5, atol=1e-5)
    shapes = [named(net.model, name).shape for name in ("first_w", "deep_w", "deep_b", "last_w", "cut")]
    size = shapes[3][1]  # type: ignore[index]
    assert shapes == [(4, 1, 1, 3), (1, 3, 3, 4), (4,), (4, size, size, 4), (1, 3, 3, 4)]
    assert dropped(net) == [], "a second run finds nothing"
    assert idle_channels(net.model) == 0


@pytest.mark.runtime
@pytest.mark.parametrize("half", [True, False])
def test_a_bias_that_others_read_stays_theirs(tmp_path: Path, half: bool) -> None:
    net = separable(half=half)
    bias, other = named(net.model, "deep_b"), named(net.model, "scores")
    net.output(net.add("RELU", [bias], "same", (6,)))
    before = outputs(net, tmp_path / "model.tflite")
    assert dropped(net) == ["one: 2 of 6 channels dropped"]
    after = outputs(net, tmp_path / "model.tflite")
    for name in (other.name, "same"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-5, atol=1e-5)
    assert bias.shape == (6,)


@pytest.mark.runtime
def test_what_lies_behind_a_pool_and_a_reshape_goes_too(tmp_path: Path) -> None:
    net = separable(dead=[])
    weights = data_of(named(net.model, "last_w")).copy()
    weights[1:3] = 0
    named(net.model, "last_w").buffer = net.buffer(weights.tobytes())
    before = outputs(net, tmp_path / "model.tflite")
    assert dropped(net) == ["three: 2 of 4 channels dropped"]
    after = outputs(net, tmp_path / "model.tflite")
    np.testing.assert_allclose(after["scores"], before["scores"], rtol=1e-5, atol=1e-5)
    assert named(net.model, "flat").shape == (1, 2)


def see(net: Net) -> None:
    """A caller sees the channels."""
    net.output(named(net.model, "cut"))


def share(net: Net) -> None:
    """Another operator reads the weights."""
    net.output(net.add("RELU", [named(net.model, "deep_w")], "other", (1, 3, 3, 6)))


def feed(net: Net) -> None:
    """What follows might look at channels across."""
    net.output(net.add("SOFTMAX", [named(net.model, "two")], "other", (1, 3, 3, 6), beta=1.0))


@pytest.mark.parametrize("spoil", [see, share, feed])
def test_what_others_see_stays(spoil: Callable[[Net], None]) -> None:
    net = separable()
    spoil(net)
    assert dropped(net) == []


def test_a_number_that_a_padding_cuts_off_stays() -> None:
    assert dropped(separable(size=3)) == []


def test_a_number_that_is_infinite_stays() -> None:
    assert dropped(separable(held=np.inf)) == []


def test_one_channel_is_left() -> None:
    assert dropped(separable(dead=list(range(6)), weak=0.0)) == [
        "one: 5 of 6 channels dropped",
        "three: 3 of 4 channels dropped",
    ]


@pytest.mark.runtime
def test_quantize_says_what_simplify_would_drop(tmp_path: Path) -> None:
    values = np.random.default_rng(2).standard_normal((8, 1, 5, 5, 3)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=values)
    save(separable().model, tmp_path / "model.tflite")
    judging = Judging(inputs=(tmp_path / "in.npz",), tolerance=Tolerance(min_snr=10))
    told = []
    for simplify in (False, True):
        passes = [Quantize(effort="fast", simplify=simplify)]
        report = rewrite(tmp_path / "model.tflite", tmp_path / f"{simplify}.tflite", passes, judging=judging)
        told.append(
            any("2 channel(s) hold one number" in note for item in report.results for note in item.notes)
        )
    assert told == [True, False]
