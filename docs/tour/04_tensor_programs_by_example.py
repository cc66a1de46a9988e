# %% [markdown]
# # Tensor programs by the example of the semicircle
#
# Multiply a random vector by a random matrix again and again, and ask only what one coordinate looks like: the
# semicircle law follows without counting anything.
#
# Let `g` be a standard normal vector and `W` as before. A coordinate of `u = W g` is a sum of n independent terms,
# and so normal. The next product `v = W^T u` is not independent of what came before: `W^T` has met `g` already, on
# its other side. Its coordinates are `Z^v = Ẑ + Ż`, a new normal variable Ẑ, independent of `g`, as if the transpose
# were an independent matrix, and the response `Ż = Z^g E[∂Z^u/∂Ẑ^u]`, here `Z^g` itself. `E[Z^g Z^v] = 1` is the
# first moment of `W^T W`, and all of it is response. The compiler prints the program in this notation:

# %%
import torch
from torch import nn

import tpcompile as tp
from tpcompile.report.inspect import program_text


class Products(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.g = nn.Parameter(torch.randn(width))
        self.W = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, inputs):
        u = self.W @ self.g
        v = self.W.T @ u
        return (self.g * v).mean().reshape(1, 1)


compiled = tp.compile(Products, torch.zeros(1, 1))
for line in program_text(compiled).splitlines():
    if line.startswith(("%", "      ")):
        print(line.split(" @ ")[0].rstrip())
print("limit", compiled.evaluate().outputs.item())

# %% [markdown]
# A coordinate of `v` against that of `g`, at width 2000: a line of slope one, and noise of variance one around it.

# %% tags=["picture"]
from matplotlib.figure import Figure

torch.manual_seed(0)
g, W = torch.randn(2000), torch.randn(2000, 2000) / 2000**0.5
figure = Figure(figsize=(4.2, 3.6), layout="constrained")
axis = figure.subplots()
axis.scatter(g, W.T @ (W @ g), s=2, color="#9ecae1", label="coordinates of v")
axis.plot([-3.5, 3.5], [-3.5, 3.5], color="black", lw=1.4, label="response")
axis.set(xlabel="coordinate of g", ylabel="coordinate of v = Wᵀ W g", xlim=(-3.6, 3.6))
axis.legend(frameon=False, fontsize=8)
figure.savefig("response.png", dpi=90)  # Coordinates of v over those of g, along a line of slope one

# %% [markdown]
# Now the symmetric `A = (W + W^T) / sqrt(2)`. By the same rule `A x_k` is a new normal variable plus a response, and
# the response is `Z^(x_(k-1))`, if each `x_k` is itself the new variable of its product. So define `x_0 = g`,
# `x_(k+1) = A x_k - x_(k-1)`: every `x_k` has fresh, independent standard normal coordinates.
#
# But `x_k = U_k(A/2) g`, with the polynomials of that recursion (`U_0 = 1`, `U_1 = 2y`, `U_(k+1) = 2y U_k -
# U_(k-1)`), Chebyshev's of the second kind. That the `x_k` are orthonormal says `(1/n) tr U_j(A/2) U_k(A/2) → 1` for
# j = k and 0 otherwise: the eigenvalues of A have the density for which these polynomials are orthonormal, and that
# is the semicircle. The matrix of all `E[Z^(x_j) Z^(x_k)]`, in the limit and for one matrix of width 1000:


# %%
class Chebyshev(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.g = nn.Parameter(torch.randn(width))
        self.W = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, inputs):
        previous, x, found = torch.zeros_like(self.g), self.g, [self.g]
        for _ in range(4):
            previous, x = x, (self.W @ x + self.W.T @ x) / 2**0.5 - previous
            found.append(x)
        X = torch.stack(found)
        return (X @ X.T)[None] / X.shape[1]


compiled = tp.compile(Chebyshev, torch.zeros(1, 1))
limit, finite = compiled.evaluate().outputs[0, 0], compiled.simulate(width=1000, seed=0).outputs[0, 0]
for a, b in zip(limit.tolist(), finite.tolist(), strict=True):
    print("   ".join(" ".join(f"{abs(x):5.2f}" for x in row) for row in (a, b)))
