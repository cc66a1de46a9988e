"""Error of the outputs at equal wall time: the limit evaluator against finite networks, by the best strategies.

A 3-hidden-layer muP network, inputs in R^4, a batch of 3, five SGD steps, two threads. Every round runs every
configuration once, with a new seed, so that noise of the machine hits all alike; times are medians, errors
root-mean-square over seeds and outputs against a reference evaluation, whose own error is taken off in quadrature. Two
clocks: the wall, and the CPU time of the process over the number of threads, for machines that do other things besides
(it counts no waiting of threads for each other, which matters below 0.1 s). Both sides compute in float32, outputs and
nothing else, and give each thread independent work: the limit a replica, the finite side half of its networks. Finite
networks are trained by a batched loop (``finite.py``) that never writes a matrix. Errors of averages follow from the
bias and the variance of networks of a width, which large pools of networks tell beforehand: they cost the finite side
no time. Richardson extrapolation splits the time between two widths optimally, and which strategy is best at a time is
chosen after seeing the errors: all in favour of the finite side.

    python tests/benchmarks/accuracy_per_second.py --rounds 24 --out accuracy_per_second.md
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from finite import Problem, train
from zoo import data, mlp

import tpcompile as tp
from tpcompile.compiled import Compiled
from tpcompile.evaluate.threads import side_by_side

BUCKETS = (0.02, 0.06, 0.25, 1.0, 4.0)
CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "CPU": lambda: time.process_time() / torch.get_num_threads(),
}
TARGETS = {"tanh": 25.0, "relu": 10.0}
WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
COUNTS = {32: 2048, 64: 1024, 128: 256, 256: 64, 512: 16, 1024: 4, 2048: 2}  # networks a run, half on each thread
PARTICLES = tuple(2**k for k in range(10, 21))
DEFAULTS = (1024, 4096, 16384, 65536)


@dataclass
class Runs:
    """Outputs and times of one configuration, over rounds."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {clock: [] for clock in CLOCKS})
    outputs: list[Tensor] = field(default_factory=list)  # (samples, inputs) each

    def time(self, clock: str) -> float:
        """Median time of a run."""
        return statistics.median(self.seconds[clock])

    def rms(self, reference: Tensor, own: float = 0.0) -> float:
        """Root-mean-square error of single samples, that of the reference taken off; at least half of the whole."""
        square = float((torch.cat(self.outputs) - reference).square().mean())
        return math.sqrt(max(square - own**2, square / 4))


def limit_run(compiled: Compiled, particles: int, single: bool, seed: int) -> Tensor:
    """Outputs after the last step: two replicas in float32 and nothing else, or the defaults of evaluate()."""
    options: dict = {"replicas": 2, "dtype": torch.float32, "kernels": False} if single else {}
    found = compiled.evaluate(particles=particles, seed=seed, **options)
    return found.outputs[-1].reshape(1, -1).double()


def train_many(problem: Problem, width: int, count: int, seed: int) -> Tensor:
    """Outputs of ``count`` networks, half of them trained on each thread."""

    def half(index: int, progress: Callable[[int], None]) -> Tensor:
        return train(problem, width, count // 2, torch.float32, 2 * seed + index)

    return torch.cat(side_by_side(half, 2, torch.get_num_threads(), 1, None))


def pool(problem: Problem, width: int, seconds: float) -> Tensor:
    """Outputs of as many networks as can be trained in so many seconds."""
    count = COUNTS[width]
    out: list[Tensor] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(out) < 4:
        out.append(train_many(problem, width, count, 10**8 + len(out)))
    return torch.cat(out)


def collect(problem: Problem, compiled: Compiled, rounds: int) -> tuple[dict, dict, dict, dict]:
    """Interleaved runs of all configurations: the limit, with defaults, batches of networks, single networks."""
    one: dict[int, Runs] = {}
    default: dict[int, Runs] = {}
    batches: dict[int, Runs] = {}
    singles: dict[int, Runs] = {}
    jobs: list[tuple[dict[int, Runs], int, Callable[[int], Tensor]]] = [
        (one, m, partial(limit_run, compiled, m, True)) for m in PARTICLES
    ]
    jobs += [(default, m, partial(limit_run, compiled, m, False)) for m in DEFAULTS]
    for n in WIDTHS:
        k = COUNTS.get(n, 1)
        if k > 1:
            jobs.append((batches, n, partial(train_many, problem, n, k)))
        if n >= 128:
            jobs.append((singles, n, partial(train, problem, n, 1, torch.float32)))
    for store, key, job in jobs:
        store[key] = Runs()
        job(10**6)  # warm
    for seed in range(1, rounds + 1):
        for store, key, job in jobs:
            start = {clock: now() for clock, now in CLOCKS.items()}
            out = job(seed * 7919 + key)
            for clock, now in CLOCKS.items():
                store[key].seconds[clock].append(now() - start[clock])
            store[key].outputs.append(out)
    return one, default, batches, singles


def interpolate(points: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """Error at a time: log-log, extended by the slope -1/2 beyond the last point; None before the first."""
    points = sorted(points)
    if seconds < points[0][0]:
        return None
    for (t0, e0), (t1, e1) in itertools.pairwise(points):
        if t0 <= seconds <= t1:
            w = math.log(seconds / t0) / max(math.log(t1 / t0), 1e-12)
            return math.exp((1 - w) * math.log(e0) + w * math.log(e1))
    t, e = points[-1]
    return e * math.sqrt(t / seconds)


@dataclass(frozen=True)
class Networks:
    """Networks of one width: seconds for one in a batch, mean and variance of the mean of a pool, variance of one."""

    cost: float
    mean: Tensor
    noise: Tensor
    variance: float

    @staticmethod
    def of(outputs: Tensor, runs: Runs, clock: str) -> Networks:
        """From the outputs of a pool and from timed runs."""
        noise = outputs.var(0) / len(outputs)
        return Networks(
            runs.time(clock) / runs.outputs[0].shape[0], outputs.mean(0), noise, float(outputs.var(0).mean())
        )


def averages(pools: Mapping[int, Networks], reference: Tensor, seconds: float) -> tuple[float, str] | None:
    """Best error of averages over as many networks of one width as the time allows."""
    best = None
    for n, p in pools.items():
        k = int(seconds / p.cost)
        if k < 2:
            continue
        bias2 = max(float(((p.mean - reference).square() - p.noise).mean()), 0.0)
        error = math.sqrt(bias2 + p.variance / k)
        if best is None or error < best[0]:
            best = error, f"{k} x n={n}"
    return best


def richardson(pools: Mapping[int, Networks], reference: Tensor, seconds: float) -> tuple[float, str] | None:
    """Best error of ``2 f(2n) - f(n)`` over averages, the time split in the best way between the widths."""
    best = None
    for n in pools:
        if 2 * n not in pools:
            continue
        small, large = pools[n], pools[2 * n]
        if seconds < 2 * (small.cost + large.cost):
            continue
        rest = (2 * large.mean - small.mean - reference).square() - 4 * large.noise - small.noise
        bias2 = max(float(rest.mean()), 0.0)
        spread = math.sqrt(small.variance * small.cost) + 2 * math.sqrt(large.variance * large.cost)
        error = math.sqrt(bias2 + spread**2 / seconds)
        if best is None or error < best[0]:
            best = error, f"n={n}, {2 * n}"
    return best


def measure(phi: str, rounds: int, replicas: int, particles: int, pool_seconds: float) -> dict:
    """Everything for one activation."""
    x, y = data()
    start = time.perf_counter()
    compiled = tp.compile(mlp(phi, 3, lr=0.3), x, y, F.mse_loss, steps=5)
    compile_time = time.perf_counter() - start
    small = compiled.evaluate(particles=16384, seed=98)
    moved = min(float(c[-1].mean()) for c in small.feature_changes.values())
    options: dict = {"dtype": torch.float32, "kernels": False, "seed": 99}
    best = compiled.evaluate(particles=particles, replicas=replicas, **options)
    reference = best.outputs[-1].flatten().double()
    own = float(best.outputs_stderr[-1].square().mean().sqrt())
    problem = Problem(phi, x, y)
    known = {n: pool(problem, n, pool_seconds) for n in COUNTS}
    one, default, batches, singles = collect(problem, compiled, rounds)
    facts = {"phi": phi, "compile": compile_time, "reference error": own, "least feature change": moved}
    return facts | {
        clock: _compared(clock, one, default, batches, singles, known, reference, own, compile_time) for clock in CLOCKS
    }


def _compared(
    clock: str,
    one: Mapping[int, Runs],
    default: Mapping[int, Runs],
    batches: Mapping[int, Runs],
    singles: Mapping[int, Runs],
    known: Mapping[int, Tensor],
    reference: Tensor,
    own: float,
    compile_time: float,
) -> dict:
    """The rows of the table and what they are made of, by one clock."""
    pools = {n: Networks.of(known[n], batches[n], clock) for n in COUNTS}
    limit = [(r.time(clock), r.rms(reference, own)) for r in one.values()]
    usual = [(r.time(clock), r.rms(reference, own)) for r in default.values()]
    single = [(r.time(clock), r.rms(reference), n) for n, r in singles.items()]
    rows = []
    for bucket in BUCKETS:
        fits = [(e, f"n={n}") for t, e, n in single if t <= bucket]
        finite = {
            "single": min(fits) if fits else None,
            "averages": averages(pools, reference, bucket),
            "richardson": richardson(pools, reference, bucket),
        }
        errors = [v[0] for v in finite.values() if v]
        row = {"seconds": bucket, "limit": interpolate(limit, bucket), "default": interpolate(usual, bucket)}
        row["compile included"] = interpolate([(t + compile_time, e) for t, e in limit], bucket)
        row |= finite | {"best finite": min(errors) if errors else None}
        rows.append(row)
    raw = {
        "limit": {m: (r.time(clock), r.rms(reference, own)) for m, r in one.items()},
        "default": {m: (r.time(clock), r.rms(reference, own)) for m, r in default.items()},
        "single": {n: (r.time(clock), r.rms(reference)) for n, r in singles.items()},
        "networks": {
            n: (p.cost, math.sqrt(p.variance), float((p.mean - reference).square().mean().sqrt()), len(known[n]))
            for n, p in pools.items()
        },
    }
    return {"rows": rows, "raw": raw}


def table(result: dict) -> str:
    """The comparison as markdown."""

    def show(v: float | tuple[float, str] | None) -> str:
        if v is None:
            return "-"
        return f"{v[0]:.1e} ({v[1]})" if isinstance(v, tuple) else f"{v:.1e}"

    names = ("limit", "default", "compile included", "single", "averages", "richardson")
    lines = [
        f"### {result['phi']}",
        "",
        f"Compile time {result['compile']:.2f} s; error of the reference {result['reference error']:.1e}; every "
        f"layer's features move by at least {result['least feature change']:.2f}; target: {TARGETS[result['phi']]:g}x.",
    ]
    for clock in CLOCKS:
        lines += [
            "",
            f"| {clock} seconds | " + " | ".join(names) + " | best finite / limit | best finite / default |",
            "|" + "---|" * (len(names) + 3),
        ]
        for row in result[clock]["rows"]:
            cells = [show(row[name]) for name in names]
            for name in ("limit", "default"):
                ready = row[name] is not None and row["best finite"] is not None
                cells.append(f"{row['best finite'] / row[name]:.1f}x" if ready else "-")
            lines.append(f"| {row['seconds']:g} | " + " | ".join(cells) + " |")
        raw = result[clock]["raw"]
        for name in ("limit", "default", "single"):
            what = "width" if name == "single" else "particles"
            lines += ["", f"{name}: " + ", ".join(f"{what} {k}: {t:.3f} s {e:.1e}" for k, (t, e) in raw[name].items())]
        told = (f"width {n}: {c:.2e} s {d:.1e} {b:.1e} ({k})" for n, (c, d, b, k) in raw["networks"].items())
        lines += ["", "networks, by time of one, deviation, bias (networks in the pool): " + ", ".join(told)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phi", nargs="+", default=["tanh", "relu"])
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--reference-replicas", type=int, default=64)
    parser.add_argument("--reference-particles", type=int, default=524288)
    parser.add_argument("--pool-seconds", type=float, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="FILE.md or FILE.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = []
    for phi in args.phi:
        results.append(measure(phi, args.rounds, args.reference_replicas, args.reference_particles, args.pool_seconds))
        print(table(results[-1]), flush=True)
    if args.out:
        text = json.dumps(results, indent=1) if args.out.suffix == ".json" else "\n".join(map(table, results))
        args.out.write_text(text)


if __name__ == "__main__":
    main()
