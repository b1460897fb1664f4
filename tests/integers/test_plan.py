"""Which operators compute in integers, which tensors share a grid, and what the graph becomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.nets import Net, codes, data_of, named, nearest
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.integers.groups import Grid
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.integers.recipe import Recipe
from tfl_rewrite.kernels.integer import BENDS_OF_LOGISTIC
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Operator, Tensor

Range = tuple[float, float]


def ranges_of(model: Model, **known: Range) -> dict[int, Range]:
    """Ranges by name; of constants what they hold, of all else -1 to 1."""
    found = {}
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            if tensor.dtype_name == "FLOAT32":
                values = data_of(tensor) if tensor.is_constant else np.array([-1.0, 1.0])
                found[id(tensor)] = known.get(tensor.name, (float(values.min()), float(values.max())))
    return found


def plan_of(net: Net, width: int = 8, keeps: Any = None, **known: Range) -> IntegerPlan:
    def wanted(operator: Operator) -> int | None:
        return None if keeps is not None and keeps(operator) else width

    return IntegerPlan(net.model, wanted, ranges_of(net.model, **known))


def plan_of_any(net: Net) -> IntegerPlan:
    """Where what the file says of shapes and what it holds may differ."""
    ranges = {id(item): (-1.0, 1.0) for item in net.model.subgraphs[0].tensors}
    return IntegerPlan(net.model, lambda _: 8, ranges)


def converted(net: Net, plan: IntegerPlan) -> int:
    editor = Editor(net.model)
    made = plan.convert(editor, nearest)
    editor.finish()
    assert broken(net.model) == []
    return made


def grid(tensor: Tensor) -> tuple[float, int]:
    details = tensor.quantization
    assert details is not None and details.scale is not None and details.zero_point is not None
    (scale,), (zero,) = details.scale, details.zero_point
    return float(scale), int(zero)


def test_a_grid_holds_its_range_and_zero() -> None:
    made = Grid.over(2.0, 5.1, 8)
    low, high = made.range
    assert low <= 0.0 and high == pytest.approx(5.1, rel=0.01)
    assert Grid.over(-3.0, 1.0, 16).zero_point == 0
    assert Grid.over(-3.0, 1.0, 16).scale == pytest.approx(3 / 32767)
    assert Grid.over(0.0, 0.0, 8).scale > 0


@pytest.mark.parametrize("high", [1.0, 2.0, 0.9995, 1.0005, 1.0 / 64])
def test_a_step_of_16_bits_is_no_power_of_two(high: float) -> None:
    """ADD refuses, or ends in an older form, where all three of its scales are."""
    power = np.log2(Grid.over(-high, high, 16).scale)
    assert 1e-3 < abs(power - round(power)) < 4e-3
    assert Grid.over(-high, high, 16).range[1] >= high


def test_the_interface_stays_and_conversions_stand_at_the_border() -> None:
    net = Net()
    source = net.input("in", (1, 8))
    hidden = net.dense(source, net.weights("w", (4, 8)), "hidden", net.constant("b", np.ones(4, np.float32)))
    net.output(net.add("RELU", [hidden], "out", (1, 4)))
    net.sign("serve")
    assert converted(net, plan_of(net)) == 2
    assert [name for name, _ in codes(net.model)] == ["QUANTIZE", "FULLY_CONNECTED", "RELU", "DEQUANTIZE"]
    graph = net.model.subgraphs[0]
    assert [(item.name, item.dtype_name) for item in (*graph.inputs, *graph.outputs)] == [
        ("in", "FLOAT32"),
        ("out", "FLOAT32"),
    ]
    operator = graph.operators[1]
    _, weight, bias = operator.inputs
    assert weight is not None and bias is not None
    assert (weight.dtype_name, bias.dtype_name, operator.code.version) == ("INT8", "INT32", 4)
    assert net.model.signatures[0].outputs[0][1] is graph.outputs[0]


def test_what_copies_shares_a_grid_and_what_computes_has_its_own() -> None:
    net = Net()
    source = net.input("in", (1, 4, 4, 2))
    pooled = net.add("MAX_POOL_2D", [source], "pooled", (1, 4, 4, 2))
    moved = net.add(
        "TRANSPOSE", [pooled, net.constant("order", np.arange(4, dtype=np.int32))], "moved", (1, 4, 4, 2)
    )
    net.output(net.add("RELU", [moved], "out", (1, 4, 4, 2)))
    converted(net, plan_of(net, **{"in": (-4.0, 4.0), "pooled": (-3.0, 4.0), "out": (0.0, 4.0)}))
    assert (
        grid(named(net.model, "in_int8"))
        == grid(named(net.model, "pooled"))
        == grid(named(net.model, "moved"))
    )
    assert grid(named(net.model, "out_int8")) != grid(named(net.model, "moved"))


def test_a_fixed_output_is_converted_for_a_concatenation_with_a_wider_one() -> None:
    net = Net()
    source = net.input("in", (1, 4))
    share = net.add("SOFTMAX", [source], "share", (1, 4), beta=1.0)
    both = net.add("CONCATENATION", [share, net.add("RELU", [source], "wide", (1, 4))], "both", (1, 8))
    net.output(both)
    converted(net, plan_of(net, share=(0.0, 1.0), wide=(0.0, 6.0), both=(0.0, 6.0)))
    assert grid(named(net.model, "share")) == (1 / 256, -128)
    assert [name for name, _ in codes(net.model)].count("QUANTIZE") == 2
    joined = net.model.subgraphs[0].operators[-2]
    assert joined.code.name == "CONCATENATION"
    assert len({grid(item) for item in (*joined.inputs, *joined.outputs) if item is not None}) == 1


@pytest.mark.parametrize(("axes", "shape"), [([1, 2], (1, 4)), ([3], (1, 2, 2))])
def test_the_margin_of_means_is_that_over_positions(axes: list[int], shape: tuple[int, ...]) -> None:
    net = Net()
    source = net.input("in", (1, 2, 2, 4))
    mean = net.add("MEAN", [source, net.constant("axes", np.array(axes, np.int32))], "mean", shape)
    net.output(net.add("ABS", [mean], "sizes", shape))
    converted(net, plan_of(net, mean=(0.0, 10.0)))
    margin = Recipe().pooled if len(axes) == 2 else Recipe().narrow
    assert grid(named(net.model, "mean"))[0] == pytest.approx(margin * 10 / 255)


def test_margins_of_a_softmax_and_of_outputs() -> None:
    net = Net()
    source = net.input("in", (1, 4))
    scores = net.add("RELU", [source], "scores", (1, 4))
    net.output(net.add("SOFTMAX", [scores], "share", (1, 4), beta=1.0))
    net.output(net.add("ABS", [source], "sizes", (1, 4)))
    converted(net, plan_of(net, scores=(0.0, 10.0), sizes=(0.0, 10.0)))
    assert grid(named(net.model, "scores"))[0] == pytest.approx(Recipe().softmax * 10 / 255)
    assert grid(named(net.model, "sizes_int8"))[0] == pytest.approx(Recipe().outputs * 10 / 255)


def test_margins_are_those_of_what_reads_a_tensor_in_floats_too() -> None:
    net = Net()
    source = net.input("in", (1, 4))
    scores = net.add("RELU", [source], "scores", (1, 4))
    rows = net.add("RESHAPE", [scores], "rows", (2, 2))
    net.output(net.add("SOFTMAX", [rows], "share", (2, 2), beta=1.0))
    given = net.add("ABS", [source], "sizes", (1, 4))
    net.output(net.add("RESHAPE", [given], "column", (4, 1)))
    known = dict.fromkeys(("scores", "rows", "sizes", "column"), (0.0, 10.0))
    converted(net, plan_of(net, keeps=lambda item: item.code.name in ("SOFTMAX", "RESHAPE"), **known))
    assert grid(named(net.model, "scores"))[0] == pytest.approx(Recipe().softmax * 10 / 255)
    assert grid(named(net.model, "sizes"))[0] == pytest.approx(Recipe().outputs * 10 / 255)


def test_a_bias_that_would_not_fit_makes_its_channel_coarser() -> None:
    net = Net()
    weights = np.array([[1.0, -1.0], [1e-20, 1e-20]], np.float32)
    bias = net.constant("b", np.array([0.5, 3.0], np.float32))
    net.output(net.dense(net.input("in", (1, 2)), net.constant("w", weights), "out", bias))
    converted(net, plan_of(net))
    operator = net.model.subgraphs[0].operators[1]
    stored = operator.inputs[2]
    assert stored is not None and stored.quantization is not None and stored.quantization.scale is not None
    levels = data_of(stored).astype(np.float64)
    assert np.abs(levels).max() < 2**31
    assert levels * np.array(list(stored.quantization.scale)) == pytest.approx([0.5, 3.0], rel=1e-3)
    weight = operator.inputs[1]
    assert (
        weight is not None and (data_of(weight)[1] == 0).all() and data_of(weight)[0].tolist() == [127, -127]
    )


def test_equal_integers_on_other_scales_are_other_weights() -> None:
    net = Net()
    weights = net.constant("w", np.array([[1.0, -1.0], [0.0, 0.0]], np.float32))
    for name, bias in (("a", 3.0), ("b", 3e12)):
        held = net.constant(f"{name}_bias", np.array([0.5, bias], np.float32))
        net.output(net.dense(net.input(f"{name}_in", (1, 2)), weights, name, held))
    converted(net, plan_of(net, b=(0.0, 3e12)))
    layers = [item for _, item in net.model.operators() if item.code.name == "FULLY_CONNECTED"]
    for layer in layers:
        source, weight, bias = (item for item in layer.inputs if item is not None)
        scales = [item.quantization.scale for item in (source, weight, bias) if item.quantization is not None]
        steps = [np.array(list(scale)) for scale in scales if scale is not None]
        assert steps[0] * steps[1] == pytest.approx(steps[2]), "a bias goes by the scale of its weight"


def test_weights_of_one_buffer_are_rounded_once_for_all_who_read_them() -> None:
    net = Net()
    first = net.weights("first", (4, 4))
    second = net.tensor("second", (4, 4), buffer=first.buffer)
    net.output(net.dense(net.dense(net.input("in", (1, 4)), first, "hidden"), second, "out"))
    works = plan_of(net).works()
    assert len(works) == 2 and len({id(work) for work in works.values()}) == 1
    assert len(next(iter(works.values())).uses) == 2


def test_bytes_that_are_no_constant_are_not_frozen() -> None:
    net = Net()
    source = net.input("in", (1, 4))
    source.buffer = net.buffer(np.arange(4, dtype=np.float32).tobytes())
    made = net.add("RELU", [source], "made", (1, 4))
    made.buffer = net.buffer(np.arange(4, dtype=np.float32).tobytes())
    net.output(net.add("ABS", [made], "out", (1, 4)))
    net.output(made)
    assert converted(net, plan_of(net)) == 3
    first, relu, *_ = net.model.subgraphs[0].operators
    assert first.inputs == [source] and relu.inputs == first.outputs


@pytest.mark.parametrize(
    ("shape", "bias", "reason"),
    [
        ((4, 3), 4, "no float32 constant for the weight"),
        ((16,), 4, "too few axes"),
        ((4, 4), 3, "for the bias"),
        ((0, 4), 4, "no float32 constant for the weight"),
    ],
)
def test_a_weight_that_does_not_fit_stays_float(shape: tuple[int, ...], bias: int, reason: str) -> None:
    net = Net()
    weights = net.weights("w", (4, 4))
    weights.shape = shape
    biases = net.constant("b", np.ones(bias, np.float32))
    net.output(net.add("FULLY_CONNECTED", [net.input("in", (1, 4)), weights, biases], "out", (1, 4)))
    plan = plan_of_any(net)
    assert not plan.modes.widths and reason in next(iter(plan.modes.reasons.values()))


def test_what_has_operands_too_many_stays_float() -> None:
    net = Net()
    source = net.input("in", (1, 4))
    net.output(net.add("FULLY_CONNECTED", [source, net.weights("w", (4, 4)), None, source], "out", (1, 4)))
    plan = plan_of(net)
    assert "its kernel takes" in next(iter(plan.modes.reasons.values()))


def test_what_weighs_floats_and_gives_none_stays_float() -> None:
    net = Net()
    source, weights = net.input("in", (1, 4)), net.weights("w", (4, 4))
    net.output(net.add("FULLY_CONNECTED", [source, weights, None], "out", (1, 4), dtype=np.int32))
    plan = plan_of(net)
    assert "no float32 output" in next(iter(plan.modes.reasons.values()))


def test_what_negates_integers_stays_float() -> None:
    net = Net()
    net.output(net.add("NEG", [net.input("in", (1, 4))], "out", (1, 4)))
    plan = plan_of(net)
    assert not plan.modes.widths and "lowest integer" in next(iter(plan.modes.reasons.values()))


@pytest.mark.parametrize(("lowest", "reason"), [(1e20, "too far apart"), (3.4e38, "above 2^100")])
def test_additions_of_far_scales_stay_float(lowest: float, reason: str) -> None:
    net = Net()
    source = net.input("in", (1, 4))
    mask = net.constant("mask", np.array([0, 0, -lowest, 0], np.float32))
    net.output(net.add("ADD", [source, mask], "out", (1, 4)))
    plan = plan_of(net, out=(-lowest, 1.0))
    assert not plan.modes.widths
    assert reason in next(iter(plan.modes.reasons.values()))


def masked(
    mask: Any, *, width: int = 8, axes: tuple[int, ...] = (1, 2, 4), added: str = "ADD"
) -> IntegerPlan:
    """Scores between -5 and 3, a mask added to them, and the softmax that reads both, behind a RESHAPE."""
    net = Net()
    scores = net.add("ABS", [net.input("in", (1, 2, 4))], "scores", (1, 2, 4))
    constant = net.constant("mask", np.array(mask, np.float32))
    sums = net.add(added, [constant, scores], "sums", (1, 2, 4))
    shape = net.constant("shape", np.array(axes, np.int32))
    made = net.add("RESHAPE", [sums, shape], "reshaped", axes)
    net.output(net.add("SOFTMAX", [made], "out", axes, beta=1.0))
    low = float(np.min(mask)) - 5.0
    return plan_of(net, width, scores=(-5.0, 3.0), sums=(low, 3.0), reshaped=(low, 3.0))


def held(plan: IntegerPlan, name: str) -> Range:
    """The range of the grid on which a tensor is read."""
    (subgraph,) = plan.subgraphs
    for operator in subgraph.operators:
        for form, grid in plan.groups_of(subgraph).forms_of(operator) if plan.modes.width(operator) else ():
            if form.tensor.name == name:
                return grid.range
    raise AssertionError(name)


@pytest.mark.parametrize("lowest", [-100.0, -900.0, -1e9])
@pytest.mark.parametrize(("width", "below"), [(8, 10.0), (16, 16.0)])
def test_a_grid_holds_of_a_mask_what_a_softmax_tells_apart(lowest: float, width: int, below: float) -> None:
    plan = masked([[0, 0, lowest, lowest], [0, lowest, 0, 0]], width=width)
    assert not plan.modes.reasons
    # Scores are -5 at least, and one of each row stays: the largest is no less.
    for name in ("sums", "reshaped"):
        assert held(plan, name)[0] == pytest.approx(-5.0 - below, rel=0.02)
    highest = 3.0 * Recipe().margin(width)
    assert held(plan, "mask")[0] == pytest.approx(-5.0 - below - highest, rel=0.02)


@pytest.mark.parametrize(
    "how",
    [
        {"mask": [[-100.0] * 4, [0, 0, 0, -100.0]]},
        {"mask": [[0, 0, 0, -100.0]] * 2, "axes": (1, 4, 2)},
        {"mask": [[0, 0, 0, -100.0]] * 2, "added": "MAXIMUM"},
    ],
    ids=["a row of it masks all", "rows are others", "it is not added"],
)
def test_what_may_be_the_largest_of_a_row_is_no_mask(how: dict[str, Any]) -> None:
    assert held(masked(**how), "reshaped")[0] < -100.0


@pytest.mark.parametrize(("beta", "largest"), [(0.0, 1.0), (1.0, 1e-6)])
def test_a_softmax_that_would_end_the_process_stays_float(beta: float, largest: float) -> None:
    net = Net()
    net.output(net.add("SOFTMAX", [net.input("in", (1, 4))], "out", (1, 4), beta=beta))
    plan = plan_of(net, **{"in": (0.0, largest), "out": (0.0, 1.0)})
    assert not plan.modes.widths and "too small" in next(iter(plan.modes.reasons.values()))


@pytest.mark.parametrize("kind", ["SUM", "FLOOR", "ELU"])
def test_what_has_no_kernel_everywhere_stays_float_between_conversions(kind: str) -> None:
    net = Net()
    source = net.add("RELU", [net.input("in", (1, 4))], "before", (1, 4))
    middle = net.add(kind, [source], "middle", (1, 4))
    net.output(net.add("RELU", [middle], "out", (1, 4)))
    assert converted(net, plan_of(net)) == 4
    names = [name for name, _ in codes(net.model)]
    assert names == ["QUANTIZE", "RELU", "DEQUANTIZE", kind, "QUANTIZE", "RELU", "DEQUANTIZE"]


def test_beside_int16_what_knows_8_bits_only_has_8_and_slopes_too() -> None:
    net = Net()
    source = net.input("in", (1, 4, 4, 4))
    sloped = net.add(
        "PRELU", [source, net.constant("slopes", np.full(4, 0.1, np.float32))], "sloped", (1, 4, 4, 4)
    )
    net.output(net.add("HARD_SWISH", [sloped], "out", (1, 4, 4, 4)))
    converted(net, plan_of(net, 16))
    types = {item.name: item.dtype_name for item in net.model.subgraphs[0].tensors}
    assert types["sloped"] == "INT16" and types["slopes"] == "INT8" and types["out_int8"] == "INT8"
    assert grid(named(net.model, "sloped"))[1] == 0


def test_what_the_user_keeps_stays_and_is_said() -> None:
    net = Net()
    net.output(net.add("RELU", [net.add("ABS", [net.input("in", (1, 4))], "a", (1, 4))], "out", (1, 4)))
    plan = plan_of(net, keeps=lambda operator: operator.code.name == "ABS")
    assert list(plan.modes.reasons.values()) == ["kept, as asked"]
    assert len(plan.modes.widths) == 1


def test_a_shape_is_read_from_integers_without_a_conversion() -> None:
    net = Net()
    made = net.add("RELU", [net.input("in", (1, 4))], "made", (1, 4))
    net.output(made)
    net.output(net.add("SHAPE", [made], "shape", (2,), dtype=np.int32))
    plan = plan_of(net)
    assert not plan.modes.reasons
    assert converted(net, plan) == 2


def test_the_simulation_rounds_activations_and_leaves_operators_and_weights() -> None:
    net = Net()
    weights = net.weights("w", (4, 8))
    net.output(net.add("RELU", [net.dense(net.input("in", (1, 8)), weights, "hidden")], "out", (1, 4)))
    copy = Net()
    kept = copy.weights("w", (4, 8))
    copy.output(copy.add("RELU", [copy.dense(copy.input("in", (1, 8)), kept, "hidden")], "out", (1, 4)))
    places = plan_of(net).simulate(copy.model)
    assert [places[0, at].code.name for at in range(2)] == ["FULLY_CONNECTED", "RELU"]
    assert places[0, 0].inputs[1] is kept and kept.dtype_name == "FLOAT32"
    names = [name for name, _ in codes(copy.model)]
    assert names.count("QUANTIZE") == 3 and names.count("DEQUANTIZE") == 3
    assert broken(copy.model) == []
    assert [name for name, _ in codes(net.model)] == ["FULLY_CONNECTED", "RELU"], "the model itself stays"


@pytest.mark.parametrize("width", [8, 16])
def test_a_grid_ends_where_all_who_read_it_bend(width: int) -> None:
    net = Net()
    shape, wide = (1, 4), (-90.0, 180.0)
    sums = net.dense(net.input("in", shape), net.weights("w", (8, 4)), "sums")
    halves = [net.tensor(name, shape) for name in ("one", "other")]
    net.add("SPLIT", [net.constant("axis", np.array(1, np.int32)), sums], "unused", shape, num_splits=2)
    net.graph.operators[-1].outputs[:] = halves
    for half, kind in zip(halves, ("LOGISTIC", "TANH"), strict=True):
        net.output(net.add(kind, [half], f"gate_{kind}", shape))
    known = {"sums": wide, "one": wide, "other": wide, "gate_LOGISTIC": (0.0, 1.0)}
    converted(net, plan_of(net, width, **known))
    end = BENDS_OF_LOGISTIC[width][1]
    assert grid(named(net.model, "sums")) == grid(named(net.model, "one"))
    assert grid(named(net.model, "sums"))[0] == pytest.approx(2 * end / 2**width, rel=0.01)


def test_what_others_tell_apart_keeps_its_grid() -> None:
    net = Net()
    shape = (1, 4)
    source = net.input("in", shape)
    read, shown, pooled = (net.dense(source, net.weights(f"w_{name}", (4, 4)), name) for name in "abc")
    for tensor in (read, shown):
        net.output(net.add("LOGISTIC", [tensor], f"gate_{tensor.name}", shape))
    net.output(net.add("ABS", [read], "sizes", shape))
    net.output(shown)
    cube = net.add("RESHAPE", [pooled], "cube", (1, 2, 2, 1))
    mean = net.add("AVERAGE_POOL_2D", [cube], "mean", (1, 2, 2, 1), filter_width=1, filter_height=1)
    net.output(net.add("LOGISTIC", [mean], "gate_mean", (1, 2, 2, 1)))
    wide = (-90.0, 180.0)
    converted(net, plan_of(net, a=wide, b=wide, c=wide, cube=wide, mean=wide))
    for name, margin in (("a", 1.0), ("b_int8", Recipe().outputs), ("c", 1.0)):
        assert grid(named(net.model, name))[0] == pytest.approx(margin * 270 / 255, rel=0.01), name


@pytest.mark.parametrize(
    ("kind", "at", "need"),
    [
        ("ADD", 0, (-7.0 - 2.0, 7.0 + 1.0)),
        ("ADD", 1, (-7.0 - 2.0, 7.0 + 1.0)),
        ("SUB", 0, (-7.0 - 1.0, 7.0 + 2.0)),
        ("SUB", 1, (-1.0 - 7.0, 2.0 + 7.0)),
    ],
)
def test_a_summand_matters_as_far_as_the_other_brings_it_back(
    kind: str, at: int, need: tuple[float, float]
) -> None:
    net = Net()
    shape = (1, 4)
    source = net.input("in", shape)
    large = net.dense(source, net.weights("w", (4, 4)), "large")
    small = net.dense(source, net.weights("v", (4, 4)), "small")
    total = net.add(kind, [large, small] if at == 0 else [small, large], "total", shape)
    net.output(net.add("LOGISTIC", [total], "gate", shape))
    converted(net, plan_of(net, large=(-90.0, 180.0), small=(-1.0, 2.0), total=(-90.0, 180.0)))
    scale, zero = grid(named(net.model, "large"))
    assert ((-128 - zero) * scale, (127 - zero) * scale) == pytest.approx(need, abs=scale)
    assert grid(named(net.model, "small"))[0] == pytest.approx(3 / 255)


def test_a_fused_function_cuts_off_sums() -> None:
    net = Net()
    source = net.input("in", (1, 4))
    large = net.dense(source, net.weights("w", (4, 4)), "large")
    small = net.dense(source, net.weights("v", (4, 4)), "small")
    net.output(net.add("ADD", [large, small], "total", (1, 4), fused_activation_function=3))
    converted(net, plan_of(net, large=(-90.0, 180.0), small=(-1.0, 2.0), total=(0.0, 6.0)))
    scale, zero = grid(named(net.model, "large"))
    assert ((-128 - zero) * scale, (127 - zero) * scale) == pytest.approx((-2.0, 7.0), abs=scale)


def test_a_range_that_lies_beyond_is_held() -> None:
    net = Net()
    far = net.dense(net.input("in", (1, 4)), net.weights("w", (4, 4)), "far")
    net.output(net.add("LOGISTIC", [far], "gate", (1, 4)))
    converted(net, plan_of(net, far=(50.0, 60.0)))
    scale, zero = grid(named(net.model, "far"))
    assert (127 - zero) * scale == pytest.approx(50.0, abs=scale)
