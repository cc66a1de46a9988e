# %% [markdown]
# # abc-parametrizations and their geometry
#
# The stable parametrizations form a polyhedron; feature learning happens on a face of it, and one corner is maximal.
#
# Numbers `a_l, b_l` for every layer and one `c` say `W^l = n^(-a_l) w^l` with `w^l ~ N(0, n^(-2 b_l))` trainable, and
# the learning rate `η n^(-c)`. Three facts organise the space (Tensor Programs IV,
# [2011.14522](https://arxiv.org/abs/2011.14522), section 3), for L hidden layers and `r = min(a_(L+1) + b_(L+1), 2
# a_(L+1) + c) + c - 1 + min_l (2 a_l + [l = 1])`:
#
# - *symmetry*: `a + θ, b - θ, c - 2θ` is the same training run, at every width;
# - *stability*: initial activations of order one (`a_1 + b_1 = 0`, `a_l + b_l = 1/2`, `a_(L+1) + b_(L+1) ≥ 1/2`),
#   features that do not blow up (`r ≥ 0`), nor outputs (`2 a_(L+1) + c ≥ 1`, `a_(L+1) + b_(L+1) + r ≥ 1`);
# - *dichotomy*: features change by `n^(-r)`. A stable parametrization whose function changes at all learns features
#   if `r = 0`, and is a kernel method if `r > 0`; never both.
#
# `tp.abc` has these theorems; `tp.verify` knows nothing of them and traces networks. They must say the same:

# %%
from fractions import Fraction

import tpcompile as tp

named = {
    "standard": tp.abc.standard(2),
    "standard, c = 1": tp.abc.standard(2, c=1),
    "neural tangent": tp.abc.ntk(2),
    "mean field": tp.abc.mean_field(),
    "maximal update": tp.abc.mup(2),
    "the same, θ = 1/2": tp.abc.mup(2).shifted(Fraction(1, 2)),
}
print("parametrization    r     by the theorems    traced")
for name, p in named.items():
    print(f"{name:17}  {p.r!s:>4}  {p.verdict:17}  {p.report().verdict}")

# %% [markdown]
# The symmetry, run: the shifted network has other weights, multipliers and learning rate, and the same loss.

# %%
import torch
import torch.nn.functional as F

inputs, targets = torch.tensor([[1.0, 0.5], [-0.5, 1.0]]), torch.tensor([[1.0], [-1.0]])
for name in ("maximal update", "the same, θ = 1/2"):
    compiled = tp.compile(named[name].factory(inputs=2, lr=1.0), inputs, targets, F.mse_loss, steps=3)
    print(*(f"{x:.3f}" for x in compiled.evaluate(particles=4096).loss), " width 64:", end=" ")
    print(*(f"{x:.4f}" for x in compiled.simulate(64, seed=0).loss))

# %% [markdown]
# A slice in which the readout is updated maximally (`c = 1 - 2 a_3`), with the multipliers and initial values of the
# maximal update parametrization below the readout. Stable is the quadrant `a_3 ≤ 1/2`, `b_3 ≥ 1/2`, as far as `a_3 +
# b_3 ≥ 1/2`. Features are learned on one edge, and the corner is the maximal update parametrization; the neural
# tangent one lies on the other edge, on which the uniform parametrizations join the two. Squares are the theorems,
# discs are networks that were traced.


# %%
def point(a, b):
    half = Fraction(1, 2)
    return tp.abc.parametrization([-half, 0, a], [half, half, b], 1 - 2 * a)


traced = {(a, b): point(a, b).report(steps=2).verdict for a, b in [(0, 0.5), (0.5, 0.5), (0.5, 1), (0.75, 0.5), (0, 0)]}
for (a, b), verdict in traced.items():
    print(f"a = {a:4}, b = {b:3}: {verdict}", "" if verdict == point(a, b).verdict else "(otherwise by the theorems)")

# %% tags=["picture"]
from matplotlib.figure import Figure

from tpcompile.report.plot_verdicts import COLOURS

figure = Figure(figsize=(6.0, 3.4), layout="constrained")
axis = figure.subplots()
grid = [Fraction(i, 8) for i in range(-4, 9)]
cells = [(a, b, point(a, b).verdict) for a in grid for b in grid if b >= 0]
for verdict, colour in COLOURS.items():
    chosen = [(float(a), float(b)) for a, b, v in cells if v == verdict]
    if chosen:
        axis.scatter(*zip(*chosen, strict=True), s=120, marker="s", color=colour, label=verdict)
for (a, b), verdict in traced.items():
    axis.scatter([a], [b], s=45, color=COLOURS[verdict], edgecolor="black", zorder=3)
note = {"fontsize": 8, "arrowprops": {"arrowstyle": "-", "lw": 0.7}, "bbox": {"fc": "white", "ec": "none", "pad": 1}}
axis.annotate("neural tangent", (0, 0.5), (-0.45, 0.19), **note)
axis.annotate("maximal update", (0.5, 0.5), (0.42, 0.19), **note)
axis.set(xlabel="a of the readout", ylabel="b of the readout", xlim=(-0.6, 1.1), ylim=(-0.1, 1.1))
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, markerscale=0.7)
figure.savefig("abc_slice.png", dpi=90)  # A slice of the space of parametrizations in the colours of their classes
