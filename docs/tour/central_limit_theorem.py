"""The moment method: moments of a normalised sum of n signs tend to the numbers of pairings, 1, 3, 15, ..."""

from fractions import Fraction
from math import comb

print("     n   moments of order 2, 4, 6 of (s_1 + .. + s_n) / sqrt(n)")
for n in (1, 10, 100, 1000):
    total = [
        sum(Fraction(comb(n, j) * (n - 2 * j) ** k, 2**n) for j in range(n + 1)) / n ** (k // 2) for k in (2, 4, 6)
    ]
    print(f"{n:>6}   " + "  ".join(f"{float(m):.4f}" for m in total))
print(" pairs   " + "  ".join(f"{m:.4f}" for m in (1, 3, 15)))
