"""Tables of derived rules: plain text, Markdown, and LaTeX for a paper."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tpcompile.errors import UsageError
from tpcompile.parametrization.advice import factor_lines

if TYPE_CHECKING:
    from tpcompile.parametrization.mup import Rule, Rules

FORMATS = ("text", "markdown", "latex")
_HEAD = ("parameter", "init", "multiplier", "lr", "epsilon", "weight decay")


def rules_table(rules: Rules, form: str = "text") -> str:
    """One line for each parameter: powers of n in "text", the powers written out in "markdown" and "latex".

    Before it, in "text", what products of two activations lack.
    """
    if form not in FORMATS:
        raise UsageError(f"there is no format '{form}'", where="form", advice=f"there are {', '.join(FORMATS)}")
    if form == "text":
        return _text(rules)
    write = _markdown_power if form == "markdown" else _latex_power
    rows = [[_code(name, form), *(write(e) for e in _exponents(rule))] for name, rule in rules.items()]
    if form == "markdown":
        lines = [_HEAD, ["---"] * len(_HEAD), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    body = "\n".join(" & ".join(row) + r" \\" for row in rows)
    head = " & ".join(_HEAD) + r" \\"
    return "\n".join([rf"\begin{{tabular}}{{l{'c' * (len(_HEAD) - 1)}}}", r"\hline", head, r"\hline", body, r"\hline",
                      r"\end{tabular}"])  # fmt: skip


def _exponents(rule: Rule) -> Sequence[Fraction | None]:
    return (
        rule.init_exponent, rule.multiplier_exponent, rule.lr_exponent, rule.epsilon_exponent, rule.decay_exponent,
    )  # fmt: skip


def _text(rules: Rules) -> str:
    table = Table(*_HEAD, title="maximal update: powers of n", title_justify="left")
    for name, rule in rules.items():
        init, multiplier, rate, epsilon, decay = _exponents(rule)
        table.add_row(
            name,
            "zero" if init is None else str(init),
            str(multiplier),
            "not trained" if rate is None else str(rate),
            *("-" if e is None else str(e) for e in (epsilon, decay)),
        )
    console = Console(file=io.StringIO(), width=120, force_terminal=False, color_system=None)
    console.print(table)
    out = console.file
    assert isinstance(out, io.StringIO)
    return "\n".join([*factor_lines(rules.factors), out.getvalue().rstrip()])


def _code(name: str, form: str) -> str:
    return f"`{name}`" if form == "markdown" else r"\texttt{" + name.replace("_", r"\_") + "}"


def _markdown_power(e: Fraction | None) -> str:
    return "-" if e is None else "1" if e == 0 else "n" if e == 1 else f"n^({e})" if e.denominator > 1 else f"n^{e}"


def _latex_power(e: Fraction | None) -> str:
    return "--" if e is None else "$1$" if e == 0 else "$n$" if e == 1 else f"$n^{{{e}}}$"
