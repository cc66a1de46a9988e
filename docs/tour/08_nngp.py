# %% [markdown]
# # Neural Network Gaussian Process
#
# A random network of infinite width is a Gaussian process: its covariance is a recursion over layers, whatever the
# architecture.
#
# With a readout of independent entries and a factor `n^(-1/2)`, the output at initialisation is a sum as in chapter
# 2, and outputs on several inputs are jointly normal. The covariance is that of the last activations, `E[Z^x(ξ)
# Z^x(ξ')]`, and that of a hidden layer follows from the layer below by the Master Theorem: `K¹ = ξ·ξ'`, `K^(l+1) = σ²
# E[φ(u) φ(v)]` for `(u, v)` normal with the covariance `K^l` (Neal 1996; Lee et al. 2018,
# [1711.00165](https://arxiv.org/abs/1711.00165); any architecture: Tensor Programs I,
# [1910.12478](https://arxiv.org/abs/1910.12478)). `tp.kernel` derives the recursion from a module.

# %%
import math

import torch

import tpcompile as tp


def make(width):
    model, _ = tp.abc.ntk(hidden_layers=3).factory(inputs=2, activation=lambda h: 2**0.5 * torch.relu(h))(width)
    return model


kernel = tp.kernel(make, torch.zeros(2))
angle = torch.linspace(0, math.pi, 7, dtype=torch.float64)
circle = torch.stack([angle.cos(), angle.sin()], 1)
limit = kernel.nngp(circle[:1], circle)[0]

# %% [markdown]
# For rectified units the expectation is known, the arc-cosine kernel of degree one (Cho & Saul 2009), so that the
# correlation follows `ρ ← (sqrt(1 - ρ²) + (π - arccos ρ) ρ) / π`. Three layers by hand, compiled, and as a mean over
# 1000 networks of width 128:

# %%
rho = angle.cos()
for _ in range(3):
    rho = ((1 - rho**2).clamp(min=0).sqrt() + (math.pi - rho.clamp(-1, 1).arccos()) * rho) / math.pi
with torch.no_grad():
    torch.manual_seed(0)
    outputs = torch.stack([make(128).double()(circle)[:, 0] for _ in range(1000)])
finite = (outputs[:, :1] * outputs).mean(0)
print("angle/π   by hand   compiled   1000 networks (± 0.05)")
for a, x, y, z in zip(angle / math.pi, rho, limit, finite, strict=True):
    print(f"{a:7.3f}   {x:7.4f}   {y:8.4f}   {z:13.2f}")

# %% [markdown]
# The process conditioned on data is the posterior of a Bayesian network of infinite width, whose mean is kernel
# regression. Five points on the circle, and networks of width 1024 in the band of the prior (left), the posterior
# with two standard deviations (right):

# %%
points = torch.tensor([0.3, 0.9, 1.5, 2.4, 2.9], dtype=torch.float64)
values = torch.tensor([0.8, -0.3, -0.9, 0.5, 0.6], dtype=torch.float64)[:, None]
process = kernel.gp(torch.stack([points.cos(), points.sin()], 1), values, noise=1e-3)
grid = torch.linspace(0, math.pi, 60, dtype=torch.float64)
on_grid = torch.stack([grid.cos(), grid.sin()], 1)
posterior = process.predict(on_grid, covariance="diagonal")
print("log marginal likelihood", f"{process.log_marginal_likelihood().item():.3f}")

# %% tags=["picture"]
from matplotlib.figure import Figure

figure = Figure(figsize=(6.6, 3.0), layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
with torch.no_grad():
    for seed in range(8):
        torch.manual_seed(seed)
        left.plot(grid, make(1024).double()(on_grid)[:, 0], color="#4292c6", lw=0.8)
left.fill_between(grid, -2 * kernel.nngp(on_grid, diagonal=True).sqrt(), 2, color="#eeeeee")
mean, spread = posterior.mean[:, 0], posterior.covariance.clamp(min=0).sqrt().reshape(-1)
right.fill_between(grid, mean - 2 * spread, mean + 2 * spread, color="#eeeeee")
right.plot(grid, mean, color="black", lw=1.6)
right.plot(points, values[:, 0], "o", color="black", ms=4)
left.set(xlabel="angle", title="networks of width 1024 at initialisation")
right.set(xlabel="angle", title="limit conditioned on five points")
for axis in (left, right):
    axis.title.set_fontsize(9)
figure.savefig("nngp.png", dpi=90)  # Random networks of width 1024, and the posterior of the limit
