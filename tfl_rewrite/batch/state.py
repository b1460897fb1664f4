"""What a batch keeps in its output folder: a row of each file that ended; nothing through a link."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from tfl_rewrite.batch.plan import HOME, ROWS, STATE
from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.files.atomic import PLAIN, nameless_file
from tfl_rewrite.work import leads_to, lock, opened_folder


@contextlib.contextmanager
def folder_below(out: Path, below: str | PurePath) -> Iterator[int]:
    """Opens a folder below the output folder; what is missing of it is made.

    Args:
        out: The output folder, which the user named; it may be a link.
        below: Its path from there.

    Yields:
        A descriptor. What is done by it is done in that folder, whatever has its name meanwhile.

    Raises:
        UsageError: A part of the path is a link, or no folder.
        OSError: The system refuses.
    """
    folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = out
        for part in PurePath(below).parts:
            path = path / part
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=folder)
            try:
                inner = opened_folder(part, folder=folder)
            except NotADirectoryError:
                raise UsageError(
                    "is a link or no folder, and nothing is written through links",
                    file=path,
                    remedy="remove it, or use another --out",
                ) from None
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def write_below(out: Path, below: str | PurePath, data: bytes, *, access: int = PLAIN) -> None:
    """Writes a file below the output folder, whole and in one step; one that is there is replaced.

    Args:
        out: As for :func:`folder_below`.
        below: The file's path from there.
        data: All of it.
        access: As for :func:`tfl_rewrite.files.atomic.nameless_file`.

    Raises:
        UsageError: See :func:`folder_below`.
        FileAccessError, OSError: It cannot be written.
    """
    path = PurePath(below)
    with folder_below(out, path.parent) as folder:
        place = out / path.parent
        with nameless_file(place, nbytes=len(data), access=access, opened=folder) as file:
            file.sink.write_at(data, 0)
            file.publish(out / path, force=True)


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
        self._summaries: set[str] = set()

    def done(self, key: str) -> dict[str, Any] | None:
        """Returns the row of a job that ended well, or None."""
        return self._by_key.get(key)

    def made(self, name: str) -> str:
        """Returns the hash of the last output of that name, or nothing."""
        return str(self._by_name.get(name, {}).get("sha256", ""))

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a row; it is on disk when this returns."""
        self._keep(row)
        self._forget(f"{row['key']}.json")

    def summarizes(self, sha256: str) -> bool:
        """Whether a batch wrote a summary with that hash here."""
        return sha256 in self._summaries

    def add_summary(self, sha256: str) -> None:
        """Keeps the hash of a summary, before it is written: who takes over must know it."""
        if sha256 not in self._summaries:
            self._keep({"summary": sha256})

    def _keep(self, row: dict[str, Any]) -> None:
        self._note(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _forget(self, name: str) -> None:
        """Removes a row that a job left."""
        with (
            contextlib.suppress(FileNotFoundError),
            folder_below(self.home.parent, PurePath(self.home.name, ROWS)) as rows,
        ):
            os.unlink(name, dir_fd=rows)

    def _note(self, row: dict[str, Any]) -> None:
        if "summary" in row:
            self._summaries.add(str(row["summary"]))
        if row.get("status") in DONE and row.get("sha256"):
            self._by_key[str(row["key"])] = row
            self._by_name[str(row["name"])] = row

    def read(self) -> None:
        """Reads what is there; a line that was cut off by a crash counts for nothing."""
        self._file.seek(0)
        text = self._file.read()
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                self._note(json.loads(line))
        if text and not text.endswith("\n"):
            self._file.write("\n")
        # Of jobs that ended after the batch that started them was killed.
        for place in sorted((self.home / ROWS).glob("*.json")):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                self._keep(json.loads(place.read_text(encoding="utf-8", errors="replace")))
                self._forget(place.name)


@contextlib.contextmanager
def open_state(out: Path, access: int = PLAIN) -> Iterator[State]:
    """Opens the state of an output folder, which is made if missing; one program at a time.

    Args:
        out: The folder.
        access: Who may read and write it, less the umask; one that is there gets no more open than that.

    Raises:
        UsageError: Another batch is writing there, or it is no folder.
        FileAccessError: It cannot be written.
    """
    home = out / HOME
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out, access) as file:
            # What a killed run left behind.
            shutil.rmtree(home / "work", ignore_errors=True)
            with folder_below(out, PurePath(HOME, ROWS)):
                pass  # It is a folder.
            for old in home.glob("stop-*"):
                old.unlink(missing_ok=True)
            state = State(home, file)
            state.read()
            yield state
    except FileExistsError as error:
        raise UsageError("is not a folder", file=out, remedy="use another --out") from error
    except OSError as error:
        raise FileAccessError.of_writing(error, out) from error


@contextlib.contextmanager
def _locked(out: Path, access: int) -> Iterator[IO[str]]:
    """Opens the file of the state, and nobody else does until it is closed.

    Raises:
        UsageError: Somebody has, or it is a link.
        OSError: It cannot be opened.
    """
    while True:
        with folder_below(out, HOME) as home:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                descriptor = os.open(STATE, flags, access | 0o600, dir_fd=home)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise UsageError(
                    "is a link", file=out / HOME / STATE, remedy="remove it, or use another --out"
                ) from None
            with open(descriptor, "a+", encoding="utf-8", errors="replace") as file:
                if not lock(descriptor, without=True):
                    raise UsageError(
                        "another batch is writing there", file=out, remedy="wait, or use another --out"
                    )
                if leads_to(STATE, descriptor, folder=home):
                    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
                    if mode & ~(access | 0o600):
                        # What it holds tells of all models, those of earlier runs among them.
                        os.fchmod(descriptor, mode & (access | 0o600))
                    yield file
                    return
            # Somebody removed it meanwhile.
