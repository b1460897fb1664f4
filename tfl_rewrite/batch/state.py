"""What earlier runs of a batch did: one JSON line for each file that ended, appended as it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tfl_rewrite.batch.plan import HOME, ROWS
from tfl_rewrite.errors import FileAccessError, UsageError

DONE = ("rewritten", "unchanged")


class State:
    """The rows of earlier runs, by key and by name.

    Attributes:
        home: The folder that it is kept in.
    """

    def __init__(self, home: Path, file: IO[str]) -> None:
        self.home = home
        self._file = file
        self._by_key: dict[str, dict[str, Any]] = {}
        self._by_name: dict[str, dict[str, Any]] = {}

    def done(self, key: str) -> dict[str, Any] | None:
        """Returns the row of a job that ended well, or None."""
        return self._by_key.get(key)

    def made(self, name: str) -> str:
        """Returns the hash of the last output of that name, or nothing."""
        return str(self._by_name.get(name, {}).get("sha256", ""))

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a row; it is on disk when this returns."""
        self._note(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        (self.home / ROWS / f"{row['key']}.json").unlink(missing_ok=True)

    def _note(self, row: dict[str, Any]) -> None:
        if row.get("status") in DONE and row.get("sha256"):
            self._by_key[str(row["key"])] = row
            self._by_name[str(row["name"])] = row

    def read(self) -> None:
        """Reads what is there; a line that was cut off by a crash counts for nothing."""
        self._file.seek(0)
        text = self._file.read()
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                self._note(json.loads(line))
        if text and not text.endswith("\n"):
            self._file.write("\n")
        # Of jobs that ended after the batch that started them was killed.
        for place in sorted((self.home / ROWS).glob("*.json")):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                self.add(json.loads(place.read_text(encoding="utf-8", errors="replace")))


@contextlib.contextmanager
def open_state(out: Path) -> Iterator[State]:
    """Opens the state of an output folder, which is made if missing; one program at a time.

    Raises:
        UsageError: Another batch is writing there, or it is no folder.
        FileAccessError: It cannot be written.
    """
    home = out / HOME
    try:
        home.mkdir(parents=True, exist_ok=True)
        with open(home / "state.jsonl", "a+", encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    "another batch is writing there", file=out, remedy="wait, or use another --out"
                ) from None
            # What a killed run left behind.
            shutil.rmtree(home / "work", ignore_errors=True)
            for old in home.glob("stop-*"):
                old.unlink(missing_ok=True)
            state = State(home, file)
            state.read()
            yield state
    except FileExistsError as error:
        raise UsageError("is not a folder", file=out, remedy="use another --out") from error
    except OSError as error:
        raise FileAccessError(f"cannot write: {error.strerror or error}", file=out) from error
