"""Load, passes, write aside, verify, publish: every outcome, and what is left on disk after each."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tfl_rewrite import (
    FileAccessError,
    FormatError,
    Judging,
    Report,
    RewriteFailed,
    Tolerance,
    UnsupportedError,
    UsageError,
    VerificationError,
    load,
    rewrite,
    save,
    verify,
)
from tfl_rewrite.editing.base import Context, Effect, Pass, PassResult, Skip
from tfl_rewrite.errors import InvariantError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Buffer, Model, Tensor
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.pipeline import judges

from ..nets import classifier

IMPOSSIBLE = Judging(samples=1, tolerance=Tolerance(min_snr=200), blame_seconds=0, rescue=False)
QUICK = Judging(samples=1)
OFF = Judging(mode="off")


@dataclass(frozen=True)
class Done:
    """The change of a pass of these tests."""

    where: str = "weights"

    def to_dict(self) -> dict[str, Any]:
        return {"tensor": self.where}


@dataclass(frozen=True)
class Edit(Pass):
    """A pass of these tests: does something to the model."""

    name: ClassVar[str] = "edit"
    grows: ClassVar[bool] = True

    edit: Callable[[Model], None]

    def run(self, model: Model, context: Context) -> PassResult:
        self.edit(model)
        return PassResult(self.name, (Done(),), grows=self.grows)


class Lossy(Edit):
    """A pass of these tests that a ratio judges."""

    effect: ClassVar[Effect] = Effect.TOLERANCE


class Nothing(Pass):
    """A pass that never applies."""

    name: ClassVar[str] = "nothing"

    def run(self, model: Model, context: Context) -> PassResult:
        return PassResult(self.name, (), (Skip("everything", "there is nothing to do", "none"),))


def weights_of(model: Model) -> Tensor:
    return max(
        (t for graph in model.subgraphs for t in graph.tensors if t.is_constant),
        key=lambda t: t.buffer.nbytes,
    )


def perturb(by: float) -> Callable[[Model], None]:
    def edit(model: Model) -> None:
        buffer = weights_of(model).buffer
        assert buffer.blob is not None
        values = np.frombuffer(buffer.blob.view(), "<f4") * np.float32(1 + by)
        buffer.blob = OwnedBlob(values.astype("<f4").tobytes())

    return edit


def describe(model: Model) -> None:
    model.description = "rewritten"


@pytest.fixture
def dense(fixtures: Path, tmp_path: Path) -> Path:
    """A copy, so that a test may do anything to it."""
    return Path(shutil.copy(fixtures / "dense.tflite", tmp_path / "in.tflite"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def unknown_operator(source: Path, target: Path) -> Path:
    """Writes a copy in which one more operator, of a kind that no runtime knows, reads the first output."""
    from tfl_rewrite.model.ir import Operator, OperatorCode, operator_number

    model = load(source)
    graph = model.subgraphs[0]
    code = OperatorCode(operator_number("CUSTOM"), "NobodyKnowsIt")
    model.operator_codes.append(code)
    last = graph.outputs[0]
    made = Tensor("made", last.shape, last.dtype, model.buffers[0])
    graph.tensors.append(made)
    graph.operators.append(Operator(code, [last], [made]))
    save(model, target)
    return target


def broken(source: Path, target: Path) -> Path:
    """Writes a copy whose weights have four bytes less than their shape takes; the runtime refuses it."""
    model = load(source)
    bias = min((t for t in model.subgraphs[0].tensors if t.is_constant), key=lambda t: t.buffer.nbytes)
    assert bias.buffer.blob is not None
    bias.buffer.blob = OwnedBlob(bytes(bias.buffer.blob.view())[:-4])
    save(model, target)
    return target


def strict(report: Report) -> dict[str, Any]:
    """The report as JSON data; fails on what JSON cannot say."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} in JSON")

    made: dict[str, Any] = json.loads(json.dumps(report.to_dict(), allow_nan=False), parse_constant=refuse)
    assert made["schema"] == 1
    return made


# -- Outcomes -----------------------------------------------------------------------------------------------


@pytest.mark.runtime
def test_success(dense: Path, folder: Path) -> None:
    before = dense.read_bytes()
    report = rewrite(dense, folder / "out.tflite", [QuantizeWeights()], judging=QUICK)
    assert report.outcome == "rewritten" and report.verdict is not None and report.verdict.passed
    assert report.nbytes_before == len(before) == dense.stat().st_size
    assert report.nbytes_after == (folder / "out.tflite").stat().st_size < report.nbytes_before
    assert dense.read_bytes() == before and names(folder) == ["out.tflite"]
    data = strict(report)
    assert data["outcome"] == "rewritten" and data["verdict"]["status"] == "pass"
    assert {row["tensor"] for row in data["passes"][0]["changes"]} == {"dense/weights"}
    assert data["damage"] is None and data["unverified"] is None


@pytest.mark.parametrize("mode", ["auto", "require", "off"])
def test_unchanged_is_a_verbatim_copy(fixtures: Path, folder: Path, mode: str) -> None:
    for name in ("already_int8", "external_buffers/model", "malformed/unexplained_trailing_bytes"):
        source = fixtures / f"{name}.tflite"
        target = folder / f"{source.stem}.tflite"
        report = rewrite(source, target, [QuantizeWeights(exclude=["."])], judging=Judging(mode=mode))
        assert report.outcome == "unchanged" and report.verdict is None
        assert target.read_bytes() == source.read_bytes()
        assert ("copy 'weights_0.bin', 'weights_1.bin' there" in str(report.notes)) is ("external" in name)
        strict(report)
    assert len(names(folder)) == 3


def test_no_pass_is_a_copy(dense: Path, folder: Path) -> None:
    assert rewrite(dense, folder / "a.tflite", []).outcome == "unchanged"
    assert rewrite(dense, folder / "b.tflite", [Nothing()]).outcome == "unchanged"
    assert (folder / "a.tflite").read_bytes() == (folder / "b.tflite").read_bytes() == dense.read_bytes()


@pytest.mark.runtime
def test_refused_by_the_judge(dense: Path, folder: Path) -> None:
    with pytest.raises(RewriteFailed, match="differs too much, nothing was written") as caught:
        rewrite(dense, folder / "out.tflite", [QuantizeWeights()], judging=IMPOSSIBLE)
    assert caught.value.exit_code == 4 and names(folder) == []
    report = caught.value.report
    assert report.outcome == "failed" and report.verdict is not None and report.verdict.status == "fail"
    assert strict(report)["verdict"]["outputs"][0]["passed"] is False
    assert str(dense) in str(caught.value) and "--min-snr" in str(caught.value)


@pytest.mark.runtime
def test_a_refusal_leaves_an_existing_target(dense: Path, folder: Path) -> None:
    target = folder / "out.tflite"
    target.write_bytes(b"precious")
    os.utime(target, ns=(1, 1))
    with pytest.raises(RewriteFailed):
        rewrite(dense, target, [QuantizeWeights()], judging=IMPOSSIBLE, force=True)
    assert target.read_bytes() == b"precious" and target.stat().st_mtime_ns == 1
    assert names(folder) == ["out.tflite"]


def test_an_existing_target_needs_force(dense: Path, folder: Path) -> None:
    target = folder / "out.tflite"
    target.write_bytes(b"precious")
    target.chmod(0o640)
    with pytest.raises(UsageError, match="--force"):
        rewrite(dense, target, [QuantizeWeights()], judging=OFF)
    assert target.read_bytes() == b"precious"
    rewrite(dense, target, [QuantizeWeights()], judging=OFF, force=True)
    assert target.stat().st_size == load_size(target) and stat.S_IMODE(target.stat().st_mode) == 0o640
    assert names(folder) == ["out.tflite"]


def load_size(path: Path) -> int:
    from tfl_rewrite.files.source import origin_of

    origin = origin_of(load(path))
    assert origin is not None
    return origin.container.nbytes


@pytest.mark.runtime
def test_in_place(dense: Path, folder: Path) -> None:
    made = rewrite(dense, folder / "aside.tflite", [QuantizeWeights()], judging=QUICK)
    with pytest.raises(UsageError, match="--force"):
        rewrite(dense, dense, [QuantizeWeights()], judging=QUICK)
    with pytest.raises(UsageError, match="--force"):
        rewrite(dense, dense.parent / "out" / ".." / dense.name, [QuantizeWeights()], judging=QUICK)
    report = rewrite(dense, dense, [QuantizeWeights()], judging=QUICK, force=True)
    assert report.nbytes_after == made.nbytes_after
    assert dense.read_bytes() == (folder / "aside.tflite").read_bytes()
    assert rewrite(dense, dense, [QuantizeWeights()], judging=QUICK, force=True).outcome == "unchanged"
    assert names(dense.parent) == ["in.tflite", "out"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_source_that_changes_meanwhile(dense: Path, folder: Path, dry_run: bool) -> None:
    """The output is made of what was read first and last: of two files, so it gets no name."""

    def meddle(model: Model) -> None:
        perturb(0.001)(model)
        os.utime(dense, ns=(1, 1))

    target = folder / "out.tflite"
    target.write_bytes(b"precious")
    with pytest.raises(FileAccessError, match="was changed while it was being read") as caught:
        rewrite(dense, target, [Edit(meddle)], judging=OFF, force=True, dry_run=dry_run)
    assert caught.value.file == str(dense)
    assert target.read_bytes() == b"precious" and names(folder) == ["out.tflite"]


def test_a_source_that_is_replaced_meanwhile(dense: Path, folder: Path) -> None:
    """What was opened is still whole."""

    def replaced(model: Model) -> None:
        perturb(0.001)(model)
        other = dense.with_name("other")
        other.write_bytes(b"something else")
        other.replace(dense)

    rewrite(dense, folder / "out.tflite", [Edit(replaced)], judging=OFF)
    assert weights_of(load(folder / "out.tflite")).buffer.nbytes and dense.read_bytes() == b"something else"


def test_through_a_link(dense: Path, folder: Path) -> None:
    real = folder / "real.tflite"
    real.write_bytes(b"old")
    link = dense.parent / "link.tflite"
    link.symlink_to(real)
    rewrite(dense, link, [QuantizeWeights()], judging=OFF, force=True)
    assert link.is_symlink() and real.read_bytes()[4:8] == b"TFL3"
    assert names(folder) == ["real.tflite"]


@pytest.mark.runtime
def test_dry_run(dense: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    report = rewrite(dense, folder / "out.tflite", [QuantizeWeights()], judging=QUICK, dry_run=True)
    assert report.dry_run and report.verdict is not None and report.verdict.passed
    assert report.nbytes_after < report.nbytes_before
    assert names(folder) == [] and names(scratch) == []
    assert strict(report)["dry_run"] is True
    with pytest.raises(RewriteFailed):
        rewrite(dense, folder / "out.tflite", [QuantizeWeights()], judging=IMPOSSIBLE, dry_run=True)
    assert names(folder) == [] and names(scratch) == []


@pytest.mark.runtime
def test_a_larger_result_is_not_written(dense: Path, folder: Path) -> None:
    class Grows(Edit):
        name: ClassVar[str] = "grows"
        grows: ClassVar[bool] = False

    def add(model: Model) -> None:
        model.buffers.append(Buffer(OwnedBlob(bytes(9999))))

    report = rewrite(dense, folder / "out.tflite", [Grows(add)], judging=QUICK)
    assert report.outcome == "unchanged" and report.notes and "not fewer" in report.notes[0]
    assert (folder / "out.tflite").read_bytes() == dense.read_bytes()
    report = rewrite(dense, folder / "larger.tflite", [Edit(add)], judging=QUICK)
    assert report.outcome == "rewritten" and report.nbytes_after > report.nbytes_before + 9000


# -- How often a file is parsed ------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was parsed, by the name that it was opened by."""
    counts: Counter[str] = Counter()
    parse = Source.__init__

    def counted(self: Source, container: Container) -> None:
        counts[container.path] += 1
        parse(self, container)

    monkeypatch.setattr(Source, "__init__", counted)
    return counts


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["dense", "if_branches", "two_signatures_shared_weights"])
def test_source_and_output_are_parsed_once(
    fixtures: Path, folder: Path, parsed: Counter[str], name: str
) -> None:
    source = fixtures / f"{name}.tflite"
    rewrite(source, folder / "out.tflite", [QuantizeWeights(min_elements=1)], judging=QUICK)
    assert parsed[str(source)] == 1 and set(parsed.values()) == {1}


@pytest.mark.runtime
def test_a_rescue_parses_its_source_once(dense: Path, folder: Path, parsed: Counter[str]) -> None:
    strict = Judging(samples=2, tolerance=Tolerance(min_snr=60))
    report = rewrite(dense, folder / "out.tflite", [QuantizeWeights()], judging=strict)
    assert report.finer and parsed[str(dense)] == 1


def test_a_file_that_was_opened_is_not_parsed_again(dense: Path, folder: Path, parsed: Counter[str]) -> None:
    source = Source.open(dense)
    for number in range(2):
        rewrite(source, folder / f"{number}.tflite", [QuantizeWeights()], judging=OFF)
    assert parsed[str(dense)] == 1
    assert (folder / "0.tflite").read_bytes() == (folder / "1.tflite").read_bytes()


# -- Which passes are judged how ----------------------------------------------------------------------------


@pytest.mark.runtime
def test_a_lossless_pass_is_judged_to_the_bit(dense: Path, folder: Path) -> None:
    report = rewrite(dense, folder / "same.tflite", [Edit(describe)], judging=QUICK)
    assert report.verdict is not None and all(output.rule == "exact" for output in report.verdict.outputs)
    assert load(folder / "same.tflite").description == "rewritten"
    with pytest.raises(RewriteFailed) as caught:
        rewrite(dense, folder / "off.tflite", [Edit(perturb(1e-6))], judging=QUICK)
    verdict = caught.value.report.verdict
    assert verdict is not None and verdict.outputs[0].rule == "exact"
    assert names(folder) == ["same.tflite"]


@pytest.mark.runtime
def test_a_tolerance_is_for_lossy_passes_only(dense: Path, folder: Path) -> None:
    class Lossy(Edit):
        effect: ClassVar[Effect] = Effect.TOLERANCE

    wide = Judging(samples=1, tolerance=Tolerance(min_snr=3))
    with pytest.raises(RewriteFailed):
        rewrite(dense, folder / "a.tflite", [Edit(perturb(0.1))], judging=wide)
    assert rewrite(dense, folder / "b.tflite", [Lossy(perturb(0.1))], judging=wide).outcome == "rewritten"
    both: list[Pass] = [Edit(describe), Lossy(perturb(0.1))]
    assert rewrite(dense, folder / "c.tflite", both, judging=wide).outcome == "rewritten"


@pytest.mark.runtime
def test_what_is_folded_is_judged_at_its_own_ratio_whatever_the_tolerance_is(
    dense: Path, folder: Path
) -> None:
    class Folding(Edit):
        effect: ClassVar[Effect] = Effect.FOLDING

    class Lossy(Edit):
        effect: ClassVar[Effect] = Effect.TOLERANCE

    wide = Judging(samples=1, tolerance=Tolerance(min_snr=3))
    report = rewrite(dense, folder / "a.tflite", [Nothing(), Folding(perturb(1e-7))], judging=wide)
    assert report.verdict is not None and {output.rule for output in report.verdict.outputs} == {"snr"}
    assert report.notes == ("judged at 120 dB: what was folded is rounded in another order",)
    for judging in (wide, replace(wide, tolerance=Tolerance(exact=True))):
        assert rewrite(dense, judging=judging, passes=[Folding(perturb(1e-7))]).outcome == "rewritten"
        with pytest.raises(RewriteFailed, match="is less than 120 dB"):
            rewrite(dense, folder / "b.tflite", [Folding(perturb(1e-5)), Edit(describe)], judging=judging)
    both = [Folding(perturb(1e-5)), Lossy(describe)]
    report = rewrite(dense, folder / "c.tflite", both, judging=wide)
    assert report.outcome == "rewritten" and not report.notes


@pytest.mark.runtime
@pytest.mark.parametrize("effect", [Effect.FOLDING, Effect.TOLERANCE])
@pytest.mark.parametrize("exact", [True, False])
def test_where_only_exact_things_happened_outputs_are_equal_to_the_bit(
    dense: Path, folder: Path, effect: Effect, exact: bool
) -> None:
    class Mixed(Edit):
        """Changes something, all of it exact, or nothing at all."""

        name: ClassVar[str] = "mixed"

        def run(self, model: Model, context: Context) -> PassResult:
            return replace(Edit.run(self, model, context), exact=True) if exact else PassResult(self.name)

    Mixed.effect = effect
    report = rewrite(dense, folder / "a.tflite", [Mixed(describe), Edit(describe)], judging=QUICK)
    assert report.verdict is not None and {output.rule for output in report.verdict.outputs} == {"exact"}
    with pytest.raises(RewriteFailed):
        rewrite(dense, folder / "b.tflite", [Mixed(describe), Edit(perturb(1e-6))], judging=QUICK)


def test_a_pass_that_breaks_the_model_is_our_bug(dense: Path, folder: Path) -> None:
    def drop(model: Model) -> None:
        del model.subgraphs[0].tensors[1]

    with pytest.raises(InvariantError, match=r"pass edit \(after: nothing\)"):
        rewrite(dense, folder / "out.tflite", [Nothing(), Edit(drop)], judging=OFF)
    assert names(folder) == []


# -- Models that cannot be run ------------------------------------------------------------------------------


@pytest.mark.runtime
def test_unknown_operator(dense: Path, folder: Path) -> None:
    source = unknown_operator(dense, dense.parent / "custom.tflite")
    report = rewrite(source, folder / "auto.tflite", [QuantizeWeights()], judging=QUICK)
    assert report.outcome == "rewritten" and report.unverified is not None
    assert "NobodyKnowsIt" in report.unverified or "does not run" in report.unverified
    # What the runtime says takes several lines.
    assert "\\n" not in report.unverified and "\n" not in report.unverified
    assert strict(report)["unverified"] == report.unverified
    with pytest.raises(RewriteFailed, match="could not be verified, nothing was written") as caught:
        required = Judging(mode="require", samples=1)
        rewrite(source, folder / "require.tflite", [QuantizeWeights()], judging=required)
    assert caught.value.exit_code == 3 and "--verify auto" in str(caught.value)
    strict(caught.value.report)
    report = rewrite(source, folder / "off.tflite", [QuantizeWeights()], judging=OFF)
    assert report.unverified is not None and "as asked" in report.unverified
    assert names(folder) == ["auto.tflite", "off.tflite"]
    assert (folder / "auto.tflite").read_bytes() == (folder / "off.tflite").read_bytes()


@pytest.mark.runtime
def test_damage_that_only_the_runtime_minds(dense: Path, folder: Path) -> None:
    """The original does not run, and we can say why: that is no foreign kernel."""
    source = broken(dense, dense.parent / "broken.tflite")
    with pytest.raises(FormatError, match="buffer holds 124 bytes") as caught:
        rewrite(source, folder / "out.tflite", [QuantizeWeights()], judging=QUICK)
    assert caught.value.exit_code == 5
    assert "tfl-rewrite doctor" in str(caught.value) and "tfl-rewrite repair" in str(caught.value)
    assert names(folder) == []


def test_external_weights(fixtures: Path, folder: Path) -> None:
    """The interpreter computes with zeros there; a change is not verified by that."""
    for name in names(fixtures / "external_buffers"):
        shutil.copy(fixtures / "external_buffers" / name, folder)
    report = rewrite(folder / "model.tflite", folder / "out.tflite", [Edit(describe)], judging=QUICK)
    assert report.outcome == "rewritten" and report.verdict is None
    assert report.unverified is not None and "beside the model" in report.unverified
    assert load(folder / "out.tflite").description == "rewritten"
    with pytest.raises(RewriteFailed):
        required = Judging(mode="require")
        rewrite(folder / "model.tflite", folder / "no.tflite", [Edit(describe)], judging=required)
    assert "no.tflite" not in names(folder)


@pytest.mark.parametrize(
    "name",
    ["unknown_field_newer_schema", "union_type_unknown", "schema_version_2"],
)
def test_what_cannot_be_carried_over(fixtures: Path, folder: Path, name: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        rewrite(
            fixtures / "malformed" / f"{name}.tflite",
            folder / "out.tflite",
            [Edit(describe)],
            judging=OFF,
        )
    assert caught.value.exit_code == 3 and name in str(caught.value) and names(folder) == []


def test_malformed_files(malformed: Path, folder: Path) -> None:
    """Each ends in one of the documented classes, or in a file."""
    try:
        report = rewrite(malformed, folder / "out.tflite", [QuantizeWeights()], judging=OFF)
    except (FormatError, UnsupportedError):
        assert names(folder) == []
    else:
        strict(report)
        assert names(folder) == ["out.tflite"]


# -- Interruptions and bad places ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_interrupted_while_judging(
    dense: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    class Interrupted:
        def __enter__(self) -> Interrupted:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def compare(self, path: Path) -> None:
            assert Path(path).is_file()
            raise error

    monkeypatch.setattr(judges, "FullPanel", lambda *_, **__: Interrupted())
    with pytest.raises(error):
        rewrite(dense, folder / "out.tflite", [QuantizeWeights()])
    assert names(folder) == []


def test_interrupted_while_writing(dense: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_what: str, _done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite(dense, folder / "out.tflite", [QuantizeWeights()], judging=OFF, progress=stop)
    assert names(folder) == []


def test_progress_counts_to_the_end(fixtures: Path, folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = rewrite(
        fixtures / "digits_cnn.tflite",
        folder / "out.tflite",
        [QuantizeWeights()],
        judging=OFF,
        progress=lambda *step: seen.append(step) if step[0] == "writing" else None,
        threads=1,
    )
    assert seen and {what for what, _, _ in seen} == {"writing"}
    assert {total for _, _, total in seen} == {report.nbytes_after}
    done = [count for _, count, _ in seen]
    assert done == sorted(done) and done[-1] <= report.nbytes_after


def test_threads_do_not_change_the_bytes(fixtures: Path, folder: Path) -> None:
    made = []
    for threads in (0, 1, 7):
        target = folder / f"{threads}.tflite"
        source = fixtures / "mtcnn_rnet.tflite"
        rewrite(source, target, [QuantizeWeights()], judging=OFF, threads=threads)
        made.append(target.read_bytes())
    assert made[0] == made[1] == made[2]


def test_bad_calls(dense: Path, folder: Path) -> None:
    passes: list[Pass] = [QuantizeWeights()]
    cases: list[tuple[Path, Path, dict[str, Any], type[Exception]]] = [
        (dense, folder, {}, UsageError),
        (dense, folder / "missing" / "out.tflite", {}, UsageError),
        (dense, folder / "out.tflite", {"threads": -1}, UsageError),
        (dense, folder / "out.tflite", {"judging": Judging(inputs=("no.npz",))}, UsageError),
        (dense, folder / "out.tflite", {"judging": Judging(runtime="other")}, UsageError),
        (folder / "missing.tflite", folder / "out.tflite", {}, FileAccessError),
        (folder, folder / "out.tflite", {}, FileAccessError),
    ]
    for source, target, more, kind in cases:
        with pytest.raises(kind) as caught:
            rewrite(source, target, passes, **more)
        assert getattr(caught.value, "exit_code", 0) == 2
        assert names(folder) == []


def test_the_disk_is_full(dense: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(FileAccessError, match="No space left on device"):
        rewrite(dense, folder / "out.tflite", [QuantizeWeights()], judging=OFF)
    assert names(folder) == []


def test_somebody_else_makes_the_target_meanwhile(dense: Path, folder: Path) -> None:
    target = folder / "out.tflite"

    def appear(what: str, _done: int, _total: int) -> None:
        if what == "writing" and not target.exists():
            target.write_bytes(b"theirs")

    with pytest.raises(UsageError, match="appeared"):
        rewrite(dense, target, [QuantizeWeights()], judging=OFF, progress=appear)
    assert target.read_bytes() == b"theirs" and names(folder) == ["out.tflite"]


@pytest.mark.runtime
def test_every_model_is_rewritten_and_verified(sound: Path, folder: Path) -> None:
    """The whole way for each committed model; reports are JSON."""
    expected = {"conv_without_bias": "unverified"}.get(sound.stem)
    report = rewrite(sound, folder / "out.tflite", [QuantizeWeights()], judging=QUICK)
    strict(report)
    assert names(folder) == ["out.tflite"]
    assert report.nbytes_after <= report.nbytes_before
    if report.outcome == "unchanged":
        assert (folder / "out.tflite").read_bytes() == sound.read_bytes()
    elif expected == "unverified":
        assert report.unverified is not None
    else:
        assert report.verdict is not None and report.verdict.passed
        # Made inputs are noise, which is far from what the trained nets know: real ones give 30 dB and more.
        ratio = report.verdict.worst_snr()
        assert ratio is None or ratio > 15


@dataclass(frozen=True)
class Careful(Pass):
    """A pass of these tests: takes something from all weights, less each time it is told to lose less."""

    name: ClassVar[str] = "careful"
    effect: ClassVar[Effect] = Effect.TOLERANCE

    told: tuple[float, ...] = ()
    most: int = 9
    strictest: bool = False

    def run(self, model: Model, context: Context) -> PassResult:
        for subgraph in model.subgraphs:
            for tensor in subgraph.tensors:
                if tensor.is_constant and tensor.dtype_name == "FLOAT32" and tensor.elements > 64:
                    values = np.frombuffer(bytes(tensor.buffer.blob.view()), np.float32)  # type: ignore[union-attr]
                    tensor.buffer.blob = OwnedBlob((values * (1 - 0.4 / 10 ** len(self.told))).tobytes())
        return PassResult(self.name, (Done(),), grows=True, strictest=self.strictest)

    def stricter(self, short_db: float) -> Pass | None:
        return replace(self, told=(*self.told, short_db)) if len(self.told) < self.most else None


@dataclass(frozen=True)
class Fitted(Careful):
    """Looks at the inputs that do not judge."""

    @property
    def is_fitted(self) -> bool:
        return True


@pytest.mark.runtime
@pytest.mark.parametrize(("told", "unfitted"), [((9.0,) * 4, True), ((), False)])
def test_what_the_samples_that_judge_have_refused_is_fitted_to_them(
    fixtures: Path, tmp_path: Path, told: tuple[float, ...], unfitted: bool
) -> None:
    inputs = (fixtures / "inputs" / "digits_calib.npz",)
    judging = Judging(inputs=inputs, tolerance=Tolerance(min_snr=40, min_agreement=0))
    report = rewrite(fixtures / "digits_cnn.tflite", tmp_path / "out.tflite", [Fitted(told)], judging=judging)
    assert report.verdict is not None and report.verdict.passed and report.verdict.unfitted is unfitted


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("item", "rescue", "wanted", "near"),
    [
        (Fitted((9.0,)), True, 67.4, False),
        (Fitted((9.0,), most=1), True, 41.4, True),
        (Fitted((9.0,)), False, 41.4, True),
        (Fitted((9.0, 9.0)), True, 67.4, False),
    ],
)
def test_a_pass_that_few_samples_are_not_sure_of_is_made_stricter_where_it_can_be(
    fixtures: Path, tmp_path: Path, item: Fitted, rescue: bool, wanted: float, near: bool
) -> None:
    inputs = (fixtures / "inputs" / "digits_calib.npz",)
    tolerance = Tolerance(min_snr=41, min_agreement=0)
    judging = Judging(inputs=inputs, tolerance=tolerance, rescue=rescue)
    report = rewrite(fixtures / "digits_cnn.tflite", tmp_path / "out.tflite", [item], judging=judging)
    assert report.verdict is not None and report.verdict.passed
    assert report.verdict.worst_snr() == pytest.approx(wanted, abs=0.5)
    assert any("too few to say that others keep as much" in note for note in report.notes) is near


@pytest.mark.runtime
def test_of_files_that_few_samples_are_not_sure_of_the_first_is_kept_unless_another_is_surer(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are within what so few samples hide; the stricter one is taken for a whole decibel at least."""
    made = iter((2.0, 1.5, 2.0, 2.0, 1.0, 1.0))
    monkeypatch.setattr("tfl_rewrite.judge.agreement.unsure_db", lambda *_: next(made))
    inputs = (fixtures / "inputs" / "digits_calib.npz",)
    judging = Judging(inputs=inputs, tolerance=Tolerance(min_snr=20, min_agreement=0))
    for wanted in (41.4, 67.4):
        report = rewrite(
            fixtures / "digits_cnn.tflite",
            tmp_path / "out.tflite",
            [Fitted((9.0,))],
            judging=judging,
            force=True,
        )
        assert report.verdict is not None
        assert report.verdict.worst_snr() == pytest.approx(wanted, abs=0.5)


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("rows", "by", "least", "wanted"),
    [
        *((1, 0.2, 20.0, True), (1, 0.02, 20.0, False), (1, 0.001, 20.0, False), (1, 0.2, 10.0, False)),
        (201, 0.2, 20.0, False),
    ],
)
def test_a_pass_on_samples_whose_outputs_are_sure_of_themselves_does_not_look_sure(
    tmp_path: Path, rows: int, by: float, least: float, wanted: bool
) -> None:
    """What goes into the SOFTMAX is off by a fifth: 14 dB. Of many decisions the outputs tell enough."""
    size, files = 8, (tmp_path / "in.tflite", tmp_path / "out.tflite")
    classifier(files[0], 40, rows)
    given = (tmp_path / "in.npz",)
    np.savez(given[0], x=np.eye(size, dtype=np.float32)[np.arange(8 * rows) % size].reshape(8, rows, size))
    judging = Judging(inputs=given, tolerance=Tolerance(min_snr=least))
    report = rewrite(*files, [Lossy(perturb(by))], judging=judging)
    for verdict in (report.verdict, verify(*files, judging)):
        assert verdict is not None and verdict.passed and (verdict.worst_snr() or 0) > 100
        words = "less sure samples (before its last operator y keeps 14.0 dB)"
        assert (verdict.headline == "PASS (for samples as sure as these)") is wanted
        assert verdict.not_judged == ((words,) if wanted else ())
        # What keeps the bound there, not by far, and hides as much, is noted.
        noted = [note for note in verdict.notes if note.startswith("before its last operator y keeps")]
        assert len(noted) == (not wanted and rows == 1 and by > 0.001)


@pytest.mark.runtime
def test_made_samples_that_are_sure_prove_nothing(tmp_path: Path) -> None:
    files = classifier(tmp_path / "in.tflite", 1e4), tmp_path / "out.tflite"
    report = rewrite(*files, [Lossy(perturb(0.2))])
    assert report.verdict is not None and "as sure as these" in report.verdict.headline
    files[1].unlink()
    with pytest.raises(VerificationError, match=r"made samples do not show less sure samples.*--inputs"):
        rewrite(*files, [Lossy(perturb(0.2))], judging=Judging(mode="require"))
    assert not files[1].exists()


@pytest.mark.runtime
def test_files_whose_outputs_show_what_goes_into_their_last_operator_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr("tfl_rewrite.pipeline.copies.open_outputs", lambda *_, **__: opened.append(1) or 0)
    for factor, wanted in ((1, False), (1e4, True)):
        files = [classifier(tmp_path / f"{factor * by}.tflite", factor * by) for by in (1, 1.05)]
        assert verify(*files).passed and verify(files[0], files[0]).passed
        assert bool(opened) is wanted


@pytest.mark.runtime
def test_a_pass_that_can_lose_less_is_told_by_how_much(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    strict = Judging(samples=1, tolerance=Tolerance(min_snr=40, min_agreement=0))
    report = rewrite(source, target, [Careful()], judging=strict)
    assert report.verdict is not None and report.verdict.passed and target.exists()
    unable, unasked = (Careful(most=0), strict), (Careful(), replace(strict, rescue=False))
    for careful, judging in (unable, unasked, (Careful(strictest=True), strict)):
        with pytest.raises(RewriteFailed):
            rewrite(source, tmp_path / "none.tflite", [careful], judging=judging)
    assert not (tmp_path / "none.tflite").exists()


@dataclass(frozen=True)
class Blind(Pass):
    """A pass of these tests that is fitted: makes a dense layer blind to the first half of its inputs."""

    name: ClassVar[str] = "blind"
    effect: ClassVar[Effect] = Effect.TOLERANCE

    spared: bool = False

    @property
    def is_fitted(self) -> bool:
        return True

    def run(self, model: Model, context: Context) -> PassResult:
        weights = weights_of(model)
        assert weights.buffer.blob is not None and weights.shape is not None
        values = np.frombuffer(weights.buffer.blob.view(), "<f4").reshape(weights.shape).copy()
        values[:, : weights.shape[1] // 2] *= 0.999 if self.spared else 0
        weights.buffer.blob = OwnedBlob(values.tobytes())
        return PassResult(self.name, (Done(),), grows=True)

    def stricter(self, short_db: float) -> Pass | None:
        return None if self.spared else replace(self, spared=True)


@pytest.mark.runtime
def test_what_fails_on_samples_that_it_was_fitted_to_is_refused(dense: Path, folder: Path) -> None:
    facts = load(dense).subgraphs[0].inputs[0]
    feeds = np.random.default_rng(0).normal(size=(8, 1, 40)).astype(np.float32)
    # Those that are held out have nothing in what is lost.
    feeds[[3, 7], :, :20] = 0
    given = folder.parent / "samples.npz"
    np.savez(given, **{facts.name: feeds})
    judging = Judging(inputs=(given,), rescue=False)
    with pytest.raises(RewriteFailed, match="on all 8 samples, those that it was fitted to") as refused:
        rewrite(dense, folder / "out.tflite", [Blind()], judging=judging)
    verdict = refused.value.report.verdict
    assert names(folder) == [] and verdict is not None
    assert verdict.sample_count == 8 and not verdict.unfitted
    # Told to lose less, it is judged by those that were held out again, and by all.
    report = rewrite(dense, folder / "out.tflite", [Blind()], judging=replace(judging, rescue=True))
    assert report.verdict is not None and report.verdict.passed and report.verdict.sample_count == 2


@pytest.mark.runtime
def test_what_is_required_and_cannot_be_told_is_not_mended_until_nothing_is_left(
    fixtures: Path, folder: Path, tmp_path: Path
) -> None:
    """Storing all of it as it was would end in a copy: of a range that nobody said, it proves nothing."""
    picture = pytest.importorskip("PIL.Image")
    given = tmp_path / "pictures"
    given.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), np.uint8)
        picture.fromarray(pixels).save(given / f"{number}.png")
    judging = Judging(mode="require", inputs=(given,), tolerance=Tolerance(min_snr=60, min_agreement=0))
    source, target = fixtures / "digits_cnn.tflite", folder / "out.tflite"
    with pytest.raises(RewriteFailed, match="pixel range assumed; give it with --input-range") as refused:
        rewrite(source, target, [QuantizeWeights(min_elements=64)], judging=judging)
    assert refused.value.exit_code == 3 and names(folder) == []
    # What was asked for failed, and something finer passed.
    judged = refused.value.report.verdict
    assert judged is not None and judged.passed
    ranged = replace(judging, input_range=(0.0, 1.0))
    report = rewrite(source, target, [QuantizeWeights(min_elements=64)], judging=ranged)
    assert report.verdict is None or report.verdict.passed
