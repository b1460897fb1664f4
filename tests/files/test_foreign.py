"""Files that are no models are named for what they are, with what to do."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tfl_rewrite import FileAccessError, FormatError, TflRewriteError, check, load
from tfl_rewrite.cli import main
from tfl_rewrite.files.foreign import recognize

Maker = Callable[[bytes], bytes]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 4113768\n"


def zipped(*members: str, method: int = zipfile.ZIP_STORED) -> Maker:
    """Makes a ZIP; what has the suffix .tflite, or no suffix, is the model."""

    def make(model: bytes) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", method) as archive:
            for name in members:
                plain = "." in name.rpartition("/")[2] and not name.endswith(".tflite")
                archive.writestr(name, b"some other content" if plain else model)
        return made.getvalue()

    return make


def tar(mode: str) -> Maker:
    def make(model: bytes) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]
            entry = tarfile.TarInfo("model.tflite")
            entry.size = len(model)
            archive.addfile(entry, io.BytesIO(model))
        return made.getvalue()

    return make


def always(data: bytes) -> Maker:
    return lambda _model: data


def hexdump(model: bytes) -> bytes:
    rows = [model[start : start + 16] for start in range(0, len(model), 16)]
    lines = [
        f"{16 * number:08x}: {row.hex(' ', 2)}  {''.join(chr(b) if 32 < b < 127 else '.' for b in row)}"
        for number, row in enumerate(rows)
    ]
    return "\n".join(lines).encode()


def c_array(model: bytes) -> bytes:
    body = ", ".join(f"0x{byte:02x}" for byte in model)
    return f"alignas(16) const unsigned char g_model[] = {{\n  {body}\n}};\n".encode()


# Name of the file, what it holds, what is said of it, and the remedy.
KINDS: list[tuple[str, Maker, str, str]] = [
    ("lfs.tflite", always(POINTER), "a Git LFS pointer.*4,113,768 bytes", "git lfs pull"),
    ("annex.tflite", always(b"/annex/objects/SHA256E-s1--a.tflite\n"), "git-annex pointer", "git annex get"),
    (
        "page.tflite",
        always(b"\n<!DOCTYPE html><html><title>Sign in</title>"),
        "a web page.*'Sign in'",
        "download",
    ),
    (
        "s3.tflite",
        always(b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code>"),
        "XML.*'NoSuchKey'",
        "download",
    ),
    ("404.tflite", always(b"404: Not Found"), "14 bytes of text.*'404: Not Found'", "download"),
    ("j.tflite", always(json.dumps({"message": "Not Found"}).encode()), "JSON.*Not Found", "download"),
    ("wide.tflite", always("hello".encode("utf-16")), "bytes of text.*'hello'", ".tflite"),
    ("zeros.tflite", always(bytes(9000)), "9,000 bytes of zeros", "fetch it again"),
    ("m.tflite.gz", gzip.compress, "a model compressed with gzip", "gzip -dc"),
    ("m.bin", bz2.compress, "a model compressed with bzip2", "bzip2 -dc"),
    ("m.xz", lzma.compress, "a model compressed with xz", "xz -dc"),
    ("notes.gz", always(gzip.compress(b"hello" * 100)), ": is compressed with gzip", "gzip -dc"),
    ("cut.gz", always(gzip.compress(bytes(10))[:11]), "compressed with gzip", "gzip -dc"),
    ("m.tgz", tar("w:gz"), "a tar archive compressed with gzip", "tar -xzf"),
    ("m.tar", tar("w"), "a tar archive;", "tar -xf"),
    ("m.zst", always(b"\x28\xb5\x2f\xfd" + bytes(20)), "zstd", "zstd -d"),
    ("m.7z", always(b"7z\xbc\xaf\x27\x1c" + bytes(20)), "7z archive", "7z x"),
    (
        "m.task",
        zipped("a.tflite", "b.tflite"),
        "task bundle.*models 'a.tflite', 'b.tflite'",
        "unzip -p.*zip -0",
    ),
    (
        "llm.task",
        zipped("TF_LITE_PREFILL_DECODE", "T.model"),
        "task bundle.*'TF_LITE_PREFILL_DECODE'",
        "unzip",
    ),
    (
        "a.zip",
        zipped("x.txt", "assets/d.tflite", method=zipfile.ZIP_DEFLATED),
        "'assets/d.tflite'",
        "unzip -p",
    ),
    ("none.zip", zipped("a.txt", "b.txt"), "ZIP archive of 2 files, none", "name a .tflite file"),
    ("bare.zip", zipped(), "an empty ZIP archive", "name a .tflite file"),
    ("cut.zip", lambda model: zipped("a.tflite")(model)[:700], "a damaged ZIP archive", "fetch it again"),
    ("m.keras", zipped("config.json", "model.weights.h5"), "a Keras model", "TFLiteConverter"),
    ("m.pt", zipped("archive/data.pkl", "archive/version.txt"), "a PyTorch checkpoint", "convert"),
    ("m.npz", zipped("a.npy"), "NumPy arrays", "--inputs"),
    ("saved.zip", zipped("m/saved_model.pb"), "a TensorFlow SavedModel", "TFLiteConverter"),
    ("m.litertlm", always(b"LITERTLM" + bytes(60)), r"\.litertlm bundle", "litertlm_peek"),
    ("m.h5", always(b"\x89HDF\r\n\x1a\n" + bytes(60)), "HDF5", "TFLiteConverter"),
    ("old.pt", always(b"\x80\x02}q\x00."), "a Python pickle", "never load"),
    ("m.onnx", always(b"\x08\x07\x12\x07pytorch\x1a\x031.9:"), "an ONNX model", "onnx2tf"),
    (
        "m.pb",
        always(b"\x08\x01\x12\x90\x20\x0a\x05\x12\x03abc"),
        "a TensorFlow SavedModel",
        "TFLiteConverter",
    ),
    (
        "f.pb",
        always(b"\x0a\x1f\x0a\x05input\x12\x0bPlaceholder*"),
        "a frozen TensorFlow graph",
        "TFLiteConverter",
    ),
    ("m.safetensors", always(struct.pack("<Q", 8) + b'{"a":{}}' + bytes(9)), "safetensors", "name a .tflite"),
    ("m.gguf", always(b"GGUF" + bytes(60)), "GGUF", "name a .tflite"),
    ("m.circle", lambda model: model[:4] + b"CIR0" + model[8:], r"\.circle", "made from"),
    ("m.ort", lambda model: model[:4] + b"ORTM" + model[8:], "ONNX Runtime", "convert"),
    ("m.tfl9", lambda model: model[:4] + b"TFL9" + model[8:], "identifier 'TFL9'", "another program"),
    ("m.bare", lambda model: model[:4] + bytes(4) + model[8:], "without an identifier", "another program"),
    ("m.b64", base64.encodebytes, "a model as base64", "base64 -d"),
    ("m.hex", hexdump, "a hex dump of a model", "xxd -r"),
    ("m.cc", c_array, "C source", "xxd -r -p"),
    ("m.enc", always(bytes(range(255, 0, -1)) * 9), "an unknown kind.*bytes 4 to 8", "encrypted"),
    ("m.hdr", lambda model: b"HEAD" * 4 + model, "a model from byte 16 on", r"tail -c \+17"),
    ("six", lambda model: model[:6], "6 bytes long, too few", "fetch it again"),
    ("cut.tflite", lambda model: model[: len(model) // 2], "leads out of the file", "cut short"),
]


@pytest.mark.parametrize(("name", "make", "what", "remedy"), KINDS, ids=[row[0] for row in KINDS])
def test_what_is_no_model_is_named(
    fixtures: Path, tmp_path: Path, name: str, make: Maker, what: str, remedy: str
) -> None:
    path = tmp_path / name
    path.write_bytes(make((fixtures / "dense.tflite").read_bytes()))
    with pytest.raises(FormatError, match=f"(?s){what}") as caught:
        load(path)
    assert caught.value.remedy is not None
    assert re.search(remedy, caught.value.remedy, re.DOTALL)


@pytest.mark.slow
def test_the_remedies_are_commands_that_work(fixtures: Path, tmp_path: Path) -> None:
    model = (fixtures / "dense.tflite").read_bytes()
    for name, make in (
        ("a b.gz", gzip.compress),
        ("m.b64", base64.encodebytes),
        ("m.hdr", lambda m: b"12345678" + m),
    ):
        path = tmp_path / name
        path.write_bytes(make(model))
        with pytest.raises(FormatError) as caught:
            load(path)
        assert caught.value.remedy is not None
        command = caught.value.remedy.split(": ", 1)[1].replace(
            "> model.tflite", f"> {tmp_path}/model.tflite"
        )
        assert os.system(command) == 0
        assert (tmp_path / "model.tflite").read_bytes() == model


COMMANDS = [
    *(("check",), ("inspect",), ("doctor",), ("diff", "OTHER"), ("verify", "OTHER")),
    *(("quantize-weights", "OUT"), ("dequantize", "OUT"), ("round-weights", "OUT"), ("shrink", "OUT")),
    *(("remove-dead", "OUT"), ("dedup", "OUT"), ("compact", "OUT"), ("repair", "OUT")),
    *(("run", "OUT", "--preset", "lossless"), ("shard", "OUT")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_it(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    path, out = tmp_path / "model.tflite", tmp_path / "out"
    path.write_bytes(POINTER)
    words = {"OUT": str(out), "OTHER": str(fixtures / "dense.tflite")}
    name, *rest = [words.get(word, word) for word in command]
    more = ["--min-snr", "30"] if name == "shrink" else []
    code = main([name, str(path), *rest, *more])
    said = capsys.readouterr()
    assert code == 5 and "Git LFS pointer" in said.out + said.err and "git lfs pull" in said.out + said.err
    assert not out.exists()


def test_folders(fixtures: Path, tmp_path: Path) -> None:
    for name, what in (("saved_model.pb", "SavedModel"), ("a.tflite", "name one"), ("x", "is a directory")):
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        (folder / name).touch()
        with pytest.raises(FileAccessError, match=what):
            load(folder)


@pytest.mark.parametrize("length", range(9))
def test_short_files(length: int, tmp_path: Path) -> None:
    for byte in (b"\0", b"P", b"\x80", b"\xff", b"\x08", b"\x0a"):
        path = tmp_path / "short"
        path.write_bytes(byte * length)
        with pytest.raises(TflRewriteError) as caught:
            check(path)
        assert caught.value.remedy


def test_an_archive_of_very_many_files_is_not_listed() -> None:
    made = zipped("a.tflite")(b"x" * 20)
    at = made.rindex(b"PK\x05\x06")
    huge = made[: at + 12] + struct.pack("<I", 1 << 30) + made[at + 16 :]
    assert "very many" in recognize(memoryview(huge), "a.zip", b"TFL3").what


@pytest.mark.parametrize("cut", range(4))
def test_text_that_ends_within_a_character(cut: int) -> None:
    data = ("some words\n" + "\U0001f600").encode()
    assert "bytes of text" in recognize(memoryview(data[: len(data) - cut]), "a.tflite", b"TFL3").what


@pytest.mark.parametrize(
    ("length", "nbytes", "is_one"),
    [
        (4, 4, True),
        (256, 4, True),
        (2, 4, False),
        (5, 4, False),
        (258, 4, False),
        (4, 3, False),
        (4, 5, False),
    ],
)
def test_a_flatbuffer_without_an_identifier(length: int, nbytes: int, is_one: bool) -> None:
    """A table at byte 12, the last four, whose list of fields is before it."""
    data = struct.pack("<I4xHHi", 12, length, nbytes, 4)
    said = recognize(memoryview(data), "a.tflite", b"TFL3").what
    assert ("without an identifier" in said) is is_one and ("of an unknown kind" in said) is not is_one


@pytest.mark.parametrize(("root", "is_one"), [(4, False), (8, True), (10, False), (16, True), (20, False)])
def test_a_model_behind_another_header(root: int, is_one: bool) -> None:
    data = b"\1\2\3\4\xff\xfe\xfd\xfc" + struct.pack("<I", root) + b"TFL3" + bytes(16)
    said = recognize(memoryview(data), "a.bin", b"TFL3").what
    assert ("what looks like a model from byte 8 on" in said) is is_one
