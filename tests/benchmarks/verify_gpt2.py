"""Time and memory of ``tp.verify`` on GPT-2 of Hugging Face transformers, built from a config, over layers and steps.

    python tests/benchmarks/verify_gpt2.py --layers 1 2 4 12 --steps 1 2 [--advice]

Every row is a process of its own, so that peaks of memory are its own; seconds are of verify, without imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path


def measure(layers: int, steps: int, advice: bool) -> dict[str, float | str]:
    """One run in this process."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from gpt2 import LABELS, TOKENS, gpt2, loss

    import tpcompile as tp

    start, cpu = time.perf_counter(), time.process_time()
    report = tp.verify(gpt2(layers), TOKENS, LABELS, loss, steps=steps, advice=advice)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": seconds, "cpu": cpu, "GB": peak, "verdict": report.advised or report.verdict}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--advice", action="store_true", help="with the advice; the verdict is the advised setup's")
    parser.add_argument("--one", action="store_true", help="a single run, as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.layers[0], args.steps[0], args.advice)))
        return
    print("| layers | steps | seconds | CPU seconds | GB | verdict |\n|---|---|---|---|---|---|")
    for layers in args.layers:
        for steps in args.steps:
            command = [sys.executable, __file__, "--one", "--layers", str(layers), "--steps", str(steps)]
            command += ["--advice"] * args.advice
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            row = json.loads(out.splitlines()[-1])
            cells = [f"{row['seconds']:.1f}", f"{row['cpu']:.1f}", f"{row['GB']:.2f}", row["verdict"]]
            print(f"| {layers} | {steps} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
