"""Which operator versions the features in use need."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import Judging, TflRewriteError, diagnose, inspect, load, rewrite, save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.metadata import said_runtime
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.kernels import reads, runtimes
from tfl_rewrite.kernels.platforms import Platform, missing
from tfl_rewrite.kernels.reads import needed_version
from tfl_rewrite.model.ir import Model, Operator, Tensor, schema
from tfl_rewrite.passes.repair import Repair

from ..faulty_models import dense, scaled, sixteen, too_high
from ..nets import Net, codes, nearest, with_grid
from .integer_cases import built

OLD = os.environ.get("TFL_REWRITE_OLD_RUNTIME_PYTHON")


def test_every_term_of_the_table_means_something() -> None:
    options = {
        name.removesuffix("Options").replace("_", "").lower(): set(table.by_name)
        for name, table in schema().tables.items()
        if name.endswith("Options")
    }
    known = set().union(*options.values())
    rules = [
        (name, version, terms)
        for name, listed in runtimes.versions().items()
        for version, (_, asked) in listed.items()
        for terms in asked
    ]
    assert len(rules) > 250
    for name, version, terms in rules:
        assert name in schema().enums["BuiltinOperator"].values
        assert 1 < version <= runtimes.max_version(name, runtimes.NEWEST_RUNTIME) or name in (
            "LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "GATHER", "QUANTIZE",
        ), (name, version)  # fmt: skip
        for term in terms:
            word = term.removeprefix("!")
            if word.startswith("="):
                assert word[1:] in known, term
                continue
            subject, colon, test = word.partition(":")
            if not colon:
                assert word in reads.WORDS, term
                continue
            assert subject in ("any", "out", "out1") or subject.isdigit(), term
            if not test.startswith("rank") and test not in reads.TESTS:
                assert set(test.split("|")) <= reads.TYPES, term


def test_no_committed_model_is_too_high(sound: Path) -> None:
    assert not list(reads.too_high(load(sound)))


def test_no_public_model_is_too_high(public: Path) -> None:
    """They were stamped by the converters whose rules these are."""
    try:
        model = load(public)
    except TflRewriteError:
        return
    assert not [(item.code.name, item.code.version, item.needed) for item in reads.too_high(model)]


def operator(
    kind: str, *inputs: str, out: str = "float32", shape: tuple[int, ...] = (2, 4), **options: object
) -> Operator:
    """An operator over tensors of some types; ``name*`` has scales by channel, ``name:`` one scale."""
    net = Net()
    made: list[Tensor | None] = []
    for index, text in enumerate(inputs):
        if text == "-":
            made.append(None)
            continue
        tensor = net.tensor(f"t{index}", shape, np.dtype(text.rstrip("*:")).type)
        if text.endswith("*"):
            scaled(tensor, [0.1] * shape[0])
        elif text.endswith(":"):
            scaled(tensor, [0.1])
        made.append(tensor)
    net.add(kind, made, "y", shape, dtype=np.dtype(out).type, **options)
    return net.graph.operators[0]


FIVE = (1, 1, 2, 2, 2)
CASES = [
    (operator("NEG", "float32"), 1),
    (operator("ADD", "float32", "float32"), 1),
    (operator("ADD", "int8:", "int8:", out="int8"), 2),
    (operator("ADD", "int16:", "int16:", out="int16"), 3),
    (operator("ADD", "int64", "int64", out="int64"), 4),
    (operator("ADD", "int16", "int16", out="int16"), 5),
    (operator("MUL", "int16:", "int16:", out="int16"), 4),
    (operator("TRANSPOSE", "float32", "int32", shape=FIVE), 4),
    (operator("TRANSPOSE", "bool", "int32", out="bool", shape=FIVE), 4),
    (operator("SPACE_TO_BATCH_ND", "float32", "int32", "int32", shape=(1, 2, 2, 1)), 1),
    (operator("SPACE_TO_BATCH_ND", "float32", "int32", "int32"), 3),
    (operator("FULLY_CONNECTED", "float32", "float32", "float32"), 1),
    (operator("FULLY_CONNECTED", "float32", "float32", "-"), 6),
    (operator("FULLY_CONNECTED", "float32", "float32", "float32", keep_num_dims=True), 5),
    (operator("FULLY_CONNECTED", "float32", "int8:", "float32"), 3),
    (operator("FULLY_CONNECTED", "float32", "int8:", "float32", asymmetric_quantize_inputs=True), 9),
    (operator("FULLY_CONNECTED", "float32", "int8*", "float32"), 12),
    (operator("FULLY_CONNECTED", "int8:", "int8*", "int32", out="int8"), 4),
    (operator("FULLY_CONNECTED", "int16:", "int8:", "int64", out="int16"), 7),
    (operator("DEPTHWISE_CONV_2D", "float32", "float32", "float32", dilation_w_factor=1), 1),
    (operator("DEPTHWISE_CONV_2D", "float32", "float32", "float32", dilation_w_factor=2), 2),
    (operator("CAST", "float32", out="int8"), 3),
    (operator("CAST", "float16", out="float32"), 5),
    (operator("BROADCAST_TO", "float32", "int32"), 2),
    (operator("WHERE", "bool", out="int64"), 1),
    (operator("WHERE", "float32", out="int64"), 2),
    (operator("GATHER", "int8", "int32", out="int8"), 2),
    (operator("GATHER", "float32", "int32", batch_dims=1), 5),
    (operator("DEQUANTIZE", "float16"), 3),
    (operator("DEQUANTIZE", "int8*"), 5),
    (sixteen("CONV_2D").subgraphs[0].operators[0], 4),
    (sixteen("CONV_2D", told="int32").subgraphs[0].operators[0], 8),
    (sixteen("FULLY_CONNECTED", told="int64", bias="int64").subgraphs[0].operators[0], 11),
]


@pytest.mark.parametrize(
    ("item", "version"), CASES, ids=[f"{item.code.name}-{number}" for number, (item, _) in enumerate(CASES)]
)
def test_needed_versions(item: Operator, version: int) -> None:
    assert needed_version(item) == version


def test_a_code_that_one_operator_needs_stays() -> None:
    """Converters write one code for each type, of the highest version that any of its operators needs."""
    net = Net()
    floats = net.input("x", (2, 8))
    wide = net.input("n", (2, 8), np.int64)
    net.output(net.add("ADD", [floats, floats], "y", (2, 8), version=4))
    net.output(net.add("ADD", [wide, wide], "z", (2, 8), dtype=np.int64, version=4))
    assert not list(reads.too_high(net.model))
    net.graph.operators[1].code = net.code("ADD", 5)
    assert [(item.code.version, item.needed) for item in reads.too_high(net.model)] == [
        (4, 1),
        (5, 4),
    ]


def test_blocks_keep_the_version_that_they_have(fixtures: Path) -> None:
    model = load(fixtures / "blockwise_int4.tflite")
    assert ("FULLY_CONNECTED", 13) in codes(model) and not list(reads.too_high(model))


def test_what_only_ancient_runtimes_lack_is_not_worth_a_word() -> None:
    model = dense(scales=[0.01], version=3)
    weight = model.subgraphs[0].operators[0].inputs[1]
    assert weight is not None
    model.subgraphs[0].operators[0].inputs[1] = Net().weights("w", (16, 8))
    assert not list(reads.too_high(model))


@pytest.mark.runtime
@pytest.mark.parametrize("version", [4, 5, 6, 7, 99])
def test_lowered_for_whom_it_helps(version: int, tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(too_high(version, version), source)
    report = rewrite(source, target, [Repair()], judging=Judging(samples=1))
    assert codes(load(target)) == [("ADD", 1)] * 2 and len(load(target).operator_codes) == 1
    assert diagnose(target, min_runtime="2.14").findings == ()
    if version <= 6:
        assert report.verdict is not None and report.verdict.passed
    else:
        assert report.unverified is not None
    if OLD:
        assert run_model(target, Judging(samples=1, runtime=f"python:{OLD}")).failure is None


def test_the_doctor_names_the_remedy_that_helps(tmp_path: Path) -> None:
    source = tmp_path / "in.tflite"
    save(too_high(6), source)
    found = {item.kind: item for item in diagnose(source, min_runtime="2.14").findings}
    assert found["version-high"].remedy == "tfl-rewrite repair IN OUT --only version-high"
    assert found["too-new"].remedy == "tfl-rewrite repair IN OUT --only version-high"
    net = Net()
    net.output(net.add("GELU", [net.input("x", (2, 8))], "y", (2, 8)))
    save(net.model, source, force=True)
    (finding,) = diagnose(source, min_runtime="2.8").findings
    assert finding.kind == "too-new" and "2.9 or newer" in finding.remedy


def to_sixteen_bits(kind: type) -> Net:
    """Integers of 8 bits that become int16 ones by QUANTIZE, which releases up to 2.20 refuse."""
    net = Net()
    eight = with_grid(net.add("QUANTIZE", [net.input("in", (1, 4))], "eight", (1, 4), dtype=kind), 0.1, 0)
    wide = net.add("QUANTIZE", [eight], "wide", (1, 4), dtype=np.int16, version=2)
    net.output(net.add("DEQUANTIZE", [with_grid(wide, 0.01, 0)], "out", (1, 4), version=3))
    net.metadata("min_runtime_version", b"1.15.0".ljust(16, b"\0"))
    return net


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_what_came_after_its_version_counts_for_the_oldest_runtime(kind: type) -> None:
    model = to_sixteen_bits(kind).model
    (found,) = (item for item in diagnose(model).findings if item.kind == "min-runtime")
    assert found.detail == "it says 1.15.0; what an operator computes with needs 2.21.0"
    assert inspect(model).min_runtime == "2.21.0"
    lacking = [[place for place, _, _ in missing(model, Platform.parse(text))] for text in ("2.14", "2.20")]
    assert lacking == [["subgraphs[0].operators[1]"]] * 2
    assert not list(missing(model, Platform.parse("litert-2.1.3")))
    run_passes(model, [Repair(only=("min-runtime",))])
    assert said_runtime(model) == "2.21.0"
    assert diagnose(model).counts["warning"] == 0


def test_the_same_types_need_no_late_runtime() -> None:
    model = Net()
    model.output(model.add("QUANTIZE", [model.input("in", (1, 4))], "out", (1, 4), dtype=np.int16, version=2))
    assert reads.late_releases(model.model) == set()


def integer_model(label: str, width: int) -> Model:
    model, _ = built(label)
    plan = IntegerPlan(model, lambda _: width, {id(item): (-1.0, 1.0) for _, item in model.tensors()})
    editor = Editor(model)
    plan.convert(editor, nearest)
    editor.finish()
    return model


@pytest.mark.parametrize(
    ("label", "width", "first"),
    [
        ("FULLY_CONNECTED", 8, "2.10.0"),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", 8, "2.12.0"),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM projection", 8, "1.14.0"),
        ("LSTM peephole", 8, "2.12.0"),
        ("SVDF", 8, "2.2.0"),
        ("EXP", 8, "2.13.0"),
        ("GELU", 16, "2.20.0"),
    ],
)
def test_integer_operators_name_the_runtime_that_first_computes_them(
    label: str, width: int, first: str
) -> None:
    """Measured on each release that there is: 2.7.0 to 2.14.0, and four of LiteRT."""
    model = integer_model(label, width)
    assert inspect(model).min_runtime == first
    assert any(missing(model, Platform.parse("2.9"))) is (runtimes.version_key(first) > (2, 9))
