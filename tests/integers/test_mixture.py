"""Which scale groups can have 16 bits, what that makes of operators, and what it costs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite.errors import UsageError
from tfl_rewrite.integers.mixture import Choice, Computes, Mixture, Unit
from tfl_rewrite.model.ir import Model, Operator


def chain() -> Net:
    """A matrix, an absolute value, a transposition (which keeps the scale), and another matrix."""
    net = Net()
    hidden = net.dense(net.input("in", (4, 4)), net.weights("w", (4, 4)), "hidden")
    sizes = net.add("ABS", [hidden], "sizes", (4, 4))
    moved = net.add("TRANSPOSE", [sizes, net.constant("order", np.array([1, 0], np.int32))], "moved", (4, 4))
    net.output(net.dense(moved, net.weights("v", (4, 4)), "out"))
    return net


def mixture_of(model: Model, *rules: str, exclude: tuple[str, ...] = ()) -> Mixture:
    ranges = {id(item): (-1.0, 1.0) for item in model.subgraphs[0].tensors if item.dtype_name == "FLOAT32"}
    return Mixture(model, Choice.parse(Computes.INT8, rules, (), exclude), ranges)


def names(unit: Unit) -> set[str]:
    return {tensor.name for tensor, _ in unit.tensors.values()}


def unit_of(mixture: Mixture, name: str) -> Unit:
    return next(unit for unit in mixture.units if name in names(unit))


def test_a_unit_is_what_is_bound_to_one_scale() -> None:
    mixture = mixture_of(chain().model)
    assert sorted(map(sorted, map(names, mixture.units))) == [["hidden"], ["in"], ["moved", "sizes"], ["out"]]
    assert {grid.width for unit in mixture.units for grid in unit.grids.values()} == {8}


def test_all_who_make_or_read_a_wide_group_have_16_bits() -> None:
    net = chain()
    mixture = mixture_of(net.model)
    plan = mixture.plan([unit_of(mixture, "hidden")])
    widths = [plan.modes.width(operator) for operator in net.graph.operators]
    assert widths == [16, 16, 8, 8]
    assert mixture.share([unit_of(mixture, "hidden")]) == 0.5
    assert mixture.share(mixture.units) == 1.0 and mixture.share([]) == 0.0


def test_all_who_make_or_read_a_wide_group_are_floats_beside_integers() -> None:
    for computes in (Computes.INT8, Computes.INT16):
        net = chain()
        ranges = {id(item): (-1.0, 1.0) for item in net.graph.tensors if item.dtype_name == "FLOAT32"}
        choice = Choice.parse(computes, (), (), ())
        mixture = Mixture(net.model, choice, ranges, wide=None)
        hidden, moved = (unit_of(mixture, name) for name in ("hidden", "moved"))
        widths = [mixture.plan([hidden]).modes.width(operator) for operator in net.graph.operators]
        assert widths == [None, None, computes.width, computes.width]
        widest = mixture.plan(mixture.units)
        assert not any(widest.modes.width(operator) for operator in net.graph.operators)
        # Each integer that goes costs, although the floats outside need no conversion then.
        assert mixture.price([]) < mixture.price([hidden]) < mixture.price(mixture.units)
        assert mixture.share([hidden]) == 0.5 and mixture.share([hidden, moved]) == 1.0


def test_what_rules_and_kernels_say_is_no_choice() -> None:
    assert not any("out" in names(unit) for unit in mixture_of(chain().model, "out=int8").units)
    net = chain()
    mixture = mixture_of(net.model, "TRANSPOSE=int16")
    assert [mixture.plan([]).modes.width(item) for item in net.graph.operators] == [8, 8, 16, 8]
    net = Net()
    made = net.add("HARD_SWISH", [net.input("in", (1, 4))], "made", (1, 4))
    net.output(net.add("ABS", [made], "out", (1, 4)))
    assert [names(unit) for unit in mixture_of(net.model).units] == [{"out"}], "one has no kernel of 16 bits"
    net = Net()
    slopes = net.constant("slopes", np.full(4, 0.1, np.float32))
    net.output(net.add("PRELU", [net.input("in", (1, 4)), slopes], "out", (1, 4)))
    assert sorted(map(sorted, map(names, mixture_of(net.model).units))) == [["in"], ["out"]]


def test_excluded_operators_stay_float() -> None:
    net = chain()
    mixture = mixture_of(net.model, exclude=("ABS",))
    widths = [mixture.plan(mixture.units).modes.width(item) for item in net.graph.operators]
    assert widths == [16, None, 16, 16]


def test_conversions_time_and_bytes_are_paid() -> None:
    mixture = mixture_of(chain().model)
    first, hidden, moved = (unit_of(mixture, name) for name in ("in", "hidden", "moved"))
    assert mixture.price([]) == pytest.approx(2.0), "bytes and time, each as a share of that with 8 bits"
    alone = mixture.price([hidden])
    assert alone > mixture.price([])
    # Both have a conversion to 8 bits behind them, and the wider one more operators of 16 bits.
    assert mixture.price([hidden, moved]) > alone
    assert mixture.price([first]) < mixture.price([first, hidden])


def test_the_cheapest_keeps_the_bound_and_none_is_cheaper() -> None:
    mixture = mixture_of(chain().model)
    noises = np.array([[1.0, 0.1], [0.2, 0.5], [0.3, 0.1], [0.05, 0.4]])
    for allowed in (0.0, 0.3, 0.6, 1.0, 1.5, 9.0):
        wide = mixture.cheapest(noises, allowed)
        left = sum(noise for unit, noise in zip(mixture.units, noises, strict=True) if unit not in wide)
        assert np.max(left, initial=0.0) <= allowed
        best = min(
            mixture.price([mixture.units[number] for number in chosen])
            for count in range(5)
            for chosen in combinations(range(4), count)
            if np.max(sum(noises[number] for number in set(range(4)) - set(chosen)), initial=0.0) <= allowed
        )
        assert mixture.price(wide) <= best * 1.25
    assert mixture.cheapest(noises, 9.0) == [] and len(mixture.cheapest(noises, 0.0)) == 4


def operators() -> list[Operator]:
    net = Net()
    hidden = net.add("RELU", [net.input("in", (1, 4))], "first/a=b", (1, 4))
    net.output(net.add("ABS", [hidden], "second", (1, 4)))
    return net.model.subgraphs[0].operators


def said(*rules: str, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[str]:
    choice = Choice.parse(Computes.INT8, rules, include, exclude)
    return [choice.of(operator).value for operator in operators()]


def test_the_last_rule_that_matches_decides() -> None:
    assert said() == ["int8", "int8"]
    assert said("RELU=int16") == ["int16", "int8"]
    assert said("RELU|ABS=int16", "second=float") == ["int16", "float"]
    assert said("second=float", ".=hybrid") == ["hybrid", "hybrid"]
    assert said("^first/a=b$=int16") == ["int16", "int8"], "an expression may hold the sign"


def test_exclusion_and_inclusion_win_over_rules() -> None:
    assert said(".=int16", exclude=("ABS",)) == ["int16", "float"]
    assert said(".=int16", include=("ABS",)) == ["float", "int16"]


@pytest.mark.parametrize("rule", ["RELU", "RELU=", "RELU=int4", "=int8", "RELU=INT8"])
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(UsageError, match=r"is not REGEX=int8\|int16\|hybrid\|float"):
        said(rule)


def test_a_rule_that_matches_nothing_names_what_is_near() -> None:
    net = Net()
    net.output(net.add("RELU", [net.input("in", (1, 4))], "out", (1, 4)))
    Choice.parse(Computes.INT8, ["RELU=int16", "out=int8"], (), ()).check(net.model)
    with pytest.raises(UsageError, match=r"'RELV' matches no operator type.*RELU"):
        Choice.parse(Computes.INT8, ["RELV=int16"], (), ()).check(net.model)
