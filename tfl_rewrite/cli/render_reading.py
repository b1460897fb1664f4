"""Text for people about what was read: inspections, comparisons, diagnoses."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tfl_rewrite.cli.text import safe, size, table
from tfl_rewrite.reading.diff import Comparison
from tfl_rewrite.reading.doctor import Diagnosis
from tfl_rewrite.reading.findings import UNASKED, Finding, Severity
from tfl_rewrite.reading.inspect import Inspection, Share

_DIFFERENCES = 60
_SHOWN = 3


def comparison_lines(found: Comparison, *, verbose: int) -> list[str]:
    """Shows what changed between two files."""
    names = f"{safe(found.before)} -> {safe(found.after)}"
    if found.identical:
        return [f"{names}: equal, byte for byte ({size(found.nbytes_before)} bytes)"]
    lines = [f"{names}: {size(found.nbytes_before)} -> {size(found.nbytes_after)} bytes"]
    lines += table(
        ("", "before", "after", "change"),
        [
            (safe(row.name), size(row.before), size(row.after), f"{row.after - row.before:+,}")
            for row in found.balance
        ],
        right=(1, 2, 3),
    )
    if not found.differences:
        return [*lines, "the same content, stored differently"]
    kinds = list(dict.fromkeys(row.kind for row in found.differences))
    rows = sorted(found.differences, key=lambda row: kinds.index(row.kind))
    shown = rows if verbose else rows[:_DIFFERENCES]
    kind = ""
    for row in shown:
        if row.kind != kind:
            kind = row.kind
            count = sum(other.kind == kind for other in found.differences)
            lines.append(f"{kind}: {count} difference{'' if count == 1 else 's'}")
        moved = row.nbytes_before != row.nbytes_after
        tail = f" ({size(row.nbytes_before)} -> {size(row.nbytes_after)} bytes)" if moved else ""
        lines.append(f"  {safe(row.where, limit=100)}: {safe(row.what, limit=300)}{tail}")
    if len(shown) < len(rows):
        lines.append(f"... and {len(rows) - len(shown)} more (-v shows all)")
    return lines


def inspection_lines(found: Inspection) -> list[str]:
    """Shows what is in a file."""
    lines = [f"{safe(found.file)}: {size(found.nbytes)} bytes"]
    facts = [
        ("description", safe(found.description or "-")),
        ("subgraphs, tensors", f"{found.subgraphs}, {found.tensors}"),
        ("operator codes", found.opcode_age),
        (
            "oldest runtime",
            f"TensorFlow {found.min_runtime or 'unknown'} "
            f"(it says {safe(found.says_min_runtime or 'nothing')})",
        ),
        ("constants", f"{size(found.constants)} bytes"),
        ("tables and padding", f"{size(found.structure)} bytes"),
        ("duplicate constants", f"{size(found.duplicates)} bytes"),
        ("unused constants", f"{size(found.unused)} bytes"),
        ("unexplained bytes", size(found.dead)),
        (
            "after the FlatBuffer",
            f"{size(found.outside)} bytes of buffers, {size(found.zip_nbytes)} bytes of ZIP",
        ),
    ]
    if found.zip_members:
        facts.append(("ZIP members", ", ".join(safe(name) for name in found.zip_members)))
    if found.external:
        facts.append(("weight files", ", ".join(safe(name) for name in found.external)))
    width = max(len(name) for name, _ in facts)
    lines += [f"  {name.ljust(width)}  {value}" for name, value in facts]
    lines += _interface_lines(found)
    lines += ["operators:"] + [f"  {row.count:5d}  {safe(row.name)}" for row in found.operators]
    lines += ["constants by the operator that reads them:", *_share_table(found.weights_by_operator, found)]
    lines += ["constants by type:", *_share_table(found.by_dtype, found)]
    if found.metadata:
        lines += ["metadata:"] + [f"  {safe(row.name)}  {size(row.nbytes)} bytes" for row in found.metadata]
    if found.largest:
        lines.append("largest tensors:")
        lines += table(
            ("tensor", "type", "shape", "bytes", "read by"),
            [
                (
                    safe(row.name or "(unnamed)", limit=60),
                    row.dtype,
                    str(list(row.shape)),
                    size(row.nbytes),
                    safe(",".join(row.readers) or "-", limit=40),
                )
                for row in found.largest
            ],
            right=(3,),
        )
    lines += [f"a rewrite would be refused: {safe(text, limit=400)}" for text in found.refusals]
    return lines


def _interface_lines(found: Inspection) -> list[str]:
    lines = []
    for title, rows in (("inputs", found.inputs), ("outputs", found.outputs)):
        lines.append(f"{title}:")
        lines += [f"  {safe(row.name or '(unnamed)')}  {row.dtype}  {list(row.shape)}" for row in rows]
    for item in found.signatures:
        inputs, outputs = (", ".join(safe(name) for name in names) for names in (item.inputs, item.outputs))
        lines.append(f"signature {safe(item.key)} (subgraph {item.subgraph}): ({inputs}) -> ({outputs})")
    return lines


def _share_table(rows: Sequence[Share], found: Inspection) -> list[str]:
    if not rows:
        return ["  none"]
    return table(
        ("", "tensors", "bytes", "of file"),
        [
            (safe(row.name), str(row.count), size(row.nbytes), f"{100 * row.nbytes / found.nbytes:.1f} %")
            for row in rows
        ],
        right=(1, 2, 3),
    )


def diagnosis_lines(found: Diagnosis, *, verbose: int) -> list[str]:
    """Shows findings, those of a kind together."""
    counts = [(found.count(severity), severity.value) for severity in Severity]
    said = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
    lines = [f"{safe(found.file)}: {size(found.nbytes)} bytes; {said}"]
    groups: dict[str, list[Finding]] = {}
    for finding in found.findings:
        groups.setdefault(finding.kind, []).append(finding)
    for name, findings in groups.items():
        lines += _group_lines(name, findings, verbose, found.file)
    fixed = [name for name in found.repairable if name in UNASKED]
    if fixed:
        lines.append(f"repair {', '.join(fixed)}: tfl-rewrite repair {_quoted(found.file)} OUT")
    return lines


def _group_lines(name: str, findings: Sequence[Finding], verbose: int, file: str) -> list[str]:
    row = findings[0].row
    count = f" ({len(findings)} places)" if len(findings) > 1 else ""
    lines = [f"{row.severity.value}: {row.title} [{name}]{count}"]
    shown = findings if verbose else findings[:_SHOWN]
    lines += [f"  {safe(item.where, limit=100)}: {safe(item.detail, limit=240)}" for item in shown]
    if len(shown) < len(findings):
        lines.append(f"  ... and {len(findings) - len(shown)} more (-v shows all)")
    lines.append(f"  why: {row.fact}")
    if verbose:
        lines.append(f"  source: {row.source}")
    for remedy in dict.fromkeys(item.remedy for item in findings):
        lines.append(f"  remedy: {remedy.replace(' IN OUT', f' {_quoted(file)} OUT')}")
    return lines


def _quoted(path: str) -> str:
    return shlex.quote(safe(path))
