"""Help, usage and the rows of the commands."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tfl_rewrite import __version__
from tfl_rewrite.cli import main
from tfl_rewrite.cli.parser import COMMANDS, parser

from ..helpers import ROOT
from .program import call, left, run


@pytest.mark.slow
def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"tfl-rewrite {__version__}\n", b"")


def test_help_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = call(capsys, "--help")
    assert code == 0 and "Exit codes" in text
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").replace("`", "")
    promise = " ".join(text.split())
    promise = promise[promise.index("Exit codes") :]
    assert promise in " ".join(page.split())
    assert all(command.name in text for command in COMMANDS)
    assert "(lossy)" in text


@pytest.mark.parametrize(
    "words",
    [
        "quantize-weights a b --dtype int4 --dtype int8",
        "join a b --jobs 2 --threads 4",
        "run a b --preset small --preset=lossless",
        "verify a b --min-snr 20 --min-snr 30",
        "shard a b --max-size 1MB --max-size 1MB",
    ],
)
def test_an_option_of_one_value_is_given_once(capsys: pytest.CaptureFixture[str], words: str) -> None:
    code, out, err = call(capsys, *words.split())
    assert code == 2 and "is given twice, and takes one value" in err and not out
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("dedup m.tflite --json", "are required: OUT"),
        ("dedup m.tflite o.tflite --json --bogus", "unrecognized arguments: --bogus"),
        ("quantize-weights a b --json --dtype int4 --dtype int8", "is given twice"),
        ("dedupp --json", "did you mean 'dedup'?"),
        ("--json", "are required: COMMAND"),
    ],
)
def test_errors_of_usage_are_json_too(capsys: pytest.CaptureFixture[str], words: str, told: str) -> None:
    code, out, err = call(capsys, *words.split())
    error = json.loads(out)["error"]
    assert code == error["exit_code"] == 2 and told in error["what"]
    assert told in err and err.count("\n") == 1 and "--help' lists what there is" in err
    assert call(capsys, *words.replace("--json", "--").split())[1] == ""


@pytest.mark.parametrize(
    ("raised", "expected"), [(RecursionError(), 5), (MemoryError(), 2)], ids=["nested", "memory"]
)
def test_what_python_gives_up_on_is_json_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: int
) -> None:
    def give_up(*_: object) -> None:
        raise raised

    monkeypatch.setattr("tfl_rewrite.cli.files.check", give_up)
    code, out, err = call(capsys, "dedup", "a", "b", "--json")
    assert code == json.loads(out)["error"]["exit_code"] == expected and err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_of_a_command(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    code, text, _ = call(capsys, command.name, "--help")
    assert code == 0
    for _, arguments in command.groups:
        for argument in arguments:
            assert argument.names[-1] in text or argument.extra.get("metavar", "") in text
            assert argument.help
    if command.name == "quantize-weights":
        assert "LOSSY" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["quantize-weights"],
        ["quantize-weights", "a"],
        ["quantize-weights", "a", "b", "--nonsense"],
        ["quantize-weights", "a", "b", "--min-elements", "many"],
        ["verify", "a"],
        ["inspect"],
        ["check"],
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, text, error = call(capsys, *arguments)
    assert code == 2 and text == "" and error.count("\n") == 1 and "usage:" not in error
    assert error.startswith("tfl-rewrite: error: ") and "--help' lists what there is" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["quantise-weights", "a", "b"],
            "command 'quantise-weights' is unknown; did you mean 'quantize-weights'?",
        ),
        (["dedup", "a", "b", "--froce"], "unrecognized arguments: --froce; did you mean --force?"),
        (["verify", "a", "b", "--min-snt=3"], "unrecognized arguments: --min-snt=3; did you mean --min-snr?"),
    ],
)
def test_what_is_near_is_named(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, text, error = call(capsys, *arguments)
    assert code == 2 and text == "" and said in error


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--scheme", "hybird", "argument --scheme: 'hybird' is unknown; did you mean 'hybrid'? use one of"),
        ("--verify", "maybe", "argument --verify: 'maybe' is unknown; use one of auto, require, off"),
        ("--resolver", "builtins", "did you mean 'builtin'?"),
        ("--effort", "bets", "did you mean 'best'?"),
    ],
)
def test_values_that_do_not_exist(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path, option: str, value: str, said: str
) -> None:
    code, text, error = call(capsys, "quantize-weights", dense, out, option, value)
    assert code == 2 and text == "" and said in error and not out.exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["compact", "--align", "3"], "argument --align: N is 3; give a power of two"),
        (["compact", "--strip", "all"], "argument --strip: cannot strip 'all'"),
        (["run", "--pass", "compact:align=3"], "compact: align: N is 3; give a power of two"),
        (["reshape", "--input", "nosuch=1,2"], "{dense}: --input nosuch=1,2: no input is named 'nosuch'"),
        (["reshape", "--input", "1,2,3"], "{dense}: --input 1,2,3: input 'x' has 2 axes"),
        (["split", "--at", "nosuch"], "{dense}: --at nosuch: no tensor is named 'nosuch'"),
        (["chain", "--prepend", "softmax"], "--prepend softmax: stage 'softmax' is unknown"),
        (["chain", "--append", "top-k:k"], "--append top-k:k: top-k: k = 'k' is no whole number"),
        (["chain", "--append", "argmax:tensor=x"], "--append argmax:tensor=x: no output is named 'x'"),
        (["chain", "--connect", "y", "{dense}"], "--connect y: it has no ="),
        (["chain", "--connect", "y=y", "{dense}"], "--connect y=y: no input of the second model is named"),
        (["remove-dead", "--outputs", "nosuch"], "--outputs: no tensor is named 'nosuch'"),
        (["remove-dead", "--outputs", "#0", "--signature", "a"], "--signature: the model has no signature"),
        (["metadata", "--input-name", "a", "--input-name", "b"], "--input-name: 2 names for 1 inputs"),
        (["repair", "--only", "min-runtimes"], "argument --only: repair 'min-runtimes' is unknown"),
        (["retarget", "--target", "9"], "argument --target: "),
        (["quantize-weights", "--include", "("], "argument --include: '(' is not a regular expression"),
        (["quantize-weights", "--exclude", "("], "argument --exclude: '('"),
        (["quantize-weights", "--map", "weights"], "argument --map: rule 'weights'"),
        (["quantize-weights", "--map", "nosuch=int8"], "--map: rule 'nosuch' matches no tensor"),
        (["quantize", "--include", "("], "argument --include: "),
        (["quantize", "--map", "weights"], "argument --map: rule 'weights'"),
        (["prune", "--sparsity", "0.5", "--exclude", "("], "argument --exclude: "),
        (["shrink", "--min-snr", "30", "--exclude", "("], "argument --exclude: "),
        (["rename", "--tensor", "nosuch=y"], "--tensor nosuch=y: no tensor is named 'nosuch'"),
        (["rename", "--output", "y"], "--output y: "),
        (["signatures", "--remove", "nosuch"], "--remove nosuch: "),
        (["signatures", "--extract", "nosuch"], "--extract nosuch: "),
        (["signatures", "--add", "a:b"], "--add a:b: "),
    ],
    ids=str,
)
def test_what_is_wrong_names_its_option(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path, words: list[str], option: str
) -> None:
    words = [word.format(dense=dense) for word in words]
    files = [dense, *([words.pop()] if words[-1] == str(dense) else []), out]
    code, text, error = call(capsys, words[0], *files, *words[1:])
    assert code == 2 and text == "" and not out.exists()
    assert f"error: {option.format(dense=dense)}" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--include", "("], "regular expression"),
        (["--min-elements", "0"], "1 or more"),
        (["--min-elements", "-5"], "1 or more"),
        (["--min-runtime", "soon"], "2.14"),
        (["--threads", "-1"], "threads"),
        (["--samples", "0"], "samples"),
        (["--seed", "-1"], "seed"),
        (["--timeout", "0"], "timeout"),
        (["--timeout", "nan"], "timeout"),
        (["--min-snr", "nan"], "--min-snr"),
        (["--min-runtime", "99.9"], "newer than 2.23, the newest that is known"),
        (["--max-abs-error", "-1"], "--max-abs-error"),
        (["--runtime", "abacus"], "litert"),
        (["--runtime", "python:/no/such/python"], "/no/such/python"),
        (["--inputs", "/no/such/inputs.npz"], "/no/such/inputs.npz"),
        (["--report", "/no/such/folder/report.json"], "/no/such/folder"),
        (["--report", "/"], "directory"),
    ],
)
def test_options_without_sense(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path, more: list[str], words: str
) -> None:
    """Exit 2 with a sentence, and nothing written, whatever was asked for."""
    code, _, error = call(capsys, "quantize-weights", dense, out, *more)
    assert code == 2 and error.startswith("tfl-rewrite: error: ") and words in error
    assert error.count("\n") == 1 and left(out) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect", ""], "'': cannot read: "),
        (["check", "IN", ""], ""),
        (["compact", "IN", ""], "'': the name is empty; name a file"),
        (["shard", "IN", ""], "'': the name is empty; name a folder"),
        (["compact", "", "OUT"], "'': cannot read: "),
        (["quantize-weights", "IN", "OUT", "--report", ""], "'': the name is empty; "),
        (["inspect", "IN", "--largest", "-1"], "largest is -1; give 0 or more"),
    ],
)
def test_what_is_empty_or_negative_is_shown(
    capsys: pytest.CaptureFixture[str],
    dense: Path,
    out: Path,
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(out.parent)
    code, text, error = call(capsys, *({"IN": str(dense), "OUT": str(out)}.get(w, w) for w in words))
    assert code == 2 and left(out) == []
    assert "\n'': NOT CHECKED\n" in text if words[0] == "check" else f"error: {said}" in error


# Where the work itself gives an option another sense, its help says so.
OWN_SENSE = {
    *(("quantize", option) for option in ("--effort", "--include", "--exclude", "--map")),
    ("quantize", "--no-bias-correction"),
    ("dequantize", "--activations"),
    ("round-weights", "--granularity"),
    ("round-weights", "--min-elements"),
    ("round-weights", "--min-snr"),
    ("round-weights", "--effort"),
    ("remove-dead", "--inputs"),
    ("rename", "--signature"),
    ("reshape", "--input"),
    ("retarget", "--runtime"),
    *(("rename", option) for option in ("--signature", "--input", "--output")),
    *(("metadata", option) for option in ("--mean", "--std", "--export")),
    ("shrink", "--min-snr"),
    ("prune", "--effort"),
    ("prune", "--min-snr"),
    ("prune", "--min-elements"),
    ("shrink", "--min-agreement"),
    ("shrink", "--activations"),
    ("chain", "--force"),
    *(("split", option) for option in ("--max-size", "--manifest", "--force")),
    *(("shrink", option) for option in ("--effort", "--include", "--exclude", "--min-runtime")),
    *(("shard", option) for option in ("--max-size", "--verify", "--force", "--threads")),
    *(("join", option) for option in ("--verify", "--force", "--threads")),
    ("doctor", "--min-runtime"),
    ("batch", "--pass"),
    ("batch", "--force"),
    ("verify", "--force"),
}


def test_an_option_means_the_same_everywhere() -> None:
    """Options of one name have one help text and one default in every command, but for a known few."""
    seen: dict[str, tuple[str, object]] = {}
    for command in COMMANDS:
        for _, arguments in command.groups:
            for argument in arguments:
                if argument.names[-1] in ("--report", "--json") or not argument.names[-1].startswith("-"):
                    continue
                if (command.name, argument.names[-1]) in OWN_SENSE:
                    continue
                # What is not given to batch is left to its file.
                by_file = command.name == "batch"
                default = None if by_file else argument.extra.get("default")
                facts = (argument.help, default)
                if by_file and argument.names[-1] in seen:
                    assert seen[argument.names[-1]][0] == argument.help
                    continue
                assert seen.setdefault(argument.names[-1], facts) == facts


def test_parser_takes_every_row() -> None:
    given = ["quantize-weights", "a", "b", "--exclude", "x", "--no-rescue"]
    parsed = parser("0", given).parse_args(given)
    assert parsed.source == "a" and parsed.pass_exclude == ["x"]
    # What is not given is left to the object that has the option.
    assert parsed.mode is None and parsed.pass_dtype is None and parsed.rescue is False


def test_commands_do_not_share_state(capsys: pytest.CaptureFixture[str], dense: Path, out: Path) -> None:
    """Repeatable options start anew in each call."""
    before = signal.getsignal(signal.SIGTERM)
    call(capsys, "quantize-weights", dense, out, "--verify", "off", "--exclude", "FULLY")
    first = out.read_bytes()
    call(capsys, "quantize-weights", dense, out, "--verify", "off", "--force")
    assert first == dense.read_bytes() != out.read_bytes()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored(dense: Path, out: Path) -> None:
    """As by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["quantize-weights", str(dense), str(out), "--verify", "off", "-q"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
