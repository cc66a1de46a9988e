# %% [markdown]
# # The Master Theorem, stated and run
#
# One theorem says what every vector of a program becomes, whatever the order in which matrices, their transposes and
# nonlinearities meet.
#
# A **tensor program** makes vectors from initial vectors with independent coordinates, by (1) products `W x` and `W^T
# y` with matrices of independent entries of variance `σ²/n`, (2) functions of coordinates, `φ(x^1, .., x^k; θ)`, and
# (3) averages `θ = (1/n) Σ_i φ(x^1_i, .., x^k_i)`.
#
# **Theorem** (Yang, Tensor Programs III, [2009.10685](https://arxiv.org/abs/2009.10685)). For every pseudo-Lipschitz
# ψ, `(1/n) Σ_i ψ(x^1_i, .., x^k_i) → E ψ(Z^(x^1), .., Z^(x^k))` almost surely, where
#
# - `Z^φ(x, ..) = φ(Z^x, ..)`, with averages replaced by their limits;
# - `Z^(W x) = Ẑ^(W x) + Ż^(W x)`;
# - the `Ẑ^(W x)` of one W are jointly normal, with `Cov(Ẑ^(W x), Ẑ^(W x')) = σ² E[Z^x Z^(x')]`, independent of those
#   of all other matrices, of `W^T`, and of the initial vectors;
# - `Ż^(W x) = σ² Σ_y Z^y E[∂Z^x / ∂Ẑ^(W^T y)]`, over all earlier products `W^T y`.
#
# To run it: a program with one matrix, its transpose and a nonlinearity, and two functions ψ.

# %%
import torch
from torch import nn

import tpcompile as tp


class Program(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.x = nn.Parameter(torch.randn(width))
        self.W = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, inputs):
        z = self.W.T @ torch.tanh(self.W @ self.x)
        return torch.stack([(z * self.x).mean(), torch.relu(z - 1).mean()])[None]


compiled = tp.compile(Program, torch.zeros(1, 1))
for width in (64, 256, 1024):
    found = torch.stack([compiled.simulate(width, seed=seed).outputs[0, 0] for seed in range(32)])
    print(
        "{:>8}   {:.3f} ± {:.3f}   {:.4f} ± {:.4f}".format(
            width, *torch.stack([found.mean(0), found.std(0)], 1).ravel()
        )
    )
result = compiled.evaluate()
limit, error = result.outputs[0, 0], result.outputs_stderr[0, 0]
print("   limit   {:.4f} ± {:.4f}  {:.5f} ± {:.5f}".format(*torch.stack([limit, error], 1).ravel()))

# %% [markdown]
# The ± of a width is the spread of one draw, which halves with four times the width; that of the limit is the error
# of its numerical evaluation.
#
# By hand: `Z^(W x)` is standard normal, so that `Z^z = Ẑ + s Z^x` with `s = E[tanh'(Z)]`, and Ẑ has the variance
# `E[tanh(Z)²]`. Then `E[Z^z Z^x] = s`, and `Z^z` is normal with variance `E[tanh(Z)²] + s²`, of which the second ψ is
# an integral. Without the response the first would be 0 and the second too small.

# %%
t = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
weight = torch.exp(-t * t / 2) / (2 * torch.pi) ** 0.5


def mean(values):
    return torch.trapezoid(values * weight, t).item()


s, square = mean(1 - torch.tanh(t) ** 2), mean(torch.tanh(t) ** 2)
with_response, without = (mean(torch.relu(v**0.5 * t - 1)) for v in (square + s * s, square))
print(f"by hand, with the response     {s:.4f}  {with_response:.5f}")
print(f"by hand, without the response  {0:.4f}  {without:.5f}")

# %% tags=["picture"]
from matplotlib.figure import Figure

torch.manual_seed(0)
n = 4000
x, W = torch.randn(n), torch.randn(n, n) / n**0.5
z = W.T @ torch.tanh(W @ x)
figure = Figure(figsize=(6.2, 3.2), layout="constrained")
left, right = figure.subplots(1, 2)
left.scatter(x, z, s=1, color="#9ecae1")
left.plot([-3.5, 3.5], [-3.5 * s, 3.5 * s], color="black", lw=1.4)
left.set(xlabel="coordinate of x", ylabel="coordinate of z", title="response: slope E tanh'", xlim=(-3.6, 3.6))
right.hist(z.numpy(), 60, density=True, color="#9ecae1")
grid = torch.linspace(-4, 4, 200)
for v, style, label in ((square + s * s, "-", "limit"), (square, ":", "without response")):
    right.plot(grid, torch.exp(-grid * grid / (2 * v)) / (2 * torch.pi * v) ** 0.5, style, color="black", label=label)
right.set(xlabel="coordinate of z", title="its law")
right.legend(frameon=False, fontsize=8)
for axis in (left, right):
    axis.title.set_fontsize(9)
figure.savefig("master_theorem.png", dpi=90)  # Coordinates of z against those of x, and their law
