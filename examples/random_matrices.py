"""Random matrices as functions of matrices and a vector: run `tpcompile spectrum FILE.py:wigner --plot wigner.png`.

Every argument but the last is a matrix with independent entries of variance 1/n.
"""

import torch
from torch.func import jvp, vjp


def wigner(W, x):
    """A symmetric matrix of independent entries: semicircle law."""
    return (W @ x + W.T @ x) / 2**0.5


def wishart(X, x):
    """A covariance matrix: Marchenko-Pastur law; `--shape X=1/2,1` for half as many samples as dimensions."""
    return X.T @ (X @ x)


def ginibre_product(A, B, x):
    """Squared singular values of a product of two square matrices: Fuss-Catalan law."""
    return B.T @ (A.T @ (A @ (B @ x)))


def signal(V, W, x):
    """A free sum of a Wigner and a Wishart matrix."""
    return wigner(V, x) + wishart(W, x)


def layer(W, V, u, x):
    """Squared singular values of the Jacobian of a layer tanh(W h) behind the input h = V u; `--shape u=1`."""
    slope = 1 - torch.tanh(W @ (V @ u)) ** 2
    return W.T @ (slope * (slope * (W @ x)))


def residual(W, u, x):
    """Squared singular values of the Jacobian of a residual block h + W relu(h) at h = u; `--shape u=1`."""

    def block(h):
        return h + W @ torch.relu(h)

    pushed = jvp(block, (u,), (x,))[1]
    return vjp(block, u)[1](pushed)[0]
