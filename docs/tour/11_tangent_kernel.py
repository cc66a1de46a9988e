# %% [markdown]
# # Kernel regime and tangent kernel
#
# In the neural tangent parametrization a network of infinite width trains as a linear function of its parameters,
# that is, as kernel regression.
#
# The change of the outputs in one step of gradient descent is `-η K(ξ, ξ') ∂L/∂f(ξ')` to first order, with the
# tangent kernel `K = Σ_p <∂f(ξ)/∂p, ∂f(ξ')/∂p>`. In the limit K is a fixed number at initialisation, it does not move
# in training, and higher orders vanish (Jacot et al. 2018, [1806.07572](https://arxiv.org/abs/1806.07572); for any
# architecture, Tensor Programs II, [2006.14548](https://arxiv.org/abs/2006.14548)). So training can be written down
# without unrolling it.
#
# Two ways to the same numbers that share little: the training run, compiled step by step as a tensor program, and the
# kernel of the network at initialisation, from which gradient descent on the outputs follows by linear algebra.

# %%
import torch
import torch.nn.functional as F

import tpcompile as tp

angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4 + 0.2
inputs, targets = torch.stack([angle.cos(), angle.sin()], 1), torch.sin(3 * angle)[:, None]
make = tp.abc.ntk(2).factory(inputs=2, lr=1.0)

compiled = tp.compile(make, inputs, targets, F.mse_loss, steps=12)
result = compiled.evaluate(particles=8192, output_init="zero")

kernel = tp.kernel(make, torch.zeros(2))  # with the learning rate of the optimizer
descent = kernel.gradient_descent(inputs, targets, output_init="zero")
steps = torch.arange(0, 13, 3)
predicted = descent.predict(t=steps, covariance=None).mean
print("step   loss of the program   of the kernel   largest difference of outputs")
for step, outputs in zip(steps, predicted, strict=True):
    loss, difference = F.mse_loss(outputs, targets), (outputs - result.outputs[step]).abs().max()
    print(f"{step:>4}   {result.loss[step]:19.3f}   {loss:13.3f}   {'below 1e-3' if difference < 1e-3 else difference}")

# %% [markdown]
# The tangent kernel of the program at every step is the same, and it is the one of the kernel engine. Finite networks
# have random kernels that move, both by `n^(-1/2)` or less:

# %%
moved = (result.ntk() - result.ntk()[0]).abs().max()
print(f"limit: moves by {moved:.0e}" if moved > 1e-6 else "limit: does not move", end="; ")
off = (result.ntk()[0] - kernel.ntk(inputs)).abs().max() / kernel.ntk(inputs).max()
print("differs from that of the kernel engine by", f"{off:.0e}" if off > 1e-3 else "less than 0.1 %")
for width in (32, 128, 512):
    networks = [compiled.simulate(width, seed=seed).ntk() for seed in range(4)]
    change = torch.stack([(k[-1] - k[0]).norm() / k[0].norm() for k in networks]).mean()
    spread = (torch.stack(networks)[:, 0].std(0) / result.ntk()[0]).diagonal().mean()
    print(f"width {width:4}: moves by {change:.3f}, one draw is off by {spread:.2f}")

# %% [markdown]
# Trained to the end (`t = ∞`) the limit interpolates the targets: kernel regression with the tangent kernel. The
# random initial outputs give it a spread, between the points.

# %%
grid = torch.linspace(0, 2 * torch.pi, 120, dtype=torch.float64)
on_grid = torch.stack([grid.cos(), grid.sin()], 1)
final = kernel.gradient_flow(inputs, targets).predict(on_grid, covariance="diagonal")
by_hand = kernel.ntk(on_grid, inputs) @ torch.linalg.solve(kernel.ntk(inputs), targets)
print("kernel regression by hand:", "the same" if torch.allclose(final.mean, by_hand, atol=1e-6) else "differs")

# %% tags=["picture"]
from matplotlib.figure import Figure

figure = Figure(figsize=(4.8, 3.2), layout="constrained")
axis = figure.subplots()
spread = 2 * final.covariance.clamp(min=0).sqrt().reshape(-1)
mean = final.mean[:, 0]
axis.fill_between(grid, mean - spread, mean + spread, color="#eeeeee", label="± two standard deviations")
axis.plot(grid, mean, color="black", lw=1.6, label="limit, trained to the end")
axis.plot(angle, targets[:, 0], "o", color="black", ms=4)
axis.set(xlabel="angle")
axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncol=2, frameon=False, fontsize=8)
figure.savefig("tangent_kernel.png", dpi=90)  # Mean and spread of networks of infinite width, trained to interpolate
