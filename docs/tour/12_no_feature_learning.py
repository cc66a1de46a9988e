# %% [markdown]
# # No feature learning
#
# In the kernel regime the activations on any input are, in the limit, after training what they were before: nothing
# is learned that another task could use.
#
# In the neural tangent parametrization every hidden activation moves by `n^(-1/2)`. That is enough to change the
# output, which sums n of them, and too little to change their Gram matrix, the feature kernel `(1/n) <x(ξ), x(ξ')>`.
# A pretrained network of infinite width is a random network as far as its features are concerned (Tensor Programs IV,
# [2011.14522](https://arxiv.org/abs/2011.14522), section 3). The task of the chapters before:

# %%
import torch
import torch.nn.functional as F

import tpcompile as tp

angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4 + 0.2
inputs, targets = torch.stack([angle.cos(), angle.sin()], 1), torch.sin(3 * angle)[:, None]
tangent = tp.compile(tp.abc.ntk(2).factory(inputs=2, lr=1.0), inputs, targets, F.mse_loss, steps=12)
limit = tangent.evaluate(particles=4096, output_init="zero")
features = limit.activations[-1]
print(f"loss {limit.loss[0]:.3f} -> {limit.loss[-1]:.3f}")
for name in limit.activations:
    kernel = limit.feature_kernel(name)
    print(f"{name:14} feature kernel moves by {(kernel[-1] - kernel[0]).abs().max():g}")

# %% [markdown]
# These zeros are no rounding: `tp.verify` gives the powers of n with which everything changes.

# %%
report = tp.verify(tp.abc.ntk(2).factory(inputs=2, lr=1.0), inputs[:2], targets[:2], loss=F.mse_loss, steps=2)
print(report.verdict)
for name in (*limit.activations, "outputs"):
    print(f"{name:14} changes like n^{report.change_exponent(name, step=2)}")

# %% [markdown]
# Networks of finite width do learn features, but less and less. The change of the last activations over training,
# relative to their size, in the neural tangent and in the maximal update parametrization:

# %%
maximal = tp.compile(tp.abc.mup(2).factory(inputs=2, lr=1.0), inputs, targets, F.mse_loss, steps=12)
widths, changes = (16, 64, 256, 1024), {}
for name, compiled in (("neural tangent", tangent), ("maximal update", maximal)):
    changes[name] = [
        sum(compiled.simulate(width, seed=seed).metrics()[features]["feature_change"][-1].item() for seed in range(4))
        / 4
        for width in widths
    ]
    print(name, *(f"{change:.3f}" for change in changes[name]))
in_the_limit = maximal.evaluate(particles=4096).metrics()[features]["feature_change"][-1].item()
print(f"limits         0.000 and {in_the_limit:.3f}")

# %% tags=["picture"]
from matplotlib.figure import Figure

figure = Figure(figsize=(4.8, 3.2), layout="constrained")
axis = figure.subplots()
for (name, values), colour in zip(changes.items(), ("#e6550d", "black"), strict=True):
    axis.loglog(widths, values, "o-", color=colour, label=name, lw=1.2)
axis.loglog(
    widths, [changes["neural tangent"][0] * (widths[0] / n) ** 0.5 for n in widths], ":", color="grey", label="n^(-1/2)"
)
axis.axhline(in_the_limit, color="black", ls="--", lw=0.8)
axis.set(xlabel="width", ylabel="relative change of features")
axis.legend(frameon=False, fontsize=8)
figure.savefig("no_feature_learning.png", dpi=90)  # Change of features against the width, in two parametrizations
