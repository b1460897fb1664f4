"""Help, examples, near names, JSON of every command, completions and the manual page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfl_rewrite.cli.commands.manual import man_page
from tfl_rewrite.cli.parser import commands, parser
from tfl_rewrite.cli.text import name_limit, short_names

from .program import TOOL, call

COMMANDS = commands()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_examples_are_shown_and_can_be_called(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    assert command.examples
    code, said, _ = call(capsys, "help", command.name)
    assert code == 0 and said == call(capsys, command.name, "--help")[1]
    for example in command.examples:
        assert f"\n  {example}\n" in said
        program, name, *words = shlex.split(example.partition(" >")[0])
        assert (program, name) == ("tfl-rewrite", command.name)
        assert parser("0", [name, *words]).parse_args([name, *words]).command == command.name


def test_a_pass_without_a_row_stands_before_what_runs_several() -> None:
    names = [command.name for command in COMMANDS]
    assert names.index("compact") < names.index("simplify") < names.index("run")
    assert names[-2:] == ["help", "completion"]


def test_help_without_a_command_is_that_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "help") == call(capsys, "--help")
    code, said, error = call(capsys, "help", "shrnk")
    assert (code, said) == (2, "") and "did you mean 'shrink'?" in error


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["shardd"], "'shard'"),
        (["quantize-weights", "a", "b", "--dtyp=int8"], "ambiguous"),
        (["quantize-weights", "a", "b", "--min-sn", "3", "--exclud", "x", "--inptus", "y"], "--inputs"),
        (["run", "IN", "OUT", "--pass", "quantise-weights"], "'quantize-weights'"),
        (["run", "IN", "OUT", "--pass", "quantize-weights:dtpye=int4"], "'dtype'"),
        (["run", "IN", "OUT", "--preset", "smal"], "small"),
    ],
)
def test_a_wrong_name_is_answered_with_the_near_one(
    capsys: pytest.CaptureFixture[str], fixtures: Path, tmp_path: Path, words: list[str], meant: str
) -> None:
    places = {"IN": str(fixtures / "dense.tflite"), "OUT": str(tmp_path / "out.tflite")}
    code, said, error = call(capsys, *(places.get(word, word) for word in words))
    assert (code, said) == (2, "") and error.count("\n") == 1 and "usage:" not in error
    if meant != "ambiguous":
        assert meant in error


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("quantize-weights IN OUT --samples 1", {"outcome", "passes", "verdict"}),
        ("compact IN OUT --verify off", {"outcome", "passes"}),
        ("shrink IN OUT --min-snr 20 --samples 2 --time-limit 5", {"source"}),
        ("shard IN OUT", {"command", "files"}),
        ("chain IN OUT --append argmax --samples 1", {"passes", "verdict"}),
        ("verify IN IN --samples 1", {"status", "verdicts"}),
        ("diff IN IN", {"identical"}),
        ("inspect IN", {"operators"}),
        ("check IN", {"files"}),
        ("doctor IN", {"findings"}),
        ("passes", {"presets"}),
        ("batch IN --out OUT --pass dedup --verify off", {"files", "counts"}),
        ("help", {"help"}),
        ("help --man", {"man"}),
        ("completion bash", {"bash"}),
    ],
)
def test_json_is_all_that_is_printed(
    capsys: pytest.CaptureFixture[str], fixtures: Path, tmp_path: Path, words: str, keys: set[str]
) -> None:
    places = {"IN": str(fixtures / "dense.tflite"), "OUT": str(tmp_path / "out")}
    given = [places.get(word, word) for word in words.split()]
    code, said, _ = call(capsys, *given, "--json")
    assert code == 0 and keys <= set(json.loads(said)), said[:300]


@pytest.mark.runtime
def test_json_of_a_failure(capsys: pytest.CaptureFixture[str], fixtures: Path, tmp_path: Path) -> None:
    more = ["--min-snr", "200", "--samples", "1", "--no-rescue", "--blame-seconds", "0", "--json"]
    out = tmp_path / "out"
    code, said, error = call(capsys, "quantize-weights", fixtures / "dense.tflite", out, *more)
    assert code == 4 and json.loads(said)["outcome"] == "failed" and "nothing was written" in error
    code, said, error = call(capsys, "compact", fixtures / "dense.tflite", "-", "--json")
    assert (code, said) == (2, "") and "--report" in error


@pytest.mark.parametrize("command", ["inspect", "doctor", "compact", "shard"])
def test_json_of_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    file = tmp_path / "a\nb.tflite"
    more = [tmp_path / "out"] * (command in ("compact", "shard"))
    code, said, error = call(capsys, command, file, *more, "--json")
    told = json.loads(said)["error"]
    assert code == 2 == told["exit_code"] and told["file"] == str(file)
    assert told["what"] == "cannot read: No such file or directory" in error
    file.write_bytes(bytes(100))
    code, said, _ = call(capsys, command, file, *more, "--json")
    assert code == 5 == json.loads(said)["error"]["exit_code"]
    assert call(capsys, command, file, *more)[1] == ""


def test_names_are_cut_where_they_agree() -> None:
    names = [f"model/net/stage_{number}/convolution/kernel" for number in range(3)]
    assert short_names(names, limit=60) == [f".../stage_{number}/..." for number in range(3)]
    # In the middle, which a cut would take out.
    long = [f"{'a' * 40}{number}{'b' * 40}" for number in range(10)]
    assert len(set(short_names(long, limit=30))) == 10
    assert short_names(["one/name"], limit=60) == ["one/name"]
    assert short_names([], limit=60) == []


def test_names_give_way_to_what_else_a_terminal_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [("type", "bytes"), ("FLOAT32", "40,960")]
    monkeypatch.setenv("COLUMNS", "60")
    assert name_limit(others) == 60
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert [name_limit(others), name_limit(others, 30)] == [60 - 2 - 2 - 7 - 2 - 6, 30]
    monkeypatch.setenv("COLUMNS", "42")
    assert name_limit(others) == 60


# -- Completions --------------------------------------------------------------------------------------------

BASH = """
source /dev/stdin <<< "$(cat "$1")"; shift
COMP_WORDS=(tfl-rewrite "$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
function=$(complete -p tfl-rewrite | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function tfl-rewrite "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
CASES = [
    (["shr"], {"shrink"}),
    (["quantize-weights", "--dty"], {"--dtype"}),
    (["quantize-weights", "--dtype", "int"], {"int12", "int10", "int8", "int6", "int4", "int2"}),
    (["doctor", "--fail-on", "w"], {"warning"}),
    (["help", "shr"], {"shrink"}),
    (["run", "a", "b", "--preset", "lo"], {"lossless"}),
    (["run", "a", "b", "--pass", "fold-b"], {"fold-batch-norms"}),
]


def written(shell: str, folder: Path) -> Path:
    """Writes the script for a shell."""
    done = subprocess.run([TOOL, "completion", shell], capture_output=True, check=True, timeout=60)
    path = folder / f"tfl-rewrite.{shell}"
    path.write_bytes(done.stdout)
    return path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_completion_in_bash(fixtures: Path, tmp_path: Path) -> None:
    script = written("bash", tmp_path)
    model = str(fixtures / "mtcnn_rnet_old")
    for words, expected in [*CASES, (["inspect", model], {f"{model}_schema.tflite"})]:
        done = subprocess.run(
            ["bash", "-c", BASH, "bash", script, *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert set(done.stdout.split()) == expected, (words, done)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_completion_in_fish(tmp_path: Path) -> None:
    script = written("fish", tmp_path)
    for words, expected in CASES:
        line = shlex.join(["tfl-rewrite", *words])
        told = f"source {shlex.quote(str(script))}; complete -C {shlex.quote(line)}"
        done = subprocess.run(["fish", "-c", told], capture_output=True, text=True, check=True, timeout=60)
        assert {row.partition("\t")[0] for row in done.stdout.splitlines()} == expected, (words, done)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_completion_is_sound_in_zsh(tmp_path: Path) -> None:
    script = written("zsh", tmp_path)
    subprocess.run(["zsh", "-n", script], check=True, timeout=60)
    assert script.read_text().startswith("#compdef tfl-rewrite\n")


def test_no_word_is_left_that_zsh_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a row ``--option[help]:word:action`` the action is run, unless it is a list or a function."""
    said = call(capsys, "completion", "zsh")[1]
    rows = re.findall(r'^ *\S*"(?:\*?--[\w-]+|)\[(?:\\.|[^\]])*\]:([^"]*)"$', said, re.MULTILINE)
    assert len(rows) > 100
    actions = [re.split(r"(?<!\\):", row, maxsplit=1)[1:] for row in rows]
    assert [one for one in actions if not one or not re.match(r"$|_files|\(.*\)$", one[0])] == []


def test_the_manual_page_has_every_command_and_option() -> None:
    page = "\n".join(man_page()).replace("\\-", "-")
    for command in COMMANDS:
        assert f".SS {command.name}\n" in page
        for _, rows in command.groups:
            assert all(row.names[-1] in page or str(row.extra.get("metavar")) in page for row in rows)
    # No line of text begins as a request does.
    requests = (".TH", ".SH", ".SS", ".B", ".I", ".TP", ".PP", ".nf", ".fi")
    lines = [line for line in page.splitlines() if line.startswith((".", "'"))]
    assert all(line.startswith(requests) for line in lines)
