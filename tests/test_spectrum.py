"""Limiting spectral densities: closed forms, atoms, eigenvalues of finite matrices, errors, the command line."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from test_moments import free_sum, jacobian, relu_jacobian_2, relu_jacobian_3, tanh_jacobian, wigner, wishart

import tpcompile as tp
from tpcompile.cli import main
from tpcompile.spectra import density
from tpcompile.spectra.algebraic import equation
from tpcompile.spectra.recurrence import continued, recurrence

EXAMPLE = str(Path(__file__).parents[1] / "examples" / "random_matrices.py")


def squared_product(a, b, x):
    return b.T @ (a.T @ (a @ (b @ x)))


def deviation(spectrum: tp.Spectrum, density) -> float:
    """Largest distance from a density, the outer 2 % at each edge left out."""
    assert spectrum.edges is not None
    low, high = spectrum.edges
    x = np.linspace(low, high, 1001)[20:-20]
    return float(np.abs(spectrum.at(x) - density(x)).max())


def marchenko_pastur(ratio: Fraction):
    c = float(ratio)
    return lambda x: np.sqrt(4 * c - (x - 1 - c) ** 2) / (2 * np.pi * x)


def fuss_catalan(x):
    """Penson & Życzkowski, Phys. Rev. E 83, 061118 (2011), equation 22."""
    root = 27 + 3 * np.sqrt(81 - 12 * x)
    top = 2 ** (1 / 3) * root ** (2 / 3) - 6 * x ** (1 / 3)
    return 2 ** (1 / 3) * np.sqrt(3) / (12 * np.pi) * top / (x ** (2 / 3) * root ** (1 / 3))


def test_semicircle():
    s = tp.spectrum(wigner)
    assert s.edges == pytest.approx((-2, 2), abs=1e-12)
    assert s.atoms == ()
    assert deviation(s, lambda x: np.sqrt(4 - x * x) / (2 * np.pi)) < 1e-12
    assert s.error < 1e-12
    assert np.trapezoid(s.density, s.grid) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("ratio", [Fraction(1), Fraction(1, 4), Fraction(3, 2), Fraction(4)])
def test_marchenko_pastur(ratio):
    s = tp.spectrum(wishart, shapes={"w": (ratio, 1)})
    root = float(ratio) ** 0.5
    assert s.edges == pytest.approx(((1 - root) ** 2, (1 + root) ** 2), abs=1e-12)
    assert deviation(s, marchenko_pastur(ratio)) < 1e-12
    if ratio < 1:
        ((location, mass),) = s.atoms
        assert (location, mass) == pytest.approx((0, 1 - float(ratio)), abs=1e-12)
    else:
        assert not s.atoms


@pytest.mark.parametrize(("order", "edge", "most"), [(10, 1e-12, 1e-12), (16, 1e-3, 1e-4), (24, 1e-6, 1e-7)])
def test_an_edge_that_is_no_square_root(order, edge, most, monkeypatch):
    """The density of a squared product grows like x^(-2/3) at zero: coefficients settle like 1/k^2.

    Without its equation, which ten moments show.
    """
    if order > 10:
        monkeypatch.setattr(density, "equation", lambda moments: None)
    s = tp.spectrum(squared_product, order)
    assert s.edges == pytest.approx((0, 27 / 4), abs=edge)
    assert deviation(s, fuss_catalan) < most
    assert (s.equation is None) == (order > 10)


def test_free_sum_solves_its_equation():
    """G(z) of semicircle plus Marchenko-Pastur: z = 1/G + G + 1/(1 - G), by the R-transforms."""
    s = tp.spectrum(free_sum)
    assert s.edges is not None
    assert s.equation is not None
    x = np.linspace(*s.edges, 101)[5:-5]
    other = continued(s.recurrence)[0].resolvent(x)
    for g, most in ((s.equation.resolvent(x / s.equation.radius) / s.equation.radius, 1e-12), (other, 1e-4)):
        assert np.abs(1 / g + g + 1 / (1 - g) - x).max() < most
    assert s.error < 1e-12


def relu_residual(w, u, x):
    return jacobian(lambda h: h + w @ torch.relu(h))(u, x)


def relu_residual_2(w, v, u, x):
    return jacobian(lambda h: h + w @ torch.relu(v @ h))(u, x)


@pytest.mark.parametrize(
    ("fn", "bands"),
    [
        (relu_residual, ((0.0186, 1), (1.0091, 5.3300))),
        pytest.param(relu_residual_2, ((0.0134, 1), (1.0022, 6.7194)), marks=pytest.mark.slow),
    ],
)
def test_residual_blocks_have_two_bands(fn, bands):
    """``J = 1 + W D``: where D is zero the identity is left, and the density grows like an inverse root at 1."""
    s = tp.spectrum(fn, shapes={"u": (1,)})
    assert len(s.intervals) == 2
    assert not s.atoms
    assert s.error < 1e-7
    assert s.intervals[0][1] == pytest.approx(1, abs=1e-9)
    assert np.allclose(s.intervals, bands, atol=1e-4)
    assert s.at(1.001) == 0
    values = torch.stack([s.eigenvalues(200, seed) for seed in range(16)]).numpy()
    t = np.linspace(-4, 4, 161)
    for cut in (0.3, 0.7, 1.5, 3.0):
        high = next(high for low, high in s.intervals if low < cut < high)
        above = sum(share(s, a, b, t) for a, b in s.intervals if a > high) + share(s, cut, high, t)
        found = np.mean(values > cut, 1)
        bias = 0.2 / 200  # of eigenvalue counts, of order 1/n
        assert abs(found.mean() - above) < 3 * found.std() / 16**0.5 + bias


def share(s: tp.Spectrum, low: float, high: float, t: np.ndarray) -> float:
    """Mass between two points, either of which may be singular: by the substitution x = tanh t."""
    x = (low + high) / 2 + (high - low) / 2 * np.tanh(t)
    return float(np.trapezoid(s.at(x) * (high - low) / 2 / np.cosh(t) ** 2, t))


def two_intervals(w, u, x):
    return 3 * torch.sign(u) * x + wigner(w, x) / 2


def test_two_intervals():
    """Of a sum with an independent sign: G(z) = g(z - G/4), g that of the sign (Pastur's equation)."""
    s = tp.spectrum(two_intervals, shapes={"u": (1,)})
    (a, b), (c, d) = s.intervals
    assert (a, b) == pytest.approx((-d, -c), abs=1e-9)
    x = np.linspace(c, d, 51)[1:-1]
    assert s.equation is not None
    g = s.equation.resolvent(x / s.equation.radius) / s.equation.radius
    z = x - g / 4
    assert np.abs(g - (1 / (z - 3) + 1 / (z + 3)) / 2).max() < 1e-9
    assert share(s, c, d, np.linspace(-6, 6, 241)) == pytest.approx(0.5, abs=1e-4)


def test_atoms_at_any_place():
    """A projection that is free of a Wishart matrix of half rank: masses at zero by the equation."""
    s = tp.spectrum(lambda w, x: (torch.eye(len(x), dtype=x.dtype) + w.T @ w) @ x, shapes={"w": (Fraction(1, 3), 1)})
    ((location, mass),) = s.atoms
    assert (location, mass) == pytest.approx((1, 2 / 3), abs=1e-12)


def test_guessed_equations():
    catalan = [1, 1, 2, 5, 14, 42, 132, 429, 1430]
    found = equation(catalan)
    assert found is not None
    assert len(found.exact) - 1 == 2
    assert equation([*catalan[:-1], 1431]) is None  # one wrong moment
    assert equation([float(c) for c in catalan]) is None
    assert equation([math.factorial(k) for k in range(25)]) is None  # no algebraic function
    assert found.critical() == pytest.approx([0, 4], abs=1e-12)


def test_rank_of_a_projected_wishart_matrix():
    """A random half of the coordinates switched off: an atom of that mass, and a float density."""
    s = tp.spectrum(lambda w, u, x: w.T @ ((u > 0) * (w @ x)), shapes={"u": (1,)})
    assert deviation(s, marchenko_pastur(Fraction(1, 2))) < 1e-5
    ((location, mass),) = s.atoms
    assert (location, mass) == pytest.approx((0, 0.5), abs=1e-6)


def test_jacobian_of_a_layer_against_eigenvalues():
    def jacobian(w, v, u, x):
        slope = 1 - torch.tanh(w @ (v @ u)) ** 2
        return w.T @ (slope * (slope * (w @ x)))

    s = tp.spectrum(jacobian, 16, shapes={"u": (1,)})
    values = torch.stack([s.eigenvalues(160, seed) for seed in range(24)]).numpy()
    for k in (1, 2, 3):
        found = np.mean(values**k, 1)
        assert abs(found.mean() - s.moments[k]) < 3 * found.std() / 24**0.5
    assert s.edges is not None
    for cut in (0.2, 0.8, 1.6):
        x = np.linspace(cut, s.edges[1], 4001)
        found = np.mean(values > cut, 1)
        assert abs(found.mean() - np.trapezoid(s.at(x), x)) < 3 * found.std() / 24**0.5


@pytest.mark.parametrize(("fn", "layers"), [(relu_jacobian_2, 2), (relu_jacobian_3, 3)])
def test_jacobians_of_relu_networks(fn, layers):
    """An atom that touches the continuous part, whose density grows like x^(-layers / (layers + 1)) at zero."""
    s = tp.spectrum(fn, shapes={"u": (1,)})
    z = np.linspace(1e-3, 20, 200_001)
    edge = float(((1 + z) * (1 + 2 * z) ** layers / z).min())  # 1 / chi at its stationary point
    assert s.edges == pytest.approx((0, edge), abs=1e-6)
    assert s.atoms == ((0.0, 0.5),)
    assert s.error < 1e-8


@pytest.mark.parametrize("fn", [relu_jacobian_2, tanh_jacobian])
def test_jacobians_against_eigenvalues(fn):
    s = tp.spectrum(fn, shapes={"u": (1,)})
    assert s.edges is not None
    values = torch.stack([s.eigenvalues(200, seed) for seed in range(16)]).numpy()
    for share in (0.05, 0.2, 0.5):
        cut = share * s.edges[1]
        x = np.linspace(cut, s.edges[1], 4001)
        found = np.mean(values > cut, 1)
        bias = 0.2 / 200  # of eigenvalue counts, of order 1/n
        assert abs(found.mean() - np.trapezoid(s.at(x), x)) < 3 * found.std() / 16**0.5 + bias


def test_jacobian_of_a_smooth_network_settles():
    """Integrals of 50 digits leave all coefficients of 24 moments."""
    s = tp.spectrum(tanh_jacobian, 24, shapes={"u": (1,)})
    assert len(s.recurrence.a) > 12
    assert s.error < 1e-5
    known = recurrence(s.moments.precise)
    assert len(known.a) == 12
    assert len(recurrence(list(s.moments)).a) < 10  # of the same moments as floats
    x = np.linspace(*(s.edges or (0, 1)), 4001)[20:]  # from 0.013 on
    for k in (2, 3, 4):
        assert np.trapezoid(s.at(x) * x**k, x) == pytest.approx(float(s.moments[k]), abs=1e-4)


def test_atoms_alone():
    s = tp.spectrum(lambda w, x: 3 * x + 0 * (w @ x) + 0 * (w.T @ x))
    assert s.edges is None
    assert s.atoms == ((3.0, 1.0),)


def test_errors():
    with pytest.raises(tp.TpcompileError, match="not self-adjoint"):
        tp.spectrum(lambda w, x: w @ x)
    with pytest.raises(tp.TpcompileError, match="too few"):
        tp.spectrum(wigner, 4)
    with pytest.raises(tp.TpcompileError, match="do not settle"):  # two intervals, and too few moments
        tp.spectrum(two_intervals, 16, shapes={"u": (1,)})
    with pytest.raises(tp.TpcompileError, match="points"):
        tp.spectrum(wigner, points=0)
    with pytest.raises(tp.TpcompileError, match="not self-adjoint"):
        tp.spectrum(lambda w, x: 1e-12 * (w @ x), 8)
    s = tp.spectrum(wishart, 12, shapes={"w": (Fraction(1, 2), 1)})
    for width in (0, -3, 10.5, 7):
        with pytest.raises(tp.TpcompileError, match="the width"):
            s.eigenvalues(width)  # pyright: ignore[reportArgumentType]
    with pytest.raises(tp.TpcompileError, match="seed must be an integer"):
        s.eigenvalues(8, "a")  # pyright: ignore[reportArgumentType]


def test_small_operators_have_spectra():
    small = 2.0**-60
    s = tp.spectrum(lambda w, x: small * wigner(w, x), 12)
    assert s.edges == pytest.approx((-2 * small, 2 * small), rel=1e-6)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "wigner.png"
    assert main(["spectrum", f"{EXAMPLE}:wigner", "--order", "12", "--plot", str(figure), "--width", "64"]) == 0
    out = capsys.readouterr().out
    assert figure.stat().st_size > 10_000
    assert "density between -2 and 2" in out
    assert main(["spectrum", f"{EXAMPLE}:wishart", "--shape", "X=1/2,1", "--variance", "X=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["moments"][:3] == ["1", "1", "3"]
    assert found["atoms"][0]["mass"] == pytest.approx(0.5)
    assert main(["spectrum", f"{EXAMPLE}:layer", "--shape", "u=1", "--moments", "--order", "3"]) == 0
    assert "0.4644029" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wigner", "--shape", "W"], "NAME=VALUE"),
        (["wigner", "--shape", "W=a,1"], "expected a number"),
        (["wigner", "--shape", "V=1,1"], "names 'V'"),
        (["nothing"], "defines no 'nothing'"),
        ([EXAMPLE.replace("random_matrices", "residual_mlp") + ":make"], "expected fn(W, .., x)"),
        (["wigner", "--moments", "--plot", "x.png"], "exclude each other"),
        (["wigner", "--order", "1"], "order must be"),
    ],
)
def test_bad_usage_is_one_line(words, message, capsys):
    target = words[0] if ":" in words[0] else f"{EXAMPLE}:{words[0]}"
    assert main(["spectrum", target, *words[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
