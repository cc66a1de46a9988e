"""Every error that tpcompile raises on purpose.

One root, :class:`TpcompileError`, so that a caller can tell "tpcompile says no, and why" from a bug.
A message says what was expected, what was found, where in the user's model, and what to do.
"""

from __future__ import annotations


class TpcompileError(Exception):
    """Root of all errors that tpcompile raises on purpose.

    ``what`` is the finding, ``where`` the place in the user's model or call (module path, step,
    source line), ``advice`` what to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, advice: str | None = None) -> None:
        self.what = what
        self.where = where
        self.advice = advice
        parts = [what]
        if where:
            parts.append(f"at {where}")
        if advice:
            parts.append(advice)
        super().__init__("; ".join(parts))


class UsageError(TpcompileError, ValueError):
    """An argument of a public function that cannot be used."""


class FactoryError(TpcompileError):
    """The factory fails at a probe width, ignores the width, or is not proportional to it."""


class ProportionError(FactoryError):
    """A size or a number is no power of the width at the probe widths."""


class CaptureError(TpcompileError):
    """The model, the loss or the optimizer cannot be traced."""


class InitialisationError(TpcompileError):
    """The law of a parameter at initialisation is unknown or has no limit."""


class UnsupportedOperationError(TpcompileError, NotImplementedError):
    """An operation of the traced model has no lowering rule."""


class UnstableError(TpcompileError):
    """A value blows up with the width: the parametrization has no limit there.

    ``value`` names it, ``step`` is the training step, ``exponent`` the power of n.
    """

    def __init__(
        self,
        what: str,
        *,
        value: str,
        step: int | None,
        exponent: object,
        where: str | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(what, where=where, advice=advice)
        self.value = value
        self.step = step
        self.exponent = exponent


class UndeterminedLimitError(TpcompileError):
    """A limit that the kept orders of the asymptotic series do not decide."""


class ProgramError(TpcompileError):
    """A program text that does not parse, or a program that does not verify."""


class EvaluationError(TpcompileError):
    """A program that an evaluator cannot evaluate (memory, too few particles, a value not finite)."""


class MissingExtraError(TpcompileError, ImportError):
    """An optional dependency that is not installed."""
