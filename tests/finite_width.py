"""A fast simulator of wide networks: the user's own model, its hidden matrices kept as ``c W_0 + U diag(d) V^T``.

Every update of a weight by SGD (weight decay, momentum, dampening, Nesterov included) is a combination of the
initial weight and of the outer products of the batch's gradients and activations. Keeping these factors in
place of the updated matrix is the same training run to rounding, and costs products with ``W_0`` only: ten times
faster at width 4096 than :func:`tpcompile.simulate.simulate`, against which :func:`deviation` checks it. It shares no
code with the compiler: autograd and torch's SGD train everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpcompile.recording import forward_with_activations
from tpcompile.simulate import build, seeded, simulate

Values = dict[str, Tensor]


@dataclass(eq=False)
class LowRank:
    """A hidden weight during training; stands for a Parameter in ``F.linear``, ``x @ W`` and ``x @ W.T``."""

    start: Tensor
    factor: float = 1.0
    coefficients: list[float] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    momentum: tuple[float, list[float]] | None = None
    fresh: int = 0  # outer products of the gradient of this step, the last of the list

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        x, weight = args[0], args[1]
        if func is F.linear and isinstance(weight, LowRank) and not kwargs:
            y = weight.apply(x, transpose=False)
            return y if len(args) < 3 or args[2] is None else y + args[2]
        if func in (Tensor.matmul, Tensor.__matmul__, torch.matmul) and isinstance(weight, LowRank | Transposed):
            # rows times W is a product with the transpose, rows times W.T one with W
            base = weight.base if isinstance(weight, Transposed) else weight
            return base.apply(x, transpose=weight is base)
        raise NotImplementedError(f"{func} of a hidden matrix")

    @property
    def T(self) -> Transposed:  # noqa: N802
        """The transpose."""
        return Transposed(self)

    def apply(self, x: Tensor, transpose: bool) -> Tensor:
        """``W x`` of every row of x, or ``W^T x``; the gradient's factors are noted on the way back."""
        start = self.start.T if transpose else self.start
        y = self.factor * F.linear(x, start)
        if self.left:
            out, into = (self.right, self.left) if transpose else (self.left, self.right)
            d = torch.tensor(self.coefficients, dtype=x.dtype)
            y = y + (x @ torch.cat(into).T * d) @ torch.cat(out)
        if torch.is_grad_enabled():
            if not y.requires_grad:
                y.requires_grad_()
            y.register_hook(lambda g: self._note(x.detach(), g, transpose))
        return y

    def _note(self, x: Tensor, g: Tensor, transpose: bool) -> None:
        x, g = x.flatten(0, -2), g.flatten(0, -2)
        self.left.append(x if transpose else g)
        self.right.append(g if transpose else x)
        self.coefficients += [0.0] * x.shape[0]
        self.fresh += x.shape[0]

    def step(self, group: dict[str, Any]) -> None:
        """torch.optim.SGD's update with the gradient noted since the last one."""
        size, old = len(self.coefficients), len(self.coefficients) - self.fresh
        self.fresh = 0
        decay, m = group["weight_decay"], group["momentum"]
        gradient = [decay * c for c in self.coefficients[:old]] + [1.0] * (size - old)
        constant = decay * self.factor
        if m:
            if self.momentum is None:
                buffer = (constant, list(gradient))
            else:
                keep, (c, d) = 1 - group["dampening"], self.momentum
                d = d + [0.0] * (size - len(d))
                buffer = (m * c + keep * constant, [m * a + keep * b for a, b in zip(d, gradient, strict=True)])
            self.momentum = buffer
            if group["nesterov"]:
                constant = constant + m * buffer[0]
                gradient = [a + m * b for a, b in zip(gradient, buffer[1], strict=True)]
            else:
                constant, gradient = buffer
        self.factor -= group["lr"] * constant
        self.coefficients = [c - group["lr"] * g for c, g in zip(self.coefficients, gradient, strict=True)]


@dataclass(eq=False)
class Transposed:
    """``W.T`` of a :class:`LowRank`."""

    base: LowRank

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return LowRank.__torch_function__(func, types, args, kwargs)


@dataclass(frozen=True)
class Setup:
    """A training run: what :func:`tpcompile.compile` is given, and how both sides start."""

    make: Callable[[int], Any]
    inputs: Any
    targets: Any
    loss: Callable[..., Tensor] = F.mse_loss
    steps: int = 5
    output_init: str | None = None


def train(
    setup: Setup, width: int, seed: int, activations: Sequence[str], dtype: torch.dtype = torch.float32
) -> Values:
    """Outputs and the kernels of ``activations`` at every moment, flat: ``outputs`` and ``kernel NAME``."""
    many = not isinstance(setup.inputs, Tensor)
    xs = [x.to(dtype) if x.is_floating_point() else x for x in (setup.inputs if many else [setup.inputs])]
    ys = [y.to(dtype) if y.is_floating_point() else y for y in (setup.targets if many else [setup.targets])]
    with seeded(seed):
        model, optimizer = build(setup.make, width)
        assert isinstance(optimizer, torch.optim.SGD)
        model.to(dtype)
        matrices = _replace_matrices(model, optimizer, width)
        everything = torch.cat(xs)
        with torch.no_grad():
            starts = [model(x) if setup.output_init == "zero" else torch.zeros(()) for x in (*xs, everything)]
        found: dict[str, list[Tensor]] = {}
        for step in range(setup.steps + 1):
            output, hidden = forward_with_activations(model, everything)
            found.setdefault("outputs", []).append((output - starts[-1]).double())
            for name in activations:
                h = hidden[name].flatten(1)
                found.setdefault(f"kernel {name}", []).append(upper((h @ h.T / width).double()))
            if step == setup.steps:
                break
            place = step if many else 0
            optimizer.zero_grad()
            setup.loss(model(xs[place]) - starts[place], ys[place]).backward()
            optimizer.step()
            for matrix, group in matrices:
                matrix.step(group)
    return {name: torch.stack(values).flatten() for name, values in found.items()}


def _replace_matrices(
    model: nn.Module, optimizer: torch.optim.Optimizer, width: int
) -> list[tuple[LowRank, dict[str, Any]]]:
    matrices = []
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is None or p.ndim != 2 or min(p.shape) < width:
                continue
            groups = [g for g in optimizer.param_groups if any(q is p for q in g["params"])]
            assert len(groups) == 1, f"{name} is not trained"
            groups[0]["params"] = [q for q in groups[0]["params"] if q is not p]
            matrix = LowRank(p.detach())
            del module._parameters[name]
            object.__setattr__(module, name, matrix)
            matrices.append((matrix, groups[0]))
    return matrices


def upper(kernels: Tensor) -> Tensor:
    """The entries on and above the diagonal of ``(..., N, N)``."""
    i, j = torch.triu_indices(kernels.shape[-2], kernels.shape[-1])
    return kernels[..., i, j]


def deviation(
    setup: Setup, width: int, seed: int, activations: Sequence[str], dtype: torch.dtype = torch.float32
) -> float:
    """Largest difference from the package's own simulation, relative to a quantity's largest entry."""
    fast = train(setup, width, seed, activations, dtype)
    real = simulate(
        setup.make,
        setup.inputs,
        setup.targets,
        setup.loss,
        steps=setup.steps,
        width=width,
        seed=seed,
        activations=activations,
        output_init=setup.output_init,
    )
    slow = {"outputs": real.outputs.flatten()}
    slow |= {f"kernel {name}": upper(real.feature_kernel(name)).flatten() for name in activations}
    return max(float((fast[name] - v).abs().max() / v.abs().max()) for name, v in slow.items())
