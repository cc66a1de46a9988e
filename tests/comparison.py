"""Is the limit inside the errors of the extrapolated finite-width mean? The criterion of the agreement study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from finite_width import Setup, Values, train, upper
from scipy import stats
from torch import Tensor

from tpcompile.compiled import Compiled
from tpcompile.results import LimitResult
from tpcompile.statistics import combined_dof, extrapolate, fit_slope, normal_score

BOOTSTRAPS = 2000
Samples = dict[int, dict[str, Tensor]]  # of each width and quantity: (seeds, entries)


@dataclass(frozen=True)
class Comparison:
    """All entries of the outputs and feature kernels at every step, compared at once.

    ``z`` of an entry is the difference between limit and extrapolated finite-width mean in combined standard
    errors, as a normal score of Student's t. ``bonferroni`` is the significance of the largest, ``worst_z``, over
    ``entries`` comparisons; ``p_worst`` and ``p_chi2`` are those of the largest |z| and of ``chi2`` (mean z^2 of
    an entry) under the correlations between entries, by a wild bootstrap over the seeds. ``resolution`` is the
    median over quantities of RMS combined standard error over RMS limit: what the comparison could have seen.
    ``limit_share`` is the limit's largest part in that variance. The slopes are of the single-draw distance;
    ``misfit`` is that of the extrapolation.
    """

    entries: int
    inside: float
    worst_z: float
    worst_at: str
    bonferroni: float
    chi2: float
    p_worst: float
    p_chi2: float
    resolution: float
    limit_share: float
    misfit: float
    slopes: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def run_widths(
    setup: Setup,
    activations: Sequence[str],
    seeds: Mapping[int, int],
    first: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Train ``seeds[n]`` networks of every width n; all seeds differ, and start at ``first``."""
    samples: Samples = {}
    for width, count in seeds.items():
        runs: list[Values] = []
        for _ in range(count):
            runs.append(train(setup, width, first, activations))
            first += 1
        samples[width] = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
        if progress is not None:
            progress(width)
    return samples


def limit_values(limit: LimitResult, errors: bool = False) -> Values:
    """Outputs and kernels of the limit, or their standard errors, flat as the samples are."""
    kernels = limit.kernels_stderr if errors else limit.kernels
    found = {"outputs": (limit.outputs_stderr if errors else limit.outputs).flatten()}
    return found | {f"kernel {name}": upper(kernel).flatten() for name, kernel in kernels.items()}


def compare(limit: LimitResult, samples: Samples, powers: Sequence[float] = (1, 2)) -> Comparison:
    """Compare a limit with finite widths, extrapolated in ``powers`` of 1/n. Entries without spread are left out."""
    wanted, errors = limit_values(limit), limit_values(limit, errors=True)
    z_all, boots, labels, resolutions, shares, misfits = [], [], [], [], [], []
    for name, value in wanted.items():
        draws = {n: s[name] for n, s in samples.items()}
        found = extrapolate(draws, powers)
        finite, own = found.stderr.square(), errors[name].square()
        scale = max(_rms(value), 1e-300)
        usable = (finite + own).sqrt() > 1e-7 * scale  # a zero output at the start is no comparison
        if not bool(usable.any()):
            continue
        t = ((found.mean - value) / (finite + own).sqrt())[usable]
        dof = combined_dof([finite, own], [found.dof, limit.replicas - 1])[usable]
        z_all.append(normal_score(t, dof))
        labels += [f"{name}[{int(i)}]" for i in torch.nonzero(usable)[:, 0]]
        boots.append(_bootstrap(draws, found.weights)[:, usable] / found.stderr[usable])
        resolutions.append(_rms((finite + own).sqrt()) / scale)
        shares.append(float((own / (finite + own))[usable].mean()))
        misfits.append(math.nan if found.misfit is None else found.misfit)
    z, null = torch.cat(z_all), torch.cat(boots, 1)
    worst = int(z.abs().argmax())
    size = float(z.abs()[worst])
    null_chi2, chi2 = null.square().mean(1), float(z.square().mean())
    return Comparison(
        entries=len(z),
        inside=float((z.abs() < 3).double().mean()),
        worst_z=float(z[worst]),
        worst_at=labels[worst],
        bonferroni=min(1.0, 2 * float(stats.norm.sf(size)) * len(z)),
        chi2=chi2,
        p_worst=_tail(null.abs().amax(1), size),
        p_chi2=_tail(null_chi2, chi2),
        resolution=float(torch.tensor(resolutions).median()),
        limit_share=max(shares),
        misfit=float(torch.tensor(misfits).mean()),
        slopes=_slopes(wanted, samples),
    )


def _bootstrap(draws: Mapping[int, Tensor], weights: Mapping[int, float]) -> Tensor:
    """Noise of an extrapolated mean: residuals under random signs; the same signs for every quantity."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for n, values in draws.items():
        count = len(values)
        signs = 2.0 * torch.randint(0, 2, (BOOTSTRAPS, count), generator=generator).double() - 1
        residuals = (values - values.mean(0)) * math.sqrt(count / (count - 1))
        total = total + weights[n] / count * signs @ residuals
    return total


def _tail(null: Tensor, value: float) -> float:
    return (1 + int((null >= value).sum())) / (1 + len(null))


def _slopes(wanted: Values, samples: Samples) -> dict[str, tuple[float, float]]:
    """Slopes of the RMS distance of single draws from the limit, for the outputs and all kernels in their own units."""
    found = {}
    for group, names in {"outputs": ["outputs"], "kernels": [k for k in wanted if k != "outputs"]}.items():
        distances, errors = [], []
        for values in samples.values():
            squares = torch.stack(
                [(values[k] - wanted[k]).square().mean(1) / wanted[k].square().mean() for k in names]
            ).mean(0)
            distance = float(squares.mean().sqrt())
            distances.append(distance)
            errors.append(float(squares.std()) / math.sqrt(len(squares)) / 2 / distance)
        slope = fit_slope(list(samples), distances, errors)
        found[group] = (slope.slope, slope.stderr)
    return found


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def setup_of(compiled: Compiled, output_init: str | None = None) -> Setup:
    """The finite-width run of what was compiled."""
    c = compiled
    assert c.loss is not None
    return Setup(c.make, c.inputs, c.targets, c.loss, c.steps, output_init)
