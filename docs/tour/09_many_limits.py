# %% [markdown]
# # The many limits of one network
#
# The same architecture has many limits of infinite width, one for each way to scale its weights and learning rate:
# some blow up, some stand still, some learn a linear function of their parameters, some learn features.
#
# A network with two hidden layers of tanh on eight points of a circle, targets `sin 3θ`, twelve steps of gradient
# descent. The five parametrizations differ in powers of n only (`W = n^-a w`, entries of w of size `n^-b`, learning
# rate `η n^-c`): at width 1, if there were such a network, they would be the same. Outputs at initialisation are
# taken to be zero where they are random in the limit, so that the losses can be compared.

# %%
from fractions import Fraction

import torch
import torch.nn.functional as F

import tpcompile as tp

angle = torch.arange(8) * torch.pi / 4 + 0.2
inputs, targets = torch.stack([angle.cos(), angle.sin()], 1), torch.sin(3 * angle)[:, None]
half, quarter = Fraction(1, 2), Fraction(1, 4)
parametrizations = {
    "standard": tp.abc.standard(2),
    "standard, c = 2": tp.abc.standard(2, c=2),
    "standard, c = 1": tp.abc.standard(2, c=1),
    "neural tangent": tp.abc.ntk(2),
    "uniform, s = 1/4": tp.abc.parametrization([-half, 0, quarter], [half, half, half], half),
    "maximal update": tp.abc.mup(2),
}
results = {}
print("parametrization   a               b               c     loss after 0, 6, 12 steps   change of features")
for name, p in parametrizations.items():
    a, b = (" ".join(f"{x!s:>4}" for x in exponents) for exponents in (p.a, p.b))
    start = f"{name:16}  {a}  {b}  {p.c!s:>3}"
    try:
        compiled = tp.compile(p.factory(inputs=2, lr=1.0), inputs, targets, F.mse_loss, steps=12)
    except tp.errors.UnstableError as error:
        print(f"{start}    {error.value} grows like n^{error.exponent} at step {error.step}")
        continue
    result = results[name] = compiled.evaluate(particles=4096, output_init="zero")
    change = result.metrics()[result.activations[-1]]["feature_change"][-1]
    loss = " ".join(f"{x:.3f}" for x in result.loss[::6])
    print(f"{start}    {loss}           {change:.3f}")

# %% [markdown]
# The change of features is that of the last activations, relative to their size; zero is exactly zero in the limit.
# The standard parametrization needs a learning rate of order 1/n (Tensor Programs IV,
# [2011.14522](https://arxiv.org/abs/2011.14522), Theorem 4.1), and then it is a kernel method; its kernel is not that
# of the neural tangent parametrization, since the first layer is frozen in it. The uniform parametrizations lie
# between neural tangent and maximal update; for every s > 0 they have the same limit as the neural tangent one, but
# for the outputs at initialisation.

# %%
difference = (results["uniform, s = 1/4"].outputs - results["neural tangent"].outputs).abs().max()
print(
    f"largest difference of outputs, uniform and neural tangent: {difference:.0e}" if difference > 1e-6 else "the same"
)

# %% tags=["picture"]
from matplotlib.figure import Figure

figure = Figure(figsize=(4.8, 3.2), layout="constrained")
axis = figure.subplots()
styles = {
    "standard, c = 2": "#aaaaaa",
    "standard, c = 1": "#fdae6b",
    "neural tangent": "#e6550d",
    "maximal update": "black",
}
for name, colour in styles.items():
    axis.plot(results[name].loss, color=colour, label=name)
axis.set(xlabel="step", ylabel="loss", ylim=(0, None))
axis.legend(frameon=False, fontsize=8)
figure.savefig("many_limits.png", dpi=90)  # Loss of four limits of the same network
