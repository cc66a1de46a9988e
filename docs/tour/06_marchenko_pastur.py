# %% [markdown]
# # Marchenko-Pastur again, in three lines
#
# Covariance matrices of random data, by the same theorem: only the function changes.
#
# `X` has n/2 rows and n columns, with entries of variance 1/n. Half of the eigenvalues of `X^T X` are zero; the
# others have the law of Marchenko and Pastur (1967), between `(1 ± sqrt(1/2))²`.

# %%
import tpcompile as tp

spectrum = tp.spectrum(lambda X, x: X.T @ (X @ x), shapes={"X": (0.5, 1)})
print("moments", *spectrum.moments[:7])
((location, mass),) = spectrum.atoms
print(
    "density between {:.6f} and {:.6f}".format(*spectrum.edges),
    f"and an atom of mass {mass:.4f} at {abs(location):.4f}",
)

# %% [markdown]
# The whole is response: with an independent matrix in place of `X^T` every trace would vanish. `moments.dot` is the
# response's part of each moment.

# %%
print(spectrum.moments.dot[1:] == spectrum.moments[1:])

# %% [markdown]
# For another ratio the law is another one, and the moments are polynomials in the ratio c with the Narayana numbers
# as coefficients: `c`, `c + c²`, `c + 3c² + c³`, `c + 6c² + 6c³ + c⁴`.

# %%
for c in (1, 2, 3):
    expected = (c, c + c**2, c + 3 * c**2 + c**3, c + 6 * c**2 + 6 * c**3 + c**4)
    moments = tp.moments(lambda X, x: X.T @ (X @ x), order=4, shapes={"X": (c, 1)})
    print(*moments[1:], moments[1:] == expected)

# %% [markdown]
# Products of two independent square matrices (Fuss-Catalan numbers), and the sum of an independent Wigner and a
# covariance matrix, whose free cumulants are the sums of those of its parts (1, 1 + 1, 1, ..):

# %%
print(*tp.moments(lambda A, B, x: B.T @ (A.T @ (A @ (B @ x))), order=6))
print(*tp.moments(lambda W, X, x: (W @ x + W.T @ x) / 2**0.5 + X.T @ (X @ x), order=6))

# %% tags=["picture"]
from tpcompile.report.plot_spectrum import plot_spectrum

figure = plot_spectrum(spectrum, width=2000)
figure.savefig("marchenko_pastur.png", dpi=90)  # The law of Marchenko and Pastur over eigenvalues
