"""Random matrices: moments and spectra of operators written as functions of matrices and a vector."""

from tpcompile.spectra.moments import Moments, moments
from tpcompile.spectra.pairings import Word, words

__all__ = ["Moments", "Word", "moments", "words"]
