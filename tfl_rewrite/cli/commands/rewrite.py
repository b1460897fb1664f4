"""One small function a subcommand."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tfl_rewrite.cli.commands.rows import PREFIX
from tfl_rewrite.cli.files import SideFiles
from tfl_rewrite.cli.options import given, judging_of
from tfl_rewrite.cli.progress import Bar
from tfl_rewrite.cli.render import noted, report_lines
from tfl_rewrite.cli.render_judge import blame_lines, cost_lines, verdict_line, verdict_lines, verdict_rest
from tfl_rewrite.cli.text import print_lines, safe, show, warn
from tfl_rewrite.editing.base import Effect, Pass
from tfl_rewrite.errors import (
    UnsupportedError,
    UsageError,
    VerificationError,
)
from tfl_rewrite.judge.settings import FOLDED
from tfl_rewrite.options.option import made_with, options_of
from tfl_rewrite.pipeline.report import Judge, Plan, Report, RewriteFailed
from tfl_rewrite.search.rewrite import carry_out
from tfl_rewrite.work import working

if TYPE_CHECKING:
    from tfl_rewrite.judge.layers import Blame


def rewrite_with_pass(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite PASS IN OUT``, for a command that is one pass."""
    return rewrite_file(arguments, [pass_of(arguments)])


def pass_of(arguments: argparse.Namespace) -> Pass:
    """Returns the pass that a command is about, from its options."""
    from tfl_rewrite.passes import catalog

    kind = catalog.find(arguments.command)
    return made_with(kind, given(kind, arguments, PREFIX))


def reshape_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite reshape IN OUT``."""
    from tfl_rewrite.pipeline.shape_change import Reshape
    from tfl_rewrite.pipeline.targets import Reshaping

    item = Reshape(made_with(Reshaping, given(Reshaping, arguments, PREFIX)), judging_of(arguments))
    return rewrite_file(arguments, [item], item.verify)


def run_passes(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite run IN OUT``."""
    from tfl_rewrite.passes import catalog

    if bool(arguments.passes) == (arguments.preset is not None):
        raise UsageError("neither or both of --pass and --preset are given", remedy="give one of them")
    made = catalog.preset(arguments.preset) if arguments.preset else catalog.passes_of(arguments.passes)
    return rewrite_file(arguments, made)


_LOSSES = {
    Effect.TOLERANCE: " (lossy)",
    Effect.FOLDING: f" (the same in another order, judged at {FOLDED.min_snr:g} dB)",
}


def list_passes(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite passes``."""
    from tfl_rewrite.passes import catalog

    if arguments.json:
        import json

        rows = [
            {
                "name": kind.name,
                "summary": catalog.summary(kind),
                "lossy": kind.effect is Effect.TOLERANCE,
                "effect": kind.effect.value,
                "place": kind.place,
                "options": [row.name for row in options_of(kind)],
            }
            for kind in catalog.every()
        ]
        others = [{"name": name, "from": catalog.origin(point)} for name, point in catalog.offered().items()]
        presets = {name: list(items) for name, items in catalog.PRESETS.items()}
        data = {"schema": 1, "passes": rows, "others": others, "presets": presets}
        print_lines([json.dumps(data, indent=2)])
        return 0
    lines = []
    for kind in catalog.every():
        lines.append(f"{kind.name}{_LOSSES.get(kind.effect, '')}: {catalog.summary(kind)}")
        if options := options_of(kind):
            lines.append(f"  options: {', '.join(row.name.replace('_', '-') for row in options)}")
        lines.append(f"  place: {kind.place}")
    lines += [f"{name}: of {catalog.origin(point)}" for name, point in catalog.offered().items()]
    lines += [f"preset {name}: {', '.join(items)}" for name, items in catalog.PRESETS.items()]
    print_lines(lines)
    return 0


def prune(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite prune IN OUT``."""
    if arguments.pass_sparsity is None:
        # There, it is what the shares are searched for.
        arguments.pass_min_snr = arguments.min_snr
    return rewrite_file(arguments, [pass_of(arguments)])


def round_weights(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite round-weights IN OUT``."""
    if arguments.pass_steps is None:
        # There, it is what the steps are searched for.
        arguments.pass_min_snr = arguments.min_snr
    from tfl_rewrite.passes.round_weights import RoundWeights
    from tfl_rewrite.weights.rounders import Effort

    made = pass_of(arguments)
    assert isinstance(made, RoundWeights)
    try:
        return rewrite_file(arguments, [made])
    except RewriteFailed as error:
        if error.remedy is None and made.min_snr is None:
            other = "--effort fast, " if arguments.inputs and made.effort is not Effort.FAST else ""
            more = f"give more than {made.steps} --steps, {other}"
            error.remedy = f"{more}or --min-snr alone to search for them"
        raise


def verify_files(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite verify BEFORE AFTER``."""
    from tfl_rewrite.files.container import Container
    from tfl_rewrite.files.source import ensure_model
    from tfl_rewrite.interpreter.process import warm

    for path in (arguments.before, arguments.after):
        ensure_model(Container.open(path))
    judging = judging_of(arguments)
    # It loads while the judge is loaded.
    warm(judging.runtime[0])
    from tfl_rewrite.pipeline.verify import unproven, verify

    with Bar.of(arguments) as bar:
        verdict = verify(arguments.before, arguments.after, judging, progress=bar)
    found = None
    if (arguments.blame or arguments.blame_out) and verdict.status != "unverified":
        from tfl_rewrite.pipeline.verify import blame

        found = blame(arguments.before, arguments.after, judging)
    facts = {**verdict.to_dict(), "verdicts": [one.to_dict() for one in verdict.each]}
    facts |= {"blame": found.to_dict()} if found else {}
    why = unproven(verdict) if arguments.require else ""
    facts |= {"not_proven": why} if why else {}
    with SideFiles(arguments) as side:
        side.add_json(arguments.report, lambda: {"schema": 1, **facts})
        _add_node_data(side, arguments.blame_out, found)
        side.publish()
    rest = [*verdict_rest(verdict), *noted(verdict.notes, verbose=0)]
    if arguments.verbose:
        rest = verdict_lines(verdict)[1:]
    lines = [verdict_line(verdict), *rest, *cost_lines(verdict)]
    lines += blame_lines(found, verbose=arguments.verbose > 0) if found else _no_blame(arguments, found)
    if verdict.cause == "outputs" and found is None:
        real = "" if arguments.inputs else "--inputs compares on your own data; "
        lines.append(f"next: {real}--blame shows where the error enters and grows")
    if verdict.cause == "interface" and not judging.retyped:
        lines.append("next: --retyped compares real values where types alone differ, as after quantize --io")
    if why:
        lines.append(f"not proven: {why}")
    show(arguments, lambda: {"schema": 1, **facts}, lambda: lines)
    if verdict.status == "unverified" or why:
        return UnsupportedError.exit_code if arguments.require else 0
    return 0 if verdict.passed else VerificationError.exit_code


def rewrite_file(arguments: argparse.Namespace, passes: list[Pass], judge: Judge | None = None) -> int:
    """Rewrites as the options of a command say, reports it, and returns the exit code.

    Args:
        arguments: Of the command.
        passes: What it does.
        judge: See :attr:`Plan.judge`.
    """
    judging = judging_of(arguments)
    bar = Bar.of(arguments)
    side = SideFiles(arguments)
    try:
        plan = Plan(
            source=arguments.source,
            target=arguments.target,
            passes=tuple(passes),
            settings=judging,
            force=arguments.force,
            dry_run=arguments.dry_run,
            ready=lambda report: _add_reports(side, arguments, report),
            judge=judge,
        )
        with working(threads=arguments.threads, progress=bar):
            report = carry_out(plan)
        side.publish()
    except RewriteFailed as error:
        bar.close()
        _add_reports(side, arguments, error.report)
        side.publish()
        _show(arguments, error.report, product=False)
        error.remedy = error.remedy or _for_older(arguments, error)
        if error.remedy is None and any(item.name == "quantize-weights" for item in passes):
            tolerance = judging.tolerance
            budget = f"--min-snr {tolerance.min_snr:g}"
            if tolerance.max_abs_error is not None:
                budget += f" --max-error {tolerance.max_abs_error:g}"
            error.remedy = f"'tfl-rewrite shrink {budget}' looks for the smallest file that keeps it"
        raise
    finally:
        bar.close()
        side.close()
    _show(arguments, report, product=arguments.dry_run)
    return 0


def _for_older(arguments: argparse.Namespace, error: RewriteFailed) -> str | None:
    """Says how to write a file for the runtime that judged, where it knows no such operators."""
    judge = error.report.verdict.judge if error.report.verdict is not None else None
    asked = getattr(arguments, f"{PREFIX}min_runtime", "")
    if judge is None or asked is not None or "Didn't find op for builtin opcode" not in str(error):
        return None
    from tfl_rewrite.kernels import runtimes

    version = ".".join(judge.version.split(".")[:2])
    known = f"{'litert-' if judge.runtime == 'ai-edge-litert' else ''}{version}"
    try:
        runtimes.parse_runtime(known)
    except UsageError:
        return None
    return f"--min-runtime {known} chooses forms that this runtime knows"


def _show(arguments: argparse.Namespace, report: Report, *, product: bool) -> None:
    def lines() -> list[str]:
        return [*report_lines(report, verbose=arguments.verbose), *_no_blame(arguments, report.blame)]

    show(arguments, report.to_dict, lines, product=product)
    if arguments.quiet and report.unverified is not None:
        warn(f"UNVERIFIED: {safe(report.unverified, limit=400)}")


def _add_reports(side: SideFiles, arguments: argparse.Namespace, report: Report) -> None:
    side.add_json(arguments.report, report.to_dict)
    _add_node_data(side, getattr(arguments, "blame_out", None), report.blame)


def _no_blame(arguments: argparse.Namespace, found: Blame | None) -> list[str]:
    asked = getattr(arguments, "blame", None) or getattr(arguments, "blame_out", None) is not None
    return ["blame: not run, because nothing was compared"] if asked and found is None else []


def _add_node_data(side: SideFiles, path: str | None, found: Blame | None) -> None:
    if path is not None and found is not None and found.failure is None:
        side.add_json(path, found.node_data)


def write_metadata(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite metadata IN [OUT]``."""
    made = pass_of(arguments)
    if arguments.export is None:
        if arguments.target is None:
            raise UsageError("OUT is missing", remedy="name the file to write, or a folder with --export DIR")
        return rewrite_file(arguments, [made])
    from tfl_rewrite.reading.metadata import export_metadata

    if arguments.target is not None:
        raise UsageError("OUT and --export at once", remedy="write first, then export what was written")
    facts = export_metadata(arguments.source, arguments.export, force=arguments.force)
    names = ", ".join(safe(row["file"]) for row in facts["files"]) or "no files"
    said = "its metadata" if facts["metadata"] is not None else "no metadata"
    show(arguments, lambda: facts, lambda: [f"{safe(arguments.export)}: metadata.json ({said}), {names}"])
    return 0
