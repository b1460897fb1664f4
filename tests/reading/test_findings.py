"""What the doctor finds, and whether it is true: each fault in a model of its own, run as well."""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import FormatError, UsageError, diagnose, load, save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.repair import NAMES as FIXES
from tfl_rewrite.reading.findings import BY_NAME, KINDS, Severity
from tfl_rewrite.reading.metadata import associated_files

from ..faulty_models import FAULTS, SOUND, Fault, dense


def kinds(path: Path, **options: str) -> list[str]:
    return [finding.kind for finding in diagnose(path, **options).findings]


@pytest.fixture(params=FAULTS, ids=lambda fault: f"{fault.kind}-{FAULTS.index(fault)}")
def fault(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Fault, Path]:
    path = tmp_path / "faulty.tflite"
    save(request.param.model(), path)
    return request.param, path


def test_each_fault_is_found_and_nothing_worse(fault: tuple[Fault, Path]) -> None:
    what, path = fault
    found = diagnose(path).findings
    assert what.kind in [finding.kind for finding in found]
    rank = BY_NAME[what.kind].severity.rank
    others = {finding.kind for finding in found if finding.severity.rank < rank} - {what.kind}
    assert not others


@pytest.mark.runtime
def test_the_runtime_takes_each_fault_as_the_finding_says(fault: tuple[Fault, Path]) -> None:
    what, path = fault
    result = run_model(path, Judging(samples=1))
    if result.failure is not None:
        assert what.taken == "refused", result.failure.message
        return
    assert result.judge is not None
    assert what.taken == ("runs" if result.judge.resolver.startswith("default") else "plain")


@pytest.mark.parametrize("number", range(len(SOUND)))
def test_sound_models_have_no_error_and_no_warning(number: int, tmp_path: Path) -> None:
    path = tmp_path / "sound.tflite"
    save(SOUND[number](), path)
    assert not diagnose(path).reaches(Severity.WARNING)


# What is wrong with files that are committed for what they show.
KNOWN = {
    "conv_without_bias": {"missing-bias"},
    "offset_buffers": {"offset-buffers"},
    "model": {"external-buffers"},
    # Its converter says 1.14; releases up to 2.9 compute FULLY_CONNECTED with a scale per channel wrong.
    "digits_cnn_full_int8": {"min-runtime"},
}


def test_fixtures(sound: Path) -> None:
    found = {item.kind for item in diagnose(sound).findings if item.severity is not Severity.NOTE}
    assert found == KNOWN.get(sound.stem, set())


@pytest.mark.parametrize("options", [{}, {"scheme": "dequantize"}, {"min_runtime": "2.14"}], ids=str)
def test_what_this_program_makes_is_sound(sound: Path, options: dict[str, str], tmp_path: Path) -> None:
    model = load(sound)
    run_passes(model, [QuantizeWeights(**options)])[0]
    path = tmp_path / "out.tflite"
    save(model, path)
    before = {item.kind for item in diagnose(sound, min_runtime=options.get("min_runtime")).findings}
    made = diagnose(path, min_runtime=options.get("min_runtime")).findings
    found = {item.kind for item in made if item.severity is not Severity.NOTE}
    # Weight files were not copied along.
    assert found - {"external-missing"} <= before


# Unusual, but runtimes take them and compute what is meant.
ODD = {"options_of_another_operator", "large_custom_options_without_size", "float16_bias_shape_wrong"}


def test_malformed_files_are_format_errors_or_found(malformed: Path) -> None:
    from tfl_rewrite import UnsupportedError

    if malformed.stem in ODD:
        pytest.skip("odd, but nothing that will go wrong")
    try:
        found = diagnose(malformed)
    except (FormatError, UnsupportedError):
        return
    assert found.findings, "nothing is said of it"


def test_what_is_too_new_for_a_runtime(tmp_path: Path) -> None:
    path = tmp_path / "dense.tflite"
    save(dense(), path)
    assert "too-new" not in kinds(path)
    assert "too-new" not in kinds(path, min_runtime="2.17")
    assert kinds(path, min_runtime="2.16").count("too-new") == 2  # the version, and the form of the weight
    with pytest.raises(UsageError):
        diagnose(path, min_runtime="soon")


def test_weight_files_are_looked_for(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "external_buffers"
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    assert "external-missing" not in kinds(copy / "model.tflite")
    weights = copy / "weights_0.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert kinds(copy / "model.tflite").count("external-missing") == 1
    weights.unlink()
    assert kinds(copy / "model.tflite").count("external-missing") == 1


def test_files_that_the_metadata_names(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "metadata_label_zip.tflite"
    assert "zip-member" not in kinds(source)
    data = source.read_bytes()
    bare = tmp_path / "bare.tflite"
    bare.write_bytes(data[: data.rindex(b"PK\x03\x04")])
    assert "zip-member" in kinds(bare)
    empty = tmp_path / "empty.tflite"
    shutil.copy(bare, empty)
    with zipfile.ZipFile(empty, "a"):
        pass
    assert {"zip-member", "zip-empty"} <= set(kinds(empty))
    other = tmp_path / "other.tflite"
    shutil.copy(bare, other)
    with zipfile.ZipFile(other, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", "a\n" * 1000)
    found = kinds(other)
    assert "zip-compressed" in found and "zip-member" not in found


def test_names_in_damaged_metadata_are_an_error_of_value() -> None:
    for data in (b"", b"\xff" * 64, struct.pack("<I", 8) + b"\0" * 4 + struct.pack("<i", 100) + b"\0" * 20):
        with pytest.raises(ValueError):
            associated_files(data)


def test_bytes_that_nothing_reaches(fixtures: Path) -> None:
    for name, goes in (("unexplained_trailing_bytes", True), ("dispatch_op_custom", False)):
        found = diagnose(fixtures / "malformed" / f"{name}.tflite").findings
        dead = next(item for item in found if item.kind == "dead-bytes")
        assert dead.saves > 0 and ("compact" in dead.remedy) is goes
        assert ("fixed-in-place" in {item.kind for item in found}) is not goes


def test_rows_are_whole() -> None:
    assert len(BY_NAME) == len(KINDS)
    for kind in KINDS:
        assert kind.title and kind.fact and kind.source
        assert kind.remedy or kind.repair
    assert set(BY_NAME) >= set(FIXES)


def test_order_and_json(tmp_path: Path) -> None:
    path = tmp_path / "dense.tflite"
    save(dense(version=9, scales=[0, *np.linspace(0.01, 0.02, 15)]), path)
    found = diagnose(path)
    ranks = [item.severity.rank for item in found.findings]
    assert ranks == sorted(ranks)
    data = found.to_dict()
    assert data["counts"]["error"] == 2
    assert {"id", "severity", "where", "detail", "why", "source", "remedy"} <= set(data["findings"][0])
    assert found.repairable[:2] == ("zero-scale", "hybrid-version")


def test_the_docs_list_every_finding_as_its_row_says() -> None:
    rows = [f"| `{kind.name}` | {kind.severity.value} | {kind.title} | {kind.repair} |" for kind in KINDS]
    head = ["| finding | severity | what it is | what `repair` does |", "|---|---|---|---|"]
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert "\n".join([*head, *rows, ""]) in text
