"""Measures what schemes and encodings of ``quantize-weights`` cost on a ResNet-50-sized model.

    python scripts/scheme_costs.py [--runs N]

Prints a table: bytes of the file, peak memory of a process that loads it and runs it, and median processor
time of an inference (one thread, default delegates), each model in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FORMS = {
    "hybrid": ["--scheme", "hybrid"],
    "dequantize": ["--scheme", "dequantize"],
    "int8 block:32": ["--granularity", "block:32"],
    "int6": ["--dtype", "int6"],
    "int4": ["--dtype", "int4"],
    "int4 dequantize": ["--dtype", "int4", "--scheme", "dequantize"],
    "int4 block:32": ["--dtype", "int4", "--granularity", "block:32"],
    "int2": ["--dtype", "int2"],
    "float16": ["--dtype", "float16"],
}
RUN = """
import json, resource, statistics, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
details = interpreter.get_input_details()[0]
image = np.random.default_rng(0).random(details["shape"], dtype=np.float32)
interpreter.set_tensor(details["index"], image)
times = []
for _ in range(int(sys.argv[2]) + 1):
    started = time.process_time()
    interpreter.invoke()
    times.append(time.process_time() - started)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": statistics.median(times[1:]), "peak": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10, help="timed inferences (default: 10)")
    arguments = parser.parse_args()
    tool = str(Path(sys.executable).parent / "tfl-rewrite")
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-costs-") as folder:
        model = Path(folder) / "float32.tflite"
        maker = Path(__file__).with_name("bench_model.py")
        subprocess.run([sys.executable, str(maker), str(model)], check=True)
        files = {"float32": model}
        for form, options in FORMS.items():
            files[form] = Path(folder) / f"{form.replace(' ', '-').replace(':', '-')}.tflite"
            command = [tool, "quantize-weights", "-q", "--verify", "off", *options]
            subprocess.run([*command, str(model), str(files[form])], check=True, stderr=subprocess.DEVNULL)
        print(f"{'form':15s} {'file':>14s} {'peak memory':>12s} {'inference':>10s}")
        for name, path in files.items():
            command = [sys.executable, "-c", RUN, str(path), str(arguments.runs)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            size = f"{path.stat().st_size:,}"
            print(f"{name:15s} {size:>14s} {found['peak']:8.0f} MiB {1000 * found['seconds']:7.0f} ms")


if __name__ == "__main__":
    main()
