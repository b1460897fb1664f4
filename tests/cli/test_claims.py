"""No file that a command reads or writes is lost to another that it writes, whatever they are called."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest

import tfl_rewrite
from tfl_rewrite.cli import main
from tfl_rewrite.cli.options import Role
from tfl_rewrite.cli.parser import COMMANDS
from tfl_rewrite.errors import UsageError
from tfl_rewrite.files.claims import INPUT, OUTPUT, Claim, check_claims
from tfl_rewrite.passes.dedup import Dedup

MODEL = b"a model"


@pytest.fixture
def here(tmp_path: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(fixtures / "dense.tflite", tmp_path / "in.tflite")
    shutil.copy(fixtures / "inputs" / "dense.npz", tmp_path / "calib.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def refused(folder: Path, *words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs the program, which must refuse in one line and leave everything as it is."""
    before = content(folder)
    assert main([*words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and says in said.err, said.err
    assert content(folder) == before


REWRITE = ("quantize-weights", "in.tflite", "out.tflite", "--verify", "off")


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("option", ["--report", "--blame-out"])
def test_a_report_is_no_other_name_of_the_model(
    here: Path, link: object, option: str, force: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    link("in.tflite", "link.json")  # type: ignore[operator]
    says = "is another name of in.tflite, which is read as IN"
    refused(here, *REWRITE, option, "link.json", *force, says=says, capsys=capsys)


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("named", ["calib.npz", "./calib.npz", "folder/../calib.npz", "link.npz", "folder"])
def test_a_report_is_not_what_is_verified_with(
    here: Path, named: str, force: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder").mkdir()
    os.link("calib.npz", "link.npz")
    os.link("calib.npz", "folder/calib.npz")
    for report in ("calib.npz", "link.npz", "folder/calib.npz"):
        words = ("quantize-weights", "in.tflite", "out.tflite", "--inputs", named, "--report", report)
        refused(here, *words, *force, says="read as --inputs", capsys=capsys)


def test_what_is_written_beside_the_inputs_is_none_of_them(here: Path) -> None:
    """In the folder that is named as inputs, what no inputs come in may be written, and again."""
    words = (*REWRITE, "--inputs", ".", "--report", "r.json")
    assert main([*words]) == 0
    assert main([*words, "--force"]) == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("r", "r"),
        ("r", "./r"),
        ("r.json", "R.json"),
        ("link", "r.json"),
        ("straße.json", "STRASSE.JSON"),
        (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")),
    ],
)
def test_two_reports_are_two_files(
    here: Path, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link that leads nowhere yet leads to a file, too."""
    (here / "link").symlink_to("r.json")
    words = ("--report", first, "--blame-out", second, "--force")
    refused(here, *REWRITE, *words, says="--report are the same file", capsys=capsys)


@pytest.mark.parametrize("option", ["--curve", "--plot", "--recipe-out", "--state"])
def test_no_file_of_a_search_is_another(here: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    search = ("shrink", "in.tflite", "out.tflite", "--min-snr", "20")
    ending = {"--curve": "json", "--plot": "svg", "--recipe-out": "toml", "--state": "json"}[option]
    words = (option, f"r.{ending}", "--report", f"r.{ending}")
    refused(here, *search, *words, says="are the same file", capsys=capsys)
    os.link("calib.npz", f"r.{ending}")
    words = (option, f"r.{ending}", "--holdout", "calib.npz", "--force")
    refused(here, *search, *words, says="is read as --holdout", capsys=capsys)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("quantize-weights", "in.tflite", "out.tflite", "--map", "m.toml", "--report", "m.toml"), "--map"),
        (
            ("run", "in.tflite", "out.tflite", "--pass", "quantize-weights:map=m.toml", "--report", "m.toml"),
            "-",
        ),
        (("verify", "in.tflite", "in.tflite", "--report", "in.tflite"), "BEFORE"),
        (("quantize-weights", "in.tflite", "out.tflite", "--report", "out.tflite"), "the same file"),
        (("quantize-weights", "in.tflite", "calib.npz", "--inputs", "calib.npz"), "--inputs"),
        (("shard", "in.tflite", "s", "--report", "s/manifest.json"), "the same file"),
        (("shard", "in.tflite", "s", "--report", "s/0123.part"), "that files of s have"),
        (("shard", "in.tflite", "s", "--format", "external", "--report", "s/model.tflite"), "the same file"),
        (("shard", "in.tflite", "s", "--manifest", "link.json"), "OUTDIR would replace it"),
        (("join", "s/manifest.json", "out.tflite", "--report", "s/manifest.json"), "is read as IN"),
        (("join", "s/manifest.json", "s/manifest.json"), "what the result is made of"),
        (
            ("verify", "in.tflite", "in.tflite", "--runtime", "python:./python", "--report", "python"),
            "is read as --runtime",
        ),
    ],
)
def test_whatever_else_is_read_or_written(
    here: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "m.toml").write_text('version = 1\n[[rule]]\nmatch = ""\nencoding = "int8"\n')
    (here / "python").write_text("#!/bin/sh\n")
    (here / "python").chmod(0o755)
    tfl_rewrite.shard("in.tflite", "s")
    os.link("in.tflite", "s/link.json")
    refused(here, *words, "--force", says=says, capsys=capsys)


def test_in_place_is_one_name_and_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("quantize-weights", "in.tflite", "./in.tflite", "--verify", "off")
    refused(here, *words, says="is both input and output; use --force", capsys=capsys)
    before = (here / "in.tflite").read_bytes()
    assert main([*words, "--force", "-q"]) == 0
    assert (here / "in.tflite").read_bytes() != before


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("named", ["d/in.tflite", "d/d/in.tflite", "e/../d/in.tflite"])
def test_in_place_is_not_through_a_linked_folder(
    here: Path, named: str, force: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "d").symlink_to(".")
    (here / "e").mkdir()
    words = ("quantize-weights", "in.tflite", named, "--verify", "off", *force)
    refused(here, *words, says="is another name of in.tflite", capsys=capsys)


def test_a_link_that_is_named_twice_is_one_name(here: Path) -> None:
    (here / "real.tflite").write_bytes((here / "in.tflite").read_bytes())
    (here / "link.tflite").symlink_to("real.tflite")
    words = ("quantize-weights", "link.tflite", "link.tflite", "--verify", "off", "-q")
    assert main([*words, "--force"]) == 0
    assert (here / "link.tflite").is_symlink()
    assert (here / "real.tflite").read_bytes() != (here / "in.tflite").read_bytes()


@pytest.mark.runtime
@pytest.mark.parametrize("option", ["--report", "--blame-out"])
def test_what_exists_stays(here: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "old.json").write_text("old")
    refused(here, *REWRITE, option, "old.json", says="exists already; use --force", capsys=capsys)
    words = (
        "quantize-weights",
        "in.tflite",
        "out.tflite",
        option,
        "old.json",
        "--force",
        "--samples",
        "1",
        "-q",
    )
    assert main([*words]) == 0
    assert json.loads((here / "old.json").read_text())


@pytest.mark.runtime
def test_verify_says_how_to_replace_a_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "old.json").write_text("old")
    words = ("verify", "in.tflite", "in.tflite", "--report", "old.json", "--samples", "1", "-q")
    refused(here, *words, says="exists already; use --force", capsys=capsys)
    assert main([*words, "--force"]) == 0 and json.loads((here / "old.json").read_text())["status"] == "pass"


@pytest.mark.parametrize(
    ("report", "says"),
    [
        ("none/r.json", "its folder does not exist"),
        (".", "is a directory"),
        ("pipe", "is a device or a pipe"),
        ("/dev/null", "is a device or a pipe"),
        ("/dev/stdout", "is a device or a pipe"),
        ("circle", "leads in a circle"),
        ("x" * 300, "cannot write"),
        ("-", "is not for standard output"),
    ],
)
def test_places_that_cannot_be_written(
    here: Path, report: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(here / "pipe")
    (here / "circle").symlink_to("circle")
    if report == "/dev/stdout":
        (here / "stdout").symlink_to("/dev/null")
        report = "stdout"
    files = [path for path in here.iterdir() if path.is_file() and not path.is_symlink()]
    before = {path: path.read_bytes() for path in files}
    assert main([*REWRITE, "--report", report, "--force"]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert {path: path.read_bytes() for path in files} == before and not (here / "out.tflite").exists()


@pytest.mark.slow
def test_a_report_in_a_folder_that_may_not_be_written(here: Path) -> None:
    (here / "folder").mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(here / "folder")], capture_output=True
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        assert main([*REWRITE, "--report", "folder/r.json"]) == 2
    finally:
        subprocess.run(["umount", str(here / "folder")], check=True)
    assert not (here / "out.tflite").exists()


@pytest.mark.slow
def test_a_report_that_does_not_fit_keeps_the_output_back(here: Path) -> None:
    """Everything that is written is whole before anything gets its name."""
    (here / "folder").mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(here / "folder")], capture_output=True
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (here / "folder" / "page").write_bytes(bytes(4096))
        assert main([*REWRITE, "--report", "folder/r.json"]) == 2
        assert [path.name for path in (here / "folder").iterdir()] == ["page"]
    finally:
        subprocess.run(["umount", str(here / "folder")], check=True)
    assert not (here / "out.tflite").exists()


@pytest.mark.slow
def test_names_that_differ_in_case_where_case_does_not_count(tmp_path: Path) -> None:
    image, place = tmp_path / "image", tmp_path / "place"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-O", "casefold", image], capture_output=True)
    if (
        made.returncode
        or subprocess.run(["mount", "-o", "loop", image, place], capture_output=True).returncode
    ):
        pytest.skip("no file system to which case does not count can be mounted here")
    try:
        (place / "d").mkdir()
        if subprocess.run(["chattr", "+F", place / "d"], capture_output=True).returncode:
            pytest.skip("this file system knows no other kind of names")
        (place / "d" / "In.tflite").write_bytes(MODEL)
        with pytest.raises(UsageError, match="is another name of"):
            check_claims(
                [Claim(INPUT, str(place / "d" / "In.tflite"))],
                [Claim("--report", str(place / "d" / "iN.TFLITE"))],
                force=True,
            )
    finally:
        subprocess.run(["umount", place], check=True)


def test_calls_check_as_commands_do(here: Path) -> None:
    os.link("in.tflite", "link.tflite")
    os.link("calib.npz", "link.npz")
    passes = [Dedup()]
    given = tfl_rewrite.Judging(inputs=("calib.npz",))
    before = content(here)
    with pytest.raises(UsageError, match=r"is another name of in\.tflite"):
        tfl_rewrite.rewrite("in.tflite", "link.tflite", passes, force=True)
    with pytest.raises(UsageError, match="read as inputs"):
        tfl_rewrite.rewrite("in.tflite", "link.npz", passes, judging=given, force=True)
    with pytest.raises(UsageError, match="read as inputs"):
        tfl_rewrite.shrink("in.tflite", "link.npz", tfl_rewrite.Goal(min_snr=20), judging=given, force=True)
    with pytest.raises(UsageError, match="read as holdout"):
        tfl_rewrite.shrink(
            "in.tflite",
            "out.tflite",
            tfl_rewrite.Goal(min_snr=20, state="link.npz"),
            judging=tfl_rewrite.Judging(holdout=["calib.npz"]),
        )
    with pytest.raises(UsageError, match="are the same file"):
        tfl_rewrite.shrink("in.tflite", "out.tflite", tfl_rewrite.Goal(min_snr=20, state="OUT.tflite"))
    with pytest.raises(UsageError, match="not a file name"):
        tfl_rewrite.rewrite("in.tflite", "out\0.tflite", passes)
    assert content(here) == before


def test_what_is_missing_is_no_file(here: Path) -> None:
    check_claims(
        [Claim(INPUT, "none.tflite"), Claim("--inputs", "nowhere/none.npz"), Claim("--inputs", "a\0b")],
        [Claim(OUTPUT, "out.tflite"), Claim("--report", "r.json")],
        force=False,
    )


FILES = ("IN", "OUT", "FILE", "PATH", "MODEL", "BEFORE", "AFTER", "MANIFEST", "OUTDIR")


def test_every_argument_that_names_a_file_says_what_becomes_of_it() -> None:
    """Otherwise nobody would check it."""
    for command in COMMANDS:
        for row in [row for _, group in command.groups for row in group]:
            words = str(row.extra.get("metavar", "")).replace("|", " ").replace(".", " ").split()
            named = bool(set(words) & set(FILES))
            if command.name == "batch":
                continue  # It finds its files by patterns, and checks them when it plans.
            assert named <= (row.role is not None), (command.name, row.names)
    roles = {row.role for command in COMMANDS for _, group in command.groups for row in group}
    assert roles == {None, *Role}
