"""From the user's PyTorch factory to one traced graph that knows its powers of the width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from tpcompile.capture.align import Aligned, align, prune, simplify
from tpcompile.capture.arguments import Arguments, check_arguments
from tpcompile.capture.constants import fold_constants, graph_module, numbers_in_place, value_or_law
from tpcompile.capture.graph import Capture, GraphNode, Origin, Ref, Scaled, Size
from tpcompile.capture.initialisation import copies, parameter_laws
from tpcompile.capture.optimizers import shared_rates
from tpcompile.capture.powers import power_of
from tpcompile.capture.probe import Probe, build, check_shapes, preserved_state
from tpcompile.capture.progressions import with_progressions
from tpcompile.capture.tap import tap
from tpcompile.capture.unroll import ProbeTrace, trace_run
from tpcompile.capture.variation import more_derivatives
from tpcompile.errors import (
    CaptureError,
    FactoryError,
    InitialisationError,
    ProportionError,
    TpcompileError,
    UsageError,
)
from tpcompile.laws import Constant, Law, Normal, ParameterLaw

__all__ = ["Capture", "GraphNode", "Origin", "Ref", "Scaled", "Size", "capture", "tap"]


def capture(
    make: Callable[[int], Any],
    inputs: Any,
    targets: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    steps: int = 0,
    test_inputs: torch.Tensor | None = None,
    *,
    init: Mapping[str, Law] | None = None,
    widths: Sequence[int] | None = None,
    tangent: bool = False,
    variation: bool = False,
    growing: bool = False,
    exponents: bool = False,
) -> Capture:
    """Trace ``steps`` training steps of the factory's model at a few widths and compare them.

    ``inputs`` and ``targets`` are tensors (full batch) or lists of one minibatch a step. The result's
    graph has every size and number as a power of the width, and every parameter its law. Where the three default
    widths are too small (a quarter of a head's rotary frequencies, say), four times as large ones are tried.
    ``tangent=True`` adds the per-sample Jacobians, ``variation=True`` the derivative along random directions of the
    parameters, ``growing=True`` allows an output that grows with the width, ``exponents=True`` adds parameters,
    gradients and finite activations to the outputs. Raises a
    :class:`~tpcompile.errors.TpcompileError` that names the place for everything that cannot be captured.
    """
    arguments = check_arguments(
        make, inputs, targets, loss, optimizer, steps, test_inputs, init, widths, tangent, variation, exponents
    )
    try:
        return _captured(arguments, growing, exponents)
    except (ProportionError, InitialisationError):
        if widths is not None:
            raise
        wider = replace(arguments, widths=tuple(4 * width for width in arguments.widths))
        with suppress(TpcompileError):
            return _captured(wider, growing, exponents)
        raise


def _captured(arguments: Arguments, growing: bool, exponents: bool) -> Capture:
    with preserved_state():
        probes, traces, aligned = _aligned(arguments)
        recordings = {p.width: p.recording for p in probes}
        folded = fold_constants(aligned, recordings)
        kept, activations = _select_activations(folded.aligned, traces[0], growing or exponents, exponents)
        final = prune(with_progressions(simplify(kept), probes, arguments.init))
        rates = _learning_rates(probes, traces)
        data, laws, copied = _leaf_values(final, probes, arguments.init, rates)
        used = set(final.nodes)
        data |= {name: value for name, value in folded.data.items() if name in used}
        laws |= {name: law for name, law in folded.laws.items() if name in used}
        return Capture(
            nodes=numbers_in_place(final.nodes, laws),
            outputs=final.outputs,
            data=arguments.data() | data,
            laws=laws,
            copies=copied,
            learning_rates=rates,
            settings=_settings(probes),
            activations=activations,
            steps=arguments.steps,
            graph_module=None if exponents else graph_module(prune(simplify(kept, keep_layout=True)), folded.data),
            widths=arguments.widths,
            output_shape=traces[0].output_shape,
            magnitudes=_magnitudes(final),
            notes=shared_rates(probes[0].updates.optimizer),
        )


def _traced(probes: Sequence[Probe], arguments: Arguments) -> list[ProbeTrace]:
    try:
        return [trace_run(p.module, p.updates, arguments, p.width) for p in probes]
    except CaptureError as error:
        if not (arguments.variation and more_derivatives(error)):
            raise
    return [trace_run(p.module, p.updates, arguments, p.width) for p in probes]


def _aligned(arguments: Arguments, again: bool = True) -> tuple[list[Probe], list[ProbeTrace], Aligned]:
    probes = [build(arguments, width) for width in arguments.widths]
    check_shapes(probes)
    traces = _traced(probes, arguments)
    try:
        return probes, traces, align(traces)
    except FactoryError:
        if again:
            with suppress(FactoryError):  # caches outside of the model that the first width has filled serve all now
                return _aligned(arguments, again=False)
        raise


def _magnitudes(aligned: Aligned) -> dict[str, float]:
    rows = {name: aligned.rows[name][-1] for name in aligned.nodes if name in aligned.rows}
    return {name: node.meta["magnitude"] for name, node in rows.items() if "magnitude" in node.meta}


def _select_activations(
    aligned: Aligned, trace: ProbeTrace, growing: bool, finite: bool
) -> tuple[Aligned, tuple[str, ...]]:
    """Keep the activations that the user tapped, and module outputs with batch and width axes, or ``finite`` ones."""
    if not growing:
        _check_outputs_finite(aligned)

    def wanted(key: str) -> bool:
        kind, rest = key.split("/", 1)
        if kind == "gradient" and rest.startswith("activation/"):
            rest = rest.removeprefix("activation/")
        elif kind not in ("activation", "test_activation"):
            return True
        if rest.rsplit("/", 1)[0] in trace.taps:
            return True
        return rest.rsplit("/", 1)[0] in names

    names: list[str] = []
    batch = aligned.nodes[aligned.outputs["outputs/0"].name].shape
    assert batch is not None
    for key, ref in aligned.outputs.items():
        kind, _, rest = key.partition("/")
        name, _, step = rest.rpartition("/")
        if kind != "activation" or step != "0":
            continue
        shape = aligned.nodes[ref.name].shape or ()
        grown = bool(shape) and shape[0] == batch[0] and sum(s.power for s in shape) == 1
        if grown or finite or name in trace.taps:
            names.append(name)
    outputs = {key: ref for key, ref in aligned.outputs.items() if wanted(key)}
    return Aligned(aligned.nodes, outputs, aligned.rows), tuple(names)


def _check_outputs_finite(aligned: Aligned) -> None:
    node = aligned.nodes[aligned.outputs["outputs/0"].name]
    if node.shape and any(size.power for size in node.shape):
        raise FactoryError(
            f"the model's output grows with the width: {_show_shape(node.shape)}",
            where=str(node.origin),
            advice="the output must have a fixed size; add a readout layer",
        )


def _show_shape(shape: tuple[Size, ...]) -> str:
    def show(size: Size) -> str:
        if size.power == 0:
            return str(size.coefficient)
        power = "n" if size.power == 1 else f"n^{size.power}"
        return power if size.coefficient == 1 else f"{size.coefficient}*{power}"

    return "(" + ", ".join(show(s) for s in shape) + ")"


def _leaf_values(
    aligned: Aligned, probes: Sequence[Probe], overrides: dict[str, Law], rates: dict[str, Scaled]
) -> tuple[dict[str, torch.Tensor], dict[str, ParameterLaw], dict[str, tuple[str, Scaled]]]:
    """Laws of parameters, directions and buffers, and which are copies of others.

    A fixed buffer that is the same at every width becomes a constant.
    """
    recordings = {p.width: p.recording for p in probes}
    widths = tuple(recordings)
    leaves = {node.target: name for name, node in aligned.nodes.items() if node.kind in ("parameter", "buffer")}
    directions = {node.target: name for name, node in aligned.nodes.items() if node.kind == "direction"}
    buffers = [dict(p.module.named_buffers()) for p in probes]
    unknown = sorted(set(overrides) - set(leaves) - set(buffers[0]))
    if unknown:
        raise UsageError(
            f"'{unknown[0]}' is not a parameter of the model",
            where="init",
            advice=f"parameters: {', '.join(leaves)}",
        )
    data: dict[str, torch.Tensor] = {}
    laws: dict[str, ParameterLaw] = {}
    random_buffers: list[str] = []
    for target in buffers[0]:
        if target not in leaves:
            continue  # nothing reads it, so that its law does not matter
        if target in overrides:
            random_buffers.append(target)
            continue
        values = [b[target] for b in buffers]
        found = _fixed(values, target, probes, widths)
        if found is None:
            random_buffers.append(target)
        elif isinstance(found, torch.Tensor):
            data[leaves[target]] = found
        else:
            laws[leaves[target]] = found
    tensors = {
        p.width: {
            **dict(p.module.named_parameters()),
            **{name: b[name] for name in random_buffers},
        }
        for p, b in zip(probes, buffers, strict=True)
    }
    given = {name: law for name, law in overrides.items() if name in leaves}
    for target, law in parameter_laws(recordings, tensors, given).items():
        laws[leaves[target]] = law
    for target, name in directions.items():  # of variance the learning rate: their covariance is the tangent kernel
        rate = rates[target]
        laws[name] = Normal(math.sqrt(rate.coefficient), width_exponent=rate.exponent / 2)
    random = {w: {name: v for name, v in named.items() if name not in given} for w, named in tensors.items()}
    return data, laws, copies(random)


def _fixed(
    values: list[torch.Tensor], name: str, probes: Sequence[Probe], widths: tuple[int, ...]
) -> torch.Tensor | Law | None:
    """A buffer's data or constant law by its values, unless it is a recorded random draw."""
    recordings = {p.width: p.recording for p in probes}
    found = value_or_law(values, widths)
    if found is None:
        return None
    try:
        law = parameter_laws(recordings, {w: {name: v} for w, v in zip(widths, values, strict=True)})[name]
    except InitialisationError:
        return found
    return found if isinstance(law, Constant) else None


def _learning_rates(probes: Sequence[Probe], traces: Sequence[ProbeTrace]) -> dict[str, Scaled]:
    """Of every parameter that trains: from the optimizer's groups, 1 without an optimizer, 0 outside its groups.

    Where a schedule changes them, the first that is not zero.
    """
    widths = [p.width for p in probes]
    without = probes[0].updates.kind is None
    rates = {}
    for name, parameter in probes[0].module.named_parameters():
        if not parameter.requires_grad:
            continue
        steps = list(zip(*([rates.get(name, 0.0) for rates in trace.learning_rates] for trace in traces), strict=True))
        values = [1.0] * len(probes) if without else next((v for v in steps if any(v)), steps[0])
        scaled = power_of(values, widths)
        if scaled is None:
            shown = ", ".join(f"width {n}: {v:.8g}" for n, v in zip(widths, values, strict=True))
            raise FactoryError(
                f"the learning rate of '{name}' is not c * n^e ({shown})",
                where=f"the optimizer's group of parameter '{name}'",
                advice="use a constant times a power of the width",
            )
        rates[name] = scaled if scaled.coefficient else Scaled(0.0, Fraction(0))
    return rates


def _settings(probes: Sequence[Probe]) -> dict[str, dict[str, Scaled]]:
    """Epsilon, weight decay and the like of every parameter's group, where they are powers of the width."""
    widths = [p.width for p in probes]
    found: dict[str, dict[str, Scaled]] = {}
    for name, group in probes[0].updates.groups.items():
        for key, value in group.items():
            values = [p.updates.groups.get(name, {}).get(key) for p in probes]
            if isinstance(value, bool) or not all(isinstance(v, int | float) for v in values):
                continue
            scaled = power_of([float(v) for v in values if v is not None], widths)
            if scaled is not None:
                found.setdefault(name, {})[key] = scaled
    return found
