"""Text for people about what running models showed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfl_rewrite.cli.text import table
from tfl_rewrite.errors import percent

if TYPE_CHECKING:
    from tfl_rewrite.judge.layers import Blame, Layer
    from tfl_rewrite.judge.verdict import OutputComparison, Verdict

_REASONS = 2
"""How many of a verdict's reasons stand in its line."""
_ENTRIES = 8
"""Of how many entry points the short text tells what is said of them."""
_ROWS = 40
"""How many operators the short table shows."""


def verdict_lines(verdict: Verdict) -> list[str]:
    """Says the status, the outputs, the notes; with several judges, those of each."""
    judges = verdict.verdicts
    if len(judges) < 2:
        return _one_judge(verdict)
    lines = [_head(verdict)]
    for one in judges:
        lines += [f"  {line}" for line in _one_judge(one)]
    shown = {note for one in judges for note in one.notes}
    lines += _entries(verdict)
    return lines + [f"  note: {note}" for note in verdict.notes if note not in shown]


def _head(verdict: Verdict) -> str:
    """The status, and of several judges how many came to which."""
    judges = verdict.verdicts
    if len(judges) < 2:
        return verdict.headline
    from tfl_rewrite.judge.verdict import STATUSES

    counts = [(status, sum(one.status == status for one in judges)) for status in STATUSES]
    told = ", ".join(f"{count} {status}" for status, count in counts if count)
    if all(one.status != verdict.status for one in judges):
        return f"{verdict.headline}: {len(judges)} judges do not agree ({told} each alone)"
    return f"{verdict.headline}: the worst of {len(judges)} judges ({told})"


def _samples(found: Verdict | Blame) -> str:
    """Returns such as ``4 made samples``."""
    return f"{found.sample_count} {found.sample_source} sample{'' if found.sample_count == 1 else 's'}"


def verdict_line(verdict: Verdict, *, asked: str = "") -> str:
    """Says in one line whether the outputs agree, on what, and which of them is furthest off.

    Args:
        verdict: That is told.
        asked: What was asked of the file, where that says nothing of how much outputs may differ.
    """
    head = _head(verdict)
    if verdict.reasons:
        more = len(verdict.reasons) - _REASONS
        return f"{head}: {'; '.join(verdict.reasons[:_REASONS])}" + (
            f"; and {more} more (-v)" if more > 0 else ""
        )
    apart = " that nothing was fitted to" if verdict.unfitted else ""
    samples = _samples(verdict)
    heard = [output for output in verdict.outputs if output.silence is None]
    count = "the output" if len(heard) == 1 else f"all {len(heard)} outputs"
    if all(output.bit_exact for output in heard):
        return f"{head}: {count} {'is' if len(heard) == 1 else 'are'} equal to the bit on {samples}{apart}"
    if asked:
        kept = f"the file keeps what was asked for ({asked})"
        return f"{head}: {kept} on {samples}{apart}; {_furthest(heard, 'the output')}"
    agree = "agrees" if len(heard) == 1 else "agree"
    return f"{head}: {count} {agree} on {samples}{apart}; {_furthest(heard)}"


def _furthest(outputs: Sequence[OutputComparison], alone: str = "it") -> str:
    """Names the output that differs most and by how much, in words and as the ratio."""
    worst = min(
        (output for output in outputs if not output.bit_exact),
        key=lambda output: math.inf if output.snr_db is None else output.snr_db,
    )
    parts = []
    if worst.snr_db is not None and math.isfinite(worst.snr_db):
        told = percent(10 ** (-worst.snr_db / 20))
        parts.append(f"is off by {told} of its size (SNR {worst.snr_db:.1f} dB)")
    elif worst.max_abs_error is not None:
        steps = " steps" if worst.unit == "steps" else ""
        parts.append(f"is off by {worst.max_abs_error:.4g}{steps} at most")
    elif worst.equal_share is not None:
        parts.append(f"is equal in {worst.equal_share:.2%} of its elements")
    shares = worst.tally is not None and worst.tally.rows.are_shares
    if worst.argmax_agreement is not None and shares:
        parts.append(f"has the same largest score in {worst.argmax_agreement:.1%} of rows")
    one = alone if len(outputs) == 1 else f"the furthest, {worst.label},"
    return f"{one} {' and '.join(parts) or 'differs'}"


def verdict_rest(verdict: Verdict) -> list[str]:
    """Says what differs between entry points, and what the verdict does not speak of; each in a line."""
    lines = [line.strip() for line in _entries(verdict, most=_ENTRIES)]
    if not verdict.not_judged:
        return lines
    first, *rest = verdict.not_judged
    return [*lines, f"not judged: {first}" + (f"; and {len(rest)} more (-v)" if rest else "")]


def cost_lines(verdict: Verdict, *, told_before: bool = True) -> list[str]:
    """Says by how much a call takes longer than it did, where it does; each file was run as it is.

    Args:
        verdict: Of one judge or several; the kernels that a runtime chooses by itself count.
        told_before: Whether nothing was published yet.
    """
    slow = (one for one in verdict.each if one.judge is not None and (one.cost or 0) > 1)
    one = next((one for one in slow if one.judge is not None and one.judge.kernels == "default"), None)
    if one is None:
        return []
    more = "" if told_before else "; --dry-run tells it before anything is written"
    return [
        f"slower: a call takes {one.cost:.1f} x the processor time it took, measured here ({one.judge}){more}"
    ]


def _entries(verdict: Verdict, most: int | None = None) -> list[str]:
    """What is said of each entry point, where that is not the same for all; of the first few alone."""
    if len({entry.status for entry in verdict.entries}) < 2:
        return []
    told = [f"{entry.label} {entry.status.upper()}" for entry in verdict.entries]
    more = len(told) - len(told[:most])
    return ["  " + "; ".join(told[:most]) + (f"; and {more} more (-v)" if more else "")]


def _one_judge(verdict: Verdict) -> list[str]:
    head = verdict.headline
    if verdict.reasons:
        head += f": {'; '.join(verdict.reasons)}"
    lines = [head, *_entries(verdict)]
    if verdict.judge is not None:
        apart = " that nothing was fitted to" if verdict.unfitted else ""
        lines.append(
            f"  judged by {verdict.judge}, {verdict.judge.enclosure}, on "
            f"{_samples(verdict)}{apart} in {verdict.seconds:.1f} s"
        )
    lines += [f"  {_output(output)}" for output in verdict.outputs]
    lines.append(f"  not judged: {'; '.join(verdict.not_judged) or 'nothing'}")
    lines += [f"  note: {note}" for note in dict.fromkeys(verdict.notes)]
    return lines


def _output(output: OutputComparison) -> str:
    parts = []
    if output.bit_exact:
        parts.append("bit-exact")
    else:
        if output.snr_db is not None:
            parts.append(f"SNR {output.snr_db:.1f} dB")
        if output.max_abs_error is not None:
            steps = " steps" if output.unit == "steps" else ""
            parts.append(f"max error {output.max_abs_error:.4g}{steps}")
        if output.equal_share is not None:
            parts.append(f"{output.equal_share:.2%} equal")
        if output.argmax_agreement is not None:
            parts.append(f"argmax {output.argmax_agreement:.1%}")
        if output.channel is not None:
            parts.append(f"lowest channel {output.channel.number}: {output.channel.snr_db:.1f} dB")
    text = f"{output.label}: {', '.join(parts) or 'not comparable'}"
    if not output.passed:
        text += "; FAILED"
    if output.silence:
        text += f"; says nothing: {output.silence}"
    return text + "".join(f"; {note}" for note in output.notes)


def blame_lines(found: Blame, *, verbose: bool = False) -> list[str]:
    """Says what was compared, the table of operators, and what was not seen."""
    if found.failure is not None:
        return [f"blame: not possible: {found.failure}"]
    count = len(found.layers)
    who = "" if found.judge is None else f" by {found.judge}, {found.judge.enclosure},"
    lines = [
        f"blame: {count} operator output{'' if count == 1 else 's'} compared on "
        f"{_samples(found)}{who} all tensors kept, in {found.seconds:.1f} s"
    ]
    lines += _layers(found, verbose)
    if found.inserted:
        from tfl_rewrite.interpreter.interface import printable

        texts = ", ".join(f"{number} {printable(name)}" for name, number in sorted(found.inserted.items()))
        lines.append(f"  only after the rewrite: {texts}")
    if found.unmatched:
        shown = found.unmatched if verbose else found.unmatched[:5]
        left = len(found.unmatched) - len(shown)
        lines.append(f"  not compared: {', '.join(shown)}" + (f", and {left} more" if left else ""))
    return lines + [f"  note: {note}" for note in found.notes]


def _layers(found: Blame, verbose: bool) -> list[str]:
    if not found.layers:
        return []
    if all(layer.role == "equal" for layer in found.layers):
        return ["  all of them are equal"]
    shown = list(found.layers) if verbose else _telling(found.layers)
    lines = table(_HEAD, [_row(layer) for layer in shown], right=_RIGHT)
    if len(shown) < len(found.layers):
        lines.append(f"  ... and {len(found.layers) - len(shown)} more (-v shows all)")
    marked = found.marked()
    if marked:
        from tfl_rewrite.interpreter.interface import printable

        worst = ", ".join(
            f"{layer.index} {printable(layer.operator)} ({layer.fall_db:.1f} dB)" for layer in marked
        )
        lines.append(f"  the ratio falls most at: {worst}")
    return lines


_HEAD = ("op", "after", "type", "tensor", "shape", "SNR dB", "inputs", "falls", "weights", "")
_RIGHT = (0, 1, 5, 6, 7)


def _telling(layers: tuple[Layer, ...]) -> list[Layer]:
    """The rows of the short table: what is marked, the outputs, and what falls most of the rest."""
    if len(layers) <= _ROWS:
        return list(layers)
    order = sorted(
        range(len(layers)),
        key=lambda at: (
            layers[at].rank is None,
            not layers[at].is_output,
            layers[at].role != "differs",
            -(layers[at].fall_db or 0.0),
            at,
        ),
    )
    return [layers[at] for at in sorted(order[:_ROWS])]


def _row(layer: Layer) -> tuple[str, ...]:
    from tfl_rewrite.interpreter.interface import printable

    name = printable(layer.tensor) or f"(unnamed, output {layer.position})"
    if len(name) > 44:
        name = "..." + name[-41:]
    tail = [f"<- #{layer.rank} {layer.role}"] if layer.rank else []
    if layer.equal_share is not None and layer.role != "equal":
        tail.append(f"{layer.equal_share:.2%} equal")
    if layer.nonfinite_mismatches:
        tail.append(f"{layer.nonfinite_mismatches} NaN or infinite on one side only")
    if layer.note:
        tail.append(layer.note)
    if layer.is_output:
        tail.append("output")
    return (
        str(layer.index),
        str(layer.after_index),
        printable(layer.operator, limit=28),
        name,
        "x".join(map(str, layer.shape)) or "scalar",
        _decibels(layer.snr_db),
        _decibels(layer.input_snr_db),
        f"{layer.fall_db:.1f}" if layer.fall_db and layer.fall_db >= 0.05 else "",
        layer.weights or "",
        "; ".join(tail),
    )


def _decibels(value: float | None) -> str:
    if value is None:
        return ""
    return "equal" if value == math.inf else f"{value:.1f}"
