"""The options of the commands that write a rewritten model."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import replace

from tfl_rewrite.cli.options import (
    IN_OUT,
    TALKING,
    WRITING,
    Argument,
    Command,
    Groups,
    judging,
    rows_of,
    value,
)
from tfl_rewrite.options.option import Role

PREFIX = "pass_"
"""Of the values of the options of a pass: some have the name of one that says how files are judged."""

# Nothing to tolerate where outputs must be equal to the bit, and nothing is fitted to inputs.
_TOLERATED = ("exact", "min_snr", "max_abs_error")


def _pass(name: str) -> tuple[Argument, ...]:
    from tfl_rewrite.passes import catalog

    return rows_of(catalog.find(name), prefix=PREFIX)


def _groups(name: str, judged: tuple[Argument, ...]) -> Groups:
    return (
        ("files", IN_OUT),
        ("what to do", _pass(name)),
        ("verification", judged),
        ("writing", WRITING),
        ("talk", TALKING),
    )


def _fitted(name: str) -> Groups:
    return _groups(name, judging(without=("exact",)))


def _rounding() -> Groups:
    # There, the ratio that the outputs must keep is what the steps are searched for.
    text = (
        "without --steps: search the coarsest rounding that keeps every output at this ratio or more, "
        "in dB; the file is run some hundred times. With --steps: refuse the result below it (default: 10)"
    )
    rows = judging(without=("exact",))
    judged = tuple(replace(row, help=text) if "--min-snr" in row.names else row for row in rows)
    return _groups("round-weights", judged)


def _plain(name: str) -> Groups:
    return _groups(name, judging(without=("exact", "holdout")))


def _exact(name: str) -> Groups:
    return _groups(name, judging(without=(*_TOLERATED, "holdout")))


def commands_of_passes(known: Collection[str]) -> list[Command]:
    """Returns a command for each pass of the catalogue that has no row."""
    from tfl_rewrite.editing.base import Effect
    from tfl_rewrite.passes import catalog

    makers = {Effect.EXACT: _exact, Effect.INTERFACE: _exact}
    return [
        Command(
            kind.name,
            catalog.summary(kind),
            catalog.description(kind),
            functools.partial(makers.get(kind.effect, _fitted), kind.name),
            (f"tfl-rewrite {kind.name} in.tflite out.tflite",),
        )
        for kind in catalog.CATALOG
        if kind.command and kind.name not in known
    ]


def _cutting() -> Groups:
    # There, --inputs names tensors.
    rows = judging(without=(*_TOLERATED, "holdout"))
    judged = tuple(
        replace(row, names=("--verify-inputs",)) if "--inputs" in row.names else row for row in rows
    )
    return _groups("remove-dead", judged)


def _running() -> Groups:
    what = (
        value(
            "--pass",
            help="a pass, with options after a colon: "
            "quantize-weights:scheme=dequantize,exclude=^a+^b; repeatable, in order. A comma or "
            "a plus sign in a value is written twice",
            action="append",
            default=[],
            dest="passes",
            metavar="NAME[:OPTION=VALUE,...]",
            role=Role.READ_PASSES,
        ),
        value("--preset", help="lossless or small", metavar="NAME", default=None),
    )
    return (
        ("files", IN_OUT),
        ("what to do", what),
        ("verification", judging(without=("exact",))),
        ("writing", WRITING),
        ("talk", TALKING),
    )


REWRITING = (
    Command(
        "quantize-weights",
        "store float weights as int8, int6, int4, int2 or float16 (lossy)",
        "",
        lambda: _fitted("quantize-weights"),
        (
            "tfl-rewrite quantize-weights in.tflite out.tflite --inputs samples.npz",
            "tfl-rewrite quantize-weights in.tflite out.tflite --dtype int4 --exclude '^logits'",
        ),
    ),
    Command(
        "round-weights",
        "round constants so that the file compresses better (lossy)",
        "",
        _rounding,
        ("tfl-rewrite round-weights in.tflite out.tflite --min-snr 30 --inputs samples.npz",),
    ),
    Command(
        "dequantize",
        "turn integer and float16 weights back into float32",
        "",
        lambda: _plain("dequantize"),
        ("tfl-rewrite dequantize in.tflite out.tflite",),
    ),
    Command(
        "remove-dead",
        "remove what no output needs, or cut the model down to a part",
        "",
        _cutting,
        (
            "tfl-rewrite remove-dead in.tflite out.tflite",
            "tfl-rewrite remove-dead in.tflite part.tflite --outputs embedding",
        ),
    ),
    Command(
        "dedup",
        "store equal constants once and compute equal operators once",
        "",
        lambda: _exact("dedup"),
        ("tfl-rewrite dedup in.tflite out.tflite",),
    ),
    Command(
        "compact",
        "store the same content in fewer bytes",
        "",
        lambda: _exact("compact"),
        ("tfl-rewrite compact in.tflite out.tflite --strip min-max",),
    ),
    Command(
        "run",
        "apply several passes with one read, one write and one verification",
        "Applies passes in the order given, or a preset. Outputs are judged once, for the whole: by"
        " --min-snr if a pass is lossy, else bit by bit. 'tfl-rewrite passes' lists passes, their "
        "options and the presets.",
        _running,
        (
            "tfl-rewrite run in.tflite out.tflite --preset lossless",
            "tfl-rewrite run in.tflite out.tflite --pass dedup --pass quantize-weights:dtype=float16",
        ),
    ),
    Command(
        "repair",
        "put right what keeps a file from being read right",
        "",
        lambda: _plain("repair"),
        (
            "tfl-rewrite repair in.tflite out.tflite",
            "tfl-rewrite repair in.tflite out.tflite --only unaligned",
        ),
    ),
)
