"""The Kotlin of the docs, compiled and run against parts of a model.

``TFL_REWRITE_KOTLIN`` names a folder with the jars of a Kotlin compiler and of
Android's ``org.json``; ``java`` and ``javac`` must be at hand. Without it only the text is looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import tfl_rewrite
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.shards.settings import ShardOptions

from ..helpers import ROOT
from .serving import serve

PAGE = ROOT / "docs" / "shards.md"
JARS = os.environ.get("TFL_REWRITE_KOTLIN")
MOST_LINES = 84

CONTEXT = """package android.content;
public class Context {
    public java.io.File getNoBackupFilesDir() { return new java.io.File(System.getProperty("user.dir")); }
}
"""
MAIN = """
fun main(arguments: Array<String>) {
    val map = openModel(android.content.Context(), arguments[0], arguments[1])
    val digest = MessageDigest.getInstance("SHA-256").apply { update(map) }.digest()
    print(digest.joinToString("") { "%02x".format(it) })
}
"""


def kotlin() -> str:
    (code,) = re.findall(r"```kotlin\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


def test_it_is_as_short_as_promised() -> None:
    lines = [line for line in kotlin().splitlines() if line.strip() and not line.startswith("import ")]
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 120


Run = Callable[[Path, str, str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    if JARS is None:
        pytest.skip("TFL_REWRITE_KOTLIN names no folder with a Kotlin compiler")
    folder = tmp_path_factory.mktemp("kotlin")
    (folder / "Context.java").write_text(CONTEXT)
    subprocess.run(["javac", "-d", folder, folder / "Context.java"], check=True)
    (folder / "Model.kt").write_text(kotlin() + MAIN)
    jars = sorted(map(str, Path(JARS).rglob("*.jar")))
    path = ":".join([str(folder), *(jar for jar in jars if "stdlib" in jar or "json" in Path(jar).name)])
    compiler = ["java", "-cp", ":".join(jars), "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib"]
    subprocess.run(
        [*compiler, "-no-reflect", "-cp", path, "-d", folder, folder / "Model.kt"], check=True, timeout=300
    )

    def start(place: Path, url: str, sha256: str) -> subprocess.CompletedProcess[str]:
        place.mkdir(exist_ok=True)
        return subprocess.run(
            ["java", "-cp", path, "ModelKt", url, sha256],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return start


@pytest.mark.slow
def test_it_downloads_checks_and_maps(run: Run, fixtures: Path, tmp_path: Path) -> None:
    model = fixtures / "mtcnn_rnet.tflite"
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    parts, place = tmp_path / "parts", tmp_path / "app"
    tfl_rewrite.shard(model, parts, ShardOptions(max_size=32 << 10, compress="gzip"))
    last = json.loads((parts / "manifest.json").read_text())["parts"][-1]["name"]
    whole = (parts / last).read_bytes()
    with serve(parts) as server:
        url = f"{server.url}/manifest.json"
        assert "of another model" in run(place, url, "0" * 64).stderr
        for body in (whole[:-90], whole[:60] + b"damage" + whole[66:]):
            # The server says how long the whole is, as one does whose connection breaks.
            answer = (200, {"Content-Length": str(len(whole))}, body)
            server.answer = lambda path, answer=answer: answer if path.endswith(last) else None  # type: ignore[misc]
            assert run(place, url, sha256).returncode
            assert not list(place.glob("*.tflite"))
        server.answer = lambda path: None
        server.asked.clear()
        assert run(place, url, sha256).stdout == sha256
        assert set(server.asked) == {"/manifest.json", f"/{last}"}
        assert [path.name for path in place.iterdir()] == [f"{sha256}.tflite"]
        assert (place / f"{sha256}.tflite").read_bytes() == model.read_bytes()
        server.asked.clear()
        assert run(place, url, sha256).stdout == sha256
        assert not server.asked


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mtcnn_rnet", "digits_cnn_float16"])
def test_the_base_comes_first(run: Run, name: str, fixtures: Path, tmp_path: Path) -> None:
    model, parts, place = fixtures / f"{name}.tflite", tmp_path / "parts", tmp_path / "app"
    options = ShardOptions(progressive=True, max_size="512KiB")
    report = tfl_rewrite.shard(model, parts, options, judging=Judging(mode="off"))
    assert report.base is not None
    data = json.loads((parts / "manifest.json").read_text())
    of_base = {f"/{data['parts'][row[0]]['name']}" for row in data["base"]["layout"]}
    with serve(parts) as server:
        url = f"{server.url}/manifest.json"
        assert run(place, url, report.base.sha256).stdout == report.base.sha256
        assert {*server.asked} == {"/manifest.json", *of_base}
        server.asked.clear()
        assert run(place, url, report.sha256).stdout == report.sha256
        assert not of_base & {*server.asked} and len(server.asked) > 1
        # Without the base it is fetched first; what is left of a weight must be what it was.
        for file in place.iterdir():
            file.unlink()
        assert run(place, url, report.sha256).stdout == report.sha256
        names = {f"{report.sha256}.tflite", f"{report.base.sha256}.tflite"}
        assert {path.name for path in place.iterdir()} == names
        assert (place / f"{report.sha256}.tflite").read_bytes() == model.read_bytes()
        (place / f"{report.sha256}.tflite").unlink()
        row = max((item for item in data["layout"] if len(item) == 9), key=lambda item: item[2])
        for at, value in ((2, row[2] * 2), (3, row[3] + 1), (4, 1 << 40), (0, 99)):
            wrong = [*row]
            wrong[at] = value
            changed = [wrong if item == row else item for item in data["layout"]]
            body = json.dumps({**data, "layout": changed}).encode()
            server.answer = lambda path, body=body: (200, {}, body) if "manifest" in path else None  # type: ignore[misc]
            assert run(place, url, report.sha256).returncode
            assert not (place / f"{report.sha256}.tflite").exists()
