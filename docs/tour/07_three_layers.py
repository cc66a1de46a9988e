# %% [markdown]
# # A 3-layer feedforward network
#
# Forward pass, backward pass and weight updates are one tensor program: training is a longer program, not another
# theory.
#
# `f(ξ) = v·x²/n`, `x² = tanh(W² x¹)`, `x¹ = tanh(W¹ ξ)`, trained by gradient descent on all three weights, with the
# learning rates of the maximal update parametrization (chapter 13). At the start `W² x¹` is normal. After a step `W²`
# is its initial value plus an outer product, `W²_1 = W²_0 + (1/n) dh² x¹ᵀ` up to a factor, so that `W²_1 x¹_1 = W²_0
# x¹_1 + dh² (x¹·x¹_1)/n`: a product with the *initial* matrix and a vector times a scalar, an average. The backward
# pass multiplies with `W²_0ᵀ`, and so from the second step on `W²_0 x¹_1` has a response. That is all there is to
# correlated weights.

# %%
from itertools import pairwise

import torch
import torch.nn.functional as F

import tpcompile as tp
from tpcompile.report.inspect import program_text

make = tp.abc.mup(hidden_layers=2).factory(inputs=2, lr=0.4)  # ordinary torch: (module, optimizer) of a width
inputs = torch.tensor([[1.0, 0.3], [-0.4, 1.0], [0.9, -0.8]])
targets = torch.tensor([[1.0], [-1.0], [0.5]])
compiled = tp.compile(make, inputs, targets, F.mse_loss, steps=4)

# %% [markdown]
# The first four products with the initial `W²`, from the compiled program; the three inputs are a finite axis of
# every vector. The first, in the forward pass, is normal. The second, with the transpose in the backward pass, would
# respond to the first: but the mean derivative there is zero, by the sign of `v`. After a step it is not, and both
# respond.

# %%
lines = program_text(compiled).splitlines()
starts = [i for i, line in enumerate(lines) if line.startswith("%")]
products = [(i, j) for i, j in pairwise(starts) if "Ẑ + Ż of" in lines[i]]
for i, j in products[:4]:
    for line in lines[i:j]:
        print(" at ".join(part.strip() if k else part.rstrip() for k, part in enumerate(line.split(" @ "))))

# %% [markdown]
# The limit, and means over 16 networks of finite width: loss, and squared length per coordinate of the activation
# `x²` of the first input.

# %%
result = compiled.evaluate(particles=8192)
second = result.activations[-1]
print("width   loss after 0, 2, 4 steps   |x²(ξ)|²/n after 0, 2, 4 steps")


def row(loss, square):
    return "   ".join(" ".join(f"{x:.3f}" for x in values[::2]) for values in (loss, square))


for width in (64, 256, 1024):
    networks = [compiled.simulate(width, seed=seed) for seed in range(16)]
    loss = torch.stack([network.loss for network in networks]).mean(0)
    square = torch.stack([network.feature_kernel(second)[:, 0, 0] for network in networks]).mean(0)
    print(f"{width:>5}   {row(loss, square)}")
print(f"limit   {row(result.loss, result.feature_kernel(second)[:, 0, 0])}")

# %% tags=["picture"]
from matplotlib.figure import Figure

figure = Figure(figsize=(6.4, 3.0), layout="constrained")
left, right = figure.subplots(1, 2)
for width, colour in ((32, "#c6dbef"), (256, "#4292c6")):
    for seed in range(6):
        label = f"width {width}" if seed == 0 else None
        network = compiled.simulate(width, seed=seed)
        left.plot(network.outputs[:, :, 0], color=colour, lw=0.8, label=[label, None, None])
        right.plot(network.feature_kernel(second)[:, 0, 0], color=colour, lw=0.8)
left.plot(result.outputs[:, :, 0], color="black", lw=1.6, label=["limit", None, None])
right.plot(result.feature_kernel(second)[:, 0, 0], color="black", lw=1.6)
left.set(xlabel="step", title="outputs on three inputs")
right.set(xlabel="step", title="|x²(ξ)|² / n")
left.legend(frameon=False, fontsize=8)
for axis in (left, right):
    axis.title.set_fontsize(9)
figure.savefig("three_layers.png", dpi=90)  # Outputs and squared activations of finite networks around the limit
