"""Names that a file brings along, through every command: shown escaped, and as valid JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tfl_rewrite import load, save
from tfl_rewrite.cli import main
from tfl_rewrite.cli.parser import COMMANDS
from tfl_rewrite.cli.render import safe
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Buffer, Metadata, OperatorCode, Tensor, operator_number

# What terminals obey, what turns text around, what looks like nothing, and bytes that are no UTF-8.
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m\x7f\x00\x08\r\n\t",
    "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C))),
    "\u2028\u2029\x85\x0b\x0c",
    "\u200b\u200d\ufeff\u2060\u00ad\u3000\u00a0",
    "\udcff\udc80\udcc3",
    "\U000e0041\ue000\uffff",
    "%s {0} $(id) `id` ' \" \\ <b>",
)
PLAIN = "ü 名 ok"


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    """A model that runs, with such a name wherever a name can stand, and a ZIP of such members."""
    model = load(fixtures / "two_signatures_shared_weights.tflite")
    text = "".join(HOSTILE) + PLAIN
    model.description = text
    for index, graph in enumerate(model.subgraphs):
        graph.name = f"{text}{index}"
        for position, tensor in enumerate(graph.tensors):
            tensor.name = f"{HOSTILE[position % len(HOSTILE)]}{text}{position}"
    for index, signature in enumerate(model.signatures):
        signature.key = f"{text}{index}"
        for rows in (signature.inputs, signature.outputs):
            rows[:] = [
                (row.replace(name=f"{text}{place}"), tensor) for place, (row, tensor) in enumerate(rows)
            ]
    for name in (text, "min_runtime_version"):
        buffer = Buffer(OwnedBlob(text.encode("utf-8", "surrogateescape")))
        model.buffers.append(buffer)
        model.metadata.append(Metadata(name, buffer))
    path = tmp_path_factory.mktemp("named") / "named.tflite"
    save(model, path)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("../../escaped", "/etc/escaped", "\x1b[31m\u202e.txt"):
            archive.writestr(name, b"label")
    path.write_bytes(path.read_bytes() + stream.getvalue())
    return path


@pytest.fixture(scope="module")
def custom(named: Path) -> Path:
    """The same with a custom operator, which no runtime has."""
    model = load(named)
    code = OperatorCode(operator_number("CUSTOM"), "".join(HOSTILE))
    model.operator_codes.append(code)
    model.subgraphs[0].operators[0].code = code
    save(model, named.with_name("custom.tflite"))
    return named.with_name("custom.tflite")


def is_shown_safely(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    code = main([*map(str, arguments)])
    said = capsys.readouterr()
    assert is_shown_safely(said.out) and is_shown_safely(said.err), repr(said)
    assert "Traceback" not in said.err
    return code, said.out + said.err


def is_valid_json(text: bytes) -> object:
    """Strict: ASCII, so UTF-8 whatever the locale; no NaN."""

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text.decode("ascii"), parse_constant=no_constant)


COMMANDS_HERE: dict[str, list[list[str]]] = {
    "inspect": [["MODEL"], ["MODEL", "--json"]],
    "check": [["MODEL", "-v"], ["MODEL", "--json"]],
    "diff": [["MODEL", "OTHER"], ["OTHER", "MODEL", "-v"], ["MODEL", "OTHER", "--json"]],
    "verify": [["MODEL", "OTHER", "--samples", "1", "--report", "REPORT"]],
    "quantize-weights": [
        ["MODEL", "OUT", "-v", "--samples", "1", "--min-elements", "16", "--report", "REPORT"],
        ["MODEL", "OUT", "-v", "--verify", "off", "--min-snr", "10", "--report", "REPORT"],
    ],
    "quantize": [["MODEL", "OUT", "-v", "--verify", "off", "--report", "REPORT"]],
    "round-weights": [["MODEL", "OUT", "-v", "--verify", "off", "--steps", "16", "--report", "REPORT"]],
    "prune": [["MODEL", "OUT", "-v", "--verify", "off", "--min-elements", "16", "--report", "REPORT"]],
    "reshape": [["MODEL", "OUT", "-v", "--verify", "off", "--batch", "2", "--report", "REPORT"]],
    "chain": [["MODEL", "OUT", "-v", "--verify", "off", "--append", "softmax", "--report", "REPORT"]],
    "split": [["MODEL", "FOLDER", "-v", "--verify", "off", "--parts", "2", "--report", "REPORT"]],
    "dequantize": [["MODEL", "OUT", "-v", "--verify", "off", "--report", "REPORT"]],
    "remove-dead": [["MODEL", "OUT", "-v", "--verify", "off", "--strip", "names", "--report", "REPORT"]],
    "dedup": [["MODEL", "OUT", "-v", "--verify", "off", "--report", "REPORT"]],
    "compact": [["MODEL", "OUT", "-v", "--verify", "off", "--report", "REPORT"]],
    "rename": [["MODEL", "OUT", "-v", "--verify", "off", "--input", "#0=\x1b[2J", "--report", "REPORT"]],
    "signatures": [["MODEL", "OUT", "-v", "--verify", "off", "--add", "\x1b[2J", "--report", "REPORT"]],
    "metadata": [["MODEL", "OUT", "-v", "--verify", "off", "--name", "\x1b[2J", "--report", "REPORT"]],
    "run": [["MODEL", "OUT", "-v", "--verify", "off", "--preset", "small", "--report", "REPORT"]],
    "passes": [[]],
    "shard": [["MODEL", "FOLDER", "-v", "--max-size", "4000", "--report", "REPORT"]],
    "shrink": [
        ["MODEL", "OUT", "-v", "--max-size", "1MB", "--effort", "fast", "--report", "REPORT"],
        ["MODEL", "OUT", "-v", "--max-size", "1MB", "--effort", "fast", "--recipe-out", "RECIPE"],
    ],
    "doctor": [["MODEL", "-v"], ["MODEL", "--json"]],
    "retarget": [["MODEL", "OUT", "-v", "--verify", "off", "--report", "REPORT"]],
    "repair": [["MODEL", "OUT", "-v", "--verify", "off", "--report", "REPORT"]],
    "batch": [["MODEL", "--out", "FOLDER", "--pass", "dedup", "--verify", "off", "--jobs", "1", "-v"]],
    "help": [["--man"]],
    "completion": [["fish"]],
    "join": [["MANIFEST", "OUT", "-v", "--verify", "off", "--report", "REPORT"]],
}


def test_every_command_is_tried() -> None:
    missing = {command.name for command in COMMANDS} - COMMANDS_HERE.keys()
    assert not missing, f"add rows for {missing}"


@pytest.mark.runtime
@pytest.mark.parametrize("command", COMMANDS_HERE)
@pytest.mark.parametrize("model", ["named", "custom"])
def test_command_shows_names_escaped(
    command: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    source: Path = request.getfixturevalue(model)
    other = tmp_path / "other.tflite"
    changed = load(source)
    for tensor in changed.subgraphs[0].tensors:
        tensor.name = "\x1b[1m" + tensor.name
    save(changed, other)
    places = {"MODEL": source, "OTHER": other, "FOLDER": tmp_path / "\x1b[31mparts"}
    if command == "join":
        assert main(["shard", str(source), str(tmp_path / "parts"), "-q"]) == 0
        (places["MANIFEST"],) = (tmp_path / "parts").glob("*.json")
    for number, row in enumerate(COMMANDS_HERE[command]):
        report = tmp_path / f"{number}.json"
        places |= {"OUT": tmp_path / f"\x1b[31mout{number}\u202e.tflite", "REPORT": report}
        places |= {"RECIPE": tmp_path / "recipe.toml"}
        code, text = call(capsys, command, *[places.get(word, word) for word in row])
        assert code in (0, 2, 3, 4)
        if "--json" in row:
            assert is_valid_json(text.encode())
        if "REPORT" in row and report.exists():
            assert is_valid_json(report.read_bytes())


def test_names_come_back_from_json(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also bytes that are no UTF-8: each is an escape of its own, and none becomes another."""
    _, text = call(capsys, "inspect", named, "--json")
    found = json.loads(text)
    names = {row["name"] for row in found["inputs"] + found["outputs"] + found["largest"]}
    known = {tensor.name for graph in load(named).subgraphs for tensor in graph.tensors}
    assert names and names <= known
    assert found["description"] == load(named).description
    raw = found["description"].encode("utf-8", "surrogateescape")
    assert raw in named.read_bytes(), "the bytes of the file"


def test_errors_show_names_escaped(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(named)
    first = model.subgraphs[0].tensors[0]
    model.subgraphs[0].tensors.append(Tensor("\x1b[2J", (3,), 0, Buffer(OwnedBlob(b"1"))))
    model.buffers.append(model.subgraphs[0].tensors[-1].buffer)
    model.subgraphs[0].operators.reverse()
    assert first.name
    save(model, tmp_path / "\x1b[31m.tflite")
    code, text = call(capsys, "check", tmp_path / "\x1b[31m.tflite", "-v")
    assert code == 5 and "\\x1b" in text
    code, text = call(capsys, "inspect", tmp_path / "\x1b[2J missing")
    assert code == 2 and "\\x1b[2J missing" in text
    code, text = call(
        capsys, "remove-dead", named, tmp_path / "o.tflite", "--outputs", "\x1b[2J", "--verify", "off"
    )
    assert code == 2 and "\\x1b[2J" in text


@pytest.mark.slow
@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--json"], ["check"], ["diff"]])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_no_encoding_of_the_output_breaks_it(command: list[str], encoding: str, named: Path) -> None:
    words = [*command, str(named)] + ([str(named)] if command == ["diff"] else [])
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "LANG": "C"}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "tfl-rewrite"), *words],
        capture_output=True,
        env=environment,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert is_shown_safely(done.stdout.decode(encoding))
    if "--json" in command:
        is_valid_json(done.stdout)


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_says_which_character_it_was(text: str) -> None:
    shown = safe(text)
    assert shown.isprintable()
    wanted = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )
    assert shown == wanted


def test_members_of_the_zip_are_listed_and_never_unpacked(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names lead out of the folder; nothing opens a member, so none can escape and none inflates."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a member of the ZIP was opened")

    for name in ("open", "read", "extract", "extractall", "testzip"):
        monkeypatch.setattr(zipfile.ZipFile, name, opened)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(named)]) == 0
    assert main(["compact", str(named), str(tmp_path / "out.tflite"), "--verify", "off"]) == 0
    assert main(["diff", str(named), str(tmp_path / "out.tflite")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.tflite"]


@pytest.mark.slow
def test_a_zip_bomb_costs_what_its_file_does(fixtures: Path, tmp_path: Path) -> None:
    """A megabyte of deflated zeros is a gigabyte; it is carried over as it is."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros", "w") as member:
        for _ in range(256):
            member.write(bytes(1 << 20))
    bomb = tmp_path / "bomb.tflite"
    bomb.write_bytes((fixtures / "dense_defaults_present.tflite").read_bytes() + stream.getvalue())
    assert bomb.stat().st_size < 1 << 20
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 21, 1 << 21));"
        "from tfl_rewrite.cli import main; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "codes = [main(['inspect', sys.argv[1]]), main(['compact', *sys.argv[1:], '--verify', 'off'])];"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before;"
        "sys.exit(codes != [0, 0] or grown > 100_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(bomb), str(tmp_path / "out.tflite")],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(tmp_path / "out.tflite") as archive:
        assert archive.getinfo("zeros").file_size == 256 << 20
