"""What a user's type checker and a reader of the docs meet: typed names, and programs that run."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tfl_rewrite

CLIENT = Path(__file__).with_name("client.py")


def test_the_client_uses_every_public_name() -> None:
    nodes = list(ast.walk(ast.parse(CLIENT.read_text("utf-8"))))
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tfl"
    }
    assert used == set(tfl_rewrite.__all__)
    imported = {
        node.module: {alias.name for alias in node.names}
        for node in nodes
        if isinstance(node, ast.ImportFrom)
    }
    for room in tfl_rewrite.ROOMS:
        module = getattr(tfl_rewrite, room)
        assert imported[module.__name__] >= set(getattr(module, "__all__", ()))


@pytest.mark.slow
def test_the_client_passes_a_strict_type_checker(tmp_path: Path) -> None:
    """Types are those of the package as it is installed, which ``py.typed`` offers."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--follow-imports=silent", "--ignore-missing-imports", str(CLIENT)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_blocks_of_the_docs_run(
    root: Path, fixtures: Path, few: Path, tmp_path: Path, page: str
) -> None:
    shutil.copy(fixtures / "digits_cnn.tflite", tmp_path / "model.tflite")
    shutil.copy(few, tmp_path / "inputs.npz")
    text = (root / page).read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    # What the text around a block says that the reader has.
    blocks.insert(0, "import numpy\nimages = numpy.zeros((2, 8, 8, 1), numpy.float32)\n")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RATIO = re.compile(r"(-?\d+\.\d+) dB")


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize("page", ["README.md", "docs/batch.md", "docs/doctor.md", "docs/passes.md"])
def test_console_blocks_of_the_docs_print_what_they_show(
    root: Path, fixtures: Path, tmp_path: Path, page: str
) -> None:
    shutil.copytree(fixtures, tmp_path / "fixtures")
    blocks = BLOCK.findall((root / page).read_text("utf-8"))
    for text in [text for kind, text in blocks if kind == "toml"]:
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text)
    shown = [text for kind, text in blocks if kind == "console"]
    assert shown
    for text in shown:
        commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        for command in commands:
            program, *words = shlex.split(command)
            tool = Path(sys.executable).parent / program
            done = subprocess.run(
                [tool, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
            )
        # What the last command prints; those before it are preparations.
        expected = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("$ "))
        printed = done.stdout.replace(str(tmp_path), "/home/me")
        assert RATIO.sub("dB", printed) == RATIO.sub("dB", expected), done.stderr
        # Kernels of other machines add in another order.
        ratios = [[*map(float, RATIO.findall(each))] for each in (printed, expected)]
        assert ratios[0] == pytest.approx(ratios[1], abs=0.11)
