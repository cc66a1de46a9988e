# %% [markdown]
# # Moments of random matrices and the semicircle law
#
# The same counting gives the eigenvalues of a random matrix, but only pairings that do not cross survive.
#
# Let `W` be n by n with independent entries of variance 1/n, and `A = (W + W^T) / sqrt(2)`. The moments of the
# eigenvalues of `A` are normalised traces, `(1/n) tr A^k = (1/n) Σ A_ij A_jl .. A_pi`: closed walks over k indices,
# in which every entry must occur twice. A walk that pairs its steps visits `k/2 + 1` different indices, the number
# that the powers of n ask for, exactly where the pairing has no crossing (Wigner 1955). Crossing pairings have fewer
# free indices and vanish. Pairings of k points without crossings are counted by the Catalan numbers 1, 2, 5, 14, 42.
#
# `tp.moments` takes the matrix as a function that applies it to a vector. It does not count pairings: it evaluates
# `E[Z^g Z^(A^k g)]` for a standard normal vector g by the rules of the next two chapters, in exact fractions.

# %%
import torch

import tpcompile as tp


def wigner(W, x):
    return (W @ x + W.T @ x) / 2**0.5


spectrum = tp.spectrum(wigner, order=12)
values = spectrum.eigenvalues(width=1000, seed=0)
print("order   limit   one matrix of width 1000")
for k in range(2, 11, 2):
    print(f"{k:>5}   {spectrum.moments[k]!s:>5}   {(values**k).mean():>24.1f}")

# %% [markdown]
# The counting itself, for order 4: the words in `W` and its transpose that have a pairing without a crossing. A
# letter is paired with its transpose. The words have the coefficient 1/4 each, and 8 pairings in all.

# %%
from tpcompile.spectra import words

found = words(wigner, 4)
for word in found:
    print(word, *word.pairings)
print("moment", sum(word.value for word in found))

# %% [markdown]
# The density with these moments is the semicircle `sqrt(4 - x^2) / (2π)`. `tp.spectrum` recovers it from the moments:
# they determine the coefficients of a continued fraction, which here are all the same.

# %%
low, high = spectrum.edges
print(f"between {low:g} and {high:g}, at zero {spectrum.at(0.0):.6f} = 1/π = {1 / torch.pi:.6f}")

# %% tags=["picture"]
from tpcompile.report.plot_spectrum import plot_spectrum

figure = plot_spectrum(spectrum, width=1000)
figure.savefig("semicircle.png", dpi=90)  # The semicircle over the eigenvalues of one matrix of width 1000
