"""``check``, ``inspect``, ``doctor`` and ``diff``: they read files, and import no more than that takes."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tfl_rewrite.cli.progress import Bar
from tfl_rewrite.cli.text import counted, name_limit, print_lines, safe, shell, short_names, show, size, table
from tfl_rewrite.errors import FormatError, TflRewriteError, VerificationError
from tfl_rewrite.work import working

if TYPE_CHECKING:
    from tfl_rewrite.reading.diff import Comparison
    from tfl_rewrite.reading.doctor import Diagnosis
    from tfl_rewrite.reading.findings import Finding
    from tfl_rewrite.reading.inspect import Inspection, Share


def inspect_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite inspect MODEL``."""
    from tfl_rewrite.reading.inspect import inspect

    with Bar.of(arguments) as bar, working(progress=bar):
        found = inspect(arguments.model, largest=arguments.largest)
    show(arguments, found.to_dict, lambda: inspection_lines(found, verbose=arguments.verbose))
    return 0


def diff_files(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite diff BEFORE AFTER``."""
    from tfl_rewrite.reading.diff import diff

    with Bar.of(arguments) as bar, working(progress=bar):
        found = diff(arguments.before, arguments.after)
    show(arguments, found.to_dict, lambda: comparison_lines(found, verbose=arguments.verbose))
    return 0


def doctor_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite doctor MODEL``."""
    from tfl_rewrite.reading.doctor import diagnose
    from tfl_rewrite.reading.findings import Severity

    found = diagnose(arguments.model, min_runtime=arguments.min_runtime)
    show(arguments, found.to_dict, lambda: diagnosis_lines(found, verbose=arguments.verbose))
    return VerificationError.exit_code if found.reaches(Severity(arguments.fail_on)) else 0


_SOUND = {True: "sound", False: "NOT SOUND", None: "NOT CHECKED"}


def check_files(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite check MODEL...``."""
    from tfl_rewrite.kernels.runtimes import unmeasured_here
    from tfl_rewrite.reading.check import examine

    newer = unmeasured_here()
    rows: list[dict[str, Any]] = []
    worst = 0
    for path in arguments.models:
        notes: list[str] = []
        code = 0
        try:
            problems, notes = examine(path)
            code = FormatError.exit_code if problems else 0
        except TflRewriteError as error:
            error.file = None
            problems, code = [str(error)], error.exit_code
        worst = max(worst, code)
        # Of a file that is not there, or of a kind that this program does not know, nothing is known.
        sound = None if code not in (0, FormatError.exit_code) else code == 0
        rows.append({"file": path, "sound": sound, "problems": problems, "notes": notes})
        if not arguments.json and not (arguments.quiet and not problems):
            lines = [f"{safe(path) or repr(path)}: {_SOUND[sound]}"]
            first = problems if arguments.verbose else problems[:10]
            lines += [f"  {safe(problem, limit=400)}" for problem in first]
            if len(first) < len(problems):
                lines.append(f"  ... and {len(problems) - len(first)} more (-v shows all)")
            lines += [f"  note: {safe(note, limit=400)}" for note in notes]
            print_lines(lines)
    if arguments.json:
        told = [newer] if newer else []
        print_lines([json.dumps({"schema": 1, "files": rows, "notes": told}, indent=2)])
    elif newer and not arguments.quiet:
        print_lines([f"note: {safe(newer, limit=400)}"])
    return worst


_SHOWN = 3
_FEW = 4


def comparison_lines(found: Comparison, *, verbose: int) -> list[str]:
    """Shows what changed between two files."""
    names = f"{safe(found.before)} -> {safe(found.after)}"
    if found.identical:
        return [f"{names}: equal, byte for byte ({size(found.nbytes_before)} bytes)"]
    lines = [f"{names}: {size(found.nbytes_before)} -> {size(found.nbytes_after)} bytes"]
    if not verbose:
        return lines + _short_comparison(found)
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
    kind = ""
    for row in rows:
        if row.kind != kind:
            kind = row.kind
            count = sum(other.kind == kind for other in found.differences)
            lines.append(f"{kind}: {count} difference{'' if count == 1 else 's'}")
        moved = row.nbytes_before != row.nbytes_after
        tail = f" ({size(row.nbytes_before)} -> {size(row.nbytes_after)} bytes)" if moved else ""
        lines.append(f"  {safe(row.where, limit=100)}: {safe(row.what, limit=300)}{tail}")
    return lines


def _short_comparison(found: Comparison) -> list[str]:
    """Says where the bytes went, what differs, and the first of it."""
    moved = [row for row in found.balance if row.after != row.before]
    moved.sort(key=lambda row: -abs(row.after - row.before))
    told = [f"{safe(row.name)} {row.after - row.before:+,}" for row in moved[:_SHOWN]]
    rest = sum(row.after - row.before for row in moved[_SHOWN:])
    told += [f"all else {rest:+,}"] if len(moved) > _SHOWN else []
    lines = [f"bytes: {', '.join(told)}"] if told else []
    if not found.differences:
        return [*lines, "the same content, stored differently"]
    counts = Counter(row.kind for row in found.differences)
    lines.append("differences: " + ", ".join(f"{count} x {kind}" for kind, count in counts.most_common()))
    first = max(found.differences, key=lambda row: abs(row.nbytes_before - row.nbytes_after))
    lines.append(f"such as {first.kind} {safe(first.where, limit=100)}: {safe(first.what, limit=200)}")
    return [*lines, "next: -v lists them; 'tfl-rewrite verify' runs both files and compares their outputs"]


def inspection_lines(found: Inspection, *, verbose: int) -> list[str]:
    """Shows what is in a file."""
    lines = [f"{safe(found.file)}: {size(found.nbytes)} bytes"]
    if not verbose:
        return lines + _short_inspection(found)
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
        others = [("type", "shape", "bytes", "read by")]
        for row in found.largest:
            readers = safe(",".join(row.readers) or "-", limit=40)
            others.append((row.dtype, str(list(row.shape)), size(row.nbytes), readers))
        names = [row.name or "(unnamed)" for row in found.largest]
        names = ["tensor", *short_names(names, limit=name_limit(others))]
        head, *rows = [(name, *rest) for name, rest in zip(names, others, strict=True)]
        lines += table(head, rows, right=(3,))
    lines += [f"a rewrite would be refused: {safe(text, limit=400)}" for text in found.refusals]
    return lines


def _short_inspection(found: Inspection) -> list[str]:
    """Says what goes in and out, what it computes, what it weighs, and what runs it."""
    lines = []
    for title, rows in (("inputs", found.inputs), ("outputs", found.outputs)):
        told = [f"{safe(row.name or '(unnamed)')} {row.dtype} {list(row.shape)}" for row in rows]
        lines.append(f"{title}: {_few(told)}")
    if found.signatures:
        lines.append(f"signatures: {_few([safe(item.key) for item in found.signatures])}")
    count = sum(row.count for row in found.operators)
    told = [f"{row.count} x {safe(row.name)}" for row in found.operators]
    lines.append(f"operators: {count}: {_few(told, 'type')}")
    types = [f"{row.count} x {safe(row.name)} ({size(row.nbytes)} bytes)" for row in found.by_dtype]
    waste = ((found.duplicates, "twice"), (found.unused, "unused"), (found.dead, "unexplained"))
    spare = [f"{size(number)} bytes {what}" for number, what in waste if number]
    lines.append(f"constants: {_few(types, 'type') or 'none'}" + (f"; {', '.join(spare)}" if spare else ""))
    runtime = found.min_runtime or "unknown"
    lines.append(f"oldest runtime: TensorFlow {runtime}; next: -v shows tensors and metadata")
    return lines + [f"a rewrite would be refused: {safe(text, limit=400)}" for text in found.refusals]


def _few(texts: Sequence[str], noun: str = "") -> str:
    """Joins the first of some texts, and counts the others; ``noun`` says of what each of them is one."""
    more = len(texts) - _FEW
    told = counted(more, f"more {noun}") if noun else f"{more} more"
    return ", ".join(texts[:_FEW]) + (f", and {told}" if more > 0 else "")


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
    from tfl_rewrite.reading.findings import UNASKED, Severity

    counts = [(found.count(severity), severity.value) for severity in Severity]
    said = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
    lines = [f"{safe(found.file)}: {size(found.nbytes)} bytes; {said}"]
    groups: dict[str, list[Finding]] = {}
    for finding in found.findings:
        groups.setdefault(finding.kind, []).append(finding)
    for name, findings in groups.items():
        lines += _group_lines(name, findings, found.file) if verbose else [_group_line(name, findings)]
    lines += [f"note: {safe(note, limit=400)}" for note in found.notes]
    fixed = [name for name in found.repairable if name in UNASKED]
    if fixed:
        lines.append(f"repair {', '.join(fixed)}: tfl-rewrite repair {shell(found.file)} OUT")
    if groups and not verbose:
        lines.append("next: -v says why each matters, where the fact is from, and what corrects it")
    return lines


def _group_line(name: str, findings: Sequence[Finding]) -> str:
    row, first = findings[0].row, findings[0]
    more = f", and {counted(len(findings) - 1, 'more place')}" if len(findings) > 1 else ""
    place = f"{safe(first.where, limit=80)}: {safe(first.detail, limit=160)}"
    return f"{row.severity.value}: {row.title} [{name}]: {place}{more}"


def _group_lines(name: str, findings: Sequence[Finding], file: str) -> list[str]:
    row = findings[0].row
    count = f" ({len(findings)} places)" if len(findings) > 1 else ""
    lines = [f"{row.severity.value}: {row.title} [{name}]{count}"]
    lines += [f"  {safe(item.where, limit=100)}: {safe(item.detail, limit=240)}" for item in findings]
    lines += [f"  why: {row.fact}", f"  source: {row.source}"]
    for remedy in dict.fromkeys(item.remedy for item in findings):
        lines.append(f"  remedy: {remedy.replace(' IN OUT', f' {shell(file)} OUT')}")
    return lines
