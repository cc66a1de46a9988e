"""Evaluations recorded once and run on many blocks of pairs: a list of torch calls on memory laid out beforehand.

:mod:`record` watches an evaluation and writes down its instructions, :mod:`simplify` joins products and sums, and
:mod:`replay` runs them, those between two of NumPy's as one :mod:`script`. An evaluation with an operation that is not
listed in :mod:`steps`, or with a decision that depends on the values of a block, is not recorded.
"""

from tpcompile.evaluate.tapes.bound import Side, Workspace
from tpcompile.evaluate.tapes.record import Input, Refused, recorded
from tpcompile.evaluate.tapes.replay import Tape

__all__ = ["Input", "Refused", "Side", "Tape", "Workspace", "recorded"]
