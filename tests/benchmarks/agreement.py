"""The agreement study: limit against extrapolated finite width. Prints its table; ``--out`` keeps it.

    python tests/benchmarks/agreement.py --out agreement      # all (about 12 minutes on one core): agreement.json, .md
    python tests/benchmarks/agreement.py "mup tanh" tied      # configurations whose names contain one of these
    python tests/benchmarks/agreement.py minibatches --times 4    # four times as many seeds, all others than before

What is in ``--out`` already is not run again. The criterion is that of :class:`comparison.Comparison`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agreement_cases import Study, studies
from comparison import compare, limit_values, run_widths
from finite_width import deviation

import tpcompile as tp

SEEDS = {256: 192, 512: 128, 1024: 64, 2048: 32, 4096: 16}
QUICK = {64: 64, 128: 32, 256: 16, 512: 8}
PARTICLES, REPLICAS = 16384, 16
HEAD = (
    "configuration",
    "features",
    "loss",
    "entries",
    "|z|<3",
    "max |z|",
    "Bonferroni",
    "p(max)",
    "z²/entry",
    "p(z²)",
    "resolution",
    "slope outputs",
    "slope kernels",
    "misfit",
)


def run(name: str, study: Study, seeds: dict[int, int], times: int = 1) -> dict[str, Any]:
    """One configuration: its row as plain numbers. With ``times`` the seeds of a study of its own."""
    s, begin = study.setup, time.process_time()
    compiled = tp.compile(s.make, s.inputs, s.targets, s.loss, steps=s.steps)
    options: dict[str, Any] = {"particles": PARTICLES, "replicas": REPLICAS}
    if s.output_init is not None:
        options["output_init"] = s.output_init
    limit = compiled.evaluate(**options)
    after_limit = time.process_time()
    first = zlib.crc32((name if times == 1 else f"{name} * {times}").encode()) % 100_000 * 10_000
    seeds = {n: count * times for n, count in seeds.items()}
    samples = run_widths(s, compiled.activations, seeds, first)
    assert limit.loss is not None
    row: dict[str, Any] = {
        "name": name,
        "powers": list(study.powers),
        "seeds": seeds,
        "first_seed": first,
        "losses": limit.loss.tolist(),
        "feature_change": {k: float(v["feature_change"][-1]) for k, v in limit.metrics().activations.items()},
        **compare(limit, samples, study.powers).to_dict(),
        "deviation": deviation(s, min(seeds), first, compiled.activations),
        "seconds_limit": after_limit - begin,
        "seconds": time.process_time() - begin,
    }
    if study.dot_matters:
        wrong = compiled.evaluate(**options, dot=False)
        found = compare(wrong, samples, study.powers)
        right, other = limit_values(limit), limit_values(wrong)
        start, moments = {}, s.steps + 1
        for key, value in right.items():
            a, b = value.reshape(moments, -1)[0], other[key].reshape(moments, -1)[0]
            start[key] = float((a - b).norm() / a.norm()) if float(a.norm()) > 0 else 0.0
        last = right["outputs"].reshape(moments, -1)[-1]
        row["without_dot"] = {
            "worst_z": found.worst_z,
            "worst_at": found.worst_at,
            "chi2": found.chi2,
            "change_at_start": start,
            "output_change_at_end": float((other["outputs"].reshape(moments, -1)[-1] - last).norm() / last.norm()),
        }
    return row


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    changes = list(row["feature_change"].values())
    kernel = max(changes) < 1e-6
    slopes = [f"{a:.2f} ± {e:.2f}" for a, e in row["slopes"].values()]
    return (
        row["name"],
        "0 (kernel)" if kernel else f"{min(changes):.0%} to {max(changes):.0%}",
        f"{row['losses'][0]:.2f} → {row['losses'][-1]:.2f}",
        str(row["entries"]),
        f"{row['inside']:.1%}",
        f"{abs(row['worst_z']):.2f}",
        f"{row['bonferroni']:.2g}",
        f"{row['p_worst']:.2g}",
        f"{row['chi2']:.2f}",
        f"{row['p_chi2']:.2g}",
        f"{row['resolution']:.1%}",
        *slopes,
        f"{row['misfit']:.2f}",
    )


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """What holds over all configurations."""
    entries = sum(r["entries"] for r in rows)
    inside = sum(r["inside"] * r["entries"] for r in rows)
    worst = max(rows, key=lambda r: abs(r["worst_z"]))
    size = abs(worst["worst_z"])
    adjusted = min(1.0, 2 * float(stats.norm.sf(size)) * entries)
    lines = [
        f"{len(rows)} configurations, {entries} comparisons: {inside / entries:.2%} with |z| < 3 (normal law: 99.73%).",
        f"Largest |z| {size:.2f} ({worst['name']}, {worst['worst_at']}): significance {adjusted:.2g} after "
        "Bonferroni over all comparisons.",
    ]
    for key, label in (("p_worst", "max |z|"), ("p_chi2", "z²")):
        values = [r[key] for r in rows]
        uniform = float(stats.kstest(values, "uniform").pvalue) if len(values) > 4 else float("nan")
        lines.append(
            f"p-values of {label} (bootstrap): smallest {min(values):.2g}, "
            f"{sum(v < 0.05 for v in values)} of {len(rows)} below 0.05 "
            f"({0.05 * len(rows):.1f} expected), Kolmogorov-Smirnov against uniform p = {uniform:.2g}."
        )
    slopes = [s for r in rows for s in r["slopes"].values()]
    off = [f"{r['name']} ({k} {s[0]:.2f})" for r in rows for k, s in r["slopes"].items() if abs(s[0] + 0.5) > 0.1]
    lines.append(
        f"Slopes: {sum(s[0] for s in slopes) / len(slopes):.3f} on average, "
        f"outside -0.5 ± 0.1: {', '.join(off) if off else 'none'}."
    )
    lines.append(
        f"CPU time {sum(r['seconds'] for r in rows) / 60:.1f} minutes, of it limits "
        f"{sum(r['seconds_limit'] for r in rows) / 60:.1f}."
    )
    return lines


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table and its summary."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(cells(r)) + " |" for r in rows]
    lines += ["", *(f"- {line}" for line in summary(rows))]
    wrong = [r for r in rows if "without_dot" in r]
    if wrong:
        lines += ["", "Without the response (dot) terms, compared with the same finite widths:", ""]
        lines += [
            "| configuration | max abs z | at | z²/entry | change at step 0 | outputs after training |",
            "|---|---|---|---|---|---|",
        ]
    for r in wrong:
        d = r["without_dot"]
        start = ", ".join(f"{k} {v:.1%}" for k, v in d["change_at_start"].items() if v > 1e-6) or "none"
        lines.append(
            f"| {r['name']} | {abs(d['worst_z']):.1f} | {d['worst_at']} | {d['chi2']:.1f} | {start} "
            f"| {d['output_change_at_end']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names; all configurations without")
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md as results come")
    parser.add_argument("--quick", action="store_true", help="small widths and few seeds: a try, not a study")
    parser.add_argument("--times", type=int, default=1, help="so many times the seeds, and fresh ones")
    parser.add_argument("--list", action="store_true", help="names only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = studies()
    wanted = [n for n in known if not args.names or any(part in n for part in args.names)]
    if args.list or not wanted:
        sys.exit("\n".join(known) if args.list else f"no configuration contains {args.names}; --list shows all")
    store = args.out.with_suffix(".json") if args.out else None
    done = {r["name"]: r for r in json.loads(store.read_text())} if store and store.exists() else {}
    print(" | ".join(HEAD), flush=True)
    for name in wanted:
        if name not in done:
            done[name] = run(name, known[name](), QUICK if args.quick else SEEDS, args.times)
        print(" | ".join(cells(done[name])), flush=True)
        rows = [done[n] for n in known if n in done]
        if args.out and store:
            store.write_text(json.dumps(rows, indent=1))
            args.out.with_suffix(".md").write_text(markdown(rows))
    print("\n" + "\n".join(summary([done[n] for n in wanted])))


if __name__ == "__main__":
    main()
