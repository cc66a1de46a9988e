"""What to change for the maximal update parametrization, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from tpcompile.capture import Capture
from tpcompile.parametrization.changes import Change
from tpcompile.parametrization.decay import decay_kind
from tpcompile.parametrization.effects import uses
from tpcompile.parametrization.factors import Factor
from tpcompile.parametrization.measure import init_exponent


def factor_lines(factors: Sequence[Factor]) -> Iterator[str]:
    """One line for all products of two activations that lack the same factor."""
    missing: dict[Fraction, list[str]] = {}
    for factor in factors:
        missing.setdefault(factor.exponent, []).append(factor.where)
    for exponent, places in missing.items():
        what = "the product of two activations" if len(places) == 1 else "the products of two activations"
        yield f"{what} in {', '.join(places)}: a factor n^{exponent} is missing (attention: 1/d for 1/sqrt(d))"


def advice_lines(setup: Capture, changes: Mapping[str, Change], factors: Sequence[Factor] = ()) -> tuple[str, ...]:
    """One line for every exponent of initial values and rates, one for all parameters that share another setting's.

    And one for all products of two activations that lack the same of these factors.
    """
    lines = list(factor_lines(factors))
    shared: dict[str, list[str]] = {}
    for name, change in changes.items():
        settings = setup.settings.get(name, {})
        if change.init:
            old = Fraction(init_exponent(setup, name))
            lines.append(f"`{name}`: initial values should scale as n^{old + change.init}, they scale as n^{old}")
        if change.rate:
            old = setup.learning_rates[name].exponent
            behind = {use.factor for use in uses(setup, name, 0)} - {0}
            line = f"`{name}`: learning rate should scale as n^{old + change.rate}, it scales as n^{old}"
            lines.append(line + (f" (a factor n^{behind.pop()} is behind it)" if len(behind) == 1 else ""))
        for use, exponent in zip(uses(setup, name, 0), change.multipliers, strict=False):
            if exponent:
                where = f"module '{use.node.origin.module}'" if use.node.origin.module else "the model's own forward"
                source = f" ({use.node.origin.source})" if use.node.origin.source else ""
                lines.append(
                    f"`{name}`: where {where}{source} uses it, a factor n^{exponent} is missing: "
                    "another operation uses the same parameter at another scale"
                )
        if change.epsilon < 0:
            old = settings["eps"].exponent
            text = f"epsilon should scale as n^{old + change.epsilon}, as the gradients do; it scales as n^{old} and "
            shared.setdefault(text + "takes over from them in the limit", []).append(name)
        if change.decay:
            shared.setdefault(_decay(setup, name, change), []).append(name)
    lines += [f"{', '.join(f'`{name}`' for name in names)}: {text}" for text, names in shared.items()]
    return tuple(lines)


def _decay(setup: Capture, name: str, change: Change) -> str:
    if decay_kind(setup, name) == "normalised":
        return (
            "weight decay is added to the gradient before the optimizer divides by its size, so that its strength "
            "depends on the gradients' scale; use a decoupled one (as in AdamW)"
        )
    old = setup.settings[name]["weight_decay"].exponent
    return (
        f"weight decay should scale as n^{old + change.decay}, it scales as n^{old} "
        "(its product with the learning rate is what shrinks the weights)"
    )
