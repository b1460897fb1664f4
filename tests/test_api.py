"""The names that programs use, and that they do what the command line does."""

from __future__ import annotations

import inspect as introspection
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tfl_rewrite
from tfl_rewrite import (
    FileAccessError,
    FormatError,
    Judging,
    TflRewriteError,
    Tolerance,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.passes.quantize_weights import QuantizeWeights


def test_public_names() -> None:
    assert len(tfl_rewrite.__all__) <= 39
    assert set(tfl_rewrite.__all__) <= set(dir(tfl_rewrite))
    for name in tfl_rewrite.__all__:
        value = getattr(tfl_rewrite, name)
        assert value is not None
        if callable(value):
            assert introspection.getdoc(value), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tfl_rewrite.nonsense  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'Dedup'; it is in tfl_rewrite\.passes"):
        tfl_rewrite.Dedup  # noqa: B018
    assert Path(tfl_rewrite.__file__).with_name("py.typed").exists()


# Each order in a process of its own: a child of one that has not imported the package yet.
ORDERS = """
import importlib, os, pkgutil, sys, types

# Heavy and not ours: loaded once, for all children.
import numpy

names = sys.argv[1:]
assert "tfl_rewrite" not in sys.modules


def everything(package):
    for found in pkgutil.walk_packages(package.__path__, "tfl_rewrite."):
        # Scripts of other processes run when they are imported.
        if not found.name.endswith(("child", "__main__")):
            importlib.import_module(found.name)


def right(package, name, first):
    value = getattr(package, name)
    if isinstance(value, types.ModuleType) or (first is not None and value is not first):
        raise SystemExit(f"{name} is {value!r}")
    return value


def asked(order):
    package = importlib.import_module("tfl_rewrite")
    found = {name: right(package, name, None) for name in order}
    everything(package)
    scope = {}
    exec("from tfl_rewrite import *", scope)
    for name in names:
        right(package, name, found[name])
        if scope[name] is not found[name]:
            raise SystemExit(name)


def imported(order):
    everything(importlib.import_module("tfl_rewrite"))
    asked(order)


# Whatever comes first, and after all modules.
for task in (asked, imported):
    for order in (names, names[::-1]):
        child = os.fork()
        if not child:
            code = 1
            try:
                task(order)
                code = 0
            except SystemExit as stop:
                print(task.__name__, stop, flush=True)
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"{task.__name__}, from {order[0]} on")
print(len(names), "names")
"""


@pytest.mark.slow
def test_each_public_name_is_right_whether_it_is_asked_for_first_or_last() -> None:
    """A subpackage that is imported becomes an attribute of its package; no public name may be hidden so."""
    names = tfl_rewrite.__all__
    done = subprocess.run([sys.executable, "-c", ORDERS, *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{len(names)} names\n"), done.stdout + done.stderr


def test_no_public_name_is_that_of_a_module() -> None:
    modules = {found.name for found in pkgutil.iter_modules(tfl_rewrite.__path__)}
    assert not modules & set(tfl_rewrite.__all__)


@pytest.mark.runtime
@pytest.mark.parametrize(
    "statement",
    [
        "import tfl_rewrite",
        "import tfl_rewrite; tfl_rewrite.load, tfl_rewrite.rewrite, tfl_rewrite.passes.QuantizeWeights",
        "import tfl_rewrite.cli",
        "import sys; from tfl_rewrite.cli import main; main(['check', sys.argv[1]])",
        "import sys; from tfl_rewrite.cli import main; main(['inspect', sys.argv[1]])",
        "import sys; from tfl_rewrite.cli import main; "
        "main(['quantize-weights', sys.argv[1], sys.argv[2], '--verify', 'off'])",
    ],
)
def test_no_interpreter_is_loaded(fixtures: Path, tmp_path: Path, statement: str) -> None:
    script = (
        f"{statement}\nimport sys\n"
        "print([n for n in sys.modules if n.split('.')[0] in ('tensorflow', 'ai_edge_litert', 'rich')])"
    )
    arguments = [str(fixtures / "dense.tflite"), str(tmp_path / "out.tflite")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")


@pytest.mark.runtime
def test_load_quantize_save_verify(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    model = tfl_rewrite.load(source)
    result = run_passes(model, [QuantizeWeights(granularity="channel", exclude=["^FULLY_CONNECTED$"])])[0]
    assert result.modified and result.name == "quantize-weights"
    assert tfl_rewrite.save(model, target) == target.stat().st_size < source.stat().st_size
    verdict = tfl_rewrite.verify(source, target, tfl_rewrite.Judging(samples=2))
    assert verdict.passed and verdict.worst_snr() is not None
    exact = tfl_rewrite.verify(
        source, target, tfl_rewrite.Judging(samples=1, tolerance=Tolerance(exact=True))
    )
    assert exact.status == "fail"


def test_same_bytes_as_rewrite(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "mtcnn_rnet.tflite"
    model = tfl_rewrite.load(source)
    run_passes(model, [QuantizeWeights()])[0]
    tfl_rewrite.save(model, tmp_path / "one.tflite")
    passes = [QuantizeWeights()]
    tfl_rewrite.rewrite(source, tmp_path / "two.tflite", passes, judging=Judging(mode="off"))
    assert (tmp_path / "one.tflite").read_bytes() == (tmp_path / "two.tflite").read_bytes()


def test_paths_may_be_text_or_paths(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "dense.tflite"
    assert tfl_rewrite.check(str(source)) == tfl_rewrite.check(source) == []
    assert tfl_rewrite.inspect(str(source)).to_dict() == tfl_rewrite.inspect(source).to_dict()
    model = tfl_rewrite.load(str(source))
    tfl_rewrite.save(model, str(tmp_path / "copy.tflite"))
    assert (tmp_path / "copy.tflite").read_bytes() == source.read_bytes()


def test_the_input_may_be_replaced_while_it_is_mapped(fixtures: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes((fixtures / "digits_cnn.tflite").read_bytes())
    expected = tfl_rewrite.load(fixtures / "digits_cnn.tflite")
    model = tfl_rewrite.load(path)
    for one in (model, expected):
        run_passes(one, [QuantizeWeights()])[0]
    tfl_rewrite.save(model, path, force=True)
    tfl_rewrite.save(expected, tmp_path / "expected.tflite")
    assert path.read_bytes() == (tmp_path / "expected.tflite").read_bytes()
    # The model goes on living on the bytes that it was loaded from.
    tfl_rewrite.save(model, tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("passes", [["dedup"], [QuantizeWeights], QuantizeWeights(), "dedup", None])
def test_what_is_no_list_of_passes(fixtures: Path, passes: Any) -> None:
    with pytest.raises(UsageError, match="are no passes"):
        tfl_rewrite.rewrite(fixtures / "dense.tflite", passes=passes, judging=Judging(mode="off"))


def test_check_lists_what_the_runtime_refuses(fixtures: Path) -> None:
    (problem,) = tfl_rewrite.check(fixtures / "malformed" / "buffer_smaller_than_shape.tflite")
    assert problem.startswith("subgraphs[0].tensors[") and "bytes" in problem
    with pytest.raises(FormatError):
        tfl_rewrite.check(fixtures / "malformed" / "truncated_middle.tflite")


def test_classes_of_errors(fixtures: Path, tmp_path: Path) -> None:
    for kind, code in (
        (UsageError, 2),
        (FormatError, 5),
        (FileAccessError, 2),
        (UnsupportedError, 3),
        (VerificationError, 4),
    ):
        assert issubclass(kind, TflRewriteError) and kind.exit_code == code
    assert issubclass(tfl_rewrite.RewriteFailed, VerificationError)
    error = FormatError("is wrong", file="a", where="b[0]", offset=3, remedy="do that")
    assert str(error) == "a (b[0], offset 3): is wrong; do that"
    with pytest.raises(FileAccessError):
        tfl_rewrite.load(tmp_path / "missing.tflite")
    model = tfl_rewrite.load(fixtures / "dense.tflite")
    with pytest.raises(UsageError):
        tfl_rewrite.save(model, fixtures / "dense.tflite")


@pytest.mark.runtime
def test_reports_are_one_line_at_a_prompt_and_a_table_in_a_notebook(fixtures: Path) -> None:
    model = fixtures / "dense.tflite"
    report = tfl_rewrite.rewrite(model, passes=[QuantizeWeights()], judging=Judging(samples=2))
    assert report.model is not None and report.verdict is not None
    sizes = f"{report.nbytes_before:,} -> {report.nbytes_after:,} bytes"
    worst = report.verdict.worst_snr()
    shown = [
        (report, f"<Report: rewritten, {sizes}, <Verdict: "),
        (report.verdict, f" with SNR {worst:.1f} dB>"),
        (tfl_rewrite.inspect(model), f"<Inspection: {report.nbytes_before:,} bytes, 1 subgraphs, "),
        (tfl_rewrite.diagnose(model), f"<Diagnosis: {report.nbytes_before:,} bytes, findings: 0 error, "),
        (tfl_rewrite.diff(model, report.model), f"<Comparison: {sizes}, "),
    ]
    for item, words in shown:
        assert words in repr(item) and repr(item).endswith(">") and "\n" not in repr(item)
        assert item._repr_html_().startswith(f"<strong>{type(item).__name__}</strong><table>")
    assert repr(tfl_rewrite.diff(model, model)).endswith(" bytes, identical>")
