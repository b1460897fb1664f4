"""A child process that is asked in lines of JSON, and answers in such.

Who asks knows what the answers mean; here is how it starts, is heard, and ends with all that it started.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from .memory import MemoryWatch

START_SECONDS = 180.0
"""Importing the runtime; TensorFlow on a busy machine takes half a minute."""


class Child:
    """A process that leads a group of its own.

    Args:
        command: What to start.
        stderr: The file that its standard error is added to.
        watch: Of its memory; it begins with `watch_memory`.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, command: Sequence[str], stderr: Path, watch: MemoryWatch) -> None:
        self._watch = watch
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with open(stderr, "ab") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment,
                start_new_session=True,
            )
        # A queue for each process: what a killed one still had to say must not pass for an answer.
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        try:
            threading.Thread(target=_read, args=(self._process.stdout, self._messages), daemon=True).start()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Number of the process, and of its group."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the system says so; the end of its messages may be known before."""
        return self._process.poll() is not None

    def watch_memory(self) -> None:
        """Begins to watch its memory."""
        self._watch.add(self.pid)

    def ask(self, request: dict[str, Any]) -> None:
        """Sends a request. If the process has died meanwhile, the end of its messages says so."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass

    def message(self, seconds: float) -> dict[str, Any] | None:
        """Waits for the next message; None is the end of them.

        Raises:
            TimeoutError: There was none in time.
        """
        try:
            return self._messages.get(timeout=max(0.0, min(seconds, threading.TIMEOUT_MAX)))
        except queue.Empty:
            raise TimeoutError from None

    def wait(self, seconds: float) -> int | None:
        """Returns the exit code; None if it has not ended in time. Its memory is no longer watched."""
        self._watch.remove(self.pid)
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Ends the process and whatever it started."""
        self._watch.remove(self.pid)
        # Once it has been waited for, its number may be somebody else's.
        if self._process.returncode is None:
            try:
                os.killpg(self.pid, signal.SIGKILL) if hasattr(os, "killpg") else self._process.kill()
            except (ProcessLookupError, PermissionError):
                pass
        self._process.wait()
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
        except OSError:
            pass


def _read(stream: IO[bytes], messages: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    with stream:
        for line in stream:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict):
                messages.put(message)
    messages.put(None)
