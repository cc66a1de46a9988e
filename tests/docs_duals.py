"""Writes docs/duals.md from the registry: ``python tests/docs_duals.py``."""

from __future__ import annotations

from pathlib import Path

from tpcompile import nonlin
from tpcompile.errors import TpcompileError
from tpcompile.evaluate.duals import LINEAR, Factor, dual

PAGE = Path(__file__).parents[1] / "docs" / "duals.md"
_HEADER = """\
# Gaussian expectations

Made from the registry by `python tests/docs_duals.py`: do not edit by hand.

Kernels are expectations `E f(u) g(v)` of jointly Gaussian u and v (`tpcompile.evaluate.duals`). A nonlinearity that is
a sum of atoms `c x^p exp(r x)`, times steps or error functions, times normal densities, says so in its record
(`atoms`), and all its expectations, with those of its derivatives and of its products with other such functions, are
closed forms: bumps are conditioned on, exponentials shift the mean, powers fall by Stein's lemma, and what is left is
the arcsine law of two centred gates or the bivariate normal distribution function. Known special cases are the
arc-cosine kernels (Cho & Saul 2009) and the kernel of erf (Williams 1997).

Other smooth functions are expanded in Hermite polynomials, `E f(u) g(v) = sum_k a_k b_k rho^k` (Mehler), with as many
terms as Parseval's identity certifies; pairs that are not certified, and functions with kinks, are left to
Gauss-Legendre panels split at the kinks. Where a closed form cancels (exponentials at large variance, say) it is
replaced by quadrature, too. Quadrature is refined on some of the pairs of each call, and an error is raised where it
does not settle; its stated error is 1e-10 of `sqrt(E f^2 E g^2)`.

Conventions: where a variance is zero the correlation counts as zero; a correlation beyond one by rounding is cut off;
`E f(u) g(u)` is taken as an expectation of one variable (`Dual.diagonal`). Derivatives are Price's theorem, finite at
coincident inputs; those that are infinite there (of the kernel of a step) count as zero.

At the default parameters, for centred variables:

| nonlinearity | `E f(u) f(v)` | `E f'(u) f'(v)` | `E u f(v)` |
|---|---|---|---|
"""


def page() -> str:
    """The text of the page."""
    rows = []
    for record in nonlin.all_nonlinearities():
        if record.domain(**record.defaults) != "real":
            continue
        f, slope = Factor(((record.name, 0, ()),)), Factor(((record.name, 1, ()),))
        forms = (_form(f, f), _form(slope, slope), _form(Factor((LINEAR,)), f))
        rows.append(f"| `{record.name}` | " + " | ".join(forms) + " |\n")
    return _HEADER + "".join(rows)


def _form(f: Factor, g: Factor) -> str:
    try:
        return dual(f, g).form
    except TpcompileError:
        return "-"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
