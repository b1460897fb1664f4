"""What a file is that is no ``.tflite`` file, and what to do with it.

Public "models" are often something else under that name: the pointer that Git LFS leaves in a clone, the web
page around a download, a bundle or archive that holds the model. :func:`recognize` looks at the first bytes;
of an archive also at its list of members. Nothing is unpacked but the first bytes of a stream or a member.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import io
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

_HEAD = 4096
_INNER = 64 << 10
_MEMBERS = 64
_DIRECTORY = 4 << 20
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Foreign:
    """A file that is something else.

    Attributes:
        what: Completes "the file is ...".
        remedy: What to do; FILE stands for the file.
        offset: Where in the file that shows, where it is not its first bytes.
    """

    what: str
    remedy: str
    offset: int | None = None


_CONVERT = "convert it with TensorFlow's TFLiteConverter and use what that writes"
_ELSEWHERE = "name a .tflite file"

_MAGIC: tuple[tuple[int, bytes, Foreign], ...] = (
    (
        0,
        b"LITERTLM",
        Foreign(
            "a .litertlm bundle of LiteRT-LM, which holds models among other sections",
            "dump its sections with litertlm_peek of the Python package litert-lm-builder, and rewrite a "
            "model among them",
        ),
    ),
    (0, b"\x89HDF\r\n\x1a\n", Foreign("an HDF5 file, such as Keras saves models in", _CONVERT)),
    (0, b"GGUF", Foreign("a GGUF file, a model for llama.cpp", _ELSEWHERE)),
    (0, b"\x93NUMPY", Foreign("a NumPy array", _ELSEWHERE)),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        Foreign("compressed with zstd", "unpack it first: zstd -d FILE -o model.tflite"),
    ),
    (0, b"\x04\x22\x4d\x18", Foreign("compressed with lz4", "unpack it first: lz4 -d FILE model.tflite")),
    (0, b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", "unpack it first: 7z x FILE")),
    (0, b"Rar!\x1a\x07", Foreign("a RAR archive", "unpack it first: unrar x FILE")),
    (257, b"ustar", Foreign("a tar archive", "unpack it first: tar -xf FILE")),
    (0, b"\x7fELF", Foreign("a program or library (ELF)", _ELSEWHERE)),
    (0, b"%PDF-", Foreign("a PDF document", _ELSEWHERE)),
    (0, b"\x89PNG\r\n\x1a\n", Foreign("a picture (PNG)", _ELSEWHERE)),
    (0, b"\xff\xd8\xff", Foreign("a picture (JPEG)", _ELSEWHERE)),
    (0, b"SQLite format 3\0", Foreign("an SQLite database", _ELSEWHERE)),
    # FlatBuffers of other programs, by their identifiers.
    (4, b"CIR0", Foreign("a .circle model of Samsung's ONE", "use the .tflite file that it was made from")),
    (4, b"ORTM", Foreign("a model of ONNX Runtime (.ort)", "convert the original model to .tflite")),
    (4, b"M001", Foreign("TFLite Metadata without a model", "name the model that it belongs to")),
    (4, b"ET12", Foreign("an ExecuTorch program (.pte)", "convert the original model to .tflite")),
)


@dataclass(frozen=True, slots=True)
class _File:
    """What is looked at.

    Attributes:
        head: Its first bytes.
        identifier: Bytes 4 to 8 of a model.
    """

    data: memoryview
    head: bytes
    name: str
    identifier: bytes


def recognize(data: memoryview, name: str, identifier: bytes) -> Foreign:
    """Says what a file is that has not the identifier of a model.

    Args:
        data: All of its bytes; only a few are looked at.
        name: Its name, whose suffix may tell what the bytes do not.
        identifier: What a model has at bytes 4 to 8.
    """
    head = bytes(data[:_HEAD])
    for offset, magic, found in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return found
    file = _File(data, head, name, identifier)
    looks = (_pointer, _compressed, _zip, _weights, _protocol_buffer, _text, _within, _zeros)
    return next((found for found in (look(file) for look in looks) if found is not None), _unknown(file))


def _pointer(file: _File) -> Foreign | None:
    """What large-file tools leave in place of a file."""
    head = file.head
    if re.match(rb"version https?://(git-lfs\.github\.com|hawser\.github\.com)/", head):
        size = re.search(rb"^size (\d{1,18})\s*$", head, re.MULTILINE)
        whole = f", {int(size[1]):,} bytes," if size else ""
        return Foreign(
            f"a Git LFS pointer: the model itself{whole} is not in this clone",
            "fetch it with 'git lfs pull', or download it from the web page of the repository",
        )
    if re.match(rb"/?(\.git/)?annex/objects/", head) or b"/annex/objects/" in head[:256]:
        return Foreign(
            "a git-annex pointer: the model itself is not in this clone", "fetch it with 'git annex get'"
        )
    return None


def _compressed(file: _File) -> Foreign | None:
    """Streams that this Python can look into."""
    for program, magic, tar, opened in (
        ("gzip", b"\x1f\x8b", "-xzf", lambda: zlib.decompressobj(wbits=31)),
        ("bzip2", b"BZh", "-xjf", bz2.BZ2Decompressor),
        ("xz", b"\xfd7zXZ\0", "-xJf", lambda: lzma.LZMADecompressor(memlimit=256 << 20)),
    ):
        if not file.head.startswith(magic):
            continue
        inner = _first_bytes(opened, bytes(file.data[:_INNER]))
        if inner[4:8] == file.identifier:
            return Foreign(
                f"a model compressed with {program}", f"unpack it first: {program} -dc FILE > model.tflite"
            )
        if inner[257:262] == b"ustar":
            return Foreign(f"a tar archive compressed with {program}", f"unpack it first: tar {tar} FILE")
        return Foreign(f"compressed with {program}", f"unpack it first: {program} -dc FILE > model.tflite")
    return None


def _first_bytes(opened: Callable[[], object], packed: bytes) -> bytes:
    try:
        made: bytes = opened().decompress(packed, _HEAD)  # type: ignore[attr-defined]
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
        return b""
    return made


def _zip(file: _File) -> Foreign | None:
    if not file.head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return None
    name = file.name
    end = bytes(file.data[-(22 + 0xFFFF) :])
    at = end.rfind(b"PK\x05\x06")
    if 0 <= at <= len(end) - 22 and struct.unpack_from("<I", end, at + 12)[0] > _DIRECTORY:
        return Foreign("a ZIP archive of very many files", "unpack it, and name a model among them")
    try:
        with zipfile.ZipFile(_Bytes(file.data)) as archive:
            members = archive.infolist()
            models = [
                item.filename for item in members[:_MEMBERS] if _is_model(archive, item, file.identifier)
            ]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, struct.error):
        return Foreign("a damaged ZIP archive", "fetch it again; the download may not have ended")
    names = [item.filename for item in members]
    if models:
        kind = "a MediaPipe task bundle (a ZIP archive)" if name.endswith(".task") else "a ZIP archive"
        take = f"take a model out of it, such as with: unzip -p FILE {_quoted(models[0])} > model.tflite"
        if name.endswith(".task"):
            take += f"; put the rewritten one back uncompressed (zip -0), under the name {models[0]!r}"
        return Foreign(f"{kind} that holds {_some(models, 'model')}", take)
    if any(PurePath(item).name == "saved_model.pb" for item in names):
        return Foreign("a ZIP archive with a TensorFlow SavedModel", f"unpack it and {_CONVERT}")
    if "config.json" in names and any(item.endswith(".weights.h5") for item in names):
        return Foreign("a Keras model (.keras)", _CONVERT)
    if any(PurePath(item).name == "data.pkl" for item in names):
        return Foreign(
            "a PyTorch checkpoint", "convert the model, such as with litert-torch, and use what that writes"
        )
    if names and all(item.endswith(".npy") for item in names):
        return Foreign("a .npz file of NumPy arrays", "name a .tflite file; arrays go to --inputs")
    held = (
        f"{len(names)} files, none of them a model"
        if len(names) > 1
        else f"{names[0]!r} alone"
        if names
        else ""
    )
    return Foreign(f"a ZIP archive of {held}" if held else "an empty ZIP archive", _ELSEWHERE)


def _is_model(archive: zipfile.ZipFile, item: zipfile.ZipInfo, identifier: bytes) -> bool:
    if item.is_dir() or item.file_size < 8:
        return False
    try:
        with archive.open(item) as member:
            return member.read(8)[4:8] == identifier
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError, zlib.error):
        # Encrypted, or packed in a way that this Python does not know.
        return item.filename.endswith(".tflite")


class _Bytes(io.RawIOBase):
    """Mapped bytes as a file, so that no archive is copied to be looked at."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._data)}[whence]
        if start + offset < 0:
            raise OSError("a position before the start")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object, /) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        piece = self._data[self._at : self._at + len(target)]
        target[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _weights(file: _File) -> Foreign | None:
    """Formats of other frameworks that begin with a number."""
    head = file.head
    if re.match(rb"\x80[\x02-\x05]", head):
        return Foreign(
            "a Python pickle, such as PyTorch and joblib write",
            "convert the model to .tflite where it came from; never load a stranger's pickle",
        )
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < len(file.data):
        return Foreign("a safetensors file: weights without a model", _ELSEWHERE)
    return None


def _protocol_buffer(file: _File) -> Foreign | None:
    """Models of TensorFlow and ONNX: fields by number, the first one tells which."""
    head, suffix = file.head, PurePath(file.name).suffix.lower()
    if head.startswith(b"\x08\x01\x12") and b"\x0a" in head[3:16]:
        return Foreign("a TensorFlow SavedModel", f"{_CONVERT} (it takes the directory around the file)")
    if len(head) > 4 and head[0] == 8 and 2 <= head[1] <= 30 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42):
        if suffix == ".mlmodel":
            return Foreign("a Core ML model", "convert the original model to .tflite")
        if suffix == ".onnx" or re.search(rb"onnx|pytorch|torch|tf2onnx|keras2onnx|paddle|skl2", head, re.I):
            return Foreign("an ONNX model", "convert it, such as with onnx2tf, and use what that writes")
    node = re.match(rb"\x0a[\x00-\xff]{1,3}?\x0a([\x01-\x7f])([\x20-\x7e]+)", head)
    if node and len(node[2]) >= node[1][0]:
        rest = head[node.start(2) + node[1][0] :]
        if rest[:1] == b"\x12" and re.match(rb"[A-Z]\w*$", rest[2 : 2 + (rest[1] if len(rest) > 1 else 0)]):
            return Foreign("a frozen TensorFlow graph (.pb)", _CONVERT)
    return None


def _text(file: _File) -> Foreign | None:
    """Text of any kind, most often of a server that did not send the file."""
    text = _decoded(file.head)
    if text is None:
        return None
    start = text.lstrip("\ufeff \t\r\n")
    lower = start[:256].lower()
    if lower.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in lower:
        title = re.search(r"<title[^>]*>\s*([^<]{1,80})", start, re.IGNORECASE)
        called = f", titled {' '.join(title[1].split())!r}" if title else ""
        return Foreign(
            f"a web page{called}, not the model",
            "download the file itself: the link named 'raw' or 'download' on that page; it may ask to log in",
        )
    if lower.startswith(("<?xml", "<error")):
        said = re.search(r"<(code|message)>([^<]{1,80})", start, re.IGNORECASE)
        return Foreign(
            f"an XML document{f' that says {said[2]!r}' if said else ''}, such as a server answers with",
            "download the file again from its own address",
        )
    if re.match(r"[0-9a-fA-F]{6,8}:? +[0-9a-fA-F]{2}", start) and file.identifier.decode() in text[:256]:
        return Foreign("a hex dump of a model", "turn it back into bytes: xxd -r FILE model.tflite")
    if re.search(r"unsigned char|uint8_t|const char", text) and "0x" in text:
        return Foreign(
            "C source with a model as an array",
            "turn the array back into bytes: grep -oi '0x[0-9a-f][0-9a-f]' FILE | xxd -r -p > model.tflite",
        )
    if re.fullmatch(r"[A-Za-z0-9+/=\s]+", start[:64]) and _base64(start[:64])[4:8] == file.identifier:
        return Foreign("a model as base64 text", "turn it back into bytes: base64 -d FILE > model.tflite")
    kind = "JSON" if start[:1] in ("{", "[") and re.match(r"[{\[]\s*([\"{\[}\]]|-?\d)", start) else "text"
    line = next(iter(start.splitlines()), "").strip()[:60]
    count = len(file.data)
    short = f"{count:,} bytes of {kind}" if count > 1 else f"one byte of {kind}"
    begins = f" that begins with {line!r}" if line else ""
    return Foreign(f"{short}{begins}", "download the model again, or name a .tflite file")


def _decoded(head: bytes) -> str | None:
    """Returns text, or None where bytes are no text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        wide = head[: len(head) // 2 * 2].decode("utf-16", "replace").lstrip("\ufeff")
        return wide if all(char.isprintable() or char.isspace() for char in wide) else None
    for cut in range(4):
        # The last character may be cut in two.
        try:
            text = head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return None if re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", text) else text
    return None


def _base64(text: str) -> bytes:
    packed = "".join(text.split())
    try:
        return base64.b64decode(packed[: len(packed) // 4 * 4])
    except (ValueError, binascii.Error):
        return b""


def _within(file: _File) -> Foreign | None:
    """A model behind a header of another format."""
    start = bytes(file.data[:_INNER])
    at = 4
    while (at := start.find(file.identifier, at + 1)) >= 0:
        root = struct.unpack_from("<I", start, at - 4)[0]
        if 8 <= root < len(file.data) - at and root % 4 == 0:
            return Foreign(
                f"of an unknown kind, with what looks like a model from byte {at - 4} on",
                f"take it out: tail -c +{at - 3} FILE > model.tflite",
            )
    return None


def _zeros(file: _File) -> Foreign | None:
    if file.head.strip(b"\0"):
        return None
    count = f"{len(file.data):,} bytes"
    whole = (
        f"{count} of zeros"
        if not bytes(file.data[-_HEAD:]).strip(b"\0")
        else f"{count} that begin with zeros"
    )
    return Foreign(whole, "fetch it again; the download or the disk failed")


def _unknown(file: _File) -> Foreign:
    head = file.head
    if len(head) < 8:
        count = f"{len(head)} byte{'' if len(head) == 1 else 's'}"
        return Foreign(
            f"{count} long, too few for a model", "fetch it again; the download may not have ended"
        )
    found = head[4:8]
    if re.fullmatch(rb"[A-Za-z0-9_]{4}", found):
        return Foreign(
            f"a FlatBuffer with the identifier {found.decode()!r}; a model has {file.identifier.decode()!r}",
            "it belongs to another program, or is damaged",
            4,
        )
    if _is_flatbuffer(file.data):
        return Foreign(
            f"a FlatBuffer without an identifier; a model has {file.identifier.decode()!r} at bytes 4 to 8",
            "it belongs to another program, or whoever wrote it left the identifier out; runtimes refuse it",
            4,
        )
    return Foreign(
        f"of an unknown kind: its bytes 4 to 8 are {found!r}, those of a model are {file.identifier!r}",
        "it may be encrypted, packed or damaged; look where it comes from",
        4,
    )


def _is_flatbuffer(data: memoryview) -> bool:
    """Whether the first bytes lead to a table, and that one to a list of fields."""
    root = struct.unpack_from("<I", data)[0]
    if root % 4 or not 4 <= root <= len(data) - 4:
        return False
    fields = root - struct.unpack_from("<i", data, root)[0]
    if fields % 2 or not 4 <= fields <= len(data) - 4 or fields == root:
        return False
    length, nbytes = struct.unpack_from("<HH", data, fields)
    return bool(length % 2 == 0 and 4 <= length <= 256 and nbytes >= 4 and root + nbytes <= len(data))


def _some(names: list[str], what: str) -> str:
    shown = ", ".join(repr(item) for item in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the {what}{'' if len(names) == 1 else 's'} {shown}{more}"


def _quoted(name: str) -> str:
    import shlex

    return shlex.quote(name)


def recognize_folder(path: str) -> Foreign:
    """Says what a folder is that was given in place of a model."""
    try:
        names = sorted(item.name for item in Path(path).iterdir())
    except OSError:
        names = []
    if "saved_model.pb" in names:
        return Foreign("the directory of a TensorFlow SavedModel", _CONVERT)
    if "manifest.json" in names:
        return Foreign(
            "a directory, perhaps of a model in parts",
            "join it: tfl-rewrite join FILE/manifest.json model.tflite",
        )
    models = [item for item in names if item.endswith(".tflite")]
    if models:
        return Foreign(
            f"a directory that holds {_some(models, 'model')}", "name one of its models; batch takes many"
        )
    return Foreign("a directory", _ELSEWHERE)
