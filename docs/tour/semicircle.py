"""Moments of a symmetric random matrix count non-crossing pairings: Catalan numbers, the semicircle law."""

import torch

import tpcompile as tp


def wigner(W, x):
    return (W @ x + W.T @ x) / 2**0.5


m = tp.moments(wigner, order=10)
values = tp.spectrum(wigner).eigenvalues(width=1000, seed=0)
print("order   limit   of it response terms   one matrix of width 1000")
for k in (2, 4, 6, 8, 10):
    print(f"{k:>5}   {m[k]!s:>5}   {m.dot[k]!s:>20}   {(values**k).mean():>24.1f}")
s = tp.spectrum(wigner)
print(f"density between {s.edges[0]:g} and {s.edges[1]:g}, at zero {s.at(0.0):.6f} (1/pi = {1 / torch.pi:.6f})")
