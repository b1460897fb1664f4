"""What the rules of a user say of an operator."""

from __future__ import annotations

import pytest

from tests.nets import Net
from tfl_rewrite.errors import UsageError
from tfl_rewrite.integers.mixture import Choice, Computes
from tfl_rewrite.model.ir import Operator


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
