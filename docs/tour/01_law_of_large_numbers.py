# %% [markdown]
# # Law of large numbers
#
# A coordinate of a wide vector is a draw of one random variable, and averages over coordinates become expectations.
#
# Let the coordinates of a vector `w` of length n be independent, with the law of a random variable `Z`. For every
# function ψ that does not grow too fast, `(1/n) Σ_i ψ(w_i)` tends to `E ψ(Z)` almost surely, at a distance of order
# `n^(-1/2)`. Averages in wide networks do nothing else. What takes work is to say what `Z` is, for vectors that are
# products of matrices with vectors that depend on them: that is the Master Theorem, five chapters from here.
#
# Any PyTorch module whose sizes follow a width can be compiled to its limit. This one only averages: simulated at
# three widths, 256 draws each, and compiled.

# %%
import torch
from torch import nn

import tpcompile as tp


class Average(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.w = nn.Parameter(torch.randn(width))

    def forward(self, inputs):
        return torch.tanh(self.w).square().mean().reshape(1, 1)


compiled = tp.compile(Average, torch.zeros(1, 1))
limit = compiled.evaluate().outputs.item()
print("  width   one average   distance from the limit (root mean square), times sqrt(width)")
for width in (100, 3_000, 100_000):
    found = torch.stack([compiled.simulate(width, seed=seed).outputs for seed in range(256)])
    print(f"{width:>7}   {found[0].item():.4f}        {((found - limit).square().mean() * width).sqrt():.2f}")
print(f"  limit   {limit:.4f}")

# %% [markdown]
# The distance times `sqrt(width)` stays: it is the standard deviation of one coordinate's `tanh(Z)^2`. The compiled
# program says the same in symbols. `Z%2` is a function of the standard normal `Z%0`, and the average is its
# expectation; nothing in it has the width's size.

# %%
from tpcompile.report.inspect import program_text

for line in program_text(compiled).splitlines():
    if line.startswith(("%", "  outputs")):
        print(line.split(" @ ")[0])
