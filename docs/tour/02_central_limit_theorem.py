# %% [markdown]
# # Central limit theorem, by the moment method
#
# Sums of n independent terms over sqrt(n) become Gaussian, since their moments count pairings.
#
# Let `s_1, .., s_n` be independent random signs and `S = (s_1 + .. + s_n) / sqrt(n)`. The moment `E S^k` is a sum
# over k indices. A term vanishes where some index stands alone, since `E s = 0`; there are too few terms where an
# index stands three times or more, for the factor `n^(-k/2)`. What is left are the ways to match the k indices in
# pairs, `(k - 1)(k - 3) .. 1` of them, which are the moments of the normal law. The moments for finite n are exact
# fractions:

# %%
from fractions import Fraction
from math import comb

print("     n   E S^2   E S^4    E S^6")
for n in (1, 10, 100, 1000):
    law = [(Fraction(comb(n, j), 2**n), n - 2 * j) for j in range(n + 1)]  # probability and value of the sum
    moments = [float(sum(p * s**k for p, s in law) / n ** (k // 2)) for k in (2, 4, 6)]
    print("{:>6}   {:.3f}   {:.3f}   {:.3f}".format(n, *moments))
print(" pairs   1.000   3.000   15.000")

# %% [markdown]
# Such sums in networks are outputs at initialisation, where a readout with independent entries meets the activations.
# They stay random in the limit: the compiler calls them Gaussian scalars, and all of one program are jointly
# Gaussian. Their covariance is that of the summands, by the law of large numbers. Below, `a` has entries of any law
# with mean zero (here uniform), and the two outputs have the covariance matrix `Var(a) E[ψ_i(Z) ψ_j(Z)]` with `ψ =
# (Z, relu(Z))`, which is `[[1, 1/2], [1/2, 1/2]]`.

# %%
import torch
from torch import nn

import tpcompile as tp


class Sums(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.z = nn.Parameter(torch.randn(width))
        self.a = nn.Parameter(torch.empty(width).uniform_(-(3**0.5), 3**0.5))

    def forward(self, inputs):
        return torch.stack([(self.a * self.z).sum(), (self.a * torch.relu(self.z)).sum()])[None] / len(self.a) ** 0.5


compiled = tp.compile(Sums, torch.zeros(1, 1))
result = compiled.evaluate()
for row in result.outputs_cov[0].tolist():
    print("limit                ", "{:.3f} {:.3f}".format(*row))
draws = torch.stack([compiled.simulate(200, seed=seed).outputs[0, 0] for seed in range(2000)])
for row in torch.cov(draws.T).tolist():
    print("width 200, 2000 draws", "{:.3f} {:.3f}".format(*row))
