"""Time, peak memory and first call of kernels against neural-tangents under jit, interleaved, as ratios of medians.

python tests/benchmarks/nt_speed.py PYTHON [--rounds 7] [--threads 2] [--only WORD ...]

PYTHON is an interpreter with neural-tangents 0.6.5. Each side runs in a process of its own per model, number format and
shape; inputs are in memory, what is compiled is warm, and the two sides take turns. The first call is that of a new
process after its imports: tracing, lowering and evaluation here, compilation and evaluation there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import kernel_specs  # noqa: E402
import serving  # noqa: E402

IMAGES = (16, 16, 3)
MODELS: dict[str, tuple[kernel_specs.Spec, tuple[int, ...], int, int]] = {
    **{
        f"{phi[0]}, depth {depth}": (kernel_specs.deep(depth, phi, 1.4, 0.1), (100,), 2000, 2000)
        for phi in (kernel_specs.RELU, kernel_specs.ERF)
        for depth in (3, 10)
    },
    "convolution, flatten": (kernel_specs.convolutional(2, 1, "SAME", "flatten", 3, 0.0), IMAGES, 100, 100),
    "convolution, mean": (kernel_specs.convolutional(2, 1, "SAME", "mean", 3, 0.0), IMAGES, 20, 20),
}


class Side:
    """A process that answers requests."""

    def __init__(self, *command: str, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), environment.get("PYTHONPATH", "")])
        # XLA takes as many threads as there are cores for the process
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self.process = subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def ask(self, line: str) -> dict[str, float]:
        """The answer to a line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        for answer in self.process.stdout:
            if answer.startswith("answer "):
                return json.loads(answer.removeprefix("answer "))
        raise RuntimeError(f"{self.process.args} ended without an answer")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def prepare(request: serving.Request) -> Callable[[], Any]:
    """The kernels of a request by tpcompile."""
    import torch

    import tpcompile as tp

    x1, x2 = (None if x is None else torch.from_numpy(x) for x in request.inputs())
    assert x1 is not None
    kernel = tp.kernel(kernel_specs.make(request.layers, request.shape), x1[0])
    return lambda: kernel(x1, x2, request.get)


def compared(commands: list[list[str]], request: serving.Request, rounds: int, threads: int) -> list[str]:
    """Rows of the table: for NNGP, NTK and both of one model."""
    sides = [Side(*command, threads=threads) for command in commands]
    for side in sides:
        side.ask("run")  # of nothing: no side still imports while the other is timed
    rows = []
    for get in ("both", "nngp", "ntk"):
        line = json.dumps(asdict(replace(request, get=get)))
        first = [side.ask(line)["seconds"] for side in sides]
        for side in sides:
            side.ask("run")
        answers = [[side.ask("run") for side in sides] for _ in range(rounds)]
        times, busy, memory = (
            [statistics.median(answer[i][key] for answer in answers) for i in (0, 1)]
            for key in ("seconds", "processor", "megabytes")
        )
        shape = "symmetric" if request.columns is None else "rectangular"
        started = f"{first[0]:.2f} | {first[1]:.2f}" if get == "both" else " | "
        rows.append(
            f"{request.dtype} | {shape} | {get} | {times[0]:.3f} | {times[1]:.3f} | "
            f"**{times[1] / times[0]:.1f}** | {busy[1] / busy[0]:.1f} | "
            f"{memory[0]:.0f} | {memory[1]:.0f} | {started} |"
        )
    for side in sides:
        side.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="interpreter with neural-tangents, or 'serve'")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="words that a row must hold")
    arguments = parser.parse_args()
    if arguments.python == "serve":
        import tpcompile  # noqa: F401 (imports are no part of a first call)

        serving.serve(prepare)
        return
    commands = [
        [sys.executable, str(HERE / "nt_speed.py"), "serve"],
        [arguments.python, str(HERE / "nt_worker.py"), "serve"],
    ]
    print("| model | numbers | inputs | kernels | s | s, NT | ratio | of CPU time | MB | MB, NT | first call | NT |")
    print("|" + "---|" * 12)
    for name, (spec, shape, rows, columns) in MODELS.items():
        for dtype in ("float32", "float64"):
            for other in (None, columns):
                request = serving.Request(repr(spec), shape, rows, other, dtype, "both")
                words = f"{name} {dtype} {'symmetric' if other is None else 'rectangular'}"
                if all(word in words for word in arguments.only):
                    for row in compared(commands, request, arguments.rounds, arguments.threads):
                        print(f"| {name} | {row}", flush=True)


if __name__ == "__main__":
    main()
