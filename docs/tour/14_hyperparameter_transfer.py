# %% [markdown]
# # Hyperparameter transfer
#
# In the maximal update parametrization wide networks of all widths are near one limit, at every learning rate: so the
# best learning rate of a small one is that of a large one.
#
# If the limit exists and depends on the learning rate η, then so does every network's loss, up to `n^(-1/2)`, and the
# curves of loss against η lie on each other. In the standard parametrization the learning rate at which training
# blows up falls with the width, and the best one with it. In the kernel regime the curves lie on each other too, but
# wider is not better where features matter (Tensor Programs V, [2203.03466](https://arxiv.org/abs/2203.03466)).
#
# A perceptron as everybody writes it, and the rules that `tp.mup` derives from it. Both parametrizations are the same
# network at width 32.

# %%
import torch
import torch.nn.functional as F
from torch import nn

import tpcompile as tp

angle = torch.arange(8) * torch.pi / 4 + 0.2
inputs, targets = torch.stack([angle.cos(), angle.sin()], 1), torch.sin(3 * angle)[:, None]
BASE, STEPS = 32, 12


def network(width):
    layers = [nn.Linear(2, width, bias=False), nn.Tanh(), nn.Linear(width, width, bias=False), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 1, bias=False))
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return model


def standard(lr):
    def make(width):
        model = network(width)
        return model, torch.optim.SGD(model.parameters(), lr=lr)

    return make


rules = tp.mup(standard(0.1), inputs[:2], targets[:2], loss=F.mse_loss)
for name in ("0.weight", "2.weight", "4.weight"):
    print(f"{name}: initial values n^{rules[name].init_exponent}, learning rate n^{rules[name].lr_exponent}")


def maximal(lr):
    def make(width):
        model = rules.apply_init_(network(width), base_width=BASE)
        return model, torch.optim.SGD(rules.param_groups(model, lr=lr, base_width=BASE))

    return make


# %% [markdown]
# The loss after twelve steps, over learning rates that grow by factors of `sqrt(2)`, median of five seeds; and the
# loss in the limit, which is compiled for every learning rate.


# %%
def trained(make, width, seed):
    torch.manual_seed(seed)
    model, optimizer = make(width)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    return F.mse_loss(model(inputs), targets).detach().nan_to_num(1e9)


rates = {standard: [2 ** (k / 2) for k in range(-18, -2)], maximal: [2 ** (k / 2) for k in range(-10, -2)]}
widths = {32: "#9ecae1", 128: "#4292c6", 512: "#084594"}
losses = {}
for kind in (standard, maximal):
    for width in widths:
        runs = [torch.stack([trained(kind(lr), width, seed) for seed in range(5)]) for lr in rates[kind]]
        losses[kind, width] = torch.stack(runs).median(1).values
compiled = [tp.compile(maximal(lr), inputs, targets, F.mse_loss, steps=STEPS) for lr in rates[maximal]]
losses[maximal, "limit"] = torch.stack([c.evaluate(particles=4096).loss[-1] for c in compiled])
for (kind, width), loss in losses.items():
    best = int(loss.argmin())
    print(f"{kind.__name__:9} width {width:>5}: best learning rate {rates[kind][best]:.3f}, loss {loss[best]:.2f}")

# %% tags=["picture"]
from matplotlib.figure import Figure

figure = Figure(figsize=(6.6, 3.0), layout="constrained")
axes = dict(zip((standard, maximal), figure.subplots(1, 2, sharey=True), strict=True))
for (kind, width), loss in losses.items():
    label, colour = ("limit", "black") if width == "limit" else (f"width {width}", widths[width])
    style = "-" if width == "limit" else "o-"
    axes[kind].semilogx(rates[kind], loss.clamp(max=1), style, ms=3, lw=1.2, color=colour, label=label)
for kind, axis in axes.items():
    axis.set(xlabel=f"learning rate (at width {BASE})", ylim=(0, 0.7))
    axis.set_title({standard: "standard", maximal: "maximal update"}[kind], fontsize=9)
    axis.xaxis.set_minor_formatter("")
    axis.legend(frameon=False, fontsize=8)
axes[standard].set(ylabel=f"loss after {STEPS} steps")
figure.savefig("transfer.png", dpi=90)  # Loss against the learning rate at three widths, in two parametrizations
