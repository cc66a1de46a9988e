"""Exponents of ``tp.verify`` beside the slopes of really trained models, over sound and broken setups.

    python tests/benchmarks/verify_slopes.py [--seeds 5] [--only GRU] [--widest 1024] [--save slopes.jsonl]

A slope is that of the median over the seeds of a value's root mean square, least squares in logarithms over the widths.
Behind the first step at which something grows, powers compound and functions saturate, so that slopes at these widths
say nothing: the steps up to it are compared. What is off by more than 0.1 counts as noise where it is within two
standard errors (of the mean over the seeds), and as on its way where the last two widths alone are nearer. With --save,
results are appended as they come, and setups that are in the file already are not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from slope_setups import BROKEN, SOUND, Setup, package_setups

import tpcompile as tp
from tpcompile.parametrization.empirical import CoordinateCheck


@dataclass(frozen=True)
class Row:
    """One exponent and the slopes over all widths, and over the two widest."""

    value: str
    exact: str
    slope: float
    stderr: float
    last: float

    @property
    def off(self) -> float:
        """Distance of the slope from the exponent."""
        return abs(_number(self.exact) - self.slope)

    @property
    def noise(self) -> bool:
        """True if it is within two standard errors."""
        return self.off <= 2 * self.stderr

    @property
    def nearer(self) -> bool:
        """True if the two widest are nearer to the exponent."""
        return abs(_number(self.exact) - self.last) < self.off


@dataclass(frozen=True)
class Result:
    """What was found of a setup."""

    name: str
    verdict: str
    expected: str
    problem: str | None
    rows: list[Row]
    undecided: int
    seconds: float

    def line(self) -> str:
        """A row of the table."""
        off = [row for row in self.rows if row.off > 0.1]
        noise = sum(row.noise for row in off)
        towards = sum(row.nearer and not row.noise for row in off)
        verdict = self.verdict if self.verdict == self.expected else f"{self.verdict} (not {self.expected})"
        return (
            f"| {self.name} | {verdict} | {len(self.rows)} | {len(self.rows) - len(off)} | {noise} | {towards} | "
            f"{len(off) - noise - towards} | {self.undecided} |"
        )


def compared(name: str, setup: Setup, seeds: int, widest: int) -> Result:
    """Verify a setup, train it, and compare."""
    start = time.process_time()
    args = (setup.make, setup.inputs, setup.targets, setup.loss)
    report = tp.verify(*args, steps=setup.steps, advice=False)
    widths = tuple(n for n in setup.widths if n <= widest)
    check = tp.coordinate_check(*args, steps=setup.steps, widths=widths, seeds=seeds)
    middle = {key: sizes.median(1, keepdim=True).values for key, sizes in check.sizes.items()}
    median = CoordinateCheck(widths, 1, setup.steps, middle)
    ends = CoordinateCheck(widths[-2:], 1, setup.steps, {key: sizes[-2:] for key, sizes in middle.items()})
    last = next((t for t in range(setup.steps + 1) if _grows(report, t)), setup.steps)
    rows, undecided = [], 0
    for quantity, value, step, exact, slope, _ in median.rows(report):
        if step > last or value == "loss":
            continue
        size = report.size(value, step) if quantity == "value" else report.change(value, step)
        if size.exponent is None:
            undecided += 1
        elif size.exponent != slope.slope:  # both zero exactly
            error = check.slope(quantity, value, step).stderr
            tail = ends.slope(quantity, value, step).slope
            rows.append(Row(f"{quantity} {value} {step}", exact, slope.slope, error, tail))
        else:
            rows.append(Row(f"{quantity} {value} {step}", "0", 0.0, 0.0, 0.0))
    seconds = time.process_time() - start
    return Result(name, report.verdict, setup.verdict, report.first_problem, rows, undecided, seconds)


def _grows(report: tp.Report, step: int) -> bool:
    sizes = report.values if step == 0 else report.changes
    exponents = (sizes[name, step].exponent for name in (*report.activations, "outputs"))
    return any(e is None or e > 0 for e in exponents)


def _number(exact: str) -> float:
    numerator, _, denominator = exact.partition("/")
    return float(numerator) / float(denominator or 1) if not exact.startswith("0") else 0.0


HEAD = """| setup | verdict | compared | within 0.1 | noise | on its way | off | undecided |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--widest", type=int, default=2048)
    parser.add_argument("--only", default="", help="setups whose name has this in it")
    parser.add_argument("--save", type=Path, default=None)
    chosen = parser.parse_args()
    results = _saved(chosen.save) if chosen.save is not None and chosen.save.exists() else {}
    sound, broken = ({}, {}) if importlib.util.find_spec("mup") is None else package_setups()
    for title, setups in (("Sound", SOUND | sound), ("Broken", BROKEN | broken)):
        print(f"\n{title}\n\n{HEAD}", flush=True)
        for name, setup in setups.items():
            if chosen.only not in name:
                continue
            known = name in results
            results[name] = result = results[name] if known else compared(name, setup(), chosen.seeds, chosen.widest)
            if chosen.save is not None and not known:
                with chosen.save.open("a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
            print(result.line(), flush=True)
            for row in result.rows:
                if row.off > 0.1 or not math.isfinite(row.slope):
                    text = (
                        f"    {row.value}: {row.exact}, slope {row.slope:.2f} +- {row.stderr:.2f}, last {row.last:.2f}"
                    )
                    print(text, file=sys.stderr, flush=True)
    rows = [row for result in results.values() for row in result.rows]
    inside = sum(row.off <= 0.1 for row in rows)
    print(f"\n{len(results)} setups, {len(rows)} exponents, {inside} within 0.1")


def _saved(path: Path) -> dict[str, Result]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = [Result(**{**row, "rows": [Row(**each) for each in row["rows"]]}) for row in rows]
    return {result.name: result for result in found}


if __name__ == "__main__":
    main()
