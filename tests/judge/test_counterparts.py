"""The original is described and called as the rewritten file is."""

from __future__ import annotations

import json
from pathlib import Path

from tfl_rewrite.interpreter.interface import EntryPoint, Interface, TensorFacts
from tfl_rewrite.judge.counterparts import Counterpart, chained, seen, write_own_calls
from tfl_rewrite.judge.judge import interface_differences


def facts(name: str, index: int, tensor: str = "") -> TensorFacts:
    return TensorFacts(
        name=name, tensor=tensor or name, dtype="float32", shape=(4,), shape_signature=(4,), index=index
    )


def interface(key: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Interface:
    given, gives = tuple(map(facts, inputs, range(9))), tuple(map(facts, outputs, range(9)))
    return Interface(EntryPoint(None, given, gives), (EntryPoint(key, given, gives),))


OWN = interface("old", ("a", "b"), ("p", "q"))
SIGNED = Counterpart(
    key="new", original="old", inputs=(("z", "a"), ("y", "b")), outputs=(("p", "p"), ("o", "q"))
)
PLAIN = Counterpart(key=None, original=None, inputs=(("z", 0), ("y", 1)), outputs=(("p", 0), ("o", 1)))
# As a runtime sorts them.
THEIRS = Interface(
    EntryPoint(None, (facts("z", 0), facts("y", 1)), (facts("p", 0), facts("o", 1))),
    (EntryPoint("new", (facts("y", 1), facts("z", 0)), (facts("o", 1), facts("p", 0))),),
)


def test_the_original_has_the_names_and_the_order_of_the_other_file() -> None:
    known = seen(OWN, (SIGNED, PLAIN), THEIRS)
    (signature,) = known.signatures
    assert [(item.name, item.index) for item in signature.inputs] == [("y", 1), ("z", 0)]
    assert [(item.name, item.index) for item in signature.outputs] == [("o", 1), ("p", 0)]
    assert [item.name for item in known.primary.inputs] == ["z", "y"]
    assert signature.inputs[0].aliases == ("b",), "samples may have the old name"
    assert interface_differences(known, THEIRS) == ([], [])


def test_names_that_were_not_asked_for_are_differences() -> None:
    broken, _ = interface_differences(seen(OWN, (SIGNED, PLAIN), OWN), OWN)
    assert broken[:2] == ["signature 'new' is missing", "signature 'old' is new"]
    lost = Counterpart(key="new", original="gone", inputs=(), outputs=())
    broken, _ = interface_differences(seen(OWN, (lost, PLAIN), THEIRS), THEIRS)
    assert broken == ["signature 'new' is new"]


def test_calls_go_to_the_names_of_the_original(tmp_path: Path) -> None:
    listed = tmp_path / "steps.json"
    inputs = [["y", "first"], ["z", "second"]]
    calls = [{"signature": "new", "optional": False, "inputs": inputs}]
    calls.append({"signature": None, "optional": True, "inputs": [["z", "third"], ["y", "fourth"]]})
    listed.write_text(json.dumps(calls), encoding="utf-8")
    known = seen(OWN, (SIGNED, PLAIN), THEIRS)
    made = json.loads(write_own_calls(listed, OWN, known, (SIGNED, PLAIN)).read_text(encoding="utf-8"))
    assert made[0] == {
        "signature": "old",
        "optional": False,
        "inputs": [["b", "first"], ["a", "second"]],
        "outputs": ["q", "p"],
    }
    assert made[1]["inputs"] == [["0", "third"], ["1", "fourth"]] and made[1]["outputs"] == [0, 1]


def test_a_signature_may_stand_for_the_primary_subgraph() -> None:
    added = Counterpart(key="fresh", original=None, inputs=(("y", 1), ("z", 0)), outputs=(("o", 1),))
    known = seen(OWN, (added, PLAIN), None)
    assert [item.index for item in known.signatures[0].inputs] == [1, 0]
    assert known.find("old") is None


def test_several_rewrites_come_down_to_one() -> None:
    second = Counterpart(key="last", original="new", inputs=(("w", "z"), ("y", "y")), outputs=(("o", "o"),))
    primary = Counterpart(key=None, original=None, inputs=(("w", 0), ("y", 1)), outputs=(("p", 0), ("o", 1)))
    (signed, plain) = chained([(), (SIGNED, PLAIN), (second, primary)])
    assert (signed.key, signed.original) == ("last", "old")
    assert signed.inputs == (("w", "a"), ("y", "b")) and signed.outputs == (("o", "q"),)
    assert plain.inputs == (("w", 0), ("y", 1))
    assert chained([(), ()]) == ()
