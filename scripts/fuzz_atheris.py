"""Looks for inputs that break the contract of fuzz.py, guided by the coverage of our own code.

    python scripts/fuzz_atheris.py CORPUS_FOLDER -max_total_time=120

Needs the extra ``fuzz`` (atheris). Takes libFuzzer's options; a folder of models to start from, to which it
adds what reaches new code; what breaks the contract is left as ``crash-*`` in the working folder. Without a
folder, it starts from fixtures/ in a temporary one.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def one_input(data: bytes) -> None:
    """What is called for each input: the first byte of a hash chooses the passes, the rest is the file."""
    from hostile.bytewise import checksum
    from hostile.contract import ORDERS, bounded, exercise

    with bounded(data):
        exercise(data, orders=1 << checksum(data) % len(ORDERS))


def main() -> int:
    if any(word in ("-h", "--help") for word in sys.argv[1:]):
        print(f"usage: fuzz_atheris.py [FOLDER] [-libFuzzer options]\n\n{__doc__}")
        return 0
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install 'tfl-rewrite[fuzz]'", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["tfl_rewrite"]):
        pass
    folders = [word for word in sys.argv[1:] if not word.startswith("-")]
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-atheris-") as name:
        if not folders:
            for path in [*FIXTURES.glob("*.tflite"), *(FIXTURES / "malformed").glob("*.tflite")]:
                if path.stat().st_size < 16_384:
                    shutil.copy(path, name)
            sys.argv.append(name)
        atheris.Setup([*sys.argv, "-max_len=65536", "-timeout=60"], one_input)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
