"""Which files, to where, and what tells whether one is done already."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Any

from tfl_rewrite import __version__
from tfl_rewrite.batch.config import BatchConfig, Settings
from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.files.atomic import PLAIN, access_of
from tfl_rewrite.files.claims import Claim, check_shared

HOME = ".tfl-rewrite-batch"
"""Folder in the output folder: what is done, work in progress, and reports."""

STATE = "state.jsonl"
"""File in :data:`HOME`: rows of files that are done."""

ROWS = "rows"
"""Folder in :data:`HOME`: rows of jobs that have ended, until the batch has taken them down."""

SUMMARIES = ("summary.json", "summary.csv")

_MAGIC = "*?["


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One file to rewrite; plain data.

    Attributes:
        name: Path below the folder of inputs, which is also the path below the output folder.
        key: Names the work: hash of the input, the settings, the real inputs and the program's version.
        home: Absolute path of :data:`HOME`.
        replace: SHA-256 of an output that may be replaced: one of an earlier batch; empty for none.
    """

    name: str
    source: str
    target: str
    key: str
    home: str
    settings: Settings
    force: bool = False
    replace: str = ""

    @property
    def work(self) -> Path:
        """Where its output is made."""
        return Path(self.home) / "work" / self.key

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**values, "settings": self.settings.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        """Reads :meth:`to_dict`."""
        settings = Settings().changed(data["settings"], "job")
        return cls(**{**data, "settings": settings})


def plan(config: BatchConfig, *, force: bool = False) -> list[Job]:
    """Finds the files of a batch; in order of their names.

    Raises:
        UsageError: There is none, two would become the same output, or an output would replace an input.
        FileAccessError: A file cannot be read.
    """
    found, inside = _find(config)
    if not found:
        patterns = ", ".join(config.inputs)
        if inside:
            count = "the file" if inside == 1 else f"all {inside:,} files"
            raise UsageError(
                f"{count} that {patterns} names lie{'s' * (inside == 1)} in the output folder "
                f"{config.folder}",
                remedy="use another --out",
            )
        raise UsageError(f"no file matches {patterns}", remedy="check the patterns")
    sources = {os.path.realpath(source) for source, _ in found}
    home, targets, jobs = config.folder / HOME, dict[str, str](), []
    reads = [Claim("the configuration", os.fspath(config.file))] if config.file is not None else []
    writes = [Claim("the state of the batch", os.fspath(home / STATE))]
    writes += [Claim("the summary", os.fspath(config.folder / name)) for name in SUMMARIES]
    for source, name in sorted(found, key=lambda item: item[1]):
        settings = _settings(config, name)
        if settings is None:
            continue
        target = config.folder / name
        real = os.path.realpath(target)
        if real in targets:
            raise UsageError(
                f"two inputs would become {name}: {targets[real]} and {source}",
                remedy="give folders whose paths differ, or write two batches",
            )
        if real in sources:
            raise UsageError("is an input, and would be an output", file=source, remedy="use another --out")
        targets[real] = str(source)
        settings = _with_inputs(settings, config.base, source)
        reads += [Claim("a model", os.fspath(source))]
        reads += [Claim("inputs", str(text)) for text in settings.judging.inputs]
        reads += [Claim("holdout", str(text)) for text in settings.judging.holdout]
        writes.append(Claim("an output", os.fspath(target)))
        job = Job(
            name=name,
            source=str(source),
            target=str(target),
            key=_key(source, name, settings),
            home=str(home),
            settings=settings,
            force=force,
        )
        jobs.append(job)
    check_shared(reads, writes, force=force)
    return jobs


def access_to(jobs: Iterable[Job]) -> int:
    """Returns who may read and write what tells of all models: who may do so with each of them."""
    access = PLAIN
    for job in jobs:
        access &= access_of(job.source)
    return access


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Returns the hash of a file.

    Raises:
        FileAccessError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise FileAccessError(f"cannot read: {error.strerror or error}", file=path) from error
    return digest.hexdigest()


def _find(config: BatchConfig) -> tuple[list[tuple[Path, str]], int]:
    """Finds the files of the patterns, those in the output folder left out: they may be earlier outputs.

    Returns:
        Each file once, with its path below the folder that its pattern starts from; and how many were left
        out.
    """
    matched = {text: _matching(config.base, text) for text in config.inputs if _is_pattern(text)}
    plain = []
    for text in config.inputs:
        path = config.base / text
        if text not in matched or (not matched[text][1] and _type_of(path)):
            plain.append(path)
    for path in plain:
        if _type_of(path) == stat.S_IFDIR:
            pattern = path / "**" / "*.tflite"
            raise UsageError("is a folder", file=path, remedy=f"name the files in it: '{pattern}'")
        if _type_of(path) != stat.S_IFREG:
            raise UsageError("no such file", file=path, remedy="check the path")
    roots = [_absolute(path).parent for path in plain]
    shared = Path(os.path.commonpath(roots)) if roots else Path()
    rows: list[tuple[Path, Path]] = [(path, shared) for path in plain]
    for start, matches in matched.values():
        rows += [(path, _absolute(start)) for path in matches]
    found: dict[Path, str] = {}
    inside: set[Path] = set()
    for path, start in rows:
        path = _absolute(path)
        if config.folder in path.parents:
            inside.update([path] if path.is_file() else [])
        elif path not in found and path.is_file():
            found[path] = path.relative_to(start).as_posix()
    return list(found.items()), len(inside)


def _plain(text: str) -> PurePath:
    """Returns a pattern that says "any depth" once where it says so several times in a row."""
    parts: list[str] = []
    for part in PurePath(text).parts:
        if part != "**" or parts[-1:] != ["**"]:
            parts.append(part)
    return PurePath(*parts)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100


def _type_of(path: Path) -> int:
    """Returns what is there, as ``stat.S_IFMT`` does; 0 for nothing, or where no name is so long."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return 0


def _is_pattern(text: str) -> bool:
    return any(char in text for char in _MAGIC)


def _matching(base: Path, text: str) -> tuple[Path, list[Path]]:
    """Returns the folder that a pattern starts from, and what it matches.

    Names of folders may look like a pattern: where nothing is matched, those that exist stand for themselves.
    """
    for literally in (False, True):
        start, parts = base, list(_plain(text).parts)
        while parts[1:] and (
            not _is_pattern(parts[0]) or (literally and _type_of(start / parts[0]) == stat.S_IFDIR)
        ):
            start /= parts.pop(0)
        found = glob.glob(str(PurePath(*parts)), root_dir=start, recursive=True)  # noqa: PTH207
        if found:
            break
    return start, [start / name for name in found]


def _settings(config: BatchConfig, name: str) -> Settings | None:
    settings = config.settings
    for item in config.overrides:
        names = (name, PurePath(name).name)
        if item.match in names or any(fnmatch.fnmatchcase(each, item.match) for each in names):
            if item.skip:
                return None
            settings = settings.changed(item.values, f"settings for {item.match!r}")
    return settings


def _with_inputs(settings: Settings, base: Path, source: Path) -> Settings:
    """Fills in the placeholders of real inputs; those that name no file are left out, if that is allowed."""
    filled = {}
    for name in ("inputs", "holdout"):
        paths: Iterable[Path] = [base / text for text in settings.paths_of(name, source)]
        if settings.missing_inputs == "made":
            paths = [path for path in paths if path.exists()]
        filled[name] = [str(_absolute(path)) for path in paths]
    return settings.changed(filled, "inputs")


def _key(source: Path, name: str, settings: Settings) -> str:
    files = [source]
    for text in (*settings.judging.inputs, *settings.judging.holdout):
        path = Path(text)
        files += sorted(path.rglob("*.npz")) if path.is_dir() else [path] if path.is_file() else []
    facts = {
        "version": __version__,
        "name": name,
        "settings": settings.to_dict(),
        "files": [[str(path) if path != source else "", sha256_of(path)] for path in files],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
