"""Kernels of models whose outputs depend on the whole batch: batch normalisation with the statistics of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tpcompile.capture.arguments import DEFAULT_WIDTHS
from tpcompile.errors import TpcompileError, UsageError
from tpcompile.kernels.arrays import Array, Kernels, as_tensor, like
from tpcompile.kernels.kernel import Kernel
from tpcompile.kernels.plan import Pairs, generic
from tpcompile.simulate import build, seeded


class BatchKernel(Kernel):
    """Limiting kernels of a module on whole batches. Made by :func:`tpcompile.kernel` with ``batch=True``.

    ``k(x)`` of one batch ``(B, ...)`` gives ``(B, B)`` covariances of its outputs; ``k(x1, x2)`` those of the outputs
    of one batch with those of another of the same size, each normalised by itself.
    """

    batch = True

    def __call__(
        self,
        x1: Array,
        x2: Array | None = None,
        get: str = "both",
        *,
        diagonal: bool = False,
        errors: bool = False,
        **options: Any,
    ) -> Any:
        """Kernels ``(B, B)`` of one batch, or of two, ``(B, B, S, S)`` for per-position outputs, ``(B,)`` diagonals.

        Options as for a kernel of single inputs, of which ``block`` has no meaning here. Raises UsageError for inputs
        that are no batch of the example's shape.
        """
        if diagonal and x2 is not None:
            raise UsageError("a diagonal is of one set of inputs with itself, found x2 beside x1")
        if "block" in options:
            raise UsageError("block has no meaning for the kernel of a whole batch")
        batches = [as_tensor(x, name)[None] for x, name in ((x1, "x1"), (x2, "x2")) if x is not None]
        for x, name in zip(batches, ("x1", "x2"), strict=False):
            if tuple(x.shape[1:]) != tuple(self.example.shape):
                raise UsageError(
                    f"{name} must be a batch of the example's shape {tuple(self.example.shape)}, "
                    f"found {tuple(x.shape[1:])}",
                    advice="the statistics depend on the size of the batch: make a kernel for each size",
                )
        own = len(batches) == 1
        found = super().__call__(*batches, get=get, diagonal=own, errors=errors, **options)
        shaped = [self._shaped(part, get, diagonal) for part in (found if errors else (found,))]
        return like(tuple(shaped) if errors else shaped[0], x1)

    def _shaped(self, found: Any, get: str, diagonal: bool) -> Any:
        if get == "both":
            return Kernels(*(self._shaped(x, name, diagonal) for x, name in zip(found, ("nngp", "ntk"), strict=True)))
        pairs = self.pairs(get)
        value = found.reshape(*pairs.positions, *pairs.positions)
        rank, size = len(pairs.positions), len(self.example)
        if 0 in pairs.kept:
            order = [0, rank, *range(1, rank), *range(rank + 1, 2 * rank)]
            value = value.permute(order)
        else:  # outputs of different inputs are independent
            eye = torch.eye(size, dtype=value.dtype).reshape(size, size, *([1] * value.dim()))
            value = eye * value
        return value.diagonal().movedim(-1, 0) if diagonal else value

    def single_pairs(self, get: str) -> Pairs:
        """The planned kernel as that of one input of the batch."""
        pairs = self.pairs(get)
        kept = tuple(i - 1 for i in pairs.kept if i)
        positions = pairs.positions[-len(kept) :] if kept else ()
        return Pairs(None, None, positions, pairs.exponent, pairs.output[1:], kept)

    def _refused(self, what: str) -> UsageError:
        return UsageError(
            f"{what} takes the kernel of single inputs; this one is of a batch of {len(self.example)} as a whole",
            advice="evaluate the kernel on the batch and use the matrices, or make a model in evaluation mode",
        )

    def gp(self, *_: Any, **__: Any) -> Any:
        raise self._refused("gp")

    def gradient_flow(self, *_: Any, **__: Any) -> Any:
        raise self._refused("gradient_flow")

    def gradient_descent(self, *_: Any, **__: Any) -> Any:
        raise self._refused("gradient_descent")

    def to_zarr(self, *_: Any, **__: Any) -> Any:
        raise self._refused("to_zarr")

    def sklearn(self, *_: Any, **__: Any) -> Any:
        raise self._refused("sklearn")

    def gpytorch(self, *_: Any, **__: Any) -> Any:
        raise self._refused("gpytorch")


def check_single(make: Callable[[int], Any], example: Tensor, widths: Sequence[int] | None) -> None:
    """UsageError if an output of the model changes with the other inputs of its batch.

    Found by running it once at the smallest probe width; what does not run is left to the tracing, which says why.
    """
    first = generic(example)
    other = -first if first.is_floating_point() else first.flip(0) if first.dim() else first
    with seeded(0):
        model, _ = build(make, min(widths) if widths else DEFAULT_WIDTHS[0])
        try:
            with torch.no_grad():
                torch.manual_seed(0)
                mixed = model(torch.stack([first, other]))
                torch.manual_seed(0)
                alike = model(torch.stack([first, first]))
        except TpcompileError:
            raise
        except Exception:
            return
    if (
        isinstance(mixed, Tensor)
        and mixed.shape[:1] == (2,)
        and not torch.allclose(mixed[0], alike[0], rtol=1e-3, atol=1e-5, equal_nan=True)
    ):
        raise UsageError(
            "the output for an input changes with the other inputs of its batch "
            "(batch normalisation in training mode?)",
            advice="tp.kernel(make, example_batch, batch=True) gives the kernel of a whole batch; "
            "model.eval() in make gives that of single inputs, with the running statistics",
        )
