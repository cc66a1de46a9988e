"""Random matrices: moments and spectra of operators written as functions of matrices and a vector."""

from tpcompile.spectra.density import Spectrum, spectrum
from tpcompile.spectra.moments import Moments, moments
from tpcompile.spectra.pairings import Word, words

__all__ = ["Moments", "Spectrum", "Word", "moments", "spectrum", "words"]
