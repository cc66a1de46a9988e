"""Marchenko-Pastur in three lines: X has n/2 rows and n columns."""

import tpcompile as tp

s = tp.spectrum(lambda X, x: X.T @ (X @ x), shapes={"X": (0.5, 1)})
print(*s.moments[:7])
((location, mass),) = s.atoms
print(f"density between {s.edges[0]:.6f} and {s.edges[1]:.6f}, atom of mass {mass:.6f} at {abs(location):.6f}")
