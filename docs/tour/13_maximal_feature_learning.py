# %% [markdown]
# # Maximal feature learning
#
# There is one way to scale a network, up to symmetry, in which every weight matrix learns as much as it can without
# blowing up.
#
# A weight's update is *maximal* if it changes the output of its own layer by order one. If all are, and the readout
# starts as large as stability allows, the parametrization is the maximal update parametrization, and it is unique
# (Tensor Programs IV, [2011.14522](https://arxiv.org/abs/2011.14522), Theorem 5.6). Learning features is less: it
# takes one layer. In the table, an effect is the power of n with which a weight's updates change its layer's output
# after two steps.

# %%
from fractions import Fraction

import torch
import torch.nn.functional as F

import tpcompile as tp

angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4 + 0.2
inputs, targets = torch.stack([angle.cos(), angle.sin()], 1), torch.sin(3 * angle)[:, None]
half = Fraction(1, 2)
parametrizations = {
    "neural tangent": tp.abc.ntk(2),
    "first layer frozen": tp.abc.parametrization([0, 0, half], [0, half, half], 0),
    "maximal update": tp.abc.mup(2),
}
results = {}
for name, p in parametrizations.items():
    report = tp.verify(p.factory(inputs=2, lr=1.0), inputs[:2], targets[:2], loss=F.mse_loss, steps=2, advice=False)
    effects = ", ".join(f"n^{row.effect[-1]}" for row in report.parameters.values())
    compiled = tp.compile(p.factory(inputs=2, lr=1.0), inputs, targets, F.mse_loss, steps=12)
    result = results[name] = compiled.evaluate(particles=4096, output_init="zero")
    print(f"{name:18}  {report.verdict:16}  effects of the weights {effects}")

# %% [markdown]
# What learning does to features: the centred alignment of the last feature kernel with that of the targets (one if
# the features separate nothing but the targets), and the change of features.

# %%
print("                    loss at the end   alignment: start, end   change of features")
for name, result in results.items():
    metrics = result.metrics()[result.activations[-1]]
    start, *_, end = metrics["target_alignment"].tolist()
    print(
        f"{name:18}  {result.loss[-1]:15.3f}   {start:.2f}, {end:.2f}              {metrics['feature_change'][-1]:.3f}"
    )

# %% [markdown]
# Nothing here had to be known about the network: `tp.mup` derives the scaling of any model and optimizer from its
# trace. The same perceptron written as everybody does, with Adam:


# %%
def make(width):
    layers = [torch.nn.Linear(2, width), torch.nn.Tanh(), torch.nn.Linear(width, width), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(width, 1))
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


rules = tp.mup(make, inputs.float()[:2], targets.float()[:2], loss=F.mse_loss)
for name in ("0.weight", "2.weight", "4.weight"):
    print(f"{name}: initial values n^{rules[name].init_exponent}, learning rate n^{rules[name].lr_exponent}")

# %% tags=["picture"]
from matplotlib.figure import Figure

figure = Figure(figsize=(6.6, 2.0), layout="constrained")
kernels = [("at the start", results["maximal update"].feature_kernel(result.activations[-1])[0])]
kernels += [
    (name, r.feature_kernel(r.activations[-1])[-1]) for name, r in results.items() if name != "first layer frozen"
]
kernels.append(("targets", targets @ targets.T))
for axis, (name, kernel) in zip(figure.subplots(1, 4), kernels, strict=True):
    size = kernel.abs().max()
    axis.imshow(kernel, cmap="RdBu_r", vmin=-size, vmax=size)
    axis.set(xticks=[], yticks=[])
    axis.set_title(name if name in ("targets", "at the start") else f"trained,\n{name}", fontsize=8)
figure.savefig("feature_kernels.png", dpi=90)  # Feature kernels over the eight inputs before and after training
