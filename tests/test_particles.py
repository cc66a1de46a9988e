"""The particle evaluator: lazily revealed matrices, orthonormal frames, reproducibility, memory, errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from zoo import data, mlp

import tpcompile as tp
from tpcompile.errors import EvaluationError, UsageError
from tpcompile.evaluate.frames import LazyMatrix, Rows, Side, frame
from tpcompile.evaluate.memory import need_per_particle, parse_bytes
from tpcompile.evaluate.particles import Run
from tpcompile.evaluate.plan import Plan
from tpcompile.evaluate.points import Source
from tpcompile.laws import Normal, Uniform

M = 1024
X, Y = data()


def lazy(out_ratio=1.0, in_ratio=1.0, std=0.7, dtype=torch.float64):
    frames = [frame(M, dtype, Source(40, M, seed)) for seed in (1, 2)]
    sides = [Side(f, Rows(4, M, dtype), f.segment(4)) for f in frames]
    return LazyMatrix(std, sides[0], sides[1], out_ratio, in_ratio), frames


@pytest.mark.parametrize(("out_ratio", "in_ratio"), [(1.0, 1.0), (2.0, 1.0), (0.5, 4.0)])
def test_lazy_matrix_is_one_linear_map_and_its_adjoint(out_ratio, in_ratio):
    w, (out, into) = lazy(out_ratio, in_ratio)
    x, y = into.normals(3).tanh(), out.normals(2).relu()
    wx = w.product(x, False)
    wty = w.product(y, True)
    x2 = wty.tanh() + x[:2]  # correlated with earlier products of the transpose
    wx2 = w.product(x2, False)
    # sums over out_ratio * n and in_ratio * n coordinates; fresh normals are orthogonal to x up to sampling
    for a, b in ((x, wx), (x2, wx2)):
        there, back = out_ratio * (y @ b.T) / M, in_ratio * (wty @ a.T) / M
        assert torch.allclose(there, back, atol=4 * w.std * max(out_ratio, in_ratio) / M**0.5)
    again = w.product(2 * x2 - x[:2], False) - (2 * wx2 - wx[:2])
    assert float(again.square().mean().sqrt()) < 8 * w.std * max(out_ratio, in_ratio) / M**0.5
    assert torch.allclose(w.product(x2, False), wx2, atol=1e-12)
    assert torch.allclose(wx @ wx.T, w.std**2 * in_ratio * (x @ x.T), atol=1e-9)


def test_dropping_the_response_breaks_the_adjoint():
    w, (out, into) = lazy()
    w.dot = False
    x, y = into.normals(3).tanh(), out.normals(2).relu()
    w.product(x, False)
    wty = w.product(y, True)
    x2 = wty.tanh()
    there, back = y @ w.product(x2, False).T / M, wty @ x2.T / M
    assert float((there - back).diagonal().abs().min()) > 8 * w.std / M**0.5


def test_dependent_rows_need_no_new_gaussians():
    w, (_, into) = lazy()
    x = into.normals(2)
    rows = torch.cat([x, x[:1] + 2 * x[1:], torch.zeros(1, M, dtype=x.dtype)])
    y = w.product(rows, False)
    assert w.into.basis.count == 2
    assert torch.allclose(y[2], y[0] + 2 * y[1], atol=1e-12)
    assert torch.equal(y[3], torch.zeros(M, dtype=x.dtype))


@pytest.mark.parametrize("law", [Normal(2.0, mean=1.0), Uniform(-1.0, 3.0)])
def test_draws_have_their_moments_exactly(law):
    drawn = frame(M, torch.float64, Source(6, M, 3))
    first = drawn.segment(2).append(drawn.normals(2))
    x = drawn.draw(law, 3)
    centred = x - 1.0
    std = 2.0 if isinstance(law, Normal) else 4 / 12**0.5
    assert torch.allclose(centred.mean(1), torch.zeros(3, dtype=x.dtype), atol=1e-12)
    assert torch.allclose(centred @ centred.T / M, std**2 * torch.eye(3, dtype=x.dtype), atol=1e-10)
    assert torch.allclose(centred @ first.T / M, torch.zeros(3, 2, dtype=x.dtype), atol=1e-12)


def test_bases_stay_orthonormal_over_many_steps():
    compiled = tp.compile(mlp("tanh", 3, lr=0.1), X, Y, F.mse_loss, steps=20)
    plan = Plan.of(compiled.program)
    run = Run(plan, M, torch.float64, 0)
    run.execute(list(enumerate(plan.program.nodes)), lambda node, i: False, lambda i: None)
    for matrix in run.matrices.values():
        for rows in (r for side in (matrix.out, matrix.into) for r in (side.basis, side.fresh)):
            gram = rows.value @ rows.value.T / M
            assert torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype), atol=1e-12)


@pytest.mark.parametrize("parametrization", ["mup", "ntk"])
def test_a_seed_gives_the_same_bits(parametrization):
    compiled = tp.compile(mlp("relu", 2, parametrization), X, Y, F.mse_loss, steps=2)
    a, b, c = (compiled.evaluate(particles=256, replicas=2, seed=s) for s in (4, 4, 5))
    assert torch.equal(a.outputs, b.outputs)
    assert torch.equal(a.kernels["2"], b.kernels["2"])
    assert not torch.equal(a.outputs, c.outputs)


def test_standard_errors_of_covariances_and_feature_changes():
    """Deviations from an evaluation of 64 times as many particles, in units of the stated errors."""
    random = tp.compile(mlp("tanh", 2, "ntk", lr=0.5), X, Y, F.mse_loss, steps=2)
    learned = tp.compile(mlp("tanh", 2, lr=0.5), X, Y, F.mse_loss, steps=2)
    few, many = 512, 32768

    def z(value, stderr, best, best_stderr):
        error = (stderr.square() + best_stderr.square()).sqrt()
        used = error > 1e-12
        return ((value - best)[used] / error[used]).square().mean().sqrt()

    a, b = (random.evaluate(particles=m, replicas=12) for m in (few, many))
    assert a.outputs_cov is not None
    assert a.outputs_cov_stderr is not None
    assert float(z(a.outputs_cov, a.outputs_cov_stderr, b.outputs_cov, b.outputs_cov_stderr)) < 2.5
    assert 1e-5 < float(a.outputs_cov_stderr.max() / a.outputs_cov.abs().max()) < 0.1
    a, b = (learned.evaluate(particles=m, replicas=12) for m in (few, many))
    for name in a.activations:
        found = z(*(f(name) for r in (a, b) for f in (r.feature_change, r.feature_change_stderr)))
        assert float(found) < 2.5
        assert float(a.feature_change_stderr(name)[1:].min()) > 0


def test_random_output_has_exact_ensemble_moments_and_can_be_conditioned_to_zero():
    compiled = tp.compile(mlp("tanh", 2, "ntk"), X, Y, F.mse_loss, steps=2)
    result = compiled.evaluate(particles=1024, replicas=2)
    assert result.outputs_cov is not None
    kernel = result.feature_kernel("3")[0]  # the NNGP of a readout of unit variance
    assert torch.allclose(result.outputs_cov[0], kernel, atol=5 / 1024**0.5 * float(kernel.max()))
    assert torch.allclose(result.outputs[0], torch.zeros_like(result.outputs[0]), atol=1e-9)
    zero = compiled.evaluate(particles=1024, replicas=2, output_init="zero")
    assert torch.equal(zero.outputs[0], torch.zeros_like(zero.outputs[0]))
    # MSE in the kernel regime is affine in the start: the mean starts from the mean
    assert torch.allclose(
        zero.outputs, result.outputs, atol=5 * float((zero.outputs_stderr + result.outputs_stderr).max())
    )


def test_a_loss_that_is_no_polynomial_sees_the_law_of_a_random_output():
    """Not its covariance alone: draws of fixed length would give another mean."""
    compiled = tp.compile(mlp("tanh", 2, "ntk"), X[:1], torch.zeros_like(Y[:1]), lambda f, y: f.abs().sum(), steps=1)
    result = compiled.evaluate(particles=1024, replicas=8, ensemble=256)
    assert result.loss is not None
    assert result.loss_stderr is not None
    variance = float(result.feature_kernel("3")[0, 0, 0])
    assert abs(float(result.loss[0]) - (2 * variance / math.pi) ** 0.5) < 3 * float(result.loss_stderr[0])
    assert float(result.loss_stderr[0]) < 0.03 * variance**0.5  # a length of one would be off by 20 %


def test_memory_is_known_before_it_is_taken():
    compiled = tp.compile(mlp("tanh", 2), X, Y, F.mse_loss, steps=2)
    each = need_per_particle(Plan.of(compiled.program), torch.float64).values
    with pytest.raises(EvaluationError, match="particles need about") as error:
        compiled.evaluate(particles=2**22, memory="200MB")
    fits = int(str(error.value).split("set particles=")[1].split()[0])
    assert each * fits < 2e8
    compiled.evaluate(particles=256, replicas=1, memory="200MB")
    assert parse_bytes("1.5 GB") == 1.5e9
    assert parse_bytes("2MiB") == 2 * 2**20
    for bad in ("lots", "-1GB", 0, True, "5 apples"):
        with pytest.raises(UsageError, match="memory must be"):
            parse_bytes(bad)


@pytest.mark.parametrize("parametrization", ["mup", "ntk"])
def test_on_disk_the_bits_are_the_same(parametrization):
    compiled = tp.compile(mlp("tanh", 3, parametrization), X, Y, F.mse_loss, steps=4)
    need, particles = need_per_particle(Plan.of(compiled.program), torch.float64), 4096
    assert need.rows > 0.2 * need.total
    free, bound = compiled.evaluate(particles=particles, replicas=1, ensemble=4), 5e7 + 1.1 * need.values * particles
    bounded = compiled.evaluate(particles=particles, replicas=1, ensemble=4, memory=bound)
    assert "are kept in" not in free.why
    assert "are kept in" in bounded.why
    assert torch.equal(free.outputs, bounded.outputs)


def test_too_few_particles_are_an_error():
    x, y = data(30, 30)
    compiled = tp.compile(mlp("tanh", 2, d=30), x, y, F.mse_loss, steps=2)
    with pytest.raises(EvaluationError, match="set particles="):
        compiled.evaluate(particles=64, replicas=1)


def test_divergence_is_an_error_not_a_number():
    compiled = tp.compile(mlp("square", 2, lr=50.0), X, Y, F.mse_loss, steps=8)
    with pytest.raises(EvaluationError, match="not finite"):
        compiled.evaluate(particles=256, replicas=1)


@pytest.mark.parametrize(
    "bad",
    [
        {"evaluator": "magic"},
        {"evaluator": "exact"},
        {"particles": 0},
        {"particles": 1000.5},
        {"replicas": 0},
        {"seed": -1},
        {"dtype": torch.float16},
        {"ensemble": 1},
        {"output_init": "one"},
    ],
)
def test_bad_settings(bad):
    compiled = tp.compile(mlp("tanh", 1), X, steps=0)
    with pytest.raises(UsageError):
        compiled.evaluate(**bad)


def test_replicas_one_has_no_standard_error():
    result = tp.compile(mlp("tanh", 1), X, steps=0).evaluate(particles=64, replicas=1)
    assert torch.isnan(result.outputs_stderr).all()


@pytest.mark.parametrize(("particles", "part", "parts"), [(64, 0, 1), (32, 1, 2), (48, 0, 1), (24, 1, 2)])
def test_rows_are_the_points_of_the_sobol_engine(particles: int, part: int, parts: int) -> None:
    """In another order: every aligned run of a power of two is the same set of points."""
    found = Source(5, particles, seed=7, part=part, parts=parts).uniform(5).T
    points = torch.quasirandom.SobolEngine(5, scramble=True, seed=7).draw(64, dtype=torch.float64) + 2.0**-31
    close = (found[:, None] - points[None]).abs().amax(2) < 1e-7  # the engine rounds its first point to float32
    assert close.any(1).all()
    assert close.sum() == particles
    if particles == 32:
        assert close[:, 32:].sum() == 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_the_quantiles_of_the_points(dtype: torch.dtype) -> None:
    uniform, normals = Source(30, 4096, seed=3).uniform(30), Source(30, 4096, seed=3).normals(30, dtype)
    assert torch.isfinite(normals).all()
    error = (torch.special.ndtr(normals.double()) - uniform).abs().max()
    assert error < (1e-12 if dtype == torch.float64 else 2e-7)


def test_replicas_do_not_depend_on_the_number_of_threads() -> None:
    x, y = data()
    compiled = tp.compile(mlp("tanh", 2), x, y, F.mse_loss, steps=2)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(compiled.evaluate(particles=2048, replicas=3, seed=5).outputs)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_outputs_alone_are_the_same_numbers():
    compiled = tp.compile(mlp("tanh", 2, lr=0.3), X, Y, F.mse_loss, steps=3)
    full, bare = (compiled.evaluate(particles=512, replicas=2, kernels=k) for k in (True, False))
    assert torch.equal(full.outputs, bare.outputs)
    assert full.loss is not None
    assert bare.loss is not None
    assert torch.equal(full.loss, bare.loss)
    assert bare.activations == ()
    with pytest.raises(UsageError, match="unknown activation"):
        bare.feature_kernel("0")


def test_first_layer_is_drawn_along_the_principal_axes_of_its_inputs():
    x = torch.tensor([[3.0, 0.0, 4.0, 0.0], [0.4, 0.0, -0.3, 0.0]], dtype=torch.float64)
    compiled = tp.compile(mlp("tanh", 1), x, Y[:2], F.mse_loss, steps=1)
    (axes,) = Plan.of(compiled.program).axes.values()
    assert torch.allclose(axes[:, 0].abs(), torch.tensor([0.6, 0.0, 0.8, 0.0], dtype=torch.float64))
    assert torch.allclose(axes[:, 1].abs(), torch.tensor([0.8, 0.0, 0.6, 0.0], dtype=torch.float64))
    assert torch.allclose(axes @ axes.T, torch.eye(4, dtype=torch.float64))
    kernel = compiled.evaluate(particles=256, replicas=1).feature_kernel("0")[0]
    assert torch.allclose(kernel, x @ x.T, atol=1e-12)
