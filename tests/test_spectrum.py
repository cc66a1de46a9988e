"""Limiting spectral densities: closed forms, atoms, eigenvalues of finite matrices, errors, the command line."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from test_moments import free_sum, relu_jacobian_2, relu_jacobian_3, tanh_jacobian, wigner, wishart

import tpcompile as tp
from tpcompile.cli import main

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


@pytest.mark.parametrize(("order", "edge", "most"), [(16, 1e-3, 1e-4), (24, 1e-6, 1e-7)])
def test_an_edge_that_is_no_square_root(order, edge, most):
    """The density of a squared product grows like x^(-2/3) at zero: coefficients settle like 1/k^2."""
    s = tp.spectrum(squared_product, order)
    assert s.edges == pytest.approx((0, 27 / 4), abs=edge)
    assert deviation(s, fuss_catalan) < most


def test_free_sum_solves_its_equation():
    """G(z) of semicircle plus Marchenko-Pastur: z = 1/G + G + 1/(1 - G), by the R-transforms."""
    s = tp.spectrum(free_sum, 32)
    assert s.edges is not None
    x = np.linspace(*s.edges, 101)[5:-5]
    g = s.recurrence.resolvent(x)
    assert np.abs(1 / g + g + 1 / (1 - g) - x).max() < 1e-6
    assert s.error < 1e-6


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
    assert s.edges == pytest.approx((0, edge), abs=1e-3)
    ((location, mass),) = s.atoms
    assert location == 0
    assert mass == pytest.approx(0.5, abs=2e-3)
    assert s.error < 1e-4


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


def test_atoms_alone():
    s = tp.spectrum(lambda w, x: 3 * x + 0 * (w @ x) + 0 * (w.T @ x))
    assert s.edges is None
    assert s.atoms == ((3.0, 1.0),)


def test_errors():
    with pytest.raises(tp.TpcompileError, match="not self-adjoint"):
        tp.spectrum(lambda w, x: w @ x)
    with pytest.raises(tp.TpcompileError, match="too few"):
        tp.spectrum(wigner, 4)
    with pytest.raises(tp.TpcompileError, match="do not settle"):  # two intervals, around -3 and 3
        tp.spectrum(lambda w, u, x: 3 * torch.sign(u) * x + wigner(w, x) / 2, shapes={"u": (1,)})
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
