"""A place where the program is run and something goes wrong, and what must hold afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..helpers import FIXTURES

PROGRAM = [sys.executable, "-m", "tfl_rewrite"]
# Without running anything where the fault lies before or after that: the matrix has many cells.
QUICK = ("quantize-weights", "--scheme", "dequantize", "--verify", "off")
# With a verdict, which the model passes in this scheme: nothing is stored finer, the file is the same.
JUDGED = ("quantize-weights", "--scheme", "dequantize")


@dataclass
class Place:
    """Folders for the input, the output and temporary files.

    Attributes:
        before: Content of the output if it existed at first.
    """

    root: Path
    model: str = "mtcnn_rnet.tflite"
    before: bytes | None = None
    kept: bytes = field(init=False)

    def __post_init__(self) -> None:
        for folder in (self.inputs, self.outputs, self.scratch):
            folder.mkdir(exist_ok=True)
        shutil.copy(FIXTURES / self.model, self.source)
        self.kept = self.source.read_bytes()

    @property
    def inputs(self) -> Path:
        return self.root / "in"

    @property
    def outputs(self) -> Path:
        return self.root / "out"

    @property
    def scratch(self) -> Path:
        return self.root / "tmp"

    @property
    def source(self) -> Path:
        return self.inputs / "model.tflite"

    @property
    def target(self) -> Path:
        return self.outputs / "made.tflite"

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.scratch), **more}

    def start(self, *arguments: str | bytes | Path, **more: Any) -> subprocess.Popen[bytes]:
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": self.environment(),
            **more,
        }
        return subprocess.Popen([*PROGRAM, *arguments], **settings)

    def run(self, *arguments: str | bytes | Path, **more: Any) -> subprocess.CompletedProcess[bytes]:
        piped = more.pop("input", None)
        if piped is not None:
            more["stdin"] = subprocess.PIPE
        with self.start(*arguments, **more) as process:
            stdout, stderr = process.communicate(piped, timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def rewrite(self, *more: str | Path, **settings: Any) -> subprocess.CompletedProcess[bytes]:
        return self.run(*QUICK, self.source, self.target, *more, **settings)

    def check(
        self,
        done: subprocess.CompletedProcess[bytes] | None,
        code: int | tuple[int, ...],
        words: str = "",
        *,
        whole: bytes | None = None,
    ) -> None:
        """What holds after each fault.

        Args:
            done: The run, or None if it was killed.
            code: Its exit code.
            words: What it must have said.
            whole: What the output may be besides absent, or as it was before.
        """
        if done is not None:
            codes = (code,) if isinstance(code, int) else code
            said = done.stderr.decode("utf-8", "replace")
            assert done.returncode in codes, (done.returncode, said)
            assert "Traceback" not in said and words in said, said
            if done.returncode not in (0, 130, 143):
                lines = [line for line in said.splitlines() if "error:" in line]
                assert len(lines) == 1, said
        assert self.source.read_bytes() == self.kept
        allowed = [self.before] if whole is None else [self.before, whole]
        content = self.target.read_bytes() if self.target.is_file() else None
        assert content in allowed
        assert self.left() == []

    def left(self) -> list[str]:
        """What lies about that nobody asked for."""
        asked = {self.source, self.target}
        found = [*self.inputs.iterdir(), *self.outputs.iterdir(), *self.scratch.iterdir()]
        return sorted(str(path.relative_to(self.root)) for path in found if path not in asked)
