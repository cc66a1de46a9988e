"""Limiting moments of random matrices: closed forms, pairings counted by hand, finite matrices, errors."""

from __future__ import annotations

from fractions import Fraction
from functools import reduce
from math import comb
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy as sp
import torch
from torch.func import jvp, vjp

import tpcompile as tp
from tpcompile.evaluate.exact.numbers import root
from tpcompile.evaluate.exact.real import Real, precisely
from tpcompile.spectra import words
from tpcompile.spectra.operator import Operator

ORDER = 20


def wigner(w, x):
    return (w @ x + w.T @ x) / 2**0.5


def wishart(w, x):
    return w.T @ (w @ x)


def ginibre_product(a, b, c, x):
    return c.T @ (b.T @ (a.T @ (a @ (b @ (c @ x)))))


def free_sum(v, w, x):
    return wigner(v, x) + wishart(w, x)


def free_product(v, w, x):
    return wishart(v, wishart(w, x))


def catalan(k: int, s: int = 1) -> Fraction:
    """Fuss-Catalan numbers: moments of the squared singular values of a product of s Ginibre matrices."""
    return Fraction(comb((s + 1) * k, k), s * k + 1)


def narayana(k: int, ratio: Fraction) -> Fraction:
    """Moments of X^T X for X of ratio n by n rows (Marchenko-Pastur)."""
    return sum((Fraction(comb(k, j) * comb(k, j - 1), k) * ratio**j for j in range(1, k + 1)), Fraction(0))


def free_cumulants(m: list[Fraction]) -> list[Fraction]:
    """Free cumulants from moments: M(z) = 1 + R(z M(z)), order by order."""
    z = sp.Symbol("z")
    order = len(m) - 1
    series = sum((sp.Rational(c.numerator, c.denominator) * z**k for k, c in enumerate(m)), sp.Integer(0))
    inner = sp.Poly(z * series, z)
    left, power = sp.Poly(series - 1, z), sp.Poly(1, z)
    found = []
    for k in range(1, order + 1):
        power = sp.Poly({e: c for e, c in (power * inner).terms() if e[0] <= order} or {(0,): 0}, z)
        c = left.coeff_monomial(z**k)
        found.append(Fraction(int(c.p), int(c.q)))
        left = left - c * power
    return found


def test_semicircle():
    m = tp.moments(wigner, ORDER)
    assert list(m) == [catalan(k // 2) if k % 2 == 0 else 0 for k in range(ORDER + 1)]
    assert all(isinstance(c, Fraction) for c in m)
    assert m.exact
    assert m.dot == (0, *m[1:])  # without the response terms W g and W^T g would be independent of g


@pytest.mark.parametrize("ratio", [Fraction(1), Fraction(1, 2), Fraction(3, 2), Fraction(3)])
def test_marchenko_pastur(ratio):
    m = tp.moments(wishart, ORDER, shapes={"w": (ratio, 1)})
    assert list(m)[1:] == [narayana(k, ratio) for k in range(1, ORDER + 1)]


def test_products_of_ginibre_matrices():
    assert list(tp.moments(ginibre_product, ORDER)) == [catalan(k, 3) for k in range(ORDER + 1)]
    assert list(tp.moments(lambda a, b, x: b.T @ (a.T @ (a @ (b @ x))), 12)) == [catalan(k, 2) for k in range(13)]


def test_free_sum_adds_free_cumulants():
    m = tp.moments(free_sum, ORDER)
    assert free_cumulants(list(m)) == [Fraction(2 if k == 2 else 1) for k in range(1, ORDER + 1)]


def test_free_product():
    assert list(tp.moments(free_product, ORDER)) == [catalan(k, 2) for k in range(ORDER + 1)]


def test_powers_and_identity():
    m = tp.moments(lambda w, x: 3 * x - wishart(w, x), 6)
    shifted = [sum(comb(k, j) * 3 ** (k - j) * (-1) ** j * catalan(j) for j in range(k + 1)) for k in range(7)]
    assert list(m) == shifted
    assert m.dot[1] == -1
    assert m[1] - m.dot[1] == 3  # the multiple of the identity has no response term


def test_variances_are_exact():
    m = tp.moments(wishart, 4, variances={"w": Fraction(1, 3)})
    assert list(m) == [catalan(k) / 3**k for k in range(5)]


def test_roots_stay_roots():
    m = tp.moments(lambda w, x: x * 2**0.5 + wigner(w, x), 3)
    assert m[1] == sp.sqrt(2)
    assert m[2] == 3
    assert m[3] == 5 * sp.sqrt(2)


@pytest.mark.parametrize(
    ("fn", "shapes", "order"),
    [
        (wigner, None, 8),
        (wishart, {"w": (Fraction(1, 2), 1)}, 5),
        (free_sum, {"w": (2, 1)}, 4),
        (free_product, {"v": (3, 1)}, 3),
        (lambda a, b, x: b.T @ (a.T @ (a @ (b @ x))) - 2 * x, {"b": (2, 1), "a": (Fraction(1, 2), 2)}, 3),
        (lambda a, b, x: a @ (b.T @ x) + 3 * (b @ (a.T @ x)), None, 3),
    ],
)
def test_non_crossing_pairings_counted_by_hand(fn, shapes, order):
    m = tp.moments(fn, order, shapes=shapes)
    for k in range(1, order + 1):
        assert sum((w.value for w in words(fn, k, shapes=shapes)), Fraction(0)) == m[k]


def diagonal(u):
    return torch.diag(torch.tanh(u))


@pytest.mark.parametrize(
    ("written", "applied"),
    [
        (lambda w, x: w.T @ w @ x, wishart),
        (lambda w, x: w.mT @ w @ x, wishart),
        (lambda w, x: torch.einsum("ji,jk,k->i", w, w, x), wishart),
        (lambda w, x: torch.linalg.multi_dot([w.T, w, x]), wishart),
        (lambda w, x: x @ (w.T @ w), wishart),
        (lambda v, w, x: (w @ v.T @ v @ w.T) @ x, lambda v, w, x: w @ wishart(v, w.T @ x)),
        (lambda w, x: torch.linalg.matrix_power((w + w.T) / 2**0.5, 3) @ x, lambda w, x: _thrice(w, x)),
        (lambda w, x: (torch.eye(len(x), dtype=x.dtype) - w.T @ w) @ x, lambda w, x: x - wishart(w, x)),
        (lambda w, x: (w @ w + (w @ w).T) @ x, lambda w, x: w @ (w @ x) + w.T @ (w.T @ x)),
        (lambda w, u, x: w.T @ diagonal(u) @ w @ x, lambda w, u, x: w.T @ (torch.tanh(u) * (w @ x))),
        (lambda w, u, x: (w.T * torch.tanh(u)) @ (w @ x), lambda w, u, x: w.T @ (torch.tanh(u) * (w @ x))),
        (lambda w, u, x: (torch.tanh(u)[:, None] * w).T @ w @ x, lambda w, u, x: w.T @ (torch.tanh(u) * (w @ x))),
        (
            lambda w, u, x: (torch.outer(u, u) / len(u) + w.T @ w) @ x,
            lambda w, u, x: u * (u @ x) / len(u) + wishart(w, x),
        ),
    ],
)
def test_products_of_matrices_are_their_products_with_vectors(written, applied):
    shapes = {"u": (1,)} if "u" in written.__code__.co_varnames else None
    found, known = (tp.moments(fn, 5, shapes=shapes) for fn in (written, applied))
    assert list(map(float, found)) == pytest.approx(list(map(float, known)), rel=1e-13)
    assert found.exact == known.exact


def _thrice(w, x):
    return wigner(w, wigner(w, wigner(w, x)))


def test_rectangular_products():
    shapes = {"v": (2, Fraction(1, 2)), "w": (Fraction(1, 2), 1)}
    m = tp.moments(lambda v, w, x: (v @ w).T @ (v @ w) @ x, 4, shapes=shapes)
    assert list(m) == list(tp.moments(lambda v, w, x: w.T @ (v.T @ (v @ (w @ x))), 4, shapes=shapes))
    assert list(m)[1:3] == [1, Fraction(7, 2)]


def test_words_of_products():
    for fn in (lambda w, x: w.T @ w @ x, lambda w, x: torch.linalg.matrix_power(w + w.T, 2) @ x):
        for k in (1, 2, 3):
            assert sum((w.value for w in words(fn, k)), Fraction(0)) == tp.moments(fn, 3)[k]


def test_words_of_the_semicircle():
    found = words(wigner, 4)
    assert {str(w) for w in found} == {"w w wᵀ wᵀ", "w wᵀ w wᵀ", "w wᵀ wᵀ w", "wᵀ w w wᵀ", "wᵀ w wᵀ w", "wᵀ wᵀ w w"}
    assert sum(len(w.pairings) for w in found) == 8
    assert {str(w): len(w.pairings) for w in found}["w wᵀ w wᵀ"] == 2


def test_diagonal_of_a_function_of_a_vector():
    """The Jacobian of a layer: independent of its weights in the limit, so that moments multiply."""
    m = tp.moments(lambda w, u, x: w.T @ (torch.tanh(u) ** 2 * (w @ x)), 3, shapes={"u": (1,)})
    second, fourth, sixth = (tanh_moment(k) for k in (2, 4, 6))  # of the diagonal: free cumulants
    assert m[1] == pytest.approx(second, rel=1e-12)
    assert m[2] == pytest.approx(fourth + second**2, rel=1e-12)
    assert m[3] == pytest.approx(sixth + 3 * fourth * second + second**3, rel=1e-12)
    assert not m.exact


def jacobian(network):
    """``J^T J x`` of a network at u, by automatic differentiation."""

    def apply(u, x):
        pushed = jvp(network, (u,), (x,))[1]
        return vjp(network, u)[1](pushed)[0]

    return apply


def relu_jacobian_1(a, u, x):
    return jacobian(lambda h: 2**0.5 * torch.relu(a @ h))(u, x)


def relu_jacobian_2(a, b, u, x):
    return jacobian(lambda h: 2**0.5 * torch.relu(b @ (2**0.5 * torch.relu(a @ h))))(u, x)


def relu_jacobian_3(a, b, c, u, x):
    layers = (a, b, c)
    return jacobian(lambda h: reduce(lambda y, w: 2**0.5 * torch.relu(w @ y), layers, h))(u, x)


def tanh_jacobian(a, b, u, x):
    return jacobian(lambda h: torch.tanh(b @ torch.tanh(a @ h)))(u, x)


def erf_jacobian(a, b, u, x):
    return jacobian(lambda h: torch.erf(1.5 * (b @ torch.erf(1.5 * (a @ h)))))(u, x)


def inverse_series(c: list[Any]) -> list[Any]:
    """The series g with ``f(g(z)) = z`` of ``f = c_1 z + c_2 z^2 + ..`` (c_0 = 0), by Lagrange's formula."""
    order = len(c) - 1
    power = [1 if k == 0 else 0 for k in range(order)]  # (z / f)^k
    ratio = reciprocal(c[1:])
    found = [0 * c[1]]
    for k in range(1, order + 1):
        power = times(power, ratio)
        found.append(power[k - 1] / k)
    return found


def times(a: list[Any], b: list[Any]) -> list[Any]:
    return [sum(a[j] * b[k - j] for j in range(k + 1)) for k in range(len(a))]


def reciprocal(a: list[Any]) -> list[Any]:
    found = [1 / a[0]]
    for k in range(1, len(a)):
        found.append(-sum(a[j] * found[k - j] for j in range(1, k + 1)) / a[0])
    return found


def free_products(*laws: list[Any]) -> list[Any]:
    """Moments 0, 1, .. of the free multiplicative convolution, by the product of S-transforms."""
    order = len(laws[0])
    total = [Fraction(1)] + [Fraction(0)] * (order - 2)
    for m in laws:
        chi = inverse_series([0 * m[1], *m[1:]])
        s = [chi[k + 1] + (chi[k] if k else 0) for k in range(order - 1)]  # (1 + z) chi(z) / z
        total = times(total, s)
    over = [sum((-1) ** (k - j) * total[j] for j in range(k + 1)) for k in range(order - 1)]  # over 1 + z
    return [1, *inverse_series([0 * over[0], *over])[1:]]


def test_free_products_of_the_tests():
    assert free_products([catalan(k) for k in range(9)], [catalan(k) for k in range(9)]) == [
        catalan(k, 2) for k in range(9)
    ]


@pytest.mark.parametrize(("fn", "layers"), [(relu_jacobian_1, 1), (relu_jacobian_2, 2), (relu_jacobian_3, 3)])
def test_jacobians_of_relu_networks_are_free_products(fn, layers):
    """Exactly: the slopes are free of the weights that they depend on (Tensor Programs III)."""
    order = 16
    slopes = [Fraction(1), *(Fraction(2**k, 2) for k in range(1, order + 1))]  # of 2 heaviside
    weights = [catalan(k) for k in range(order + 1)]
    m = tp.moments(fn, order, shapes={"u": (1,)})
    assert m.exact
    assert list(m) == free_products(*[slopes, weights] * layers)


def test_jacobian_of_a_smooth_network_is_a_free_product():
    order = 8
    t = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    w = torch.exp(-t * t / 2) * (t[1] - t[0])  # the trapezoidal rule converges faster than any power here
    for fn, f, scale in ((tanh_jacobian, torch.tanh, 1.0), (erf_jacobian, torch.erf, 1.5)):
        length, laws = 1.0, []
        for _ in range(2):
            at = scale * length**0.5 * t
            slope = scale * (1 - torch.tanh(at) ** 2 if f is torch.tanh else 2 * torch.pi**-0.5 * torch.exp(-(at**2)))
            laws.append([float((w * slope ** (2 * k)).sum() / (2 * torch.pi) ** 0.5) for k in range(order + 1)])
            laws.append([float(catalan(k)) for k in range(order + 1)])
            length = float((w * f(at) ** 2).sum() / (2 * torch.pi) ** 0.5)
        m = tp.moments(fn, order, shapes={"u": (1,)})
        assert list(map(float, m)) == pytest.approx(free_products(*laws), rel=1e-10)
        assert not m.exact


@pytest.mark.parametrize(
    ("fn", "f", "pieces"),
    [
        (torch.tanh, mpmath.tanh, [0]),
        (lambda v: torch.nn.functional.elu(v), lambda v: v if v > 0 else mpmath.expm1(v), [0]),
        (lambda v: torch.nn.functional.softplus(v), lambda v: mpmath.log1p(mpmath.exp(v)), [0]),
        (lambda v: torch.nn.functional.hardtanh(v, -1.0, 2.0), lambda v: min(max(v, -1), 2), [-1, 0, 2]),
    ],
    ids=["tanh", "elu", "softplus", "hardtanh"],
)
def test_integrals_have_many_digits(fn, f, pieces):
    m = tp.moments(lambda u, x: fn(u) * x, 6, shapes={"u": (1,)})
    with mpmath.workdps(60):
        for k in (1, 2, 6):
            known: Any = mpmath.quad(lambda v, k=k: mpmath.npdf(v) * f(v) ** k, [-18, -8, *pieces, 8, 18])
            assert abs(Real.of(m.precise[k]).value - known) < mpmath.mpf(10) ** -44 * abs(known) + mpmath.mpf(10) ** -55
            assert float(m[k]) == pytest.approx(float(known), rel=1e-14, abs=1e-15)


def test_real_numbers_mix_with_exact_ones():
    with precisely():
        x = Real.of(0.5)
        assert x + Fraction(1, 2) == Fraction(1, 2) + x == 1
        assert x * root(Fraction(2)) == root(Fraction(2)) * x
        assert (x * root(Fraction(2))) * (x * root(Fraction(2))) - x == Real.of(0)
        assert 1 / x - 2 * x == 1
        assert abs(float(x / root(Fraction(3)) * 3 - root(Fraction(3)) / 2)) < 1e-58
        assert abs((Fraction(1, 3) - x).fraction() + Fraction(1, 6)) < Fraction(1, 10**58)


def tanh_moment(k: int) -> float:
    t, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(180))
    return float((w * torch.tanh(t) ** k).sum() / (2 * torch.pi) ** 0.5)


def test_moments_of_finite_matrices_converge_like_1_over_n():
    shapes = {"w": (Fraction(1, 2), 1)}
    operator = Operator.of(free_sum, shapes)
    limit = torch.tensor([float(c) for c in tp.moments(free_sum, 4, shapes=shapes)[1:]])
    errors = []
    for n, seeds in ((12, 1000), (48, 500)):
        values = torch.stack([torch.linalg.eigvalsh(operator.matrix(n, seed)) for seed in range(seeds)])
        found = torch.stack([(values**k).mean(-1) for k in range(1, 5)], -1)
        errors.append((found.mean(0) - limit).abs()[1:])  # the first moment has no bias
        stderr = found.std(0)[1:] / seeds**0.5
        assert (errors[-1] > 4 * stderr).all()  # the bias is seen
    assert torch.allclose(errors[0] / errors[1], torch.tensor(4.0, dtype=torch.float64), rtol=0.3)


def test_errors():
    with pytest.raises(tp.TpcompileError, match="not linear"):
        tp.moments(lambda w, x: torch.tanh(w @ x))
    with pytest.raises(tp.TpcompileError, match="names 'v'"):
        tp.moments(wigner, shapes={"v": (1, 1)})
    with pytest.raises(tp.TpcompileError, match="expected \\(rows, columns\\)"):
        tp.moments(wigner, shapes={"w": 3})  # pyright: ignore[reportArgumentType]
    with pytest.raises(tp.TpcompileError, match="shape"):
        tp.moments(lambda w, x: w @ x, shapes={"w": (2, 1)})
    with pytest.raises(tp.TpcompileError, match="positive integer"):
        tp.moments(wigner, 0)
    with pytest.raises(tp.TpcompileError, match="must be a positive number"):
        tp.moments(wigner, variances={"w": -1})
    with pytest.raises(tp.TpcompileError, match="words are of matrices"):
        words(lambda w, u, x: u * (w @ x), 2, shapes={"u": (1,)})
    with pytest.raises(tp.TpcompileError, match="grows like n"):
        tp.moments(lambda w, x: len(x) * (w.T @ (w @ x)))


def no_tensor(w, x):
    _ = w @ x


def own_randomness(w, x):
    return w @ x + torch.randn(len(x), len(x), dtype=x.dtype) @ x


def in_place(w, x):
    x += w @ x
    return x


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda width: torch.nn.Linear(width, 1), r"fn fails on x \(16,\) alone: TypeError: empty"),  # a factory
        (lambda width: torch.nn.Sequential(torch.nn.Tanh()), "must return a vector .* found Sequential"),
        (torch.nn.Linear(4, 4), "must name its arguments"),
        (lambda w, *, x: w @ x, "all positional"),
        (None, "must be a function of matrices and a vector, found NoneType"),
        (
            lambda w, x: w @ x[:-1],
            r"fails on w \(16, 16\), and x \(16,\): RuntimeError: .* at fn \(test_moments.py:\d+\)",
        ),
        (no_tensor, r"found NoneType; .*expected fn\(W, .., x\)"),
        (lambda w, x: w, r"found \(16, 16\)"),
        (lambda w, x: w.float() @ x.float(), "dtype torch.float64 of x, found .* torch.float32"),
        (lambda w, x: 1j * (w @ x), "torch.complex128"),
        (own_randomness, "something else at every call"),
        (in_place, "in place"),
        (lambda w, x: (w @ x) / 0, "not finite"),
        (lambda w, x: 1e-12 * torch.tanh(w @ x), "not linear"),
        (
            lambda w, x: torch.trace(w) * x,
            r"whole matrix of two growing axes .* at fn \(test_moments.py:\d+\); use pro",
        ),
        (lambda w, x: torch.tanh(w.T @ w) @ x, "an entrywise function of a product of matrices; at fn"),
        (lambda w, x: torch.from_numpy(w.detach().numpy() @ x.numpy()), "cannot be traced; at fn"),
        (lambda w, x: 1.5e200 * (w.T @ (w @ x)), "leave the range of floats"),
        (lambda w, x: 1.5e-200 * (w.T @ (w @ x)), "leave the range of floats"),
    ],
)
def test_careless_functions_are_named(fn, message):
    with pytest.raises(tp.TpcompileError, match=message):
        tp.moments(fn, 2)


@pytest.mark.parametrize("lengths", ["ab", (-1, 1), (256, 512), (2**0.5, 1), (float("inf"), 1), 1, (1, 1, 1), (0, 1)])
def test_lengths_are_multiples_of_n(lengths):
    with pytest.raises(tp.TpcompileError, match="as multiples of n"):
        tp.moments(wishart, 2, shapes={"w": lengths})


def test_arguments_may_be_called_anything():
    assert list(tp.moments(lambda forward, order: forward.T @ (forward @ order), 3)) == [1, 1, 2, 5]
