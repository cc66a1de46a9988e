"""The exact law of every parameter, recorded while the user's factory runs (architecture, decision 3)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from tpcompile.capture.draws import Footprint
from tpcompile.capture.graph import Scaled
from tpcompile.capture.powers import power_of, size_of
from tpcompile.capture.recorder import Recorder
from tpcompile.capture.transfer import NEGLIGIBLE, RULES
from tpcompile.errors import InitialisationError, UsageError
from tpcompile.laws import Constant, Law, Normal, ParameterLaw, Pieces, TruncatedNormal

MAX_DENOMINATOR = 12
# Numbers may have gone through a few float32 roundings (std as a tensor); a wrong exponent or a
# formula that is not a power, such as 1/sqrt(n + 1), is off by far more at the probe widths.
TOLERANCE = 1e-6
_ZERO = 1e-12  # relative to the largest number of the law


@dataclass(frozen=True)
class Recording:
    """One run of the factory at one width. ``result`` is what the factory returned."""

    result: Any
    recorder: Recorder

    def law_of(self, tensor: Tensor) -> ParameterLaw:
        """The exact law of the entries of ``tensor`` (any shape) at this width, exponent 0.

        Raises :class:`InitialisationError` with the reason if the entries are not independent draws
        of one law (or of one a slice), or if the law is unknown.
        """
        law = self.recorder.read(tensor)
        if isinstance(law, str):
            raise InitialisationError(f"the tensor of shape {tuple(tensor.shape)} {law}")
        return law

    def dependence(self, first: Tensor, second: Tensor) -> str | None:
        """Why two tensors are not independent, as a predicate of both, or None if they are."""
        return self.recorder.ledger.dependence(self._footprint(first), self._footprint(second))

    def _footprint(self, tensor: Tensor) -> Footprint | None:
        return self.recorder.ledger.footprint(self.recorder.cells(tensor).draw.reshape(-1))


def record(make: Callable[[int], Any], width: int, seed: int = 0) -> Recording:
    """Run ``make(width)`` and record every random draw, fill and the arithmetic on them.

    The random state of the caller is unchanged afterwards; errors of the factory propagate.
    """
    recorder = Recorder(RULES)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        # Other draws at every width, so that a random value that went through a Python number (which
        # nothing can follow) differs between the widths and fits no power of n.
        torch.manual_seed(1_000_003 * seed + width)
        with _watched_init_functions(recorder), recorder:
            result = make(width)
    return Recording(result, recorder)


@contextmanager
def _watched_init_functions(recorder: Recorder) -> Iterator[None]:
    """Declare the law of ``trunc_normal_``, which recent PyTorch draws by rejection.

    A loop that ends by looking at the values cannot be followed entry by entry. The private function
    is replaced because the public one, imported by name anywhere, calls it.
    """
    name = "_no_grad_trunc_normal_"
    original = getattr(torch.nn.init, name, None)
    if original is None:
        yield
        return
    signature = inspect.signature(original)

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        bound = signature.bind(*args, **kwargs).arguments
        mean, std, low, high = (float(bound[k]) for k in ("mean", "std", "a", "b"))
        generator = bound.get("generator")
        stretch = recorder.before_draw(generator)
        with recorder.paused():
            result = original(*args, **kwargs)
        recorder.after_draw(generator)
        if not result.is_meta:
            recorder.declare(bound["tensor"], _truncated_normal(mean, std, low, high), stretch)
        return result

    setattr(torch.nn.init, name, watched)
    try:
        yield
    finally:
        setattr(torch.nn.init, name, original)


def _truncated_normal(mean: float, std: float, low: float, high: float) -> Law:
    """Bounds beyond which there is no probability in double precision are no bounds."""
    outside = math.erfc((mean - low) / std / math.sqrt(2)) + math.erfc((high - mean) / std / math.sqrt(2))
    return Normal(std, mean) if outside <= 2 * NEGLIGIBLE else TruncatedNormal(std, low, high, mean)


def fit_parameter(name: str, laws: Mapping[int, ParameterLaw]) -> ParameterLaw:
    """:func:`fit_law`, slice by slice where slices have laws of their own; their ends must be ``c * n**p``."""
    if not any(isinstance(law, Pieces) for law in laws.values()):
        return fit_law(name, {n: law for n, law in laws.items() if not isinstance(law, Pieces)})
    pieces = {n: law for n, law in laws.items() if isinstance(law, Pieces)}
    first = next(iter(pieces.values()))
    if len(pieces) < len(laws) or len({(p.axis, len(p.laws)) for p in pieces.values()}) > 1:
        raise InitialisationError(
            f"parameter '{name}' has entries of different laws, in slices that are not the same ones at each width",
            advice=_advice(name),
        )
    ends = []
    for k in range(len(first.ends)):
        at_width = [int(p.ends[k][0]) for p in pieces.values()]
        size = size_of(at_width, list(pieces))
        ends.append(size and (size.coefficient, size.power))
        if size is None or (ends[0] and size.power != ends[0][1]):
            raise InitialisationError(
                f"parameter '{name}' has entries of different laws, in slices that end at {at_width} at widths "
                f"{list(pieces)}: no fixed share of an axis",
                advice=_advice(name),
            )
    found = (fit_law(name, {n: p.laws[k] for n, p in pieces.items()}) for k in range(len(first.laws)))
    return Pieces(first.axis, tuple(ends), tuple(found))


def fit_law(name: str, laws: Mapping[int, Law]) -> Law:
    """One law ``n**e * law`` from the laws at each width (at least three, all exponents 0).

    ``e`` is a fraction with denominator at most 12, and all numbers of the law (standard deviation,
    mean, bounds) scale with it. Raises :class:`InitialisationError` that names the parameter and shows
    the numbers at each width otherwise.
    """
    if len(laws) < 3:
        raise UsageError(f"the law of '{name}' needs three widths or more, got {sorted(laws)}")
    widths = sorted(laws)
    found = {n: _without_spread(laws[n]) for n in widths}
    observed = ", ".join(f"width {n}: {_show(found[n])}" for n in widths)
    if len({type(law) for law in found.values()}) > 1:
        raise InitialisationError(f"parameter '{name}' has a different kind of law at each width ({observed})")
    first = found[widths[0]]
    columns = {key: [_numbers(found[n])[key] for n in widths] for key in _numbers(first)}
    fits = {key: _fit_power(widths, column) for key, column in columns.items()}
    powers = {fit[1] for fit in fits.values() if fit is not None and fit[0] != 0}
    if None in fits.values():
        raise InitialisationError(
            f"parameter '{name}' has a law that is not c * n^e, with e a fraction of denominator at most "
            f"{MAX_DENOMINATOR} ({observed})",
            advice=_advice(name),
        )
    if len(powers) > 1:
        each = ", ".join(f"{key} as n^{fit[1]}" for key, fit in fits.items() if fit is not None and fit[0] != 0)
        raise InitialisationError(
            f"parameter '{name}' has a law whose numbers scale with different powers of the width: {each} ({observed})",
            advice="split the parameter into a sum of two, one for each power",
        )
    numbers = {key: fit[0] for key, fit in fits.items() if fit is not None}
    return replace(first, **numbers, width_exponent=next(iter(powers), Fraction(0)))


def parameter_laws(
    recordings: Mapping[int, Recording],
    tensors: Mapping[int, Mapping[str, Tensor]],
    overrides: Mapping[str, Law] | None = None,
) -> dict[str, ParameterLaw]:
    """The law of every named tensor, from recordings and the tensors by name at each width.

    ``overrides`` replaces recorded laws; each of its names must be among the tensors. Two names of one
    tensor (tied weights) are fine; two tensors that depend on each other are an error. Raises
    :class:`InitialisationError`, or :class:`UsageError` for names that do not match.
    """
    overrides = overrides or {}
    first = next(iter(tensors.values()))
    for width, named in tensors.items():
        if set(named) != set(first):
            raise UsageError(f"the parameters at width {width} have other names: {sorted(set(named) ^ set(first))}")
    if unknown := sorted(set(overrides) - set(first)):
        raise UsageError(f"init names {unknown}, which are not among the parameters {sorted(first)}")
    recorded = [name for name in first if name not in overrides]
    laws: dict[str, ParameterLaw] = {}
    for name in recorded:
        at_width = {n: _read(recordings[n], name, named[name]) for n, named in tensors.items()}
        try:
            laws[name] = fit_parameter(name, at_width)
        except InitialisationError as error:
            reads = sorted({place for r in recordings.values() for place in r.recorder.random_reads})
            if not reads:
                raise
            hint = f"the factory reads random values into Python numbers ({', '.join(reads)}), which are not followed"
            raise InitialisationError(error.what, where=error.where, advice=f"{hint}; {_advice(name)}") from error
    known = copies({n: {name: named[name] for name in recorded} for n, named in tensors.items()})
    for width, named in tensors.items():
        _check_independent(recordings[width], {name: named[name] for name in recorded if name not in known})
    return {name: overrides.get(name) or laws[name] for name in first}


def copies(tensors: Mapping[int, Mapping[str, Tensor]]) -> dict[str, tuple[str, Scaled]]:
    """Tensors that start as others times a number, as ``copy.deepcopy`` makes them: which others, and the number."""
    widths = list(tensors)
    found: dict[str, tuple[str, Scaled]] = {}
    first = tensors[widths[0]]
    for a, b in combinations(first, 2):
        if b in found or a in found or first[a] is first[b] or first[a].shape != first[b].shape:
            continue
        ratios: list[float] = []
        for named in tensors.values():
            ratio = _ratio(named[b].detach(), named[a].detach())
            if ratio is None:
                break
            ratios.append(ratio)
        number = power_of(ratios, widths, TOLERANCE) if len(ratios) == len(widths) else None
        if number is not None:
            found[b] = a, number
    return found


def _ratio(b: Tensor, a: Tensor) -> float | None:
    """``b / a`` if that is one number, of tensors that are random."""
    if not a.is_floating_point() or a.shape != b.shape or a.numel() < 2 or bool((a == a.flatten()[0]).all()):
        return None
    at = int(a.abs().argmax())
    ratio = float(b.flatten()[at].double() / a.flatten()[at].double())
    return ratio if torch.allclose(b.double(), ratio * a.double(), rtol=TOLERANCE, atol=0.0) and ratio else None


def _check_independent(recording: Recording, named: Mapping[str, Tensor]) -> None:
    ledger = recording.recorder.ledger
    footprints = {name: recording._footprint(tensor) for name, tensor in named.items()}
    for a, b in combinations(named, 2):
        if named[a] is named[b]:
            continue
        if reason := ledger.dependence(footprints[a], footprints[b]):
            raise InitialisationError(
                f"parameters '{a}' and '{b}' {reason}",
                advice="draw each on its own, or tie them as one parameter",
            )


def _read(recording: Recording, name: str, tensor: Tensor) -> ParameterLaw:
    law = recording.recorder.read(tensor)
    if isinstance(law, str):
        advice = _advice(name)
        if law.startswith("has constant entries that differ"):
            advice = (
                f"give the law of its entries with init={{'{name}': tp.Uniform(low, high)}}; where powers of the width "
                "are asked for (verify, mup) any of that size will do"
            )
        raise InitialisationError(f"parameter '{name}' {law}", advice=advice)
    return law


def _advice(name: str) -> str:
    return f"give its law with init={{'{name}': tp.Normal(std=..., width_exponent=...)}}"


def _numbers(law: Law) -> dict[str, float]:
    return {field.name: getattr(law, field.name) for field in fields(law) if field.name != "width_exponent"}


def _show(law: Law) -> str:
    return f"{type(law).__name__}({', '.join(f'{key}={value:.8g}' for key, value in _numbers(law).items())})"


def _without_spread(law: Law) -> Law:
    """A law without spread is a constant; numbers that are rounding errors of zero are zero."""
    if isinstance(law, Normal) and law.std == 0:
        return Constant(law.mean)
    numbers = _numbers(law)
    size = max(abs(value) for value in numbers.values())
    return replace(law, **{key: value if abs(value) > _ZERO * size else 0.0 for key, value in numbers.items()})


def _fit_power(widths: list[int], values: list[float]) -> tuple[float, Fraction] | None:
    """``(c, e)`` with ``values == c * widths**e``, or None."""
    if all(value == 0 for value in values):
        return 0.0, Fraction(0)
    if any(value == 0 or (value > 0) != (values[0] > 0) for value in values):
        return None
    exact = math.log(values[-1] / values[0]) / math.log(widths[-1] / widths[0])
    exponent = Fraction(exact).limit_denominator(MAX_DENOMINATOR)
    coefficients = [value / width ** float(exponent) for width, value in zip(widths, values, strict=True)]
    if any(abs(c - coefficients[0]) > TOLERANCE * abs(coefficients[0]) for c in coefficients):
        return None
    return float(f"{coefficients[0]:.15g}"), exponent  # 15 digits: the last bits are rounding errors of n**e
