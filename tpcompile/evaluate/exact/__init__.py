"""Exact evaluation: vectors as polynomials in Gaussian generators, no sampling (theory, section 7).

Linear programs are linear algebra on the coefficients of orthonormal generators (:mod:`.linear`); others are
polynomials in formal generators over fractions, symbols or floats (:mod:`.formal`).
"""
