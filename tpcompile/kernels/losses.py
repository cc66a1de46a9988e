"""Training with a fixed tangent kernel under any loss: an ordinary differential equation of the training outputs.

Outputs at any input are ``f(x, t) = f(x, 0) - Theta(x, X) a(t)`` with one dual vector for each training output,
``da/dt = lr * dL/df`` at the training outputs (a sum over steps in gradient descent), so that test inputs cost nothing
while it is solved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tpcompile.errors import EvaluationError, UsageError

Gradient = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solver:
    """Options of ``scipy.integrate.solve_ivp`` for gradient flow, and the draws of random initial outputs."""

    method: str = "RK45"
    rtol: float = 1e-6
    atol: float = 1e-8
    draws: int = 64
    seed: int = 0


def gradient_of(loss: Callable[[Tensor], Tensor]) -> Gradient:
    """Gradients of a loss of outputs, for a batch of them. Raises UsageError where the loss gives no number."""

    def one(f: Tensor) -> Tensor:
        value = loss(f)
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"the loss must be a scalar tensor, found {found}", advice="its reduction is 'none'?")
        return value.reshape(())

    batched = torch.vmap(torch.func.grad(one))

    def gradient(f: Tensor) -> Tensor:
        try:
            return batched(f)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the loss fails on outputs {tuple(f.shape[1:])}: {error}") from error

    return gradient


def dual_paths(
    theta: Tensor, start: Tensor, gradient: Gradient, lr: float, t: Tensor, steps: bool, solver: Solver
) -> Tensor:
    """Dual vectors ``(T, D, R, k)`` at times ``t`` from ``D`` initial outputs ``start`` ``(D, R, k)``.

    ``theta`` is ``(R, R)``. Raises UsageError for infinite times, EvaluationError where the solver gives up.
    """
    if bool(torch.isinf(t).any()):
        raise UsageError("only MSE has predictions at infinite time", advice="pass finite times t")
    order, place = torch.unique(t, return_inverse=True)

    def speed(dual: Tensor) -> Tensor:
        return lr * gradient(start - theta @ dual)

    found = _descend(speed, start, order) if steps else _flow(speed, start, order, solver)
    return found[place]


def _descend(speed: Gradient, start: Tensor, t: Tensor) -> Tensor:
    dual, found, done = torch.zeros_like(start), [], 0
    for until in t.tolist():
        while done < until:
            dual = dual + speed(dual)
            done += 1
        found.append(dual)
    return torch.stack(found)


def _flow(speed: Gradient, start: Tensor, t: Tensor, solver: Solver) -> Tensor:
    from scipy.integrate import solve_ivp

    zero = torch.zeros_like(start)
    if float(t[-1]) == 0:
        return zero[None].expand(len(t), *zero.shape)

    def right(_: float, flat: np.ndarray) -> np.ndarray:
        return speed(torch.from_numpy(flat).to(start.dtype).reshape(start.shape)).double().numpy().reshape(-1)

    try:
        solution = solve_ivp(
            right,
            (0.0, float(t[-1])),
            zero.double().numpy().reshape(-1),
            method=solver.method,
            t_eval=t.double().numpy(),
            rtol=solver.rtol,
            atol=solver.atol,
        )
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"solve_ivp: {error}", where="method, rtol, atol") from error
    if not solution.success:
        raise EvaluationError(
            f"the training equation could not be solved ({solution.message})",
            advice="a stiff one needs method='BDF' or 'LSODA', or larger tolerances",
        )
    return torch.from_numpy(solution.y.T.copy()).to(start.dtype).reshape(len(t), *start.shape)


def factor(k: Tensor) -> tuple[Tensor, Tensor]:
    """A square root ``(R, R)`` of a covariance, and its pseudo-inverse ``(R, R)``."""
    values, vectors = torch.linalg.eigh(k)
    kept = values > len(values) * torch.finfo(k.dtype).eps * values[-1]
    root = torch.where(kept, values, 0.0).sqrt()
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return vectors * root, (vectors * inverse) @ vectors.T
