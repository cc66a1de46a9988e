"""Numbers that an optimizer's step reads off its tensors: traced as tensors without axes.

``x.item()`` of a computed value is the value itself; ``max`` and ``min`` of it, and its use as the ``alpha`` of a sum
or the ``value`` of a product, are tensor operations. A branch on such a number stays an error.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tpcompile.capture.tracer import Tracer

_SUMS = frozenset({torch.add, torch.sub, Tensor.add, Tensor.add_, Tensor.sub, Tensor.sub_})
_PRODUCTS = frozenset({torch.addcmul, torch.addcdiv, Tensor.addcmul, Tensor.addcmul_, Tensor.addcdiv, Tensor.addcdiv_})


class NumberReads(TorchFunctionMode):
    """Numbers read off computed tensors stay in the trace."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.item and not self._tracer.node_of(args[0]).meta["constant"]:
            return args[0].detach().reshape(())
        if func in _SUMS and isinstance(kwargs.get("alpha"), Tensor):
            factor = kwargs.pop("alpha")
            return func(args[0], args[1] * factor, *args[2:], **kwargs)
        if func in _PRODUCTS and isinstance(kwargs.get("value"), Tensor):
            factor = kwargs.pop("value")
            return func(args[0], args[1] * factor, *args[2:], **kwargs)
        return func(*args, **kwargs)


@contextmanager
def traced_numbers(tracer: Tracer) -> Iterator[None]:
    """While it holds, Python's ``max`` and ``min`` of tensors without axes are operations of the trace."""
    largest, smallest = builtins.max, builtins.min
    builtins.max, builtins.min = _extended(largest, torch.maximum), _extended(smallest, torch.minimum)
    try:
        with NumberReads(tracer):
            yield
    finally:
        builtins.max, builtins.min = largest, smallest


def _extended(plain: Callable[..., Any], of_tensors: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    def extreme(*values: Any, **options: Any) -> Any:
        tensors = [x for x in values if isinstance(x, Tensor) and x.dim() == 0]
        if len(values) < 2 or options or not tensors:
            return plain(*values, **options)
        like = tensors[0]
        return reduce(of_tensors, [x if isinstance(x, Tensor) else like.new_tensor(x) for x in values])

    return extreme
