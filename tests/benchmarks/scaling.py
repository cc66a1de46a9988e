"""Cost of compiling and evaluating: in steps, batch, particles; memory; compile time; length of the program.

python tests/benchmarks/scaling.py --out scaling.md
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from zoo import data, mlp

import tpcompile as tp
from tpcompile.compiled import Compiled

PARAMETRIZATIONS = {"mup": 0.3, "ntk": 0.3}


def build(parametrization: str, depth: int, batch: int, steps: int, lr: float = 0.1) -> Compiled:
    """A tanh network, compiled."""
    x, y = data(batch, 8)
    return tp.compile(mlp("tanh", depth, parametrization, d=8, lr=lr), x, y, F.mse_loss, steps=steps)


def compile_times(depth: int, steps: int, batch: int) -> list[dict]:
    """From capture to program, once cold for each parametrization."""
    rows = []
    for name in PARAMETRIZATIONS:
        start = time.perf_counter()
        compiled = build(name, depth, batch, steps)
        rows.append({"parametrization": name, "seconds": time.perf_counter() - start, "nodes": len(compiled.program)})
    return rows


def lengths() -> list[dict]:
    """Nodes of the program against steps and batch."""
    rows = []
    for name in PARAMETRIZATIONS:
        steps = {t: len(build(name, 3, 3, t).program) for t in (2, 4, 6, 8, 10)}
        batches = {b: len(build(name, 3, b, 4).program) for b in (2, 8, 32)}
        increments = [(steps[t] - steps[t - 2]) / 2 for t in (4, 6, 8, 10)]
        rows.append({"parametrization": name, "steps": steps, "batches": batches, "nodes a step": increments})
    return rows


def scaling(repeats: int, depth: int = 3) -> dict:
    """Fit of ``time = overhead * T + c * depth * M * (B T)^2`` by least squares of relative errors."""
    points = []
    cases = [(t, b, m) for t, b in ((4, 8), (8, 8), (16, 8), (8, 16), (8, 32), (16, 32)) for m in (4096, 8192)]
    compiled = {(t, b): build("mup", depth, b, t) for t, b, m in cases if m == 4096}
    seconds: dict[tuple[int, int, int], list[float]] = {case: [] for case in cases}
    for seed in range(repeats):
        for t, b, m in cases:
            start = time.perf_counter()
            compiled[t, b].evaluate(particles=m, replicas=1, extrapolate=False, seed=seed)
            seconds[t, b, m].append(time.perf_counter() - start)
    rows, right = [], []
    for (t, b, m), values in seconds.items():
        median = statistics.median(values)
        points.append({"steps": t, "batch": b, "particles": m, "seconds": median})
        rows.append([t / median, depth * m * t * b / median, depth * m * (t * b) ** 2 / median])
        right.append(1.0)
    a = torch.tensor(rows, dtype=torch.float64)
    solution = torch.linalg.lstsq(a, torch.tensor(right, dtype=torch.float64)[:, None]).solution.flatten()
    errors = (a @ solution - 1).abs()
    return {
        "overhead a step": float(solution[0]),
        "per layer, particle, BT": float(solution[1]),
        "per layer, particle, (BT)^2": float(solution[2]),
        "largest relative error of the fit": float(errors.max()),
        "points": points,
    }


def large(steps: int, batch: int, particles: int, threads: int) -> dict:
    """The large case with default replicas, in a process of its own for its peak memory."""
    command = [sys.executable, __file__, "--child", *map(str, (steps, batch, particles, threads))]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def child(steps: int, batch: int, particles: int, threads: int) -> None:
    """Compile and evaluate; prints times and the peak of resident memory."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    compiled = build("mup", 3, batch, steps, lr=0.05)
    compiling = time.perf_counter() - start
    gc.collect()
    start = time.perf_counter()
    found = compiled.evaluate(particles=particles)
    evaluating = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    assert found.loss is not None
    out = {"steps": steps, "batch": batch, "particles": particles, "nodes": len(compiled.program)}
    out |= {
        "compile": compiling,
        "evaluate": evaluating,
        "peak GiB": peak,
        "loss": [float(found.loss[i]) for i in (0, -1)],
    }
    print(json.dumps(out))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-large", action="store_true")
    parser.add_argument("--large", type=int, nargs=3, default=[50, 32, 8192], metavar=("STEPS", "BATCH", "PARTICLES"))
    parser.add_argument("--child", type=int, nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="FILE.md or FILE.json")
    args = parser.parse_args()
    if args.child:
        steps, batch, particles, threads = args.child
        child(steps, batch, particles, threads)
        return
    torch.set_num_threads(args.threads)
    result: dict = {"compile": compile_times(4, 10, 3), "length": lengths(), "scaling": scaling(args.repeats)}
    if not args.skip_large:
        steps, batch, particles = args.large
        result["large"] = large(steps, batch, particles, args.threads)
    text = table(result)
    print(text)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) if args.out.suffix == ".json" else text)


def table(result: dict) -> str:
    """All of it as markdown."""
    lines = ["### Compile time, 4 hidden layers, 10 steps (target: below 10 s)", ""]
    lines += ["| parametrization | seconds | nodes |", "|---|---|---|"]
    lines += [f"| {r['parametrization']} | {r['seconds']:.2f} | {r['nodes']} |" for r in result["compile"]]
    lines += [
        "",
        "### Length of the program, 3 hidden layers",
        "",
        "| parametrization | nodes by steps | nodes by batch ",
    ]
    lines[-1] += "| nodes a step |"
    lines += ["|---|---|---|---|"]
    for r in result["length"]:
        cells = [", ".join(f"{k}: {v}" for k, v in r[key].items()) for key in ("steps", "batches")]
        lines.append(f"| {r['parametrization']} | {' | '.join(cells)} | {r['nodes a step']} |")
    fit = result["scaling"]
    lines += ["", "### Time of one replica, 3 hidden layers, muP tanh", "", "| steps | batch | particles | seconds |"]
    lines += ["|---|---|---|---|"]
    lines += [f"| {p['steps']} | {p['batch']} | {p['particles']} | {p['seconds']:.3f} |" for p in fit["points"]]
    lines += [
        "",
        f"Fit: {fit['overhead a step']:.1e} s a step + layers * particles * ("
        f"{fit['per layer, particle, BT']:.1e} s BT + {fit['per layer, particle, (BT)^2']:.1e} s (BT)^2), "
        f"off by at most {100 * fit['largest relative error of the fit']:.0f}%.",
    ]
    if "large" in result:
        r = result["large"]
        lines += ["", "### Large case, default replicas (target: 10 minutes, 4 GB)", ""]
        lines += [", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in r.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
