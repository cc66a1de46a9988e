"""Shorthands of the tests of the initialisation recorder."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpcompile.capture.initialisation import Recording, parameter_laws, record
from tpcompile.errors import InitialisationError
from tpcompile.laws import Law, ParameterLaw

WIDTHS = (8, 12, 24)
HALF = Fraction(1, 2)


def laws_of(make: Callable[[int], Any], overrides: dict[str, Law] | None = None) -> dict[str, ParameterLaw]:
    """Laws of what ``make`` returns: a module, a dict of tensors, or one tensor, named 'w'."""
    recordings = {n: record(make, n) for n in WIDTHS}
    return parameter_laws(recordings, {n: named(r) for n, r in recordings.items()}, overrides)


def named(recording: Recording) -> dict[str, Tensor]:
    result = recording.result
    if isinstance(result, nn.Module):
        return dict(result.named_parameters(remove_duplicate=False)) | dict(result.named_buffers())
    return result if isinstance(result, dict) else {"w": result}


def law(make: Callable[[int], Any]) -> ParameterLaw:
    return laws_of(make)["w"]


def reason(make: Callable[[int], Any]) -> str:
    with pytest.raises(InitialisationError) as error:
        laws_of(make)
    return str(error.value)


def inplace(function: Callable[[Tensor, int], Any], *shape: int) -> Callable[[int], Tensor]:
    """A factory that applies ``function`` in place to an uninitialised (n, n) parameter."""

    def make(n: int) -> Tensor:
        w = nn.Parameter(torch.empty(*(shape or (n, n))))
        with torch.no_grad():
            function(w, n)
        return w

    return make


def close(found: ParameterLaw, expected: ParameterLaw, rel: float = 1e-12) -> bool:
    assert type(found) is type(expected)
    assert found.width_exponent == expected.width_exponent
    assert vars(found) == pytest.approx(vars(expected), rel=rel)
    return True
