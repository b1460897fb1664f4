"""The fixtures' README, generated so that its list and sizes cannot be wrong."""

from __future__ import annotations

from pathlib import Path

from .catalog import FIXTURES, Fixture

HEADER = """\
# Test models

Made by `scripts/make_fixtures.py`, seeded, and committed so that the tests need no TensorFlow. This page is
generated as well. `tests/test_fixtures.py` and `tests/test_fixtures_malformed.py` assert that each file still
is what its name says.

`inputs/NAME.npz` holds real inputs for `NAME.tflite`, one array per input name as the interpreter gives it;
the first axis counts samples. Where the input's shape starts with a 1 (or with an unknown batch), that axis
is the sample axis. The digits nets share `inputs/digits_eval.npz` (450 held-out images, their labels in
`labels/digits_eval.npz`) and `inputs/digits_calib.npz` (100 training images); a rearranged model takes the
inputs of the one it came from.
"""

MALFORMED = """
## malformed

Most differ from one well-formed parent in a single field. *Damaged* files contradict the format or the
schema, *odd* ones are unusual but runtimes take them, *unsupported* ones belong to another schema,
*unrunnable* ones are well formed but no builtin kernel runs them.
"""


def table(out: Path, fixtures: list[Fixture]) -> str:
    """Renders rows for the fixtures that exist."""
    lines = ["| name | what it shows | how made | bytes |", "|---|---|---|---:|"]
    for fixture in fixtures:
        path = out / f"{fixture.name}.tflite"
        if path.exists():
            weights = path.parent.glob("*.bin")  # what an external_buffers model has beside it
            nbytes = sum(file.stat().st_size for file in (path, *weights))
            lines.append(f"| `{fixture.name}` | {fixture.shows} | {fixture.how} | {nbytes:,} |")
    return "\n".join(lines) + "\n"


def write(out: Path) -> None:
    """Writes README.md into the fixtures folder."""
    broken = [fixture for fixture in FIXTURES if fixture.name.startswith("malformed/")]
    sound = [fixture for fixture in FIXTURES if fixture not in broken]
    text = f"{HEADER}\n{table(out, sound)}{MALFORMED}\n{table(out, broken)}"
    (out / "README.md").write_text(text, encoding="utf-8")
