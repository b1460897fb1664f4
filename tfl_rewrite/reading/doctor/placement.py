"""Checks of where bytes lie: beside the FlatBuffer, beside the file, in the ZIP, twice, or for nothing."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tfl_rewrite.editing.base import Context
from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.files.source import Source, origin_of
from tfl_rewrite.flatbuf.record import misaligned
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.passes.repair import unaligned
from tfl_rewrite.reading.doctor.associated import associated_files
from tfl_rewrite.reading.doctor.kinds import Finding


def check(model: Model) -> Iterator[Finding]:
    """Yields what is wrong with the file as a container, and what could be smaller.

    Args:
        model: Changed by the last of the checks: nothing else may look at it afterwards.
    """
    origin = origin_of(model)
    assert origin is not None
    outside = [buffer for buffer in model.buffers if buffer.outside and buffer.nbytes]
    if outside:
        detail = f"{len(outside)} buffers, {sum(buffer.nbytes for buffer in outside)} bytes"
        yield Finding("offset-buffers", "buffers", detail, repairable=True)
    yield from _external(model, Path(origin.container.path))
    yield from _zip(model, origin)
    vectors = misaligned(origin.root)
    if vectors:
        place, offset = vectors[0]
        more = f", and {len(vectors) - 1} more" if len(vectors) > 1 else ""
        yield Finding("misaligned", place, f"at offset {offset}{more}", repairable=not origin.refusals)
    askew = unaligned(model)
    if askew:
        yield Finding("unaligned", "buffers", f"{askew} constants", repairable=not origin.refusals)
    if origin.dead:
        count = sum(stop - start for start, stop in origin.dead)
        where = f"bytes {origin.dead[0][0]} to {origin.dead[-1][1]}"
        advice = (
            "cut them off if nothing needs them; tfl-rewrite refuses to move them" if origin.refusals else ""
        )
        yield Finding("dead-bytes", where, f"{count} bytes", saves=count, advice=advice)
    for refusal in origin.refusals:
        yield Finding("fixed-in-place", refusal.where or "the file", refusal.what)
    if not origin.refusals:
        yield from _waste(model)


def _external(model: Model, path: Path) -> Iterator[Finding]:
    used = {id(tensor.external) for subgraph in model.subgraphs for tensor in subgraph.tensors}
    slices = [item for item in model.external_buffers if id(item) in used]
    if not slices:
        return
    ends: dict[str, int] = {}
    for item in slices:
        name = item.group.name or ""
        ends[name] = max(ends.get(name, 0), item.offset + item.nbytes)
    names = ", ".join(repr(name) for name in ends)
    yield Finding("external-buffers", "external_buffers", f"{len(slices)} slices of {names}")
    for name, end in ends.items():
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            yield Finding("external-missing", "external_buffer_groups", f"{name!r} is no plain file name")
            continue
        try:
            size = os.path.getsize(path.parent / name)  # noqa: PTH202
        except OSError as error:
            yield Finding("external-missing", "external_buffer_groups", f"{name!r}: {error.strerror}")
            continue
        if size < end:
            detail = f"{name!r} has {size} bytes, the model reads up to {end}"
            yield Finding("external-missing", "external_buffer_groups", detail)


def _zip(model: Model, origin: Source) -> Iterator[Finding]:
    members: dict[str, int] = {}
    if origin.tail is not None:
        try:
            with zipfile.ZipFile(io.BytesIO(origin.tail.moved(0))) as archive:
                members = {item.filename: item.compress_type for item in archive.infolist()}
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            yield Finding("zip-member", "ZIP", f"the archive cannot be read: {error}")
            return
        if members and not origin.tail.absolute:
            yield Finding("zip-offsets", "ZIP", f"its first byte is at {origin.tail.offset} of the file")
        if not members:
            yield Finding("zip-empty", "ZIP", f"{origin.tail.nbytes} bytes", saves=origin.tail.nbytes)
    for name, method in members.items():
        if method != zipfile.ZIP_STORED:
            yield Finding("zip-compressed", f"ZIP {name}", f"compression method {method}")
    entry = model.metadata_named("TFLITE_METADATA")
    if entry is None or entry.buffer.blob is None:
        return
    try:
        named = associated_files(bytes(entry.buffer.blob.view()))
    except ValueError as error:
        yield Finding("zip-member", "metadata TFLITE_METADATA", f"it cannot be read: {error}")
        return
    for name in named:
        if name not in members:
            held = ", ".join(repr(item) for item in members) or "nothing"
            detail = f"{name!r} is not in the ZIP, which holds {held}" if origin.tail else f"{name!r}: no ZIP"
            yield Finding("zip-member", "metadata TFLITE_METADATA", detail)


def _waste(model: Model) -> Iterator[Finding]:
    """Asks the passes themselves what they would take out; the model is spent then."""
    origin = origin_of(model)
    assert origin is not None
    copy = origin.model()
    for kind, item, own in (("duplicates", Dedup(), copy), ("dead-content", RemoveDead(), model)):
        try:
            result = item.run(own, Context())
        except TflRewriteError:
            continue
        saved = sum(getattr(change, "saved", 0) for change in result.changes)
        operators = sum("operator removed" in getattr(change, "what", "") for change in result.changes)
        # Empty buffers and codes that nothing uses are not worth a line.
        if saved or operators:
            count = sum(getattr(change, "data", {}).get("count", 1) for change in result.changes)
            detail = f"{count} changes, {saved} bytes of content"
            yield Finding(kind, "the file", detail, saves=saved)
